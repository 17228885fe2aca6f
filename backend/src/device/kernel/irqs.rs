// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupts of a kernel device: the client's eventfds go straight to the kernel, which fires them
//! without this process.
//!
//! * The kernel has one interrupt mode at a time. A client that arms what it wants ([`Delivery::Armed`]) is
//!   followed; for one that arms everything once ([`Delivery::Composed`]) the guest's registers decide.
//! * A set without `NORESIZE` (MSI-X) grows vector by vector; one with it (MSI) is armed anew as a whole.
//! * vfio-pci cannot mask MSI-X. A vector that the guest masks after use is pointed at an eventfd of ours,
//!   which holds its events; unmasking points it back and passes one on. A vector that was never unmasked is
//!   not armed at all: what a device sends before that is lost. MSI masks are the device's own.
//! * The request to give the device back (REQ) is ours while the client has not armed it.

mod state;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{debug, warn};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
};

use self::state::State;
use super::vfio::{IrqData, Vfio};
use crate::interrupts::{
    Delivery, ERR, INDEXES, INTX, IrqConfig, IrqInfo, IrqRequest, MSI, MSIX, REQ, Vectors, prepare,
    signal,
};
use crate::ratelimit::RateLimit;

/// No PCI function has more vectors than an MSI-X table can hold; bounds what the kernel may claim.
const MAX_VECTORS: u32 = 2048;

/// The interrupts of one device.
#[derive(Debug)]
pub(super) struct Irqs {
    vfio: Vfio,
    info: [IrqInfo; INDEXES as usize],
    /// Readable when the kernel wants the device back.
    request: OwnedFd,
    state: Mutex<State>,
    complaints: Mutex<RateLimit>,
}

impl Irqs {
    /// Asks what there is, and arms REQ for us.
    ///
    /// # Errors
    /// The errno of asking, or of eventfd(2).
    pub(super) fn new(vfio: Vfio) -> Result<Self, Errno> {
        prepare();
        let request = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut info = [IrqInfo::default(); INDEXES as usize];
        let mut state = State::default();
        for ((index, info), table) in (0..).zip(&mut info).zip(&mut state.tables) {
            // An index that the device does not know is one without interrupts.
            *info = vfio.irq(index).unwrap_or_default();
            let limit = if index == MSIX { MAX_VECTORS } else { 32 };
            info.count = info.count.min(limit);
            table.resize_with(info.count as usize, || None);
        }
        state.masked = vec![false; state.tables[MSIX as usize].len()];
        let irqs = Self {
            vfio,
            info,
            request,
            state: Mutex::new(state),
            complaints: Mutex::default(),
        };
        irqs.watch_request(&mut irqs.state());
        Ok(irqs)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line that a guest can provoke.
    fn complain(&self, what: &str, errno: Errno) {
        let mut limit = self
            .complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match limit.allow() {
            Some(passed_over) => warn!("{what}: {errno}{passed_over}"),
            None => debug!("{what}: {errno}"),
        }
    }

    pub(super) fn info(&self, index: u32) -> IrqInfo {
        self.info.get(index as usize).copied().unwrap_or_default()
    }

    pub(super) fn request(&self) -> BorrowedFd<'_> {
        self.request.as_fd()
    }

    /// Carries out a checked request of the client.
    ///
    /// # Errors
    /// The errno of the kernel; what was armed before stays.
    pub(super) fn apply(&self, request: IrqRequest) -> Result<(), Errno> {
        let state = &mut *self.state();
        match request {
            IrqRequest::SetEventfds {
                index,
                start,
                eventfds,
            } => self.set_eventfds(state, index, start, eventfds),
            IrqRequest::Disable { index } => {
                for slot in state.tables.get_mut(index as usize).into_iter().flatten() {
                    *slot = None;
                }
                if index == MSIX {
                    state.held.clear();
                }
                self.disarm(state, index)
            }
            IrqRequest::Trigger { index, vectors } => {
                self.act(index, VFIO_IRQ_SET_ACTION_TRIGGER, &vectors)
            }
            IrqRequest::Mask { index, vectors } => {
                self.act(index, VFIO_IRQ_SET_ACTION_MASK, &vectors)
            }
            IrqRequest::Unmask { index, vectors } => {
                self.act(index, VFIO_IRQ_SET_ACTION_UNMASK, &vectors)
            }
            IrqRequest::UnmaskEventfd { eventfd } => {
                if state.is_armed(INTX) {
                    self.set_unmask(eventfd.as_ref())?;
                } else if eventfd.is_some() && state.delivery == Delivery::Armed {
                    return Err(Errno::INVAL);
                }
                state.unmask = eventfd;
                Ok(())
            }
        }
    }

    fn set_eventfds(
        &self,
        state: &mut State,
        index: u32,
        start: u32,
        eventfds: Vec<Option<OwnedFd>>,
    ) -> Result<(), Errno> {
        let count = u32::try_from(eventfds.len()).map_err(|_| Errno::INVAL)?;
        let Some(slots) = state
            .tables
            .get_mut(index as usize)
            .and_then(|table| table.get_mut(start as usize..)?.get_mut(..eventfds.len()))
        else {
            return Err(Errno::INVAL);
        };
        let before: Vec<_> = slots
            .iter_mut()
            .zip(eventfds)
            .map(|(slot, eventfd)| std::mem::replace(slot, eventfd))
            .collect();
        if !state.wants(index) {
            return Ok(());
        }
        let done = self.push(state, index, start, count);
        if done.is_err()
            && let Some(table) = state.tables.get_mut(index as usize)
        {
            for (slot, eventfd) in table.iter_mut().skip(start as usize).zip(before) {
                *slot = eventfd;
            }
        }
        done
    }

    /// Tells the kernel of `count` vectors from `start` of an index that is, or becomes, armed.
    fn push(&self, state: &mut State, index: u32, start: u32, count: u32) -> Result<(), Errno> {
        let end = start.saturating_add(count);
        match index {
            REQ => {
                self.watch_request(state);
                return Ok(());
            }
            INTX if !state.has_eventfd(INTX) => return self.disarm(state, INTX),
            INTX => {
                self.give(state, INTX, 0, 1)?;
                state.set_armed(INTX, Some(1));
                if state.unmask.is_some() {
                    self.set_unmask(state.unmask.as_ref())?;
                }
                return Ok(());
            }
            ERR => {
                self.give(state, ERR, 0, 1)?;
                let armed = state.has_eventfd(ERR).then_some(1);
                state.set_armed(ERR, armed);
                return Ok(());
            }
            _ => {}
        }
        match state.armed_count(index) {
            None => {
                self.give(state, index, 0, end)?;
                state.set_armed(index, Some(end));
            }
            Some(before) if end > before && self.info(index).noresize => {
                // The whole set anew; the one before, should the larger not be had.
                self.disarm(state, index)?;
                let grown = self.give(state, index, 0, end);
                let now = if grown.is_ok() { end } else { before };
                if grown.is_err() {
                    self.give(state, index, 0, before)?;
                }
                state.set_armed(index, Some(now));
                return grown;
            }
            Some(before) => {
                self.give(state, index, start, count)?;
                state.set_armed(index, Some(before.max(end)));
            }
        }
        Ok(())
    }

    /// SET_IRQS with what should fire for each vector now.
    fn give(&self, state: &State, index: u32, start: u32, count: u32) -> Result<(), Errno> {
        let eventfds: Vec<_> = (start..start.saturating_add(count))
            .map(|vector| state.target(index, vector))
            .collect();
        let range = (start, count);
        let action = VFIO_IRQ_SET_ACTION_TRIGGER;
        self.vfio
            .set_irqs(index, action, range, IrqData::Eventfds(&eventfds))
    }

    /// Takes an index from the kernel, if it has it.
    fn disarm(&self, state: &mut State, index: u32) -> Result<(), Errno> {
        if index == REQ {
            self.watch_request(state);
            return Ok(());
        }
        if !state.is_armed(index) {
            return Ok(());
        }
        let action = VFIO_IRQ_SET_ACTION_TRIGGER;
        self.vfio.set_irqs(index, action, (0, 0), IrqData::None)?;
        state.set_armed(index, None);
        Ok(())
    }

    /// REQ goes to the client if it asked for it, else to us.
    fn watch_request(&self, state: &mut State) {
        if self.info(REQ).count == 0 {
            return;
        }
        let theirs = state.target(REQ, 0);
        let eventfds = [Some(theirs.unwrap_or(self.request.as_fd()))];
        let action = VFIO_IRQ_SET_ACTION_TRIGGER;
        let data = IrqData::Eventfds(&eventfds);
        if let Err(errno) = self.vfio.set_irqs(REQ, action, (0, 1), data) {
            self.complain(
                "The kernel's request for the device will not be heard",
                errno,
            );
        }
    }

    fn set_unmask(&self, eventfd: Option<&OwnedFd>) -> Result<(), Errno> {
        let eventfds = [eventfd.map(OwnedFd::as_fd)];
        let action = VFIO_IRQ_SET_ACTION_UNMASK;
        let data = IrqData::Eventfds(&eventfds);
        self.vfio.set_irqs(INTX, action, (0, 1), data)
    }

    /// Forwards an action without eventfds.
    fn act(&self, index: u32, action: u32, vectors: &Vectors) -> Result<(), Errno> {
        match vectors {
            Vectors::Range { start, count } => {
                self.vfio
                    .set_irqs(index, action, (*start, *count), IrqData::None)
            }
            Vectors::Flags { start, flags } => {
                let count = u32::try_from(flags.len()).map_err(|_| Errno::INVAL)?;
                self.vfio
                    .set_irqs(index, action, (*start, count), IrqData::Bools(flags))
            }
        }
    }

    /// Chooses how the active mode is told; at attach.
    pub(super) fn set_delivery(&self, delivery: Delivery) {
        let state = &mut *self.state();
        state.delivery = delivery;
        if delivery == Delivery::Armed {
            state.masked.fill(false);
        }
        self.settle(state);
    }

    /// Takes note of what the guest configured.
    pub(super) fn set_config(&self, config: IrqConfig) {
        let state = &mut *self.state();
        state.config = config;
        self.settle(state);
    }

    /// With [`Delivery::Composed`]: gives the kernel the mode that the guest's registers say.
    fn settle(&self, state: &mut State) {
        if state.delivery == Delivery::Armed {
            return;
        }
        let wanted = state.mode();
        let mut outcome = Ok(());
        for index in [INTX, MSI, MSIX].into_iter().filter(|i| *i != wanted) {
            outcome = outcome.and(self.disarm(state, index));
        }
        let size = match wanted {
            MSI => state.config.msi_vectors.min(self.info(MSI).count),
            // Vectors are added as the guest unmasks them; the first push may not be empty.
            MSIX if !self.info(MSIX).noresize => state.reach(MSIX, true).max(1),
            other => state.reach(other, false),
        };
        let stale = wanted == MSI && state.armed_count(MSI).is_some_and(|armed| armed != size);
        if stale {
            outcome = outcome.and(self.disarm(state, MSI));
        }
        if outcome.is_ok() && !state.is_armed(wanted) && state.has_eventfd(wanted) && size > 0 {
            outcome = self.push(state, wanted, 0, size);
        }
        if let Err(errno) = outcome {
            self.complain("Interrupt mode of the guest not set", errno);
        }
    }

    /// Takes note of the guest's mask bit of an MSI-X vector; MSI masks reach the device by themselves.
    pub(super) fn set_vector_mask(&self, index: u32, vector: u32, masked: bool) {
        let state = &mut *self.state();
        let known = state.masked.get_mut(vector as usize);
        let Some(known) = known.filter(|known| index == MSIX && **known != masked) else {
            return;
        };
        *known = masked;
        if !state.is_armed(MSIX) || state.eventfd(MSIX, vector).is_none() {
            return;
        }
        let held = if masked {
            match eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) {
                Ok(holder) => drop(state.held.insert(vector, holder)),
                Err(errno) => self.complain("Events of a masked MSI-X vector are lost", errno),
            }
            None
        } else {
            state.held.remove(&vector)
        };
        if let Err(errno) = self.push(state, MSIX, vector, 1) {
            self.complain("Mask of an MSI-X vector not set", errno);
        }
        // Only now: until the kernel had the client's eventfd, events went to ours.
        if held.is_some_and(|holder| rustix::io::read(holder, &mut [0; 8]).is_ok())
            && let Some(client) = state.eventfd(MSIX, vector)
        {
            signal(client);
        }
    }

    /// Whether an event waits for the vector to be unmasked.
    pub(super) fn pending(&self, index: u32, vector: u32) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let state = self.state();
        let holder = state.held.get(&vector).filter(|_| index == MSIX);
        holder.is_some_and(|holder| {
            let mut waiting = [PollFd::new(holder, PollFlags::IN)];
            matches!(poll(&mut waiting, Some(&Timespec::default())), Ok(1))
        })
    }

    /// Takes everything of the client from the kernel; REQ is ours again.
    pub(super) fn release(&self) {
        let state = &mut *self.state();
        state.unmask = None;
        for index in 0..INDEXES {
            for slot in state.tables.get_mut(index as usize).into_iter().flatten() {
                *slot = None;
            }
            if let Err(errno) = self.disarm(state, index) {
                warn!("Interrupt index {index} not switched off: {errno}");
                // Whatever the kernel thinks, the next client starts from nothing.
                state.set_armed(index, None);
            }
        }
        state.held.clear();
        state.masked.fill(false);
        state.delivery = Delivery::Armed;
        state.config = IrqConfig::default();
    }
}

#[cfg(test)]
mod tests;
