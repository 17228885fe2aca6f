// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The twin socket: what the backend asks of a client while it serves it. DMA to memory without a descriptor, and the
//! routes of interrupts as "the guest" programs them.

mod dma;
mod routes;

use std::os::unix::net::UnixStream;

use system_tests::{
    backend::Backend,
    engine::{REGION as ENGINE, start},
    model_gpu::engine::{COMMAND_COPY, COMMAND_DST_VRAM},
    pci,
    raw_client::{RawClient, access},
};
use vfio_user_protocol::{
    Command, Request,
    dma::DmaMap,
    extension,
    version::{Capabilities, Extension, TwinSocket},
};

const VRAM: u32 = 0;
const CONFIG: u32 = 7;
/// Where guest memory begins for the device.
const GUEST: u64 = 0x8000_0000;
const GUEST_SIZE: usize = 1 << 20;

fn offer(max_data: Option<u64>, routes: bool) -> Capabilities {
    Capabilities {
        max_data_xfer_size: max_data,
        twin_socket: Some(TwinSocket {
            supported: true,
            fd_index: None,
        }),
        extension: routes.then(|| Extension {
            version: 1,
            features: vec![extension::IRQ_ROUTES.to_owned()],
            ..Extension::default()
        }),
        ..Capabilities::default()
    }
}

/// Attached with a twin socket; both ends are the test's to use.
fn attach(backend: &Backend, offer: &Capabilities) -> (RawClient, RawClient) {
    let mut main = RawClient::connect(&backend.socket());
    let (granted, mut fds) = main.negotiate(offer);
    let twin = granted.twin_socket.expect("a twin socket is granted");
    assert_eq!((twin.supported, twin.fd_index), (true, Some(0)));
    assert_eq!(fds.len(), 1);
    let twin = fds.pop_front().expect("one descriptor");
    (main, RawClient::over(UnixStream::from(twin)))
}

fn enable(client: &mut RawClient) {
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    client.write(CONFIG, pci::COMMAND.into(), &command.to_le_bytes());
}

fn map_guest(client: &mut RawClient) {
    let map = DmaMap {
        argsz: 32,
        flags: 3,
        offset: 0,
        address: GUEST,
        size: GUEST_SIZE as u64,
    };
    let mapped = client.request(&Request::DmaMap(map), &[]);
    assert!(mapped.is_ok(), "DMA_MAP without a descriptor");
}

/// The offset of a capability in config space.
fn capability(client: &mut RawClient, wanted: u8) -> u64 {
    let [mut at] = client.read(CONFIG, pci::CAPABILITIES.into());
    for _ in 0..48 {
        let [id, next] = client.read(CONFIG, at.into());
        if id == wanted {
            return at.into();
        }
        at = next;
    }
    panic!("no capability {wanted:#x}");
}

/// What the backend may be doing when it needs an answer on the twin socket.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stuck {
    /// The engine moves data.
    Dma,
    /// A reset waits for the engine.
    Reset,
    /// A write of the guest is being handled, and its answer held back.
    Route,
}

const ALL: [Stuck; 3] = [Stuck::Dma, Stuck::Reset, Stuck::Route];

/// Brings the backend to where it needs an answer, which nobody gives.
fn stick(client: &mut RawClient, twin: &RawClient, stuck: Stuck) {
    enable(client);
    map_guest(client);
    if stuck == Stuck::Route {
        let msix = capability(client, pci::CAP_MSIX) + 2;
        let control = Request::RegionWrite(access(CONFIG, msix, 2), &[0, 0x80]).encode();
        let message = client.message(Command::RegionWrite, 0, &control);
        client.send(&message, &[]);
    } else {
        start(client, COMMAND_COPY | COMMAND_DST_VRAM, GUEST, 0, 64);
    }
    assert!(twin.receive().is_some(), "{stuck:?}: nothing is asked");
    if stuck == Stuck::Reset {
        let message = client.message(Command::DeviceReset, 0, &[]);
        client.send(&message, &[]);
    }
}

#[test]
fn a_twin_socket_that_is_never_answered_cannot_stop_sigterm() {
    for stuck in ALL {
        let mut backend = Backend::start();
        let (mut client, twin) = attach(&backend, &offer(None, true));
        stick(&mut client, &twin, stuck);
        assert_eq!(backend.terminate().code(), Some(0), "{stuck:?}");
        assert!(twin.receive().is_none());
    }
}

#[test]
fn a_client_that_leaves_without_answering_is_followed_by_the_next() {
    let backend = Backend::start();
    for stuck in ALL {
        let (mut client, twin) = attach(&backend, &offer(None, true));
        stick(&mut client, &twin, stuck);
        drop(client);
        // This end of the twin socket is still open; the backend does not wait for it.
        RawClient::attach(&backend.socket()).assert_in_step();
        assert!(twin.receive().is_none());
    }
}

#[test]
fn a_twin_socket_is_given_only_to_those_who_can_take_it() {
    let backend = Backend::start();
    let none = Capabilities {
        max_msg_fds: Some(0),
        ..offer(None, true)
    };
    let unsupported = Capabilities {
        twin_socket: Some(TwinSocket::default()),
        ..offer(None, true)
    };
    for offer in [none, unsupported, Capabilities::default()] {
        let mut client = RawClient::connect(&backend.socket());
        let (granted, fds) = client.negotiate(&offer);
        assert!(fds.is_empty());
        assert!(granted.twin_socket.is_none_or(|twin| !twin.supported));
        assert!(!granted.has_feature(extension::IRQ_ROUTES));
        client.assert_in_step();
    }
}
