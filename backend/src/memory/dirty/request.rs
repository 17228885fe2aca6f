// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client asks of DMA logging, checked as the kernel checks it (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`),
//! and why it is refused. Pure.

use std::ops::RangeInclusive;

use rustix::io::Errno;

use super::bits;
use super::pages::{DirtyPages, PAGE_SHIFT};
use crate::memory::PAGE_SIZE;

/// Ranges of one START at the most: what the kernel takes, a page full of them.
pub const MAX_RANGES: usize = 256;
/// Bytes of the bitmap of one REPORT at the most: 32 GiB of memory in pages of 4 KiB.
pub const MAX_BITMAP: usize = 1 << 20;

/// Why DMA logging is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoggingError {
    /// Nothing here can track.
    #[error("Neither the device nor its IOMMU tells what was written")]
    Unsupported,
    /// STOP or REPORT without START.
    #[error("The device's writes are not being logged")]
    NotStarted,
    /// START while another is in force.
    #[error("Logging was started already, with another page size or other ranges")]
    Started,
    /// START with nothing to track.
    #[error("No range to log")]
    NoRanges,
    /// START with more ranges than [`MAX_RANGES`].
    #[error("{0} ranges to log, and at most {MAX_RANGES} are taken")]
    TooManyRanges(usize),
    /// A page size that is none.
    #[error("Page size {0:#x} is not a power of two, or too small")]
    PageSize(u64),
    /// A range of no bytes.
    #[error("Range at {0:#x} is empty")]
    Empty(u64),
    /// A range that does not begin or end with a page.
    #[error(
        "Range at {iova:#x} of {length:#x} bytes is not in whole pages of {page_size:#x} bytes"
    )]
    Unaligned {
        /// Where it begins.
        iova: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the page it should be aligned to.
        page_size: u64,
    },
    /// A range that ends past 2^64.
    #[error("Range at {iova:#x} of {length:#x} bytes wraps")]
    Wraps {
        /// Where it begins.
        iova: u64,
        /// Bytes.
        length: u64,
    },
    /// Two ranges of one START share a page.
    #[error("The ranges at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// A REPORT whose bitmap no message can carry.
    #[error(
        "A report of {length:#x} bytes in pages of {page_size:#x} needs a bitmap of more than {limit} \
         bytes: ask for a part of it, or for larger pages"
    )]
    TooLong {
        /// Bytes of the range.
        length: u64,
        /// Bytes of a page.
        page_size: u64,
        /// Bytes of the largest bitmap that can be had.
        limit: u64,
    },
    /// Whoever tracks refuses.
    #[error("{what}: {errno}")]
    Tracker {
        /// What was asked of it.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
}

impl LoggingError {
    /// The errno for the wire: the kernel's for the same mistake.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unsupported => Errno::NOTTY,
            Self::TooManyRanges(_) | Self::TooLong { .. } => Errno::TOOBIG,
            Self::Wraps { .. } => Errno::OVERFLOW,
            Self::Tracker { errno, .. } => *errno,
            Self::NotStarted
            | Self::Started
            | Self::NoRanges
            | Self::PageSize(_)
            | Self::Empty(_)
            | Self::Unaligned { .. }
            | Self::Overlap(..) => Errno::INVAL,
        }
    }
}

/// The addresses of a range.
fn addresses(iova: u64, length: u64) -> Result<RangeInclusive<u64>, LoggingError> {
    let tail = length.checked_sub(1).ok_or(LoggingError::Empty(iova))?;
    let last = iova.checked_add(tail);
    last.map(|last| iova..=last)
        .ok_or(LoggingError::Wraps { iova, length })
}

/// One START, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingStart {
    /// The page size wished for, in bytes; a power of two.
    pub page_size: u64,
    /// What is to be tracked, by address.
    pub ranges: Vec<RangeInclusive<u64>>,
}

impl LoggingStart {
    /// Checks what a client asks for: ranges as address and bytes.
    ///
    /// # Errors
    /// [`LoggingError`], other than of what is in force.
    pub fn new(
        page_size: u64,
        ranges: impl ExactSizeIterator<Item = (u64, u64)>,
    ) -> Result<Self, LoggingError> {
        if ranges.len() == 0 {
            return Err(LoggingError::NoRanges);
        }
        if ranges.len() > MAX_RANGES {
            return Err(LoggingError::TooManyRanges(ranges.len()));
        }
        if !page_size.is_power_of_two() {
            return Err(LoggingError::PageSize(page_size));
        }
        let check = |(iova, length): (u64, u64)| {
            if (iova | length) & (page_size - 1) != 0 {
                return Err(LoggingError::Unaligned {
                    iova,
                    length,
                    page_size,
                });
            }
            addresses(iova, length)
        };
        let mut ranges: Vec<_> = ranges.map(check).collect::<Result<_, _>>()?;
        ranges.sort_by_key(|range| *range.start());
        for pair in ranges.windows(2) {
            if let [a, b] = pair
                && a.end() >= b.start()
            {
                return Err(LoggingError::Overlap(*a.start(), *b.start()));
            }
        }
        Ok(Self { page_size, ranges })
    }
}

/// One REPORT, checked: bit n is the page at `iova + n * page_size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggingReport {
    addresses: RangeInclusive<u64>,
    /// Bytes of a page, as a power of two; 12 or more.
    shift: u32,
}

impl LoggingReport {
    /// Checks what a client asks for. `iova` is a multiple of `page_size`, so that a bit means the same page
    /// whatever part is asked for; `length` is in pages of 4 KiB and may end inside the last page.
    ///
    /// # Errors
    /// [`LoggingError`], other than of what is in force.
    pub fn new(iova: u64, length: u64, page_size: u64) -> Result<Self, LoggingError> {
        if !page_size.is_power_of_two() || page_size < PAGE_SIZE {
            return Err(LoggingError::PageSize(page_size));
        }
        let addresses = addresses(iova, length)?;
        for (value, page_size) in [(iova, page_size), (length, PAGE_SIZE)] {
            if !value.is_multiple_of(page_size) {
                return Err(LoggingError::Unaligned {
                    iova,
                    length,
                    page_size,
                });
            }
        }
        let shift = page_size.trailing_zeros();
        let report = Self { addresses, shift };
        let limit = MAX_BITMAP as u64;
        if report.bitmap_size() > limit {
            return Err(LoggingError::TooLong {
                length,
                page_size,
                limit,
            });
        }
        Ok(report)
    }

    pub(super) fn addresses(&self) -> &RangeInclusive<u64> {
        &self.addresses
    }

    /// Bytes of the bitmap: whole words of 64 pages, [`MAX_BITMAP`] at the most.
    #[must_use]
    pub fn bitmap_size(&self) -> u64 {
        let (first, last) = (self.addresses.start(), self.addresses.end());
        (((last - first) >> self.shift) / 64 + 1) * 8
    }

    /// Takes the pages of the range out of `log`, as the words of the bitmap.
    pub(super) fn take(&self, log: &mut DirtyPages) -> Vec<u64> {
        let mut words = vec![0; usize::try_from(self.bitmap_size() / 8).unwrap_or(0)];
        let (first, last) = (self.addresses.start(), self.addresses.end());
        let bit = |page: u64| ((page << PAGE_SHIFT) - (first & !(PAGE_SIZE - 1))) >> self.shift;
        log.take(first >> PAGE_SHIFT..=last >> PAGE_SHIFT, |pages| {
            bits::set(&mut words, &(bit(*pages.start())..=bit(*pages.end())));
        });
        words
    }
}

#[cfg(test)]
mod tests;
