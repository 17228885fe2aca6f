// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Waits for the client's INTx unmask eventfd, so that a guest's end of interrupt needs no message.
//!
//! The thread exists only while a client has installed such an eventfd.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::{self, JoinHandle};

use log::{debug, warn};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::poller::Poller;

const STOP: u64 = 0;
const FIRED: u64 = 1;
/// An offset of -1, for what has no offsets (preadv2(2)).
const CURRENT_POSITION: u64 = u64::MAX;

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
                    let waited = poller.wait(None, |token| match token {
                        FIRED => stopped |= !drain(&watched, &mut fired),
                        _ => stopped = true,
                    });
                    if let Err(error) = waited {
                        warn!("INTx unmask eventfd no longer watched: {error}");
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
    let mut count = [0_u8; 8];
    let buffers = &mut [IoSliceMut::new(&mut count)];
    // Somebody else may have read it since, and the client may have made it blocking: never wait.
    match preadv2(watched, buffers, CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
        Ok(8) => {
            fired();
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        Ok(length) => {
            debug!(
                "INTx unmask descriptor gave {length} bytes: not an eventfd, ignored from now on"
            );
            false
        }
        Err(error) => {
            debug!("INTx unmask eventfd no longer watched: {error}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_somebody_else_took_is_not_waited_for() {
        let watched = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut fired = 0;
        assert!(drain(&watched, &mut || fired += 1));
        rustix::io::write(&watched, &3_u64.to_ne_bytes()).unwrap();
        assert!(drain(&watched, &mut || fired += 1));
        assert!(drain(&watched, &mut || fired += 1));
        assert_eq!(fired, 1);
    }
}
