// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers with migration v2 that fail, lie or dawdle, each in front of a backend: what its client sees, and that the device can
//! be used afterwards.

use std::error::Error;

use system_tests::{
    migrating::{Migrates, explain},
    pci,
    raw_client::access,
};
use vfio_user_protocol::{
    Command, Request,
    extension::migration::{PENDING_EXACT, PENDING_UNKNOWN, PRECOPY_REINIT},
    migration::MigData,
    migration::MigrationState::{self, PreCopy, Resuming, Running, Stop, StopCopy},
};
use zerocopy::IntoBytes;

use super::{BAR2, TestGpu, owner::Owner, owner_support::*};
use crate::{Outcome, check_eq, vfio::backend::CONFIG};

const EIO: u32 = 5;
const EBUSY: u32 = 16;
const EINVAL: u32 = 22;

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
        ("a slow read, and a channel for it", slow_read),
    ])
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
    let errno = check_not_loaded(&here, &mut destination, &stream)?;
    check_usable(&here, &mut destination, &stream)?;
    check_eq!(errno, EIO, "errno");
    Ok("EIO, now and later; reset".into())
}

fn write_error_forgotten() -> Result<String, Box<dyn Error>> {
    let (_there, _source, stream) = saved("full")?;
    let (here, mut destination) = made("full")?;
    here.set("fail_write_at", 8_000_000)?;
    here.set("lax_resume", 1)?;
    let errno = check_not_loaded(&here, &mut destination, &stream)?;
    check_usable(&here, &mut destination, &stream)?;
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
    let told = there.tells_reinit()?;
    check_eq!(
        (info.flags & PRECOPY_REINIT != 0, info.initial_bytes != 0),
        (told, told),
        "REINIT, and initial bytes"
    );
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

/// The guest's accesses do not wait for a driver that takes its time.
fn slow_read() -> Result<String, Box<dyn Error>> {
    let (gpu, mut owner) = made("full")?;
    let mut channel = owner.channel()?;
    channel.set_state(PreCopy);
    gpu.set("slow_read_ms", 5000)?;
    let size = 1 << 16;
    let asked = MigData {
        argsz: size + 8,
        size,
    };
    let message = channel.message(Command::MigDataRead, 0, asked.as_bytes());
    channel.send(&message, &[]);
    for _ in 0..50 {
        owner.client.read32(BAR2, 0);
        owner.client.read::<4>(CONFIG, 0);
    }
    check_eq!(
        channel.is_silent(),
        true,
        "the read is not over when 100 accesses are"
    );
    gpu.set("slow_read_ms", 0)?;
    let reply = channel.receive().ok_or("the channel was closed")?;
    check_eq!(reply.body.len() > 8, true, "the read brought data");
    channel.set_state(Running);
    Ok("100 accesses were answered before it".into())
}
