// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a client without any extension gets: the whole of migration, and nothing that the specification lacks.

use std::collections::HashMap;
use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use system_tests::{
    backend::Backend,
    engine::{self, Registers},
    migrating::Migrates,
    model_gpu::engine as registers,
    pattern,
    raw_client::{RawClient, access},
};
use vfio_user_protocol::{
    Command, Request,
    dma::{DmaMap, MAP_READ, MAP_WRITE},
    feature::{GET, MIG_DATA_SIZE, MIG_DEVICE_STATE, MIG_PRECOPY_INFO_V2, MIGRATION, PROBE, SET},
    migration::MigrationState::{self as State, *},
    version::Capabilities,
};
use zerocopy::IntoBytes;

use crate::{EBUSY, EINVAL, EPROTO, MIB};

const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
const VRAM: u32 = 0;

/// Decoding and bus mastering on.
fn enable(client: &mut RawClient) {
    client.write(CONFIG, COMMAND, &[6, 0]);
}

#[test]
fn features_are_those_of_the_specification_and_two_of_the_kernel() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    // STOP_COPY and PRE_COPY, without P2P.
    assert_eq!(
        client.feature(MIGRATION | GET, 16, &[]),
        Ok(5_u64.to_ne_bytes().to_vec())
    );
    assert_eq!(client.state(), Running);
    assert_eq!(
        client.feature(MIG_DATA_SIZE | GET, 16, &[]).unwrap().len(),
        8
    );
    assert_eq!(
        client.feature(MIG_PRECOPY_INFO_V2 | SET, 8, &[]),
        Ok(Vec::new())
    );
    for (flags, argsz, data) in [
        (MIGRATION | PROBE | GET, 8, &[][..]),
        (MIG_DEVICE_STATE | PROBE | GET | SET, 8, &[]),
        (MIG_DATA_SIZE | PROBE | GET, 8, &[]),
        (MIG_PRECOPY_INFO_V2 | PROBE | SET, 8, &[]),
    ] {
        assert_eq!(
            client.feature(flags, argsz, data),
            Ok(Vec::new()),
            "{flags:#x}"
        );
    }
    for (flags, argsz, data) in [
        (MIGRATION | SET, 16, &[0; 8][..]),
        (MIGRATION | PROBE | GET | SET, 8, &[]),
        (MIGRATION | GET, 8, &[]),
        (MIGRATION | GET, 2, &[]),
        (MIGRATION, 16, &[]),
        (MIG_DEVICE_STATE | GET | SET, 16, &[0; 8]),
        (MIG_DEVICE_STATE | SET, 8, &[2, 0, 0, 0, 0, 0, 0, 0]),
        (MIG_DEVICE_STATE | SET, 15, &[2, 0, 0, 0, 0, 0, 0]),
        (MIG_DEVICE_STATE | SET, 8, &[]),
        (MIG_DATA_SIZE | SET, 16, &[0; 8]),
        (MIG_PRECOPY_INFO_V2 | GET, 16, &[]),
        (3 | PROBE | SET, 8, &[]),
        (0xffff | PROBE | GET, 8, &[]),
        (MIGRATION | GET | 1 << 19, 16, &[]),
    ] {
        assert_eq!(
            client.feature(flags, argsz, data),
            Err(EINVAL),
            "{flags:#x} {argsz}"
        );
    }
    client.assert_in_step();
    assert_eq!(client.state(), Running);
}

#[test]
fn every_change_of_state_is_the_specifications() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let shown = [Stop, Running, StopCopy, Resuming, PreCopy];
    let hidden = [Error, RunningP2p, PreCopyP2p];
    let mut seen = HashMap::new();
    for from in shown {
        for to in shown.into_iter().chain(hidden) {
            client.set_state(from);
            let allowed = shown.contains(&to) && (from, to) != (StopCopy, PreCopy);
            let changed = client.try_set_state(to.into());
            assert_eq!(
                changed,
                if allowed { Ok(()) } else { Err(EINVAL) },
                "{from} to {to}"
            );
            assert_eq!(client.state(), if allowed { to } else { from });
            seen.insert((from, to), ());
            client.set_state(Running);
        }
    }
    assert_eq!(seen.len(), 40);
    for number in [8, 99, 0xabcd, u32::MAX] {
        assert_eq!(client.try_set_state(number), Err(EINVAL));
    }
}

#[test]
fn data_is_read_and_written_in_its_states_only_and_in_bounds() {
    let backend = Backend::start();
    let mut client = RawClient::connect(&backend.socket());
    client.negotiate(&Capabilities {
        max_data_xfer_size: Some(8192),
        ..Capabilities::default()
    });
    for state in [Running, Stop, Resuming] {
        client.set_state(state);
        assert_eq!(client.data_read(16), Err(EINVAL), "{state}");
    }
    client.set_state(Running);
    for state in [Running, Stop, StopCopy, PreCopy] {
        client.set_state(Running);
        client.set_state(state);
        assert_eq!(client.data_write(b"data"), Err(EINVAL), "{state}");
    }
    assert_eq!(
        client.data_read(8193),
        Err(EINVAL),
        "more than this client takes"
    );
    assert_eq!(
        client.call(Command::MigDataRead, &[0; 7], &[]).err(),
        Some(EINVAL)
    );
    let small_argsz = [15_u32, 8];
    assert_eq!(
        client
            .call(Command::MigDataRead, small_argsz.as_bytes(), &[])
            .err(),
        Some(EINVAL)
    );
    assert!(client.data_read(0).unwrap().is_empty());
    client.assert_in_step();
}

#[test]
fn a_client_without_a_channel_is_answered_in_the_order_it_asked() {
    let backend = Backend::start_model(&["faults=slow-save=200ms"]);
    let mut client = RawClient::attach(&backend.socket());
    enable(&mut client);
    client.write(VRAM, 0, &pattern::bytes(5, 4 * 4096));
    client.set_state(PreCopy);
    let scratch = access(engine::REGION, registers::SCRATCH, 4);
    let read = [4104_u32, 4096];
    let write = Request::RegionWrite(scratch, &[7; 4]).encode();
    // What waits behind a slow read takes no time itself.
    let requests = [
        (Command::MigDataRead, read.as_bytes(), 4104),
        (Command::RegionRead, scratch.as_bytes(), 20),
        (Command::RegionWrite, &write, 16),
        (Command::MigDataRead, read.as_bytes(), 4104),
        (Command::RegionRead, scratch.as_bytes(), 20),
    ];
    let messages = requests.map(|(command, body, _)| client.message(command, 0, body));
    client.send(&messages.concat(), &[]);
    let replies = messages.map(|message| client.answer_to(&message).unwrap().body);
    assert_eq!(
        replies.each_ref().map(Vec::len),
        requests.map(|(.., size)| size)
    );
    assert_eq!(
        (&replies[1][16..], &replies[4][16..]),
        (&[0; 4][..], &[7; 4][..])
    );
}

#[test]
fn a_guest_goes_on_elsewhere() {
    let (from, to) = (Backend::start(), Backend::start());
    let mut source = RawClient::attach(&from.socket());
    let data = pattern::bytes(7, 3 * MIB + 77);
    enable(&mut source);
    for (index, piece) in data.chunks(MIB / 2).enumerate() {
        source.write(VRAM, (index * MIB / 2) as u64 + 4096, piece);
    }
    source.set(registers::SCRATCH, 0x5ca1_ab1e);
    source.set(registers::INT_ENABLE, 0xff);
    source.set(registers::INT_RAISE, 1 << 3);
    // The MSI-X table, and where the guest put a BAR.
    source.write(4, 0x2010, &0xfee0_1004_u32.to_le_bytes());
    source.write(CONFIG, 0x18, &0xfeb0_0000_u32.to_le_bytes());
    let mut config = source.read::<4096>(CONFIG, 0);

    // Pre-copy, with the guest at work.
    source.set_state(PreCopy);
    let mut stream = source.read_all(MIB).unwrap();
    source.write(VRAM, 1 << 25, b"while it is copied");
    source.write(VRAM, 4096 + 100, b"again");
    for _ in 0..3 {
        stream.extend(source.read_all(100_000).unwrap());
    }
    source.write(VRAM, 1 << 24, b"at the last moment");
    stream.extend(source.stop_and_copy(MIB));
    assert!(
        source.data_read(MIB).unwrap().is_empty(),
        "the end stays the end"
    );

    let mut destination = RawClient::attach(&to.socket());
    destination.set_state(Resuming);
    destination.write_all(&stream, 65_521).unwrap();
    destination.set_state(Running);
    assert_eq!(destination.state(), Running);
    let mut expected = data;
    expected[100..105].copy_from_slice(b"again");
    for (index, piece) in expected.chunks(4096).enumerate() {
        let found: [u8; 4096] = destination.read(VRAM, (index * 4096) as u64 + 4096);
        assert!(
            found[..piece.len()] == *piece,
            "VRAM differs in page {index}"
        );
    }
    assert_eq!(destination.read(VRAM, 1 << 25), *b"while it is copied");
    assert_eq!(destination.read(VRAM, 1 << 24), *b"at the last moment");
    assert_eq!(destination.get(registers::SCRATCH), 0x5ca1_ab1e);
    assert_eq!(destination.get(registers::INT_STATUS), 1 << 3);
    assert_eq!(destination.get(registers::INT_ENABLE), 0xff);
    assert_eq!(destination.read(4, 0x2010), 0xfee0_1004_u32.to_le_bytes());
    let mut found = destination.read::<4096>(CONFIG, 0);
    // Pending INTx is told live.
    for config in [&mut config, &mut found] {
        config[6] &= !8;
    }
    assert!(found == config, "config space");

    // The engine is alive there, with memory of its own.
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, MIB as u64).unwrap();
    let map = DmaMap {
        argsz: 32,
        flags: MAP_READ | MAP_WRITE,
        offset: 0,
        address: 0x10_0000,
        size: MIB as u64,
    };
    destination
        .request(&Request::DmaMap(map), &[memory.as_fd()])
        .unwrap();
    pwrite(&memory, b"from the guest", 0).unwrap();
    let copy = registers::COMMAND_COPY;
    let done = engine::run(&mut destination, copy, 0x10_0000, 0x10_1000, 14);
    assert_eq!(
        (done.status & registers::STATUS_ERROR, done.completed),
        (0, 14)
    );
    let mut back = [0; 14];
    pread(&memory, &mut back, 4096).unwrap();
    assert_eq!(&back, b"from the guest");

    // And the source can take its guest back, unharmed.
    source.set_state(Running);
    assert_eq!(source.read(VRAM, 1 << 24), *b"at the last moment");
    assert_eq!(source.get(registers::SCRATCH), 0x5ca1_ab1e);
}

#[test]
fn regions_are_closed_while_they_are_saved_or_loaded() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    enable(&mut client);
    for state in [StopCopy, Resuming] {
        client.set_state(state);
        let read = Request::RegionRead(access(4, 0, 4));
        assert_eq!(client.request(&read, &[]).err(), Some(EBUSY), "{state}");
        let write = Request::RegionWrite(access(4, 0xc, 4), &[1; 4]);
        assert_eq!(client.request(&write, &[]).err(), Some(EBUSY));
        // Config space, interrupts and maps are not concerned.
        assert_eq!(client.read::<2>(CONFIG, 0), 0x1234_u16.to_le_bytes());
        client.assert_in_step();
        client.set_state(Running);
    }
    enable(&mut client);
    assert_eq!(client.get(registers::ID), registers::ID_VALUE);
}

#[test]
fn a_reset_ends_migration_in_running() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for state in [Stop, StopCopy, Resuming, PreCopy] {
        client.set_state(state);
        client.request(&Request::DeviceReset, &[]).unwrap();
        assert_eq!(client.state(), Running, "after {state}");
        assert_eq!(client.data_read(16), Err(EINVAL));
    }
}

#[test]
fn a_client_that_leaves_in_any_state_leaves_a_clean_device() {
    let backend = Backend::start();
    for state in State::ALL {
        if matches!(state, Error | RunningP2p | PreCopyP2p) {
            continue;
        }
        let mut client = RawClient::attach(&backend.socket());
        enable(&mut client);
        client.set(registers::SCRATCH, 7);
        client.set_state(state);
        if state == Resuming {
            assert_eq!(client.data_write(&[b'x'; 100]), Err(EPROTO));
        }
        drop(client);
        let mut next = RawClient::attach(&backend.socket());
        assert_eq!(next.state(), Running, "after {state}");
        enable(&mut next);
        assert_eq!(next.get(registers::SCRATCH), 0);
    }
}

#[test]
fn a_device_that_is_kept_runs_on() {
    let backend = Backend::start_with(&[], &["--on-disconnect", "keep"]);
    for state in [Running, Stop, StopCopy, PreCopy] {
        let mut client = RawClient::attach(&backend.socket());
        enable(&mut client);
        client.set(registers::SCRATCH, 7);
        client.set_state(state);
        drop(client);
        let mut next = RawClient::attach(&backend.socket());
        assert_eq!(next.state(), Running, "after {state}");
        enable(&mut next);
        assert_eq!(next.get(registers::SCRATCH), 7, "after {state}");
    }
    let mut client = RawClient::attach(&backend.socket());
    client.set_state(Resuming);
    drop(client);
    let mut next = RawClient::attach(&backend.socket());
    assert_eq!(next.state(), Running);
    enable(&mut next);
    assert_eq!(
        next.get(registers::SCRATCH),
        0,
        "half a load is nothing to keep"
    );
}
