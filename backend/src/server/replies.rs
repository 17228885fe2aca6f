// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The answers on one socket: a reply in the making, sent, or a refusal with its reason kept.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use vfio_user_protocol::transport::Sender;
use vfio_user_protocol::{DecodeError, Header};
use vm_memory::{VolatileMemoryError, WriteVolatile};

use super::refusal::Refusal;
use super::session::SessionError;
use crate::migration::buffer::{Borrowed, Room};
use crate::ratelimit::peer_log;
use crate::report::chain;

/// A reply in the making; its buffers are reused from message to message.
#[derive(Debug, Default)]
pub(super) struct Reply {
    /// Fixed structures and small variable parts.
    pub(super) payload: Vec<u8>,
    /// Bulk data that follows; the first `data_len` bytes.
    data: Vec<u8>,
    data_len: usize,
    /// What is sent instead of a part of `data`.
    borrowed: Option<Borrowed>,
    /// Descriptors that go with it.
    pub(super) fds: Vec<OwnedFd>,
}

impl Reply {
    pub(super) fn clear(&mut self) {
        self.payload.clear();
        self.fds.clear();
        self.data_len = 0;
        self.borrowed = None;
    }

    /// Room for `length` bytes of bulk data, with whatever was there before in it.
    pub(super) fn data(&mut self, length: usize) -> &mut [u8] {
        if self.data.len() < length {
            self.data.resize(length, 0);
        }
        self.data_len = length;
        &mut self.data[..length]
    }

    /// The same, for migration data.
    pub(super) fn room(&mut self, length: usize) -> Room<'_> {
        self.data(length);
        Room::Reply {
            bytes: &mut self.data[..length],
            borrowed: &mut self.borrowed,
        }
    }

    /// Keeps only the first `length` bytes of bulk data.
    pub(super) fn shorten_data(&mut self, length: usize) {
        self.data_len = self.data_len.min(length);
    }
}

/// The way back to whoever asks on a socket.
#[derive(Debug)]
pub(super) struct Replies {
    sender: Sender,
    /// The reason of the last refusal (EXPLAIN).
    pub(super) last_refusal: String,
}

impl Replies {
    pub(super) fn new(sender: Sender) -> Self {
        Self {
            sender,
            last_refusal: String::new(),
        }
    }

    /// The socket that they go to.
    pub(super) fn socket(&self) -> &UnixStream {
        self.sender.stream()
    }

    pub(super) fn send(&self, request: &Header, reply: &Reply) -> Result<(), SessionError> {
        let Reply {
            payload,
            data,
            data_len,
            borrowed,
            fds,
        } = reply;
        let data = &data[..*data_len];
        let header = request.reply(payload.len() + data.len());
        // Almost no reply carries a descriptor, and none more than a few.
        let mut passed = Vec::new();
        passed.extend(fds.iter().map(|fd| fd.as_fd()));
        let fds: &[BorrowedFd<'_>] = &passed;
        let sent = match borrowed {
            None => self.sender.send(&header, &[payload, data], fds),
            Some(borrowed) => self.send_borrowed(&header, payload, data, borrowed),
        };
        sent.map_err(SessionError::Send)
    }

    /// A message of which a part lies in memory that others may change, so that it cannot go into one sendmsg with the
    /// rest.
    fn send_borrowed(
        &self,
        header: &Header,
        payload: &[u8],
        data: &[u8],
        borrowed: &Borrowed,
    ) -> io::Result<()> {
        let lost = || io::Error::from(Errno::FAULT);
        let lent = borrowed.lent.bytes().ok_or_else(lost)?;
        let (before, rest) = data.split_at_checked(borrowed.at).ok_or_else(lost)?;
        let (_, after) = rest.split_at_checked(lent.len()).ok_or_else(lost)?;
        let mut stream = self.sender.stream().try_clone()?;
        self.sender.send(header, &[payload, before], &[])?;
        stream
            .write_all_volatile(&lent)
            .map_err(|error| match error {
                VolatileMemoryError::IOError(error) => error,
                other => io::Error::other(other),
            })?;
        stream.write_all(after)
    }

    pub(super) fn refuse(
        &mut self,
        request: &Header,
        refusal: &Refusal,
    ) -> Result<(), SessionError> {
        let errno = refusal.errno();
        let command = request.command;
        self.last_refusal = chain(refusal);
        let reason = &self.last_refusal;
        peer_log!(
            Warn,
            "Command {command} refused with errno {errno}: {reason}"
        );
        if request.wants_no_reply() {
            return Ok(());
        }
        self.send_error(request, errno).map_err(SessionError::Send)
    }

    /// An error reply that nobody will ask about.
    pub(super) fn send_error(&self, request: &Header, errno: u32) -> io::Result<()> {
        self.sender.send(&request.error_reply(errno), &[], &[])
    }

    /// A message too long to be received.
    pub(super) fn too_long(header: &Header) -> Refusal {
        DecodeError::BadValue {
            field: "header.size",
            value: header.size.into(),
        }
        .into()
    }
}
