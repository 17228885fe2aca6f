// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sessions with the model GPU over a socket pair, where the order of things matters.

mod altered;
mod leaving;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use vfio_user_protocol::deframer::Frame;
use vfio_user_protocol::extension::{self, IrqRoutes};
use vfio_user_protocol::transport::{Receiver, Sender, split};
use vfio_user_protocol::version::{Capabilities, Extension, TwinSocket, Version};
use vfio_user_protocol::{Command, Header};
use zerocopy::IntoBytes;

use self::altered::Altered;
use super::endpoint::Endpoint;
use super::serve::{ServeError, ServeOptions, Signals, serve};
use super::session::Session;
use crate::device::model::{ModelGpu, ModelOptions, vram};
use crate::device::{Device, Error, region};
use crate::function::Function;
use crate::memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS};
use crate::pci::GuestView;
use crate::pci::registers::{PCI_CAP_ID_MSIX, PCI_COMMAND};

/// Long enough for a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The client's side of one socket.
struct Peer {
    receiver: Receiver,
    sender: Sender,
}

impl Peer {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (receiver, sender) = split(stream, 1 << 16);
        Self { receiver, sender }
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>, Vec<OwnedFd>)> {
        match self.receiver.receive().expect("a message in time")? {
            Frame::Message { header, body, fds } => Some((header, body.to_vec(), fds)),
            Frame::TooLong(header) => panic!("{header:?}"),
        }
    }

    fn call(&mut self, command: Command, body: &[u8]) -> (Header, Vec<u8>, Vec<OwnedFd>) {
        let request = Header::request(1, command, body.len());
        self.sender.send(&request, &[body], &[]).unwrap();
        self.next().expect("a reply")
    }

    /// VERSION with an offer of these extensions.
    fn negotiate(&mut self, features: &[&str]) {
        let offer = Capabilities {
            extension: Some(Extension {
                version: extension::VERSION,
                features: features.iter().map(|name| (*name).to_owned()).collect(),
                ..Extension::default()
            }),
            ..Capabilities::default()
        };
        let (reply, ..) = self.call(Command::Version, &offer.encode(Version::default()));
        assert_eq!(reply.error(), None);
    }

    /// Opens a migration channel.
    fn open_channel(&mut self) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let query = [8_u32, 0];
        let request = Header::request(1, Command::MigChannel, 8);
        let sent = self
            .sender
            .send(&request, &[query.as_bytes()], &[theirs.as_fd()]);
        sent.unwrap();
        assert_eq!(self.next().expect("a reply").0.error(), None);
        Self::new(ours)
    }

    /// VERSION with an offer of the twin socket and `irq_routes`; the twin socket.
    fn negotiate_twin(&mut self) -> Self {
        let offer = Capabilities {
            twin_socket: Some(TwinSocket {
                supported: true,
                fd_index: None,
            }),
            extension: Some(Extension {
                version: extension::VERSION,
                features: vec![extension::IRQ_ROUTES.to_owned()],
                ..Extension::default()
            }),
            ..Capabilities::default()
        };
        let (reply, _, mut fds) = self.call(Command::Version, &offer.encode(Version::default()));
        assert_eq!(reply.error(), None);
        Self::new(UnixStream::from(fds.pop().expect("a twin socket")))
    }
}

fn function_of(model: impl FnOnce(ModelGpu) -> Arc<dyn Device>) -> Arc<Function> {
    function_in(|gpu, _| model(gpu))
}

fn function_in(
    model: impl FnOnce(ModelGpu, &Arc<AddressSpace>) -> Arc<dyn Device>,
) -> Arc<Function> {
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
    let options = ModelOptions {
        vram_size: vram::MIN_SIZE,
        ..ModelOptions::default()
    };
    let gpu = ModelGpu::new(&options, Arc::clone(&memory)).unwrap();
    let device = model(gpu, &memory);
    Arc::new(Function::new(device, memory, &GuestView::default()).unwrap())
}

/// A device with MSI-X enabled, as an earlier guest left it with --on-disconnect keep.
fn kept_function() -> Arc<Function> {
    let function = function_of(|gpu| Arc::new(gpu));
    let config = function.device().config_space();
    let mut capabilities = config.capabilities();
    let (_, msix) = capabilities
        .find(|(id, _)| *id == PCI_CAP_ID_MSIX)
        .expect("MSI-X");
    let command = PCI_COMMAND.into();
    function.write(region::CONFIG, command, &[6, 0]).unwrap();
    let control = u64::from(msix) + 3;
    function.write(region::CONFIG, control, &[0x80]).unwrap();
    function
}

fn io_error() -> Error {
    Error::Io {
        what: "Resetting",
        source: io::Error::from(Errno::IO),
    }
}

/// Serves at a path in a folder of its own; how serving ended.
fn serve_at(
    path: &Path,
    function: Arc<Function>,
    reset_on_disconnect: bool,
) -> mpsc::Receiver<Result<(), ServeError>> {
    let listener = UnixListener::bind(path).unwrap();
    let (result, served) = mpsc::channel();
    thread::spawn(move || {
        let options = ServeOptions {
            reset_on_disconnect,
            allowed_uids: Vec::new(),
        };
        let signals = Signals::catch().unwrap();
        let endpoint = Endpoint::Listening(listener.into());
        let served = serve(endpoint, &signals, &function, &options);
        // Nobody asks where serving is not to end.
        let _ = result.send(served);
    });
    served
}

#[test]
fn routes_of_a_kept_device_are_told_once_the_client_has_the_twin_socket() {
    let function = kept_function();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, receiver) = Session::new(function, ours, false).unwrap();
    let session = thread::spawn(move || session.run(receiver));
    let mut client = Peer::new(theirs);
    let mut twin = client.negotiate_twin();
    let (told, body, _) = twin.next().expect("the routes");
    assert_eq!(told.command, u16::from(Command::IrqRoutes));
    let (fixed, _) = IrqRoutes::decode(&body).unwrap();
    assert_eq!((fixed.index, fixed.start, fixed.count), (2, 0, 8));
    // Gone without an answer: the session ends all the same.
    drop((client, twin));
    session.join().unwrap().unwrap();
}

#[test]
fn the_next_client_need_not_wait_for_the_twin_socket_of_one_that_has_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let _served = serve_at(&path, kept_function(), false);
    let mut first = Peer::new(UnixStream::connect(&path).unwrap());
    let mut twin = first.negotiate_twin();
    twin.next().expect("the routes");
    drop(first);
    let version = Capabilities::default().encode(Version::default());
    let mut next = Peer::new(UnixStream::connect(&path).unwrap());
    assert_eq!(next.call(Command::Version, &version).0.error(), None);
    assert!(twin.next().is_none(), "closed without an answer");
}

#[test]
fn a_device_that_cannot_be_reset_is_not_served_to_the_next_client() {
    let function = function_of(|gpu| {
        let reset = |_: &ModelGpu, _| Err(io_error());
        Arc::new(Altered::new(gpu, reset))
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let served = serve_at(&path, function, true);
    let version = Capabilities::default().encode(Version::default());
    let mut first = Peer::new(UnixStream::connect(&path).unwrap());
    assert_eq!(first.call(Command::Version, &version).0.error(), None);
    // Leaves within a message, so that there is more than one thing to tell of the session's end.
    first.sender.send(&Header::default(), &[], &[]).unwrap();
    drop(first);
    let ended = served.recv_timeout(PATIENCE).expect("an end");
    assert!(matches!(ended, Err(ServeError::Reset(_))), "{ended:?}");
}
