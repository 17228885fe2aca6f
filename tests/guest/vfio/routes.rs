// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A check of a client that holds no PCI knowledge: it arms every vector once, forwards what a guest writes, and is told
//! the routes (extension `irq_routes`). The backend gives the kernel what the guest's registers say.

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use system_tests::pci;
use vfio_user_client::{Options, protocol::extension::IrqRoute, twin::Callbacks};

use super::{
    backend::{Device, Launch, MSIX, Trapped, chain},
    edu::Registers,
    events::Event,
    igb, places,
};
use crate::{Outcome, check_eq, say};

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_TABLE: u16 = 4;
const MSIX_PBA: u16 = 8;
const ENTRY: u64 = 16;
const VECTOR_CONTROL: u64 = 12;
const MASKED: u32 = 1;

/// How many routes were told.
#[derive(Default)]
struct Told(Mutex<usize>);

impl Callbacks for Told {
    fn irq_routes(&self, _index: u32, _start: u32, routes: &[IrqRoute]) -> io::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += routes.len();
        Ok(())
    }
}

/// igb's MSI-X by its table alone: vectors fire as unmasked, wait while masked with their pending bit set, and fire then.
pub fn msix() -> Outcome {
    let told = Arc::new(Told::default());
    let options = Options {
        callbacks: Some(Arc::clone(&told) as _),
        irq_routes: true,
        ..Options::default()
    };
    let backend = Launch::on(&places::igb()?)?
        .args(&["--bar-handoff", "device-fd"])
        .attach_with(options)?;
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    let capability = backend.capability(pci::CAP_MSIX)?;
    let place = |register: u16| -> Result<(u32, u64), Box<dyn Error>> {
        let low = backend.config16(capability + register)?;
        let high = backend.config16(capability + register + 2)?;
        let value = u32::from(high) << 16 | u32::from(low);
        Ok((value & 7, u64::from(value & !7)))
    };
    let ((table_bar, table), (pending_bar, pending)) = (place(MSIX_TABLE)?, place(MSIX_PBA)?);
    let table_bar = backend.trapped(table_bar);
    let pending_bar = backend.trapped(pending_bar);
    let set_mask = |vector: u64, masked: u32| {
        table_bar.write32(table + vector * ENTRY + VECTOR_CONTROL, masked)
    };

    let events = [Event::new()?, Event::new()?];
    let fds: Vec<_> = events.iter().map(|event| Some(event.fd())).collect();
    backend
        .client()
        .arm(MSIX, 0, &fds)
        .map_err(|error| chain(&error))?;
    for vector in 0..2 {
        table_bar.write32(table + vector * ENTRY, 0xfee0_0000)?;
        table_bar.write32(table + vector * ENTRY + 8, 0x41)?;
    }
    set_mask(0, 0)?;
    backend.set_config16(capability + 2, MSIX_ENABLE)?;
    let bar = backend.mapped(0)?;
    igb::set_up(&bar)?;
    igb::raise(&bar, 0)?;
    check_eq!(events[0].wait("unmasked vector")?, 1, "vector 0");
    for round in 0..100 {
        set_mask(0, MASKED)?;
        igb::raise(&bar, 0)?;
        wait_pending(&pending_bar, pending, 1)?;
        check_eq!(events[0].count(), 0, "vector 0 while masked, round {round}");
        set_mask(0, 0)?;
        check_eq!(events[0].wait("vector 0, unmasked")?, 1, "round {round}");
        check_eq!(
            pending_bar.read32(pending)?,
            0,
            "pending bits, round {round}"
        );
    }
    set_mask(1, 0)?;
    igb::raise(&bar, 1)?;
    check_eq!(events[1].wait("vector added by its mask")?, 1, "vector 1");
    backend.set_config16(capability + 2, 0)?;
    igb::raise(&bar, 0)?;
    check_eq!(events[0].count(), 0, "MSI-X after it was disabled");
    say(&format!(
        "igb: MSI-X by its table alone, held back and passed on 100 times; {} routes told",
        told.0.lock().unwrap_or_else(PoisonError::into_inner)
    ));
    Ok(())
}

/// Waits until the pending bits are these: the device's message takes its time.
fn wait_pending(bar: &Trapped<'_>, at: u64, bits: u32) -> Outcome {
    // Only turns a message that never comes into a failure.
    let limit = Instant::now() + Duration::from_secs(60);
    while bar.read32(at)? != bits {
        if Instant::now() > limit {
            return Err("the pending bit of a masked vector was never set".into());
        }
        thread::yield_now();
    }
    Ok(())
}
