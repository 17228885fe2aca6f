// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scripted server at the other end of a socket pair, for the tests of this crate.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use crate::protocol::deframer::Frame;
use crate::protocol::transport::{self, Receiver, Sender};
use crate::protocol::version::{self, Capabilities, Version};
use crate::protocol::{Command, Header};
use crate::{Client, Error, Options};

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct Peer {
    receiver: Receiver,
    pub(crate) sender: Sender,
}

impl Peer {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (receiver, sender) = transport::split(stream, 4 << 20);
        Self { receiver, sender }
    }

    /// The next message; `None` once the other end has left.
    pub(crate) fn next(&mut self) -> Option<Message> {
        match self.receiver.receive().unwrap()? {
            Frame::Message { header, body, fds } => Some(Message {
                header,
                body: body.to_vec(),
                fds,
            }),
            Frame::TooLong(header) => panic!("{header:?}"),
        }
    }

    pub(crate) fn expect(&mut self, command: Command) -> Message {
        let message = self.next().unwrap();
        assert_eq!(message.header.command, u16::from(command));
        message
    }

    pub(crate) fn reply(&self, request: &Message, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.sender
            .send(&request.header.reply(body.len()), &[body], fds)
            .unwrap();
    }

    /// Answers VERSION with what `capabilities` and the offer have in common, and these descriptors.
    pub(crate) fn negotiate(&mut self, capabilities: &Capabilities, fds: &[BorrowedFd<'_>]) {
        let request = self.expect(Command::Version);
        let (_, offer) = version::decode(&request.body).unwrap();
        let answer = capabilities.answer(&offer).unwrap();
        self.reply(&request, &answer.encode(Version::default()), fds);
    }
}

/// What a scripted server says of itself: everything, with small limits.
pub(crate) fn capabilities() -> Capabilities {
    Capabilities {
        max_msg_fds: Some(4),
        max_data_xfer_size: Some(64),
        write_multiple: Some(true),
        ..Capabilities::default()
    }
}

/// A client and the thread of its server, which runs `script` once it has negotiated.
pub(crate) fn client<T: Send + 'static>(
    capabilities: Capabilities,
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (Client, JoinHandle<T>) {
    let (client, server) = try_client(Options::default(), move |peer| {
        peer.negotiate(&capabilities, &[]);
        script(peer)
    });
    (client.unwrap(), server)
}

/// As [`client()`], with the script from before the negotiation.
pub(crate) fn try_client<T: Send + 'static>(
    options: Options,
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (Result<Client, Error>, JoinHandle<T>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || script(&mut Peer::new(theirs)));
    (Client::from_stream(ours, options), server)
}

/// The little-endian word at `at` of a body.
pub(crate) fn word(body: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(body[at..at + 4].try_into().unwrap())
}
