// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where clients come from: a path to listen on, or a descriptor that listens or is connected already.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::info;
use rustix::fs::{Gid, Mode, chmod, chown};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};
use vhost::vhost_user::Listener;

/// A source of clients.
pub enum Endpoint {
    /// Accepts one client after the other.
    Listening(Listener),
    /// Is one client; when it leaves, the work is done.
    Connected(UnixStream),
}

/// Who may open the socket path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permission bits of the path.
    pub mode: u32,
    /// The group it is given to, by number.
    pub group: Option<u32>,
}

/// Why there is nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Somebody listens there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocketFile(PathBuf),
    /// The path cannot be used.
    #[error("Cannot listen on {}", .path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not open.
    #[error("Descriptor {fd} cannot be used")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptor is open, but not what is needed.
    #[error("Descriptor {0} is not a UNIX stream socket")]
    NotAUnixSocket(RawFd),
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listening(_) => "Listening",
            Self::Connected(_) => "Connected",
        })
    }
}

impl Endpoint {
    /// Listens on a path. A socket that nobody listens on any more is replaced, a live one is not.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn bind(path: &Path, options: SocketOptions) -> Result<Self, EndpointError> {
        let failed = |source: io::Error| EndpointError::Listen {
            path: path.to_owned(),
            source,
        };
        remove_stale(path)?;
        // Nobody may connect before the permissions are what they should be.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = Listener::new(path, false);
        rustix::process::umask(before);
        let listener = bound.map_err(|error| failed(io::Error::other(error)))?;
        if let Some(group) = options.group {
            chown(path, None, Some(Gid::from_raw(group))).map_err(|e| failed(e.into()))?;
        }
        chmod(path, Mode::from_raw_mode(options.mode)).map_err(|e| failed(e.into()))?;
        info!("Listening on {}", path.display());
        Ok(Self::Listening(listener))
    }

    /// Takes over a descriptor that this process was started with.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn from_descriptor(fd: RawFd) -> Result<Self, EndpointError> {
        let failed = |errno: Errno| EndpointError::Descriptor {
            fd,
            source: errno.into(),
        };
        if fd < 0 {
            return Err(failed(Errno::BADF));
        }
        // SAFETY: only borrowed for a system call that says whether it is open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(failed)?;
        let unix = socket_domain(borrowed) == Ok(AddressFamily::UNIX)
            && socket_type(borrowed) == Ok(SocketType::STREAM);
        if !unix {
            return Err(EndpointError::NotAUnixSocket(fd));
        }
        // SAFETY: open, and ours: whoever started this process handed it over by its number, and the
        // command line names it once.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        if socket_acceptconn(owned.as_fd()).map_err(failed)? {
            info!("Listening on descriptor {fd}");
            return Ok(Self::Listening(UnixListener::from(owned).into()));
        }
        let stream = UnixStream::from(owned);
        stream
            .set_nonblocking(false)
            .map_err(|source| EndpointError::Descriptor { fd, source })?;
        Ok(Self::Connected(stream))
    }
}

/// Removes a socket file whose listener is gone.
fn remove_stale(path: &Path) -> Result<(), EndpointError> {
    let failed = |source: io::Error| EndpointError::Listen {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(EndpointError::NotASocketFile(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // Connected, or a full backlog, or no permission to connect: somebody is there.
        _ => Err(EndpointError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const PRIVATE: SocketOptions = SocketOptions {
        mode: 0o600,
        group: None,
    };

    #[test]
    fn a_stale_path_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let live = Endpoint::bind(
            &path,
            SocketOptions {
                mode: 0o660,
                group: None,
            },
        )
        .unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(
            Endpoint::bind(&path, PRIVATE),
            Err(EndpointError::InUse(_))
        ));
        assert!(path.exists());
        drop(live);
        assert!(!path.exists(), "removed by its owner");
    }

    #[test]
    fn other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Endpoint::bind(&path, PRIVATE),
            Err(EndpointError::NotASocketFile(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn descriptors_are_told_apart() {
        let (one, _other) = UnixStream::pair().unwrap();
        let connected = Endpoint::from_descriptor(one.into_raw_fd()).unwrap();
        assert!(matches!(connected, Endpoint::Connected(_)));
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let listening = Endpoint::from_descriptor(listener.into_raw_fd()).unwrap();
        assert!(matches!(listening, Endpoint::Listening(_)));
        let file = fs::File::open("/dev/null").unwrap();
        let refused = Endpoint::from_descriptor(file.as_raw_fd());
        assert!(matches!(refused, Err(EndpointError::NotAUnixSocket(_))));
        assert!(file.metadata().is_ok(), "not closed");
        assert!(matches!(
            Endpoint::from_descriptor(9999),
            Err(EndpointError::Descriptor { .. })
        ));
    }
}
