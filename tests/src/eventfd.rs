// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An interrupt as a client gets it: an eventfd that the backend counts on.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
    time::Timespec,
};

use crate::PATIENCE;

/// The client's end.
#[derive(Debug)]
pub struct Eventfd(OwnedFd);

impl Eventfd {
    /// One that nobody has counted on.
    ///
    /// # Panics
    /// When the process has no descriptor left.
    #[must_use]
    #[track_caller]
    #[expect(clippy::new_without_default, reason = "makes a kernel object")]
    pub fn new() -> Self {
        Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"))
    }

    /// Waits for it to be counted on; how often it was since the last look.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    #[track_caller]
    pub fn wait(&self) -> u64 {
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "no interrupt");
        self.count()
    }

    /// How often it was counted on since the last look.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    #[track_caller]
    pub fn count(&self) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(Errno::AGAIN) => 0,
            Err(error) => panic!("an eventfd that cannot be read: {error}"),
        }
    }

    /// Counts on it, as a hypervisor does on the eventfd that unmasks INTx.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[track_caller]
    pub fn signal(&self) {
        let written = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        assert_eq!(written, Ok(8), "an eventfd that cannot be written");
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Eventfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
