// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A vfio-user client that sends whatever it is told, byte for byte, and checks nothing but the shape of replies. It
//! does its own receiving, so that a mistake in the product's transport cannot hide itself.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use vfio_user_protocol::{
    Command, HEADER_SIZE, Header, Request,
    device::DeviceInfo,
    header::{ERROR, NO_REPLY},
    region::RegionAccess,
    version::{self, Capabilities, Version},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::PATIENCE;

/// Descriptors that fit one message on Linux (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;
/// The message type of a reply, in the flags of a header.
const REPLY: u32 = 1;

/// A connection to a backend. Dropping it closes it, without a goodbye.
#[derive(Debug)]
pub struct RawClient {
    stream: UnixStream,
    next_id: u16,
}

/// A message from the backend.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: VecDeque<OwnedFd>,
}

impl RawClient {
    /// Connects and says nothing.
    ///
    /// # Panics
    /// When nobody listens.
    #[must_use]
    #[track_caller]
    pub fn connect(socket: &Path) -> Self {
        match UnixStream::connect(socket) {
            Ok(stream) => Self::over(stream),
            Err(error) => panic!("no connection to {}: {error}", socket.display()),
        }
    }

    /// Connects and agrees on a version, offering nothing.
    ///
    /// # Panics
    /// When the backend does not agree.
    #[must_use]
    #[track_caller]
    pub fn attach(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        client.negotiate(&Capabilities::default());
        client
    }

    /// Uses a stream that is connected already.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        // A hang becomes a failure.
        let _ = stream.set_read_timeout(Some(PATIENCE));
        let _ = stream.set_write_timeout(Some(PATIENCE));
        Self { stream, next_id: 0 }
    }

    /// The socket itself.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Agrees on a version, offering `offer`; what is granted, and the descriptors that came with it.
    ///
    /// # Panics
    /// When the backend does not agree.
    #[track_caller]
    pub fn negotiate(&mut self, offer: &Capabilities) -> (Capabilities, VecDeque<OwnedFd>) {
        let reply = match self.call(Command::Version, &offer.encode(Version::default()), &[]) {
            Ok(reply) => reply,
            Err(errno) => panic!("VERSION refused with errno {errno}"),
        };
        let (_, granted) = version::decode(&reply.body).expect("a VERSION reply");
        (granted, reply.fds)
    }

    /// A whole message, with an id of its own.
    pub fn message(&mut self, command: impl Into<u16>, flags: u32, body: &[u8]) -> Vec<u8> {
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header {
            id: self.next_id,
            command: command.into(),
            size: u32::try_from(HEADER_SIZE + body.len()).expect("a message of less than 4 GiB"),
            flags,
            errno: 0,
        };
        [header.as_bytes(), body].concat()
    }

    /// Sends these bytes, with descriptors on the first.
    ///
    /// # Panics
    /// When the backend is gone.
    #[track_caller]
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.try_send(bytes, fds) {
            panic!("not sent: {error}");
        }
    }

    /// Sends these bytes, with descriptors on the first; the backend may be gone.
    ///
    /// # Errors
    /// The errno of sendmsg(2).
    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL.into());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match sendmsg(
                &self.stream,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    control.clear();
                    rest = &rest[sent..];
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next message; none once the backend has closed the connection.
    ///
    /// # Panics
    /// When the backend leaves within a message, or says nothing for [`PATIENCE`].
    #[track_caller]
    pub fn receive(&self) -> Option<Message> {
        let mut bytes = [0; HEADER_SIZE];
        let mut fds = VecDeque::new();
        let mut have = 0;
        while have < HEADER_SIZE {
            match self.receive_some(&mut bytes[have..], &mut fds) {
                0 if have == 0 => return None,
                0 => panic!("the backend left within a header"),
                count => have += count,
            }
        }
        let header = Header::read_from_bytes(&bytes).expect("16 bytes are a header");
        let length = (header.size as usize)
            .checked_sub(HEADER_SIZE)
            .expect("a message has a header");
        let mut body = vec![0; length];
        if let Err(error) = (&self.stream).read_exact(&mut body) {
            panic!("the backend left within a message: {error}");
        }
        Some(Message { header, body, fds })
    }

    #[track_caller]
    fn receive_some(&self, bytes: &mut [u8], fds: &mut VecDeque<OwnedFd>) -> usize {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let received = loop {
            // A socket with a time limit is interrupted by signals that would not be noticed otherwise.
            match recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut *bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(came) = message {
                fds.extend(came);
            }
        }
        match received {
            Ok(received) => received.bytes,
            // A peer that closes before it has read everything resets the connection: closed all the same.
            Err(Errno::CONNRESET) => 0,
            Err(error) => panic!("nothing received: {error}"),
        }
    }

    /// Whether nothing has come, neither a message nor the end.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        let mut ready = [PollFd::new(&self.stream, PollFlags::IN)];
        matches!(poll(&mut ready, Some(&Timespec::default())), Ok(0))
    }

    /// One exchange.
    ///
    /// # Errors
    /// The errno of an error reply.
    ///
    /// # Panics
    /// When the reply is not one to this request, or does not come.
    #[track_caller]
    pub fn call(
        &mut self,
        command: impl Into<u16>,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Message, u32> {
        let message = self.message(command, 0, body);
        self.send(&message, fds);
        self.answer_to(&message)
    }

    /// The reply to a message that was sent.
    ///
    /// # Errors
    /// The errno of an error reply.
    ///
    /// # Panics
    /// When the next message is not a reply to `message`, or does not come.
    #[track_caller]
    pub fn answer_to(&self, message: &[u8]) -> Result<Message, u32> {
        let (request, _) = Header::read_from_prefix(message).expect("a header");
        let Some(reply) = self.receive() else {
            panic!("the backend closed the connection instead of answering {request:?}");
        };
        let header = reply.header;
        assert_eq!(
            (header.id, header.command),
            (request.id, request.command),
            "out of step"
        );
        match header.flags {
            REPLY => Ok(reply),
            flags if flags == REPLY | ERROR => {
                assert!(
                    reply.body.is_empty() && reply.fds.is_empty(),
                    "an error reply is a header: {reply:?}"
                );
                Err(header.errno)
            }
            flags => panic!("flags {flags:#x} of a reply to {request:?}"),
        }
    }

    /// One exchange of a well-formed request.
    ///
    /// # Errors
    /// The errno of an error reply.
    ///
    /// # Panics
    /// As [`RawClient::call`].
    #[track_caller]
    pub fn request(
        &mut self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Message, u32> {
        self.call(request.command(), &request.encode(), fds)
    }

    /// Sends a request that is not answered.
    ///
    /// # Panics
    /// When the backend is gone.
    #[track_caller]
    pub fn post(&mut self, request: &Request<'_>) {
        let message = self.message(request.command(), NO_REPLY, &request.encode());
        self.send(&message, &[]);
    }

    /// Reads from a region.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    pub fn read<const N: usize>(&mut self, region: u32, offset: u64) -> [u8; N] {
        let access = access(region, offset, N);
        match self.request(&Request::RegionRead(access), &[]) {
            Ok(reply) => {
                let data = reply.body.strip_prefix(access.as_bytes());
                let data = data.and_then(|data| data.try_into().ok());
                data.unwrap_or_else(|| {
                    panic!("a reply of {} bytes to {access:?}", reply.body.len())
                })
            }
            Err(errno) => panic!("{access:?} refused with errno {errno}"),
        }
    }

    /// Reads 32 bits from a region.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    pub fn read32(&mut self, region: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(region, offset))
    }

    /// Writes to a region.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    pub fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let access = access(region, offset, data.len());
        match self.request(&Request::RegionWrite(access, data), &[]) {
            Ok(reply) => assert_eq!(reply.body, access.as_bytes(), "reply to {access:?}"),
            Err(errno) => panic!("{access:?} refused with errno {errno}"),
        }
    }

    /// Writes 32 bits to a region.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    pub fn write32(&mut self, region: u32, offset: u64, value: u32) {
        self.write(region, offset, &value.to_le_bytes());
    }

    /// Shows that the stream is in step: the next message from the backend is the right answer to DEVICE_GET_INFO.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_in_step(&mut self) {
        let asked = DeviceInfo {
            argsz: 16,
            ..DeviceInfo::default()
        };
        let reply = match self.request(&Request::DeviceGetInfo(asked), &[]) {
            Ok(reply) => reply,
            Err(errno) => panic!("DEVICE_GET_INFO refused with errno {errno}"),
        };
        let info = DeviceInfo::read_from_bytes(&reply.body).expect("16 bytes");
        assert_eq!((info.num_regions, info.num_irqs), (9, 5));
    }

    /// Shows that the backend has closed the connection and says nothing more.
    ///
    /// # Panics
    /// When another message comes.
    #[track_caller]
    pub fn assert_closed(&self) {
        if let Some(message) = self.receive() {
            panic!("the connection is open: {:?}", message.header);
        }
    }
}

impl AsFd for RawClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Drop for RawClient {
    /// Closes for good: a child that another test is starting may hold a copy of the descriptor until it has executed its
    /// program.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A region access of `count` bytes.
///
/// # Panics
/// When `count` does not fit.
#[must_use]
pub fn access(region: u32, offset: u64, count: usize) -> RegionAccess {
    RegionAccess {
        offset,
        region,
        count: u32::try_from(count).expect("a count of 32 bits"),
    }
}
