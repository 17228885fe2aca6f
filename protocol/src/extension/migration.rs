// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration beyond the specification: what kernel VFIO can tell, and data that crosses in shared memory.
//!
//! | feature | command | what |
//! |---|---|---|
//! | `precopy_info` | 0x8002 | `VFIO_MIG_GET_PRECOPY_INFO`, flags included |
//! | `pending` | 0x8003 | one query for all sizes, sanitized, exact or estimated, with their age |
//! | `mig_channel` | 0x8001 | the client passes one end of a socket pair: migration commands (DEVICE_FEATURE of features 1 to 12, MIG_DATA_READ, MIG_DATA_WRITE and those of this page) travel there, served by a thread of their own |
//! | `mig_shm` | 0x8004 to 0x8006 | the client passes a memfd, and data goes through it |
//! | `mig_p2p` | none | the states RUNNING_P2P and PRE_COPY_P2P, which the specification leaves out |
//! | `explain` | 0x8007 | why the last request on this socket was refused, in words |
//!
//! All are requests of the client. On the channel they may be sent ahead (pipelined); they are carried out
//! and answered in order.
//!
//! ```text
//! MIG_CHANNEL (request; one descriptor: the server's end; header-only reply, then the channel is served)
//!  0        4        8
//!  +--------+--------+
//!  | argsz  | flags 0|
//!  +--------+--------+
//! MIG_PRECOPY_INFO (request: the first 8 bytes; reply)
//!  0        4        8                16               24
//!  +--------+--------+----------------+----------------+
//!  | argsz  | flags  | initial bytes  | dirty bytes    |
//!  +--------+--------+----------------+----------------+
//! MIG_PENDING (request: the first 8 bytes; reply)
//!  0        4        8                16               24               32               40       48
//!  +--------+--------+----------------+----------------+----------------+----------------+--------+
//!  | argsz  | flags  | initial bytes  | dirty bytes    | stop-copy bytes| total          | age us |
//!  +--------+--------+----------------+----------------+----------------+----------------+--------+
//! MIG_SHM (request; one descriptor: a memfd; header-only reply)
//!  0        4        8                16
//!  +--------+--------+----------------+
//!  | argsz  | flags 0| size           |
//!  +--------+--------+----------------+
//! MIG_SHM_READ and MIG_SHM_WRITE (request and reply)
//!  0        4        8                16               24
//!  +--------+--------+----------------+----------------+
//!  | argsz  | flags  | offset         | size           |
//!  +--------+--------+----------------+----------------+
//! EXPLAIN (request: 8 bytes; reply: 8 bytes, then text)
//!  0        4        8
//!  +--------+--------+--------
//!  | argsz  | flags 0| UTF-8 ...
//!  +--------+--------+--------
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The feature of MIG_PRECOPY_INFO.
pub const PRECOPY_INFO: &str = "precopy_info";
/// The feature of MIG_PENDING.
pub const PENDING: &str = "pending";
/// The feature of MIG_CHANNEL.
pub const MIG_CHANNEL: &str = "mig_channel";
/// The feature of MIG_SHM, MIG_SHM_READ and MIG_SHM_WRITE.
pub const MIG_SHM: &str = "mig_shm";
/// The feature that shows the P2P states.
pub const MIG_P2P: &str = "mig_p2p";
/// The feature of EXPLAIN.
pub const EXPLAIN: &str = "explain";

/// In [`PrecopyInfo::flags`]: new initial data is on the stream (`VFIO_PRECOPY_INFO_REINIT`).
pub const PRECOPY_REINIT: u32 = 1 << 0;

/// In [`Pending::flags`] of a request: ask the device; of a reply: it was asked.
pub const PENDING_EXACT: u32 = 1 << 0;
/// In [`Pending::flags`]: the initial data is over. A source has read all of it, a destination loaded all that
/// was sent: it is ready for the switch-over. May be taken back (`PRECOPY_REINIT`).
pub const PENDING_INITIAL_DONE: u32 = 1 << 1;
/// In [`Pending::flags`]: the device's figure for stop-copy is unusable; the total does not include it.
pub const PENDING_UNKNOWN: u32 = 1 << 2;

/// In [`ShmTransfer::flags`] of a reply to MIG_SHM_READ: nothing more for now, pre-copy goes on.
pub const SHM_END_OF_PRECOPY: u32 = 1 << 0;
/// In [`ShmTransfer::flags`] of a reply to MIG_SHM_READ: that was the end of the stream.
pub const SHM_END_OF_STREAM: u32 = 1 << 1;

/// The request of MIG_CHANNEL, MIG_PRECOPY_INFO, MIG_PENDING and EXPLAIN.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Query {
    /// The largest reply payload accepted, in bytes (of MIG_CHANNEL: of this structure).
    pub argsz: u32,
    /// [`PENDING_EXACT`] for MIG_PENDING, else 0.
    pub flags: u32,
}

/// The reply of MIG_PRECOPY_INFO, and `struct vfio_precopy_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PrecopyInfo {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`PRECOPY_REINIT`].
    pub flags: u32,
    /// Bytes of initial data not read yet.
    pub initial_bytes: u64,
    /// Bytes of state that changed since it was read.
    pub dirty_bytes: u64,
}

/// The reply of MIG_PENDING. No figure is above `i64::MAX`; each is an estimate that may grow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pending {
    /// Bytes of this structure.
    pub argsz: u32,
    /// [`PENDING_EXACT`], [`PENDING_INITIAL_DONE`], [`PENDING_UNKNOWN`].
    pub flags: u32,
    /// Bytes of initial data still to be read; 0 outside pre-copy.
    pub initial_bytes: u64,
    /// Bytes that changed; 0 outside pre-copy.
    pub dirty_bytes: u64,
    /// Bytes that only a stopped device gives, beyond the two above.
    pub stop_copy_bytes: u64,
    /// The sum of the three.
    pub total_bytes: u64,
    /// How long ago the device was asked, in microseconds.
    pub age_us: u64,
}

/// The request of MIG_SHM.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MigShm {
    /// Bytes of this structure.
    pub argsz: u32,
    /// 0.
    pub flags: u32,
    /// Bytes of the memfd to be used, from its start; a multiple of the page size.
    pub size: u64,
}

/// Request and reply of MIG_SHM_READ and MIG_SHM_WRITE.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ShmTransfer {
    /// Bytes of this structure.
    pub argsz: u32,
    /// 0 in requests; [`SHM_END_OF_PRECOPY`] or [`SHM_END_OF_STREAM`] in replies to MIG_SHM_READ.
    pub flags: u32,
    /// Where in the shared memory.
    pub offset: u64,
    /// Bytes of room (request of READ), or of data: a READ may give less than there is room for, and only its flags tell
    /// that there is no more.
    pub size: u64,
}
