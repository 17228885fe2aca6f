// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! INTx, counted by `uio_pci_generic`. That driver only counts an interrupt when the function's status register owns
//! up to it, and then disables INTx in the command register until told otherwise.

use std::{
    error::Error,
    fs::{self, File},
    io::Read,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use system_tests::{
    model_gpu::{self, engine as reg},
    pci,
};

use crate::{Outcome, check_eq, engine::Engine, pci_device::PciDevice};

/// Two interrupts arrive, one for each event, and none without.
pub fn intx() -> Outcome {
    let gpu = PciDevice::enabled_gpu()?;
    let config = gpu.config()?;
    let engine = Engine::of(&gpu)?.registers;
    let id = format!("{:x} {:x}", model_gpu::VENDOR, model_gpu::DEVICE);
    fs::write("/sys/bus/pci/drivers/uio_pci_generic/new_id", id)
        .map_err(|error| format!("uio_pci_generic takes no id: {error}"))?;
    let mut uio = File::open("/dev/uio0").map_err(|error| format!("/dev/uio0: {error}"))?;

    // An event that is not enabled is remembered and does not interrupt.
    engine.write32(reg::INT_RAISE, 1 << 3);
    check_eq!(
        engine.read32(reg::INT_STATUS),
        1 << 3,
        "INT_STATUS after an event"
    );
    check_eq!(
        config.read16(pci::STATUS)? & pci::STATUS_INTERRUPT,
        0,
        "interrupt status, masked"
    );

    engine.write32(reg::INT_ENABLE, 1 << 3);
    check_eq!(next_count(&mut uio)?, 1, "interrupts counted");
    let command = config.read16(pci::COMMAND)?;
    check_eq!(
        command & pci::COMMAND_INTX_DISABLE,
        pci::COMMAND_INTX_DISABLE,
        "INTx disable, by the driver"
    );
    check_eq!(
        config.read16(pci::STATUS)? & pci::STATUS_INTERRUPT,
        pci::STATUS_INTERRUPT,
        "interrupt status before the event is acknowledged"
    );
    engine.write32(reg::INT_STATUS, 1 << 3);
    check_eq!(
        engine.read32(reg::INT_STATUS),
        0,
        "INT_STATUS, acknowledged"
    );
    check_eq!(
        config.read16(pci::STATUS)? & pci::STATUS_INTERRUPT,
        0,
        "interrupt status, acknowledged"
    );

    // Enabled again with nothing pending, and then a second event.
    config.write16(pci::COMMAND, command & !pci::COMMAND_INTX_DISABLE)?;
    engine.write32(reg::INT_RAISE, 1 << 3);
    check_eq!(next_count(&mut uio)?, 2, "interrupts counted");
    engine.write32(reg::INT_STATUS, u32::MAX);
    engine.write32(reg::INT_ENABLE, 0);
    drop(uio);
    // A device with a driver cannot be enabled for another user.
    gpu.write("driver/unbind", &gpu.address()?)
}

/// Waits for an interrupt and returns how many there were since the driver was bound.
fn next_count(uio: &mut File) -> Result<u32, Box<dyn Error>> {
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(uio, PollFlags::IN)];
    if poll(&mut fds, Some(&limit))? == 0 {
        return Err("no interrupt came".into());
    }
    let mut count = [0; 4];
    uio.read_exact(&mut count)?;
    Ok(u32::from_ne_bytes(count))
}
