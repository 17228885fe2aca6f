// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_FEATURE (16): the fixed part, flags and feature numbers of linux/vfio.h, and what follows for each.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Flag bits 0-15: the feature.
pub const INDEX_MASK: u32 = 0xffff;
/// Read the feature.
pub const GET: u32 = 1 << 16;
/// Change it.
pub const SET: u32 = 1 << 17;
/// Ask whether GET or SET is supported; nothing is done.
pub const PROBE: u32 = 1 << 18;

/// Migration support flags (u64).
pub const MIGRATION: u32 = 1;
/// The device's migration state.
pub const MIG_DEVICE_STATE: u32 = 2;
/// Start tracking the device's writes.
pub const DMA_LOGGING_START: u32 = 6;
/// Stop tracking.
pub const DMA_LOGGING_STOP: u32 = 7;
/// Which pages were written.
pub const DMA_LOGGING_REPORT: u32 = 8;
/// Estimated bytes of a stop-copy (not in the specification; from linux/vfio.h).
pub const MIG_DATA_SIZE: u32 = 9;
/// Opt in to flags in pre-copy information (not in the specification; from linux/vfio.h).
pub const MIG_PRECOPY_INFO_V2: u32 = 12;

/// The fixed part of DEVICE_FEATURE, request and reply; the feature's own data follows.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Feature {
    /// In a request the largest reply payload accepted; in a reply what the whole one needs.
    pub argsz: u32,
    /// The feature number with [`GET`], [`SET`], [`PROBE`].
    pub flags: u32,
}

/// Data of [`MIGRATION`]: STOP, STOP_COPY and RESUMING exist.
pub const MIGRATION_STOP_COPY: u64 = 1 << 0;
/// Data of [`MIGRATION`]: the states RUNNING_P2P and, with pre-copy, PRE_COPY_P2P exist too.
pub const MIGRATION_P2P: u64 = 1 << 1;
/// Data of [`MIGRATION`]: PRE_COPY exists too.
pub const MIGRATION_PRE_COPY: u64 = 1 << 2;

/// Data of [`MIG_DEVICE_STATE`], get and set.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceState {
    /// A [`MigrationState`](crate::migration::MigrationState) number.
    pub device_state: u32,
    /// Means nothing on a socket: MIG_DATA_READ and MIG_DATA_WRITE take its place. -1 in replies.
    pub data_fd: i32,
}

/// Data of [`DMA_LOGGING_START`]; ranges follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaLoggingControl {
    /// Bytes tracked by one bit, as wished; a power of two.
    pub page_size: u64,
    /// How many [`DmaLoggingRange`]s follow.
    pub num_ranges: u32,
    /// 0.
    pub reserved: u32,
}

/// A range to be tracked.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaLoggingRange {
    /// Where it begins.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// Data of [`DMA_LOGGING_REPORT`]: in a reply the bitmap follows, in words of 64 pages, little end first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaLoggingReport {
    /// Where the range begins.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes reported by one bit; a power of two.
    pub page_size: u64,
}

impl Feature {
    /// The feature's number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.flags & INDEX_MASK
    }
}
