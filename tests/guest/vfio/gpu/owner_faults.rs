// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers that fail, lie or dawdle, and streams that are not right, each in front of a backend: what its client sees, and that
//! the device can be used afterwards.

use std::error::Error;

use system_tests::{
    migrating::{Migrates, explain},
    pci,
    raw_client::access,
};
use vfio_user_protocol::{
    Request,
    extension::migration::{PENDING_EXACT, PENDING_UNKNOWN, PRECOPY_REINIT},
    migration::MigrationState::{self, PreCopy, Resuming, Running, Stop, StopCopy},
};

use super::{BAR2, TestGpu, owner::Owner};
use crate::{Outcome, check_eq, say, vfio::backend::CONFIG};

const EIO: u32 = 5;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;
const EPROTO: u32 = 71;

type Check = fn() -> Result<String, Box<dyn Error>>;

/// Every fault of a driver with migration v2, each with a device of its own; what came of it is told as a table.
pub fn faults() -> Outcome {
    table(&[
        ("read fails at a byte, once", read_error),
        ("write fails at a byte", write_error),
        (
            "write fails, the driver then loads all the same",
            write_error_forgotten,
        ),
        ("a state fails", state_refused),
        ("a state ends in ERROR", state_to_error),
        ("every size is 2^64-1", garbage),
        ("pre-copy ends with a read of 0", empty_read),
        ("short reads, EAGAIN, slow", dawdling),
        ("changes faster than it is read", never_converging),
        ("initial data again", reinit),
        ("the guest resets the device", flr),
        ("registers while it is stopped", closed),
    ])
}

/// Streams that are not right, or not for this device.
pub fn streams() -> Outcome {
    table(&[
        ("cut anywhere", cut),
        ("a byte wrong anywhere", damaged),
        ("of another device", foreign),
        ("of another driver", foreign_driver),
        ("its client leaves half-way", abandoned),
    ])
}

/// Faults of a driver with the v1 region.
pub fn v1_faults() -> Outcome {
    table(&[
        ("data_offset fails at a byte, once", v1_read_error),
        ("data_size fails at a byte", v1_write_error),
        ("pending_bytes is 2^64-1", || v1_garbage(16)),
        ("data_size is the region's", || v1_garbage(32)),
        ("data_offset lies behind the region", || v1_garbage(64)),
        ("bytes pending, and never any data", || v1_garbage(128)),
        ("a state fails", || v1_state(false)),
        ("a state ends in the error state", || v1_state(true)),
        ("of another layout", v1_foreign_layout),
    ])
}

fn table(checks: &[(&str, Check)]) -> Outcome {
    for (name, check) in checks {
        let seen = check().map_err(|error| format!("{name}: {error}"))?;
        say(&format!("fault | {name} | {seen}"));
    }
    Ok(())
}

fn made(kind: &str) -> Result<(TestGpu, Owner), Box<dyn Error>> {
    let gpu = TestGpu::new(kind)?;
    let owner = Owner::of(&gpu)?;
    Ok((gpu, owner))
}

/// A device with something in it, and its stream; it runs again.
fn saved(kind: &str) -> Result<(TestGpu, Owner, Vec<u8>), Box<dyn Error>> {
    let (gpu, mut owner) = made(kind)?;
    owner.fill(0x5eed)?;
    let stream = owner.client.stop_and_copy(1 << 20);
    owner.client.set_state(Running);
    Ok((gpu, owner, stream))
}

/// The destination has what the source has.
fn check_same(seen: &mut Owner, wanted: &mut Owner) -> Outcome {
    check_eq!(seen.state()? == wanted.state()?, true, "the same state");
    Ok(())
}

fn load(owner: &mut Owner, stream: &[u8]) -> Result<(), u32> {
    owner.client.set_state(Resuming);
    owner.client.write_all(stream, 1 << 18)?;
    owner.client.try_set_state(Running.into())
}

/// A load that must fail: the device is reset and runs, and takes a stream that is right.
fn check_not_loaded(
    gpu: &TestGpu,
    owner: &mut Owner,
    bad: &[u8],
    good: &[u8],
) -> Result<u32, Box<dyn Error>> {
    let resets = gpu.get("resets")?;
    owner.client.set_state(Resuming);
    let written = owner.client.write_all(bad, 1 << 18);
    if written.is_err() {
        check_eq!(
            owner.client.data_write(&[0]).is_err(),
            true,
            "a later write fails too"
        );
    }
    let ran = owner.client.try_set_state(Running.into());
    let Err(errno) = written.and(ran) else {
        return Err("it was loaded".into());
    };
    check_eq!(ran.is_err(), true, "leaving RESUMING fails");
    check_eq!(owner.client.state(), Running, "state afterwards");
    check_eq!(gpu.get("resets")? > resets, true, "the device was reset");
    check_eq!(
        gpu.get("refused_states")?,
        0,
        "states that it does not have"
    );
    owner.enable();
    let scratch = owner.client.read32(BAR2, super::SCRATCH);
    check_eq!(scratch, 0, "nothing of it is there");
    for knob in ["fail_read_at", "fail_write_at", "fail_state"] {
        gpu.set(knob, -1)?;
    }
    gpu.set("lax_resume", 0)?;
    load(owner, good).map_err(|errno| format!("a good stream afterwards: errno {errno}"))?;
    Ok(errno)
}

/// Reads to the end of the stream; what fails once is read again.
fn read_on(owner: &mut Owner, gpu: &TestGpu) -> Result<(Vec<u8>, Vec<u32>), Box<dyn Error>> {
    let (mut stream, mut errors) = (Vec::new(), Vec::new());
    loop {
        match owner.client.data_read(1 << 16) {
            Ok(data) if data.is_empty() => return Ok((stream, errors)),
            Ok(data) => stream.extend(data),
            Err(errno) => {
                errors.push(errno);
                gpu.set("fail_read_at", -1)?;
                if errors.len() > 1 {
                    return Err(format!("errnos {errors:?}").into());
                }
            }
        }
    }
}

fn read_error() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("full")?;
    let (_here, mut destination) = made("full")?;
    source.fill(1)?;
    there.set("fail_read_at", 1_000_000)?;
    source.client.set_state(StopCopy);
    let (stream, errors) = read_on(&mut source, &there)?;
    check_eq!(errors, [EIO], "errors of reads");
    load(&mut destination, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    source.client.set_state(Running);
    check_same(&mut destination, &mut source)?;
    Ok("EIO; read again, nothing was lost".into())
}

fn write_error() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    here.set("fail_write_at", 100_000)?;
    let errno = check_not_loaded(&here, &mut destination, &stream, &stream)?;
    check_eq!(errno, EIO, "errno");
    Ok("EIO, now and later; reset".into())
}

fn write_error_forgotten() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    here.set("fail_write_at", 8_000_000)?;
    here.set("lax_resume", 1)?;
    let errno = check_not_loaded(&here, &mut destination, &stream, &stream)?;
    check_eq!(errno, EIO, "errno");
    Ok("EIO, now and later; reset".into())
}

fn state_refused() -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("full")?;
    owner.fill(2)?;
    let before = owner.state()?;
    owner.client.set_state(PreCopy);
    gpu.set("fail_state", i64::from(u32::from(StopCopy)))?;
    check_eq!(
        owner.client.try_set_state(StopCopy.into()),
        Err(EIO),
        "STOP_COPY"
    );
    let state = owner.client.state();
    let why = explain(&mut owner.client);
    owner.client.set_state(Running);
    check_eq!(owner.state()? == before, true, "the device is unharmed");
    Ok(format!("EIO ({why}); in {state}; cancelled, it runs on"))
}

fn state_to_error() -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("full")?;
    owner.client.set_state(PreCopy);
    gpu.set("fail_state", i64::from(u32::from(StopCopy)))?;
    gpu.set("fail_to_error", 1)?;
    check_eq!(
        owner.client.try_set_state(StopCopy.into()),
        Err(EIO),
        "STOP_COPY"
    );
    check_eq!(
        owner.client.state(),
        MigrationState::Error,
        "state afterwards"
    );
    for wanted in [Running, Stop, StopCopy] {
        check_eq!(
            owner.client.try_set_state(wanted.into()),
            Err(EINVAL),
            "{wanted} from ERROR"
        );
    }
    check_eq!(
        gpu.get("refused_states")?,
        0,
        "what reached the driver of that"
    );
    owner.reset()?;
    check_eq!(owner.client.state(), Running, "state after reset");
    Ok("EIO; EINVAL for every state, none reached the driver; RUNNING by reset".into())
}

fn garbage() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("full")?;
    let (_here, mut destination) = made("full")?;
    source.fill(3)?;
    there.set("garbage", 15)?;
    source.client.set_state(PreCopy);
    let pending = source.pending(PENDING_EXACT)?;
    let sizes = [
        pending.initial_bytes,
        pending.dirty_bytes,
        pending.stop_copy_bytes,
        pending.total_bytes,
    ];
    check_eq!(
        sizes.iter().all(|&size| i64::try_from(size).is_ok()),
        true,
        "{pending:?}"
    );
    check_eq!(pending.flags & PENDING_UNKNOWN != 0, true, "{pending:?}");
    let stream = source.client.stop_and_copy(1 << 20);
    load(&mut destination, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    source.client.set_state(Running);
    check_same(&mut destination, &mut source)?;
    Ok(format!(
        "unknown, {} bytes in all; migrated",
        pending.total_bytes
    ))
}

fn empty_read() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("full")?;
    there.set("empty_read", 1)?;
    migrated(&there, &mut source, "full")?;
    Ok("migrated".into())
}

fn dawdling() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("full")?;
    there.set("max_transfer", 50_000)?;
    there.set("eagain_every", 3)?;
    there.set("slow_read_ms", 1)?;
    there.set("slow_state_ms", 20)?;
    migrated(&there, &mut source, "full")?;
    Ok("migrated".into())
}

fn never_converging() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("full")?;
    there.set("dirty_per_info", 20)?;
    source.client.set_state(PreCopy);
    let mut stream = source
        .client
        .read_all(1 << 20)
        .map_err(|errno| format!("errno {errno}"))?;
    for pass in 0..5 {
        let pending = source.pending(PENDING_EXACT)?;
        check_eq!(pending.dirty_bytes, 20 * 4112, "dirty bytes in pass {pass}");
        let part = source
            .client
            .read_all(1 << 20)
            .map_err(|errno| format!("errno {errno}"))?;
        check_eq!(part.len() > 20 * 4112, true, "bytes in pass {pass}");
        stream.extend(part);
    }
    there.set("dirty_per_info", 0)?;
    stream.extend(source.client.stop_and_copy(1 << 20));
    let (_here, mut destination) = made("full")?;
    load(&mut destination, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    source.client.set_state(Running);
    check_same(&mut destination, &mut source)?;
    Ok("the same dirty bytes pass after pass; migrated".into())
}

fn reinit() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("full")?;
    source.client.set_state(PreCopy);
    let mut stream = source
        .client
        .read_all(1 << 20)
        .map_err(|errno| format!("errno {errno}"))?;
    check_eq!(
        source.precopy_info()?.initial_bytes,
        0,
        "initial bytes, read"
    );
    source.fill(4)?;
    there.set("reinit", 1)?;
    let info = source.precopy_info()?;
    let told = info.flags & PRECOPY_REINIT != 0;
    check_eq!(told, info.initial_bytes != 0, "REINIT, and initial bytes");
    stream.extend(
        source
            .client
            .read_all(1 << 20)
            .map_err(|errno| format!("errno {errno}"))?,
    );
    check_eq!(
        source.precopy_info()?.initial_bytes,
        0,
        "initial bytes, read again"
    );
    stream.extend(source.client.stop_and_copy(1 << 20));
    let (_here, mut destination) = made("full")?;
    load(&mut destination, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    source.client.set_state(Running);
    check_same(&mut destination, &mut source)?;
    Ok(format!("told by this kernel: {told}; migrated"))
}

/// Moves a device by pre-copy to a new one of this kind.
fn migrated(there: &TestGpu, source: &mut Owner, kind: &str) -> Outcome {
    let (_here, mut destination) = made(kind)?;
    source.fill(5)?;
    source.client.set_state(PreCopy);
    let mut stream = source
        .client
        .read_all(1 << 20)
        .map_err(|errno| format!("errno {errno}"))?;
    there.set("scribble", 3)?;
    stream.extend(
        source
            .client
            .read_all(1 << 20)
            .map_err(|errno| format!("errno {errno}"))?,
    );
    stream.extend(source.client.stop_and_copy(1 << 20));
    load(&mut destination, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    source.client.set_state(Running);
    check_same(&mut destination, source)
}

fn flr() -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("full")?;
    owner.client.set_state(PreCopy);
    owner
        .client
        .data_read(1 << 16)
        .map_err(|errno| format!("errno {errno}"))?;
    let mut at = u64::from(owner.client.read::<1>(CONFIG, u64::from(pci::CAPABILITIES))[0]);
    while owner.client.read::<1>(CONFIG, at) != [pci::CAP_EXPRESS] {
        at = u64::from(owner.client.read::<1>(CONFIG, at + 1)[0]);
    }
    let resets = gpu.get("resets")?;
    owner
        .client
        .write(CONFIG, at + 8, &0x8000_u16.to_le_bytes());
    check_eq!(gpu.get("resets")? > resets, true, "the device was reset");
    let read = owner.client.data_read(1 << 16);
    check_eq!(read.is_err(), true, "reading afterwards");
    check_eq!(owner.client.state(), Running, "state afterwards");
    owner.client.set_state(PreCopy);
    owner
        .client
        .data_read(1 << 16)
        .map_err(|errno| format!("again: errno {errno}"))?;
    Ok(format!("{read:?}, RUNNING, and it can be saved again"))
}

fn closed() -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("full")?;
    for state in [StopCopy, Resuming] {
        owner.client.set_state(state);
        let read = Request::RegionRead(access(BAR2, 0, 4));
        check_eq!(
            owner.client.request(&read, &[]).err(),
            Some(EBUSY),
            "a register in {state}"
        );
        owner.client.set_state(Running);
    }
    check_eq!(gpu.get("stopped_accesses")?, 0, "what reached the driver");
    Ok("EBUSY, none reached the driver".into())
}

fn cut() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    let lengths = [
        1,
        31,
        32,
        200,
        5000,
        1_048_000,
        4_000_000,
        stream.len() - 33,
        stream.len() - 1,
    ];
    let mut errors = Vec::new();
    for length in lengths {
        errors.push(check_not_loaded(
            &here,
            &mut destination,
            &stream[..length],
            &stream,
        )?);
    }
    errors.dedup();
    Ok(format!(
        "at {} places: errno {errors:?}; reset",
        lengths.len()
    ))
}

fn damaged() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    let step = stream.len() / 9;
    let places = [0, 17, 40]
        .into_iter()
        .chain((1..9).map(|part| part * step + 7))
        .chain([stream.len() - 1]);
    let (mut errors, mut count) = (Vec::new(), 0);
    for at in places {
        let mut bad = stream.clone();
        bad[at] ^= 0x10;
        errors.push(check_not_loaded(&here, &mut destination, &bad, &stream)?);
        count += 1;
    }
    errors.dedup();
    check_eq!(errors, [EPROTO], "errors");
    Ok(format!("at {count} places: EPROTO; reset"))
}

fn foreign() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let here = TestGpu::new("full")?;
    here.set("device", 0x4321)?;
    let mut destination = Owner::of(&here)?;
    refused_at_once(&here, &mut destination, &stream)
}

fn foreign_driver() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("v1-mapped")?;
    refused_at_once(&here, &mut destination, &stream)
}

/// The first record is enough to refuse, with both sides named.
fn refused_at_once(
    gpu: &TestGpu,
    owner: &mut Owner,
    stream: &[u8],
) -> Result<String, Box<dyn Error>> {
    owner.client.set_state(Resuming);
    let refused = owner.client.write_all(&stream[..4096], 4096);
    let why = explain(&mut owner.client);
    check_eq!(refused.is_err(), true, "its first 4 KiB are refused");
    check_eq!(
        owner.client.try_set_state(Running.into()).is_err(),
        true,
        "running it"
    );
    check_eq!(owner.client.state(), Running, "state afterwards");
    check_eq!(
        gpu.get("refused_states")?,
        0,
        "states that it does not have"
    );
    Ok(format!("{refused:?}: {why}"))
}

fn abandoned() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    destination.client.set_state(Resuming);
    destination
        .client
        .write_all(&stream[..4_000_000], 1 << 18)
        .map_err(|errno| format!("errno {errno}"))?;
    destination.leave()?;
    check_eq!(
        here.get("state")?,
        i64::from(u32::from(Running)),
        "state afterwards"
    );
    // Another backend takes it as it is.
    let mut next = Owner::of(&here)?;
    load(&mut next, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    Ok("the device is reset, and takes the stream from the next client".into())
}

fn v1_read_error() -> Result<String, Box<dyn Error>> {
    let (there, mut source) = made("v1-across")?;
    let (_here, mut destination) = made("v1-across")?;
    source.fill(6)?;
    there.set("fail_read_at", 1_000_000)?;
    source.client.set_state(StopCopy);
    let (stream, errors) = read_on(&mut source, &there)?;
    check_eq!(errors, [EIO], "errors of reads");
    load(&mut destination, &stream).map_err(|errno| format!("not loaded, errno {errno}"))?;
    source.client.set_state(Running);
    check_same(&mut destination, &mut source)?;
    Ok("EIO; read again, nothing was lost".into())
}

fn v1_write_error() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("v1-sparse")?;
    let (here, mut destination) = made("v1-sparse")?;
    here.set("fail_write_at", 1_000_000)?;
    let errno = check_not_loaded(&here, &mut destination, &stream, &stream)?;
    check_eq!(errno, EIO, "errno");
    Ok("EIO, now and later; reset".into())
}

fn v1_garbage(bit: i64) -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("v1-across")?;
    owner.fill(7)?;
    let before = owner.state()?;
    owner.client.set_state(PreCopy);
    gpu.set("garbage", bit)?;
    let pending = owner.pending(PENDING_EXACT)?;
    check_eq!(
        i64::try_from(pending.total_bytes).is_ok(),
        true,
        "{pending:?}"
    );
    // With endless bytes pending the data there is comes; the rest is refused.
    let read = owner.client.read_all(1 << 20).map(|data| data.len());
    gpu.set("garbage", 0)?;
    owner.client.set_state(Running);
    check_eq!(owner.state()? == before, true, "the device is unharmed");
    Ok(format!("reads: {read:?}; cancelled, it runs on"))
}

fn v1_state(to_error: bool) -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("v1-trapped")?;
    owner.client.set_state(PreCopy);
    // Stop-and-copy, as its bits are.
    gpu.set("fail_state", 2)?;
    gpu.set("fail_to_error", i64::from(to_error))?;
    check_eq!(
        owner.client.try_set_state(StopCopy.into()),
        Err(EIO),
        "STOP_COPY"
    );
    let state = owner.client.state();
    gpu.set("fail_state", -1)?;
    if to_error {
        check_eq!(state, MigrationState::Error, "state afterwards");
        check_eq!(
            owner.client.try_set_state(Running.into()),
            Err(EINVAL),
            "RUNNING from ERROR"
        );
        owner.reset()?;
    } else {
        owner.client.set_state(Running);
    }
    check_eq!(owner.client.state(), Running, "state at the end");
    check_eq!(
        gpu.get("refused_states")?,
        0,
        "states that it does not have"
    );
    Ok(format!("EIO; in {state}"))
}

fn v1_foreign_layout() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("v1-mapped")?;
    let (here, mut destination) = made("v1-sparse")?;
    refused_at_once(&here, &mut destination, &stream)
}
