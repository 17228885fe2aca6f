// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging of a function: what its device writes to guest memory. Who tracks is chosen here; the rest is
//! the address space's.

use vfio_user_protocol::feature::{DmaLoggingRange, DmaLoggingReport};

use super::Function;
use crate::memory::{LoggingError, LoggingReport, LoggingStart};

impl Function {
    /// Whether logging can be started: by the device itself, its IOMMU, or this process.
    #[must_use]
    pub fn can_log(&self) -> bool {
        let device = self.device.dirty_tracker();
        self.memory.can_log(device.as_ref())
    }

    /// Who tells what the device writes, for people.
    #[must_use]
    pub fn logging_source(&self) -> &'static str {
        let device = self.device.dirty_tracker();
        self.memory.logging_source(device.as_ref())
    }

    /// DMA_LOGGING_START. `page_size` is a wish; a range may be tracked with others that were not asked for.
    ///
    /// # Errors
    /// [`LoggingError`]; nothing is changed then.
    pub fn logging_start(
        &self,
        page_size: u64,
        ranges: &[DmaLoggingRange],
    ) -> Result<(), LoggingError> {
        let device = self.device.dirty_tracker();
        if !self.memory.can_log(device.as_ref()) {
            return Err(LoggingError::Unsupported);
        }
        let ranges = ranges.iter().map(|range| (range.iova, range.length));
        let start = LoggingStart::new(page_size, ranges)?;
        self.memory.logging_start(start, device)
    }

    /// DMA_LOGGING_STOP.
    ///
    /// # Errors
    /// [`LoggingError`].
    pub fn logging_stop(&self) -> Result<(), LoggingError> {
        self.memory.logging_stop()
    }

    /// Whether logging is in force.
    ///
    /// # Errors
    /// [`LoggingError::NotStarted`].
    pub fn check_logging(&self) -> Result<(), LoggingError> {
        if self.memory.is_logging() {
            return Ok(());
        }
        Err(LoggingError::NotStarted)
    }

    /// DMA_LOGGING_REPORT: the words of the bitmap, and the pages it reports are clean from then on. Check
    /// with [`LoggingReport::new`] first whether there is room for it.
    ///
    /// # Errors
    /// [`LoggingError`]; nothing is forgotten then.
    pub fn logging_report(&self, asked: &DmaLoggingReport) -> Result<Vec<u64>, LoggingError> {
        let report = LoggingReport::new(asked.iova, asked.length, asked.page_size)?;
        self.memory.logging_report(&report)
    }
}
