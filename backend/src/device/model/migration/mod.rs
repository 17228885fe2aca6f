// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration of the model GPU: all states of `linux/vfio.h`, and the faults that `--model=faults=...` asks for.
//!
//! | file | job |
//! |---|---|
//! | `mod.rs` | the states, what each does to the device, and reset |
//! | `format.rs` | the bytes of the stream: the place that defines them |
//! | `save.rs` | what is sent of VRAM, and in which order |
//! | `load.rs` | what is taken, checked |
//! | `parts.rs` | engine, display and interrupts to bytes and back |
//! | `granules.rs` | sets of pieces of VRAM |
//! | `pattern.rs` | state out of nothing (`state-size`) |
//! | `stream.rs` | the data stream, with its faults |
//!
//! | state | commands of the engine | interrupts |
//! |---|---|---|
//! | RUNNING, PRE_COPY | run | are sent |
//! | RUNNING_P2P, PRE_COPY_P2P | wait, also one that was under way | are sent |
//! | STOP, STOP_COPY, RESUMING, ERROR | wait | wait |
//!
//! What waits goes on once the device may, at the destination too. One lock guards the state and the transfer; it is
//! held for as long as a change of state or a read takes, and a reset makes either end early.

mod format;
mod granules;
mod load;
mod parts;
mod pattern;
mod save;
mod stream;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::debug;
use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState;

use super::bochs::Display;
use super::engine::Engine;
use super::faults::Faults;
use super::vram::Vram;
use crate::interrupts::Lines;
use crate::migration::states::{saves, way};
use crate::migration::{DataStream, MigrationDriver, Support};
use crate::report::chain;
pub(super) use format::GRANULE;
use load::Loading;
use save::Saving;
use stream::Stream;

/// What the device consists of.
#[derive(Debug)]
pub(super) struct Parts {
    pub vram: Arc<Vram>,
    pub engine: Arc<Engine>,
    pub display: Arc<Mutex<Display>>,
    pub lines: Arc<Lines>,
    /// Resets that wait for the lock.
    resets: AtomicUsize,
}

/// How much the device does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Activity {
    Nothing,
    NoDma,
    All,
}

/// The data of one transfer.
#[derive(Debug)]
enum Data {
    Saving(Box<Saving>),
    Loading(Box<Loading>),
}

/// One transfer, from the state that opens its stream to the one that ends it.
#[derive(Debug)]
struct Transfer {
    /// Tells its stream from those of other transfers.
    number: u64,
    data: Data,
    /// Bytes given or taken.
    moved: u64,
    /// It failed, and does so from now on.
    failed: Option<Errno>,
    /// The new initial data of `reinit` was told of.
    began_again: bool,
}

#[derive(Debug)]
struct State {
    at: MigrationState,
    transfer: Option<Transfer>,
    /// How many there were.
    transfers: u64,
    /// How many resets there were.
    resets: u64,
    /// `state-error` has happened.
    refused: bool,
    /// Answers about sizes, for `moving-sizes`.
    answers: u64,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    faults: Faults,
    state: Mutex<State>,
    /// Told of a reset.
    changed: Condvar,
}

/// The migration of one model GPU.
#[derive(Debug)]
pub struct Migration {
    shared: Arc<Shared>,
}

impl Parts {
    /// What a device consists of.
    #[must_use]
    pub fn new(
        vram: Arc<Vram>,
        engine: Arc<Engine>,
        display: Arc<Mutex<Display>>,
        lines: Arc<Lines>,
    ) -> Self {
        Self {
            vram,
            engine,
            display,
            lines,
            resets: AtomicUsize::new(0),
        }
    }

    /// Whether what takes long may go on.
    ///
    /// # Errors
    /// ENODEV: someone wants to reset the device.
    fn go_on(&self) -> Result<(), Errno> {
        match self.resets.load(Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err(Errno::NODEV),
        }
    }

    /// The display; also to change it.
    fn display(&self) -> MutexGuard<'_, Display> {
        self.display.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the device do as much as this by itself, and sees that it does no more.
    fn set_activity(&self, activity: Activity) {
        match activity {
            Activity::All => {
                self.lines.let_go();
                self.engine.resume();
            }
            Activity::NoDma => {
                self.engine.quiesce();
                self.lines.let_go();
            }
            Activity::Nothing => {
                self.engine.quiesce();
                self.lines.hold();
            }
        }
    }
}

impl Migration {
    /// A device that runs.
    #[must_use]
    pub(super) fn new(parts: Parts, faults: Faults) -> Self {
        let state = Mutex::new(State {
            at: MigrationState::Running,
            transfer: None,
            transfers: 0,
            resets: 0,
            refused: false,
            answers: 0,
        });
        Self {
            shared: Arc::new(Shared {
                parts,
                faults,
                state,
                changed: Condvar::new(),
            }),
        }
    }

    /// Which states there are, for people.
    #[must_use]
    pub(super) fn description(&self) -> String {
        let support = self.shared.support();
        let p2p = if support.p2p { ", P2P" } else { "" };
        let pre_copy = if support.pre_copy { ", PRE_COPY" } else { "" };
        format!("v2 (STOP_COPY{p2p}{pre_copy})")
    }

    /// Ends a transfer at once, whoever is busy with it, and leaves RUNNING; `reset` resets all the rest while
    /// nobody can begin another.
    pub(super) fn reset<R>(&self, reset: impl FnOnce() -> R) -> R {
        let resets = &self.shared.parts.resets;
        resets.fetch_add(1, Ordering::Relaxed);
        let mut state = self.shared.lock();
        resets.fetch_sub(1, Ordering::Relaxed);
        state.at = MigrationState::Running;
        state.transfer = None;
        state.resets = state.resets.wrapping_add(1);
        self.shared.changed.notify_all();
        reset()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as a fault asks, unless there is a reset.
    fn pause<'a>(
        &self,
        state: MutexGuard<'a, State>,
        time: Option<Duration>,
    ) -> Result<MutexGuard<'a, State>, Errno> {
        let Some(time) = time else {
            return Ok(state);
        };
        debug!("A fault: waiting {time:?}");
        let resets = state.resets;
        let same = |state: &mut State| state.resets == resets;
        let waited = self.changed.wait_timeout_while(state, time, same);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.resets == resets {
            Ok(state)
        } else {
            Err(Errno::NODEV)
        }
    }

    fn support(&self) -> Support {
        Support {
            p2p: !self.faults.no_p2p,
            pre_copy: !self.faults.no_precopy,
        }
    }

    /// An answer about sizes, as honest as the faults have it.
    fn told(&self, state: &mut State, size: u64) -> u64 {
        state.answers = state.answers.wrapping_add(1);
        let answers = state.answers;
        if self.faults.garbage_sizes {
            return match answers % 2 {
                0 => (-4096_i64).cast_unsigned().wrapping_sub(answers),
                _ => u64::MAX,
            };
        }
        if self.faults.moving_sizes {
            // Between a quarter and twice as much, up and down, and never the same.
            let eighths = [2, 16, 5, 11, 3, 8][usize::try_from(answers % 6).unwrap_or(0)];
            return (size / 8).saturating_mul(eighths).saturating_add(answers);
        }
        size
    }

    /// The device is in ERROR: it does nothing until it is reset.
    fn fail(&self, state: &mut State) {
        self.parts.set_activity(Activity::Nothing);
        state.transfer = None;
        state.at = MigrationState::Error;
    }

    /// Begins a transfer.
    fn begin(self: &Arc<Self>, state: &mut State, data: Data) -> Box<dyn DataStream> {
        state.transfers = state.transfers.wrapping_add(1);
        let number = state.transfers;
        state.transfer = Some(Transfer {
            number,
            data,
            moved: 0,
            failed: None,
            began_again: false,
        });
        Box::new(Stream::new(Arc::clone(self), number))
    }

    /// Does what an arc asks of data; the device is as quiet as either end of the arc wants it.
    fn data(
        self: &Arc<Self>,
        state: &mut State,
        next: MigrationState,
    ) -> Result<Option<Box<dyn DataStream>>, Errno> {
        use MigrationState::{Resuming, Stop, StopCopy};
        let save = |stopped| {
            let saving = Saving::begin(&self.parts, self.faults.state_size, stopped);
            saving.map(|saving| Data::Saving(Box::new(saving)))
        };
        match (state.at, next) {
            (Stop, StopCopy) => {
                let data = save(true)?;
                return Ok(Some(self.begin(state, data)));
            }
            (Stop, Resuming) => {
                let vram = &self.parts.vram;
                if let Err(error) = vram.as_opened().and_then(|()| vram.zero()) {
                    debug!("VRAM cannot take a state: {}", chain(&error));
                    self.fail(state);
                    return Err(Errno::IO);
                }
                let data = Data::Loading(Box::new(Loading::new()));
                return Ok(Some(self.begin(state, data)));
            }
            (Resuming, Stop) => {
                if let Err(errno) = self.load(state) {
                    self.fail(state);
                    return Err(errno);
                }
            }
            (from, StopCopy) if saves(from) => {
                if let Some(Transfer {
                    data: Data::Saving(saving),
                    ..
                }) = &mut state.transfer
                {
                    saving.stop(&self.parts)?;
                }
            }
            (from, to) if saves(to) && !saves(from) => {
                let data = save(false)?;
                return Ok(Some(self.begin(state, data)));
            }
            (_, to) if !saves(to) => state.transfer = None,
            _ => {}
        }
        Ok(None)
    }

    /// Makes the device what was written.
    fn load(&self, state: &mut State) -> Result<(), Errno> {
        let transfer = state.transfer.take().ok_or(Errno::INVAL)?;
        if let Some(errno) = transfer.failed {
            return Err(errno);
        }
        let Data::Loading(loading) = transfer.data else {
            return Err(Errno::INVAL);
        };
        let loaded = loading.finish().map_err(|bad| {
            debug!("Migration data not loaded: {bad}");
            bad.errno()
        })?;
        let lines = self.parts.lines.restore(loaded.lines);
        lines.map_err(|_| Errno::INVAL)?;
        self.parts.engine.restore(loaded.engine);
        *self.parts.display() = loaded.display;
        Ok(())
    }
}

fn activity(state: MigrationState) -> Activity {
    use MigrationState::{
        Error, PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy,
    };
    match state {
        Running | PreCopy => Activity::All,
        RunningP2p | PreCopyP2p => Activity::NoDma,
        Stop | StopCopy | Resuming | Error => Activity::Nothing,
    }
}

impl MigrationDriver for Migration {
    fn support(&self) -> Support {
        self.shared.support()
    }

    fn data_version(&self) -> String {
        format!("model {}", format::VERSION)
    }

    fn state(&self) -> Result<MigrationState, Errno> {
        Ok(self.shared.lock().at)
    }

    fn set_state(&self, next: MigrationState) -> Result<Option<Box<dyn DataStream>>, Errno> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let from = state.at;
        let arcs = way(from, next, shared.support()).map_err(|_| Errno::INVAL)?;
        match arcs.len() {
            0 => return Ok(None),
            1 => {}
            _ => return Err(Errno::INVAL),
        }
        state = shared.pause(state, shared.faults.slow_state)?;
        shared.parts.go_on()?;
        if shared.faults.state_error == Some(next) && !std::mem::replace(&mut state.refused, true) {
            return Err(Errno::IO);
        }
        if shared.faults.broken == Some(next) {
            shared.fail(&mut state);
            return Err(Errno::IO);
        }
        // Quiet before its state is taken, loud after it was put in place.
        if activity(next) < activity(from) {
            shared.parts.set_activity(activity(next));
        }
        let stream = shared.data(&mut state, next);
        if stream.is_ok() {
            state.at = next;
        }
        shared.parts.set_activity(activity(state.at));
        stream
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let size = match &state.transfer {
            Some(Transfer {
                data: Data::Saving(saving),
                ..
            }) => saving.left(),
            _ => save::whole_size(&shared.parts.vram, shared.faults.state_size)?,
        };
        Ok(shared.told(&mut state, size))
    }
}
