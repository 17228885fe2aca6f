// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging in force, and how the address space starts, ends and reports it.
//!
//! Who tracks, in this order: the device itself, its IOMMU, and for a device made of software the address
//! space. The last two track every map, whatever ranges were asked for.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::debug;

use super::pages::{DirtyPages, PAGE_SHIFT};
use super::request::{LoggingError, LoggingReport, LoggingStart};
use super::tracker::DirtyTracker;
use crate::memory::address_space::{AddressSpace, CpuAccess, State};
use crate::memory::iommu::{Iommu, IommuError};
use crate::memory::request::Access;
use crate::ratelimit::peer_log;

/// Pages that one report asks a tracker for, at the most (8 TiB): what is beyond is reported dirty. Memory
/// that is really there is less; a client can map more of a sparse file to a device that pins nothing.
const MAX_COLLECTED: u64 = 1 << 31;

/// Who knows what was written.
#[derive(Debug)]
enum Source {
    /// This process did the writing.
    Memory,
    Iommu(Arc<dyn Iommu>),
    Device(Arc<dyn DirtyTracker>),
}

/// Logging in force.
#[derive(Debug)]
pub(in crate::memory) struct Logging {
    start: LoggingStart,
    source: Source,
    /// Locked by the device's threads for as long as it takes to note one piece.
    dirty: Mutex<DirtyPages>,
}

impl Source {
    fn tracker(&self) -> Option<&dyn DirtyTracker> {
        match self {
            Self::Memory => None,
            Self::Iommu(iommu) => iommu.tracker(),
            Self::Device(device) => Some(&**device),
        }
    }
}

impl Logging {
    fn dirty(&self) -> MutexGuard<'_, DirtyPages> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the device wrote there.
    pub(in crate::memory) fn mark(&self, addresses: RangeInclusive<u64>) {
        self.dirty().mark(addresses);
    }

    /// Takes a writable map from the hardware, and keeps what is known of it.
    pub(in crate::memory) fn unmap(
        &self,
        iommu: &dyn Iommu,
        map: &RangeInclusive<u64>,
        size: u64,
    ) -> Result<(), IommuError> {
        let iova = *map.start();
        if let Source::Iommu(_) = self.source {
            return iommu.unmap_tracked(iova, size, &mut |pages| self.mark(pages));
        }
        iommu.unmap(iova, size)?;
        // The device remembers what it wrote, and now nothing can be added.
        self.collect_part(map, map);
        Ok(())
    }

    /// Asks the tracker for every map in the range.
    fn collect(&self, state: &State, addresses: &RangeInclusive<u64>) {
        if self.source.tracker().is_none() {
            return;
        }
        let mut budget = MAX_COLLECTED;
        for (start, map) in state.overlapping(addresses) {
            if !map.in_iommu() || !map.access.allows(Access::WRITE) {
                continue;
            }
            let whole = start..=map.last;
            let part = start.max(*addresses.start())..=map.last.min(*addresses.end());
            let pages = (part.end() - part.start()) >> PAGE_SHIFT;
            match budget.checked_sub(pages) {
                Some(left) => {
                    budget = left;
                    self.collect_part(&whole, &part);
                }
                None => self.mark(part),
            }
        }
    }

    /// Asks the tracker for a part of one map. A device tracks its ranges only: what is outside of them is
    /// taken to be written.
    fn collect_part(&self, map: &RangeInclusive<u64>, part: &RangeInclusive<u64>) {
        let Source::Device(_) = self.source else {
            return self.collect_from(map, part);
        };
        let mut next = Some(*part.start());
        for range in &self.start.ranges {
            let Some(at) = next.filter(|at| at <= part.end()) else {
                return;
            };
            let first = at.max(*range.start());
            let last = (*part.end()).min(*range.end());
            if first > last {
                continue;
            }
            if at < first {
                self.mark(at..=first - 1);
            }
            self.collect_from(map, &(first..=last));
            next = last.checked_add(1);
        }
        if let Some(at) = next.filter(|at| at <= part.end()) {
            self.mark(at..=*part.end());
        }
    }

    fn collect_from(&self, map: &RangeInclusive<u64>, part: &RangeInclusive<u64>) {
        let Some(tracker) = self.source.tracker() else {
            return;
        };
        let mut dirty = self.dirty();
        let collected = tracker.collect(map, part, &mut |pages| dirty.mark(pages));
        if let Err(errno) = collected {
            let (first, last) = (part.start(), part.end());
            peer_log!(
                Warn,
                "Written pages of {first:#x}..={last:#x} not known ({errno}): reported as all"
            );
            dirty.mark(part.clone());
        }
    }
}

impl AddressSpace {
    /// Whether what is written here can be told, `device` being the device's own way to.
    #[must_use]
    pub fn can_log(&self, device: Option<&Arc<dyn DirtyTracker>>) -> bool {
        device.is_some() || self.own_source().is_some()
    }

    /// Whether logging is in force.
    #[must_use]
    pub fn is_logging(&self) -> bool {
        self.state().logging.is_some()
    }

    /// Who would tell what was written, for people.
    #[must_use]
    pub fn logging_source(&self, device: Option<&Arc<dyn DirtyTracker>>) -> &'static str {
        match (device, self.own_source()) {
            (Some(_), _) => "told by the device",
            (None, Some(Source::Iommu(_))) => "told by the IOMMU",
            (None, Some(_)) => "told by this process",
            (None, None) => "not known: neither the device nor its IOMMU tells",
        }
    }

    fn own_source(&self) -> Option<Source> {
        match self.iommu() {
            Some(iommu) => {
                let tracks = iommu.tracker().is_some();
                tracks.then(|| Source::Iommu(Arc::clone(iommu)))
            }
            None => (self.cpu_access() == CpuAccess::Mapped).then_some(Source::Memory),
        }
    }

    /// Logs what the device writes from now on. Maps made later are logged too. Repeating a START exactly
    /// succeeds and changes nothing.
    ///
    /// # Errors
    /// [`LoggingError`]; nothing is changed then.
    pub fn logging_start(
        &self,
        start: LoggingStart,
        device: Option<Arc<dyn DirtyTracker>>,
    ) -> Result<(), LoggingError> {
        let source = device.map(Source::Device).or_else(|| self.own_source());
        let source = source.ok_or(LoggingError::Unsupported)?;
        let mut state = self.state_mut();
        match &state.logging {
            Some(logging) if logging.start == start => return Ok(()),
            Some(_) => return Err(LoggingError::Started),
            None => {}
        }
        if let Some(tracker) = source.tracker() {
            let refused = tracker_error("Starting to track");
            tracker
                .start(start.page_size, &start.ranges)
                .map_err(refused)?;
        }
        state.logging = Some(Box::new(Logging {
            start,
            source,
            dirty: Mutex::default(),
        }));
        Ok(())
    }

    /// Ends logging and forgets what was logged.
    ///
    /// # Errors
    /// [`LoggingError::NotStarted`], or that whoever tracks did not stop; logging has ended all the same.
    pub fn logging_stop(&self) -> Result<(), LoggingError> {
        // Locked to the end: another START must not come first.
        let mut state = self.state_mut();
        let logging = state.logging.take().ok_or(LoggingError::NotStarted)?;
        match logging.source.tracker() {
            Some(tracker) => tracker.stop().map_err(tracker_error("Ceasing to track")),
            None => Ok(()),
        }
    }

    /// Ends logging, if it is in force.
    pub fn end_logging(&self) {
        match self.logging_stop() {
            Ok(()) | Err(LoggingError::NotStarted) => {}
            // The next START says so if it is still so then.
            Err(error) => debug!("Logging: {error}"),
        }
    }

    /// Which pages of a range were written since the start, or since a report of them: the words of a bitmap.
    /// What is reported is forgotten. Pages that were never mapped are clean.
    ///
    /// # Errors
    /// [`LoggingError::NotStarted`].
    pub fn logging_report(&self, report: &LoggingReport) -> Result<Vec<u64>, LoggingError> {
        let state = self.state();
        let logging = state.logging.as_ref().ok_or(LoggingError::NotStarted)?;
        logging.collect(&state, report.addresses());
        Ok(report.take(&mut logging.dirty()))
    }
}

fn tracker_error(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> LoggingError {
    move |errno| LoggingError::Tracker { what, errno }
}
