// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptors where none belong, or too many: closed, every one, at once.

use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use system_tests::{
    backend::Backend,
    eventfd::Eventfd,
    raw_client::{MAX_FDS as KERNEL_MAX_FDS, RawClient},
};
use vfio_user_protocol::{Command, header::NO_REPLY};

use crate::{
    EINVAL, MAX_FDS, MAX_MESSAGE, longs,
    witness::{Witness, received},
    words,
};

/// A good body of each command that a client may send.
fn good_bodies() -> Vec<(u16, Vec<u8>)> {
    let read = [longs([0]), words([7, 4])].concat();
    vec![
        (1, words([0])),
        (2, [words([32, 3]), longs([0, 0x10_0000, 0x1000])].concat()),
        (3, [words([24, 2]), longs([0, 0])].concat()),
        (4, words([16, 0, 0, 0])),
        (5, words([32, 0, 0, 0, 0, 0, 0, 0])),
        (6, words([16, 0, 0, 0])),
        (7, words([16, 0, 0, 0])),
        (8, words([20, 0x21, 2, 0, 1])),
        (9, read.clone()),
        (10, [read, vec![0; 4]].concat()),
        (11, longs([0, 4])),
        (12, [longs([0, 4]), vec![0; 4]].concat()),
        (13, vec![]),
        (15, longs([0])),
        (16, words([16, 0x1_0001, 0, 0])),
        (17, words([16, 8])),
        (18, words([16, 0])),
        (19, vec![]),
        (0xffff, vec![]),
    ]
}

#[test]
fn where_none_belong() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for (command, body) in good_bodies() {
        for count in [1, 2, MAX_FDS, MAX_FDS + 1, KERNEL_MAX_FDS] {
            if command == 2 && count == 1 {
                continue;
            }
            let witness = Witness::new();
            let answer = client.call(command, &body, &witness.fds(count));
            assert_eq!(answer.err(), Some(EINVAL), "{count} with command {command}");
            witness.assert_all_closed();
        }
        client.assert_in_step();
    }
}

#[test]
fn with_posted_messages() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for (command, body) in good_bodies() {
        let witness = Witness::new();
        let message = client.message(command, NO_REPLY, &body);
        client.send(&message, &witness.fds(2));
        witness.assert_all_closed();
    }
    client.assert_in_step();
}

#[test]
fn with_malformed_messages() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for (command, body) in good_bodies() {
        // Neither command nor reply, and a body that is cut.
        let witness = Witness::new();
        let message = client.message(command, 2, &body);
        client.send(&message, &witness.fds(1));
        assert_eq!(client.answer_to(&message).err(), Some(EINVAL));
        witness.assert_all_closed();
        if !body.is_empty() {
            let witness = Witness::new();
            let cut = &body[..body.len() - 1];
            let answer = client.call(command, cut, &witness.fds(1));
            assert_eq!(answer.err(), Some(EINVAL));
            witness.assert_all_closed();
        }
    }
    let witness = Witness::new();
    let answer = client.call(10_u16, &vec![0; MAX_MESSAGE], &witness.fds(3));
    assert_eq!(answer.err(), Some(EINVAL));
    witness.assert_all_closed();
    client.assert_in_step();
}

#[test]
fn with_every_piece_of_a_message() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let (command, body) = (9_u16, [longs([0]), words([7, 4])].concat());
    let message = client.message(command, 0, &body);
    let witness = Witness::new();
    for byte in &message {
        client.send(&[*byte], &witness.fds(1));
        received(&client);
    }
    assert_eq!(client.answer_to(&message).err(), Some(EINVAL));
    witness.assert_all_closed();
    client.assert_in_step();
}

#[test]
fn more_than_one_message_can_have() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let message = client.message(Command::DeviceGetInfo, 0, &words([16, 0, 0, 0]));
    let witness = Witness::new();
    client.send(&message[..1], &witness.fds(KERNEL_MAX_FDS));
    let _ = client.try_send(&message[1..], &witness.fds(1));
    client.assert_closed();
    witness.assert_all_closed();
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn with_a_message_that_never_ends() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let message = client.message(Command::DmaMap, 0, &[0; 32]);
    let witness = Witness::new();
    client.send(&message[..20], &witness.fds(16));
    received(&client);
    drop(client);
    witness.assert_all_closed();
    RawClient::attach(&backend.socket()).assert_in_step();
}

#[test]
fn guest_memory_has_one() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, 4096).expect("a size");
    let body = [words([32, 3]), longs([0, 0, 4096])].concat();
    let two = [file.as_fd(), file.as_fd()];
    let answer = client.call(Command::DmaMap, &body, &two);
    assert_eq!(answer.err(), Some(EINVAL));
    client.assert_in_step();
    assert!(client.call(Command::DmaMap, &body, &two[..1]).is_ok());
}

#[test]
fn interrupts_have_one_each() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    const EVENTFD_TRIGGER: u32 = 0x24;
    for (count, found) in [(1, 2), (2, 1), (8, 7), (7, 8), (8, 16)] {
        let witness = Witness::new();
        let body = words([20, EVENTFD_TRIGGER, 2, 0, count]);
        let answer = client.call(Command::DeviceSetIrqs, &body, &witness.fds(found));
        assert_eq!(answer.err(), Some(EINVAL), "{found} for {count}");
        witness.assert_all_closed();
    }
    // What is replaced, taken away, or left behind by a client is closed as well.
    let body = words([20, EVENTFD_TRIGGER, 2, 0, 8]);
    let [first, second, third] = [(); 3].map(|()| Witness::new());
    assert!(client.call(8_u16, &body, &first.fds(8)).is_ok());
    assert!(client.call(8_u16, &body, &second.fds(8)).is_ok());
    first.assert_all_closed();
    let away = words([20, 0x21, 2, 0, 0]);
    assert!(client.call(8_u16, &away, &[]).is_ok());
    second.assert_all_closed();
    assert!(client.call(8_u16, &body, &third.fds(8)).is_ok());
    client.assert_in_step();
    drop(client);
    third.assert_all_closed();
}

#[test]
fn an_unmask_eventfd_that_is_none() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    // A pipe, whose end of file is read as if it were a count; a regular file, which cannot be waited for.
    let unmask = words([20, 0x14, 0, 0, 1]);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    assert!(client.call(8_u16, &unmask, &[reader.as_fd()]).is_ok());
    rustix::io::write(&writer, b"abc").expect("room in a pipe");
    drop(writer);
    client.assert_in_step();
    let file = memfd_create("no eventfd", MemfdFlags::CLOEXEC).expect("a memfd");
    let answer = client.call(8_u16, &unmask, &[file.as_fd()]);
    assert!(answer.is_err());
    client.assert_in_step();
    // One that fires all the time, and is also what it unmasks.
    let eventfd = Eventfd::new();
    assert!(client.call(8_u16, &unmask, &[eventfd.as_fd()]).is_ok());
    let trigger = words([20, 0x24, 0, 0, 1]);
    assert!(client.call(8_u16, &trigger, &[eventfd.as_fd()]).is_ok());
    client.write32(7, 4, 6);
    client.write32(4, 0x64, 1);
    client.write32(4, 0x68, 1);
    client.assert_in_step();
    drop(client);
    RawClient::attach(&backend.socket()).assert_in_step();
}
