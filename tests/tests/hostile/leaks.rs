// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! After a long series of abuse the process holds as much as before: descriptors, threads; and has not filled the log.

use std::{fs, os::fd::AsFd};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use system_tests::{backend::Backend, eventfd::Eventfd, raw_client::RawClient};
use vfio_user_protocol::{
    Command, extension,
    version::{Capabilities, Extension, TwinSocket},
};

use crate::{EINVAL, longs, witness::Witness, words};

/// Descriptors and threads of a backend that serves a client which has just attached.
#[track_caller]
fn holdings(backend: &Backend) -> (usize, String) {
    let mut client = RawClient::attach(&backend.socket());
    client.assert_in_step();
    let status = fs::read_to_string(format!("/proc/{}/status", backend.process_id()));
    let status = status.expect("the backend runs");
    let threads = status.lines().find(|line| line.starts_with("Threads:"));
    let threads = threads.expect("a count of threads").to_owned();
    (backend.open_descriptors(), threads)
}

fn with_twin() -> Capabilities {
    Capabilities {
        twin_socket: Some(TwinSocket {
            supported: true,
            fd_index: None,
        }),
        extension: Some(Extension {
            version: 1,
            features: vec![extension::IRQ_ROUTES.to_owned()],
            ..Extension::default()
        }),
        ..Capabilities::default()
    }
}

/// A session that takes and gives everything there is, and ends without a goodbye.
fn greedy_session(backend: &Backend, round: usize) {
    let mut client = RawClient::connect(&backend.socket());
    if round.is_multiple_of(2) {
        client.negotiate(&with_twin());
    } else {
        client.negotiate(&Capabilities::default());
    }
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&memory, 16 << 12).expect("a size");
    for page in 0..16_u64 {
        let body = [words([32, 3]), longs([0, page << 12, 1 << 12])].concat();
        let answer = client.call(Command::DmaMap, &body, &[memory.as_fd()]);
        assert!(answer.is_ok());
    }
    for (index, vectors) in [(0, 1), (1, 8), (2, 8), (3, 1), (4, 1)] {
        let eventfds: Vec<_> = (0..vectors).map(|_| Eventfd::new()).collect();
        let fds: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
        let count = u32::try_from(vectors).expect("few");
        let armed = client.call(
            Command::DeviceSetIrqs,
            &words([20, 0x24, index, 0, count]),
            &fds,
        );
        assert!(armed.is_ok());
    }
    let unmask = Eventfd::new();
    let armed = client.call(
        Command::DeviceSetIrqs,
        &words([20, 0x14, 0, 0, 1]),
        &[unmask.as_fd()],
    );
    assert!(armed.is_ok());
    for index in 0..9 {
        let body = words([32, 0, index, 0, 0, 0, 0, 0]);
        assert!(
            client
                .call(Command::DeviceGetRegionInfo, &body, &[])
                .is_ok()
        );
    }
    let witness = Witness::new();
    for count in [2, 17, 253] {
        let answer = client.call(Command::DmaMap, &[0; 32], &witness.fds(count));
        assert_eq!(answer.err(), Some(EINVAL));
    }
    let unfinished = client.message(Command::DmaMap, 0, &[0; 32]);
    client.send(&unfinished[..40], &witness.fds(16));
    drop(client);
    witness.assert_all_closed();
}

fn bad_connections(backend: &Backend) {
    let witness = Witness::new();
    // A probe; a version with descriptors; no version at all; a size below a header.
    drop(RawClient::connect(&backend.socket()));
    let mut client = RawClient::connect(&backend.socket());
    assert!(
        client
            .call(Command::Version, &words([0]), &witness.fds(3))
            .is_err()
    );
    client.assert_closed();
    let mut client = RawClient::connect(&backend.socket());
    assert!(client.call(Command::DeviceReset, &[], &[]).is_err());
    client.assert_closed();
    let client = RawClient::attach(&backend.socket());
    client.send(&[0; 16], &witness.fds(5));
    let _ = client.receive();
    client.assert_closed();
    // One client too many, with descriptors that nobody looks at.
    let _first = RawClient::attach(&backend.socket());
    let mut second = RawClient::connect(&backend.socket());
    assert!(
        second
            .call(Command::Version, &words([0]), &witness.fds(4))
            .is_err()
    );
    second.assert_closed();
    witness.assert_all_closed();
}

#[test]
fn nothing_is_left_of_a_hundred_bad_clients() {
    let backend = Backend::start();
    greedy_session(&backend, 0);
    let before = holdings(&backend);
    for round in 0..100 {
        greedy_session(&backend, round);
        bad_connections(&backend);
    }
    assert_eq!(holdings(&backend), before, "{}", backend.report());
}

#[test]
fn bad_clients_cannot_fill_the_log() {
    let backend = Backend::start();
    for _ in 0..500 {
        let mut client = RawClient::connect(&backend.socket());
        assert!(client.call(Command::DeviceReset, &[], &[]).is_err());
        client.assert_closed();
        let mut client = RawClient::attach(&backend.socket());
        assert!(client.call(19_u16, &[], &[]).is_err());
    }
    // Each of them is worth several lines; one a second is written. (In 500 seconds this fails for another reason.)
    let lines = backend.report().lines().count();
    assert!(lines < 500, "{lines} lines");
    RawClient::attach(&backend.socket()).assert_in_step();
}
