// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt lines of a device without hardware: what the kernel's VFIO does for a real one.
//!
//! Holds the client's eventfds, the INTx level, masks and pending bits, and decides what an event
//! becomes: INTx, an MSI message or an MSI-X message. `lines/saved.rs` is what migration asks of them.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use log::debug;

use super::resample::Watcher;
use super::signal::{prepare, signal};
use super::{ERR, INDEXES, INTX, IrqRequest, MSI, MSIX, Vectors};

mod saved;
pub use saved::{LinesState, NoSuchLine};

/// How the active interrupt mode is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// As with kernel VFIO: the client arms the index it wants and traps masks itself.
    #[default]
    Armed,
    /// By the composed config space and MSI-X table: the client arms everything once and forwards
    /// what the guest programs (extension `irq_routes`).
    Composed,
}

/// What the guest's configuration says about interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqConfig {
    /// COMMAND.Bus Master Enable: messages are memory writes.
    pub bus_master: bool,
    /// COMMAND.Interrupt Disable.
    pub intx_disable: bool,
    /// Granted MSI vectors, 0 while MSI is disabled.
    pub msi_vectors: u32,
    /// MSI-X is enabled.
    pub msix_enabled: bool,
}

/// One interrupt of one index.
#[derive(Debug, Default)]
struct Line {
    eventfd: Option<OwnedFd>,
    /// Masked by the client (SET_IRQS), for INTx also by firing.
    masked: bool,
    /// Masked by the guest's MSI or MSI-X mask bit.
    guest_masked: bool,
    pending: bool,
}

impl Line {
    fn fire(&mut self) {
        if self.masked || self.guest_masked {
            self.pending = true;
            return;
        }
        self.pending = false;
        if let Some(eventfd) = &self.eventfd {
            signal(eventfd);
        }
    }
}

#[derive(Debug)]
struct State {
    indexes: [Vec<Line>; INDEXES as usize],
    /// The device asserts INTx.
    level: bool,
    config: IrqConfig,
    delivery: Delivery,
    /// Held by [`Lines::hold`].
    held: bool,
}

/// The interrupt lines of one software device, shared between its threads.
#[derive(Debug)]
pub struct Lines {
    state: Mutex<State>,
    resample: Mutex<Option<Watcher>>,
    this: Weak<Self>,
}

impl Lines {
    /// Lines with `counts[index]` interrupts at each index.
    #[must_use]
    pub fn new(counts: [u32; INDEXES as usize]) -> Arc<Self> {
        prepare();
        let indexes = counts.map(|count| (0..count).map(|_| Line::default()).collect());
        Arc::new_cyclic(|this| Self {
            state: Mutex::new(State {
                indexes,
                level: false,
                config: IrqConfig::default(),
                delivery: Delivery::default(),
                held: false,
            }),
            resample: Mutex::new(None),
            this: this.clone(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a checked request of the client.
    ///
    /// # Errors
    /// The errno of starting the thread that watches an unmask eventfd.
    pub fn apply(&self, request: IrqRequest) -> std::io::Result<()> {
        match request {
            IrqRequest::SetEventfds {
                index,
                start,
                eventfds,
            } => {
                self.state().set_eventfds(index, start, eventfds);
            }
            IrqRequest::Disable { index } => {
                if index == INTX {
                    self.watch(None)?;
                }
                self.state().disable(index);
            }
            IrqRequest::Trigger { index, vectors } => {
                self.state().each(index, &vectors, Line::fire);
            }
            IrqRequest::Mask { index, vectors } => {
                self.state()
                    .each(index, &vectors, |line| line.masked = true);
            }
            IrqRequest::Unmask { index, vectors } => self.state().unmask(index, &vectors),
            IrqRequest::UnmaskEventfd { eventfd } => self.watch(eventfd)?,
        }
        Ok(())
    }

    /// Replaces the watched unmask eventfd.
    fn watch(&self, eventfd: Option<OwnedFd>) -> std::io::Result<()> {
        let this = self.this.clone();
        let watcher = eventfd
            .map(|eventfd| {
                Watcher::new(eventfd, move || {
                    if let Some(lines) = this.upgrade() {
                        lines
                            .state()
                            .unmask(INTX, &Vectors::Range { start: 0, count: 1 });
                    }
                })
            })
            .transpose()?;
        let previous = {
            let mut slot = self.resample.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *slot, watcher)
        };
        // Joined without any lock held: its thread may be inside unmask().
        drop(previous);
        Ok(())
    }

    /// Chooses how the active mode is told; at attach, before the first event.
    pub fn set_delivery(&self, delivery: Delivery) {
        let mut state = self.state();
        state.delivery = delivery;
        if delivery == Delivery::Armed {
            for line in state.indexes.iter_mut().flatten() {
                line.guest_masked = false;
            }
        }
    }

    /// Takes note of what the guest configured; held-back interrupts that it lets through are sent.
    pub fn set_config(&self, config: IrqConfig) {
        let mut state = self.state();
        state.config = config;
        state.release_messages();
        state.evaluate_intx();
    }

    /// The device asserts or deasserts INTx.
    pub fn set_level(&self, level: bool) {
        let mut state = self.state();
        state.level = level;
        state.evaluate_intx();
    }

    /// The device has an event on `vector`: sent as MSI-X or MSI, whichever is active, else nothing
    /// (INTx follows [`Self::set_level`]). With fewer MSI vectors granted the number wraps.
    pub fn message(&self, vector: u32) {
        let mut state = self.state();
        if !state.config.bus_master {
            debug!("Interrupt message {vector} lost: bus mastering is off");
            return;
        }
        let Some((index, vectors)) = state.message_mode() else {
            return;
        };
        let held = state.held;
        if let Some(line) = vector
            .checked_rem(vectors)
            .and_then(|v| state.line(index, v))
        {
            if held {
                line.pending = true;
            } else {
                line.fire();
            }
        }
    }

    /// Takes note of the guest's mask bit of an MSI or MSI-X vector.
    pub fn set_guest_mask(&self, index: u32, vector: u32, masked: bool) {
        let mut state = self.state();
        if let Some(line) = state.line(index, vector) {
            line.guest_masked = masked;
        }
        state.release(index, vector);
    }

    /// Whether an event waits for the vector to be unmasked.
    #[must_use]
    pub fn pending(&self, index: u32, vector: u32) -> bool {
        self.state()
            .line(index, vector)
            .is_some_and(|line| line.pending)
    }

    /// The PCI_STATUS interrupt bit: INTx is asserted inside the function.
    #[must_use]
    pub fn intx_status(&self) -> bool {
        let state = self.state();
        state.level && state.message_mode().is_none()
    }

    /// Reports an uncorrectable error to the client.
    pub fn error(&self) {
        self.state()
            .each(ERR, &Vectors::Range { start: 0, count: 1 }, Line::fire);
    }

    /// What a device reset leaves: level low, nothing pending, masked or held; the client's eventfds stay.
    pub fn reset(&self) {
        let mut state = self.state();
        state.level = false;
        state.held = false;
        state.config = IrqConfig::default();
        for line in state.indexes.iter_mut().flatten() {
            line.pending = false;
            line.masked = false;
        }
    }

    /// What the client's leaving leaves: no eventfds, nothing pending, nothing masked.
    pub fn release(&self) {
        // A watcher without an eventfd starts no thread, so this cannot fail.
        let _ = self.watch(None);
        let mut state = self.state();
        for line in state.indexes.iter_mut().flatten() {
            *line = Line::default();
        }
        state.delivery = Delivery::default();
    }
}

impl State {
    fn line(&mut self, index: u32, vector: u32) -> Option<&mut Line> {
        self.indexes
            .get_mut(index as usize)?
            .get_mut(vector as usize)
    }

    fn each(&mut self, index: u32, vectors: &Vectors, mut act: impl FnMut(&mut Line)) {
        for vector in vectors.iter() {
            if let Some(line) = self.line(index, vector) {
                act(line);
            }
        }
    }

    fn set_eventfds(&mut self, index: u32, start: u32, eventfds: Vec<Option<OwnedFd>>) {
        for (vector, eventfd) in (start..).zip(eventfds) {
            if let Some(line) = self.line(index, vector) {
                line.eventfd = eventfd;
                if index == INTX {
                    line.masked = false;
                }
            }
            self.release(index, vector);
        }
        self.evaluate_intx();
    }

    fn disable(&mut self, index: u32) {
        for line in self.indexes.get_mut(index as usize).into_iter().flatten() {
            // The guest's mask bit lives in its own registers and outlives the eventfd.
            *line = Line {
                guest_masked: line.guest_masked,
                ..Line::default()
            };
        }
        self.evaluate_intx();
    }

    fn unmask(&mut self, index: u32, vectors: &Vectors) {
        self.each(index, vectors, |line| line.masked = false);
        for vector in vectors.iter() {
            self.release(index, vector);
        }
        self.evaluate_intx();
    }

    /// Sends what waited, unless something else still holds it back: a mask, or for messages that their
    /// mode is not active or that bus mastering is off.
    fn release(&mut self, index: u32, vector: u32) {
        let active = self.config.bus_master
            && !self.held
            && self.message_mode().is_some_and(|m| m.0 == index);
        if let Some(line) = self.line(index, vector)
            && line.pending
            && (active || index == INTX)
        {
            line.fire();
        }
    }

    fn release_messages(&mut self) {
        for (index, count) in self.message_mode().into_iter() {
            for vector in 0..count {
                self.release(index, vector);
            }
        }
    }

    fn armed(&self, index: u32) -> u32 {
        let lines = &self.indexes[index as usize];
        let last = lines.iter().rposition(|line| line.eventfd.is_some());
        last.map_or(0, |last| u32::try_from(last + 1).unwrap_or(u32::MAX))
    }

    /// The index that messages go to and how many vectors it has; none while INTx is the mode.
    fn message_mode(&self) -> Option<(u32, u32)> {
        let count = u32::try_from(self.indexes[MSIX as usize].len()).unwrap_or(u32::MAX);
        let (msix, msi) = match self.delivery {
            Delivery::Armed => (self.armed(MSIX) > 0, self.armed(MSI)),
            Delivery::Composed => (self.config.msix_enabled, self.config.msi_vectors),
        };
        if msix {
            Some((MSIX, count))
        } else {
            (msi > 0).then_some((MSI, msi))
        }
    }

    /// Fires INTx when it is asserted, enabled and not masked; firing masks it.
    fn evaluate_intx(&mut self) {
        let held =
            self.held || !self.level || self.config.intx_disable || self.message_mode().is_some();
        let Some(line) = self.indexes[INTX as usize].first_mut() else {
            return;
        };
        if !held && !line.masked && line.eventfd.is_some() {
            line.fire();
            line.masked = true;
        }
    }
}

#[cfg(test)]
mod tests;
