// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory does not grow with the device: 4 GiB of VRAM migrate between backends that may take 64 MiB of address
//! space beyond what they have when they are attached, VRAM included.

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use system_tests::{
    backend::Backend,
    engine::{self, Registers},
    migrating::Migrates,
    model_gpu::engine as registers,
    raw_client::RawClient,
};
use vfio_user_protocol::migration::MigrationState::*;

use crate::MIB;

const VRAM: u32 = 0;
const SIZE: u64 = 4 << 30;
/// VRAM in use, spread over all of it.
const USED: u64 = 192 << 20;
const BUDGET: u64 = 64 << 20;

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

fn fill(client: &mut RawClient, pattern: u32, offset: u64, length: u64) {
    client.set(registers::FILL, pattern);
    let command = registers::COMMAND_FILL | registers::COMMAND_DST_VRAM;
    let done = engine::run(client, command, 0, offset, length);
    assert_eq!(
        (done.status & registers::STATUS_ERROR, done.completed),
        (0, length)
    );
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
    let stretches = 8;
    for n in 0..stretches {
        fill(
            &mut source,
            n,
            u64::from(n) * (SIZE / u64::from(stretches)) + 4096,
            USED / u64::from(stretches),
        );
    }
    source.set_state(PreCopy);
    target.set_state(Resuming);
    let first = carry(&mut source, &mut target);
    assert!(
        first as u64 > USED / 8 * 7,
        "the stretch of zeros need not be sent"
    );
    fill(&mut source, 0x1234_5678, SIZE - (8 << 20), 8 << 20);
    let second = carry(&mut source, &mut target);
    let third = carry(&mut source, &mut target);
    assert!(second + third > 8 << 20 && second + third < 16 << 20);
    source.set_state(StopCopy);
    carry(&mut source, &mut target);
    target.set_state(Running);
    for n in 0..stretches {
        let offset = u64::from(n) * (SIZE / u64::from(stretches)) + 4096;
        let last = offset + USED / u64::from(stretches) - 4;
        for at in [offset, last] {
            assert_eq!(target.read(VRAM, at), n.to_le_bytes());
        }
    }
    assert_eq!(target.read(VRAM, SIZE - 4), 0x1234_5678_u32.to_le_bytes());
    assert_eq!(target.get(registers::FILL), 0x1234_5678);
}
