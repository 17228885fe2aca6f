// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The engine's thread: takes one command at a time, in chunks, and raises its event.
//!
//! ```text
//!            doorbell                 all done, or a failure
//!   idle ───────────────► running ────────────────────────────► idle, event
//!    ▲                    │  ▲ ╲
//!    │   reset: between   │  │  ╲ quiesce: between chunks
//!    └────────────────────┘  │   ▼
//!                     resume └─ held
//! ```
//!
//! One lock guards the registers and what the thread is about; it is let go while a chunk moves, so that
//! registers can be read meanwhile. Whoever must be sure that nothing moves (reset, quiesce, bus mastering
//! turned off) waits for the end of the chunk.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::command::{Command, Failure};
use super::registers::{Effect, ErrorCode, Registers};
use super::vram::Vram;
use crate::interrupts::Lines;
use crate::memory::AddressSpace;

/// A command under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// As it was when the doorbell was heard; the registers may say something else by now.
    pub command: Command,
    /// Bytes moved: whole chunks.
    pub done: u64,
}

/// What of the engine migrates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The registers.
    pub registers: Registers,
    /// The command under way: there is one just while STATUS says BUSY.
    pub job: Option<Job>,
}

#[derive(Debug)]
struct State {
    registers: Registers,
    job: Option<Job>,
    bus_master: bool,
    /// Held by [`Engine::quiesce`].
    held: bool,
    /// A chunk moves, without the lock.
    moving: bool,
    /// Counts aborted jobs, so that the end of a chunk is not taken for that of another job's.
    aborted: u64,
    /// The thread is to end.
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told of every change that someone may wait for.
    changed: Condvar,
    vram: Arc<Vram>,
    memory: Arc<AddressSpace>,
    lines: Arc<Lines>,
}

/// The registers of BAR4 and the thread that obeys them.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread, which sleeps until there is a command.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn new(vram: Arc<Vram>, memory: Arc<AddressSpace>, lines: Arc<Lines>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                registers: Registers::new(vram.size()),
                job: None,
                bus_master: false,
                held: false,
                moving: false,
                aborted: 0,
                stop: false,
            }),
            changed: Condvar::new(),
            vram,
            memory,
            lines,
        });
        let worker = Arc::clone(&shared);
        let thread = Builder::new()
            .name("model-gpu-dma".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Reads registers; any range.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.state().registers.read(offset, data);
    }

    /// Writes registers; any range.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.shared.state();
        match state.registers.write(offset, data) {
            Effect::None => {}
            Effect::Interrupts { messages } => self.shared.interrupt(&state, messages),
            Effect::Doorbell => {
                let bus_master = state.bus_master;
                match state.registers.doorbell(bus_master) {
                    Ok(command) => {
                        state.job = Some(Job { command, done: 0 });
                        self.shared.changed.notify_all();
                    }
                    Err(messages) => self.shared.interrupt(&state, messages),
                }
            }
        }
    }

    /// Allows or forbids access to guest memory. Once forbidden, none is going on when this returns; a
    /// command that needs it fails.
    pub fn set_bus_master(&self, allowed: bool) {
        let mut state = self.shared.state();
        state.bus_master = allowed;
        if !allowed {
            drop(self.shared.settle(state));
        }
    }

    /// Holds the engine between two chunks. When this returns nothing moves, and nothing will until
    /// [`Self::resume`] or [`Self::reset`]; commands may still be given.
    pub fn quiesce(&self) {
        let mut state = self.shared.state();
        state.held = true;
        drop(self.shared.settle(state));
    }

    /// Lets the engine go on.
    pub fn resume(&self) {
        self.shared.state().held = false;
        self.shared.changed.notify_all();
    }

    /// Does something for the device, if it is not held: nobody can hold it meanwhile. Whether it was done.
    pub(super) fn unless_held(&self, act: impl FnOnce()) -> bool {
        let state = self.shared.state();
        if !state.held {
            act();
        }
        !state.held
    }

    /// What a held engine is about.
    pub(super) fn save(&self) -> Snapshot {
        let state = self.shared.state();
        Snapshot {
            registers: state.registers.clone(),
            job: state.job,
        }
    }

    /// Makes a held engine go on with this, once it may.
    pub(super) fn restore(&self, snapshot: Snapshot) {
        let mut state = self.shared.state();
        state.registers = snapshot.registers;
        state.job = snapshot.job;
    }

    /// Drops the command under way and returns the registers to power-on; `also` runs while nothing moves
    /// and nobody can give a command.
    pub fn reset<R>(&self, also: impl FnOnce() -> R) -> R {
        let mut state = self.shared.state();
        loop {
            // Again after each wait: meanwhile a command may have been given.
            state.job = None;
            state.aborted = state.aborted.wrapping_add(1);
            if !state.moving {
                break;
            }
            state = self.shared.wait(state);
        }
        state.registers.reset();
        state.bus_master = false;
        state.held = false;
        self.shared.lines.reset();
        also()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.state().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread does not panic; if it did, the panic was reported there.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no chunk moves.
    fn settle<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.moving {
            state = self.wait(state);
        }
        state
    }

    /// Tells the interrupt lines; under the lock, so that levels arrive in the order they were taken.
    fn interrupt(&self, state: &State, messages: u32) {
        self.lines.set_level(state.registers.level());
        for vector in (0..u32::BITS).filter(|vector| messages & (1 << vector) != 0) {
            self.lines.message(vector);
        }
    }

    /// The thread.
    fn run(&self) {
        let mut state = self.state();
        while !state.stop {
            let Some(job) = state.job.filter(|_| !state.held) else {
                state = self.wait(state);
                continue;
            };
            if job.command.needs_bus_master() && !state.bus_master {
                let failure = Failure::new(ErrorCode::BusMasterOff);
                self.finish(&mut state, Err(failure));
                continue;
            }
            let aborted = state.aborted;
            state.moving = true;
            drop(state);
            let result = job.command.run_chunk(job.done, &self.vram, &self.memory);
            state = self.state();
            state.moving = false;
            self.changed.notify_all();
            if state.aborted == aborted {
                self.chunk_ended(&mut state, job, result);
            }
        }
    }

    fn chunk_ended(&self, state: &mut State, job: Job, result: Result<u64, Failure>) {
        let moved = result.unwrap_or_else(|failure| failure.done);
        let done = job.done.saturating_add(moved);
        state.registers.progress(done);
        match result {
            Ok(_) if done < job.command.len => state.job = Some(Job { done, ..job }),
            other => self.finish(state, other.map(|_| ())),
        }
    }

    fn finish(&self, state: &mut State, result: Result<(), Failure>) {
        let event = state.job.take().and_then(|job| job.command.event);
        let messages = state.registers.finish(event, result);
        self.interrupt(state, messages);
    }
}
