// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration channel: a second socket of the client's, served by a thread of its own, so that a device
//! access is never queued behind a save.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use log::{debug, trace};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use vfio_user_protocol::Request;
use vfio_user_protocol::deframer::{Frame, FrameError};
use vfio_user_protocol::header::MessageType;
use vfio_user_protocol::transport::{Receiver, TransportError, split};
use vfio_user_protocol::{DecodeError, Header};

use super::migration::MigrationCommands;
use super::refusal::Refusal;
use super::replies::{Replies, Reply};
use super::screen::{SCREEN, is_socket};
use super::session::{MAX_MESSAGE, SessionError};
use crate::ratelimit::peer_log;
use crate::report::chain;

/// A channel being served.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Arc<UnixStream>,
    work: Arc<Mutex<Work>>,
    thread: JoinHandle<()>,
}

/// What the thread is about.
#[derive(Debug, Default)]
struct Work {
    /// Nothing more is to be carried out, whatever has come already.
    over: bool,
    /// A command is being carried out; one that panicked for good.
    busy: bool,
}

fn lock(work: &Mutex<Work>) -> MutexGuard<'_, Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Serves `commands` on the client's descriptor, which is no connection to where `main` is connected.
    pub(super) fn start(
        fd: OwnedFd,
        commands: MigrationCommands,
        main: &UnixStream,
    ) -> Result<Self, Refusal> {
        let os = |source: io::Error| Refusal::Os {
            what: "Migration channel",
            source,
        };
        check_socket(&fd)?;
        let stream = UnixStream::from(fd);
        if leads_back(&stream, main) {
            // Whoever holds the client's own end never sees the client leave.
            return Err(Refusal::Unexpected(
                "The channel is a connection to this program",
            ));
        }
        stream.set_nonblocking(false).map_err(os)?;
        let socket = Arc::new(stream.try_clone().map_err(os)?);
        let hang_up = HangUp(Arc::clone(&socket));
        let (receiver, sender) = split(stream, MAX_MESSAGE);
        let receiver = receiver.screened(SCREEN);
        let work = Arc::default();
        let server = Server {
            commands,
            work: Arc::clone(&work),
            replies: Replies::new(sender),
            reply: Reply::default(),
        };
        let thread = Builder::new()
            .name("migration".into())
            .spawn(move || {
                let _hang_up = hang_up;
                server.run(receiver);
            })
            .map_err(os)?;
        Ok(Self {
            socket,
            work,
            thread,
        })
    }

    /// Ends every wait for the client, and begins no other command. One under way goes on to its end; whether
    /// there is one.
    pub(super) fn close(&self) -> bool {
        let busy = {
            let mut work = lock(&self.work);
            work.over = true;
            work.busy
        };
        let _ = self.socket.shutdown(Shutdown::Both);
        busy
    }

    /// What closes it from another thread.
    pub(super) fn closer(&self) -> Arc<UnixStream> {
        Arc::clone(&self.socket)
    }

    /// Waits until the thread has ended.
    pub(super) fn join(self) {
        self.close();
        // A panic was reported where it happened.
        let _ = self.thread.join();
    }
}

/// Whether the socket is connected to the path that `main` was accepted at. Of sockets without a path it cannot be told.
fn leads_back(stream: &UnixStream, main: &UnixStream) -> bool {
    let (Ok(there), Ok(here)) = (stream.peer_addr(), main.local_addr()) else {
        return false;
    };
    here.as_pathname().is_some() && there.as_pathname() == here.as_pathname()
}

/// Only a stream socket can be one: reading anything else might never end.
fn check_socket(fd: &OwnedFd) -> Result<(), Refusal> {
    if is_socket(fd) && socket_type(fd) == Ok(SocketType::STREAM) {
        return Ok(());
    }
    Err(Refusal::Unexpected("The channel must be a stream socket"))
}

/// Tells the client of the thread's end, however that comes: other descriptors of the socket stay open.
struct HangUp(Arc<UnixStream>);

impl Drop for HangUp {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

struct Server {
    commands: MigrationCommands,
    work: Arc<Mutex<Work>>,
    replies: Replies,
    reply: Reply,
}

impl Server {
    fn run(mut self, mut receiver: Receiver) {
        match self.serve(&mut receiver) {
            Ok(()) => debug!("Migration channel closed"),
            Err(error) => peer_log!(Warn, "Migration channel ended: {}", chain(&error)),
        }
        let _ = self.replies.socket().shutdown(Shutdown::Both);
        receiver.drain();
    }

    fn serve(&mut self, receiver: &mut Receiver) -> Result<(), SessionError> {
        loop {
            match receiver.receive() {
                Ok(Some(Frame::Message { header, body, fds })) => {
                    trace!("Channel: {header:?}, {} descriptors", fds.len());
                    if header.message_type() == MessageType::Reply {
                        return Err(SessionError::Reply);
                    }
                    {
                        let mut work = lock(&self.work);
                        if work.over {
                            return Ok(());
                        }
                        work.busy = true;
                    }
                    self.reply.clear();
                    let done = self.dispatch(&header, body, fds);
                    lock(&self.work).busy = false;
                    match done {
                        Ok(()) if header.wants_no_reply() => {}
                        Ok(()) => self.replies.send(&header, &self.reply)?,
                        Err(refusal) => self.replies.refuse(&header, &refusal)?,
                    }
                }
                Ok(Some(Frame::TooLong(header))) => {
                    self.replies.refuse(&header, &Replies::too_long(&header))?;
                }
                Ok(None) => return Ok(()),
                Err(TransportError::Frame(FrameError::Size(header))) => {
                    // As on the main socket: where the next message begins is anybody's guess.
                    let errno = Errno::INVAL.raw_os_error().unsigned_abs();
                    let _ = self.replies.send_error(&header, errno);
                    return Err(TransportError::Frame(FrameError::Size(header)).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn dispatch(&mut self, header: &Header, body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        if header.message_type() != MessageType::Command {
            return Err(DecodeError::NotACommand(header.flags).into());
        }
        let request = Request::decode(header.command, body)?;
        let last_refusal = &self.replies.last_refusal;
        let commands = &mut self.commands;
        commands.command(request, fds, last_refusal, &mut self.reply)
    }
}
