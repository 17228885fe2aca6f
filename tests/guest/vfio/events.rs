// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Eventfds, where interrupts arrive.

use std::{
    error::Error,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::Timespec,
};

/// An eventfd.
pub struct Event(OwnedFd);

impl Event {
    /// Nothing has happened yet.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Waits for it, and says how often it happened.
    pub fn wait(&self, what: &str) -> Result<u64, Box<dyn Error>> {
        // Only turns a hang into a failure.
        let limit = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(format!("{what}: no interrupt came").into());
        }
        Ok(self.count())
    }

    /// How often it happened since it was last asked, without waiting.
    pub fn count(&self) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(8) => u64::from_ne_bytes(bytes),
            _ => 0,
        }
    }
}
