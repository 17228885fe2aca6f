// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bytes and messages: fragments, heaps, sizes, types, unknown commands.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::AsFd;

use system_tests::{
    backend::Backend,
    pattern, pci,
    raw_client::{RawClient, access},
};
use vfio_user_protocol::{
    Command, Header, Request,
    dma::DmaMap,
    header::NO_REPLY,
    version::{Capabilities, Version},
};
use zerocopy::IntoBytes;

use crate::{EINVAL, MAX_DATA, MAX_MESSAGE, witness::received};

const VRAM: u32 = 0;
const CONFIG: u32 = 7;

/// Attached, with memory decoding on.
fn attach(backend: &Backend) -> RawClient {
    let mut client = RawClient::attach(&backend.socket());
    client.write(
        CONFIG,
        pci::COMMAND.into(),
        &pci::COMMAND_MEMORY.to_le_bytes(),
    );
    client
}

#[test]
fn a_version_cut_at_every_byte() {
    let backend = Backend::start();
    let mut client = RawClient::connect(&backend.socket());
    let body = Capabilities::default().encode(Version::default());
    let length = client.message(Command::Version, 0, &body).len();
    for cut in 1..length {
        let mut client = RawClient::connect(&backend.socket());
        let message = client.message(Command::Version, 0, &body);
        client.send(&message[..cut], &[]);
        received(&client);
        client.send(&message[cut..], &[]);
        assert!(client.answer_to(&message).is_ok(), "cut at {cut}");
        client.assert_in_step();
    }
}

#[test]
fn requests_cut_at_every_byte() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, 4096).expect("a size");
    let map = DmaMap {
        argsz: 32,
        flags: 3,
        size: 4096,
        ..DmaMap::default()
    };
    let data = pattern::bytes(1, 13);
    let write = Request::RegionWrite(access(VRAM, 100, 13), &data);
    let read = Request::RegionRead(access(VRAM, 100, 13));
    let requests = [
        (write.command(), write.encode(), false),
        (read.command(), read.encode(), false),
        (Command::DmaMap, map.as_bytes().to_vec(), true),
    ];
    for (command, body, with_fd) in requests {
        let fds = [file.as_fd()];
        let fds = if with_fd { &fds[..] } else { &[] };
        for cut in 1..16 + body.len() {
            // With the descriptors on the first byte of either part.
            for late in [false, true] {
                let message = client.message(command, 0, &body);
                client.send(&message[..cut], if late { &[] } else { fds });
                received(&client);
                client.send(&message[cut..], if late { fds } else { &[] });
                let answer = client.answer_to(&message);
                let answer = answer.unwrap_or_else(|e| panic!("{command:?} cut at {cut}: {e}"));
                if command == Command::RegionRead {
                    assert_eq!(answer.body[16..], data);
                }
            }
        }
    }
    client.assert_in_step();
}

#[test]
fn many_messages_in_one_send() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let mut heap = Vec::new();
    let mut messages = Vec::new();
    for value in 0..500_u32 {
        let offset = u64::from(value) * 4;
        let data = value.to_le_bytes();
        let write = Request::RegionWrite(access(VRAM, offset, 4), &data).encode();
        let posted = client.message(Command::RegionWrite, NO_REPLY, &write);
        let read = Request::RegionRead(access(VRAM, offset, 4)).encode();
        let read = client.message(Command::RegionRead, 0, &read);
        heap.extend_from_slice(&posted);
        heap.extend_from_slice(&read);
        messages.push((value, read));
    }
    client.send(&heap, &[]);
    for (value, read) in messages {
        let answer = client.answer_to(&read).expect("a read");
        assert_eq!(answer.body[16..], value.to_le_bytes());
    }
    client.assert_in_step();
}

#[test]
fn the_longest_message_and_one_byte_more() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let data = pattern::bytes(2, MAX_DATA);
    client.write(VRAM, 4096, &data);
    let read = Request::RegionRead(access(VRAM, 4096, MAX_DATA));
    let answer = client.request(&read, &[]).expect("1 MiB");
    assert!(answer.body[16..] == data, "1 MiB of VRAM");

    for excess in [1, 2, 15, 16, 17, 4096, 3 << 20] {
        let mut body = access(VRAM, 0, MAX_DATA + excess).as_bytes().to_vec();
        body.resize(MAX_MESSAGE - 16 + excess, 0x5a);
        let answer = client.call(Command::RegionWrite, &body, &[]);
        assert_eq!(answer.err(), Some(EINVAL), "{excess} bytes too many");
        client.assert_in_step();
    }
    assert_eq!(client.read(VRAM, 0), [0; 16], "nothing of it was written");
}

#[test]
fn a_size_that_nobody_can_send() {
    let backend = Backend::start();
    let client = attach(&backend);
    let header = Header {
        id: 1,
        command: Command::RegionWrite.into(),
        size: u32::MAX,
        ..Header::default()
    };
    client.send(header.as_bytes(), &[]);
    client.send(&vec![0; 2 << 20], &[]);
    drop(client);
    attach(&backend).assert_in_step();
}

#[test]
fn a_size_less_than_a_header_ends_the_connection() {
    let backend = Backend::start();
    for size in 0..16 {
        for body in [0, 100] {
            let client = attach(&backend);
            let header = Header {
                id: 7,
                command: Command::DeviceGetInfo.into(),
                size,
                ..Header::default()
            };
            let message = [header.as_bytes(), &vec![0; body]].concat();
            client.send(&message, &[]);
            assert_eq!(client.answer_to(&message).err(), Some(EINVAL));
            client.assert_closed();
        }
    }
    attach(&backend).assert_in_step();
}

#[test]
fn messages_that_are_no_commands() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    for message_type in 2..16 {
        let body = Request::DeviceGetInfo(Default::default()).encode();
        let message = client.message(Command::DeviceGetInfo, message_type, &body);
        client.send(&message, &[]);
        assert_eq!(client.answer_to(&message).err(), Some(EINVAL));
        client.assert_in_step();
    }
}

/// Two ends that answer whatever comes would go on for ever.
#[test]
fn a_reply_to_nothing_ends_the_connection() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let body = Request::DeviceGetInfo(Default::default()).encode();
    let message = client.message(Command::DeviceGetInfo, 1, &body);
    client.send(&message, &[]);
    client.assert_closed();
    attach(&backend).assert_in_step();
}

#[test]
fn commands_that_nobody_knows() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    for command in [0_u16, 14, 19, 20, 26, 255, 0x7fff, 0x8000, 0x8001, 0xffff] {
        for length in [0, 4, 100, 100_000] {
            let answer = client.call(command, &vec![0xa5; length], &[]);
            assert_eq!(answer.err(), Some(EINVAL), "command {command}");
        }
        client.assert_in_step();
    }
}

#[test]
fn nothing_posted_is_answered() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    for command in 0..30_u16 {
        for length in [0, 8, 16, 20, 24, 32, 64] {
            let message = client.message(command, NO_REPLY, &vec![0; length]);
            client.send(&message, &[]);
        }
        client.assert_in_step();
    }
    // Not even what cannot be framed as a message of this size.
    let mut message = client.message(Command::RegionWrite, NO_REPLY, &vec![0; MAX_MESSAGE]);
    message.extend_from_slice(&client.message(Command::DeviceReset, NO_REPLY, &[]));
    client.send(&message, &[]);
    client.assert_in_step();
}
