// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests and their replies over one socket, and what becomes of the connection after a failure.
//!
//! The server answers strictly in order, so waiting for the reply before the next request costs no server
//! time; only migration data is asked for ahead, to keep the server busy while it is passed on. After a transport
//! error or a malformed reply the stream cannot be trusted any more: the socket is shut down and every later call
//! fails with [`Error::Disconnected`].

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::Error;
use crate::info::size_u32;
use crate::protocol::codec::Reader;
use crate::protocol::deframer::Frame;
use crate::protocol::extension::migration::Query;
use crate::protocol::header::{MessageType, NO_REPLY};
use crate::protocol::transport::{Receiver, Sender, TransportError, is_past};
use crate::protocol::{Command, DecodeError, Header};

/// Longest explanation that is asked for, in bytes.
const MAX_REASON: u32 = 1024;

/// A connection that is whole, or broken for good.
#[derive(Debug)]
pub(crate) struct Connection {
    receiver: Receiver,
    sender: Sender,
    next_id: u16,
    broken: bool,
    /// The server says why it refused something (`explain`).
    explain: bool,
    /// Requests sent ahead, in order.
    ahead: VecDeque<Ahead>,
    /// How long a reply may take.
    timeout: Option<Duration>,
}

/// A request whose reply nobody waits for yet.
#[derive(Debug)]
struct Ahead {
    command: Command,
    request: Header,
    /// The reply's body, once it had to be read for the sake of a later one.
    reply: Option<Result<Vec<u8>, Error>>,
}

impl Connection {
    /// `timeout` is that of the socket, too.
    pub(crate) fn new((receiver, sender): (Receiver, Sender), timeout: Option<Duration>) -> Self {
        Self {
            receiver,
            sender,
            next_id: 0,
            broken: false,
            explain: false,
            ahead: VecDeque::new(),
            timeout,
        }
    }

    /// From now on errors carry the server's explanation.
    pub(crate) fn set_explain(&mut self, explain: bool) {
        self.explain = explain;
    }

    pub(crate) fn sender(&self) -> &Sender {
        &self.sender
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Sends `parts` as one request and hands the reply's body and descriptors to `read`. An error reply is
    /// [`Error::Peer`], and whatever body a server gives it is passed over.
    pub(crate) fn call<T>(
        &mut self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        let result = self.exchange(command, parts, fds, read);
        self.explained(result)
    }

    /// As [`Self::call`], however long the reply takes.
    pub(crate) fn call_patiently<T>(
        &mut self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        let timeout = self.timeout.take();
        let result = self.call(command, parts, fds, read);
        self.timeout = timeout;
        result
    }

    /// Sends `parts` as one request whose reply is left to [`Self::next_reply`].
    pub(crate) fn send_ahead(&mut self, command: Command, parts: &[&[u8]]) -> Result<(), Error> {
        self.guarded(|this| {
            let request = this.request(command, parts);
            this.sender.send(&request, parts, &[])?;
            this.ahead.push_back(Ahead {
                command,
                request,
                reply: None,
            });
            Ok(())
        })
    }

    /// The reply to the oldest request sent ahead.
    pub(crate) fn next_reply<T>(
        &mut self,
        read: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        let result = self.guarded(|this| {
            let nothing = Error::InvalidArgument("Nothing was asked ahead");
            let first = this.ahead.pop_front().ok_or(nothing)?;
            match first.reply {
                None => this.reply(first.command, &first.request, |body, _| read(body)),
                Some(Err(error)) => Err(error),
                Some(Ok(body)) => read(&body).map_err(|source| Error::Reply {
                    command: first.command,
                    source,
                }),
            }
        });
        self.explained(result)
    }

    fn exchange<T>(
        &mut self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        self.guarded(|this| {
            let request = this.request(command, parts);
            this.sender.send(&request, parts, fds)?;
            this.settle()?;
            this.reply(command, &request, read)
        })
    }

    /// Reads the replies that come before that to a new request.
    fn settle(&mut self) -> Result<(), Error> {
        for at in 0..self.ahead.len() {
            let Some(Ahead {
                command, request, ..
            }) = self.ahead.get(at).filter(|ahead| ahead.reply.is_none())
            else {
                continue;
            };
            let (command, request) = (*command, *request);
            let reply = match self.reply(command, &request, |body, _| Ok(body.to_vec())) {
                reply @ (Ok(_) | Err(Error::Peer { .. })) => reply,
                Err(error) => return Err(error),
            };
            if let Some(ahead) = self.ahead.get_mut(at) {
                ahead.reply = Some(reply);
            }
        }
        Ok(())
    }

    /// Puts the server's words into a refusal, if it has any.
    fn explained<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        match result {
            Err(Error::Peer { command, errno, .. }) if self.explain => {
                let argsz = size_u32::<Query>() + MAX_REASON;
                let query = Query { argsz, flags: 0 };
                let parts = [query.as_bytes()];
                let reason = self.exchange(Command::Explain, &parts, &[], |body, _| {
                    let mut reader = Reader::new(body);
                    let _: Query = reader.take("explain")?;
                    Ok(words(reader.rest()))
                });
                Err(Error::Peer {
                    command,
                    errno,
                    // Without them the refusal still says more than that they were not to be had.
                    reason: reason.unwrap_or_default(),
                })
            }
            other => other,
        }
    }

    /// Sends `parts` as one request that is not answered.
    pub(crate) fn post(&mut self, command: Command, parts: &[&[u8]]) -> Result<(), Error> {
        self.guarded(|this| {
            let mut request = this.request(command, parts);
            request.flags |= NO_REPLY;
            Ok(this.sender.send(&request, parts, &[])?)
        })
    }

    /// Breaks the connection unless `exchange` ends with the stream in a known state; also if it panics.
    fn guarded<T>(
        &mut self,
        exchange: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if self.broken {
            return Err(Error::Disconnected);
        }
        self.broken = true;
        let result = exchange(self);
        self.broken = !matches!(
            result,
            Ok(_) | Err(Error::Peer { .. } | Error::InvalidArgument(_))
        );
        if self.broken {
            // Fails only if the socket is already shut down.
            let _ = self.sender.stream().shutdown(Shutdown::Both);
        }
        result
    }

    fn request(&mut self, command: Command, parts: &[&[u8]]) -> Header {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        Header::request(id, command, parts.iter().map(|part| part.len()).sum())
    }

    fn reply<T>(
        &mut self,
        expected: Command,
        request: &Header,
        read: impl FnOnce(&[u8], Vec<OwnedFd>) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        let deadline = self
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let frame = match self.receiver.receive_until(deadline) {
                // The socket has a timeout, this reply has none.
                Err(TransportError::Io(error))
                    if deadline.is_none() && error.kind() == ErrorKind::WouldBlock =>
                {
                    continue;
                }
                frame => frame?,
            };
            let (header, body, fds) = match frame {
                None => return Err(Error::Disconnected),
                Some(Frame::TooLong(header)) => {
                    return Err(Error::TooLong {
                        command: expected,
                        size: header.size,
                    });
                }
                Some(Frame::Message { header, body, fds }) => (header, body, fds),
            };
            if is_dma_request(&header) {
                // The specification lets a server ask here; this client answers on the twin socket only.
                if !header.wants_no_reply() {
                    let errno = Errno::NOTSUP.raw_os_error().unsigned_abs();
                    self.sender.send(&header.error_reply(errno), &[], &[])?;
                }
                // A server that keeps asking does not answer either.
                if is_past(deadline) {
                    return Err(Error::TimedOut);
                }
                continue;
            }
            if header.message_type() != MessageType::Reply
                || header.id != request.id
                || header.command != request.command
            {
                return Err(Error::Unexpected {
                    expected,
                    command: header.command,
                    id: header.id,
                    flags: header.flags,
                });
            }
            if let Some(errno) = header.error() {
                return Err(Error::Peer {
                    command: expected,
                    errno,
                    reason: String::new(),
                });
            }
            return read(body, fds).map_err(|source| Error::Reply {
                command: expected,
                source,
            });
        }
    }
}

/// A server's text, bounded, without anything that acts on a terminal.
fn words(text: &[u8]) -> String {
    let text = text.get(..MAX_REASON as usize).unwrap_or(text);
    let text = String::from_utf8_lossy(text);
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.collect::<String>().trim().to_owned()
}

fn is_dma_request(header: &Header) -> bool {
    header.message_type() == MessageType::Command
        && [Command::DmaRead, Command::DmaWrite]
            .map(u16::from)
            .contains(&header.command)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;

    use zerocopy::IntoBytes;

    use super::*;
    use crate::testing::{self, Message, Peer, capabilities, client, try_client};
    use crate::{Client, Options};

    fn poisoned(client: &Client) {
        for _ in 0..2 {
            assert!(matches!(client.reset(), Err(Error::Disconnected)));
            let read = client.region_read(0, 0, &mut [0]);
            assert!(matches!(read, Err(Error::Disconnected)), "{read:?}");
            let posted = client.region_write_posted(0, 0, &[0]);
            assert!(matches!(posted, Err(Error::Disconnected)), "{posted:?}");
        }
    }

    /// What a reset gives if it is answered so; the client must be of no use afterwards.
    fn fatal(answer: impl FnOnce(&Peer, &Message) + Send + 'static) -> Error {
        let (client, server) = client(capabilities(), move |peer| {
            let request = peer.expect(Command::DeviceReset);
            answer(peer, &request);
            assert!(peer.next().is_none(), "the client hangs up");
        });
        let error = client.reset().unwrap_err();
        poisoned(&client);
        drop(client);
        server.join().unwrap();
        error
    }

    fn send(peer: &Peer, header: Header, body: &[u8]) {
        peer.sender.send(&header, &[body], &[]).unwrap();
    }

    #[test]
    fn a_foreign_reply_ends_the_connection() {
        type Change = fn(&mut Header);
        let changes: [Change; 4] = [
            |header| header.id = header.id.wrapping_add(1),
            |header| header.command = Command::RegionRead.into(),
            |header| header.flags = 0,
            |header| header.flags = 7,
        ];
        for change in changes {
            let error = fatal(move |peer, request| {
                let mut header = request.header.reply(0);
                change(&mut header);
                send(peer, header, &[]);
            });
            assert!(matches!(error, Error::Unexpected { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_reply_of_the_wrong_size_ends_the_connection() {
        let error = fatal(|peer, request| send(peer, request.header.reply(4), &[0; 4]));
        assert!(matches!(error, Error::Reply { .. }), "{error:?}");
        let error = fatal(|peer, request| {
            let mut header = request.header.reply(0);
            header.size = 3;
            send(peer, header, &[]);
        });
        assert!(
            matches!(error, Error::Transport(TransportError::Frame(_))),
            "{error:?}"
        );
        let error = fatal(|peer, request| {
            let body = vec![0; 2 << 20];
            let header = request.header.reply(body.len());
            // The client may hang up before it is all sent.
            let _ = peer.sender.send(&header, &[&body], &[]);
        });
        assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
    }

    #[test]
    fn a_server_that_leaves_is_noticed() {
        let leave = |peer: &Peer, bytes: Vec<u8>| {
            peer.sender.stream().write_all(&bytes).unwrap();
            peer.sender.stream().shutdown(Shutdown::Write).unwrap();
        };
        let error = fatal(move |peer, _| leave(peer, Vec::new()));
        assert!(matches!(error, Error::Disconnected), "{error:?}");
        let error = fatal(move |peer, request| {
            leave(peer, request.header.reply(0).as_bytes()[..9].to_vec());
        });
        assert!(
            matches!(error, Error::Transport(TransportError::Truncated)),
            "{error:?}"
        );
    }

    #[test]
    fn an_error_reply_is_read_whole_whatever_its_body() {
        let (client, server) = client(capabilities(), |peer| {
            let request = peer.expect(Command::RegionRead);
            let mut header = request.header.error_reply(13);
            header.size += 80;
            send(peer, header, &[0xee; 80]);
            let request = peer.expect(Command::DeviceReset);
            peer.reply(&request, &[], &[]);
        });
        match client.region_read(0, 0, &mut [0; 64]) {
            Err(Error::Peer { command, errno, .. }) => {
                assert_eq!((command, errno), (Command::RegionRead, 13));
            }
            other => panic!("{other:?}"),
        }
        client.reset().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn descriptors_nobody_asked_for_are_closed() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (client, server) = client(capabilities(), move |peer| {
            let request = peer.expect(Command::DeviceReset);
            peer.reply(&request, &[], &[theirs.as_fd(), theirs.as_fd()]);
            let request = peer.expect(Command::DeviceReset);
            let header = request.header.error_reply(5);
            peer.sender.send(&header, &[], &[theirs.as_fd()]).unwrap();
        });
        client.reset().unwrap();
        assert!(client.reset().is_err());
        server.join().unwrap();
        // End of file only once every copy of the other end is closed; the client still lives.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        drop(client);
    }

    #[test]
    fn a_request_of_the_server_is_refused_and_the_reply_waited_for() {
        let (client, server) = client(capabilities(), |peer| {
            let reset = peer.expect(Command::DeviceReset);
            send(peer, Header::request(900, Command::DmaRead, 16), &[0; 16]);
            let answer = peer.expect(Command::DmaRead);
            assert_eq!((answer.header.id, answer.header.error()), (900, Some(95)));
            peer.reply(&reset, &[], &[]);
        });
        client.reset().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn silence_ends_with_the_timeout_or_a_disconnect() {
        let options = Options {
            timeout: Some(Duration::from_millis(20)),
            ..Options::default()
        };
        let (client, server) = try_client(options, |peer| {
            peer.negotiate(&capabilities(), &[]);
            while peer.next().is_some() {}
        });
        let client = client.unwrap();
        assert!(matches!(client.reset(), Err(Error::TimedOut)));
        poisoned(&client);
        server.join().unwrap();

        let (asked, wait) = std::sync::mpsc::channel();
        let (client, server) = testing::client(capabilities(), move |peer| {
            peer.expect(Command::DeviceReset);
            asked.send(()).unwrap();
            assert!(peer.next().is_none());
        });
        let client = Arc::new(client);
        let waiter = thread::spawn({
            let client = Arc::clone(&client);
            move || client.reset()
        });
        wait.recv().unwrap();
        client.disconnect();
        assert!(matches!(waiter.join().unwrap(), Err(Error::Disconnected)));
        poisoned(&client);
        server.join().unwrap();
    }

    /// Byte after byte, or question after question, each well within the time: none of it is an answer.
    #[test]
    fn an_answer_that_does_not_come_to_its_end_is_late() {
        type Answer = fn(&Peer, &Message) -> std::io::Result<()>;
        let drip: Answer = |peer, request| {
            let mut header = request.header.reply(0);
            header.size += 1 << 20;
            peer.sender.stream().write_all(header.as_bytes())?;
            loop {
                peer.sender.stream().write_all(&[0])?;
                thread::yield_now();
            }
        };
        let flood: Answer = |peer, _| loop {
            let mut header = Header::request(900, Command::DmaRead, 16);
            header.flags |= NO_REPLY;
            peer.sender.send(&header, &[&[0; 16]], &[])?;
        };
        for answer in [drip, flood] {
            let options = Options {
                timeout: Some(Duration::from_millis(200)),
                ..Options::default()
            };
            let (client, server) = try_client(options, move |peer| {
                peer.negotiate(&capabilities(), &[]);
                let request = peer.expect(Command::DeviceReset);
                answer(peer, &request).unwrap_err();
            });
            let client = client.unwrap();
            let error = client.reset().unwrap_err();
            assert!(matches!(error, Error::TimedOut), "{error:?}");
            poisoned(&client);
            server.join().unwrap();
        }
    }

    #[test]
    fn a_panic_within_an_exchange_breaks_the_connection() {
        let (client, server) = client(capabilities(), |peer| {
            let request = peer.expect(Command::DeviceReset);
            peer.reply(&request, &[], &[]);
            assert!(peer.next().is_none());
        });
        let panicked = thread::scope(|scope| {
            let call = || {
                client.call(Command::DeviceReset, &[], &[], |_, _| -> Result<(), _> {
                    panic!("on purpose")
                })
            };
            scope.spawn(call).join()
        });
        assert!(panicked.is_err());
        poisoned(&client);
        drop(client);
        server.join().unwrap();
    }

    #[test]
    fn many_threads_share_a_client() {
        const CALLS: u64 = 500;
        let (client, server) = client(capabilities(), |peer| {
            let mut served = 0;
            while let Some(request) = peer.next() {
                if request.header.command == u16::from(Command::RegionRead) {
                    let data = request.body[..8].to_vec();
                    peer.reply(&request, &[request.body.clone(), data].concat(), &[]);
                } else {
                    assert!(request.header.wants_no_reply());
                }
                served += 1;
            }
            served
        });
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let client = &client;
                scope.spawn(move || {
                    for call in 0..CALLS {
                        let offset = (thread << 32) + call;
                        let mut data = [0; 8];
                        client.region_read(0, offset, &mut data).unwrap();
                        assert_eq!(u64::from_ne_bytes(data), offset);
                        client.region_write_posted(0, offset, &data).unwrap();
                    }
                });
            }
        });
        drop(client);
        assert_eq!(server.join().unwrap(), 4 * 2 * CALLS);
    }
}
