// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which eventfd each vector of a kernel device has, and where its events must go now. Tells the kernel
//! nothing.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::interrupts::{Delivery, INDEXES, INTX, IrqConfig, MSI, MSIX};

/// What the client armed, what the kernel has of it, and what the guest configured.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The client's eventfds by index and vector.
    pub(super) tables: [Vec<Option<OwnedFd>>; INDEXES as usize],
    /// What unmasks INTx, in the kernel.
    pub(super) unmask: Option<OwnedFd>,
    /// How many vectors the kernel was given when each index was armed; `None` while it is not.
    pub(super) armed: [Option<u32>; INDEXES as usize],
    pub(super) delivery: Delivery,
    pub(super) config: IrqConfig,
    /// The guest's masks of MSI-X vectors.
    pub(super) masked: Vec<bool>,
    /// Eventfds of ours in place of those of masked vectors.
    pub(super) held: BTreeMap<u32, OwnedFd>,
}

impl State {
    pub(super) fn armed_count(&self, index: u32) -> Option<u32> {
        self.armed.get(index as usize).copied().flatten()
    }

    pub(super) fn is_armed(&self, index: u32) -> bool {
        self.armed_count(index).is_some()
    }

    pub(super) fn set_armed(&mut self, index: u32, armed: Option<u32>) {
        if let Some(slot) = self.armed.get_mut(index as usize) {
            *slot = armed;
        }
    }

    /// The client's eventfd.
    pub(super) fn eventfd(&self, index: u32, vector: u32) -> Option<BorrowedFd<'_>> {
        let table = self.tables.get(index as usize)?;
        Some(table.get(vector as usize)?.as_ref()?.as_fd())
    }

    pub(super) fn has_eventfd(&self, index: u32) -> bool {
        let table = self.tables.get(index as usize);
        table.is_some_and(|table| table.iter().any(Option::is_some))
    }

    /// Where an event of the vector must go now.
    pub(super) fn target(&self, index: u32, vector: u32) -> Option<BorrowedFd<'_>> {
        let client = self.eventfd(index, vector)?;
        let masked = self.masked.get(vector as usize).copied().unwrap_or(false);
        if index == MSIX && masked {
            return self.held.get(&vector).map(OwnedFd::as_fd);
        }
        Some(client)
    }

    /// One more than the last vector with an eventfd, or with an event to tell now.
    pub(super) fn reach(&self, index: u32, now: bool) -> u32 {
        let table = self.tables.get(index as usize).map_or(0, Vec::len);
        let last = (0..u32::try_from(table).unwrap_or(0))
            .rev()
            .find(|&vector| {
                if now {
                    self.target(index, vector).is_some()
                } else {
                    self.eventfd(index, vector).is_some()
                }
            });
        last.map_or(0, |last| last + 1)
    }

    /// The mode that the guest's registers say.
    pub(super) fn mode(&self) -> u32 {
        if self.config.msix_enabled {
            MSIX
        } else if self.config.msi_vectors > 0 {
            MSI
        } else {
            INTX
        }
    }

    /// Whether the kernel should have this index now.
    pub(super) fn wants(&self, index: u32) -> bool {
        self.delivery == Delivery::Armed || index > MSIX || self.mode() == index
    }
}
