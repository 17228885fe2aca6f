// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking data out: the driver's sections, read in any number of pieces.
//!
//! One round: `pending_bytes` (0: nothing), `data_offset` (blocks until there is data), `data_size`, the
//! bytes. The next reading of `pending_bytes` says that the section was taken, so it is not read for any other
//! purpose while one is open.

use vm_memory::VolatileSlice;

use super::access::Region;
use super::error::V1Error;
use crate::migration::Taken;

/// Rounds without a byte before the driver is given up: it waits itself, so each of them is a contradiction.
pub(super) const EMPTY_ROUNDS: u32 = 256;

/// A section that is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Section {
    offset: u64,
    size: u64,
    /// Bytes taken; less than `size`.
    done: u64,
}

/// How far a device is saved.
#[derive(Debug, Default)]
pub(super) struct Save {
    section: Option<Section>,
    /// `pending_bytes` as last read.
    pending: u64,
    /// The state changed while the section was open.
    moved: bool,
    failed: bool,
}

impl Save {
    /// Reads up to the length of `into`, and no further than to the end of a section. 0 bytes: nothing is
    /// pending, or before the last round (`last`) nothing could be had.
    pub(super) fn read(
        &mut self,
        region: &Region,
        last: bool,
        into: &VolatileSlice<'_>,
        bounce: &mut [u8],
    ) -> Result<Taken, V1Error> {
        if self.failed {
            return Err(V1Error::Failed);
        }
        if into.is_empty() {
            return Ok(Taken::default());
        }
        let taken = self.try_read(region, last, into, bounce);
        self.failed = taken.is_err_and(|error| !matches!(error, V1Error::Refused(_)));
        taken
    }

    fn try_read(
        &mut self,
        region: &Region,
        last: bool,
        into: &VolatileSlice<'_>,
        bounce: &mut [u8],
    ) -> Result<Taken, V1Error> {
        let Some(mut section) = self.open(region, last)? else {
            return Ok(Taken::default());
        };
        let left = section.size.saturating_sub(section.done);
        let wanted = usize::try_from(left).map_or(into.len(), |left| left.min(into.len()));
        let mut length = 0;
        while length < wanted {
            let rest = into.subslice(length, wanted - length);
            let rest = rest.map_err(|_| V1Error::Lost)?;
            match region.copy_out(section.offset + section.done, &rest, bounce) {
                Ok(count) => {
                    length += count;
                    section.done += count as u64;
                }
                // What was copied is given; the next call finds the same error.
                Err(_) if length > 0 => break,
                Err(error) => return Err(error),
            }
        }
        let ends_transaction = section.done >= section.size;
        self.section = (!ends_transaction).then_some(section);
        Ok(Taken {
            length,
            ends_transaction,
        })
    }

    /// The section that is open, or the next one; `None` if there is nothing.
    fn open(&mut self, region: &Region, last: bool) -> Result<Option<Section>, V1Error> {
        if let Some(section) = self.section {
            if self.moved {
                // Until it is told otherwise a driver keeps its section, and names it again.
                let now = (region.data_offset()?, region.data_size()?);
                if now != (section.offset, section.size) {
                    return Err(V1Error::SectionGone);
                }
                self.moved = false;
            }
            return Ok(self.section);
        }
        for _ in 0..EMPTY_ROUNDS {
            self.pending = region.pending_bytes()?;
            if self.pending == 0 {
                return Ok(None);
            }
            let (offset, size) = (region.data_offset()?, region.data_size()?);
            if size == 0 {
                continue;
            }
            if !region.layout().is_data(offset, size) {
                let region = region.layout().size();
                return Err(V1Error::Section {
                    offset,
                    size,
                    region,
                });
            }
            let done = 0;
            self.section = Some(Section { offset, size, done });
            return Ok(self.section);
        }
        if last {
            let pending = self.pending;
            return Err(V1Error::NoProgress { pending });
        }
        Ok(None)
    }

    /// Bytes that are pending, as the driver says; while a section is open, what it said before less what was
    /// taken since.
    pub(super) fn pending(&mut self, region: &Region) -> Result<u64, V1Error> {
        if let Some(section) = self.section {
            return Ok(self.pending.saturating_sub(section.done));
        }
        self.pending = region.pending_bytes()?;
        Ok(self.pending)
    }

    /// The state of the device changed, and saving goes on.
    pub(super) fn state_changed(&mut self) {
        self.moved = self.section.is_some();
    }
}
