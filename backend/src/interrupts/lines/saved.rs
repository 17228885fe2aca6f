// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The lines of a device that migrates: held while it is stopped, and what of them goes along.
//!
//! Eventfds and masks do not: those belong to the client, who sets them up at the destination too.

use super::{Lines, MSI, MSIX, State};

/// What the device did to its lines and nobody has heard of yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinesState {
    /// The device asserts INTx.
    pub level: bool,
    /// One bit for each of the first 64 MSI vectors: an event waits.
    pub msi: u64,
    /// The same for MSI-X.
    pub msix: u64,
}

/// A vector that waits and that these lines do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("No such vector at interrupt index {index}: {pending:#x}")]
pub struct NoSuchLine {
    /// The interrupt index.
    pub index: u32,
    /// The vectors named, one bit each.
    pub pending: u64,
}

impl Lines {
    /// Keeps what the device does from the client: until [`Self::let_go`] it waits.
    pub fn hold(&self) {
        self.state().held = true;
    }

    /// Sends what waited, unless a mask or the guest's configuration holds it back too.
    pub fn let_go(&self) {
        let mut state = self.state();
        state.held = false;
        state.release_messages();
        state.evaluate_intx();
    }

    /// What migration carries.
    #[must_use]
    pub fn save(&self) -> LinesState {
        let state = self.state();
        LinesState {
            level: state.level,
            msi: state.pending_bits(MSI),
            msix: state.pending_bits(MSIX),
        }
    }

    /// Takes over what was [saved](Self::save) elsewhere.
    ///
    /// # Errors
    /// There is no such vector here; nothing was changed.
    pub fn restore(&self, saved: LinesState) -> Result<(), NoSuchLine> {
        let mut state = self.state();
        let waiting = [(MSI, saved.msi), (MSIX, saved.msix)];
        for (index, pending) in waiting {
            let count = state.indexes[index as usize].len();
            let beyond = u32::try_from(count)
                .ok()
                .and_then(|n| pending.checked_shr(n));
            if beyond.unwrap_or(0) != 0 {
                return Err(NoSuchLine { index, pending });
            }
        }
        for (index, pending) in waiting {
            for (bit, line) in (0..).zip(&mut state.indexes[index as usize]) {
                line.pending = pending.checked_shr(bit).unwrap_or(0) & 1 != 0;
            }
        }
        state.level = saved.level;
        state.release_messages();
        state.evaluate_intx();
        Ok(())
    }
}

impl State {
    fn pending_bits(&self, index: u32) -> u64 {
        let lines = &self.indexes[index as usize];
        let bits = (0..u64::BITS).zip(lines);
        bits.filter(|(_, line)| line.pending)
            .fold(0, |bits, (n, _)| bits | 1 << n)
    }
}
