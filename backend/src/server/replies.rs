// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The answers on one socket: a reply in the making, sent, or a refusal with its reason kept.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vfio_user_protocol::transport::Sender;
use vfio_user_protocol::{DecodeError, Header};

use super::refusal::Refusal;
use super::session::SessionError;
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
    /// Descriptors that go with it.
    pub(super) fds: Vec<OwnedFd>,
}

impl Reply {
    pub(super) fn clear(&mut self) {
        self.payload.clear();
        self.fds.clear();
        self.data_len = 0;
    }

    /// Room for `length` bytes of bulk data, with whatever was there before in it.
    pub(super) fn data(&mut self, length: usize) -> &mut [u8] {
        if self.data.len() < length {
            self.data.resize(length, 0);
        }
        self.data_len = length;
        &mut self.data[..length]
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

    pub(super) fn send(&self, request: &Header, reply: &Reply) -> Result<(), SessionError> {
        let Reply {
            payload,
            data,
            data_len,
            fds,
        } = reply;
        let data = &data[..*data_len];
        let header = request.reply(payload.len() + data.len());
        // Almost no reply carries a descriptor, and none more than a few.
        let mut borrowed = Vec::new();
        borrowed.extend(fds.iter().map(|fd| fd.as_fd()));
        let fds: &[BorrowedFd<'_>] = &borrowed;
        self.sender
            .send(&header, &[payload, data], fds)
            .map_err(SessionError::Send)
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
