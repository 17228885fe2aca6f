// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's copy of the OpRegion: firmware reserves memory for it and writes the address to ASLS; it is filled
//! from here, so that the VMM needs to know nothing of it.

use std::ops::Range;
use std::sync::Arc;

use super::registers::ASLS;
use crate::memory::{DmaFault, PAGE_SIZE};
use crate::quirks::{Context, Quirk};
use crate::ratelimit::peer_log;

/// Fills the memory that ASLS names.
#[derive(Debug)]
pub(super) struct Placement {
    opregion: Arc<[u8]>,
    /// Where it was copied to, as the log says.
    said: Option<u32>,
}

/// Why there is no copy at the address that firmware wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PlacementError {
    /// Drivers map it in pages.
    #[error("the address is not a multiple of 4 KiB")]
    Unaligned,
    /// The register has 32 bits, and so has everybody who reads it.
    #[error("{0:#x} bytes from there end above 4 GiB")]
    Wraps(usize),
    /// Not all of it is memory that the device may write.
    #[error(transparent)]
    Memory(#[from] DmaFault),
}

impl Placement {
    pub(super) fn new(opregion: Arc<[u8]>) -> Self {
        Self {
            opregion,
            said: None,
        }
    }

    /// Copies all of it to `address`, or nothing.
    pub(super) fn place(&self, context: Context<'_>, address: u32) -> Result<(), PlacementError> {
        let start = u64::from(address);
        if !start.is_multiple_of(PAGE_SIZE) {
            return Err(PlacementError::Unaligned);
        }
        let length = self.opregion.len();
        if start.saturating_add(length as u64) > 1 << 32 {
            return Err(PlacementError::Wraps(length));
        }
        Ok(context.memory.write_whole(start, &self.opregion)?)
    }
}

impl Quirk for Placement {
    fn name(&self) -> &'static str {
        "igd-opregion-copy"
    }

    fn reset(&mut self) {
        self.said = None;
    }

    /// The write of the last byte counts: whoever writes less than all four at once writes upwards.
    fn config_written(&mut self, context: Context<'_>, range: Range<u64>) {
        if !range.contains(&u64::from(ASLS + 3)) {
            return;
        }
        let bytes = context.config.bytes().get(usize::from(ASLS)..);
        let address = bytes.and_then(|bytes| bytes.first_chunk().copied());
        let address = u32::from_le_bytes(address.unwrap_or_default());
        if address == 0 {
            return;
        }
        let bytes = self.opregion.len();
        match self.place(context, address) {
            Ok(()) if self.said == Some(address) => {}
            Ok(()) => {
                self.said = Some(address);
                peer_log!(
                    Info,
                    "OpRegion of {bytes} bytes copied to {address:#x}, where ASLS says"
                );
            }
            Err(error) => {
                peer_log!(
                    Warn,
                    "OpRegion not copied to {address:#x}, where ASLS says: {error}"
                );
            }
        }
    }
}
