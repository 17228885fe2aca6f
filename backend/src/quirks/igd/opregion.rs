// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The OpRegion as the kernel shows it: checked before anybody relies on it, and without host addresses.
//!
//! ```text
//! 0x000  "IntelGraphicsMem"
//! 0x010  size, KiB          of the five mailboxes: 8
//! 0x014  - revision minor major
//! 0x058  mailboxes          bit 2: the one at 0x300 is there
//! 0x300  ASLE mailbox       0x3aa FDSS, 0x3b2 FDSP   a buffer in host memory
//!                           0x3ba RVDA, 0x3c2 RVDS   the video BIOS table, if it is behind the OpRegion:
//!                                                    2.0 a host address, from 2.1 on from the OpRegion's start
//! 0x2000 video BIOS table   where it did not fit in mailbox 4
//! ```

const SIGNATURE: &[u8; 16] = b"IntelGraphicsMem";
const SIZE: usize = 0x10;
const VERSION: usize = 0x16;
const MAILBOXES: usize = 0x58;
const MAILBOX_ASLE: u32 = 1 << 2;
const FDSS: usize = 0x3aa;
/// Bytes of FDSS and FDSP.
const FDSS_FDSP: usize = 12;
const RVDA: usize = 0x3ba;
const RVDS: usize = 0x3c2;
/// Bytes of the five mailboxes.
const MAILBOX_BYTES: usize = 0x2000;
/// RVDA is an address of the host.
const VERSION_2_0: u16 = 0x0200;
/// RVDA counts from the start of the OpRegion.
const VERSION_2_1: u16 = 0x0201;

/// Why bytes are no OpRegion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpRegionError {
    /// Too small for its mailboxes, or larger than any.
    #[error("{0} bytes cannot be one: it has 8 KiB, and up to 1 MiB with what follows")]
    Length(u64),
    /// Something else is there.
    #[error("It does not begin with \"IntelGraphicsMem\"")]
    Signature,
    /// Its own word on its size.
    #[error("It says that it has {says} KiB: must be 8 to the {has} KiB there are")]
    Size {
        /// What it says, in KiB.
        says: u32,
        /// What there is, in KiB.
        has: u64,
    },
    /// Its own word on where the video BIOS table is.
    #[error("It says that its video BIOS table has {size:#x} bytes at {offset:#x}: there is none")]
    VideoBiosTable {
        /// From the start of the OpRegion.
        offset: u64,
        /// Bytes.
        size: u32,
    },
}

/// A sound OpRegion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpRegion(Vec<u8>);

impl OpRegion {
    /// The most that one may have, in bytes.
    pub const LARGEST: u64 = 1 << 20;

    /// Checks what a device shows, and takes host addresses out of it.
    ///
    /// # Errors
    /// [`OpRegionError`].
    pub fn new(mut bytes: Vec<u8>) -> Result<Self, OpRegionError> {
        let length = bytes.len() as u64;
        if bytes.len() < MAILBOX_BYTES || length > Self::LARGEST {
            return Err(OpRegionError::Length(length));
        }
        if !bytes.starts_with(SIGNATURE) {
            return Err(OpRegionError::Signature);
        }
        let says = u32::from_le_bytes(field(&bytes, SIZE));
        let size = u64::from(says) * 1024;
        if !(MAILBOX_BYTES as u64..=length).contains(&size) {
            let has = length / 1024;
            return Err(OpRegionError::Size { says, has });
        }
        if u32::from_le_bytes(field(&bytes, MAILBOXES)) & MAILBOX_ASLE != 0 {
            mailbox_asle(&mut bytes)?;
        } else {
            put(&mut bytes, FDSS, &[0; RVDS + 4 - FDSS]);
        }
        Ok(Self(bytes))
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of it.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The mailbox that holds addresses.
fn mailbox_asle(bytes: &mut [u8]) -> Result<(), OpRegionError> {
    put(bytes, FDSS, &[0; FDSS_FDSP]);
    let version = u16::from_le_bytes(field(bytes, VERSION));
    let offset = u64::from_le_bytes(field(bytes, RVDA));
    let size = u32::from_le_bytes(field(bytes, RVDS));
    let length = bytes.len() as u64;
    if version < VERSION_2_0 || offset == 0 || size == 0 {
        put(bytes, RVDA, &[0; 12]);
    } else if version == VERSION_2_0 {
        // The kernel puts the table behind the mailboxes, wherever the host has it.
        let behind = MAILBOX_BYTES as u64;
        if behind + u64::from(size) > length {
            put(bytes, RVDA, &[0; 12]);
        } else {
            put(bytes, VERSION, &VERSION_2_1.to_le_bytes());
            put(bytes, RVDA, &behind.to_le_bytes());
        }
    } else {
        let end = offset.checked_add(size.into());
        if offset < MAILBOX_BYTES as u64 || end.is_none_or(|end| end > length) {
            return Err(OpRegionError::VideoBiosTable { offset, size });
        }
    }
    Ok(())
}

/// Zero outside, which the caller has excluded.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let tail = bytes.get(at..).unwrap_or_default();
    tail.first_chunk().copied().unwrap_or([0; N])
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: usize = 0x1800;

    fn sound(version: u16, rvda: u64) -> Vec<u8> {
        let mut bytes = vec![0x5a; MAILBOX_BYTES + TABLE];
        bytes[..16].copy_from_slice(SIGNATURE);
        put(&mut bytes, SIZE, &8_u32.to_le_bytes());
        put(&mut bytes, VERSION, &version.to_le_bytes());
        put(&mut bytes, MAILBOXES, &0x1f_u32.to_le_bytes());
        put(&mut bytes, RVDA, &rvda.to_le_bytes());
        put(&mut bytes, RVDS, &0x1800_u32.to_le_bytes());
        bytes
    }

    fn rvda(opregion: &OpRegion) -> (u16, u64, u32) {
        let bytes = opregion.bytes();
        (
            u16::from_le_bytes(field(bytes, VERSION)),
            u64::from_le_bytes(field(bytes, RVDA)),
            u32::from_le_bytes(field(bytes, RVDS)),
        )
    }

    #[test]
    fn host_addresses_are_taken_out() {
        let old = OpRegion::new(sound(0x0100, 0x7a5e_0000)).unwrap();
        assert_eq!(rvda(&old), (0x0100, 0, 0));
        let absolute = OpRegion::new(sound(0x0200, 0x7a5e_0000)).unwrap();
        assert_eq!(rvda(&absolute), (0x0201, 0x2000, 0x1800));
        let mut short = sound(0x0200, 0x7a5e_0000);
        short.truncate(MAILBOX_BYTES);
        assert_eq!(rvda(&OpRegion::new(short).unwrap()), (0x0200, 0, 0));
        let relative = OpRegion::new(sound(0x0201, 0x2000)).unwrap();
        assert_eq!(rvda(&relative), (0x0201, 0x2000, 0x1800));
        for opregion in [old, absolute, relative] {
            let bytes = opregion.into_bytes();
            assert_eq!(field::<FDSS_FDSP>(&bytes, FDSS), [0; FDSS_FDSP]);
            assert_eq!(bytes[0x400..0x2000], [0x5a; 0x1c00], "the rest stays");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sound(0x0201, 0x2000);
            change(&mut bytes);
            OpRegion::new(bytes).unwrap_err()
        };
        assert_eq!(
            error(&|b| b.truncate(0x1fff)),
            OpRegionError::Length(0x1fff)
        );
        assert_eq!(error(&|b| b.clear()), OpRegionError::Length(0));
        assert_eq!(
            error(&|b| b.resize((1 << 20) + 1, 0)),
            OpRegionError::Length((1 << 20) + 1)
        );
        assert_eq!(error(&|b| b[3] = b'E'), OpRegionError::Signature);
        for says in [0, 7, 15, u32::MAX] {
            let wrong = error(&|b| put(b, SIZE, &says.to_le_bytes()));
            assert_eq!(wrong, OpRegionError::Size { says, has: 14 });
        }
        for offset in [0x1000, 0x2001, 0x3800, u64::MAX] {
            let wrong = error(&|b| put(b, RVDA, &offset.to_le_bytes()));
            let size = 0x1800;
            assert_eq!(wrong, OpRegionError::VideoBiosTable { offset, size });
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(damage in proptest::collection::vec((0..0x400_usize, any::<u8>()), 0..40)) {
            let mut bytes = sound(0x0200, 0x7a5e_0000);
            for (at, byte) in damage {
                bytes[at] = byte;
            }
            let length = bytes.len();
            if let Ok(opregion) = OpRegion::new(bytes) {
                let (_, offset, size) = rvda(&opregion);
                prop_assert!(offset + u64::from(size) <= length as u64);
            }
        }
    }
}
