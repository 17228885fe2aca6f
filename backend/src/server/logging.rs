// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The features of DMA logging: START, STOP and REPORT on the wire.

use vfio_user_protocol::codec::Reader;
use vfio_user_protocol::feature::{DmaLoggingControl, DmaLoggingRange, DmaLoggingReport, Feature};
use zerocopy::IntoBytes;

use super::migration::MigrationCommands;
use super::refusal::Refusal;
use super::replies::Reply;
use crate::memory::{LoggingError, LoggingReport, MAX_RANGES};

impl MigrationCommands {
    /// DMA_LOGGING_START: the ranges are as many as announced, and nothing follows them.
    pub(super) fn logging_start(&self, data: &[u8]) -> Result<(), Refusal> {
        let mut reader = Reader::new(data);
        let control: DmaLoggingControl = reader.take("dma_logging_control")?;
        let announced = usize::try_from(control.num_ranges).unwrap_or(usize::MAX);
        if announced > MAX_RANGES {
            return Err(LoggingError::TooManyRanges(announced).into());
        }
        let mut ranges = Vec::with_capacity(announced);
        for _ in 0..announced {
            ranges.push(reader.take::<DmaLoggingRange>("dma_logging_range")?);
        }
        if !reader.rest().is_empty() {
            let behind = reader.rest().len() as u64;
            return Err(Refusal::bad("dma_logging_control.num_ranges", behind));
        }
        Ok(self.function.logging_start(control.page_size, &ranges)?)
    }

    /// DMA_LOGGING_REPORT. Without room for the bitmap the reply says how much it takes, and nothing is
    /// forgotten.
    pub(super) fn logging_report(
        &self,
        asked: &Feature,
        data: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Refusal> {
        let mut reader = Reader::new(data);
        let range: DmaLoggingReport = reader.take("dma_logging_report")?;
        let report = LoggingReport::new(range.iova, range.length, range.page_size)?;
        let max_data = self.max_data as u64;
        if report.bitmap_size() > max_data {
            return Err(LoggingError::TooLong {
                length: range.length,
                page_size: range.page_size,
                limit: max_data,
            }
            .into());
        }
        let fixed = size_of::<Feature>() + size_of::<DmaLoggingReport>();
        let whole = fixed as u64 + report.bitmap_size();
        let argsz = u32::try_from(whole).unwrap_or(u32::MAX);
        let feature = Feature { argsz, ..*asked };
        if asked.argsz < argsz {
            // Whether there is something to report is said all the same.
            self.function.check_logging()?;
            let room = usize::try_from(asked.argsz).unwrap_or(usize::MAX);
            reply.payload.extend_from_slice(feature.as_bytes());
            reply.payload.extend_from_slice(range.as_bytes());
            reply.payload.truncate(room.max(size_of::<Feature>()));
            return Ok(());
        }
        let words = self.function.logging_report(&range)?;
        reply.payload.extend_from_slice(feature.as_bytes());
        reply.payload.extend_from_slice(range.as_bytes());
        let bytes = words.as_bytes();
        reply.data(bytes.len()).copy_from_slice(bytes);
        Ok(())
    }
}
