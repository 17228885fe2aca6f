// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors whose closing takes as long as the client likes, and the client's own end passed as something else: neither
//! keeps the backend from the next client, or from its end.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt::set_socket_linger,
    pipe::pipe,
    time::Timespec,
};
use system_tests::{PATIENCE, backend::Backend, migrating::offering, raw_client::RawClient};
use vfio_user_protocol::{
    Command,
    extension::migration::MIG_CHANNEL,
    version::{Capabilities, Version},
};

use crate::{EBUSY, EINVAL, longs, words};

/// A socket that takes ten minutes to close, as it has something to send, and its other end, which does not read.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut stream = TcpStream::connect(address).expect("a connection");
    let (other, _) = listener.accept().expect("its other end");
    let wait = Some(Duration::from_secs(600));
    set_socket_linger(&stream, wait).expect("SO_LINGER");
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    while stream.write(&[0; 1 << 16]).is_ok() {}
    stream.set_nonblocking(false).expect("O_NONBLOCK");
    (stream, other)
}

/// Closes the copy here once the backend may have one, so that the backend's is the last. If it has closed that already,
/// which ends the connection, this is the last, and closed by a thread that nobody waits for.
fn let_go(socket: TcpStream, client: &RawClient) {
    let (reader, writer) = pipe().expect("a pipe");
    thread::spawn(move || {
        drop(socket);
        drop(writer);
    });
    let mut either = [
        PollFd::new(&reader, PollFlags::IN),
        PollFd::new(client.stream(), PollFlags::RDHUP),
    ];
    let patience = Timespec::try_from(PATIENCE).expect("a time");
    assert_ne!(poll(&mut either, Some(&patience)), Ok(0), "neither closed");
}

/// Sends a message in two parts, so that it is not whole while the backend's is the last copy of the descriptor.
fn send_with(client: &mut RawClient, socket: TcpStream, command: u16, body: &[u8]) {
    let message = client.message(command, 0, body);
    client.send(&message[..8], &[socket.as_fd()]);
    let_go(socket, client);
    // It need not be wanted any more.
    let _ = client.try_send(&message[8..], &[]);
}

/// As one client too many, whose whole first message comes with a descriptor.
fn surplus_with(backend: &Backend, socket: TcpStream) {
    let mut surplus = RawClient::connect(&backend.socket());
    let version = Capabilities::default().encode(Version::default());
    let message = surplus.message(Command::Version, 0, &version);
    surplus.send(&message, &[socket.as_fd()]);
    let_go(socket, &surplus);
    let refused = surplus.receive().expect("a reply");
    assert_eq!(refused.header.error(), Some(EBUSY));
    surplus.assert_closed();
}

#[test]
fn a_socket_that_lingers_keeps_nobody() {
    let mut backend = Backend::start();
    let map = [words([32, 3]), longs([0, 0x10_0000, 0x1000])].concat();
    for (command, body) in [
        (2, map),
        (4, words([16, 0, 0, 0])),
        (8, words([20, 0x24, 0, 0, 1])),
        (10, [longs([0]), words([7, 4]), vec![0; 4]].concat()),
    ] {
        let mut client = RawClient::attach(&backend.socket());
        let (socket, _other) = lingering();
        send_with(&mut client, socket, command, &body);
        client.assert_closed();
        RawClient::attach(&backend.socket()).assert_in_step();
    }
    // Before there is a version, and where there is another client.
    let (first, _first) = lingering();
    let version = Capabilities::default().encode(Version::default());
    let mut stranger = RawClient::connect(&backend.socket());
    send_with(&mut stranger, first, Command::Version.into(), &version);
    stranger.assert_closed();
    let mut client = RawClient::attach(&backend.socket());
    let (second, _second) = lingering();
    surplus_with(&backend, second);
    client.assert_in_step();
    // In what is never read.
    let (third, _third) = lingering();
    let long = client.message(Command::RegionRead, 0, &[0; 1000]);
    client.send(&long[..8], &[]);
    client.send(&long[8..9], &[third.as_fd()]);
    let_go(third, &client);
    drop(client);
    RawClient::attach(&backend.socket()).assert_in_step();
    assert!(backend.terminate().success());
}

#[test]
fn the_clients_own_end_is_nothing_else() {
    let backend = Backend::start();
    let mut client = RawClient::connect(&backend.socket());
    client.negotiate(&offering(&[MIG_CHANNEL]));
    let own = client.stream().try_clone().expect("a copy");
    let trigger = client.call(8_u16, &words([20, 0x24, 2, 0, 1]), &[own.as_fd()]);
    assert_eq!(trigger.err(), Some(EINVAL));
    let channel = client.call(Command::MigChannel, &words([8, 0]), &[own.as_fd()]);
    assert_eq!(channel.err(), Some(EINVAL));
    drop((own, client));
    RawClient::attach(&backend.socket()).assert_in_step();
}
