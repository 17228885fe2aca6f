// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waits for the client's INTx unmask eventfd, so that a guest's end of interrupt needs no message.
//!
//! The thread exists only while a client has installed such an eventfd.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::poller::Poller;
use crate::ratelimit::peer_log;

const STOP: u64 = 0;
const FIRED: u64 = 1;

/// Calls a closure each time an eventfd fires, until dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts watching `watched`.
    pub(super) fn new(
        watched: OwnedFd,
        mut fired: impl FnMut() + Send + 'static,
    ) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let poller = Poller::new()?;
        poller.add(stop.as_fd(), STOP)?;
        poller.add(watched.as_fd(), FIRED)?;
        let thread = thread::Builder::new()
            .name("intx-unmask".into())
            .spawn(move || {
                let mut stopped = false;
                while !stopped {
                    let waited = poller.wait(|token| match token {
                        FIRED => stopped |= !drain(&watched, &mut fired),
                        _ => stopped = true,
                    });
                    if let Err(error) = waited {
                        peer_log!(Warn, "INTx unmask eventfd no longer watched: {error}");
                        stopped = true;
                    }
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

/// Consumes the count and reports it. False once the descriptor no longer behaves like an eventfd.
fn drain(watched: &OwnedFd, fired: &mut impl FnMut()) -> bool {
    // Somebody else may have read it since; the client may have made it blocking.
    let mut ready = [PollFd::new(watched, PollFlags::IN)];
    if !matches!(poll(&mut ready, Some(&Timespec::default())), Ok(1)) {
        return true;
    }
    let mut count = [0_u8; 8];
    match rustix::io::read(watched, &mut count) {
        Ok(8) => {
            fired();
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        Ok(length) => {
            peer_log!(
                Warn,
                "INTx unmask descriptor gave {length} bytes: not an eventfd, ignored from now on"
            );
            false
        }
        Err(error) => {
            peer_log!(Warn, "INTx unmask eventfd no longer watched: {error}");
            false
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // A fresh eventfd cannot overflow; its only reader leaves on the first count.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
