// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whole sessions with a model GPU: messages right and wrong, with descriptors, over a real socket pair. The server
//! must answer in whole messages, end when the client does, and leave a clean device.
//!
//! The first byte chooses how the client negotiates and what it does with the twin socket. Then a row of steps:
//!
//! ```text
//!  byte 0          byte 1   byte 2        byte 3   then
//!  command (% 32)  flags    descriptors   length   body: a well-framed message
//!  240 and above                          length   bytes as they are
//! ```
#![no_main]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, OnceLock},
    thread,
};

use libfuzzer_sys::fuzz_target;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, ftruncate, memfd_create},
};
use vfio_user_gpu::{
    device::{
        Device,
        model::{ModelGpu, ModelOptions},
        region,
    },
    function::Function,
    memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS},
    pci::GuestView,
    server::Session,
};
use vfio_user_protocol::{
    Command, HEADER_SIZE, Header,
    deframer::Frame,
    extension::{self, migration},
    header::NO_REPLY,
    transport::{Sender, split},
    version::{Capabilities, Extension, TwinSocket, Version},
};
use zerocopy::FromBytes;

/// Where raw bytes begin among the first bytes of steps.
const RAW: u8 = 240;
const MAX_MESSAGE: usize = 2 << 20;
/// What is offered of the extension.
const FEATURES: [&str; 7] = [
    extension::IRQ_ROUTES,
    migration::PRECOPY_INFO,
    migration::PENDING,
    migration::MIG_CHANNEL,
    migration::MIG_SHM,
    migration::MIG_P2P,
    migration::EXPLAIN,
];

/// What survives from input to input: building a device each time would be most of the work.
struct Rig {
    function: Arc<Function>,
    /// What a client may send: memory, and eventfds that block and do not.
    fds: [OwnedFd; 3],
}

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
        let options: ModelOptions = "vram=1M".parse().expect("options");
        let device: Arc<dyn Device> =
            Arc::new(ModelGpu::new(&options, Arc::clone(&memory)).expect("a model GPU"));
        let function = Function::new(device, memory, &GuestView::default()).expect("a function");
        let guest = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&guest, 1 << 20).expect("a size");
        let blocking = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
        let other = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Rig {
            function: Arc::new(function),
            fds: [guest, blocking, other.expect("an eventfd")],
        }
    })
}

/// Reads replies to the end of the stream; each is whole and says what a reply may say.
fn take_replies(mut stream: UnixStream) {
    let mut header = [0; HEADER_SIZE];
    let mut body = Vec::new();
    while stream.read_exact(&mut header).is_ok() {
        let header = Header::read_from_bytes(&header).expect("16 bytes");
        let length = (header.size as usize)
            .checked_sub(HEADER_SIZE)
            .expect("a whole message");
        assert!(length <= MAX_MESSAGE);
        match header.flags {
            1 => {}
            0x21 => assert!(length == 0 && (1..4096).contains(&header.errno)),
            flags => panic!("flags {flags:#x} of a reply"),
        }
        body.resize(length, 0);
        if stream.read_exact(&mut body).is_err() {
            break;
        }
    }
}

/// Answers on the twin socket: routes always, DMA as `manner` has it.
fn serve_twin(twin: UnixStream, manner: u8) {
    let (mut receiver, sender) = split(twin, MAX_MESSAGE);
    while let Ok(Some(Frame::Message { header, body, .. })) = receiver.receive() {
        let is_read = header.command == u16::from(Command::DmaRead);
        let sent = match (header.command == u16::from(Command::IrqRoutes), manner % 4) {
            (true, _) => sender.send(&header.reply(0), &[], &[]),
            (false, 0) => sender.send(&header.error_reply(14), &[], &[]),
            (false, 1) => return,
            (false, _) if is_read => {
                let count = body.get(8..16).and_then(|count| count.try_into().ok());
                let count = u64::from_ne_bytes(count.expect("a count"));
                let data = vec![manner; usize::try_from(count).expect("a length")];
                sender.send(&header.reply(16 + data.len()), &[&body[..16], &data], &[])
            }
            (false, _) => sender.send(&header.reply(16), &[&body[..16]], &[]),
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Sends the steps until one cannot be sent.
fn send_steps(sender: &Sender, mut steps: &[u8]) {
    let fds = rig().fds.each_ref().map(AsFd::as_fd);
    let mut id = 0;
    while let Some((&[command, flags, descriptors, length], rest)) = steps.split_first_chunk() {
        let (body, rest) = rest.split_at(usize::from(length).min(rest.len()));
        steps = rest;
        if command >= RAW {
            if sender.stream().write_all(body).is_err() {
                return;
            }
            continue;
        }
        id += 1;
        let header = Header {
            id,
            command: match command % 32 {
                own @ 23..=30 => 0x8000 + u16::from(own - 23),
                command => command.into(),
            },
            size: u32::try_from(HEADER_SIZE + body.len()).expect("a short message"),
            // Seldom anything but a command.
            flags: match flags % 8 {
                0 => u32::from(flags >> 3),
                1 | 2 => NO_REPLY,
                _ => 0,
            },
            errno: 0,
        };
        let count = usize::from(descriptors >> 2) % 20;
        let kind = usize::from(descriptors % 4) % fds.len();
        let fds: Vec<BorrowedFd<'_>> = vec![fds[kind]; if descriptors == 0 { 0 } else { count }];
        if sender.send(&header, &[body], &fds).is_err() {
            return;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&manner, steps)) = data.split_first() else {
        return;
    };
    let rig = rig();
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let (session, receiver) =
        Session::new(Arc::clone(&rig.function), theirs, true).expect("a session");
    let server = thread::spawn(move || session.run(receiver));

    let replies = ours.try_clone().expect("a descriptor");
    let (mut receiver, sender) = split(ours, MAX_MESSAGE);
    let mut twin = None;
    if manner < 250 {
        let offer = Capabilities {
            twin_socket: (manner & 0x80 == 0).then_some(TwinSocket {
                supported: true,
                fd_index: None,
            }),
            extension: (manner & 0x40 == 0).then(|| Extension {
                version: 1,
                features: FEATURES.map(str::to_owned).into(),
                ..Extension::default()
            }),
            ..Capabilities::default()
        };
        let body = offer.encode(Version::default());
        let header = Header::request(0, Command::Version, body.len());
        sender
            .send(&header, &[&body], &[])
            .expect("VERSION is sent");
        match receiver.receive() {
            Ok(Some(Frame::Message { mut fds, .. })) => twin = fds.pop().map(UnixStream::from),
            other => panic!("VERSION answered with {other:?}"),
        }
    }
    drop(receiver);
    thread::scope(|scope| {
        scope.spawn(|| take_replies(replies));
        if let Some(twin) = twin {
            scope.spawn(move || serve_twin(twin, manner));
        }
        send_steps(&sender, steps);
        let _ = sender.stream().shutdown(Shutdown::Write);
        // However it ended: without a panic.
        let _ = server.join().expect("the session's thread");
        let _ = sender.stream().shutdown(Shutdown::Both);
    });

    assert!(rig.function.memory().is_empty(), "maps are left");
    let mut command = [0xff; 2];
    let read = rig.function.read(region::CONFIG, 4, &mut command);
    assert!(
        read.is_ok() && (manner >= 250 || command == [0, 0]),
        "not reset"
    );
});
