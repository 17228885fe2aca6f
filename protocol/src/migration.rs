// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MIG_DATA_READ (17) and MIG_DATA_WRITE (18).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The fixed part of MIG_DATA_READ (request and reply) and MIG_DATA_WRITE (request). Data follows the
/// reply of a read and the request of a write. A read that returns less than was asked for has no more.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MigData {
    /// Bytes of this structure and the data.
    pub argsz: u32,
    /// Bytes of data.
    pub size: u32,
}
