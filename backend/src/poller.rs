// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One owning epoll instance. The only place that calls the `epoll` crate.
//!
//! Descriptors are borrowed by the kernel, not by us: whoever adds one removes it (or closes its last
//! duplicate) before it dies. Level triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use epoll::{ControlOptions, Event, Events};

/// How many ready descriptors one wait reports at the most; the rest follow in the next.
const BATCH: usize = 16;

/// An epoll instance whose registrations carry a caller-chosen token.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// A new instance, closed on exec.
    ///
    /// # Errors
    /// The errno of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        let raw = epoll::create(true)?;
        // SAFETY: epoll::create returned a new descriptor that nobody else owns.
        let epoll = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { epoll })
    }

    /// Reports `token` whenever `fd` is readable or its peer is gone.
    ///
    /// # Errors
    /// The errno of epoll_ctl(2), EPERM for a descriptor that cannot be polled.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add_interest(fd, Events::EPOLLIN, token)
    }

    /// Reports `token` once, when the peer of a socket has closed its end, or will send nothing more.
    ///
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub fn add_hangup(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add_interest(fd, Events::EPOLLRDHUP | Events::EPOLLONESHOT, token)
    }

    fn add_interest(&self, fd: BorrowedFd<'_>, events: Events, token: u64) -> io::Result<()> {
        let interest = Event::new(events, token);
        epoll::ctl(
            self.epoll.as_raw_fd(),
            ControlOptions::EPOLL_CTL_ADD,
            fd.as_raw_fd(),
            interest,
        )
    }

    /// Ends the reports for `fd`.
    ///
    /// # Errors
    /// The errno of epoll_ctl(2).
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let ignored = Event::new(Events::empty(), 0);
        epoll::ctl(
            self.epoll.as_raw_fd(),
            ControlOptions::EPOLL_CTL_DEL,
            fd.as_raw_fd(),
            ignored,
        )
    }

    /// Blocks until something is ready, then calls `ready` with each token; or until `patience` is over, if there
    /// is an end to it.
    ///
    /// # Errors
    /// The errno of epoll_wait(2); an interrupted wait is repeated.
    pub fn wait(&self, patience: Option<Duration>, mut ready: impl FnMut(u64)) -> io::Result<()> {
        // Rounded up, so as not to wake before the end.
        let milliseconds = patience.map_or(-1, |patience| {
            i32::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        });
        let mut events = [Event::new(Events::empty(), 0); BATCH];
        let count = loop {
            match epoll::wait(self.epoll.as_raw_fd(), milliseconds, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        for event in events.iter().take(count) {
            ready(event.data);
        }
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
