// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whoever knows which pages a device of hardware wrote, as the address space asks it: the device itself, or
//! the IOMMU. No ioctls here: those are in `device/kernel`.

use std::fmt;
use std::ops::RangeInclusive;

use rustix::io::Errno;

/// Called with each stretch of addresses that was written; in any order, and more than once if need be.
pub type Mark<'a> = dyn FnMut(RangeInclusive<u64>) + 'a;

/// Tracks writes of the device. Called with the address space locked, in the order start, collect..., stop.
pub trait DirtyTracker: Send + Sync + fmt::Debug {
    /// Begins, with pages of about `page_size` bytes; `ranges` are sorted and do not overlap.
    ///
    /// # Errors
    /// The kernel's errno; nothing is tracked then.
    fn start(&self, page_size: u64, ranges: &[RangeInclusive<u64>]) -> Result<(), Errno>;

    /// Ends.
    ///
    /// # Errors
    /// The kernel's errno.
    fn stop(&self) -> Result<(), Errno>;

    /// Marks what was written in `wanted`, a part of the map `map` in whole pages of 4 KiB, since this was last
    /// asked. May mark more than is asked for, which must then be kept: it is not told again.
    ///
    /// # Errors
    /// The kernel's errno; every page of `wanted` must then be taken to be written.
    fn collect(
        &self,
        map: &RangeInclusive<u64>,
        wanted: &RangeInclusive<u64>,
        mark: &mut Mark<'_>,
    ) -> Result<(), Errno>;
}
