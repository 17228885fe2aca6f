// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Injected failures of migration v2, as the kernel's user sees them.

use std::{
    error::Error,
    fs::File,
    io::{Read, Write},
};

use super::{
    TestGpu, check_errno, check_same,
    feature::{End, data_size, drain, precopy_info, set_state, state, state_of},
    fill,
    v2::{load, save},
};
use crate::{Outcome, check_eq, say, vfio::kernel::OpenDevice};

type Check = fn() -> Outcome;

/// Every fault, each on devices of its own.
pub fn faults() -> Outcome {
    let all: [(&str, Check); 11] = [
        ("read fails at a byte", read_error),
        ("write fails at a byte", write_error),
        ("a state is refused", state_refused),
        ("a state ends in ERROR", state_to_error),
        ("sizes are garbage", garbage),
        ("the stream is corrupt", corrupt),
        ("the stream is cut", cut),
        ("the stream is another device's", foreign),
        ("EAGAIN, and slowness", eagain),
        ("reset while it migrates", reset),
        ("states it does not have", no_such_state),
    ];
    for (name, check) in all {
        check().map_err(|error| format!("{name}: {error}"))?;
        say(&format!("fault: {name}: as documented"));
    }
    Ok(())
}

fn made(kind: &str) -> Result<(TestGpu, OpenDevice), Box<dyn Error>> {
    let gpu = TestGpu::new(kind)?;
    let device = gpu.open()?;
    Ok((gpu, device))
}

fn begin(device: &OpenDevice, state: u32) -> Result<File, Box<dyn Error>> {
    Ok(set_state(&device.device, state)?.ok_or("no data fd")?)
}

/// A stream of a device of the type `full`.
fn stream() -> Result<Vec<u8>, Box<dyn Error>> {
    let (gpu, device) = made("full")?;
    fill(&device, 3)?;
    save(&gpu, &device)
}

fn check_state(device: &OpenDevice, wanted: u32, what: &str) -> Outcome {
    check_eq!(state_of(&device.device)?, wanted, "state {what}");
    Ok(())
}

fn read_error() -> Outcome {
    for kind in ["stop", "full"] {
        let (gpu, device) = made(kind)?;
        gpu.set("fail_read_at", 5000)?;
        gpu.set("fail_errno", i64::from(libc::EREMOTEIO))?;
        let data = begin(&device, state::STOP_COPY)?;
        let mut bytes = Vec::new();
        check_eq!(
            drain(&data, 64, &mut bytes),
            End::Errno(libc::EREMOTEIO),
            "{kind}: reading"
        );
        check_eq!(bytes.len(), 5000, "{kind}: what was read before");
        set_state(&device.device, state::RUNNING)?;
        check_state(&device, state::RUNNING, "after an aborted save")?;
    }
    Ok(())
}

fn write_error() -> Outcome {
    let (gpu, device) = made("full")?;
    gpu.set("fail_write_at", 100_000)?;
    let mut data = begin(&device, state::RESUMING)?;
    check_errno(data.write_all(&stream()?), libc::EIO, "writing")?;
    check_errno(
        set_state(&device.device, state::STOP),
        libc::EINVAL,
        "loading what is not all",
    )?;
    check_state(&device, state::RESUMING, "after it")?;
    device.reset()?;
    check_state(&device, state::RUNNING, "after reset")?;
    check_errno(data.write(&[0]), libc::ENODEV, "writing after reset")
}

fn state_refused() -> Outcome {
    let (gpu, device) = made("full")?;
    let data = begin(&device, state::PRE_COPY)?;
    gpu.set("fail_state", i64::from(state::STOP_COPY))?;
    check_errno(
        set_state(&device.device, state::STOP_COPY),
        libc::EIO,
        "STOP_COPY",
    )?;
    // It got as far as the state before.
    check_state(&device, state::PRE_COPY_P2P, "after it")?;
    precopy_info(&data)?;
    set_state(&device.device, state::RUNNING)?;
    check_errno(precopy_info(&data), libc::ENODEV, "sizes after cancelling")?;
    check_state(&device, state::RUNNING, "after cancelling")
}

fn state_to_error() -> Outcome {
    let (gpu, device) = made("full")?;
    let data = begin(&device, state::PRE_COPY)?;
    gpu.set("fail_state", i64::from(state::STOP_COPY))?;
    gpu.set("fail_to_error", 1)?;
    check_errno(
        set_state(&device.device, state::STOP_COPY),
        libc::EIO,
        "STOP_COPY",
    )?;
    check_state(&device, state::ERROR, "after it")?;
    let mut rest = Vec::new();
    check_eq!(
        drain(&data, 64, &mut rest),
        End::Errno(libc::ENODEV),
        "reading in ERROR"
    );
    for wanted in [state::RUNNING, state::STOP] {
        check_errno(
            set_state(&device.device, wanted),
            libc::EINVAL,
            "out of ERROR",
        )?;
    }
    check_eq!(gpu.get("refused_states")?, 2, "states that were refused");
    device.reset()?;
    check_state(&device, state::RUNNING, "after reset")
}

fn garbage() -> Outcome {
    let (gpu, device) = made("full")?;
    let data = begin(&device, state::PRE_COPY)?;
    gpu.set("garbage", 15)?;
    check_eq!(data_size(&device.device)?, u64::MAX, "MIG_DATA_SIZE");
    let info = precopy_info(&data)?;
    check_eq!(
        (info.initial, info.dirty),
        (u64::MAX, u64::MAX),
        "pre-copy sizes"
    );
    check_eq!(info.flags, u32::MAX, "flags that nobody asked for");
    Ok(())
}

fn corrupt() -> Outcome {
    let good = stream()?;
    // The magic, the version, a page's place, a kind, the number of records.
    for at in [17, 24, 40 + 8, 40, good.len() - 4] {
        let (gpu, device) = made("full")?;
        let mut stream = good.clone();
        stream[at] ^= 0x41;
        let mut data = begin(&device, state::RESUMING)?;
        check_errno(data.write_all(&stream), libc::EINVAL, "writing it")?;
        check_errno(
            data.write(&good),
            libc::EINVAL,
            "writing the good one after it",
        )?;
        check_errno(
            set_state(&device.device, state::STOP),
            libc::EINVAL,
            "loading it",
        )?;
        gpu.set("lax_resume", 1)?;
        set_state(&device.device, state::STOP)?;
    }
    Ok(())
}

fn cut() -> Outcome {
    let stream = stream()?;
    for length in [0, 15, 40, 100_000, stream.len() - 1] {
        let (_gpu, device) = made("full")?;
        begin(&device, state::RESUMING)?.write_all(&stream[..length])?;
        check_errno(
            set_state(&device.device, state::STOP),
            libc::EINVAL,
            "loading it",
        )?;
        check_errno(
            set_state(&device.device, state::RUNNING),
            libc::EINVAL,
            "running it",
        )?;
        check_state(&device, state::RESUMING, "after it")?;
    }
    let (_gpu, device) = made("full")?;
    let mut data = begin(&device, state::RESUMING)?;
    data.write_all(&stream)?;
    check_errno(data.write(&[0]), libc::EINVAL, "a byte too many")
}

fn foreign() -> Outcome {
    let (gpu, device) = made("full")?;
    gpu.set("device", 0x1234)?;
    let mut data = begin(&device, state::RESUMING)?;
    check_errno(data.write_all(&stream()?), libc::EINVAL, "writing it")
}

fn eagain() -> Outcome {
    let (source, from) = made("full")?;
    let (destination, to) = made("full")?;
    fill(&from, 4)?;
    for gpu in [&source, &destination] {
        gpu.set("eagain_every", 3)?;
        gpu.set("slow_read_ms", 1)?;
        gpu.set("slow_write_ms", 1)?;
        gpu.set("slow_state_ms", 1)?;
    }
    let mut data = begin(&from, state::STOP_COPY)?;
    let (mut stream, mut piece, mut refused) = (Vec::new(), vec![0; 0x1_0000], 0);
    loop {
        match data.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => stream.extend_from_slice(&piece[..length]),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => refused += 1,
            Err(error) => return Err(error.into()),
        }
    }
    check_eq!(refused > 10, true, "EAGAIN was seen, {refused} times");
    set_state(&from.device, state::RUNNING)?;
    destination.set("eagain_every", 0)?;
    load(&to, &stream, 0x1_0000)?;
    check_same(&to, &from)
}

fn reset() -> Outcome {
    for wanted in [state::PRE_COPY, state::STOP_COPY, state::RESUMING] {
        let (_gpu, device) = made("full")?;
        let data = begin(&device, wanted)?;
        device.reset()?;
        check_state(&device, state::RUNNING, "after reset")?;
        let outcome = match wanted {
            state::RESUMING => (&data).write(&[0]),
            _ => (&data).read(&mut [0]),
        };
        check_errno(outcome, libc::ENODEV, "the data fd after reset")?;
        // The fd outlives its migration, and the next one has its own.
        begin(&device, wanted)?;
    }
    Ok(())
}

fn no_such_state() -> Outcome {
    let (_gpu, device) = made("stop")?;
    for wanted in [
        state::PRE_COPY,
        state::PRE_COPY_P2P,
        state::RUNNING_P2P,
        state::ERROR,
        99,
    ] {
        check_errno(
            set_state(&device.device, wanted),
            libc::EINVAL,
            "of the device `stop`",
        )?;
    }
    let (_gpu, device) = made("precopy")?;
    for wanted in [state::PRE_COPY_P2P, state::RUNNING_P2P] {
        check_errno(
            set_state(&device.device, wanted),
            libc::EINVAL,
            "of the device `precopy`",
        )?;
    }
    let (_gpu, device) = made("full")?;
    begin(&device, state::STOP_COPY)?;
    check_errno(
        set_state(&device.device, state::PRE_COPY),
        libc::EINVAL,
        "back to PRE_COPY",
    )?;
    check_state(&device, state::STOP_COPY, "after it")
}
