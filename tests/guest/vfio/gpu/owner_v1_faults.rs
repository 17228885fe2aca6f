// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Drivers with the v1 region that fail or lie, each in front of a backend.

use std::error::Error;

use system_tests::migrating::Migrates;
use vfio_user_protocol::{
    extension::migration::PENDING_EXACT,
    migration::MigrationState::{self, PreCopy, Running, StopCopy},
};

use super::{VRAM, owner_streams::refused_at_once, owner_support::*};
use crate::{Outcome, check_eq};

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Faults of a driver with the v1 region.
pub fn v1_faults() -> Outcome {
    table(&[
        ("data_offset fails at a byte, once", v1_read_error),
        ("data_size fails at a byte", v1_write_error),
        ("pending_bytes is 2^64-1", || {
            v1_garbage(16, PreCopyRead::All)
        }),
        ("data_size is the region's", || {
            v1_garbage(32, PreCopyRead::Refused)
        }),
        ("data_offset lies behind the region", || {
            v1_garbage(64, PreCopyRead::Refused)
        }),
        ("bytes pending, and never any data", || {
            v1_garbage(128, PreCopyRead::Nothing)
        }),
        ("a state fails", || v1_state(false)),
        ("a state ends in the error state", || v1_state(true)),
        ("of another layout", v1_foreign_layout),
    ])
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
    let errno = check_not_loaded(&here, &mut destination, &stream)?;
    check_usable(&here, &mut destination, &stream)?;
    check_eq!(errno, EIO, "errno");
    Ok("EIO, now and later; reset".into())
}

/// What comes of reading in PRE_COPY, until there is nothing more for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PreCopyRead {
    /// All data there is.
    All,
    /// What says whose stream it is, and no data.
    Nothing,
    /// EIO.
    Refused,
}

impl PreCopyRead {
    fn of(read: Result<Vec<u8>, u32>) -> Result<Self, Box<dyn Error>> {
        match read {
            Ok(data) if data.len() >= VRAM => Ok(Self::All),
            Ok(data) if data.len() < 4096 => Ok(Self::Nothing),
            Err(EIO) => Ok(Self::Refused),
            Ok(data) => Err(format!("{} bytes read", data.len()).into()),
            Err(errno) => Err(format!("errno {errno}").into()),
        }
    }
}

/// Garbage never is a whole stream: sections that are none are refused, and bytes that never come mean nothing for now in
/// PRE_COPY, an error in STOP_COPY.
fn v1_garbage(bit: i64, wanted: PreCopyRead) -> Result<String, Box<dyn Error>> {
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
    let read = PreCopyRead::of(owner.client.read_all(1 << 20))?;
    check_eq!(read, wanted, "reading in PRE_COPY");
    if read == PreCopyRead::Refused {
        // A transfer that failed stays so, whatever the driver says: STOP_COPY is to find out by itself.
        owner.client.set_state(Running);
    }
    owner.client.set_state(StopCopy);
    let stopped = owner.client.read_all(1 << 20).map(|data| data.len());
    check_eq!(stopped, Err(EIO), "reading in STOP_COPY");
    gpu.set("garbage", 0)?;
    owner.client.set_state(Running);
    check_eq!(owner.state()? == before, true, "the device is unharmed");
    Ok(format!(
        "PRE_COPY: {read:?}; STOP_COPY: EIO; cancelled, it runs on"
    ))
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
    let both = "driver data: vugtest-v1-mapped v1 at the source, vugtest-v1-sparse v1 here";
    refused_at_once(&here, &mut destination, &stream, both)
}
