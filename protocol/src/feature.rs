// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_FEATURE (16): the fixed part, flags and feature numbers of linux/vfio.h.

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

impl Feature {
    /// The feature's number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.flags & INDEX_MASK
    }
}
