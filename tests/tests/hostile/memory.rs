// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory that is not what it is said to be.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open};
use system_tests::{
    backend::Backend,
    engine::{Registers, finish, run, start},
    model_gpu::engine::{
        COMMAND_COPY, COMMAND_DST_VRAM, ERROR_DMA_FAULT, FENCE, STATUS_DONE, error_code,
    },
    raw_client::RawClient,
};
use vfio_user_protocol::Command;

use crate::{EACCES, EEXIST, EINVAL, ENOENT, longs, words};

const PAGE: u64 = 4096;
const READ: u32 = 1;
const WRITE: u32 = 2;
const BOTH: u32 = READ | WRITE;

fn memfd(size: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, size).expect("a size");
    file
}

fn map(
    client: &mut RawClient,
    flags: u32,
    offset: u64,
    (address, size): (u64, u64),
    fd: Option<BorrowedFd<'_>>,
) -> Result<(), u32> {
    let body = [words([32, flags]), longs([offset, address, size])].concat();
    let fds: Vec<_> = fd.into_iter().collect();
    let answer = client.call(Command::DmaMap, &body, &fds)?;
    assert!(answer.body.is_empty(), "the reply is a header");
    Ok(())
}

fn unmap(client: &mut RawClient, flags: u32, address: u64, size: u64) -> Result<(), u32> {
    let body = [words([24, flags]), longs([address, size])].concat();
    let answer = client.call(Command::DmaUnmap, &body, &[])?;
    assert_eq!(answer.body, body, "the reply repeats the request");
    Ok(())
}

/// Attached, with memory decoding and bus mastering on.
fn attach(backend: &Backend) -> RawClient {
    let mut client = RawClient::attach(&backend.socket());
    client.write(7, 4, &[6, 0]);
    client
}

#[test]
fn ranges_that_are_none() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let file = memfd(16 * PAGE);
    let fd = Some(file.as_fd());
    let table = [
        // Empty, wrapping, not whole pages.
        (BOTH, 0, (PAGE, 0)),
        (BOTH, 0, (0_u64.wrapping_sub(PAGE), 2 * PAGE)),
        (BOTH, 0, (u64::MAX, u64::MAX)),
        (BOTH, 0, (0, u64::MAX)),
        (BOTH, 0, (PAGE + 1, PAGE)),
        (BOTH, 0, (PAGE, PAGE - 1)),
        (BOTH, 0, (0x123, 0x1001)),
        // No access, unknown flags, pread and pwrite.
        (0, 0, (PAGE, PAGE)),
        (BOTH | 0x10, 0, (PAGE, PAGE)),
        (u32::MAX, 0, (PAGE, PAGE)),
        (BOTH | 8, 0, (PAGE, PAGE)),
        (BOTH | 4 | 8, 0, (PAGE, PAGE)),
    ];
    for (flags, offset, range) in table {
        for fd in [None, fd] {
            let mapped = map(&mut client, flags, offset, range, fd);
            assert_eq!(mapped, Err(EINVAL), "{range:x?}, flags {flags:#x}");
        }
    }
    // The file: not whole pages, too short, wrapping.
    for (offset, size) in [
        (1, PAGE),
        (0, 17 * PAGE),
        (15 * PAGE, 2 * PAGE),
        (16 * PAGE, PAGE),
        (0_u64.wrapping_sub(PAGE), 2 * PAGE),
        (1 << 62, 1 << 62),
    ] {
        let mapped = map(&mut client, BOTH, offset, (0, size), fd);
        assert_eq!(mapped, Err(EINVAL), "{size:#x} bytes at {offset:#x}");
    }
    // A promise of a descriptor that did not come.
    assert_eq!(map(&mut client, BOTH | 4, 0, (0, PAGE), None), Err(EINVAL));
    client.assert_in_step();
    // The last page there is is one like any other.
    let last = 0_u64.wrapping_sub(PAGE);
    assert_eq!(map(&mut client, BOTH, 0, (last, PAGE), fd), Ok(()));
    assert_eq!(map(&mut client, BOTH, 0, (0, last), None), Ok(()));
    assert_eq!(unmap(&mut client, 2, 0, 0), Ok(()));
}

#[test]
fn ranges_that_overlap() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let file = memfd(64 * PAGE);
    let fd = Some(file.as_fd());
    let at = |pages: u64| 0x10_0000 + pages * PAGE;
    assert_eq!(map(&mut client, BOTH, 0, (at(4), 4 * PAGE), fd), Ok(()));
    assert_eq!(map(&mut client, BOTH, 0, (at(12), 4 * PAGE), None), Ok(()));
    for (from, pages) in [
        (3, 2),
        (3, 64),
        (4, 3),
        (4, 5),
        (5, 1),
        (5, 20),
        (7, 1),
        (7, 6),
        (8, 5),
        (15, 1),
        (0, 20),
    ] {
        for fd in [None, fd] {
            let mapped = map(&mut client, BOTH, 0, (at(from), pages * PAGE), fd);
            assert_eq!(mapped, Err(EEXIST), "{pages} pages from {from}");
        }
    }
    // The same once more is no harm; the same range otherwise is.
    let range = (at(4), 4 * PAGE);
    assert_eq!(map(&mut client, BOTH, 0, range, fd), Ok(()));
    assert_eq!(map(&mut client, READ, 0, range, fd), Err(EEXIST));
    assert_eq!(map(&mut client, BOTH, PAGE, range, fd), Err(EEXIST));
    assert_eq!(map(&mut client, BOTH, 0, range, None), Err(EEXIST));
    let other = memfd(64 * PAGE);
    let mapped = map(&mut client, BOTH, 0, range, Some(other.as_fd()));
    assert_eq!(mapped, Err(EEXIST));
    // What lies between and beside is free.
    for (from, pages) in [(0, 4), (8, 4), (16, 4)] {
        let mapped = map(&mut client, BOTH, 0, (at(from), pages * PAGE), fd);
        assert_eq!(mapped, Ok(()));
    }
    client.assert_in_step();
}

#[test]
fn unmapping_what_is_not_mapped() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    assert_eq!(unmap(&mut client, 2, 0, 0), Ok(()), "all of nothing");
    assert_eq!(
        map(&mut client, BOTH, 0, (0x10_0000, 8 * PAGE), None),
        Ok(())
    );
    for (address, size) in [
        (0, PAGE),
        (0x10_0000, 0),
        (0x10_0000, PAGE),
        (0x10_0000, 7 * PAGE),
        (0x10_1000, 7 * PAGE),
        (0x10_1000, 100 * PAGE),
        (0x20_0000, u64::MAX),
        (u64::MAX, u64::MAX),
    ] {
        let unmapped = unmap(&mut client, 0, address, size);
        assert_eq!(unmapped, Err(ENOENT), "{size:#x} bytes at {address:#x}");
    }
    for (flags, address, size) in [
        (1, 0x10_0000, 8 * PAGE),
        (3, 0, 0),
        (4, 0x10_0000, 8 * PAGE),
        (2, 0x10_0000, 8 * PAGE),
        (2, 0, 1),
        (u32::MAX, 0, 0),
    ] {
        let unmapped = unmap(&mut client, flags, address, size);
        assert_eq!(unmapped, Err(EINVAL), "flags {flags:#x}");
    }
    client.assert_in_step();
    assert_eq!(unmap(&mut client, 0, 0x10_0000, 8 * PAGE), Ok(()));
}

#[test]
fn descriptors_that_are_no_memory() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
    let folder = File::open("/").expect("a folder");
    for fd in [
        reader.as_fd(),
        writer.as_fd(),
        folder.as_fd(),
        client.stream().try_clone().expect("a socket").as_fd(),
    ] {
        for access in [READ, BOTH] {
            let mapped = map(&mut client, access, 0, (0, PAGE), Some(fd));
            assert!(mapped.is_err(), "{fd:?} was mapped");
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(PAGE).expect("a size");
    let read_only = open(file.path(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let read_only = read_only.expect("a file that can be read");
    for access in [WRITE, BOTH] {
        let mapped = map(&mut client, access, 0, (0, PAGE), Some(read_only.as_fd()));
        assert_eq!(mapped, Err(EACCES));
    }
    let mapped = map(&mut client, READ, 0, (0, PAGE), Some(read_only.as_fd()));
    assert_eq!(mapped, Ok(()));
    client.assert_in_step();
}

#[test]
fn more_maps_than_allowed() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    // Posted, or this would be 65,535 exchanges.
    let mut heap = Vec::new();
    for page in 0..65_535_u64 {
        let body = [words([32, BOTH]), longs([0, page * 2 * PAGE, PAGE])].concat();
        heap.extend_from_slice(&client.message(Command::DmaMap, 0x10, &body));
    }
    client.send(&heap, &[]);
    let one_more = map(&mut client, BOTH, 0, (1 << 40, PAGE), None);
    assert_eq!(one_more, Err(28), "ENOSPC");
    assert_eq!(unmap(&mut client, 0, 0, PAGE), Ok(()));
    assert_eq!(map(&mut client, BOTH, 0, (1 << 40, PAGE), None), Ok(()));
    client.assert_in_step();
}

#[test]
fn memory_that_is_taken_away_under_dma() {
    const SIZE: u64 = 64 << 20;
    let backend = Backend::start();
    let mut client = attach(&backend);
    let copy = COMMAND_COPY | COMMAND_DST_VRAM;
    for round in 0..8 {
        let file = memfd(SIZE);
        let base = 0x1_0000_0000;
        let mapped = map(&mut client, BOTH, 0, (base, SIZE), Some(file.as_fd()));
        assert_eq!(mapped, Ok(()));
        start(&mut client, copy, base, 0, SIZE);
        ftruncate(&file, SIZE / 2 * (round % 2)).expect("a smaller file");
        let outcome = finish(&mut client);
        // The engine may have been quicker.
        if outcome.status != STATUS_DONE {
            assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT, "{outcome:x?}");
            assert!((base..base + SIZE).contains(&outcome.fault_address));
        }
        // It cannot be now.
        let outcome = run(&mut client, copy, base + SIZE / 2, 0, PAGE);
        assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT, "{outcome:x?}");
        assert_eq!(outcome.fault_address, base + SIZE / 2);
        assert_eq!(unmap(&mut client, 0, base, SIZE), Ok(()));
    }
    assert_eq!(client.get(FENCE), 16);
    client.assert_in_step();
}

#[test]
fn memory_without_a_descriptor_and_without_a_twin_socket() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    assert_eq!(map(&mut client, BOTH, 0, (0, PAGE), None), Ok(()));
    let outcome = run(&mut client, COMMAND_COPY | COMMAND_DST_VRAM, 0, 0, 16);
    assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT);
    client.assert_in_step();
}

#[test]
fn commands_that_reach_too_far() {
    let backend = Backend::start();
    let mut client = attach(&backend);
    assert_eq!(map(&mut client, BOTH, 0, (0, PAGE), None), Ok(()));
    for command in 0..64 {
        for (src, dst, len) in [
            (u64::MAX, u64::MAX, u64::MAX),
            (0, u64::MAX, 2),
            (u64::MAX, 0, 2),
            (1 << 63, 1 << 63, 1 << 63),
            (0, 64 << 20, 1),
            (64 << 20, 0, 1),
        ] {
            run(&mut client, command, src, dst, len);
        }
    }
    assert_eq!(client.get(FENCE), 64 * 6, "each has ended");
    client.assert_in_step();
}
