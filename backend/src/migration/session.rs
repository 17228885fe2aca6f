// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration of one device: its state, and the stream being sent or received.
//!
//! ```text
//! client ─ set state ─► way of arcs ─► driver
//!        ◄─ read ───── Source ◄─ data stream
//!        ── write ───► Sink ───► data stream ─ leaving RESUMING ─► load, or reset
//! ```
//!
//! One lock is held while the driver is asked, which may take long. A reset of the device needs no such
//! lock: it makes the driver return, and [`Migration::reset`] leaves a mark, from its beginning on, that
//! whoever holds the lock finds: of a change of state no other arc is taken then.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Instant;

use log::debug;
use vfio_user_protocol::migration::MigrationState as State;

use super::buffer::{Piece, Room};
use super::driver::{DataStream, MigrationDriver, Support};
use super::error::Error;
use super::estimate::Estimate;
use super::guest::Guest;
use super::resetting::Resetting;
use super::sink::Sink;
use super::sizes::ask_stop_copy;
use super::source::{More, Source};
use super::states::{self, IllegalChange};
use crate::device::Device;
use crate::ratelimit::peer_log;

/// The stream that is open.
#[derive(Debug, Default)]
pub(super) enum Transfer {
    #[default]
    None,
    Saving(Source),
    Loading(Sink),
    /// Something was received, and a reset that the client did not ask for undid it before it was loaded; the client
    /// does not know yet.
    Undone,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) transfer: Transfer,
    pub(super) estimate: Estimate,
    /// The count of resets that `transfer` belongs to.
    resets: u64,
}

/// Migration of one device.
#[derive(Debug)]
pub struct Migration {
    device: Arc<dyn Device>,
    inner: Mutex<Inner>,
    /// The state as last known, for those who cannot wait.
    state: AtomicU32,
    /// Counts the beginnings of resets, and the ends of those that held.
    resets: AtomicU64,
    /// The client asked for the last of them.
    asked_for: AtomicBool,
    resetting: Resetting,
}

/// Whether the client knows the P2P states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShowP2p(pub bool);

impl Migration {
    /// Of a device that runs.
    #[must_use]
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self {
            device,
            inner: Mutex::new(Inner {
                transfer: Transfer::None,
                estimate: Estimate::new(Instant::now()),
                resets: 0,
            }),
            state: AtomicU32::new(State::Running.into()),
            resets: AtomicU64::new(0),
            asked_for: AtomicBool::new(false),
            resetting: Resetting::default(),
        }
    }

    pub(super) fn driver(&self) -> Result<&dyn MigrationDriver, Error> {
        self.device.migration().ok_or(Error::NotSupported)
    }

    /// Which states a client sees; `None` if the device does not migrate.
    #[must_use]
    pub fn support(&self, show: ShowP2p) -> Option<Support> {
        let support = self.device.migration()?.support();
        Some(Support {
            p2p: support.p2p && show.0,
            ..support
        })
    }

    /// Whether the device's regions must be left alone now.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        states::closed(self.last_state())
    }

    /// The state as last known.
    #[must_use]
    pub fn last_state(&self) -> State {
        State::try_from(self.state.load(Ordering::SeqCst)).unwrap_or(State::Error)
    }

    /// Resets the device by `reset`: if that holds, the device runs. No transfer of before, and no change of
    /// state, is carried on, whether it holds or not. A client that did not ask for it (`asked_for`) hears of it when it
    /// ends a load.
    ///
    /// # Errors
    /// What `reset` says; the state last known is then as it was.
    pub fn reset<E>(
        &self,
        asked_for: bool,
        reset: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _under_way = self.resetting.begin();
        self.asked_for.store(asked_for, Ordering::SeqCst);
        self.resets.fetch_add(1, Ordering::SeqCst);
        reset()?;
        self.state.store(State::Running.into(), Ordering::SeqCst);
        self.resets.fetch_add(1, Ordering::SeqCst);
        // Whoever has the lock lets go of its transfer; if that is nobody, nobody may come.
        match self.inner.try_lock() {
            Ok(mut inner) => self.forget_undone(&mut inner),
            Err(TryLockError::Poisoned(poisoned)) => self.forget_undone(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        Ok(())
    }

    /// Whether a reset is under way.
    #[must_use]
    pub fn is_being_reset(&self) -> bool {
        self.resetting.any()
    }

    /// Whether what was begun under the lock is undone by a reset, or about to be.
    fn is_undone(&self, inner: &Inner) -> bool {
        self.resetting.any() || self.resets.load(Ordering::SeqCst) != inner.resets
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.forget_undone(&mut inner);
        inner
    }

    /// Lets go of a transfer that a reset has ended.
    fn forget_undone(&self, inner: &mut Inner) {
        let resets = self.resets.load(Ordering::SeqCst);
        if inner.resets != resets {
            let received = match &inner.transfer {
                Transfer::Loading(sink) => !sink.is_untouched(),
                Transfer::Undone => true,
                _ => false,
            };
            let knows = self.asked_for.load(Ordering::SeqCst);
            inner.transfer = if received && !knows {
                Transfer::Undone
            } else {
                Transfer::None
            };
            inner.estimate = Estimate::new(Instant::now());
            inner.resets = resets;
        }
    }

    /// The state of the device, as it says itself.
    ///
    /// # Errors
    /// What the driver says.
    pub fn state(&self) -> Result<State, Error> {
        let mut inner = self.lock();
        let state = self.ask_state(self.driver()?)?;
        if matches!(inner.transfer, Transfer::Undone) {
            // Now the client knows.
            inner.transfer = Transfer::None;
        }
        Ok(state)
    }

    fn ask_state(&self, driver: &dyn MigrationDriver) -> Result<State, Error> {
        let what = "Asking for the migration state";
        loop {
            self.resetting.wait();
            let resets = self.resets.load(Ordering::SeqCst);
            let state = driver
                .state()
                .map_err(|errno| Error::Driver { what, errno })?;
            self.state.store(state.into(), Ordering::SeqCst);
            // A reset meanwhile may have come after the answer.
            if !self.resetting.any() && self.resets.load(Ordering::SeqCst) == resets {
                return Ok(state);
            }
        }
    }

    /// Changes the state, arc by arc.
    ///
    /// Leaving RESUMING loads what was received if all of it was right; else the device is reset, and that
    /// is an error unless nothing was received at all.
    ///
    /// # Errors
    /// A change that is not there, what the driver says, why a stream is not loaded. The device is then in
    /// the last state that was reached, or in RUNNING if it had to be reset.
    pub fn set_state(&self, to: u32, show: ShowP2p, guest: &dyn Guest) -> Result<(), Error> {
        let mut inner = self.lock();
        let driver = self.driver()?;
        let support = driver.support();
        let to = State::try_from(to).map_err(Error::NoState)?;
        let shown = Support {
            p2p: support.p2p && show.0,
            ..support
        };
        if to != State::Error && !states::exists(to, shown) {
            return Err(IllegalChange::Missing(to).into());
        }
        let mut from = self.ask_state(driver)?;
        self.see_whether_it_left(&mut inner, from, to, guest)?;
        // The table first: nothing is lost over a change that is not there.
        states::way(from, to, support)?;
        if from == State::Resuming && to != State::Resuming {
            from = self.leave_resuming(&mut inner, driver, guest)?;
        }
        for next in states::way(from, to, support)? {
            let taken = self.take_arc(&mut inner, driver, next, next == to, guest);
            if let Err(error) = taken {
                if !show.0 {
                    self.leave_hidden_state(&mut inner, driver, guest);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A device may leave a state by itself, reset by another owner of its bus, say. What it was sent or received until
    /// then is worth nothing. A client that ends a load hears of a reset, too: nothing of it is left.
    fn see_whether_it_left(
        &self,
        inner: &mut Inner,
        now: State,
        to: State,
        guest: &dyn Guest,
    ) -> Result<(), Error> {
        match inner.transfer {
            Transfer::Loading(_) if !matches!(now, State::Resuming | State::Error) => {
                self.abandon(inner, guest, Some(Error::Reset)).map(drop)
            }
            Transfer::Saving(_) if !states::saves(now) => {
                inner.transfer = Transfer::None;
                // From ERROR nothing leads on, as will be said.
                if now == State::Error {
                    return Ok(());
                }
                Err(Error::Reset)
            }
            // The reset did not hold: another has to.
            Transfer::Undone if now == State::Resuming => {
                self.abandon(inner, guest, Some(Error::Reset)).map(drop)
            }
            Transfer::Undone => {
                inner.transfer = Transfer::None;
                match to {
                    State::Resuming | State::Error => Ok(()),
                    _ => Err(Error::Reset),
                }
            }
            _ => Ok(()),
        }
    }

    /// A client that does not know the P2P states is not left in one when the next arc fails, if that can be helped.
    fn leave_hidden_state(
        &self,
        inner: &mut Inner,
        driver: &dyn MigrationDriver,
        guest: &dyn Guest,
    ) {
        let back = match self.last_state() {
            State::RunningP2p => State::Running,
            State::PreCopyP2p => State::PreCopy,
            _ => return,
        };
        if let Err(error) = self.take_arc(inner, driver, back, true, guest) {
            debug!("Left in a state the client does not know: {error}");
        }
    }

    fn take_arc(
        &self,
        inner: &mut Inner,
        driver: &dyn MigrationDriver,
        next: State,
        stays: bool,
        guest: &dyn Guest,
    ) -> Result<(), Error> {
        if self.is_undone(inner) {
            return Err(Error::Reset);
        }
        let opened = match driver.set_state(next) {
            Ok(opened) => opened,
            Err(errno) => {
                // What the driver left in the request says nothing; only asking tells.
                let now = self.ask_state(driver).unwrap_or_else(|_| {
                    let unknown = State::Error;
                    self.state.store(unknown.into(), Ordering::SeqCst);
                    unknown
                });
                if !(states::saves(now) || now == State::Resuming) {
                    inner.transfer = Transfer::None;
                }
                return Err(Error::NotChanged {
                    to: next,
                    now,
                    errno,
                });
            }
        };
        debug!("Migration state {next}");
        self.state.store(next.into(), Ordering::SeqCst);
        if self.is_undone(inner) {
            // Which of the two came last only the driver knows.
            self.ask_state(driver)?;
            return Err(Error::Reset);
        }
        let transfer = std::mem::take(&mut inner.transfer);
        inner.transfer = match (next, opened, transfer) {
            (State::Resuming, Some(stream), Transfer::None) => {
                Transfer::Loading(Sink::new(stream, driver.support().pre_copy))
            }
            (saving, Some(stream), Transfer::None) if states::saves(saving) => {
                Transfer::Saving(self.begin_saving(inner, driver, stream, saving, guest))
            }
            (saving, None, Transfer::Saving(mut source)) if states::saves(saving) => {
                if saving == State::StopCopy {
                    ask_stop_copy(&mut inner.estimate, driver);
                } else if stays {
                    // Not on the way to STOP_COPY: asking may take a driver long, and the guest is down.
                    let _ = self.ask_sizes(inner, driver, &mut source);
                }
                Transfer::Saving(source)
            }
            (state, None, _) if !states::saves(state) && state != State::Resuming => Transfer::None,
            _ => return Err(Error::OutOfStep),
        };
        Ok(())
    }

    fn begin_saving(
        &self,
        inner: &mut Inner,
        driver: &dyn MigrationDriver,
        stream: Box<dyn DataStream>,
        state: State,
        guest: &dyn Guest,
    ) -> Source {
        inner.estimate = Estimate::new(Instant::now());
        // A number that nobody else draws: the standard library's seeds come from the kernel.
        let number = RandomState::new().hash_one(Instant::now());
        #[allow(
            clippy::cast_possible_truncation,
            reason = "any 32 of its bits will do"
        )]
        let mut source = Source::new(stream, number as u32, guest);
        if state == State::StopCopy {
            ask_stop_copy(&mut inner.estimate, driver);
        } else if let Err(error) = self.ask_sizes(inner, driver, &mut source) {
            // Sizes are a service; without them a device still migrates.
            debug!("Sizes not told: {error}");
        }
        source
    }

    /// Loads what was received, or resets the device; the state it is then in.
    fn leave_resuming(
        &self,
        inner: &mut Inner,
        driver: &dyn MigrationDriver,
        guest: &dyn Guest,
    ) -> Result<State, Error> {
        let Transfer::Loading(mut sink) = std::mem::take(&mut inner.transfer) else {
            return self.abandon(inner, guest, Some(Error::OutOfStep));
        };
        if sink.is_untouched() {
            // The driver would load an empty state.
            drop(sink);
            return self.abandon(inner, guest, None);
        }
        let state = match sink.finish() {
            Ok(state) => state,
            Err(error) => {
                drop(sink);
                return self.abandon(inner, guest, Some(error));
            }
        };
        let loaded = driver.set_state(State::Stop);
        drop(sink);
        match loaded {
            Ok(None) => {}
            Ok(Some(_)) => return self.abandon(inner, guest, Some(Error::OutOfStep)),
            Err(errno) => {
                let now = driver.state().unwrap_or(State::Error);
                let to = State::Stop;
                let error = Error::NotChanged { to, now, errno };
                return self.abandon(inner, guest, Some(error));
            }
        }
        self.state.store(State::Stop.into(), Ordering::SeqCst);
        // What the guest set up belongs to what was loaded, and a reset may have taken that away.
        match guest.load(&state, &|| !self.is_undone(inner)) {
            Ok(true) => Ok(State::Stop),
            Ok(false) => self.abandon(inner, guest, Some(Error::Reset)),
            Err(error) => self.abandon(inner, guest, Some(Error::Guest(error))),
        }
    }

    /// Resets the device, as nothing it received may ever run.
    fn abandon(
        &self,
        inner: &mut Inner,
        guest: &dyn Guest,
        why: Option<Error>,
    ) -> Result<State, Error> {
        inner.transfer = Transfer::None;
        if let Err(error) = guest.reset() {
            self.state.store(State::Error.into(), Ordering::SeqCst);
            return Err(Error::NotReset(error));
        }
        inner.resets = self.resets.load(Ordering::SeqCst);
        match why {
            Some(error) => {
                peer_log!(
                    Warn,
                    "Nothing loaded, the device is reset: {}",
                    crate::report::chain(&error)
                );
                Err(error)
            }
            None => Ok(State::Running),
        }
    }

    /// Reads a piece of the stream into `room`: how many bytes, and whether there is more.
    ///
    /// # Errors
    /// [`Error::WrongState`] where nothing is saved, or what the driver says.
    pub fn read(&self, room: &mut Room<'_>, guest: &dyn Guest) -> Result<(usize, More), Error> {
        let mut inner = self.lock();
        let state = self.last_state();
        let Inner {
            transfer, estimate, ..
        } = &mut *inner;
        let read = match transfer {
            Transfer::Saving(source) if states::saves(state) => {
                source.read(room, state == State::StopCopy, estimate, guest)
            }
            _ => Err(Error::WrongState {
                what: "Reading migration data",
                state,
            }),
        };
        if self.is_undone(&inner) {
            // What the guest set up may have been read after the reset, and the device's data before.
            inner.transfer = Transfer::None;
            return Err(Error::Reset);
        }
        read
    }

    /// Writes a piece of the stream; `lost` is asked afterwards whether it was not what the client meant.
    ///
    /// # Errors
    /// [`Error::WrongState`] outside RESUMING, what is wrong with the stream, or what the driver says.
    pub fn write(
        &self,
        piece: Piece<'_>,
        guest: &dyn Guest,
        lost: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        let mut inner = self.lock();
        let state = self.last_state();
        match &mut inner.transfer {
            Transfer::Loading(sink) if state == State::Resuming => {
                sink.write(piece, guest)?;
                if lost() {
                    return Err(sink.spoil());
                }
                Ok(())
            }
            _ => Err(Error::WrongState {
                what: "Writing migration data",
                state,
            }),
        }
    }

    /// The client is gone, and with it what it was still to be told.
    pub fn forget(&self) {
        let mut inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        self.forget_undone(&mut inner);
        if matches!(inner.transfer, Transfer::Undone) {
            inner.transfer = Transfer::None;
        }
    }

    /// The client is gone and the device is to be kept: back to RUNNING. False if it must be reset for that.
    #[must_use]
    pub fn end(&self, guest: &dyn Guest) -> bool {
        match self.let_go() {
            Ok(State::Running) | Err(Error::NotSupported) => true,
            Ok(State::Resuming | State::Error) | Err(_) => false,
            Ok(_) => self
                .set_state(State::Running.into(), ShowP2p(true), guest)
                .inspect_err(|error| {
                    peer_log!(
                        Warn,
                        "The device does not go on: {}",
                        crate::report::chain(error)
                    );
                })
                .is_ok(),
        }
    }

    /// Lets go of a transfer whose device has left its states by itself, so that the next client finds nothing of it;
    /// where the device is.
    fn let_go(&self) -> Result<State, Error> {
        let mut inner = self.lock();
        let now = self.ask_state(self.driver()?)?;
        match inner.transfer {
            // It runs, and nothing was loaded.
            Transfer::Loading(_) if now != State::Resuming => Err(Error::Reset),
            Transfer::Saving(_) if !states::saves(now) => {
                inner.transfer = Transfer::None;
                Ok(now)
            }
            _ => Ok(now),
        }
    }
}
