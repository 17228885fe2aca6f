// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One client, from its first message to its last: receive, dispatch, reply, clean up.
//!
//! Commands are answered strictly in order, on the thread that runs the session. The dispatch path
//! allocates nothing: buffers are reused, and only grow to what the client negotiated.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};

use log::{debug, trace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vfio_user_protocol::deframer::{Frame, FrameError};
use vfio_user_protocol::header::{HEADER_SIZE, MessageType};
use vfio_user_protocol::region::RegionAccess;
use vfio_user_protocol::transport::{Receiver, TransportError, split};
use vfio_user_protocol::version::{
    Capabilities, DEFAULT_MAX_DATA_XFER_SIZE, DEFAULT_MAX_DMA_MAPS, DEFAULT_PGSIZES, Extension,
    TwinSocket, Version,
};
use vfio_user_protocol::{DecodeError, Header, Request, extension, version};

use super::channel::Channel;
use super::ending::Ending;
use super::migration::MigrationCommands;
use super::refusal::Refusal;
use super::replies::{Replies, Reply};
use super::screen::SCREEN;
use super::twin::Twin;
use crate::device;
use crate::function::Function;
use crate::ratelimit::peer_log;

/// Bytes of data in one message, as this server advertises.
pub(super) const MAX_DATA: usize = 1 << 20;
/// Descriptors in one message, as this server advertises. (QEMU refuses more than 16.)
pub(super) const MAX_FDS: u32 = 16;
/// The longest message: a header, the largest fixed part, and data.
pub(super) const MAX_MESSAGE: usize = HEADER_SIZE + size_of::<RegionAccess>() + MAX_DATA;

/// What this server offers in VERSION.
#[must_use]
pub fn capabilities() -> Capabilities {
    Capabilities {
        max_msg_fds: Some(MAX_FDS),
        max_data_xfer_size: Some(DEFAULT_MAX_DATA_XFER_SIZE),
        max_dma_maps: Some(DEFAULT_MAX_DMA_MAPS),
        pgsizes: Some(DEFAULT_PGSIZES),
        twin_socket: Some(TwinSocket {
            supported: true,
            fd_index: None,
        }),
        write_multiple: Some(true),
        extension: Some(Extension {
            version: extension::VERSION,
            features: vec![
                extension::IRQ_ROUTES.to_owned(),
                extension::DESCRIBE.to_owned(),
                extension::migration::PRECOPY_INFO.to_owned(),
                extension::migration::PENDING.to_owned(),
                extension::migration::MIG_CHANNEL.to_owned(),
                extension::migration::MIG_SHM.to_owned(),
                extension::migration::MIG_P2P.to_owned(),
                extension::migration::EXPLAIN.to_owned(),
            ],
            ..Extension::default()
        }),
    }
}

/// What `--print-capabilities` says: the backend program conventions of the specification, and ours.
#[must_use]
pub fn print_capabilities() -> serde_json::Value {
    let extension = capabilities().extension.unwrap_or_default();
    serde_json::json!({
        "type": "vfio-user",
        "features": ["kernel", "model"],
        "protocol": { "major": version::MAJOR, "minor": version::MINOR },
        "extensions": { (extension::KEY): extension.features },
    })
}

/// Why a session ended other than by the client's leaving.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection broke.
    #[error("Connection lost")]
    Transport(#[from] TransportError),
    /// A reply could not be sent.
    #[error("Reply not sent")]
    Send(#[source] io::Error),
    /// A reply came where none was asked for: answering it might go on for ever.
    #[error("A reply came, to nothing")]
    Reply,
    /// No version was agreed upon.
    #[error("Negotiation failed")]
    Negotiation(#[source] Box<Refusal>),
    /// The device could not be brought back for the next client.
    #[error("Device not reset after the client left")]
    Reset(#[source] device::Error),
}

/// Ends a session from another thread.
#[derive(Clone, Debug)]
pub(super) struct Closer {
    main: Arc<UnixStream>,
    twin: Arc<OnceLock<Arc<Twin>>>,
    /// Of the migration channel.
    channel: Arc<OnceLock<Arc<UnixStream>>>,
    ending: Arc<Ending>,
}

impl Closer {
    /// Ends every wait of the session for its client, and the session once what it is about is done; the device is
    /// then reset. False if what becomes of that was settled before.
    pub(super) fn close(&self) -> bool {
        let ends = self.ending.end();
        let _ = self.main.shutdown(Shutdown::Both);
        self.close_twin();
        if let Some(channel) = self.channel.get() {
            let _ = channel.shutdown(Shutdown::Both);
        }
        ends
    }

    /// The client's socket, to be polled.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.main.as_fd()
    }

    /// Ends the waits for answers on the twin socket: its other end may outlive the client.
    pub(super) fn close_twin(&self) {
        if let Some(twin) = self.twin.get() {
            twin.close();
        }
    }

    /// The client's end is closed, though the session may not have come to see it.
    pub(super) fn client_has_left(&self) -> bool {
        let mut ended = [PollFd::new(&*self.main, PollFlags::RDHUP)];
        matches!(poll(&mut ended, Some(&Timespec::default())), Ok(1))
    }
}

/// What was agreed upon with the client.
#[derive(Debug)]
pub(super) struct Negotiated {
    /// Bytes of data it takes in one message.
    pub(super) max_data: usize,
    /// Descriptors that the client takes in one message.
    pub(super) max_fds: usize,
    /// It takes interrupt routes.
    pub(super) irq_routes: bool,
}

/// One client's session with a function.
#[derive(Debug)]
pub struct Session {
    pub(super) function: Arc<Function>,
    pub(super) negotiated: Option<Negotiated>,
    pub(super) twin: Arc<OnceLock<Arc<Twin>>>,
    pub(super) reply: Reply,
    pub(super) replies: Replies,
    /// Migration on the main socket, once negotiated.
    pub(super) migration: Option<MigrationCommands>,
    pub(super) channel: Option<Channel>,
    pub(super) channel_closer: Arc<OnceLock<Arc<UnixStream>>>,
    main: Arc<UnixStream>,
    ending: Arc<Ending>,
    reset_on_disconnect: bool,
}

impl Session {
    /// A session with whoever is at the other end of `stream`.
    ///
    /// # Errors
    /// The errno of duplicating the socket.
    pub fn new(
        function: Arc<Function>,
        stream: UnixStream,
        reset_on_disconnect: bool,
    ) -> io::Result<(Self, Receiver)> {
        let main = Arc::new(stream.try_clone()?);
        let (receiver, sender) = split(stream, MAX_MESSAGE);
        let receiver = receiver.screened(SCREEN);
        let session = Self {
            function,
            negotiated: None,
            twin: Arc::default(),
            reply: Reply::default(),
            replies: Replies::new(sender),
            migration: None,
            channel: None,
            channel_closer: Arc::default(),
            main,
            ending: Arc::default(),
            reset_on_disconnect,
        };
        Ok((session, receiver))
    }

    /// The client's socket.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.main
    }

    /// What ends this session from another thread.
    pub(super) fn closer(&self) -> Closer {
        Closer {
            main: Arc::clone(&self.main),
            twin: Arc::clone(&self.twin),
            channel: Arc::clone(&self.channel_closer),
            ending: Arc::clone(&self.ending),
        }
    }

    /// Serves the client until it leaves, then cleans up after it.
    ///
    /// # Errors
    /// [`SessionError`]; the function is cleaned up all the same.
    pub fn run(mut self, mut receiver: Receiver) -> Result<(), SessionError> {
        let served = self.serve(&mut receiver);
        // One that is thrown out hears so at once, and may be waited for no longer than one that left.
        let _ = self.main.shutdown(Shutdown::Both);
        receiver.drain();
        if let Some(twin) = self.twin.get() {
            twin.close();
            twin.drain();
        }
        // A connection that never negotiated (a probe of the path, say) changed nothing.
        let cleaned = match self.negotiated {
            Some(_) => self.clean_up(),
            None => Ok(()),
        };
        // That the device is not fit for the next client matters more than how this one left.
        cleaned.map_err(SessionError::Reset)?;
        served
    }

    /// What becomes of the device when the client leaves, as the option says it.
    pub(super) fn on_disconnect(&self) -> &'static str {
        if self.reset_on_disconnect {
            "reset"
        } else {
            "keep"
        }
    }

    /// Ends what the client had. First of all the device is kept from the guest's memory, which may belong to the
    /// same guest elsewhere by now; then one that is to be kept goes on running, if migration lets it. A driver that
    /// does not return is the main loop's to free.
    fn clean_up(&mut self) -> Result<(), device::Error> {
        let function = &*self.function;
        let channel = self.channel.take();
        let busy = channel.as_ref().is_some_and(Channel::close);
        let keep = !self.reset_on_disconnect && !self.ending.is_over();
        let cut = if keep {
            function.cut_off()
        } else {
            // This makes a driver return that keeps the channel's thread.
            function.disconnect(true)
        };
        if let Some(channel) = channel {
            channel.join();
        }
        if !keep && !busy {
            return cut;
        }
        let goes_on = keep && cut.is_ok() && function.migration().end(function);
        // What was under way on the channel may have had its way with the device after a reset, or failed that.
        function.disconnect(!(self.ending.settle() && goes_on))
    }

    fn serve(&mut self, receiver: &mut Receiver) -> Result<(), SessionError> {
        loop {
            match receiver.receive() {
                Ok(Some(Frame::Message { header, body, fds })) => {
                    if self.ending.is_over() {
                        return Ok(());
                    }
                    trace!("{header:?}, {} descriptors", fds.len());
                    if header.message_type() == MessageType::Reply {
                        return Err(SessionError::Reply);
                    }
                    self.handle(&header, body, fds)?;
                }
                Ok(Some(Frame::TooLong(header))) => {
                    let refusal = Replies::too_long(&header);
                    self.replies.refuse(&header, &refusal)?;
                    if self.negotiated.is_none() {
                        return Err(SessionError::Negotiation(Box::new(refusal)));
                    }
                }
                Ok(None) => return Ok(()),
                Err(TransportError::Frame(FrameError::Size(header))) => {
                    // Where the next message begins is anybody's guess: say so and leave.
                    let errno = Errno::INVAL.raw_os_error().unsigned_abs();
                    let _ = self.replies.send_error(&header, errno);
                    return Err(TransportError::Frame(FrameError::Size(header)).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers one message.
    fn handle(
        &mut self,
        header: &Header,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), SessionError> {
        self.reply.clear();
        let negotiating = self.negotiated.is_none();
        match self.dispatch(header, body, fds) {
            Ok(()) => {
                if !header.wants_no_reply() {
                    self.replies.send(header, &self.reply)?;
                }
                // A copy of ours would keep open what the client closes.
                self.reply.fds.clear();
                if negotiating {
                    self.follow_guest_routes();
                }
                Ok(())
            }
            Err(refusal) => {
                self.replies.refuse(header, &refusal)?;
                if negotiating {
                    return Err(SessionError::Negotiation(Box::new(refusal)));
                }
                Ok(())
            }
        }
    }

    /// Only now that the client has its end of the twin socket can it answer there. (A device that was kept
    /// from the client before has routes to tell of at once.)
    fn follow_guest_routes(&self) {
        let wanted = self.negotiated.as_ref().is_some_and(|n| n.irq_routes);
        if let Some(twin) = self.twin.get().filter(|_| wanted) {
            self.function.follow_guest_routes(Arc::clone(twin) as _);
        }
    }

    fn dispatch(&mut self, header: &Header, body: &[u8], fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        if header.message_type() != MessageType::Command {
            return Err(DecodeError::NotACommand(header.flags).into());
        }
        let allowed = if self.negotiated.is_some() {
            MAX_FDS as usize
        } else {
            0
        };
        if fds.len() > allowed {
            let found = fds.len();
            return Err(DecodeError::Descriptors {
                expected: allowed,
                found,
            }
            .into());
        }
        let request = Request::decode(header.command, body)?;
        self.command(request, fds)
    }

    /// One line when a client has come.
    pub(super) fn greet(&self, version: Version, agreed: &Capabilities) {
        let Version { major, minor } = version;
        let device = self.function.device().name();
        peer_log!(
            Info,
            "Client attached with protocol {major}.{minor} to the {device}"
        );
        debug!("Agreed upon: {agreed:?}");
    }
}
