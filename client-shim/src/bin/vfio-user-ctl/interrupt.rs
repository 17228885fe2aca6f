// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ctrl-C: the first one is asked for at the next good moment, the second one ends the program at once.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit code of a program that was interrupted, as shells count it.
pub const INTERRUPTED: u8 = 128 + 2;

/// How often a wait looks whether it is to end: a signal that comes just before it does not end it.
const LOOK: Duration = Duration::from_millis(100);

/// Whether the user wants it to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals are noted instead of ending the program.
    pub fn catch() -> io::Result<Self> {
        let this = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // The order matters: the first signal finds the flag unset.
            let code = INTERRUPTED.into();
            flag::register_conditional_shutdown(signal, code, Arc::clone(&this.0))?;
            flag::register(signal, Arc::clone(&this.0))?;
        }
        Ok(this)
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps so long, or until it is asked.
    pub fn sleep(&self, mut time: Duration) {
        while !self.is_asked() && time > Duration::ZERO {
            let part = time.min(LOOK);
            thread::sleep(part);
            time -= part;
        }
    }

    /// Waits until a pipe, socket or file can be read or written: false once it is asked instead.
    pub fn wait_for(&self, fd: &impl AsFd, what: PollFlags) -> io::Result<bool> {
        let time = Timespec::try_from(LOOK).map_err(io::Error::other)?;
        while !self.is_asked() {
            match poll(&mut [PollFd::new(fd, what)], Some(&time)) {
                Ok(0) | Err(Errno::INTR) => {}
                // An error or a hang-up is for the read or write to say.
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}
