// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Adds one to a client's eventfd, without ever waiting for the client.
//!
//! write(2) waits while the counter is full. The client decides when that is, and, as it shares the open
//! file, also whether such a write waits; asking first with poll(2) leaves it an instant to fill the counter.
//! So the kernel itself is made to count, as it does for a device it owns: the end of an asynchronous read
//! adds one to the eventfd named in the request (io_submit(2), `IOCB_FLAG_RESFD`), and a full counter stays
//! full. The read is one of no bytes that fails at once. What is not an eventfd is refused.

use std::ffi::c_ulong;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use log::{debug, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// `IOCB_CMD_PREAD` of linux/aio_abi.h.
const PREAD: u16 = 0;
/// `IOCB_FLAG_RESFD` of linux/aio_abi.h.
const RESFD: u32 = 1;

static COUNTER: OnceLock<Option<Counter>> = OnceLock::new();

/// Makes what [`signal`] needs, while this process may still.
pub(crate) fn prepare() {
    let _ = COUNTER.get_or_init(Counter::new);
}

/// Adds one to the client's eventfd. A counter that is full has an event waiting already.
pub(crate) fn signal(eventfd: impl AsFd) {
    let eventfd = eventfd.as_fd();
    let counted = match COUNTER.get_or_init(Counter::new) {
        Some(counter) => counter.count(eventfd),
        None => write_if_room(eventfd),
    };
    if let Err(error) = counted {
        debug!("Interrupt eventfd of the client refused a count: {error}");
    }
}

/// Where the kernel has no asynchronous I/O: only the client's own interrupts may have to wait for it.
fn write_if_room(eventfd: BorrowedFd<'_>) -> io::Result<()> {
    let mut room = [PollFd::new(&eventfd, PollFlags::OUT)];
    if poll(&mut room, Some(&Timespec::default()))? == 1 {
        rustix::io::write(eventfd, &1_u64.to_ne_bytes())?;
    }
    Ok(())
}

/// `struct iocb` of linux/aio_abi.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Request {
    data: u64,
    /// aio_key and aio_rw_flags, in an order that depends on the machine: both 0.
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// A context for asynchronous I/O, as long as the process lives.
#[derive(Debug)]
struct Counter {
    context: c_ulong,
    /// What is read from: an eventfd of our own.
    source: OwnedFd,
}

impl Counter {
    fn new() -> Option<Self> {
        let setup = || {
            let source = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let mut context: c_ulong = 0;
            // SAFETY: io_setup writes a context to the variable, which lives until it returns.
            let result = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
            if result == 0 {
                Ok(Self { context, source })
            } else {
                Err(io::Error::last_os_error())
            }
        };
        setup()
            .inspect_err(|error| warn!("No asynchronous I/O, so interrupts are written: {error}"))
            .ok()
    }

    fn count(&self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().unsigned_abs();
        let mut request = Request {
            opcode: PREAD,
            file: number(self.source.as_fd()),
            flags: RESFD,
            eventfd: number(eventfd),
            ..Request::default()
        };
        let mut requests = [&raw mut request];
        loop {
            // SAFETY: one request, with the layout of `struct iocb`, lives until io_submit has copied it; it
            // names no buffer, and the descriptors are open.
            let submitted = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, 1, requests.as_mut_ptr())
            };
            let error = io::Error::last_os_error();
            let collected = self.collect();
            if submitted == 1 {
                return Ok(());
            }
            // Other threads' requests may fill the ring for a moment.
            if Errno::from_io_error(&error) != Some(Errno::AGAIN) || !collected {
                return Err(error);
            }
        }
    }

    /// Takes what has ended off the ring. Whether there was anything.
    fn collect(&self) -> bool {
        // `struct io_event` is four times 64 bits.
        let mut event = [0_u64; 4];
        // SAFETY: room for the one event asked for; without a minimum nothing is waited for.
        let count = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                1,
                &raw mut event,
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        count > 0
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn every_count_arrives() {
        const EACH: u64 = 20_000;
        let counted = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..EACH).for_each(|_| signal(&counted)));
            }
        });
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&counted, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 4 * EACH);
        // Filled to the brim.
        rustix::io::write(&counted, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..3 {
            signal(&counted);
        }
    }

    #[test]
    fn what_is_no_eventfd_is_left_alone() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for _ in 0..1000 {
            signal(&writer);
        }
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]), Ok(0));
    }
}
