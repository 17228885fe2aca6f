// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU in the guest, as the VMM of a backend that owns a device of the guest's kernel: its processor's place is taken by
//! the check (qtest), the rest is QEMU's own. Three machines deep, the device still does DMA and interrupts.

use std::{cell::RefCell, error::Error, os::unix::process::CommandExt, process::Command};

use serde_json::json;
use system_tests::{
    nested_qemu,
    pci::{self, Function as Slot},
    qemu::QemuCommand,
    qtest::Qtest,
};

use super::{
    backend::{Launch, SOCKET},
    edu::{self, BUFFER, Direction, Registers},
    pci::Function,
    places::EDU,
};
use crate::{Outcome, check_eq};

/// Where QEMU's firmware would place edu's BAR0; it never runs.
const BAR0: u32 = 0xe000_0000;
const RAM: u64 = 0x0010_0000;
/// RAM in the place of a local interrupt controller, so that messages can be read there.
const MESSAGES: u32 = 0x4000;
const MESSAGE: u16 = 0xa5a5;

/// Becomes QEMU, with the arguments of this program: the guest has no shell for QEMU's wrapper.
pub fn become_qemu() -> std::io::Error {
    let folder = format!("/{}", nested_qemu::FOLDER);
    Command::new(format!("{folder}/{}", nested_qemu::LINKER))
        .args(["--library-path", &folder, "--argv0", "qemu-system-x86_64"])
        .arg(format!("{folder}/{}", nested_qemu::PROGRAM))
        .args(["-L", &folder])
        .args(std::env::args().skip(1))
        .env("QEMU_MODULE_DIR", &folder)
        .exec()
}

/// QEMU attaches, sizes and places the BAR, and edu works behind it: registers, DMA both ways, MSI.
pub fn qemu() -> Outcome {
    let mut backend = Launch::on(&Function::at(EDU)?)?.listen()?;
    // QEMU does not wait for the backend to listen.
    drop(backend.connect()?);
    let device = json!({
        "driver": "vfio-user-pci",
        "socket": { "type": "unix", "path": SOCKET },
        "bus": "pcie.0",
        "addr": "4",
        "x-msg-timeout": 60_000,
    });
    let mut qemu = QemuCommand::new(128).qtest().device(&device).start();
    let slot = Slot::new(0, 4);
    let qtest = qemu.qtest();
    check_eq!(
        slot.read32(qtest, pci::VENDOR_ID),
        0x11e8_1234,
        "ids in QEMU"
    );
    check_eq!(
        slot.size_bar(qtest, 0).size,
        1 << 20,
        "size of BAR0 in QEMU"
    );
    slot.place_bar(qtest, 0, BAR0);
    slot.set_command(qtest, pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    let data = system_tests::pattern::bytes(3, BUFFER);
    qtest.write(RAM, &data);
    let bar = Bar(RefCell::new(qtest));
    edu::check_alive(&bar)?;
    edu::dma(&bar, Direction::FromRam, RAM)?;
    edu::dma(&bar, Direction::ToRam, RAM + 0x8000)?;
    let qtest = bar.0.into_inner();
    check_eq!(
        qtest.read(RAM + 0x8000, BUFFER) == data,
        true,
        "data after DMA both ways"
    );

    let msi = slot.capability(qtest, pci::CAP_MSI);
    slot.write32(qtest, msi + 4, MESSAGES);
    slot.write32(qtest, msi + 8, 0);
    slot.write16(qtest, msi + 12, MESSAGE);
    slot.write16(qtest, msi + 2, 1);
    qtest.writel(u64::from(BAR0) + edu::INTERRUPT_RAISE, 1);
    let seen = qtest.wait_for("edu's message", |qtest| {
        let seen = qtest.readl(MESSAGES.into());
        (seen != 0).then_some(seen)
    });
    check_eq!(seen, u32::from(MESSAGE), "edu's message");
    drop(qemu);
    check_eq!(
        backend.terminate()?.code(),
        Some(0),
        "the backend's exit status"
    );
    Ok(())
}

/// edu's BAR0, as QEMU's processor reaches it.
struct Bar<'a>(RefCell<&'a mut Qtest>);

impl Registers for Bar<'_> {
    fn read32(&self, offset: u64) -> Result<u32, Box<dyn Error>> {
        Ok(self.0.borrow_mut().readl(u64::from(BAR0) + offset))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), Box<dyn Error>> {
        self.0.borrow_mut().writel(u64::from(BAR0) + offset, value);
        Ok(())
    }

    fn read64(&self, offset: u64) -> Result<u64, Box<dyn Error>> {
        Ok(self.0.borrow_mut().readq(u64::from(BAR0) + offset))
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), Box<dyn Error>> {
        self.0.borrow_mut().writeq(u64::from(BAR0) + offset, value);
        Ok(())
    }
}
