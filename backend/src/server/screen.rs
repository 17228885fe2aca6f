// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which descriptors a client may pass, and how those are closed that it may not.
//!
//! Closing some descriptors takes as long as the client likes: a socket of a network that lingers, a file whose file
//! system is a process of the client's. Nobody here waits for that: such descriptors are turned away the moment they
//! arrive, and closed by threads that nobody waits for. The same goes for connections that are not clients, which may
//! have any descriptor in what they sent.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use rustix::fs::{FileType, FsWord, fstat, fstatfs};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use crate::ratelimit::peer_log;

/// `f_type` of file systems that are processes (linux/magic.h).
const FUSE_SUPER_MAGIC: FsWord = 0x6573_5546;
/// `f_type` of sockets.
const SOCKFS_MAGIC: FsWord = 0x534f_434b;
/// The most threads that close something.
const MOST: usize = 32;

static CLOSING: AtomicUsize = AtomicUsize::new(0);

/// Takes descriptors, or closes all of them if one must not be had. See [`vfio_user_protocol::transport::Screen`].
pub(super) fn screen(fds: Vec<OwnedFd>) -> Option<Vec<OwnedFd>> {
    if fds.iter().any(may_block) {
        apart(move || drop(fds));
        return None;
    }
    Some(fds)
}

/// Whether it is a socket.
pub(super) fn is_socket(fd: impl AsFd) -> bool {
    let status = fstat(fd).map(|status| FileType::from_raw_mode(status.st_mode));
    status == Ok(FileType::Socket)
}

/// Whether closing it may take long. What cannot be told may.
fn may_block(fd: &OwnedFd) -> bool {
    match fstatfs(fd).map(|file_system| file_system.f_type) {
        Ok(SOCKFS_MAGIC) => socket_domain(fd) != Ok(AddressFamily::UNIX),
        Ok(kind) => kind == FUSE_SUPER_MAGIC,
        Err(_) => true,
    }
}

/// Does what may take as long as a client likes on a thread that nobody waits for.
pub(super) fn apart(act: impl FnOnce() + Send + 'static) {
    if CLOSING.fetch_add(1, Ordering::SeqCst) >= MOST {
        CLOSING.fetch_sub(1, Ordering::SeqCst);
        peer_log!(
            Warn,
            "Too many descriptors that do not close: more are kept open"
        );
        return std::mem::forget(act);
    }
    let spawned = Builder::new().name("closing".into()).spawn(move || {
        act();
        CLOSING.fetch_sub(1, Ordering::SeqCst);
    });
    if let Err(error) = spawned {
        CLOSING.fetch_sub(1, Ordering::SeqCst);
        peer_log!(Warn, "No thread to close descriptors: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

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
    fn a_socket_that_may_linger_is_not_and_neither_is_what_came_with_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(screen(vec![listener.into(), writer.into()]).is_none());
        // Ends once the other end is closed, by whichever thread.
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0);
    }
}
