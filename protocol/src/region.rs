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
    /// The bytes to write; none if the count is out of range.
    #[must_use]
    pub fn bytes(&self) -> Option<&[u8]> {
        let count = usize::try_from(self.count).ok()?;
        self.data.get(..count).filter(|bytes| !bytes.is_empty())
    }
}
