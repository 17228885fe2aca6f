// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Putting data in: the source's transactions, written in any number of pieces.
//!
//! One transaction: `data_offset`, the bytes, `data_size`, which returns when the driver has taken them in. It
//! wants the transactions of the source, so none is split: one that does not fit is refused.

use vm_memory::VolatileSlice;

use super::access::Region;
use super::error::V1Error;

/// A transaction that is being put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transaction {
    /// Where the driver wants it.
    offset: u64,
    filled: u64,
}

/// How far a device is loaded.
#[derive(Debug, Default)]
pub(super) struct Load {
    open: Option<Transaction>,
    failed: bool,
}

impl Load {
    /// Writes from the start of `from`; short only if the driver was.
    pub(super) fn write(
        &mut self,
        region: &Region,
        from: &VolatileSlice<'_>,
        ends_transaction: bool,
        bounce: &mut [u8],
    ) -> Result<usize, V1Error> {
        if self.failed {
            return Err(V1Error::Failed);
        }
        let done = self.try_write(region, from, ends_transaction, bounce);
        self.failed |= done.is_err_and(|error| !error.is_temporary());
        done
    }

    fn try_write(
        &mut self,
        region: &Region,
        from: &VolatileSlice<'_>,
        ends_transaction: bool,
        bounce: &mut [u8],
    ) -> Result<usize, V1Error> {
        let mut transaction = match self.open {
            Some(open) => open,
            None if from.is_empty() => return Ok(0),
            None => begin(region)?,
        };
        let needed = transaction.filled.saturating_add(from.len() as u64);
        if !region.layout().is_data(transaction.offset, needed) {
            let room = region.layout().size().saturating_sub(transaction.offset);
            return Err(V1Error::TooLarge { needed, room });
        }
        let mut length = 0;
        while length < from.len() {
            let rest = from.offset(length).map_err(|_| V1Error::Lost)?;
            match region.copy_in(transaction.offset + transaction.filled, &rest, bounce) {
                Ok(count) => {
                    length += count;
                    transaction.filled += count as u64;
                    self.open = Some(transaction);
                }
                Err(error) if error.is_temporary() && length > 0 => return Ok(length),
                Err(error) => return Err(error),
            }
        }
        if ends_transaction {
            // The bytes are the driver's now, whatever it says: there is no asking again.
            region
                .set_data_size(transaction.filled)
                .inspect_err(|_| self.failed = true)?;
            self.open = None;
        }
        Ok(length)
    }

    /// Whether everything that was written has been taken in.
    pub(super) fn check_complete(&self) -> Result<(), V1Error> {
        match self.open {
            _ if self.failed => Err(V1Error::Failed),
            Some(_) => Err(V1Error::Incomplete),
            None => Ok(()),
        }
    }
}

fn begin(region: &Region) -> Result<Transaction, V1Error> {
    let offset = region.data_offset()?;
    if !region.layout().is_data(offset, 1) {
        let (size, region) = (0, region.layout().size());
        return Err(V1Error::Section {
            offset,
            size,
            region,
        });
    }
    Ok(Transaction { offset, filled: 0 })
}
