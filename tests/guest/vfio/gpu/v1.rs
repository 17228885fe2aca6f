// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration v1: the region of `struct vfio_device_migration_info`, by a small careful user.

use std::{error::Error, io};

use super::{TestGpu, check_errno, check_same, fill, region::Region};
use crate::{Outcome, check_eq, say, vfio::kernel::OpenDevice};

const REGION: u32 = 9;
const STATE: u64 = 0;
const PENDING: u64 = 8;
const DATA_OFFSET: u64 = 16;
const DATA_SIZE: u64 = 24;

const STOPPED: u32 = 0;
const RUNNING: u32 = 1;
const SAVING: u32 = 2;
const RESUMING: u32 = 4;
/// The bits that are the interface's.
const STATES: u32 = 7;
/// What says that the device gave up.
const ERROR: u32 = SAVING | RESUMING;

/// The migration region of a device.
pub struct V1(Region);

impl V1 {
    /// With every part mapped that can be.
    pub fn new(device: &OpenDevice) -> Result<Self, Box<dyn Error>> {
        let mut region = Region::new(&device.device, REGION)?;
        check_eq!(region.kind, Some((3, 1)), "type of the migration region");
        region.map()?;
        Ok(Self(region))
    }

    fn state(&self) -> io::Result<u32> {
        self.0.get(STATE).map(u32::from_le_bytes)
    }

    /// Changes the state bits and no others.
    pub fn set_state(&self, state: u32) -> io::Result<()> {
        let kept = self.state()? & !STATES;
        self.0.put(STATE, &(kept | state).to_le_bytes())
    }

    fn number(&self, register: u64) -> io::Result<u64> {
        self.0.get(register).map(u64::from_le_bytes)
    }

    /// One transaction; none when there is nothing (for now).
    fn take(&self) -> Result<Option<Vec<u8>>, Box<dyn Error>> {
        if self.number(PENDING)? == 0 {
            return Ok(None);
        }
        let (offset, size) = (self.number(DATA_OFFSET)?, self.number(DATA_SIZE)?);
        // Asked again, it is the same.
        check_eq!(self.number(DATA_OFFSET)?, offset, "data_offset, read again");
        check_eq!(self.number(DATA_SIZE)?, size, "data_size, read again");
        if offset < 32 || size == 0 {
            return Err(format!("{size:#x} bytes at {offset:#x}, with bytes pending").into());
        }
        Ok(Some(self.0.read(offset, size)?))
    }

    /// Gives one transaction.
    fn give(&self, transaction: &[u8]) -> Outcome {
        let offset = self.number(DATA_OFFSET)?;
        self.0.write(offset, transaction)?;
        let size = u64::try_from(transaction.len())?;
        Ok(self.0.put(DATA_SIZE, &size.to_le_bytes())?)
    }
}

/// VRAM and registers go from one device to another in every layout of the region.
pub fn every_layout() -> Outcome {
    for layout in ["trapped", "mapped", "across", "sparse"] {
        let kind = format!("v1-{layout}");
        let (source, destination) = (TestGpu::new(&kind)?, TestGpu::new(&kind)?);
        let (from, to) = (source.open()?, destination.open()?);
        fill(&from, 0x5eed)?;
        fill(&to, 0xdead)?;
        let transactions = save(&source, &V1::new(&from)?)?;
        load(&V1::new(&to)?, &transactions)?;
        check_same(&to, &from)?;
        let bytes: usize = transactions.iter().map(Vec::len).sum();
        say(&format!(
            "{kind}: {bytes} bytes in {} transactions",
            transactions.len()
        ));
    }
    registers()?;
    transactions()?;
    failures()
}

fn save(gpu: &TestGpu, v1: &V1) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut transactions = Vec::new();
    v1.set_state(RUNNING | SAVING)?;
    for round in 0..2 {
        while let Some(transaction) = v1.take()? {
            transactions.push(transaction);
        }
        check_eq!(
            v1.number(PENDING)?,
            0,
            "pending_bytes, with nothing to give"
        );
        gpu.set("scribble", 3 + round)?;
    }
    check_eq!(
        v1.number(PENDING)?,
        4 * (16 + 4096),
        "pending_bytes after changes"
    );
    v1.set_state(SAVING)?;
    while let Some(transaction) = v1.take()? {
        transactions.push(transaction);
    }
    v1.set_state(STOPPED)?;
    v1.set_state(RUNNING)?;
    check_eq!(
        gpu.get("stopped_accesses")?,
        0,
        "accesses to the stopped device"
    );
    Ok(transactions)
}

fn load(v1: &V1, transactions: &[Vec<u8>]) -> Outcome {
    v1.set_state(RESUMING)?;
    for transaction in transactions {
        v1.give(transaction)?;
    }
    v1.set_state(RUNNING)?;
    check_eq!(v1.state()? & STATES, RUNNING, "state after loading");
    Ok(())
}

/// The registers have a width, and reserved bits.
fn registers() -> Outcome {
    let device = TestGpu::new("v1-across")?.open()?;
    let v1 = V1::new(&device)?;
    check_eq!(
        v1.state()?,
        0x100 | RUNNING,
        "state at first, with a reserved bit"
    );
    let bare = v1.0.put(STATE, &(RUNNING | SAVING).to_le_bytes());
    check_errno(bare, libc::EINVAL, "a state without the reserved bit")?;
    for state in [RUNNING | RESUMING, ERROR, STATES] {
        check_errno(v1.set_state(state), libc::EINVAL, "a state that is none")?;
    }
    check_errno(
        v1.0.get::<4>(PENDING),
        libc::EINVAL,
        "half of pending_bytes",
    )?;
    check_errno(v1.0.get::<8>(STATE), libc::EINVAL, "the state, too wide")?;
    check_errno(v1.0.get::<1>(STATE), libc::EINVAL, "the state, too narrow")?;
    check_errno(
        v1.0.get::<8>(DATA_OFFSET - 4),
        libc::EINVAL,
        "across registers",
    )?;
    check_errno(
        v1.0.put(PENDING, &[0; 8]),
        libc::EINVAL,
        "writing pending_bytes",
    )?;
    check_eq!(v1.number(PENDING)?, 0, "pending_bytes while it just runs");
    Ok(())
}

/// Transactions that are not the source's are refused.
fn transactions() -> Outcome {
    let source = TestGpu::new("v1-across")?;
    // Small ones, of which two fit where one goes.
    source.set("max_transfer", 10_000)?;
    let transactions = save(&source, &V1::new(&source.open()?)?)?;
    let joined = [&transactions[0][..], &transactions[1][..]].concat();
    let bad: [(&str, Vec<&[u8]>); 4] = [
        ("joined", vec![&joined]),
        ("divided", vec![&transactions[0][..100]]),
        ("reordered", vec![&transactions[1]]),
        ("repeated", vec![&transactions[0], &transactions[0]]),
    ];
    for (name, given) in bad {
        let gpu = TestGpu::new("v1-across")?;
        let device = gpu.open()?;
        let v1 = V1::new(&device)?;
        v1.set_state(RESUMING)?;
        let refused = given
            .iter()
            .any(|transaction| v1.give(transaction).is_err());
        check_eq!(refused, true, "{name} transactions are refused");
        check_errno(v1.set_state(RUNNING), libc::EINVAL, "running it")?;
        check_eq!(
            v1.state()? & STATES,
            ERROR,
            "state after {name} transactions"
        );
        check_errno(
            v1.set_state(STOPPED),
            libc::EINVAL,
            "out of the error state",
        )?;
        device.reset()?;
        check_eq!(v1.state()? & STATES, RUNNING, "state after reset");
    }
    Ok(())
}

/// Injected failures, and garbage.
fn failures() -> Outcome {
    let gpu = TestGpu::new("v1-trapped")?;
    let device = gpu.open()?;
    let v1 = V1::new(&device)?;
    v1.set_state(RUNNING | SAVING)?;
    for (bit, register, wanted) in [
        (16, PENDING, u64::MAX),
        (32, DATA_SIZE, v1.0.size),
        (64, DATA_OFFSET, v1.0.size + 0x1000),
    ] {
        gpu.set("garbage", bit)?;
        check_eq!(
            v1.number(register)?,
            wanted,
            "garbage in register {register}"
        );
    }
    gpu.set("garbage", 0)?;
    v1.set_state(RUNNING)?;

    gpu.set("fail_read_at", 1000)?;
    v1.set_state(SAVING)?;
    let first = v1.take()?.ok_or("nothing to save")?;
    check_eq!(first.len(), 16 + 1000, "the transaction before the error");
    v1.number(PENDING)?;
    check_errno(
        v1.number(DATA_OFFSET),
        libc::EIO,
        "data_offset at the error",
    )?;

    gpu.set("fail_state", 0)?;
    gpu.set("fail_to_error", 1)?;
    check_errno(v1.set_state(STOPPED), libc::EIO, "an injected refusal")?;
    check_eq!(v1.state()? & STATES, ERROR, "state after it");
    check_errno(
        v1.number(DATA_OFFSET),
        libc::EIO,
        "data_offset in the error state",
    )?;
    device.reset()?;
    check_eq!(v1.state()? & STATES, RUNNING, "state after reset");
    Ok(())
}
