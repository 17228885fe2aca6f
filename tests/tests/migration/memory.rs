// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory does not grow with the device: 4 GiB of VRAM migrate between backends that may take 64 MiB of address
//! space beyond what they have when they are attached, VRAM included. Nor does it with what is carried, in the client.

use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use system_tests::{
    backend::Backend,
    binaries,
    engine::{self, Engine, Registers},
    migrating::Migrates,
    model_gpu::engine as registers,
    raw_client::RawClient,
};
use vfio_user_client::{
    Client, MigrationFeatures, Options,
    migration::{Chunk, Loader, Saver},
};
use vfio_user_protocol::migration::MigrationState::*;

use crate::MIB;

const VRAM: u32 = 0;
const SIZE: u64 = 4 << 30;
/// VRAM in use, spread over all of it.
const USED: u64 = 128 << 20;
const BUDGET: u64 = 64 << 20;
const STRETCHES: u32 = 8;

/// Forbids the backend more than the budget.
fn limit(backend: &Backend) {
    let id = backend.process_id();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let now: u64 = kib.and_then(|kib| kib.parse().ok()).expect("VmSize");
    let most = Some((now << 10) + BUDGET);
    let pid = Pid::from_raw(id.cast_signed()).expect("a process id");
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    prlimit(Some(pid), Resource::As, limit).expect("prlimit");
}

fn fill(engine: &mut impl Registers, pattern: u32, offset: u64, length: u64) {
    engine.set(registers::FILL, pattern);
    let command = registers::COMMAND_FILL | registers::COMMAND_DST_VRAM;
    let done = engine::run(engine, command, 0, offset, length);
    assert_eq!(
        (done.status & registers::STATUS_ERROR, done.completed),
        (0, length)
    );
}

/// Where a stretch of what is used of VRAM of `size` bytes begins, and its own bytes.
fn stretch(size: u64, n: u32) -> (u64, u64) {
    let begin = u64::from(n) * (size / u64::from(STRETCHES)) + 4096;
    (begin, USED / u64::from(STRETCHES))
}

/// Uses VRAM, before a migration.
fn use_up(engine: &mut impl Registers, size: u64) {
    for n in 0..STRETCHES {
        let (begin, length) = stretch(size, n);
        fill(engine, n, begin, length);
    }
}

/// Uses a little more of it, in the midst of one.
fn use_more(engine: &mut impl Registers, size: u64) {
    fill(engine, 0x1234_5678, size - (8 << 20), 8 << 20);
}

/// What was put there has come; `read` reads VRAM.
fn check<E: Registers>(engine: &mut E, size: u64, read: impl Fn(&mut E, u64) -> [u8; 4]) {
    for n in 0..STRETCHES {
        let (begin, length) = stretch(size, n);
        for at in [begin, begin + length - 4] {
            assert_eq!(read(engine, at), n.to_le_bytes());
        }
    }
    assert_eq!(read(engine, size - 4), 0x1234_5678_u32.to_le_bytes());
    assert_eq!(engine.get(registers::FILL), 0x1234_5678);
}

/// Carries over what there is for now; how much that was.
fn carry(source: &mut RawClient, target: &mut RawClient) -> usize {
    let mut carried = 0;
    loop {
        let data = source.data_read(MIB).expect("data");
        carried += data.len();
        if !data.is_empty() {
            target.data_write(&data).expect("taken");
        }
        if data.len() < MIB {
            return carried;
        }
    }
}

#[test]
fn four_gibibytes_within_sixty_four_mebibytes() {
    let (from, to) = (
        Backend::start_model(&["vram=4G"]),
        Backend::start_model(&["vram=4G"]),
    );
    let mut source = RawClient::attach(&from.socket());
    let mut target = RawClient::attach(&to.socket());
    source.write(7, 4, &[6, 0]);
    limit(&from);
    limit(&to);
    use_up(&mut source, SIZE);
    source.set_state(PreCopy);
    target.set_state(Resuming);
    let first = carry(&mut source, &mut target);
    assert!(
        first as u64 > USED / 8 * 7,
        "the stretch of zeros need not be sent"
    );
    use_more(&mut source, SIZE);
    let second = carry(&mut source, &mut target);
    let third = carry(&mut source, &mut target);
    assert!(second + third > 8 << 20 && second + third < 16 << 20);
    source.set_state(StopCopy);
    carry(&mut source, &mut target);
    target.set_state(Running);
    check(&mut target, SIZE, |client, at| client.read(VRAM, at));
}

/// Hands over what there is for now, or to the end; how much that was, and the longest chunk of it.
fn hand_over(saver: &mut Saver, loader: &mut Loader) -> (u64, usize) {
    let (mut carried, mut longest) = (0, 0);
    while let Chunk::Data(data) = saver.chunk().expect("data") {
        carried += data.len() as u64;
        longest = longest.max(data.len());
        loader.load_volatile(&data).expect("taken");
    }
    (carried, longest)
}

/// By the client library, on a channel: the memory that it shares is within the budget, too.
#[test]
fn a_gibibyte_through_shared_memory() {
    let (from, to) = (
        Backend::start_model(&["vram=1G"]),
        Backend::start_model(&["vram=1G"]),
    );
    let size = SIZE / 4;
    let connect = |backend: &Backend| {
        let options = Options {
            migration: MigrationFeatures::ALL,
            ..Options::default()
        };
        Client::connect(backend.socket(), options).expect("a client")
    };
    let (source, target) = (connect(&from), connect(&to));
    let decode = source.region_write(7, 4, &[6, 0]);
    decode.expect("COMMAND");
    limit(&from);
    limit(&to);
    use_up(&mut Engine(&source), size);
    let migration = |client: &Client| client.migration().expect("MIGRATION").expect("migrates");
    let mut saver = migration(&source).save(true).expect("PRE_COPY");
    let mut loader = migration(&target).load().expect("RESUMING");
    let (first, longest) = hand_over(&mut saver, &mut loader);
    assert!(longest > MIB, "neither by message nor on the main socket");
    assert!(
        first > USED / 8 * 7,
        "the stretch of zeros need not be sent"
    );
    use_more(&mut Engine(&source), size);
    let pending = saver.pending(true).expect("sizes");
    assert!(pending.dirty >= 8 << 20, "{pending:?}");
    let (second, _) = hand_over(&mut saver, &mut loader);
    assert!((8 << 20..16 << 20).contains(&second), "{second}");
    saver.switch_over().expect("STOP_COPY");
    hand_over(&mut saver, &mut loader);
    loader.finish(true).expect("loaded");
    saver.finish().expect("STOP");
    check(&mut Engine(&target), size, |Engine(client), at| {
        let mut bytes = [0; 4];
        let read = client.region_read(VRAM, at, &mut bytes);
        read.expect("VRAM");
        bytes
    });
}

/// All that the client may have is half of what it carries.
#[test]
fn a_client_within_sixty_four_mebibytes() {
    let keep = ["--on-disconnect", "keep"];
    let (from, to) = (
        Backend::start_with(&["vram=256M"], &keep),
        Backend::start_with(&["vram=256M"], &keep),
    );
    let mut guest = RawClient::attach(&from.socket());
    guest.write(7, 4, &[6, 0]);
    fill(&mut guest, 0x0bad_cafe, 0, USED);
    drop(guest);
    from.wait_until_left(1);
    let limited = format!("ulimit -d {} && exec \"$0\" \"$@\"", BUDGET >> 10);
    let output = Command::new("sh")
        .args(["-c", &limited])
        .arg(binaries::ctl())
        .arg("migrate")
        .arg("--from")
        .arg(from.socket())
        .arg("--to")
        .arg(to.socket())
        .output()
        .expect("sh");
    assert!(output.status.success(), "{output:?}");
    to.wait_until_left(1);
    let mut guest = RawClient::attach(&to.socket());
    for at in [0, USED - 4] {
        assert_eq!(guest.read(VRAM, at), 0x0bad_cafe_u32.to_le_bytes());
    }
}
