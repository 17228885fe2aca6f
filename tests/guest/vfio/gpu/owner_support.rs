// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the checks of faults share: devices with backends, loads that must fail, and the table of what came of it.

use std::error::Error;

use system_tests::migrating::Migrates;
use vfio_user_protocol::migration::MigrationState::{Resuming, Running};

use super::{BAR0, BAR2, SCRATCH, TestGpu, owner::Owner};
use crate::{Outcome, check_eq, say};

/// What came of a fault, in words.
pub type Check = fn() -> Result<String, Box<dyn Error>>;

/// Runs them all, and prints a line for each.
pub fn table(checks: &[(&str, Check)]) -> Outcome {
    for (name, check) in checks {
        let seen = check().map_err(|error| format!("{name}: {error}"))?;
        say(&format!("fault | {name} | {seen}"));
    }
    Ok(())
}

/// A device of this kind, with its backend.
pub fn made(kind: &str) -> Result<(TestGpu, Owner), Box<dyn Error>> {
    let gpu = TestGpu::new(kind)?;
    let owner = Owner::of(&gpu)?;
    Ok((gpu, owner))
}

/// A device with something in it, and its stream; it runs again.
pub fn saved(kind: &str) -> Result<(TestGpu, Owner, Vec<u8>), Box<dyn Error>> {
    let (gpu, mut owner) = made(kind)?;
    owner.fill(0x5eed)?;
    let stream = owner.client.stop_and_copy(1 << 20);
    owner.client.set_state(Running);
    Ok((gpu, owner, stream))
}

/// The destination has what the source has.
pub fn check_same(seen: &mut Owner, wanted: &mut Owner) -> Outcome {
    check_eq!(seen.state()? == wanted.state()?, true, "the same state");
    Ok(())
}

/// Loads a stream and runs the device.
pub fn load(owner: &mut Owner, stream: &[u8]) -> Result<(), u32> {
    owner.client.set_state(Resuming);
    owner.client.write_all(stream, 1 << 18)?;
    owner.client.try_set_state(Running.into())
}

/// A load that must fail: the device is reset and runs. The errno that the client saw.
pub fn check_not_loaded(
    gpu: &TestGpu,
    owner: &mut Owner,
    bad: &[u8],
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
    let scratch = owner.client.read32(BAR2, SCRATCH);
    let first = owner.client.read32(BAR0, 0);
    check_eq!((scratch, first), (0, 0), "nothing of it is there");
    Ok(errno)
}

/// After what failed, and with a driver that does not fail any more, a stream that is right is loaded.
pub fn check_usable(gpu: &TestGpu, owner: &mut Owner, good: &[u8]) -> Outcome {
    for knob in ["fail_read_at", "fail_write_at", "fail_state"] {
        gpu.set(knob, -1)?;
    }
    gpu.set("lax_resume", 0)?;
    load(owner, good).map_err(|errno| format!("a good stream afterwards: errno {errno}").into())
}

/// Reads to the end of the stream; what fails once is read again.
pub fn read_on(owner: &mut Owner, gpu: &TestGpu) -> Result<(Vec<u8>, Vec<u32>), Box<dyn Error>> {
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
