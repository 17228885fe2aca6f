// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dirty pages over the socket: what the model GPU's engine writes to guest memory is what a VMM is told, at every page
//! size, and nothing that a client asks makes the backend hang, die, or answer out of step.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command as Process;
use std::sync::Arc;
use std::thread;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use system_tests::backend::Backend;
use system_tests::binaries;
use system_tests::engine::{self, Engine};
use system_tests::migrating::{Migrates, offering};
use system_tests::model_gpu::engine::{COMMAND_COPY, COMMAND_FILL, COMMAND_SRC_VRAM, STATUS_DONE};
use system_tests::raw_client::RawClient;
use vfio_user_client::protocol::Command;
use vfio_user_client::protocol::extension::migration::MIG_CHANNEL;
use vfio_user_client::protocol::feature::DmaLoggingRange;
use vfio_user_client::protocol::header::NO_REPLY;
use vfio_user_client::protocol::migration::MigrationState::PreCopy;
use vfio_user_client::{Access, Callbacks, Client, Options, Spawned, spawn};
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const START: u32 = 6;
const STOP: u32 = 7;
const REPORT: u32 = 8;
const CONFIG: u32 = 7;

fn memfd(size: u64) -> File {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, size).expect("size");
    file.into()
}

fn backend(options: Options) -> Spawned {
    let mut command = Process::new(binaries::backend());
    command.args(["--model", "--log-level", "warn"]);
    let backend = spawn(command, options).expect("a backend");
    let command = backend.client.region_write(CONFIG, 4, &[6, 0]);
    command.expect("COMMAND: memory and bus mastering");
    backend
}

/// Has the engine write `len` bytes at `iova`.
fn fill(client: &Client, iova: u64, len: u64) {
    let outcome = engine::run(&mut Engine(client), COMMAND_FILL, 0, iova, len);
    assert_eq!(outcome.status, STATUS_DONE, "{iova:#x}");
}

fn range(iova: u64, length: u64) -> DmaLoggingRange {
    DmaLoggingRange { iova, length }
}

/// Which pages of a range are dirty, by their number in it.
fn report(client: &Client, iova: u64, length: u64, page_size: u64) -> Vec<u64> {
    let words = client
        .dma_logging_report(iova, length, page_size)
        .expect("REPORT");
    let bits = words.iter().zip((0..).step_by(64));
    bits.flat_map(|(word, base)| {
        (0..64)
            .filter(move |n| word >> n & 1 != 0)
            .map(move |n| base + n)
    })
    .collect()
}

#[test]
fn what_the_engine_writes_is_reported_at_every_page_size() {
    let backend = backend(Options::default());
    let client = &backend.client;
    assert!(client.has_dma_logging().expect("PROBE"));
    let memory = memfd(64 * MIB);
    // Not at 0, and not aligned to more than it must be.
    let base = 16 * MIB;
    let access = Access::ReadWrite;
    client
        .dma_map(base, 64 * MIB, access, Some((memory.as_fd(), 0)))
        .expect("map");
    let start = |page_size| {
        client
            .dma_logging_start(page_size, &[range(0, 1 << 40)])
            .expect("START");
    };
    let dirty = [3, 100, 600, 10_000_u64];
    // The page size of START is a wish: whatever it is, a report is as exact as it asks to be.
    for started in [PAGE, 64 << 10, 2 * MIB] {
        fill(client, base, PAGE);
        start(started);
        for page_size in (12..=26).map(|shift| 1 << shift) {
            for page in dirty {
                // Eight bytes are as good as a page; the last spans two.
                fill(client, base + page * PAGE + PAGE / 2, 8);
            }
            fill(client, base + 12_001 * PAGE - 4, 8);
            let first = base / page_size * page_size;
            let length = base + 64 * MIB - first;
            let mut expected: Vec<_> = dirty
                .iter()
                .chain(&[12_000, 12_001])
                .map(|page| (base + page * PAGE - first) / page_size)
                .collect();
            expected.dedup();
            let found = report(client, first, length, page_size);
            assert_eq!(found, expected, "{started:#x}, pages of {page_size:#x}");
            let again = report(client, first, length, page_size);
            assert!(again.is_empty(), "{again:?} told twice");
        }
        client.dma_logging_stop().expect("STOP");
    }
    start(PAGE);
    // A part, and then the rest.
    fill(client, base, 3 * PAGE);
    assert_eq!(report(client, base + PAGE, PAGE, PAGE), [0]);
    assert_eq!(
        report(client, 0, 128 * MIB, PAGE),
        [base / PAGE, base / PAGE + 2]
    );
    // VRAM is not guest memory, and what is only read is not written.
    let copy = COMMAND_COPY | COMMAND_SRC_VRAM;
    let outcome = engine::run(&mut Engine(client), copy, 0, base + 5 * PAGE, 2 * PAGE);
    assert_eq!(outcome.status, STATUS_DONE);
    let outcome = engine::run(
        &mut Engine(client),
        COMMAND_COPY,
        base,
        base + 9 * PAGE,
        PAGE,
    );
    assert_eq!(outcome.status, STATUS_DONE);
    assert_eq!(report(client, base, MIB, PAGE), [5, 6, 9]);
    client.dma_logging_stop().expect("STOP");
    fill(client, base, PAGE);
    assert_eq!(
        client
            .dma_logging_report(base, PAGE, PAGE)
            .expect_err("stopped")
            .errno(),
        libc::EINVAL
    );
}

/// Takes what is written by message.
#[derive(Debug)]
struct Sink;

impl Callbacks for Sink {
    fn dma_read(&self, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0);
        Ok(())
    }

    fn dma_write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn memory_by_message_and_maps_that_come_and_go() {
    let options = Options {
        callbacks: Some(Arc::new(Sink)),
        ..Options::default()
    };
    let backend = backend(options);
    let client = &backend.client;
    let map = |iova, size, file: Option<&File>| {
        let memory = file.map(|file| (file.as_fd(), 0));
        client
            .dma_map(iova, size, Access::ReadWrite, memory)
            .expect("map");
    };
    map(0, MIB, None);
    client
        .dma_logging_start(PAGE, &[range(0, 1 << 30)])
        .expect("START");
    fill(client, 7 * PAGE, 2 * PAGE);
    let memory = memfd(MIB);
    map(MIB, MIB, Some(&memory));
    fill(client, MIB + PAGE, PAGE);
    client.dma_unmap(MIB, MIB).expect("unmap");
    map(MIB, 2 * PAGE, Some(&memory));
    fill(client, MIB, 4);
    client.dma_unmap_all().expect("unmap");
    assert_eq!(report(client, 0, 4 * MIB, PAGE), [7, 8, 256, 257]);
    // A reset of the device ends nothing.
    map(0, MIB, None);
    fill(client, 3 * PAGE, 4);
    client.reset().expect("reset");
    assert_eq!(report(client, 0, MIB, PAGE), [3]);
    client
        .dma_logging_start(PAGE, &[range(0, 1 << 30)])
        .expect("the same again");
}

#[test]
fn a_vmm_that_copies_what_it_is_told_misses_nothing() {
    let backend = backend(Options::default());
    let client = &backend.client;
    let memory = memfd(4 * MIB);
    client
        .dma_map(0, 4 * MIB, Access::ReadWrite, Some((memory.as_fd(), 0)))
        .expect("map");
    client
        .dma_logging_start(PAGE, &[range(0, 4 * MIB)])
        .expect("START");
    let mut seen = vec![false; 1024];
    let mut note = |pages: Vec<u64>| {
        for page in pages {
            seen[usize::try_from(page).expect("a page")] = true;
        }
    };
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for page in (0..1024).step_by(3) {
                fill(client, page * PAGE, PAGE);
            }
        });
        while !writer.is_finished() {
            note(report(client, 0, 4 * MIB, PAGE));
        }
        writer.join().expect("writer");
    });
    note(report(client, 0, 4 * MIB, PAGE));
    let expected: Vec<_> = (0..1024).map(|page| page % 3 == 0).collect();
    assert!(seen == expected, "in whichever report, but in one");
}

#[test]
fn logging_ends_with_its_client() {
    let backend = Backend::start();
    let connect = || Client::connect(backend.socket(), Options::default()).expect("a client");
    let first = connect();
    first
        .dma_logging_start(PAGE, &[range(0, MIB)])
        .expect("START");
    drop(first);
    let second = connect();
    let refused = second.dma_logging_stop().expect_err("not started");
    assert_eq!(refused.errno(), libc::EINVAL);
    second
        .dma_logging_start(2 * PAGE, &[range(0, MIB)])
        .expect("START");
}

/// A request that waits on the migration channel while its client leaves is nobody's. (Had the one before it a reply, it
/// could not be sent, and that would be the end.)
#[test]
fn a_start_that_comes_too_late_does_not_last() {
    let backend = Backend::start_model(&["faults=slow-save=600000"]);
    let mut client = RawClient::connect(&backend.socket());
    client.negotiate(&offering(&[MIG_CHANNEL]));
    let (ours, theirs) = UnixStream::pair().expect("a channel");
    let query = [64_u32, 0].as_bytes().to_vec();
    client
        .call(Command::MigChannel, &query, &[theirs.as_fd()])
        .expect("MIG_CHANNEL");
    let mut channel = RawClient::over(ours);
    channel.set_state(PreCopy);
    let read = channel.message(Command::MigDataRead, NO_REPLY, [4104_u32, 4096].as_bytes());
    let start = [40_u64 | u64::from(SET | START) << 32, PAGE, 1, 0, PAGE];
    let start = channel.message(Command::DeviceFeature, 0, start.as_bytes());
    channel.send(&[read, start].concat(), &[]);
    drop(client);
    let next = &mut RawClient::attach(&backend.socket());
    assert_eq!(errno(next, SET | STOP, &[]), EINVAL);
}

/// A DEVICE_FEATURE with room for `room` bytes of reply.
fn feature(client: &mut RawClient, flags: u32, room: u32, data: &[u64]) -> Result<Vec<u8>, u32> {
    let data: Vec<u8> = data.iter().flat_map(|long| long.to_ne_bytes()).collect();
    raw_feature(client, flags, room, &data)
}

fn raw_feature(client: &mut RawClient, flags: u32, room: u32, data: &[u8]) -> Result<Vec<u8>, u32> {
    let body = [&room.to_ne_bytes(), &flags.to_ne_bytes(), data].concat();
    let reply = client.call(Command::DeviceFeature, &body, &[]);
    reply.map(|message| message.body)
}

const EINVAL: u32 = libc::EINVAL.unsigned_abs();
const E2BIG: u32 = libc::E2BIG.unsigned_abs();
const EOVERFLOW: u32 = libc::EOVERFLOW.unsigned_abs();

fn errno(client: &mut RawClient, flags: u32, data: &[u64]) -> u32 {
    feature(client, flags, 1 << 21, data).err().unwrap_or(0)
}

#[test]
fn starts_are_refused_as_the_kernel_does() {
    let backend = Backend::start();
    let client = &mut RawClient::attach(&backend.socket());
    let top = u64::MAX - 4095;
    for (page_size, count, ranges, expected) in [
        (PAGE, 0, &[][..], EINVAL),
        (PAGE, 257, &[0, PAGE], E2BIG),
        (PAGE, u64::from(u32::MAX), &[0, PAGE], E2BIG),
        (PAGE, 2, &[0, PAGE], EINVAL),
        (PAGE, 1, &[0, PAGE, PAGE, PAGE], EINVAL),
        (0, 1, &[0, PAGE], EINVAL),
        (3, 1, &[0, PAGE], EINVAL),
        (1 << 63, 1, &[0, PAGE], EINVAL),
        (PAGE, 1, &[1, PAGE], EINVAL),
        (PAGE, 1, &[0, PAGE - 1], EINVAL),
        (PAGE, 1, &[0, 0], EINVAL),
        (PAGE, 1, &[top, 2 * PAGE], EOVERFLOW),
        (PAGE, 2, &[0, 2 * PAGE, PAGE, PAGE], EINVAL),
    ] {
        let data = [&[page_size, count], ranges].concat();
        let found = errno(client, SET | START, &data);
        assert_eq!(found, expected, "{page_size:#x} {count} {ranges:?}");
    }
    assert_eq!(
        errno(client, SET | STOP, &[]),
        EINVAL,
        "nothing was started"
    );
    let start = [PAGE, 1, 0, PAGE];
    for (flags, expected) in [
        (PROBE | SET | START, 0),
        (PROBE | START, 0),
        (PROBE | GET | REPORT, 0),
        (PROBE | SET | STOP, 0),
        (PROBE | GET | START, EINVAL),
        (PROBE | SET | REPORT, EINVAL),
        (GET | START, EINVAL),
        (START, EINVAL),
        (GET | SET | START, EINVAL),
        (SET | START | 1 << 30, EINVAL),
        (SET | START, 0),
        (SET | START, 0),
    ] {
        assert_eq!(errno(client, flags, &start), expected, "{flags:#x}");
    }
    let other = [2 * PAGE, 1, 0, 2 * PAGE];
    assert_eq!(errno(client, SET | START, &other), EINVAL, "another");
    let short = feature(client, SET | STOP, 7, &[]);
    assert_eq!(short.err(), Some(EINVAL));
    assert_eq!(errno(client, SET | STOP, &[]), 0);
    let every: Vec<u64> = (0..256).flat_map(|n| [n * 2 * PAGE, PAGE]).collect();
    assert_eq!(
        errno(client, SET | START, &[&[PAGE, 256], &every[..]].concat()),
        0
    );
    client.assert_in_step();
}

#[test]
fn hostile_lengths_are_answered() {
    let backend = Backend::start();
    let client = &mut RawClient::attach(&backend.socket());
    let start = [PAGE, 2, 0, PAGE, PAGE, PAGE];
    let bytes: Vec<u8> = start.iter().flat_map(|long| long.to_ne_bytes()).collect();
    for length in 0..bytes.len() {
        let cut = raw_feature(client, SET | START, 1 << 16, &bytes[..length]);
        assert_eq!(cut.err(), Some(EINVAL), "START of {length} bytes");
    }
    assert_eq!(errno(client, SET | START, &start), 0);
    let report: Vec<u8> = [0, 64 * PAGE, PAGE]
        .iter()
        .flat_map(|long: &u64| long.to_ne_bytes())
        .collect();
    for length in 0..report.len() {
        let cut = raw_feature(client, GET | REPORT, 1 << 16, &report[..length]);
        assert_eq!(cut.err(), Some(EINVAL), "REPORT of {length} bytes");
    }
    let top = u64::MAX - 4095;
    for ([iova, length, page_size], expected) in [
        ([0, PAGE, 0], EINVAL),
        ([0, PAGE, 3], EINVAL),
        ([0, PAGE, 2048], EINVAL),
        ([0, 0, PAGE], EINVAL),
        ([0, PAGE + 1, PAGE], EINVAL),
        ([PAGE, PAGE, 2 * PAGE], EINVAL),
        ([top, 2 * PAGE, PAGE], EOVERFLOW),
        ([1 << 63, 1 << 63, PAGE], E2BIG),
        ([0, top, PAGE], E2BIG),
        ([0, (32 << 30) + PAGE, PAGE], E2BIG),
        ([0, 32 << 30, PAGE], 0),
        ([top, PAGE, PAGE], 0),
        ([0, top, 1 << 63], 0),
        ([1 << 63, 1 << 63, 1 << 63], 0),
        ([0, PAGE, 1 << 63], 0),
    ] {
        let found = errno(client, GET | REPORT, &[iova, length, page_size]);
        assert_eq!(found, expected, "{iova:#x} {length:#x} {page_size:#x}");
    }
    client.assert_in_step();
}

#[test]
fn without_room_the_size_is_told_and_nothing_forgotten() {
    let backend = Backend::start();
    let client = &mut RawClient::attach(&backend.socket());
    client.write(CONFIG, 4, &[6, 0]);
    let asked = [0, 65 * PAGE, PAGE];
    let refused = feature(client, GET | REPORT, 8, &asked);
    assert_eq!(refused.err(), Some(EINVAL), "logging has not begun");
    let memory = memfd(MIB);
    let map = [32 | 3 << 32, 0, 0, MIB];
    let map: Vec<u8> = map
        .iter()
        .flat_map(|long: &u64| long.to_ne_bytes())
        .collect();
    client
        .call(Command::DmaMap, &map, &[memory.as_fd()])
        .expect("map");
    assert_eq!(errno(client, SET | START, &[PAGE, 1, 0, MIB]), 0);
    engine::run(client, COMMAND_FILL, 0, 64 * PAGE, PAGE);
    let whole = 8 + 24 + 16;
    for room in [8, 9, 31, 32, 33, whole - 1] {
        let reply = feature(client, GET | REPORT, room, &asked).expect("the size");
        assert_eq!(reply[..4], whole.to_ne_bytes(), "room for {room}");
        let fixed = room.min(32);
        assert_eq!(reply.len(), usize::try_from(fixed).expect("small"));
    }
    let reply = feature(client, GET | REPORT, whole, &asked).expect("the bitmap");
    assert_eq!(reply[..4], whole.to_ne_bytes());
    assert_eq!(reply[32..], [0_u64, 1].map(u64::to_ne_bytes).concat());
    let reply = feature(client, GET | REPORT, whole, &asked).expect("the bitmap");
    assert_eq!(reply[32..], [0; 16]);
    client.assert_in_step();
}
