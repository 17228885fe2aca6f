// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The interrupt lines of a device without hardware: what the kernel's VFIO does for a real one.
//!
//! Holds the client's eventfds, the INTx level, masks and pending bits, and decides what an event
//! becomes: INTx, an MSI message or an MSI-X message.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use log::debug;

use super::resample::Watcher;
use super::signal::{prepare, signal};
use super::{ERR, INDEXES, INTX, IrqRequest, MSI, MSIX, Vectors};

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
        if let Some(line) = vector
            .checked_rem(vectors)
            .and_then(|v| state.line(index, v))
        {
            line.fire();
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

    /// What a device reset leaves: level low, nothing pending, nothing masked; the client's eventfds stay.
    pub fn reset(&self) {
        let mut state = self.state();
        state.level = false;
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
        let active = self.config.bus_master && self.message_mode().is_some_and(|m| m.0 == index);
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
        let held = !self.level || self.config.intx_disable || self.message_mode().is_some();
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
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::Errno;

    use super::*;

    fn new_eventfd() -> (OwnedFd, OwnedFd) {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        (fd.try_clone().unwrap(), fd)
    }

    fn count(fd: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(fd, &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(Errno::AGAIN) => 0,
            Err(error) => panic!("eventfd: {error}"),
        }
    }

    fn arm(lines: &Lines, index: u32, start: u32) -> OwnedFd {
        let (ours, theirs) = new_eventfd();
        let eventfds = vec![Some(theirs)];
        lines
            .apply(IrqRequest::SetEventfds {
                index,
                start,
                eventfds,
            })
            .unwrap();
        ours
    }

    fn lines() -> Arc<Lines> {
        let lines = Lines::new([1, 4, 8, 1, 1]);
        lines.set_config(IrqConfig {
            bus_master: true,
            ..IrqConfig::default()
        });
        lines
    }

    const FIRST: Vectors = Vectors::Range { start: 0, count: 1 };

    #[test]
    fn intx_fires_once_and_again_after_unmask_while_asserted() {
        let lines = lines();
        let intx = arm(&lines, INTX, 0);
        lines.set_level(true);
        lines.set_level(true);
        assert_eq!(count(&intx), 1);
        assert!(lines.intx_status());
        lines
            .apply(IrqRequest::Unmask {
                index: INTX,
                vectors: FIRST,
            })
            .unwrap();
        assert_eq!(count(&intx), 1, "still asserted");
        lines.set_level(false);
        lines
            .apply(IrqRequest::Unmask {
                index: INTX,
                vectors: FIRST,
            })
            .unwrap();
        assert_eq!(count(&intx), 0, "deasserted");
        lines
            .apply(IrqRequest::Mask {
                index: INTX,
                vectors: FIRST,
            })
            .unwrap();
        lines.set_level(true);
        assert_eq!(count(&intx), 0, "masked");
        lines
            .apply(IrqRequest::Unmask {
                index: INTX,
                vectors: FIRST,
            })
            .unwrap();
        assert_eq!(count(&intx), 1);
    }

    #[test]
    fn intx_disable_holds_the_line_and_status_still_tells() {
        let lines = lines();
        let intx = arm(&lines, INTX, 0);
        let disabled = IrqConfig {
            intx_disable: true,
            bus_master: true,
            ..Default::default()
        };
        lines.set_config(disabled);
        lines.set_level(true);
        assert_eq!(count(&intx), 0);
        assert!(lines.intx_status());
        lines.set_config(IrqConfig {
            intx_disable: false,
            ..disabled
        });
        assert_eq!(count(&intx), 1);
    }

    #[test]
    fn an_eventfd_armed_late_hears_of_an_asserted_line() {
        let lines = lines();
        lines.set_level(true);
        let intx = arm(&lines, INTX, 0);
        assert_eq!(count(&intx), 1);
    }

    #[test]
    fn resample_eventfd_unmasks() {
        let lines = lines();
        let (ours, theirs) = new_eventfd();
        let intx = {
            let blocking = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let eventfds = vec![Some(blocking.try_clone().unwrap())];
            lines
                .apply(IrqRequest::SetEventfds {
                    index: INTX,
                    start: 0,
                    eventfds,
                })
                .unwrap();
            blocking
        };
        lines
            .apply(IrqRequest::UnmaskEventfd {
                eventfd: Some(theirs),
            })
            .unwrap();
        lines.set_level(true);
        for _ in 0..3 {
            let mut bytes = [0; 8];
            // Blocks until the line fires again: the wait is the synchronisation.
            assert_eq!(rustix::io::read(&intx, &mut bytes), Ok(8));
            rustix::io::write(&ours, &1_u64.to_ne_bytes()).unwrap();
        }
        lines.release();
    }

    #[test]
    fn a_resample_descriptor_that_is_no_eventfd_does_no_harm() {
        let lines = lines();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        lines
            .apply(IrqRequest::UnmaskEventfd {
                eventfd: Some(reader),
            })
            .unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        drop(writer);
        lines
            .apply(IrqRequest::UnmaskEventfd { eventfd: None })
            .unwrap();
    }

    #[test]
    fn messages_go_to_the_armed_vectors_only() {
        let lines = lines();
        let (v0, v5) = (arm(&lines, MSIX, 0), arm(&lines, MSIX, 5));
        for vector in [0, 5, 5, 3] {
            lines.message(vector);
        }
        assert_eq!((count(&v0), count(&v5)), (1, 2));
        lines
            .apply(IrqRequest::SetEventfds {
                index: MSIX,
                start: 5,
                eventfds: vec![None],
            })
            .unwrap();
        lines.message(5);
        assert_eq!(count(&v5), 0);
        lines.apply(IrqRequest::Disable { index: MSIX }).unwrap();
        lines.message(0);
        assert_eq!(count(&v0), 0);
    }

    #[test]
    fn indexes_do_not_alias() {
        let lines = lines();
        let v0 = arm(&lines, MSIX, 0);
        lines.apply(IrqRequest::Disable { index: INTX }).unwrap();
        lines.message(0);
        assert_eq!(count(&v0), 1);
    }

    #[test]
    fn messages_need_bus_mastering() {
        let lines = lines();
        let v0 = arm(&lines, MSIX, 0);
        lines.set_config(IrqConfig::default());
        lines.message(0);
        assert_eq!(count(&v0), 0);
    }

    #[test]
    fn fewer_msi_vectors_share() {
        let lines = lines();
        let (v0, v1) = (arm(&lines, MSI, 0), arm(&lines, MSI, 1));
        lines.message(6);
        lines.message(7);
        assert_eq!((count(&v0), count(&v1)), (1, 1));
    }

    #[test]
    fn masked_vectors_stay_pending() {
        let lines = lines();
        let v2 = arm(&lines, MSIX, 2);
        let second = Vectors::Flags {
            start: 0,
            flags: vec![false, false, true],
        };
        lines
            .apply(IrqRequest::Mask {
                index: MSIX,
                vectors: second.clone(),
            })
            .unwrap();
        lines.message(2);
        lines.message(2);
        assert!(lines.pending(MSIX, 2));
        assert_eq!(count(&v2), 0);
        lines
            .apply(IrqRequest::Unmask {
                index: MSIX,
                vectors: second,
            })
            .unwrap();
        assert_eq!(count(&v2), 1);
        assert!(!lines.pending(MSIX, 2));
    }

    #[test]
    fn composed_delivery_follows_the_guest() {
        let lines = lines();
        lines.set_delivery(Delivery::Composed);
        let (intx, v0) = (arm(&lines, INTX, 0), arm(&lines, MSIX, 0));
        lines.set_level(true);
        lines.message(0);
        assert_eq!(
            (count(&intx), count(&v0)),
            (1, 0),
            "INTx until MSI-X is enabled"
        );
        lines.set_guest_mask(MSIX, 0, true);
        let enabled = IrqConfig {
            bus_master: true,
            msix_enabled: true,
            ..Default::default()
        };
        lines.set_config(enabled);
        lines.message(0);
        assert!(!lines.intx_status());
        assert!(lines.pending(MSIX, 0));
        lines.set_guest_mask(MSIX, 0, false);
        assert_eq!(count(&v0), 1);
    }

    #[test]
    fn a_pending_message_waits_until_it_may_be_sent() {
        let lines = lines();
        lines.set_delivery(Delivery::Composed);
        let v0 = arm(&lines, MSIX, 0);
        let enabled = IrqConfig {
            bus_master: true,
            msix_enabled: true,
            ..Default::default()
        };
        lines.set_config(enabled);
        lines.set_guest_mask(MSIX, 0, true);
        lines.message(0);
        for held in [
            IrqConfig {
                msix_enabled: false,
                ..enabled
            },
            IrqConfig {
                bus_master: false,
                ..enabled
            },
        ] {
            lines.set_config(held);
            lines.set_guest_mask(MSIX, 0, false);
            assert_eq!(count(&v0), 0, "{held:?}");
            assert!(lines.pending(MSIX, 0));
        }
        lines.set_config(enabled);
        assert_eq!(count(&v0), 1);
        assert!(!lines.pending(MSIX, 0));
    }

    #[test]
    fn unmasking_sends_nothing_without_bus_mastering() {
        let lines = lines();
        let v2 = arm(&lines, MSIX, 2);
        let vectors = Vectors::Range { start: 2, count: 1 };
        let mask = IrqRequest::Mask {
            index: MSIX,
            vectors: vectors.clone(),
        };
        lines.apply(mask).unwrap();
        lines.message(2);
        lines.set_config(IrqConfig::default());
        let unmask = IrqRequest::Unmask {
            index: MSIX,
            vectors,
        };
        lines.apply(unmask).unwrap();
        assert_eq!(count(&v2), 0);
        lines.set_config(IrqConfig {
            bus_master: true,
            ..IrqConfig::default()
        });
        assert_eq!(count(&v2), 1);
    }

    #[test]
    fn a_full_or_dead_descriptor_never_blocks() {
        let lines = lines();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let stuffed = writer.try_clone().unwrap();
        rustix::io::ioctl_fionbio(&stuffed, true).unwrap();
        while rustix::io::write(&stuffed, &[0; 4096]).is_ok() {}
        rustix::io::ioctl_fionbio(&stuffed, false).unwrap();
        let eventfds = vec![Some(writer)];
        lines
            .apply(IrqRequest::SetEventfds {
                index: MSIX,
                start: 0,
                eventfds,
            })
            .unwrap();
        lines.message(0);
        drop(reader);
        lines.message(0);
    }

    #[test]
    fn no_thread_waits_for_a_client_that_fills_its_eventfd_in_time() {
        let lines = lines();
        let theirs = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let eventfds = vec![Some(theirs.try_clone().unwrap())];
        lines
            .apply(IrqRequest::SetEventfds {
                index: MSIX,
                start: 0,
                eventfds,
            })
            .unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let device = thread::spawn({
            let (sent, stop) = (Arc::clone(&sent), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    lines.message(0);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        thread::spawn({
            let theirs = Arc::clone(&theirs);
            // Fills it as soon as there is room, for as long as the process lives.
            move || while rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).is_ok() {}
        });
        for _ in 0..20_000 {
            let _ = rustix::io::read(&*theirs, &mut [0; 8]);
            let before = sent.load(Ordering::Relaxed);
            let deadline = Instant::now() + Duration::from_secs(5);
            while sent.load(Ordering::Relaxed) < before + 2 {
                assert!(Instant::now() < deadline, "a thread waits for the client");
            }
        }
        stop.store(true, Ordering::Relaxed);
        device.join().unwrap();
    }

    #[test]
    fn release_forgets_the_client() {
        let lines = lines();
        let v0 = arm(&lines, MSIX, 0);
        lines.release();
        lines.message(0);
        assert_eq!(count(&v0), 0);
    }
}
