// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A software GPU made bad in several ways or at either end, and a client of the bare specification; `transfer/faults.rs`
//! has each fault by itself. Whatever happens, the source can go on, and a destination has what was sent or nothing
//! of it. Printed as a table.

use std::fmt::Write;

use system_tests::{
    backend::Backend,
    engine::{self, Registers},
    migrating::Migrates,
    model_gpu::engine as registers,
    pattern,
    raw_client::RawClient,
};
use vfio_user_protocol::{
    feature::{GET, MIG_DATA_SIZE, MIGRATION},
    migration::MigrationState::*,
};

use crate::{ENOTTY, MIB};

const EIO: u32 = 5;
const VRAM: u32 = 0;
const SIZE: usize = 4 * MIB;

/// Where a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The guest runs at the destination.
    There,
    /// The source refused, in this step.
    Source(&'static str, u32),
    /// The destination refused, in this step.
    Destination(&'static str, u32),
}

/// Faults of the source, those of the destination, and how it ends.
#[rustfmt::skip]
const MATRIX: [(&str, &str, End); 12] = [
    ("", "no-precopy+no-p2p", End::There),
    ("garbage-sizes", "garbage-sizes", End::There),
    ("slow-state=10ms+slow-save=2ms", "slow-state=10ms", End::There),
    ("reinit@0+zero-in-precopy+garbage-sizes", "", End::There),
    ("reinit@300K+moving-sizes", "moving-sizes", End::There),
    ("state-size=3+no-precopy", "", End::There),
    ("dirty-rate=100M", "", End::There),
    ("read-error@6M+state-size=8M", "", End::Source("stop-copy", EIO)),
    ("broken=pre_copy", "", End::Source("PRE_COPY", EIO)),
    ("", "write-error@1M", End::Destination("data", EIO)),
    ("", "state-error=stop", End::Destination("RESUMING", EIO)),
    ("", "broken=stop", End::Destination("RESUMING", EIO)),
];

fn start(faults: &str) -> Backend {
    match faults {
        "" => Backend::start_model(&["vram=4M"]),
        faults => Backend::start_model(&["vram=4M", &format!("faults={faults}")]),
    }
}

fn vram(client: &mut RawClient) -> Vec<u8> {
    let pages = (0..SIZE / 4096).map(|page| client.read::<4096>(VRAM, (page * 4096) as u64));
    pages.flatten().collect()
}

fn works(client: &mut RawClient) {
    client.write(7, 4, &[6, 0]);
    let fill = registers::COMMAND_FILL | registers::COMMAND_DST_VRAM;
    let done = engine::run(client, fill, 0, 0, 64);
    assert_eq!(
        (done.status & registers::STATUS_ERROR, done.completed),
        (0, 64)
    );
}

/// Migrates as a VMM of the bare specification does; how it ended, and what the guest had in VRAM.
fn migrate(source: &mut RawClient, target: &mut RawClient) -> (End, Vec<u8>) {
    let mut seen = Vec::new();
    let end = give_and_take(source, target, &mut seen);
    (end.err().unwrap_or(End::There), seen)
}

fn give_and_take(
    source: &mut RawClient,
    target: &mut RawClient,
    seen: &mut Vec<u8>,
) -> Result<(), End> {
    let at_source = |what| move |errno| End::Source(what, errno);
    let at_target = |what| move |errno| End::Destination(what, errno);
    let support = source.feature(MIGRATION | GET, 16, &[]).expect("migration");
    let mut stream = Vec::new();
    if support[0] & 4 != 0 {
        source
            .try_set_state(PreCopy.into())
            .map_err(at_source("PRE_COPY"))?;
        for round in 0..4 {
            stream.extend(source.read_all(MIB).map_err(at_source("pre-copy"))?);
            source.write(VRAM, round * 100_000, b"changed");
            match source.feature(MIG_DATA_SIZE | GET, 16, &[]) {
                Ok(size) => {
                    let size = u64::from_ne_bytes(size.try_into().expect("8 bytes"));
                    assert!(i64::try_from(size).is_ok(), "garbage is not passed on");
                }
                Err(errno) => assert_eq!(errno, ENOTTY, "a size that is not known"),
            }
        }
    }
    // What a guest sees before it is stopped for good.
    source
        .try_set_state(Stop.into())
        .map_err(at_source("STOP"))?;
    *seen = vram(source);
    if support[0] & 4 != 0 {
        // Stopping like this ended the transfer.
        source.set_state(Running);
        source
            .try_set_state(PreCopy.into())
            .map_err(at_source("PRE_COPY"))?;
        stream = source.read_all(65_537).map_err(at_source("pre-copy"))?;
    }
    source
        .try_set_state(StopCopy.into())
        .map_err(at_source("STOP_COPY"))?;
    stream.extend(source.read_all(MIB).map_err(at_source("stop-copy"))?);

    target
        .try_set_state(Resuming.into())
        .map_err(at_target("RESUMING"))?;
    target
        .write_all(&stream, 99_999)
        .map_err(at_target("data"))?;
    target
        .try_set_state(Running.into())
        .map_err(at_target("RUNNING"))
}

#[test]
fn faults_together_and_at_either_end() {
    let mut table = String::new();
    for (at_source, at_target, expected) in MATRIX {
        let (from, to) = (start(at_source), start(at_target));
        let mut source = RawClient::attach(&from.socket());
        let mut target = RawClient::attach(&to.socket());
        source.write(7, 4, &[6, 0]);
        source.write(VRAM, 4096, &pattern::bytes(3, MIB));
        source.set(registers::SCRATCH, 0xcafe);
        let (end, seen) = migrate(&mut source, &mut target);
        let shown = |faults: &str| if faults.is_empty() { "-" } else { faults }.to_owned();
        let (bad, worse) = (shown(at_source), shown(at_target));
        writeln!(table, "{bad:40} {worse:22} {end:?}").expect("a string");
        assert_eq!(end, expected, "{at_source:?} to {at_target:?}");

        match end {
            End::There => {
                // Unless the device itself went on changing it.
                if !at_source.contains("dirty-rate") {
                    assert!(vram(&mut target) == seen, "{at_source}");
                }
                assert_eq!(target.get(registers::SCRATCH), 0xcafe);
            }
            End::Source(..) | End::Destination(..) => {
                // Whoever gives up a destination resets it; nothing of the source is left there.
                let _ = target.try_set_state(Running.into());
                if target.state() == Error {
                    target
                        .request(&vfio_user_protocol::Request::DeviceReset, &[])
                        .expect("reset");
                }
                assert_eq!(target.state(), Running);
                target.write(7, 4, &[6, 0]);
                assert_eq!(target.get(registers::SCRATCH), 0);
                assert!(vram(&mut target).iter().all(|byte| *byte == 0));
            }
        }
        works(&mut target);
        if source.state() == Error {
            assert!(at_source.contains("broken"));
            source
                .request(&vfio_user_protocol::Request::DeviceReset, &[])
                .expect("reset");
        } else {
            source.set_state(Running);
            assert_eq!(source.get(registers::SCRATCH), 0xcafe, "{at_source}");
            assert_eq!(
                source.read::<4>(VRAM, 4096 + 500_000),
                pattern::bytes(3, MIB)[500_000..500_004]
            );
        }
        assert_eq!(source.state(), Running);
        works(&mut source);
    }
    println!("source                                   destination            ended\n{table}");
}
