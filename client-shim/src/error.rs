// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong, with causes chained and an errno for each.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use rustix::io::Errno;

use crate::protocol::transport::TransportError;
use crate::protocol::{Command, DecodeError};

/// Why a call failed. Only [`Error::Peer`], [`Error::InvalidArgument`], [`Error::OutOfRange`], [`Error::Map`],
/// [`Error::SharedMemory`] and [`Error::PassOn`] leave the connection usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody serves that socket.
    #[error("Cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// connect(2)'s errno.
        source: io::Error,
    },
    /// The backend process cannot be started.
    #[error("Cannot start {program}")]
    Spawn {
        /// What was to be run.
        program: String,
        /// What refused.
        source: io::Error,
    },
    /// The backend process ended before it had negotiated.
    #[error("The backend ended at once ({status})")]
    BackendEnded {
        /// How.
        status: ExitStatus,
        /// What the connection noticed.
        source: Box<Self>,
    },
    /// The server has left, or the connection was ended after an earlier error.
    #[error("Disconnected from the server")]
    Disconnected,
    /// No answer within [`crate::Options::timeout`].
    #[error("The server did not answer in time")]
    TimedOut,
    /// The connection failed.
    #[error("Connection lost")]
    Transport(#[source] TransportError),
    /// The server speaks another version.
    #[error("The server speaks version {major}.{minor}, this client 0.0")]
    Version {
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// The server refused a request. The connection goes on.
    #[error("The server refused {command:?}: {}{}", io::Error::from(peer_errno(*errno)), after_colon(reason))]
    Peer {
        /// What was refused.
        command: Command,
        /// Why, as it came; see [`Self::errno`] for one that is always valid.
        errno: u32,
        /// The server's own words, fit for a terminal; empty without [`crate::Options::explain`].
        reason: String,
    },
    /// A reply has the wrong shape.
    #[error("Malformed reply to {command:?}")]
    Reply {
        /// What it answers.
        command: Command,
        /// What is wrong.
        source: DecodeError,
    },
    /// A message came that is no answer to the request under way.
    #[error(
        "Message {command} with id {id} and flags {flags:#x} instead of the reply to {expected:?}"
    )]
    Unexpected {
        /// What was waited for.
        expected: Command,
        /// The command number that came.
        command: u16,
        /// Its id.
        id: u16,
        /// Its flags.
        flags: u32,
    },
    /// A reply is longer than any this client can have asked for.
    #[error("Reply to {command:?} of {size} bytes is too long")]
    TooLong {
        /// What it answers.
        command: Command,
        /// Its size as announced, in bytes.
        size: u32,
    },
    /// A request that cannot be sent.
    #[error("{0}")]
    InvalidArgument(&'static str),
    /// Outside the mapped areas of a region.
    #[error("{length} bytes at {offset:#x} are not mapped as one, or not aligned")]
    OutOfRange {
        /// Bytes from the start of the region.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// A region cannot be mapped.
    #[error("Cannot map the region")]
    Map(#[source] io::Error),
    /// Memory to be shared with the server for migration data cannot be had.
    #[error("Cannot make shared memory for migration data")]
    SharedMemory(#[source] io::Error),
    /// Migration data could not be passed on to where the caller wants it, or had from there.
    #[error("Cannot pass migration data on")]
    PassOn(#[source] io::Error),
}

fn after_colon(reason: &str) -> String {
    if reason.is_empty() {
        return String::new();
    }
    format!(": {reason}")
}

/// Errnos are 1 to 4095 (include/linux/err.h); anything else from a peer reads as EINVAL.
fn peer_errno(errno: u32) -> Errno {
    match i32::try_from(errno) {
        Ok(errno @ 1..=4095) => Errno::from_raw_os_error(errno),
        _ => Errno::INVAL,
    }
}

impl Error {
    /// The errno a VMM can pass on.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Connect { source, .. }
            | Self::Spawn { source, .. }
            | Self::Map(source)
            | Self::SharedMemory(source)
            | Self::PassOn(source) => {
                return source.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            }
            Self::BackendEnded { .. } | Self::Disconnected => Errno::NOTCONN,
            Self::TimedOut => Errno::TIMEDOUT,
            Self::Transport(_) => Errno::IO,
            Self::Version { .. } => Errno::PROTONOSUPPORT,
            Self::Peer { errno, .. } => peer_errno(*errno),
            Self::Reply { .. } | Self::Unexpected { .. } | Self::TooLong { .. } => Errno::PROTO,
            Self::InvalidArgument(_) => Errno::INVAL,
            Self::OutOfRange { .. } => Errno::RANGE,
        };
        errno.raw_os_error()
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Disconnected,
            io::ErrorKind::WouldBlock => Self::TimedOut,
            _ => Self::Transport(error.into()),
        }
    }
}

impl From<TransportError> for Error {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Io(error) => error.into(),
            other => Self::Transport(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_s_errno_is_shown_and_always_valid() {
        let command = Command::DmaMap;
        let peer = |errno, reason: &str| Error::Peer {
            command,
            errno,
            reason: reason.to_owned(),
        };
        let error = peer(17, "");
        assert_eq!(error.errno(), 17);
        assert_eq!(
            error.to_string(),
            "The server refused DmaMap: File exists (os error 17)"
        );
        assert_eq!(
            peer(17, "There is a map at 0x0").to_string(),
            "The server refused DmaMap: File exists (os error 17): There is a map at 0x0"
        );
        for errno in [0, 4096, u32::MAX] {
            assert_eq!(peer(errno, "").errno(), 22, "{errno}");
        }
    }
}
