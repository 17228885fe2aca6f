// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages over a connected UNIX stream socket: one recvmsg and one sendmsg per exchange.
//!
//! Descriptors arrive close-on-exec and are owned from the first moment, so that no error path leaks one.
//! The socket is used blocking; another thread ends a wait with [`UnixStream::shutdown`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::IntoBytes;

use crate::deframer::{Deframer, Frame, FrameError, MAX_FDS};
use crate::header::Header;

/// Parts of a message after its header: a fixed structure and data.
const MAX_PARTS: usize = 3;

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer left in the middle of a message.
    #[error("Peer disconnected within a message")]
    Truncated,
    /// Descriptors were lost because this process has no room for more.
    #[error("Descriptors lost on receipt (too many open files)")]
    DescriptorsLost,
    /// A descriptor of a kind that nobody may pass.
    #[error("A descriptor was passed of a kind that is not taken")]
    DescriptorRefused,
    /// The stream cannot be continued.
    #[error("Malformed stream")]
    Frame(#[from] FrameError),
    /// The operating system refused.
    #[error("Socket error")]
    Io(#[from] io::Error),
}

/// Looks at descriptors the moment they arrive, before anything else may happen to them.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Those that are taken, or `None` once it has disposed of them.
    pub take: fn(Vec<OwnedFd>) -> Option<Vec<OwnedFd>>,
    /// Disposes of those that nobody wants any more.
    pub dispose: fn(Vec<OwnedFd>),
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<UnixStream>,
    deframer: Deframer,
    screen: Screen,
}

/// The sending half. Cheap to clone; each [`Self::send`] is whole before another may begin only if the
/// caller sees to it.
#[derive(Clone, Debug)]
pub struct Sender {
    stream: Arc<UnixStream>,
}

/// Both halves of a connection whose messages are at most `max_message` bytes, header included.
#[must_use]
pub fn split(stream: UnixStream, max_message: usize) -> (Receiver, Sender) {
    let stream = Arc::new(stream);
    let deframer = Deframer::new(max_message);
    (
        Receiver {
            stream: Arc::clone(&stream),
            deframer,
            screen: Screen {
                take: Some,
                dispose: drop,
            },
        },
        Sender { stream },
    )
}

/// Whether it is later than that.
#[must_use]
pub fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

impl Receiver {
    /// The same, with descriptors looked at by `screen`; one that it refuses ends the connection.
    #[must_use]
    pub fn screened(self, screen: Screen) -> Self {
        Self { screen, ..self }
    }

    /// Takes what is unread off a socket that was shut down: closing the socket would close the descriptors in it.
    pub fn drain(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut room);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut buffers = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg(&*self.stream, &mut buffers, &mut control, flags);
            (self.screen.dispose)(descriptors(&mut control));
            match received {
                Ok(received) if received.bytes > 0 => {}
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// Waits for the next message; `None` once the peer has left between messages.
    ///
    /// # Errors
    /// [`TransportError`]: the connection is over.
    pub fn receive(&mut self) -> Result<Option<Frame<'_>>, TransportError> {
        self.receive_until(None)
    }

    /// As [`Self::receive`], for a socket with a timeout, which alone would begin anew with every byte: a message that
    /// is not whole by the deadline is late, too.
    ///
    /// # Errors
    /// As [`Self::receive`]; EAGAIN when it is late.
    pub fn receive_until(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Frame<'_>>, TransportError> {
        // Asked apart from taking it, for the borrow checker's sake.
        while !self.deframer.is_ready()? {
            if !self.fill(deadline)? {
                return Ok(None);
            }
            if is_past(deadline) && !self.deframer.is_ready()? {
                return Err(io::Error::from(Errno::AGAIN).into());
            }
        }
        Ok(self.deframer.next_frame()?)
    }

    /// One recvmsg. False at the end of the stream.
    fn fill(&mut self, deadline: Option<Instant>) -> Result<bool, TransportError> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut room);
        let received = loop {
            let mut buffers = [IoSliceMut::new(self.deframer.space())];
            match recvmsg(
                &*self.stream,
                &mut buffers,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(Errno::INTR) if !is_past(deadline) => {}
                Err(Errno::INTR) => return Err(io::Error::from(Errno::AGAIN).into()),
                // A peer that closes with unread data resets the connection: an end like any other.
                Err(Errno::CONNRESET) => return self.ended(),
                other => break other.map_err(io::Error::from)?,
            }
        };
        let mut fds = descriptors(&mut control);
        if !fds.is_empty() {
            fds = (self.screen.take)(fds).ok_or(TransportError::DescriptorRefused)?;
        }
        self.deframer.received(received.bytes, fds)?;
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(TransportError::DescriptorsLost);
        }
        if received.bytes == 0 {
            self.ended()
        } else {
            Ok(true)
        }
    }

    fn ended(&self) -> Result<bool, TransportError> {
        if self.deframer.is_empty() {
            Ok(false)
        } else {
            Err(TransportError::Truncated)
        }
    }
}

/// What came with a message; nothing is allocated where nothing did.
fn descriptors(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    rights.flatten().collect()
}

impl Sender {
    /// Sends one message: header, then `parts` (three at the most) one after the other, with descriptors on
    /// its first byte. One sendmsg unless the socket takes less.
    ///
    /// # Errors
    /// The errno of sendmsg(2); the connection is then over.
    pub fn send(&self, header: &Header, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); 1 + MAX_PARTS];
        slices[0] = IoSlice::new(header.as_bytes());
        if parts.len() > MAX_PARTS {
            return Err(Errno::INVAL.into());
        }
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        let mut rest = &mut slices[..=parts.len()];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::INVAL.into());
        }
        while !rest.is_empty() {
            match sendmsg(&*self.stream, rest, &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    control.clear();
                    IoSlice::advance_slices(&mut rest, sent);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The socket, for its options and for ending waits on it.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::thread;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;
    use crate::header::Command;

    const MAX: usize = 1 << 20;

    fn pair() -> (UnixStream, Receiver, Sender) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (receiver, sender) = split(ours, MAX);
        (theirs, receiver, sender)
    }

    #[test]
    fn a_large_message_arrives_whole_with_its_descriptors_close_on_exec() {
        let (theirs, mut receiver, _) = pair();
        let (_, sender) = split(theirs, MAX);
        let data = vec![0x5a; MAX - 16];
        let file = File::open("/dev/null").unwrap();
        let sent = data.clone();
        let writer = thread::spawn(move || {
            let header = Header::request(3, Command::RegionWrite, sent.len());
            sender
                .send(
                    &header,
                    &[&sent[..7], &sent[7..]],
                    &[file.as_fd(), file.as_fd()],
                )
                .unwrap();
        });
        match receiver.receive().unwrap() {
            Some(Frame::Message { header, body, fds }) => {
                assert_eq!(header.id, 3);
                assert!(body == data);
                assert_eq!(fds.len(), 2);
                for fd in &fds {
                    assert!(
                        fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC),
                        "{fd:?}"
                    );
                }
            }
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
        assert!(
            receiver.receive().unwrap().is_none(),
            "the peer left between messages"
        );
    }

    #[test]
    fn a_message_byte_by_byte_is_a_message() {
        let (mut theirs, mut receiver, _) = pair();
        let header = Header::request(9, Command::RegionRead, 3);
        let writer = thread::spawn(move || {
            for byte in [header.as_bytes(), b"abc"].concat() {
                theirs.write_all(&[byte]).unwrap();
            }
        });
        match receiver.receive().unwrap() {
            Some(Frame::Message { header, body, .. }) => {
                assert_eq!((header.id, body), (9, &b"abc"[..]))
            }
            other => panic!("{other:?}"),
        }
        writer.join().unwrap();
    }

    #[test]
    fn leaving_within_a_message_is_an_error() {
        let (mut theirs, mut receiver, _) = pair();
        theirs.write_all(&[0; 5]).unwrap();
        drop(theirs);
        assert!(matches!(receiver.receive(), Err(TransportError::Truncated)));
    }

    #[test]
    fn shutdown_from_another_thread_ends_the_wait() {
        let (_theirs, mut receiver, sender) = pair();
        let waiter = thread::spawn(move || receiver.receive().unwrap().is_none());
        sender.stream().shutdown(std::net::Shutdown::Both).unwrap();
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn an_error_leaks_no_descriptors() {
        let (theirs, mut receiver, _) = pair();
        let (_, sender) = split(theirs, MAX);
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let bad = Header {
            size: 3,
            ..Header::default()
        };
        sender.send(&bad, &[], &[writer.as_fd(); 40]).unwrap();
        drop(writer);
        assert!(matches!(receiver.receive(), Err(TransportError::Frame(_))));
        drop(receiver);
        // End of file only once every copy of the writing end is closed.
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
    }
}
