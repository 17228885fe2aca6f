// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of ours to the client, on the twin socket: guest memory without a descriptor, interrupt routes.
//!
//! Never on the main socket: a client that waits there for a reply cannot answer a request.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use log::debug;
use rustix::io::Errno;
use vfio_user_protocol::deframer::Frame;
use vfio_user_protocol::dma::DmaAccess;
use vfio_user_protocol::extension::{IrqRoute, IrqRoutes};
use vfio_user_protocol::header::{HEADER_SIZE, MessageType};
use vfio_user_protocol::transport::{Receiver, Sender, split};
use vfio_user_protocol::{Command, Header};
use zerocopy::IntoBytes;

use super::screen::SCREEN;
use crate::memory::MessageDma;
use crate::ratelimit::peer_log;
use crate::routes::RouteSink;

/// The server's end of a twin socket. One request is under way at a time.
#[derive(Debug)]
pub(super) struct Twin {
    channel: Mutex<Channel>,
    /// Ends a wait for the client, from any thread.
    closer: UnixStream,
    /// Bytes of data in one message, as the client allows.
    max_data: usize,
}

#[derive(Debug)]
struct Channel {
    receiver: Receiver,
    sender: Sender,
    next_id: u16,
    broken: bool,
}

impl Twin {
    /// Takes the server's end; `max_data` bytes fit one message.
    pub(super) fn new(stream: UnixStream, max_data: usize) -> io::Result<Self> {
        let closer = stream.try_clone()?;
        let (receiver, sender) = split(stream, HEADER_SIZE + size_of::<DmaAccess>() + max_data);
        let receiver = receiver.screened(SCREEN);
        let channel = Mutex::new(Channel {
            receiver,
            sender,
            next_id: 0,
            broken: false,
        });
        Ok(Self {
            channel,
            closer,
            max_data,
        })
    }

    /// Ends every wait for the client, now and later.
    pub(super) fn close(&self) {
        let _ = self.closer.shutdown(Shutdown::Both);
    }

    /// Takes off it what the client sent last. To be called once it is closed.
    pub(super) fn drain(&self) {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.receiver.drain();
    }

    /// One request and its reply, whose body `take` looks at.
    fn call(
        &self,
        command: Command,
        parts: &[&[u8]],
        take: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if channel.broken {
            return Err(Errno::NOTCONN.into());
        }
        let result = channel.call(command, parts, take);
        // Out of step is out of step: only an answered request leaves the channel usable.
        channel.broken = matches!(result, Err(Failure::Channel(_)));
        result.map_err(|failure| match failure {
            Failure::Channel(error) => {
                peer_log!(Warn, "Twin socket given up: {error}");
                error
            }
            Failure::Peer(error) => error,
        })
    }
}

enum Failure {
    Channel(io::Error),
    Peer(io::Error),
}

impl Channel {
    fn call(
        &mut self,
        command: Command,
        parts: &[&[u8]],
        take: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.next_id = self.next_id.wrapping_add(1);
        let length = parts.iter().map(|part| part.len()).sum();
        let request = Header::request(self.next_id, command, length);
        self.sender
            .send(&request, parts, &[])
            .map_err(Failure::Channel)?;
        let frame = self
            .receiver
            .receive()
            .map_err(|e| Failure::Channel(io::Error::other(e)))?;
        let Some(Frame::Message { header, body, .. }) = frame else {
            return Err(Failure::Channel(Errno::NOTCONN.into()));
        };
        let answers = header.id == request.id && header.command == request.command;
        if !answers || header.message_type() != MessageType::Reply {
            return Err(Failure::Channel(Errno::PROTO.into()));
        }
        if let Some(errno) = header.error() {
            let errno = i32::try_from(errno)
                .ok()
                .filter(|errno| (1..4096).contains(errno));
            let error = errno.map_or(Errno::IO.into(), io::Error::from_raw_os_error);
            return Err(Failure::Peer(error));
        }
        take(body).map_err(Failure::Channel)
    }
}

impl MessageDma for Twin {
    fn read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
        let mut address = iova;
        for piece in data.chunks_mut(self.max_data) {
            let access = DmaAccess {
                address,
                count: piece.len() as u64,
            };
            self.call(Command::DmaRead, &[access.as_bytes()], |body| {
                let reply = body.strip_prefix(access.as_bytes());
                let reply = reply.filter(|data| data.len() == piece.len());
                piece.copy_from_slice(reply.ok_or(Errno::PROTO)?);
                Ok(())
            })?;
            address = address.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> io::Result<()> {
        let mut address = iova;
        for piece in data.chunks(self.max_data) {
            let access = DmaAccess {
                address,
                count: piece.len() as u64,
            };
            // Old clients answer with a shorter count: the header is what counts.
            self.call(Command::DmaWrite, &[access.as_bytes(), piece], |_| Ok(()))?;
            address = address.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }
}

impl RouteSink for Twin {
    fn routes_changed(&self, index: u32, start: u32, routes: &[IrqRoute]) {
        let fixed = IrqRoutes::new(index, start, routes.len());
        let parts = [fixed.as_bytes(), routes.as_bytes()];
        if let Err(error) = self.call(Command::IrqRoutes, &parts, |_| Ok(())) {
            debug!("Interrupt routes not taken by the client: {error}");
        }
    }
}
