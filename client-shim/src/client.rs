// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to one device: its beginning, its end, and what all calls share.

use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::connection::Connection;
use crate::negotiation::negotiate;
use crate::protocol::transport::{self, Sender};
use crate::protocol::{Command, DecodeError, HEADER_SIZE};
use crate::twin::Twin;
use crate::{Error, Negotiated, Options};

/// The longest reply payload that is ever asked for beside data transfers, in bytes.
pub(crate) const MAX_ARGSZ: u32 = 64 * 1024;
/// The longest fixed part before the data of a transfer, in bytes.
const MAX_FIXED_PART: usize = 16;

/// A connection to one device. Every call may be made from any thread: a mutex is held from a request to
/// its reply, which costs nothing as servers answer strictly in order.
///
/// Dropping it disconnects.
#[derive(Debug)]
pub struct Client {
    connection: Mutex<Connection>,
    /// For ending a wait from outside the mutex.
    sender: Sender,
    negotiated: Negotiated,
    twin: Option<Twin>,
}

impl Client {
    /// Connects to the server listening at `path` and negotiates.
    ///
    /// # Errors
    /// [`Error::Connect`], or as [`Self::from_stream`].
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::from_stream(stream, options)
    }

    /// Negotiates over a connected socket.
    ///
    /// # Errors
    /// [`Error::Peer`] if the server refuses the offer, [`Error::Version`] and [`Error::Reply`] if its
    /// answer cannot be accepted, and what a lost connection gives.
    pub fn from_stream(stream: UnixStream, options: Options) -> Result<Self, Error> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(options.timeout)?;
        stream.set_write_timeout(options.timeout)?;
        let max_message = max_message(&options);
        let mut connection = Connection::new(transport::split(stream, max_message));
        let (negotiated, twin_end) = negotiate(&mut connection, &options)?;
        let sender = connection.sender().clone();
        let twin = match twin_end.zip(options.callbacks.clone()) {
            None => None,
            Some((fd, callbacks)) => {
                let halves = transport::split(UnixStream::from(fd), max_message);
                let limit = options.transfer_limit();
                let routes = negotiated.irq_routes;
                Some(Twin::start(
                    halves,
                    sender.clone(),
                    callbacks,
                    limit,
                    routes,
                )?)
            }
        };
        Ok(Self {
            connection: Mutex::new(connection),
            sender,
            negotiated,
            twin,
        })
    }

    /// What was agreed on at the start.
    #[must_use]
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Ends the connection now, from any thread; a call that waits returns [`Error::Disconnected`], as does
    /// every later one.
    pub fn disconnect(&self) {
        // Fails only if the socket is already shut down.
        let _ = self.sender.stream().shutdown(Shutdown::Both);
        if let Some(twin) = &self.twin {
            twin.disconnect();
        }
    }

    /// Resets the device. How long that takes is up to it.
    ///
    /// # Errors
    /// [`Error::Peer`] and what a lost connection gives.
    pub fn reset(&self) -> Result<(), Error> {
        self.call(Command::DeviceReset, &[], &[], |body, _| expect_empty(body))
    }

    pub(crate) fn call<T>(
        &self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        self.connection().call(command, parts, fds, read)
    }

    /// For several messages that belong together.
    pub(crate) fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic within an exchange left the connection marked as broken.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// The longest message taken, in bytes.
fn max_message(options: &Options) -> usize {
    let payload = options.transfer_limit().max(MAX_ARGSZ);
    HEADER_SIZE + MAX_FIXED_PART + usize::try_from(payload).unwrap_or(usize::MAX / 2)
}

/// Refuses a body where the reply is a header only.
pub(crate) fn expect_empty(body: &[u8]) -> Result<(), DecodeError> {
    expect_length("reply", body.len(), 0)
}

/// Refuses a length other than the one expected.
pub(crate) fn expect_length(
    field: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), DecodeError> {
    if found == expected {
        return Ok(());
    }
    Err(DecodeError::LengthMismatch {
        field,
        announced: u64::try_from(expected).unwrap_or(u64::MAX),
        found: u64::try_from(found).unwrap_or(u64::MAX),
    })
}
