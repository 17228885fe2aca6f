// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA_MAP (2) and DMA_UNMAP (3), and the server's DMA_READ (11) and DMA_WRITE (12).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device may read.
pub const MAP_READ: u32 = 1 << 0;
/// The device may write.
pub const MAP_WRITE: u32 = 1 << 1;
/// Not in the specification, in the reference library: the descriptor may be mapped.
pub const MAP_MMAP: u32 = 1 << 2;
/// Not in the specification, in the reference library: the descriptor takes pread and pwrite only.
pub const MAP_FILE_IO: u32 = 1 << 3;

/// DMA_UNMAP: also report dirty pages (version 1 of the migration protocol; not served).
pub const UNMAP_GET_DIRTY_BITMAP: u32 = 1 << 0;
/// DMA_UNMAP: everything; address and size are 0.
pub const UNMAP_ALL: u32 = 1 << 1;

/// The request of DMA_MAP. At most one descriptor comes with it; the reply is a header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`MAP_READ`], [`MAP_WRITE`].
    pub flags: u32,
    /// Where the memory begins in the descriptor, in bytes.
    pub offset: u64,
    /// Where the device sees it (IOVA).
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// The request of DMA_UNMAP, repeated in its reply.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`UNMAP_ALL`] or 0.
    pub flags: u32,
    /// IOVA of an earlier map.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

/// The fixed part of DMA_READ and DMA_WRITE, requests and replies. Data follows the reply of a read and
/// the request of a write. (The text of the specification gives the count of a DMA_WRITE reply 4 bytes;
/// every implementation uses 8.)
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaAccess {
    /// IOVA.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}
