// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Expansion ROM images: makes a minimal one, and checks one that comes from a file or a device.
//!
//! ```text
//! 0x00  55 aa            signature
//! 0x02  length           in units of 512 bytes
//! 0x03  cb               entry point: return far, there is nothing to initialise
//! 0x06  checksum         makes all bytes sum to 0; firmware that patches ids corrects it here too
//! 0x18  pointer ──► "PCIR" vendor device - length revision class
//!                        image-length code-revision code-type indicator
//! ```
//!
//! Sources: PCI Local Bus 3.0, 6.3; PCI Firmware 3.0, 5.1. Code in an image is never run or judged
//! here.

mod identity;

use super::Identity;
pub use identity::{adopt, adopt_repaired};

/// Image lengths count in these.
const UNIT: usize = 512;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const ENTRY_POINT: usize = 0x03;
const RETURN_FAR: u8 = 0xcb;
const CHECKSUM: usize = 0x06;
const PCIR_POINTER: usize = 0x18;
const PCIR_SIGNATURE: [u8; 4] = *b"PCIR";
/// Length of the PCI data structure of revision 0.
const PCIR_LEN: u8 = 0x18;
const LAST_IMAGE: u8 = 0x80;

/// Code type of images that x86 firmware runs; only these carry a checksum.
pub const CODE_TYPE_X86: u8 = 0;
/// Code type of UEFI drivers.
pub const CODE_TYPE_EFI: u8 = 3;

/// One image of a ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RomImage {
    /// Bytes from the start of the ROM.
    pub offset: usize,
    /// Bytes in the image.
    pub len: usize,
    /// Vendor it is for.
    pub vendor_id: u16,
    /// Device it is for.
    pub device_id: u16,
    /// Class of that device, 24 bits.
    pub class_code: u32,
    /// What runs it: [`CODE_TYPE_X86`], [`CODE_TYPE_EFI`], or another.
    pub code_type: u8,
}

/// What is wrong with a ROM. Offsets count from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RomError {
    /// The ROM ends before the header of an image does.
    #[error("Image at {0:#x} is cut short: its header is past the end of the ROM")]
    Truncated(usize),
    /// The image does not begin with 0x55 0xaa.
    #[error("Image at {0:#x} does not begin with 55 aa")]
    Signature(usize),
    /// The pointer to the PCI data structure leads outside the ROM or into the header.
    #[error("Image at {image:#x} has its PCI data structure at {pointer:#x}, out of range")]
    PcirPointer {
        /// Start of the image.
        image: usize,
        /// The pointer, from that start.
        pointer: u16,
    },
    /// The PCI data structure does not begin with "PCIR".
    #[error("Image at {0:#x} has no PCIR signature")]
    PcirSignature(usize),
    /// The image is empty, ends past the end of the ROM, or ends before its own PCI data structure.
    #[error("Image at {image:#x} has {len:#x} bytes, which cannot be")]
    Length {
        /// Start of the image.
        image: usize,
        /// The length it says.
        len: usize,
    },
    /// The bytes of an x86 image do not sum to 0.
    #[error("Image at {image:#x} has a wrong checksum: bytes sum to {sum:#04x}, not 0")]
    Checksum {
        /// Start of the image.
        image: usize,
        /// Their sum.
        sum: u8,
    },
    /// The ROM ends without an image that says it is the last.
    #[error("No image says that it is the last")]
    NoLastImage,
}

/// A ROM of one x86 image that does nothing, for the given function: 512 bytes.
pub fn build(identity: &Identity) -> Vec<u8> {
    let [prog_if, subclass, class, _] = identity.class_code.to_le_bytes();
    let [vendor, device] = [identity.vendor_id, identity.device_id].map(u16::to_le_bytes);
    const PCIR: u8 = 0x1c;
    let pcir: [&[u8]; 9] = [
        &PCIR_SIGNATURE,
        &vendor,
        &device,
        &[0, 0],
        &[PCIR_LEN, 0],
        // Revision 0 of the structure, then the class.
        &[0, prog_if, subclass, class],
        // One unit, and no revision of the code.
        &[1, 0, 0, 0],
        &[CODE_TYPE_X86, LAST_IMAGE],
        &[0, 0],
    ];

    let mut rom = vec![0; UNIT];
    rom[..3].copy_from_slice(&[SIGNATURE[0], SIGNATURE[1], 1]);
    rom[ENTRY_POINT] = RETURN_FAR;
    rom[PCIR_POINTER] = PCIR;
    let pcir = pcir.concat();
    rom[PCIR.into()..usize::from(PCIR) + pcir.len()].copy_from_slice(&pcir);
    rom[CHECKSUM] = sum(&rom).wrapping_neg();
    rom
}

/// Size of the ROM BAR that shows `len` bytes: the power of two above, 2 KiB at least. `None` above
/// 16 MiB.
pub fn bar_size(len: usize) -> Option<u32> {
    u32::try_from(len)
        .ok()
        .map(|len| len.max(0x800))
        .and_then(u32::checked_next_power_of_two)
        .filter(|size| *size <= 0x100_0000)
}

/// Checks all images of a ROM and says what they are. Bytes after the last image are padding.
pub fn validate(rom: &[u8]) -> Result<Vec<RomImage>, RomError> {
    let mut images = Vec::new();
    let mut offset = 0;
    loop {
        let rest = rom.get(offset..).filter(|rest| !rest.is_empty());
        let Some(rest) = rest else {
            return Err(if images.is_empty() {
                RomError::Truncated(0)
            } else {
                RomError::NoLastImage
            });
        };
        let (image, is_last) = image(rest, offset)?;
        // An image has at least one unit, so this ends.
        offset += image.len;
        images.push(image);
        if is_last {
            return Ok(images);
        }
    }
}

/// The image at the start of `rest`, which starts at `offset` of the ROM; and whether it is the
/// last.
fn image(rest: &[u8], offset: usize) -> Result<(RomImage, bool), RomError> {
    let pointer: [u8; 2] = field(rest, PCIR_POINTER).ok_or(RomError::Truncated(offset))?;
    if !rest.starts_with(&SIGNATURE) {
        return Err(RomError::Signature(offset));
    }
    let pointer = u16::from_le_bytes(pointer);
    let start = usize::from(pointer);
    let pcir: [u8; PCIR_LEN as usize] = field(rest, start)
        .filter(|_| start >= PCIR_POINTER + 2)
        .ok_or(RomError::PcirPointer {
            image: offset,
            pointer,
        })?;
    if !pcir.starts_with(&PCIR_SIGNATURE) {
        return Err(RomError::PcirSignature(offset));
    }
    let word = |at: usize| u16::from_le_bytes([pcir[at], pcir[at + 1]]);

    let len = usize::from(word(0x10)) * UNIT;
    if len < start + usize::from(PCIR_LEN) || len > rest.len() {
        return Err(RomError::Length { image: offset, len });
    }
    let code_type = pcir[0x14];
    if code_type == CODE_TYPE_X86 {
        // The part that firmware copies and sums is what the header says, not the PCI data
        // structure.
        let len = usize::from(rest[2]) * UNIT;
        let body = rest.get(..len).filter(|body| !body.is_empty());
        let sum = sum(body.ok_or(RomError::Length { image: offset, len })?);
        if sum != 0 {
            return Err(RomError::Checksum { image: offset, sum });
        }
    }
    let image = RomImage {
        offset,
        len,
        vendor_id: word(0x04),
        device_id: word(0x06),
        class_code: u32::from_le_bytes([pcir[0x0d], pcir[0x0e], pcir[0x0f], 0]),
        code_type,
    };
    Ok((image, pcir[0x15] & LAST_IMAGE != 0))
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDENTITY: Identity = Identity {
        vendor_id: 0x1234,
        device_id: 0x1111,
        revision: 0,
        class_code: 0x03_8000,
        subsystem_vendor_id: 0,
        subsystem_id: 0,
    };

    /// The built ROM with some bytes changed and the checksum made right again.
    fn patched(patches: &[(usize, u8)]) -> Vec<u8> {
        let mut rom = build(&IDENTITY);
        for (offset, byte) in patches {
            rom[*offset] = *byte;
        }
        rom[CHECKSUM] = 0;
        rom[CHECKSUM] = sum(&rom).wrapping_neg();
        rom
    }

    #[test]
    fn what_is_built_is_valid() {
        let image = RomImage {
            offset: 0,
            len: 512,
            vendor_id: 0x1234,
            device_id: 0x1111,
            class_code: 0x03_8000,
            code_type: CODE_TYPE_X86,
        };
        let mut rom = build(&IDENTITY);
        assert_eq!(rom[..4], [0x55, 0xaa, 1, 0xcb]);
        assert_eq!(validate(&rom), Ok(vec![image]));
        rom.extend([0xff; 100]);
        assert_eq!(validate(&rom), Ok(vec![image]), "padding is ignored");
    }

    #[test]
    fn images_follow_each_other_until_the_last() {
        let first = patched(&[(0x1c + 0x15, 0)]);
        let mut efi = patched(&[(0x1c + 0x14, CODE_TYPE_EFI)]);
        efi[100] ^= 1; // no checksum in this kind
        let images = validate(&[first.clone(), efi].concat()).unwrap();
        assert_eq!(
            images
                .iter()
                .map(|i| (i.offset, i.code_type))
                .collect::<Vec<_>>(),
            [(0, CODE_TYPE_X86), (512, CODE_TYPE_EFI)]
        );
        assert_eq!(validate(&first), Err(RomError::NoLastImage));
        let cut = [&first[..], &first[..10]].concat();
        assert_eq!(validate(&cut), Err(RomError::Truncated(512)));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let pointer = |pointer| RomError::PcirPointer { image: 0, pointer };
        let length = |len| RomError::Length { image: 0, len };
        for (rom, expected) in [
            (vec![], RomError::Truncated(0)),
            (vec![0x55, 0xaa, 1], RomError::Truncated(0)),
            (patched(&[(1, 0xab)]), RomError::Signature(0)),
            (patched(&[(0x18, 0x02)]), pointer(0x02)),
            (patched(&[(0x18, 0xf0), (0x19, 0x01)]), pointer(0x1f0)),
            (patched(&[(0x1c, b'p')]), RomError::PcirSignature(0)),
            (patched(&[(0x1c + 0x10, 0)]), length(0)),
            (patched(&[(0x1c + 0x10, 2)]), length(1024)),
            (patched(&[(2, 0)]), length(0)),
            (patched(&[(2, 2)]), length(1024)),
        ] {
            assert_eq!(validate(&rom), Err(expected));
        }
        let mut rom = build(&IDENTITY);
        rom[200] = 3;
        assert_eq!(validate(&rom), Err(RomError::Checksum { image: 0, sum: 3 }));
    }

    #[test]
    fn bar_sizes() {
        for (len, size) in [
            (0, Some(0x800)),
            (512, Some(0x800)),
            (0x801, Some(0x1000)),
            (0x100_0000, Some(0x100_0000)),
            (0x100_0001, None),
            (usize::MAX, None),
        ] {
            assert_eq!(bar_size(len), size);
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            damage in proptest::collection::vec((0..512_usize, any::<u8>()), 0..8),
            len in 0..600_usize,
        ) {
            let mut rom = build(&IDENTITY);
            for (offset, byte) in damage {
                rom[offset] = byte;
            }
            rom.resize(len, 0);
            if let Ok(images) = validate(&rom) {
                prop_assert!(images.iter().all(|image| image.offset + image.len <= rom.len()));
            }
        }
    }
}
