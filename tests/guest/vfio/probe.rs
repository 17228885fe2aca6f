// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of the ground the backend stands on, without the backend: when these fail, the kernel or the machine is to
//! blame.

use std::error::Error;

use system_tests::pci;

use super::{
    backend::{INTX, MSI, MSIX},
    dma::faults,
    edu::{self, Direction, Registers},
    events::Event,
    igb,
    kernel::OpenDevice,
    lifecycle::{DEVICE_CONTROL, INITIATE_FLR, VIRTIO_BAR, VIRTIO_STATUS},
    memory::SharedMemory,
    pci::Function,
    places,
};
use crate::{Outcome, check_eq, say};

/// PCI's config space is this region.
const CONFIG_REGION: u32 = 7;
const COMMAND: u64 = 4;
const COMMAND_MEMORY_MASTER: u16 = 6;

/// Every device of the machine is there, each that should be alone in an IOMMU group is, and vfio-pci takes all.
pub fn devices() -> Outcome {
    for (name, function) in places::all()? {
        function.bind_to_vfio()?;
        say(&format!(
            "{name}: {} group {} cdev {:?}",
            function.address(),
            function.group()?,
            function.cdev_file()?,
        ));
        check_eq!(
            function.group_members()?,
            vec![function.address()],
            "members of {name}'s group"
        );
    }
    Ok(())
}

/// The regions and interrupts of every device, as the kernel lists them.
pub fn listing() -> Outcome {
    for (name, function) in places::all()? {
        function.bind_to_vfio()?;
        let device = list(name, &function)?;
        let id = u32::from_le_bytes(device.read(CONFIG_REGION, 0)?);
        let (vendor, product) = function.ids()?;
        let wanted = u32::from(product) << 16 | u32::from(vendor);
        check_eq!(id, wanted, "{name}'s ids in config space");
    }
    Ok(())
}

/// The mediated sample devices can be made and opened.
pub fn mediated() -> Outcome {
    let kinds = [
        ("mtty", "mtty-1", "6d646576-0000-4000-8000-000000000001"),
        ("mdpy", "mdpy-vga", "6d646576-0000-4000-8000-000000000002"),
        (
            "mbochs",
            "mbochs-small",
            "6d646576-0000-4000-8000-000000000003",
        ),
    ];
    for (parent, kind, uuid) in kinds {
        list(kind, &Function::mediated(parent, kind, uuid)?)?;
    }
    Ok(())
}

/// Opens a device and says what it has.
fn list(name: &str, function: &Function) -> Result<OpenDevice, Box<dyn Error>> {
    let device = OpenDevice::open(function)?;
    let info = device.info()?;
    say(&format!(
        "{name}: flags {:#x}, {} regions, {} irqs",
        info.flags, info.num_regions, info.num_irqs
    ));
    for index in 0..info.num_regions {
        match device.region(index)? {
            Some(region) if region.size != 0 => say(&format!(
                "{name}: region {index} size {:#x} flags {:#x}",
                region.size, region.flags
            )),
            _ => {}
        }
    }
    for index in 0..info.num_irqs {
        match device.irq(index)? {
            Some(irq) if irq.count != 0 => say(&format!(
                "{name}: irq {index} count {} flags {:#x}",
                irq.count, irq.flags
            )),
            _ => {}
        }
    }
    Ok(device)
}

/// DMA both ways through the IOMMU, and one that must not arrive.
pub fn dma() -> Outcome {
    let function = Function::at(places::EDU)?;
    function.bind_to_vfio()?;
    let device = OpenDevice::open(&function)?;
    device.write(CONFIG_REGION, COMMAND, &COMMAND_MEMORY_MASTER.to_le_bytes())?;
    let bar = Bar(&device);
    edu::check_alive(&bar)?;
    let memory = SharedMemory::new(2 * edu::BUFFER)?;
    device.map(places::IOVA, memory.address(), u64::try_from(memory.len())?)?;
    memory.fill(0, edu::BUFFER, 0x5eed);
    edu::dma(&bar, Direction::FromRam, places::IOVA)?;
    edu::dma(
        &bar,
        Direction::ToRam,
        places::IOVA + u64::try_from(edu::BUFFER)?,
    )?;
    memory.check(edu::BUFFER, edu::BUFFER, 0x5eed)?;
    faults(|| edu::dma(&bar, Direction::ToRam, places::UNMAPPED_IOVA))?;
    memory.check(edu::BUFFER, edu::BUFFER, 0x5eed)
}

/// MSI and INTx of edu, MSI-X of igb, each at its eventfd.
pub fn interrupts() -> Outcome {
    let function = Function::at(places::EDU)?;
    function.bind_to_vfio()?;
    let device = OpenDevice::open(&function)?;
    device.write(CONFIG_REGION, COMMAND, &COMMAND_MEMORY_MASTER.to_le_bytes())?;
    let bar = Bar(&device);
    for index in [MSI, INTX] {
        let event = Event::new()?;
        device.arm(index, 0, &[&event])?;
        for round in 0..3 {
            bar.write32(edu::INTERRUPT_RAISE, 1)?;
            check_eq!(event.wait("edu")?, 1, "irq index {index} in round {round}");
            bar.write32(edu::INTERRUPT_ACKNOWLEDGE, 1)?;
            if index == INTX {
                device.unmask(INTX)?;
            }
        }
        check_eq!(event.count(), 0, "irq index {index} without a cause");
        device.disable(index)?;
    }
    let function = places::igb()?;
    function.bind_to_vfio()?;
    let device = OpenDevice::open(&function)?;
    device.write(CONFIG_REGION, COMMAND, &COMMAND_MEMORY_MASTER.to_le_bytes())?;
    let events = [Event::new()?, Event::new()?, Event::new()?];
    device.arm(MSIX, 0, &events.each_ref())?;
    let bar = Bar(&device);
    igb::set_up(&bar)?;
    for vector in [0, 1, 2, 0, 1, 2] {
        igb::raise(&bar, vector)?;
        check_eq!(events[vector].wait("igb")?, 1, "vector {vector}");
    }
    Ok(())
}

/// A reset by the kernel, and one that a guest's FLR asks for, clear virtio-gpu's registers.
pub fn reset() -> Outcome {
    let function = Function::with_ids(0x1af4, 0x1050)?;
    function.bind_to_vfio()?;
    let device = OpenDevice::open(&function)?;
    let enable = || device.write(CONFIG_REGION, COMMAND, &COMMAND_MEMORY_MASTER.to_le_bytes());
    for flr in [false, true] {
        enable()?;
        device.write(VIRTIO_BAR, VIRTIO_STATUS, &[1])?;
        check_eq!(
            device.read(VIRTIO_BAR, VIRTIO_STATUS)?,
            [1],
            "device_status, written"
        );
        if flr {
            let mut at = u64::from(device.read::<1>(CONFIG_REGION, 0x34)?[0]);
            while device.read(CONFIG_REGION, at)? != [pci::CAP_EXPRESS] {
                at = u64::from(device.read::<1>(CONFIG_REGION, at + 1)?[0]);
            }
            let control = at + u64::from(DEVICE_CONTROL);
            device.write(CONFIG_REGION, control, &INITIATE_FLR.to_le_bytes())?;
        } else {
            device.reset()?;
        }
        enable()?;
        check_eq!(
            device.read(VIRTIO_BAR, VIRTIO_STATUS)?,
            [0],
            "device_status, FLR: {flr}"
        );
    }
    Ok(())
}

/// A virtual function opens with its token only.
pub fn vf_token() -> Outcome {
    places::with_virtual_function(|function, token| {
        if function.cdev_file()?.is_none() {
            OpenDevice::by_group(function, Some(token))?;
        }
        match OpenDevice::open(function) {
            Ok(_) => Err("it opened without".into()),
            Err(_) => Ok(()),
        }
    })
}

/// edu's BAR0 through the kernel's descriptor.
struct Bar<'a>(&'a OpenDevice);

impl Registers for Bar<'_> {
    fn read32(&self, offset: u64) -> Result<u32, Box<dyn Error>> {
        Ok(u32::from_le_bytes(self.0.read(0, offset)?))
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), Box<dyn Error>> {
        self.0.write(0, offset, &value.to_le_bytes())
    }

    fn read64(&self, offset: u64) -> Result<u64, Box<dyn Error>> {
        Ok(u64::from_le_bytes(self.0.read(0, offset)?))
    }

    fn write64(&self, offset: u64, value: u64) -> Result<(), Box<dyn Error>> {
        self.0.write(0, offset, &value.to_le_bytes())
    }
}
