// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests that are well framed and wrong in themselves: an errno, and the connection goes on.

use system_tests::{
    backend::Backend,
    model_gpu::{ENGINE_SIZE, VRAM_SIZE},
    pci,
    raw_client::RawClient,
};
use vfio_user_protocol::{
    Command,
    device::{REGION_MMAP, RegionInfo},
    io_fds::IoFds,
    irq::IrqInfo,
};
use zerocopy::FromBytes;

use crate::{EINVAL, EPERM, MAX_DATA, longs, words};

const GET_INFO: u16 = 4;
const REGION_INFO: u16 = 5;
const IO_FDS: u16 = 6;
const IRQ_INFO: u16 = 7;
const SET_IRQS: u16 = 8;
const REGION_READ: u16 = 9;
const REGION_WRITE: u16 = 10;
const WRITE_MULTI: u16 = 15;

#[track_caller]
fn assert_refused(client: &mut RawClient, command: u16, body: &[u8], errno: u32) {
    let answer = client.call(command, body, &[]);
    let shown = &body[..body.len().min(48)];
    assert_eq!(answer.err(), Some(errno), "command {command}, {shown:?}");
    client.assert_in_step();
}

#[test]
fn too_short_for_their_command() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    // Every command with a fixed part, and its length. (DEVICE_RESET has none.)
    let lengths = [
        (2, 32),
        (3, 24),
        (4, 16),
        (5, 32),
        (6, 16),
        (7, 16),
        (8, 20),
        (9, 16),
        (10, 16),
        (11, 16),
        (12, 16),
        (15, 8),
        (16, 8),
        (17, 8),
        (18, 8),
    ];
    for (command, length) in lengths {
        for short in [0, 1, length / 2, length - 1] {
            // All ones, so that a field read beyond the end would be large.
            assert_refused(&mut client, command, &vec![0xff; short], EINVAL);
        }
        // An argsz below the fixed part. (A region access of no bytes, or no writes, is no error.)
        if ![9, 10, 15].contains(&command) {
            assert_refused(&mut client, command, &vec![0; length], EINVAL);
        }
    }
}

#[test]
fn infos_of_what_is_not_there() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    assert_refused(&mut client, GET_INFO, &words([15, 0, 0, 0]), EINVAL);
    for index in [9, 10, u32::MAX] {
        let body = words([32, 0, index, 0, 0, 0, 0, 0]);
        assert_refused(&mut client, REGION_INFO, &body, EINVAL);
    }
    assert_refused(
        &mut client,
        REGION_INFO,
        &words([31, 0, 0, 0, 0, 0, 0, 0]),
        EINVAL,
    );
    for index in [5, u32::MAX] {
        assert_refused(&mut client, IRQ_INFO, &words([16, 0, index, 0]), EINVAL);
    }
    assert_refused(&mut client, IRQ_INFO, &words([15, 0, 0, 0]), EINVAL);
    for body in [
        [15, 0, 0, 0],
        [16, 1, 0, 0],
        [16, 0, 0, 1],
        [16, 0, 9, 0],
        [16, 0, 512, 0],
        // A BAR that the device has not.
        [16, 0, 1, 0],
    ] {
        assert_refused(&mut client, IO_FDS, &words(body), EINVAL);
    }
}

#[test]
fn an_argsz_that_is_larger_than_needed_is_no_error() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for argsz in [32, 33, 48, u32::MAX] {
        let body = words([argsz, 0, 0, 0]);
        let answer = client.call(GET_INFO, &body, &[]).expect("GET_INFO");
        assert_eq!(answer.body[..8], words([16, 3])[..]);
        let body = words([argsz, 0, 0, 0, 0, 0, 0, 0]);
        let answer = client.call(REGION_INFO, &body, &[]).expect("REGION_INFO");
        let info = RegionInfo::read_from_bytes(&answer.body).expect("32 bytes");
        assert_eq!(
            (info.size, info.flags & REGION_MMAP),
            (VRAM_SIZE, REGION_MMAP)
        );
        assert_eq!(answer.fds.len(), 1);
        let body = words([argsz, 0, 2, 0]);
        let answer = client.call(IRQ_INFO, &body, &[]).expect("IRQ_INFO");
        let info = IrqInfo::read_from_bytes(&answer.body).expect("16 bytes");
        assert_eq!(info.count, 8);
        let body = words([argsz, 0, 4, 0]);
        let answer = client.call(IO_FDS, &body, &[]).expect("REGION_IO_FDS");
        let fds = IoFds::read_from_bytes(&answer.body).expect("16 bytes");
        assert_eq!((fds.argsz, fds.count), (16, 0));
    }
}

#[test]
fn interrupts_that_are_not_there() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    const NONE: u32 = 1;
    const BOOL: u32 = 2;
    const EVENTFD: u32 = 4;
    const MASK: u32 = 8;
    const UNMASK: u32 = 16;
    const TRIGGER: u32 = 32;
    let set = |argsz, flags, index, start, count| words([argsz, flags, index, start, count]);
    let refused = [
        set(3, NONE | TRIGGER, 2, 0, 1),
        set(19, NONE | TRIGGER, 2, 0, 1),
        set(20, NONE | TRIGGER, 5, 0, 1),
        set(20, NONE | TRIGGER, u32::MAX, 0, 1),
        set(20, 0, 2, 0, 1),
        set(20, NONE, 2, 0, 1),
        set(20, TRIGGER, 2, 0, 1),
        set(20, NONE | MASK | UNMASK, 2, 0, 1),
        set(20, NONE | BOOL | MASK, 2, 0, 1),
        set(20, NONE | TRIGGER | 64, 2, 0, 1),
        set(20, u32::MAX, 2, 0, 1),
        set(20, NONE | MASK, 2, 7, 2),
        set(20, NONE | TRIGGER, 2, 9, 1),
        set(20, NONE | TRIGGER, 2, 4, u32::MAX),
        set(20, NONE | TRIGGER, 2, u32::MAX, u32::MAX),
        set(20, NONE | MASK, 3, 0, 1),
        set(20, NONE | MASK, 4, 0, 1),
        set(20, NONE | TRIGGER, 3, 0, 2),
        set(20, NONE | TRIGGER, 4, 0, 2),
        // Taking away: start, action and data must be as they are defined.
        set(20, NONE | TRIGGER, 2, 1, 0),
        set(20, NONE | MASK, 2, 0, 0),
        set(20, BOOL | TRIGGER, 2, 0, 0),
        // Two bytes, of which there are none, one, three.
        set(22, BOOL | TRIGGER, 2, 0, 2),
        [set(21, BOOL | TRIGGER, 2, 0, 2), vec![1]].concat(),
        [set(23, BOOL | TRIGGER, 2, 0, 2), vec![1; 3]].concat(),
        set(20, BOOL | TRIGGER, 2, 0, u32::MAX),
        // A mask eventfd, and an unmask eventfd for anything but INTx.
        set(20, EVENTFD | MASK, 0, 0, 1),
        set(20, EVENTFD | UNMASK, 2, 0, 1),
    ];
    for body in refused {
        assert_refused(&mut client, SET_IRQS, &body, EINVAL);
    }
    let taken = [
        // Nothing is armed: taking away, triggering and masking are harmless.
        set(20, NONE | TRIGGER, 2, 0, 0),
        set(20, EVENTFD | TRIGGER, 4, 0, 1),
        set(20, NONE | TRIGGER, 4, 0, 1),
        set(u32::MAX, NONE | MASK, 2, 0, 8),
        [set(28, BOOL | UNMASK, 2, 0, 8), vec![1; 8]].concat(),
    ];
    for body in taken {
        assert!(client.call(SET_IRQS, &body, &[]).is_ok(), "{body:?}");
    }
    client.assert_in_step();
}

/// A region access without its data.
fn access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    [longs([offset]), words([region, count])].concat()
}

#[test]
fn regions_have_ends() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let memory = pci::COMMAND_MEMORY.to_le_bytes();
    client.write(7, pci::COMMAND.into(), &memory);
    let sizes = [
        (0, VRAM_SIZE),
        (1, 0),
        (2, 4096),
        (3, 0),
        (4, ENGINE_SIZE),
        (5, 0),
        (7, 4096),
        (8, 0),
    ];
    for (region, size) in sizes {
        let outside = [
            (size, 1),
            (size.saturating_sub(3), 4),
            (u64::MAX, 1),
            (u64::MAX, 256),
            (u64::MAX - 255, 256),
            (size + 1, 0),
            (u64::MAX, 0),
        ];
        for (offset, count) in outside {
            let body = access(offset, region, count);
            assert_refused(&mut client, REGION_READ, &body, EINVAL);
            let write = [body, vec![0xff; count as usize]].concat();
            assert_refused(&mut client, REGION_WRITE, &write, EINVAL);
        }
        // Nothing at all, up to the end, is no error, and has no data; unless there is no region.
        for offset in [0, size] {
            let body = access(offset, region, 0);
            for command in [REGION_READ, REGION_WRITE] {
                if size == 0 {
                    assert_refused(&mut client, command, &body, EINVAL);
                } else {
                    let answer = client.call(command, &body, &[]).expect("no bytes");
                    assert_eq!(answer.body, body);
                }
            }
        }
    }
    for region in [9, 10, 0x8000_0000, u32::MAX] {
        assert_refused(&mut client, REGION_READ, &access(0, region, 4), EINVAL);
        let write = [access(0, region, 4), vec![0; 4]].concat();
        assert_refused(&mut client, REGION_WRITE, &write, EINVAL);
    }
    assert_refused(
        &mut client,
        REGION_WRITE,
        &[access(0, 6, 1), vec![0]].concat(),
        EPERM,
    );
}

#[test]
fn counts_that_are_too_large_or_wrong() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let more = u32::try_from(MAX_DATA + 1).expect("1 MiB");
    for count in [more, 2 * more, u32::MAX] {
        assert_refused(&mut client, REGION_READ, &access(0, 0, count), EINVAL);
        assert_refused(&mut client, REGION_WRITE, &access(0, 0, count), EINVAL);
    }
    for (count, found) in [(4, 0), (4, 3), (4, 5), (0, 1), (u32::MAX, 4)] {
        let body = [access(0, 0, count), vec![0; found]].concat();
        assert_refused(&mut client, REGION_WRITE, &body, EINVAL);
    }
}

#[test]
fn several_writes_in_one_message() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    let memory = pci::COMMAND_MEMORY.to_le_bytes();
    client.write(7, pci::COMMAND.into(), &memory);
    let write =
        |offset, region, count, data: u64| [access(offset, region, count), longs([data])].concat();
    for body in [
        longs([1]),
        longs([u64::MAX]),
        longs([u64::MAX / 24 + 1]),
        [longs([1]), write(0, 0, 9, 0)].concat(),
        [longs([1]), write(0, 0, 0, 0)].concat(),
        [longs([1]), write(0, 0, u32::MAX, 0)].concat(),
        [longs([1]), write(0, 9, 4, 0)].concat(),
        [longs([1]), write(VRAM_SIZE - 3, 0, 4, 0)].concat(),
        [longs([1]), write(u64::MAX, 0, 8, 0)].concat(),
        [longs([2]), write(0, 0, 4, 0)].concat(),
        [longs([1]), write(0, 0, 4, 0), vec![0]].concat(),
    ] {
        assert_refused(&mut client, WRITE_MULTI, &body, EINVAL);
    }
    let good = [
        longs([2]),
        write(0, 0, 4, 0x0403_0201),
        write(4, 0, 8, u64::MAX),
    ]
    .concat();
    let answer = client.call(WRITE_MULTI, &good, &[]).expect("two writes");
    assert_eq!(answer.body, longs([2]));
    assert_eq!(
        client.read(0, 0),
        [1, 2, 3, 4, 255, 255, 255, 255, 255, 255, 255, 255, 0]
    );
    assert!(client.call(WRITE_MULTI, &longs([0]), &[]).is_ok());
    client.assert_in_step();
}

#[test]
fn what_the_device_has_not_and_what_only_a_server_sends() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    const GET: u32 = 1 << 16;
    const SET: u32 = 1 << 17;
    const PROBE: u32 = 1 << 18;
    for flags in [0, GET, SET, PROBE, GET | SET, u32::MAX] {
        for feature in [0, 3, 4, 5, 10, 11, 13, 0xffff] {
            for argsz in [7, 8, 16, u32::MAX] {
                let body = [words([argsz, flags | feature]), vec![0; 8]].concat();
                assert_refused(&mut client, 16, &body, EINVAL);
            }
        }
    }
    for size in [0, 8, 1 << 20, u32::MAX] {
        for argsz in [0, 8, u32::MAX] {
            assert_refused(&mut client, 17, &words([argsz, size]), EINVAL);
            assert_refused(&mut client, 18, &words([argsz, size]), EINVAL);
        }
    }
    assert_refused(&mut client, 11, &longs([0, 16]), EINVAL);
    assert_refused(
        &mut client,
        12,
        &[longs([0, 16]), vec![0; 16]].concat(),
        EINVAL,
    );
    assert_refused(&mut client, 12, &longs([0, u64::MAX]), EINVAL);
}

#[test]
fn reset_takes_whatever_comes_with_it() {
    let backend = Backend::start();
    let mut client = RawClient::attach(&backend.socket());
    for _ in 0..3 {
        assert!(client.call(Command::DeviceReset, &[], &[]).is_ok());
        client.assert_in_step();
    }
}
