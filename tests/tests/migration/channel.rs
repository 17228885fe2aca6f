// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The migration channel and shared memory, used wrongly; and what a slow save does not do to the guest.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::pipe::pipe;
use system_tests::{
    backend::Backend,
    engine::Registers,
    migrating::{Migrates, explain, offering},
    model_gpu::engine as registers,
    raw_client::RawClient,
};
use vfio_user_protocol::{
    Command, Request,
    extension::migration::{
        EXPLAIN, MIG_CHANNEL, MIG_SHM, MigShm, PENDING, PRECOPY_INFO, Query, SHM_END_OF_STREAM,
        ShmTransfer,
    },
    feature::{MIG_DEVICE_STATE, SET},
    header::NO_REPLY,
    migration::MigrationState::*,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{EINVAL, MIB};

const ALL: [&str; 5] = [MIG_CHANNEL, MIG_SHM, PENDING, PRECOPY_INFO, EXPLAIN];
const QUERY: Query = Query {
    argsz: 64,
    flags: 0,
};

fn client(backend: &Backend, features: &[&str]) -> RawClient {
    let mut client = RawClient::connect(&backend.socket());
    let (granted, _) = client.negotiate(&offering(features));
    for feature in features {
        assert!(granted.has_feature(feature), "{feature}");
    }
    client
}

fn open_channel(client: &mut RawClient) -> RawClient {
    let (ours, theirs) = UnixStream::pair().unwrap();
    client
        .call(Command::MigChannel, QUERY.as_bytes(), &[theirs.as_fd()])
        .unwrap();
    RawClient::over(ours)
}

#[test]
fn nothing_is_served_that_was_not_granted() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let shm = ShmTransfer {
        argsz: 24,
        ..ShmTransfer::default()
    };
    for command in [
        Command::MigPrecopyInfo,
        Command::MigPending,
        Command::Explain,
    ] {
        assert_eq!(
            client.call(command, QUERY.as_bytes(), &[]).err(),
            Some(EINVAL)
        );
    }
    for command in [Command::MigShmRead, Command::MigShmWrite] {
        assert_eq!(
            client.call(command, shm.as_bytes(), &[]).err(),
            Some(EINVAL)
        );
    }
    let (_, theirs) = UnixStream::pair().unwrap();
    let refused = client.call(Command::MigChannel, QUERY.as_bytes(), &[theirs.as_fd()]);
    assert_eq!(refused.err(), Some(EINVAL));
    client.assert_in_step();
}

#[test]
fn a_channel_is_a_stream_socket_and_the_only_one() {
    let backend = Backend::start();
    let mut client = client(&backend, &ALL);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let (reader, _writer) = pipe().unwrap();
    let (datagram, _) = UnixDatagram::pair().unwrap();
    for wrong in [event.as_fd(), reader.as_fd(), datagram.as_fd()] {
        let refused = client.call(Command::MigChannel, QUERY.as_bytes(), &[wrong]);
        assert_eq!(refused.err(), Some(EINVAL));
    }
    assert_eq!(
        client
            .call(Command::MigChannel, QUERY.as_bytes(), &[])
            .err(),
        Some(EINVAL)
    );
    let mut channel = open_channel(&mut client);
    assert_eq!(channel.state(), Running);
    let (_, theirs) = UnixStream::pair().unwrap();
    let second = client.call(Command::MigChannel, QUERY.as_bytes(), &[theirs.as_fd()]);
    assert_eq!(second.err(), Some(EINVAL));
    assert!(explain(&mut client).contains("open already"));
    // Only migration goes there, and it stays in step.
    for command in [
        Command::DeviceReset,
        Command::DeviceGetInfo,
        Command::Version,
    ] {
        assert_eq!(channel.call(command, &[0; 32], &[]).err(), Some(EINVAL));
    }
    assert_eq!(channel.state(), Running);
    drop(channel);
    client.assert_in_step();
    // A client that goes takes its channel along.
    drop(client);
    let mut next = RawClient::attach(&backend.socket());
    next.assert_in_step();
}

#[test]
fn a_channel_that_is_out_of_step_is_closed_and_the_client_served_on() {
    let backend = Backend::start();
    let mut client = client(&backend, &ALL);
    let mut channel = open_channel(&mut client);
    // A message shorter than its own header.
    let mut message = channel.message(Command::DeviceFeature, 0, &[]);
    message[4..8].copy_from_slice(&8_u32.to_ne_bytes());
    channel.send(&message, &[]);
    assert_eq!(channel.answer_to(&message).err(), Some(EINVAL));
    channel.assert_closed();
    client.set_state(PreCopy);
    assert_eq!(client.state(), PreCopy);
}

/// What a client falls back to whose channel broke: the main socket leads its device back, and moves it.
#[test]
fn without_its_channel_a_client_goes_on_on_the_main_socket() {
    let (backend, target) = (Backend::start(), Backend::start());
    let mut client = client(&backend, &ALL);
    let mut channel = open_channel(&mut client);
    channel.set_state(StopCopy);
    channel.data_read(100).unwrap();
    drop(channel);
    assert_eq!(client.state(), StopCopy);
    client.set_state(Running);
    client.set_state(StopCopy);
    let stream = client.read_all(MIB).unwrap();
    let mut destination = RawClient::attach(&target.socket());
    destination.set_state(Resuming);
    destination.write_all(&stream, MIB).unwrap();
    destination.set_state(Running);
}

#[test]
fn a_client_that_leaves_its_channel_open_is_cleared_away() {
    let backend = Backend::start();
    let mut client = client(&backend, &ALL);
    let mut channel = open_channel(&mut client);
    channel.set_state(PreCopy);
    drop(client);
    let mut next = RawClient::attach(&backend.socket());
    assert_eq!(next.state(), Running);
    channel.assert_closed();
}

#[test]
fn what_is_queued_on_a_channel_does_not_outlive_its_client() {
    let backend = Backend::start_model(&["faults=slow-save=600000"]);
    let mut client = client(&backend, &ALL);
    let mut channel = open_channel(&mut client);
    channel.set_state(PreCopy);
    // The first is under way when the client leaves, and ended by the reset; the second must not follow.
    // (An answer to it could not be sent, which would end the channel too.)
    let read = channel.message(
        Command::MigDataRead,
        NO_REPLY,
        [65_544_u32, 65_536].as_bytes(),
    );
    let resuming = [16_u32, MIG_DEVICE_STATE | SET, Resuming.into(), u32::MAX];
    let set = channel.message(Command::DeviceFeature, 0, resuming.as_bytes());
    channel.send(&[read, set].concat(), &[]);
    drop(client);
    let mut next = RawClient::attach(&backend.socket());
    assert_eq!(next.state(), Running);
}

/// A device that is to be kept, whose driver is an hour about a read on the channel.
fn stuck() -> (Backend, RawClient, RawClient) {
    let arguments = ["--on-disconnect", "keep", "--log-level", "debug"];
    let backend = Backend::start_with(&["faults=slow-save=3600s"], &arguments);
    let mut client = client(&backend, &ALL);
    let mut channel = open_channel(&mut client);
    channel.set_state(PreCopy);
    let read = channel.message(Command::MigDataRead, 0, [65_544_u32, 65_536].as_bytes());
    channel.send(&read, &[]);
    backend.wait_for_log("A fault: waiting", 1);
    (backend, client, channel)
}

#[test]
fn a_driver_that_does_not_return_keeps_no_later_client_waiting() {
    let (backend, client, _channel) = stuck();
    drop(client);
    let mut next = RawClient::attach(&backend.socket());
    assert_eq!(next.state(), Running);
}

#[test]
fn a_client_that_is_thrown_out_hears_so_and_is_waited_for_no_longer_than_one_that_left() {
    let (backend, mut client, _channel) = stuck();
    // A message shorter than its own header.
    let mut message = client.message(Command::DeviceGetInfo, 0, &[]);
    message[4..8].copy_from_slice(&8_u32.to_ne_bytes());
    client.send(&message, &[]);
    assert_eq!(client.answer_to(&message).err(), Some(EINVAL));
    client.assert_closed();
    let mut next = RawClient::attach(&backend.socket());
    assert_eq!(next.state(), Running);
}

#[test]
fn shared_memory_is_checked_and_may_be_taken_away() {
    let backend = Backend::start();
    let mut client = client(&backend, &ALL);
    let memory = memfd_create("shared", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 2 * MIB as u64).unwrap();
    let (reader, _writer) = pipe().unwrap();
    let share = |size| MigShm {
        argsz: 16,
        flags: 0,
        size,
    };
    let transfer = |offset, size| ShmTransfer {
        argsz: 24,
        flags: 0,
        offset,
        size,
    };
    let before = client.request(&Request::MigShmRead(transfer(0, 4096)), &[]);
    assert_eq!(before.err(), Some(EINVAL), "nothing shared yet");
    for (size, fd) in [
        (0, memory.as_fd()),
        (4095, memory.as_fd()),
        (2 * MIB as u64 + 4096, memory.as_fd()),
        (1 << 40, memory.as_fd()),
        (!4095, memory.as_fd()),
        (4096, reader.as_fd()),
    ] {
        let refused = client.request(&Request::MigShm(share(size)), &[fd]);
        assert_eq!(refused.err(), Some(EINVAL), "{size}");
    }
    client
        .request(&Request::MigShm(share(2 * MIB as u64)), &[memory.as_fd()])
        .unwrap();
    client.set_state(StopCopy);
    for (offset, size) in [
        (0, 2 * MIB as u64 + 1),
        (2 * MIB as u64, 1),
        (u64::MAX, 2),
        (1, u64::MAX),
    ] {
        let refused = client.request(&Request::MigShmRead(transfer(offset, size)), &[]);
        assert_eq!(refused.err(), Some(EINVAL), "{offset:#x} {size:#x}");
    }
    // Truncated while in use: refused, not fatal.
    ftruncate(&memory, 0).unwrap();
    assert!(
        client
            .request(&Request::MigShmRead(transfer(0, 4096)), &[])
            .is_err()
    );
    client.assert_in_step();
    client.set_state(Running);
    let other = memfd_create("shared", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&other, MIB as u64).unwrap();
    client
        .request(&Request::MigShm(share(MIB as u64)), &[other.as_fd()])
        .unwrap();
    client.set_state(StopCopy);
    loop {
        let reply = client
            .request(&Request::MigShmRead(transfer(0, MIB as u64)), &[])
            .unwrap();
        let reply = ShmTransfer::read_from_bytes(&reply.body).unwrap();
        assert!(reply.size <= MIB as u64);
        if reply.flags == SHM_END_OF_STREAM {
            break;
        }
        assert_eq!(reply.flags, 0);
    }
}

#[test]
fn a_slow_save_keeps_no_access_waiting() {
    // Every read of the device takes ten minutes; a test that waits for one does not end.
    let backend = Backend::start_model(&["faults=slow-save=600000"]);
    let mut client = client(&backend, &ALL);
    client.write(7, 4, &[6, 0]);
    let mut channel = open_channel(&mut client);
    channel.set_state(PreCopy);
    let read = [u32::try_from(MIB).unwrap() + 8, u32::try_from(MIB).unwrap()];
    let message = channel.message(Command::MigDataRead, 0, read.as_bytes());
    channel.send(&message, &[]);
    for value in 0..1000 {
        client.set(registers::SCRATCH, value);
        assert_eq!(client.get(registers::SCRATCH), value);
    }
    assert!(channel.is_silent());
    // A reset reaches the device at once, and ends the save.
    client.request(&Request::DeviceReset, &[]).unwrap();
    assert!(channel.answer_to(&message).is_err());
    assert_eq!(channel.state(), Running);
}
