// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of interrupts: from a device's register to the client's eventfd, past a backend that sleeps. The registers are
//! mapped here, so that nothing in these loops gives the backend a reason to wake up.

use std::error::Error;

use system_tests::pci;

use super::{
    backend::{Backend, Device, INTX, Launch, MSI, MSIX, chain},
    dma::mastering_edu,
    edu::{self, Registers},
    events::Event,
    igb, places,
};
use crate::{Outcome, check_eq, say};

/// How many interrupts show that none of them wakes the backend.
const MANY: u64 = 10_000;

const HANDED_OVER: [&str; 2] = ["--bar-handoff", "device-fd"];
const MSI_ENABLE: u16 = 1;
const MSIX_ENABLE: u16 = 1 << 15;

/// edu's MSI, each one counted, while the backend sleeps.
pub fn msi() -> Outcome {
    let backend = mastering_edu(&HANDED_OVER)?;
    let bar = backend.mapped(0)?;
    let event = Event::new()?;
    let capability = backend.capability(pci::CAP_MSI)?;
    // What a guest writes; where the message really goes is the kernel's affair.
    backend.set_config32(capability + 4, 0xfee0_0000)?;
    backend.set_config16(capability + 2, MSI_ENABLE)?;
    backend
        .client()
        .arm(MSI, 0, &[Some(event.fd())])
        .map_err(|error| chain(&error))?;
    let waits = settled(&backend)?;
    for round in 0..MANY {
        bar.write32(edu::INTERRUPT_RAISE, 1)?;
        check_eq!(event.wait("MSI")?, 1, "MSI in round {round}");
        bar.write32(edu::INTERRUPT_ACKNOWLEDGE, 1)?;
    }
    check_eq!(
        backend.waits()? - waits,
        0,
        "times the backend woke up during {MANY} interrupts"
    );
    backend
        .client()
        .disable(MSI)
        .map_err(|error| chain(&error))?;
    bar.write32(edu::INTERRUPT_RAISE, 1)?;
    bar.write32(edu::INTERRUPT_ACKNOWLEDGE, 1)?;
    check_eq!(event.count(), 0, "MSI after it was disabled");
    say(&format!(
        "edu: {MANY} MSI, each seen at the client's eventfd; the backend slept"
    ));
    Ok(())
}

/// igb's MSI-X: each vector reaches its own eventfd; one added later as well.
pub fn msix() -> Outcome {
    let backend = Launch::on(&places::igb()?)?.args(&HANDED_OVER).attach()?;
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    let bar = backend.mapped(0)?;
    let events = [Event::new()?, Event::new()?, Event::new()?, Event::new()?];
    let fds: Vec<_> = events.iter().map(|event| Some(event.fd())).collect();
    let control = backend.capability(pci::CAP_MSIX)? + 2;
    backend.set_config16(control, MSIX_ENABLE)?;
    let arm = |start, count: usize| {
        let from = usize::try_from(start).unwrap_or_default();
        let armed = backend.client().arm(MSIX, start, &fds[from..from + count]);
        armed.map_err(|error| chain(&error))
    };
    arm(0, 3)?;
    igb::set_up(&bar)?;
    for (vector, event) in events.iter().enumerate().take(3) {
        igb::raise(&bar, vector)?;
        check_eq!(event.wait("MSI-X")?, 1, "vector {vector}");
    }
    arm(3, 1)?;
    igb::raise(&bar, 3)?;
    check_eq!(events[3].wait("MSI-X, added")?, 1, "the vector added later");
    let waits = settled(&backend)?;
    for round in 0..MANY {
        let vector = usize::try_from(round % 4)?;
        igb::raise(&bar, vector)?;
        check_eq!(
            events[vector].wait("MSI-X")?,
            1,
            "vector {vector} in round {round}"
        );
    }
    check_eq!(
        backend.waits()? - waits,
        0,
        "times the backend woke up during {MANY} interrupts"
    );
    let strays: u64 = events.iter().map(Event::count).sum();
    check_eq!(strays, 0, "messages nobody asked for");
    say(&format!(
        "igb: {MANY} MSI-X on 4 vectors, each at its own eventfd; the backend slept"
    ));
    Ok(())
}

/// edu's INTx: masked by its arrival, again when unmasked with the cause left, silent when acknowledged.
pub fn intx() -> Outcome {
    let backend = mastering_edu(&HANDED_OVER)?;
    let bar = backend.mapped(0)?;
    let event = Event::new()?;
    let client = backend.client();
    client
        .arm(INTX, 0, &[Some(event.fd())])
        .map_err(|error| chain(&error))?;
    bar.write32(edu::INTERRUPT_RAISE, 1)?;
    check_eq!(event.wait("INTx")?, 1, "INTx, first");
    check_eq!(bar.read32(edu::INTERRUPT_STATUS)?, 1, "edu's reasons");
    check_eq!(event.count(), 0, "INTx while masked by its arrival");
    client.unmask(INTX, 0, 1).map_err(|error| chain(&error))?;
    check_eq!(
        event.wait("INTx, the cause left")?,
        1,
        "INTx, unmasked with its cause left"
    );
    bar.write32(edu::INTERRUPT_ACKNOWLEDGE, 1)?;
    client.unmask(INTX, 0, 1).map_err(|error| chain(&error))?;
    check_eq!(event.count(), 0, "INTx without a cause");

    // As KVM's resample does it: the guest's end of interrupt goes straight to the kernel.
    let resample = Event::new()?;
    client
        .set_unmask_eventfd(INTX, 0, Some(resample.fd()))
        .map_err(|error| chain(&error))?;
    let waits = settled(&backend)?;
    for round in 0..100 {
        bar.write32(edu::INTERRUPT_RAISE, 1)?;
        check_eq!(event.wait("INTx, resampled")?, 1, "INTx in round {round}");
        bar.write32(edu::INTERRUPT_ACKNOWLEDGE, 1)?;
        rustix::io::write(resample.fd(), &1_u64.to_ne_bytes())?;
    }
    say(&format!(
        "edu: 100 INTx with a resample eventfd; the backend woke up {} times",
        backend.waits()? - waits
    ));
    Ok(())
}

/// The count of waits of a backend that has nothing more to do: it has answered, and then gone back to waiting.
fn settled(backend: &Backend) -> Result<u64, Box<dyn Error>> {
    let mut last = backend.waits()?;
    // Each look gives up the processor; a backend on its way to sleep needs few of them.
    let mut same = 0;
    while same < 1000 {
        std::thread::yield_now();
        let now = backend.waits()?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}
