// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Makes the images of a ROM be for the function that shows it.
//!
//! A guest may be shown another device id than the one its ROM was made for; firmware then would not run it.
//! Images of other vendors are left alone: they are for something else.

use super::{CHECKSUM, CODE_TYPE_X86, PCIR_POINTER, RomError, RomImage, UNIT, sum, validate};
use crate::pci::Identity;

/// Device id within the PCI data structure.
const DEVICE_ID: usize = 6;

/// Checks a ROM and makes its images be for `identity`.
///
/// # Errors
/// [`RomError`]; nothing is changed then.
pub fn adopt(rom: &mut [u8], identity: &Identity) -> Result<(), RomError> {
    let images = validate(rom)?;
    for image in &images {
        if image.vendor_id == identity.vendor_id && image.device_id != identity.device_id {
            set_device(rom, image, identity.device_id);
        }
    }
    Ok(())
}

/// The same, and checksums are mended first: what firmware changed in a copy that it left is no fault of the ROM.
///
/// # Errors
/// [`RomError`] for anything else.
pub fn adopt_repaired(rom: &mut [u8], identity: &Identity) -> Result<(), RomError> {
    let mut last = None;
    loop {
        match adopt(rom, identity) {
            // Each image once.
            Err(RomError::Checksum { image, .. }) if last < Some(image) => {
                correct(rom, image);
                last = Some(image);
            }
            done => return done,
        }
    }
}

fn set_device(rom: &mut [u8], image: &RomImage, device_id: u16) {
    let Some(bytes) = rom.get_mut(image.offset..) else {
        return;
    };
    let pointer = bytes.get(PCIR_POINTER..).and_then(<[u8]>::first_chunk);
    let at = usize::from(u16::from_le_bytes(*pointer.unwrap_or(&[0; 2]))) + DEVICE_ID;
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&device_id.to_le_bytes());
    }
    if image.code_type == CODE_TYPE_X86 {
        correct(rom, image.offset);
    }
}

/// Makes the bytes of the x86 image at `start` sum to 0.
fn correct(rom: &mut [u8], start: usize) {
    let Some(bytes) = rom.get_mut(start..) else {
        return;
    };
    let length = bytes.get(2).map_or(0, |units| usize::from(*units) * UNIT);
    let Some(image) = bytes.get_mut(..length) else {
        return;
    };
    let sum = sum(image);
    if let Some(checksum) = image.get_mut(CHECKSUM) {
        *checksum = checksum.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::rom::build;

    fn identity(vendor_id: u16, device_id: u16) -> Identity {
        Identity {
            vendor_id,
            device_id,
            class_code: 0x03_0000,
            ..Identity::default()
        }
    }

    /// Two images, the first not the last.
    fn two() -> Vec<u8> {
        let mut first = build(&identity(0x10de, 0x1b80));
        first[0x1c + 0x15] = 0;
        first[6] = first[6].wrapping_add(0x80);
        let mut rom = [first, build(&identity(0x1002, 0x67b0))].concat();
        rom.resize(2048, 0xff);
        rom
    }

    #[test]
    fn images_of_the_vendor_are_for_this_device() {
        let mut rom = two();
        adopt(&mut rom, &identity(0x10de, 0x2684)).unwrap();
        let images = validate(&rom).unwrap();
        assert_eq!((images[0].device_id, images[1].device_id), (0x2684, 0x67b0));
        assert_ne!(rom, two());
        adopt(&mut rom, &identity(0x10de, 0x1b80)).unwrap();
        assert_eq!(rom, two(), "and back");
    }

    #[test]
    fn only_checksums_are_mended() {
        let device = identity(0x10de, 0x1b80);
        let mut rom = two();
        rom[0x100] = 7;
        rom[512 + 0x100] = 9;
        let before = rom.clone();
        let refused = adopt(&mut rom, &device);
        assert_eq!(refused, Err(RomError::Checksum { image: 0, sum: 7 }));
        assert_eq!(rom, before);
        adopt_repaired(&mut rom, &device).unwrap();
        assert_eq!(validate(&rom).unwrap().len(), 2);
        rom[0x1c] = b'Q';
        let refused = adopt_repaired(&mut rom, &device);
        assert_eq!(refused, Err(RomError::PcirSignature(0)));
    }

    proptest::proptest! {
        #[test]
        fn damage_never_panics(
            damage in proptest::collection::vec((0..2048_usize, 0..=255_u8), 0..12),
        ) {
            let mut rom = two();
            for (at, byte) in damage {
                rom[at] = byte;
            }
            if adopt_repaired(&mut rom, &identity(0x10de, 0x2684)).is_ok() {
                validate(&rom).unwrap();
            }
        }
    }
}
