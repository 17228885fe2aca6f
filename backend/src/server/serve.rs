// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The main loop: one client at a time, others told so, signals, a clean end.
//!
//! The session runs on its own thread, blocked in receive; this loop sleeps in epoll. Neither wakes while
//! a guest uses what is mapped.
//!
//! Who connects is a client from its first message on: until then it keeps nobody else out. One that
//! speaks while another is attached hears EBUSY, but if that other has left already, and only its
//! clearing away is not done, the newcomer waits for it.
//!
//! A session whose client has left may be kept by a driver that does not return: that is not waited for long,
//! but the device reset from here.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use signal_hook::consts::{SIGINT, SIGTERM};
use vfio_user_protocol::deframer::Frame;
use vfio_user_protocol::header::HEADER_SIZE;
use vfio_user_protocol::transport::split;
use vhost::vhost_user::Listener;

use super::endpoint::Endpoint;
use super::screen::{self, STRANGERS, apart};
use super::session::{Closer, Session, SessionError};
use crate::device;
use crate::function::Function;
use crate::poller::Poller;
use crate::ratelimit::peer_log;
use crate::report::chain;

const LISTENER: u64 = 0;
const SIGNAL: u64 = 1;
const FINISHED: u64 = 2;
const RELEASE: u64 = 3;
const HANGUP: u64 = 4;
/// Tokens from here on are connections that have not become sessions.
const WAITING: u64 = 16;
/// How many of those are kept; one more, and the oldest is closed.
const MAX_WAITING: usize = 8;

/// How long nobody is accepted once one could not be.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a session may go on whose client has left, before a driver is held to keep it.
const DRIVER_PATIENCE: Duration = Duration::from_secs(5);

/// How often the device is reset for that.
const MOST_RESETS: u32 = 3;

/// How clients are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Reset the device when a client leaves.
    pub reset_on_disconnect: bool,
    /// User ids that may connect; empty for anybody who can open the socket.
    pub allowed_uids: Vec<u32>,
}

/// Why serving ended with a failure.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The loop could not be set up or continued.
    #[error("Main loop")]
    Loop(#[source] io::Error),
    /// The device could not be brought to rest after a client. Nobody may be served what it left.
    #[error("Device not reset")]
    Reset(#[source] device::Error),
    /// A session whose client has left does not end. Only the end of the process frees what holds it.
    #[error(
        "The session of a client that has left does not end, though the device was reset {MOST_RESETS} times"
    )]
    Stuck,
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self::Loop(error)
    }
}

impl From<Errno> for ServeError {
    fn from(errno: Errno) -> Self {
        Self::Loop(errno.into())
    }
}

/// SIGTERM and SIGINT, caught. To be made before there is a socket path, which dying would leave behind.
#[derive(Debug)]
pub struct Signals(UnixStream);

impl Signals {
    /// Catches them from now on.
    ///
    /// # Errors
    /// The errno of sigaction(2) or socketpair(2).
    pub fn catch() -> Result<Self, ServeError> {
        let (caught, raised) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            signal_hook::low_level::pipe::register(signal, raised.try_clone()?)?;
        }
        Ok(Self(caught))
    }
}

/// Serves clients until SIGTERM or SIGINT, until the device is wanted back, or, if the endpoint is one
/// client, until it leaves.
///
/// # Errors
/// [`ServeError`].
pub fn serve(
    endpoint: Endpoint,
    signals: &Signals,
    function: &Arc<Function>,
    options: &ServeOptions,
) -> Result<(), ServeError> {
    let poller = Poller::new()?;
    poller.add(signals.0.as_fd(), SIGNAL)?;
    let finished = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    poller.add(finished.as_fd(), FINISHED)?;
    if let Some(request) = function.device().release_request() {
        poller.add(request, RELEASE)?;
    }
    let mut server = Server {
        function,
        options,
        poller,
        finished,
        session: None,
        waiting: VecDeque::with_capacity(MAX_WAITING),
        next_token: WAITING,
        paused: None,
    };
    let served = server.run(endpoint);
    let ended = server.end_session();
    // Whatever the clients wanted kept, nothing of theirs runs on without this process.
    let rested = function.disconnect(true).map_err(ServeError::Reset);
    served.and(ended).and(rested)
}

struct Server<'a> {
    function: &'a Arc<Function>,
    options: &'a ServeOptions,
    poller: Poller,
    /// Counts when the session's thread ends.
    finished: Arc<OwnedFd>,
    session: Option<Running>,
    waiting: VecDeque<Waiting>,
    next_token: u64,
    /// Until when nobody is accepted, as one more could not be served or sent away.
    paused: Option<Instant>,
}

/// The session and its thread.
struct Running {
    closer: Closer,
    thread: JoinHandle<Result<(), SessionError>>,
    /// When it must have ended, as its client has left.
    deadline: Option<Instant>,
    /// How often the device was reset so that it does.
    resets: u32,
}

impl Running {
    /// Its client is served no more; what is left is to clear away after it.
    fn is_ending(&self) -> bool {
        self.thread.is_finished() || self.closer.client_has_left()
    }

    /// Its client is said to have left: it must end soon. What is said may be of the client before.
    fn hung_up(&mut self) {
        if self.closer.client_has_left() {
            self.deadline = Some(Instant::now() + DRIVER_PATIENCE);
        }
    }

    /// Frees it from a driver that does not return. May be needed again, if another follows.
    ///
    /// # Errors
    /// [`ServeError::Stuck`]: that was tried often enough.
    fn free(&mut self, function: &Function) -> Result<(), ServeError> {
        if self.thread.is_finished() || function.takes_its_time() {
            return Ok(());
        }
        let settled = !self.closer.close();
        if self.resets >= MOST_RESETS {
            return Err(ServeError::Stuck);
        }
        self.resets += 1;
        if settled {
            return Ok(());
        }
        peer_log!(
            Warn,
            "The driver does not return, and its client has left: the device is reset"
        );
        if let Err(error) = function.interrupt() {
            warn!("The driver was not made to return: {}", chain(&error));
        }
        Ok(())
    }
}

/// A connection that is not a session yet.
struct Waiting {
    token: u64,
    stream: UnixStream,
    /// It has spoken, and is next once the session of a client that has left is cleared away. (Then it is
    /// not with the poller, which would report it again and again.)
    spoken: bool,
}

impl Server<'_> {
    fn run(&mut self, endpoint: Endpoint) -> Result<(), ServeError> {
        let listener = match endpoint {
            Endpoint::Connected(stream) => {
                self.attach(stream)?;
                None
            }
            Endpoint::Listening(listener) => {
                listener.set_nonblocking(true).map_err(io::Error::other)?;
                self.poller.add(borrow(&listener), LISTENER)?;
                Some(listener)
            }
        };
        loop {
            let mut tokens = Vec::new();
            let deadline = self.session.as_ref().and_then(|session| session.deadline);
            let deadline = deadline.into_iter().chain(self.paused).min();
            let patience = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(patience, |token| tokens.push(token))?;
            self.free_session()?;
            if let Some(listener) = &listener {
                self.go_on_accepting(listener)?;
            }
            for token in tokens {
                match (token, &listener) {
                    (SIGNAL, _) => {
                        info!("Ending on a signal");
                        return Ok(());
                    }
                    (RELEASE, _) => {
                        // The kernel waits, and asks again and again, until the device is closed.
                        warn!("The kernel wants the device back: ending");
                        return Ok(());
                    }
                    (HANGUP, _) => {
                        if let Some(session) = &mut self.session {
                            session.hung_up();
                        }
                    }
                    (FINISHED, _) => {
                        self.end_session()?;
                        if listener.is_none() {
                            return Ok(());
                        }
                        self.attach_next()?;
                    }
                    (LISTENER, Some(listener)) => self.accept(listener)?,
                    (other, _) => self.first_message(other)?,
                }
            }
        }
    }

    /// Accepts nobody for a while: the listener would be reported again and again.
    fn pause(&mut self, listener: &Listener) -> io::Result<()> {
        self.paused = Some(Instant::now() + PAUSE);
        self.poller.remove(borrow(listener))
    }

    fn go_on_accepting(&mut self, listener: &Listener) -> io::Result<()> {
        if self
            .paused
            .take_if(|until| *until <= Instant::now())
            .is_some()
        {
            self.poller.add(borrow(listener), LISTENER)?;
        }
        Ok(())
    }

    fn accept(&mut self, listener: &Listener) -> io::Result<()> {
        if screen::is_crowded() {
            peer_log!(
                Warn,
                "Nobody is accepted: too many descriptors that others sent do not close"
            );
            return self.pause(listener);
        }
        match listener.accept() {
            Ok(Some(stream)) => self.accepted(stream),
            Ok(None) => {}
            Err(error) => {
                peer_log!(Warn, "A client could not be accepted: {error}");
                self.pause(listener)?;
            }
        }
        Ok(())
    }

    fn accepted(&mut self, stream: UnixStream) {
        let allowed = &self.options.allowed_uids;
        match socket_peercred(&stream) {
            Ok(peer) if allowed.is_empty() || allowed.contains(&peer.uid.as_raw()) => {
                debug!(
                    "Connection from process {:?}, user {:?}",
                    peer.pid, peer.uid
                );
            }
            Ok(peer) => {
                peer_log!(Warn, "Connection of user {} refused", peer.uid.as_raw());
                apart(move || drop(stream));
                return;
            }
            Err(error) => {
                peer_log!(Warn, "Connection refused: its user is not known: {error}");
                return;
            }
        }
        if let Err(error) = self.wait_for_message(stream) {
            peer_log!(Warn, "A client could not be listened to: {error}");
        }
    }

    fn wait_for_message(&mut self, stream: UnixStream) -> io::Result<()> {
        if self.waiting.len() >= MAX_WAITING {
            let oldest = self.waiting.pop_front();
            apart(move || drop(oldest));
        }
        let token = self.next_token;
        stream.set_nonblocking(true)?;
        self.poller.add(stream.as_fd(), token)?;
        self.next_token += 1;
        self.waiting.push_back(Waiting {
            token,
            stream,
            spoken: false,
        });
        Ok(())
    }

    /// A connection has spoken for the first time, or is gone, which a session finds out as well.
    fn first_message(&mut self, token: u64) -> Result<(), ServeError> {
        let Some(place) = self.waiting.iter().position(|w| w.token == token) else {
            return Ok(());
        };
        let Some(mut client) = self.waiting.remove(place) else {
            return Ok(());
        };
        self.poller.remove(client.stream.as_fd())?;
        match &self.session {
            None => self.attach_or_drop(client.stream),
            Some(session) if session.is_ending() => {
                session.closer.close_twin();
                client.spoken = true;
                self.waiting.push_back(client);
            }
            Some(_) => apart(move || refuse(client.stream)),
        }
        Ok(())
    }

    /// The first of those that waited for the session to end gets the next one. The others are told, but if
    /// the first has given up meanwhile, they wait on.
    fn attach_next(&mut self) -> Result<(), ServeError> {
        while let Some(place) = self.waiting.iter().position(|w| w.spoken) {
            if self.session.as_ref().is_some_and(Running::is_ending) {
                break;
            }
            match self.waiting.remove(place) {
                Some(client) if self.session.is_none() => self.attach_or_drop(client.stream),
                Some(client) => apart(move || refuse(client.stream)),
                None => {}
            }
        }
        Ok(())
    }

    /// One client that cannot be served, for want of a thread or a descriptor, ends nothing but itself.
    fn attach_or_drop(&mut self, stream: UnixStream) {
        if let Err(error) = self.attach(stream) {
            warn!("A client could not be served: {}", chain(&error));
        }
    }

    /// Starts a session on its own thread.
    fn attach(&mut self, stream: UnixStream) -> Result<(), ServeError> {
        stream.set_nonblocking(false)?;
        let function = Arc::clone(self.function);
        let (session, receiver) = Session::new(function, stream, self.options.reset_on_disconnect)?;
        let closer = session.closer();
        let finished = SignalOnDrop(Arc::clone(&self.finished));
        // If there will be no thread, this ends with the descriptor.
        self.poller.add_hangup(closer.socket(), HANGUP)?;
        let thread = thread::Builder::new()
            .name("session".into())
            .spawn(move || {
                let _finished = finished;
                session.run(receiver)
            })?;
        self.session = Some(Running {
            closer,
            thread,
            deadline: None,
            resets: 0,
        });
        Ok(())
    }

    /// Frees the session if its time is over.
    fn free_session(&mut self) -> Result<(), ServeError> {
        let now = Instant::now();
        if let Some(session) = &mut self.session
            && session.deadline.is_some_and(|deadline| deadline <= now)
        {
            session.deadline = Some(Instant::now() + DRIVER_PATIENCE);
            session.free(self.function)?;
        }
        Ok(())
    }

    /// Ends the session, if there is one, and waits until the function is clean.
    fn end_session(&mut self) -> Result<(), ServeError> {
        let Some(mut session) = self.session.take() else {
            return Ok(());
        };
        session.closer.close();
        while !readable_within(&self.finished, DRIVER_PATIENCE)? {
            session.free(self.function)?;
        }
        self.poller.remove(session.closer.socket())?;
        let cleaned = match session.thread.join() {
            Ok(Ok(())) => {
                peer_log!(Info, "Client left");
                Ok(())
            }
            Ok(Err(SessionError::Reset(error))) => Err(error),
            Ok(Err(error)) => {
                peer_log!(Warn, "Session ended: {}", chain(&error));
                Ok(())
            }
            Err(_) => {
                error!("Session ended by a defect in this program; the device is reset");
                self.function.disconnect(true)
            }
        };
        let _ = rustix::io::read(&*self.finished, &mut [0; 8]);
        cleaned.map_err(ServeError::Reset)
    }
}

fn borrow(listener: &Listener) -> BorrowedFd<'_> {
    // SAFETY: the listener owns the descriptor and outlives this borrow of it.
    unsafe { BorrowedFd::borrow_raw(listener.as_raw_fd()) }
}

/// Waits until `fd` is readable, but no longer than this; whether it is.
fn readable_within(fd: &OwnedFd, patience: Duration) -> Result<bool, Errno> {
    let patience = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
    loop {
        let mut wanted = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut wanted, Some(&patience)) {
            Err(Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

/// A client too many: its first message is answered with EBUSY.
fn refuse(stream: UnixStream) {
    let (receiver, sender) = split(stream, HEADER_SIZE);
    let mut receiver = receiver.screened(STRANGERS);
    if let Ok(Some(Frame::Message { header, .. } | Frame::TooLong(header))) = receiver.receive() {
        peer_log!(Info, "A second client was refused: one is attached");
        let busy = header.error_reply(Errno::BUSY.raw_os_error().unsigned_abs());
        let _ = sender.send(&busy, &[], &[]);
    }
}

/// Counts on an eventfd when dropped, however its thread ends.
struct SignalOnDrop(Arc<OwnedFd>);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes());
    }
}
