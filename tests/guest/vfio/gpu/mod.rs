// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of our test module (tests/kernel/module, whose README describes types, registers and knobs): checks of them by
//! bare ioctls, that the module does what it says and that the kernel lets it, then of backends that own them.

mod faults;
mod feature;
mod logging;
mod owner;
mod owner_faults;
mod owner_streams;
mod owner_support;
mod owner_tool;
mod owner_v1_faults;
mod region;
mod v1;
mod v2;
mod variants;

use std::{
    error::Error,
    io,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU32, Ordering},
};

pub use faults::faults;
pub use logging::logging;
pub use owner::{
    every_layout as owner_every_layout, every_variant as owner_every_variant, mtty as owner_mtty,
};
pub use owner_faults::faults as owner_faults;
pub use owner_streams::streams as owner_streams;
pub use owner_tool::every_way as owner_tool;
pub use owner_v1_faults::v1_faults as owner_v1_faults;
use system_tests::{pattern, pci};
pub use v1::every_layout;
pub use v2::every_variant;
pub use variants::{igd, interrupts, quiet, variants};

use super::{backend::CONFIG, kernel::OpenDevice, pci::Function};
use crate::{Outcome, check_eq};

/// Bytes of VRAM, in BAR0.
pub const VRAM: usize = 8 << 20;
/// BAR0 and BAR2.
pub const BAR0: u32 = 0;
/// Registers.
pub const BAR2: u32 = 2;
/// Of BAR2: "VUGT".
const ID: u64 = 0;
const ID_VALUE: u32 = 0x5447_5556;
/// Scratch registers, and how many.
const SCRATCH: u64 = 0x10;
const SCRATCH_REGISTERS: u64 = 16;
/// Raises a vector.
const IRQ_RAISE: u64 = 0x80;
/// INTx is pending.
const IRQ_STATUS: u64 = 0x84;
/// The first word of the MSI-X table.
const MSIX_TABLE: u64 = 0x8000;

/// A device of the module.
pub struct TestGpu {
    function: Function,
}

impl TestGpu {
    /// A new one of the type `vugtest-KIND`.
    pub fn new(kind: &str) -> Result<Self, Box<dyn Error>> {
        static MADE: AtomicU32 = AtomicU32::new(1);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let uuid = format!("76756774-6573-4000-8000-{number:012x}");
        let function = Function::mediated("vugtest", &format!("vugtest-{kind}"), &uuid)?;
        Ok(Self { function })
    }

    /// Sets a knob.
    pub fn set(&self, knob: &str, value: i64) -> Outcome {
        self.function
            .write(&format!("vugtest/{knob}"), &value.to_string())
    }

    /// What a knob or counter says.
    pub fn get(&self, knob: &str) -> Result<i64, Box<dyn Error>> {
        Ok(self.function.read(&format!("vugtest/{knob}"))?.parse()?)
    }

    /// Whether its kernel has a way to tell a user of new initial data.
    pub fn tells_reinit(&self) -> Result<bool, Box<dyn Error>> {
        Ok(self.get("precopy_flags")? != 0)
    }

    /// Its folder in sysfs.
    pub fn path(&self) -> String {
        self.function.path()
    }

    /// Opens it, and lets it answer and do DMA.
    pub fn open(&self) -> Result<OpenDevice, Box<dyn Error>> {
        let device = OpenDevice::open(&self.function)?;
        enable(&device)?;
        Ok(device)
    }
}

/// Turns memory decoding and bus mastering on.
fn enable(device: &OpenDevice) -> Outcome {
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    device.write(CONFIG, u64::from(pci::COMMAND), &command.to_le_bytes())
}

fn register(device: &OpenDevice, offset: u64) -> Result<u32, Box<dyn Error>> {
    Ok(u32::from_le_bytes(device.read(BAR2, offset)?))
}

fn set_register(device: &OpenDevice, offset: u64, value: u32) -> Outcome {
    device.write(BAR2, offset, &value.to_le_bytes())
}

/// All of VRAM, by messages.
fn vram(device: &OpenDevice) -> Result<Vec<u8>, Box<dyn Error>> {
    let offset = device.region(BAR0)?.ok_or("no BAR0")?.offset;
    let mut bytes = vec![0; VRAM];
    device.device.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Gives VRAM and the registers that migrate values of their own.
fn fill(device: &OpenDevice, seed: u32) -> Outcome {
    device.write(BAR0, 0, &pattern::bytes(seed, VRAM))?;
    for (index, offset) in migrated_registers().enumerate() {
        set_register(device, offset, pattern::word(!seed, u32::try_from(index)?))?;
    }
    Ok(())
}

fn migrated_registers() -> impl Iterator<Item = u64> {
    let scratch = (0..SCRATCH_REGISTERS).map(|index| SCRATCH + 4 * index);
    scratch.chain((0..16).map(|index| MSIX_TABLE + 4 * index))
}

/// Compares the whole state of two devices.
fn check_same(seen: &OpenDevice, wanted: &OpenDevice) -> Outcome {
    let (seen_vram, wanted_vram) = (vram(seen)?, vram(wanted)?);
    if let Some(at) = (0..VRAM).find(|&at| seen_vram[at] != wanted_vram[at]) {
        check_eq!(seen_vram[at], wanted_vram[at], "VRAM at {at:#x}");
    }
    for offset in migrated_registers() {
        let (seen, wanted) = (register(seen, offset)?, register(wanted, offset)?);
        check_eq!(seen, wanted, "register {offset:#x}");
    }
    let config = |device: &OpenDevice| device.read::<256>(CONFIG, 0);
    check_eq!(config(seen)?, config(wanted)?, "config space");
    Ok(())
}

/// The errno of a call that must fail.
fn errno<T>(result: io::Result<T>) -> Result<i32, Box<dyn Error>> {
    match result {
        Ok(_) => Err("it succeeded".into()),
        Err(error) => error
            .raw_os_error()
            .ok_or_else(|| format!("no errno: {error}").into()),
    }
}

/// Fails unless a call failed with this errno.
fn check_errno<T>(result: io::Result<T>, wanted: i32, what: &str) -> Outcome {
    let seen = errno(result).map_err(|error| format!("{what}: {error}"))?;
    check_eq!(seen, wanted, "errno: {what}");
    Ok(())
}
