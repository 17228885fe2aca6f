// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways to see from outside what became of what was sent.

use std::{
    ffi::c_int,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    ioctl::{Getter, ioctl},
    pipe::pipe,
    time::Timespec,
};
use system_tests::{PATIENCE, raw_client::RawClient};

/// A pipe whose writing end is sent around: its reading end tells when the last copy is closed.
pub struct Witness {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Witness {
    #[track_caller]
    pub fn new() -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        Self { reader, writer }
    }

    /// The writing end, `count` times.
    pub fn fds(&self, count: usize) -> Vec<BorrowedFd<'_>> {
        vec![self.writer.as_fd(); count]
    }

    /// Closes the own copy and waits until nobody has another.
    #[track_caller]
    pub fn assert_all_closed(self) {
        drop(self.writer);
        let mut ended = [PollFd::new(&self.reader, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        };
        let polled = poll(&mut ended, Some(&limit));
        assert_eq!(polled, Ok(1), "a descriptor that was sent is still open");
        assert_eq!(rustix::io::read(&self.reader, &mut [0; 8]), Ok(0));
    }
}

/// SIOCOUTQ of linux/sockios.h: bytes sent that the other end has not taken yet.
const SIOCOUTQ: u32 = 0x5411;

/// Waits until the backend has received all that was sent: the next bytes come to it on their own.
#[track_caller]
pub fn received(client: &RawClient) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // SAFETY: SIOCOUTQ writes one int.
        let unread = unsafe { ioctl(client, Getter::<SIOCOUTQ, c_int>::new()) };
        match unread {
            Ok(0) => return,
            Ok(_) if Instant::now() < deadline => std::thread::yield_now(),
            other => panic!("the backend does not take what was sent: {other:?}"),
        }
    }
}
