// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connection to one device: its beginning, its end, and what all calls share.

use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use crate::connection::Connection;
use crate::migration::Link;
use crate::negotiation::negotiate;
use crate::protocol::transport::{self, Sender};
use crate::protocol::{Command, DecodeError, HEADER_SIZE};
use crate::twin::Twin;
use crate::{Error, Negotiated, Options};

/// The longest reply payload that is ever asked for beside data transfers, in bytes.
pub(crate) const MAX_ARGSZ: u32 = 64 * 1024;
/// The longest fixed part before the data of a reply, in bytes: that of a DMA_LOGGING_REPORT.
const REPLY_FIXED_PART: usize = 32;
/// The same of a request on the twin socket: that of a DMA_WRITE.
const TWIN_FIXED_PART: usize = 16;

/// A connection to one device. Every call may be made from any thread: a mutex is held from a request to
/// its reply, which costs nothing as servers answer strictly in order.
///
/// Dropping it disconnects.
#[derive(Debug)]
pub struct Client {
    connection: Arc<Mutex<Connection>>,
    /// For ending a wait from outside the mutex.
    sender: Sender,
    negotiated: Negotiated,
    twin: Option<Twin>,
    /// Where migration goes, once it was asked for.
    link: Mutex<Option<Arc<Link>>>,
    /// What [`Options`] said, and the longest message from that.
    timeout: Option<Duration>,
    max_message: usize,
}

impl Client {
    /// Connects to the server listening at `path` and negotiates.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::TimedOut`], or as [`Self::from_stream`].
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        let path = path.as_ref();
        let stream = connect(path, options.timeout).map_err(|errno| match errno {
            // The server has not taken the clients before this one.
            Errno::AGAIN => Error::TimedOut,
            errno => Error::Connect {
                path: path.to_owned(),
                source: errno.into(),
            },
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
        let longest = max_message + REPLY_FIXED_PART;
        let mut connection = Connection::new(transport::split(stream, longest), options.timeout);
        let (negotiated, twin_end) = negotiate(&mut connection, &options)?;
        connection.set_explain(negotiated.explain);
        let sender = connection.sender().clone();
        let twin = match twin_end.zip(options.callbacks.clone()) {
            None => None,
            Some((fd, callbacks)) => {
                let longest = max_message + TWIN_FIXED_PART;
                let halves = transport::split(UnixStream::from(fd), longest);
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
            connection: Arc::new(Mutex::new(connection)),
            sender,
            negotiated,
            twin,
            link: Mutex::new(None),
            timeout: options.timeout,
            max_message: longest,
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
        if let Some(link) = lock(&self.link).as_ref() {
            link.disconnect();
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
        lock(&self.connection)
    }

    /// Where migration goes; opened at the first call.
    pub(crate) fn link(&self) -> Result<Arc<Link>, Error> {
        let mut link = lock(&self.link);
        if let Some(link) = link.as_ref() {
            return Ok(Arc::clone(link));
        }
        let main = Arc::clone(&self.connection);
        let opened = Link::open(main, &self.negotiated, self.timeout, self.max_message)?;
        Ok(Arc::clone(link.insert(Arc::new(opened))))
    }
}

/// connect(2), which for a UNIX socket waits as long as a send may.
fn connect(path: &Path, timeout: Option<Duration>) -> Result<UnixStream, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let kind = SocketType::STREAM;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, timeout)?;
    retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket.into())
}

/// Takes a mutex of this crate: whatever panicked under one left the connection marked as broken.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Client {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// The longest message taken but for its fixed part, in bytes.
fn max_message(options: &Options) -> usize {
    let payload = options.transfer_limit().max(MAX_ARGSZ);
    HEADER_SIZE + usize::try_from(payload).unwrap_or(usize::MAX / 2)
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::Header;
    use crate::protocol::version::Capabilities;

    /// A server that accepts nobody, and whose queue is full.
    #[test]
    fn a_server_that_takes_no_clients_is_not_waited_for_longer_than_the_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let options = || Options {
            timeout: Some(Duration::from_millis(20)),
            ..Options::default()
        };
        let timeout = options().timeout;
        let mut queued = Vec::new();
        while let Ok(stream) = connect(&path, timeout) {
            queued.push(stream);
        }
        let error = Client::connect(&path, options()).unwrap_err();
        assert!(matches!(error, Error::TimedOut), "{error:?}");
    }

    type Call = fn(&Client);

    /// Everything that reads a reply.
    const CALLS: [(Command, Call); 6] = [
        (Command::DeviceGetInfo, |client| drop(client.device_info())),
        (Command::DeviceGetRegionInfo, |client| {
            if let Ok(region) = client.region_info(0) {
                let _ = region.map();
            }
        }),
        (Command::DeviceGetIrqInfo, |client| drop(client.irq_info(0))),
        (Command::DeviceGetRegionIoFds, |client| {
            drop(client.region_io_fds(0))
        }),
        (Command::RegionRead, |client| {
            drop(client.region_read(0, 0, &mut [0; 8]))
        }),
        (Command::DeviceFeature, |client| {
            drop(client.feature_get(1, &[]))
        }),
    ];

    /// Replies in advance: the client reads them once it has asked.
    fn answer_in_advance(sender: &Sender, first_id: u16, commands: &[Command], body: &[u8]) {
        let file = File::open("/dev/zero").unwrap();
        for (id, command) in (first_id..).zip(commands) {
            let reply = Header::request(id, *command, 0).reply(body.len());
            sender.send(&reply, &[body], &[file.as_fd()]).unwrap();
        }
        sender.stream().shutdown(Shutdown::Write).unwrap();
    }

    fn body() -> impl Strategy<Value = Vec<u8>> {
        // A plausible argsz and flags in front reach further than noise.
        let words = (
            0_u32..200,
            0_u32..16,
            prop::collection::vec(0_u32..100, 0..30),
        );
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..120),
            words.prop_map(|(argsz, flags, rest)| {
                let words = [vec![argsz, flags], rest].concat();
                words.iter().flat_map(|word| word.to_ne_bytes()).collect()
            }),
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_server_answers_nothing_panics_or_hangs(body in body(), call in 0..CALLS.len()) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (_, sender) = transport::split(theirs, 4096);
            let version = Capabilities::default().encode(Default::default());
            let reply = Header::request(0, Command::Version, 0).reply(version.len());
            sender.send(&reply, &[&version], &[]).unwrap();
            let client = Client::from_stream(ours, Options::default()).unwrap();
            let (command, call) = CALLS[call];
            // Region I/O descriptors take a question about the region first.
            let commands = match command {
                Command::DeviceGetRegionIoFds => [Command::DeviceGetRegionInfo, command, command],
                other => [other; 3],
            };
            answer_in_advance(&sender, 1, &commands, &body);
            call(&client);
        }

        #[test]
        fn whatever_a_server_says_of_itself_nothing_panics_or_hangs(body in body()) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (_, sender) = transport::split(theirs, 4096);
            answer_in_advance(&sender, 0, &[Command::Version], &body);
            drop(Client::from_stream(ours, Options::default()));
        }
    }
}
