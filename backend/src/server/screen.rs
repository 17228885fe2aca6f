// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which descriptors a client may pass, and how those are closed that it may not.
//!
//! Closing some descriptors takes as long as the client likes: a socket of a network that lingers, a file whose file
//! system is a process of the client's. Nobody here waits for that: such descriptors are turned away the moment they
//! arrive, and closed by threads that nobody waits for. The same goes for connections that are not clients, which may
//! have any descriptor in what they sent. Only what kind of file a client passed may have to be asked: its own session
//! waits for that, and no longer than a second.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::Builder;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, FsWord, StatxFlags, fcntl_get_seals, fstatfs, statx};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use vfio_user_protocol::transport::Screen;

use crate::ratelimit::peer_log;

/// `f_type` of file systems that may be processes, or lie on one (linux/magic.h): FUSE, overlayfs.
const PROCESSES: [FsWord; 2] = [0x6573_5546, 0x794c_7630];
/// How long the file system of a file has to say what it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Threads that wait for whoever likes to keep them.
struct Waiting {
    count: AtomicUsize,
    most: usize,
}

/// Those that close something.
static CLOSING: Waiting = Waiting {
    count: AtomicUsize::new(0),
    most: 32,
};
/// Those that ask a file system, of what a client has passed: what others have sent keeps none of these.
static ASKING: Waiting = Waiting {
    count: AtomicUsize::new(0),
    most: 8,
};

/// How long closing a descriptor takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Closing {
    Quick,
    /// Its file system must be asked, which may take as long as somebody likes.
    Unknown,
    /// As long as somebody likes.
    Slow,
}

/// For all that is received from clients.
pub(super) const SCREEN: Screen = Screen {
    take: screen,
    dispose,
};
/// For what is received from others, whose descriptors are of no use.
pub(super) const STRANGERS: Screen = Screen {
    take: none,
    dispose,
};

/// Takes descriptors, or closes all of them if one must not be had.
fn screen(fds: Vec<OwnedFd>) -> Option<Vec<OwnedFd>> {
    match slowest(&fds) {
        Closing::Quick => return Some(fds),
        Closing::Slow => {
            apart(move || drop(fds));
            return None;
        }
        Closing::Unknown => {}
    }
    let (verdict, told) = mpsc::sync_channel(1);
    let asked = ASKING.spawn(move || {
        if fds.iter().all(lies_with_the_kernel) {
            // Who no longer waits drops them quickly, too.
            let _ = verdict.send(fds);
        } else {
            drop(verdict);
            drop(fds);
        }
    });
    if !asked {
        peer_log!(
            Warn,
            "Nobody to ask what a file is: too many have not answered"
        );
        return None;
    }
    told.recv_timeout(PATIENCE).ok()
}

fn none(fds: Vec<OwnedFd>) -> Option<Vec<OwnedFd>> {
    dispose(fds);
    Some(Vec::new())
}

/// Closes descriptors, which nobody waits for unless it is quick.
fn dispose(fds: Vec<OwnedFd>) {
    if slowest(&fds) != Closing::Quick {
        apart(move || drop(fds));
    }
}

/// Of no descriptors: quick.
fn slowest(fds: &[OwnedFd]) -> Closing {
    fds.iter().map(closing).max().unwrap_or(Closing::Quick)
}

/// Whether it is a socket. Asks no process behind a file.
pub(super) fn is_socket(fd: impl AsFd) -> bool {
    file_type(fd) == Some(FileType::Socket)
}

/// `None` if it cannot be told.
fn file_type(fd: impl AsFd) -> Option<FileType> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = statx(fd, c"", flags, StatxFlags::TYPE).ok()?;
    Some(FileType::from_raw_mode(status.stx_mode.into()))
}

/// Asks nobody but the kernel.
fn closing(fd: &OwnedFd) -> Closing {
    // Memory of any kind can be sealed, and nothing else.
    if fcntl_get_seals(fd).is_ok() {
        return Closing::Quick;
    }
    match file_type(fd) {
        Some(FileType::Socket) if socket_domain(fd) == Ok(AddressFamily::UNIX) => Closing::Quick,
        Some(FileType::Socket) => Closing::Slow,
        // Eventfds and their like are no files, and have no type.
        Some(FileType::Unknown) => Closing::Quick,
        _ => Closing::Unknown,
    }
}

/// Whether its file system is no process. Waits for that, if it is one.
fn lies_with_the_kernel(fd: &OwnedFd) -> bool {
    match fstatfs(fd).map(|file_system| file_system.f_type) {
        Ok(kind) if PROCESSES.contains(&kind) => {
            peer_log!(
                Warn,
                "A file on FUSE or an overlay ({kind:#x}) is not taken"
            );
            false
        }
        other => other.is_ok(),
    }
}

/// Does what may take as long as a client likes on a thread that nobody waits for.
pub(super) fn apart(act: impl FnOnce() + Send + 'static) {
    if !CLOSING.spawn(act) {
        peer_log!(
            Warn,
            "Too many descriptors that do not close: more are kept open"
        );
    }
}

/// Whether there is no thread left for [`apart`].
pub(super) fn is_crowded() -> bool {
    CLOSING.count.load(Ordering::SeqCst) >= CLOSING.most
}

impl Waiting {
    /// Has a thread of its own do this; if there is none to be had, it is kept and never done, for dropping it may take as
    /// long. Whether there is one.
    fn spawn(&'static self, act: impl FnOnce() + Send + 'static) -> bool {
        let act = Arc::new(Mutex::new(Some(act)));
        let taken = {
            let act = Arc::clone(&act);
            move || act.lock().ok().and_then(|mut act| act.take())
        };
        let spawned = self.count.fetch_add(1, Ordering::SeqCst) < self.most && {
            let taken = taken.clone();
            let run = move || {
                if let Some(act) = taken() {
                    act();
                }
                self.count.fetch_sub(1, Ordering::SeqCst);
            };
            Builder::new().name("closing".into()).spawn(run).is_ok()
        };
        if !spawned {
            self.count.fetch_sub(1, Ordering::SeqCst);
            std::mem::forget(taken());
        }
        spawned
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, memfd_create};

    use super::*;

    #[test]
    fn what_a_vmm_passes_is_taken() {
        let (one, other) = UnixStream::pair().unwrap();
        let fds = vec![
            memfd_create("memory", MemfdFlags::CLOEXEC).unwrap(),
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            one.into(),
            other.into(),
        ];
        assert_eq!(screen(fds).map(|fds| fds.len()), Some(4));
    }

    #[test]
    fn a_file_is_taken_where_its_system_is_no_process() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert_eq!(closing(&file), Closing::Unknown);
        let system = fstatfs(&file).unwrap().f_type;
        assert_eq!(screen(vec![file]).is_some(), !PROCESSES.contains(&system));
        dispose(vec![tempfile::tempfile().unwrap().into()]);
    }

    #[test]
    fn what_finds_no_thread_is_kept() {
        static ONE: Waiting = Waiting {
            count: AtomicUsize::new(0),
            most: 1,
        };
        let (end, wait) = mpsc::channel::<()>();
        assert!(ONE.spawn(move || {
            let _ = wait.recv();
        }));
        let (mut reader, writer) = std::io::pipe().unwrap();
        assert!(!ONE.spawn(move || drop(writer)));
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        let read = std::io::Read::read(&mut reader, &mut [0; 1]);
        assert_eq!(
            read.unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock,
            "closed where nobody may wait"
        );
        drop(end);
        while ONE.count.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
        assert!(ONE.spawn(|| ()));
    }

    #[test]
    fn a_socket_that_may_linger_is_not_and_neither_is_what_came_with_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(screen(vec![listener.into(), writer.into()]).is_none());
        // Ends once the other end is closed, by whichever thread.
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0);
    }
}
