// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! REGION_READ (9), REGION_WRITE (10) and REGION_WRITE_MULTI (15).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The fixed part of REGION_READ and REGION_WRITE, requests and replies. Data follows the reply of a read
/// and the request of a write.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionAccess {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// The region index.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// One write of a REGION_WRITE_MULTI. The message begins with their number as u64, which is also the
/// whole reply.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MultiWrite {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// The region index.
    pub region: u32,
    /// Bytes, 1 to 8.
    pub count: u32,
    /// The first `count` bytes are written.
    pub data: [u8; 8],
}

impl MultiWrite {
    /// A write of `bytes`; `None` unless they are 1 to 8.
    #[must_use]
    pub fn new(region: u32, offset: u64, bytes: &[u8]) -> Option<Self> {
        let mut data = [0; 8];
        data.get_mut(..bytes.len())?.copy_from_slice(bytes);
        let count = u32::try_from(bytes.len()).ok().filter(|&count| count > 0)?;
        Some(Self {
            offset,
            region,
            count,
            data,
        })
    }

    /// The bytes to write; none if the count is out of range.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        let count = usize::try_from(self.count).ok()?;
        self.data.get(..count).filter(|bytes| !bytes.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_of_a_list_is_one_to_eight_bytes() {
        for count in 1..=8 {
            let bytes = &[1, 2, 3, 4, 5, 6, 7, 8][..count];
            let write = MultiWrite::new(4, 0x10, bytes).unwrap();
            assert_eq!(
                (write.region, write.offset, write.bytes()),
                (4, 0x10, Some(bytes))
            );
        }
        assert_eq!(MultiWrite::new(4, 0, &[]), None);
        assert_eq!(MultiWrite::new(4, 0, &[0; 9]), None);
    }
}
