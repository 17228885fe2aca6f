// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of what can be read and written: configuration space, the engine's registers, VRAM.

use system_tests::{
    model_gpu::{self, dispi, engine as reg},
    pattern,
    pci::{self, CAP_EXPRESS, CAP_MSI, CAP_MSIX, CAP_PM},
};

use crate::{Outcome, check_eq, engine::Engine, pci_device::PciDevice};

/// Configuration space as the kernel read it, and as it reads now.
pub fn config_space() -> Outcome {
    let gpu = PciDevice::gpu()?;
    check_eq!(gpu.number("class")?, u64::from(model_gpu::CLASS), "class");
    check_eq!(
        gpu.number("revision")?,
        u64::from(model_gpu::REVISION),
        "revision"
    );
    check_eq!(
        (
            gpu.number("subsystem_vendor")?,
            gpu.number("subsystem_device")?
        ),
        (
            u64::from(model_gpu::SUBSYSTEM_VENDOR),
            u64::from(model_gpu::SUBSYSTEM)
        ),
        "subsystem"
    );
    let mut sizes = [0; 6];
    for (index, size) in sizes.iter_mut().enumerate() {
        *size = u64::try_from(gpu.bar_size(index)?)?;
    }
    let wanted = [
        model_gpu::VRAM_SIZE,
        0,
        model_gpu::DISPLAY_SIZE,
        0,
        model_gpu::ENGINE_SIZE,
        0,
    ];
    check_eq!(sizes, wanted, "BAR sizes");

    let config = gpu.config()?;
    check_eq!(config.size()?, 4096, "size of configuration space");
    let ids = u32::from(model_gpu::DEVICE) << 16 | u32::from(model_gpu::VENDOR);
    check_eq!(config.read32(pci::VENDOR_ID)?, ids, "ids");
    check_eq!(config.read8(pci::INTERRUPT_PIN)?, 1, "interrupt pin");
    let capabilities = config.capabilities()?;
    for id in [CAP_PM, CAP_MSI, CAP_EXPRESS, CAP_MSIX] {
        if !capabilities.contains(&id) {
            return Err(format!("no capability {id:#x} in {capabilities:x?}").into());
        }
    }
    // A bit that only the guest changes goes through and back.
    let before = config.read16(pci::COMMAND)?;
    config.write16(pci::COMMAND, before ^ pci::COMMAND_INTX_DISABLE)?;
    check_eq!(
        config.read16(pci::COMMAND)?,
        before ^ pci::COMMAND_INTX_DISABLE,
        "the command register after a write"
    );
    config.write16(pci::COMMAND, before)?;
    // Read-only registers stay.
    config.write16(pci::VENDOR_ID, 0)?;
    check_eq!(
        config.read16(pci::VENDOR_ID)?,
        model_gpu::VENDOR,
        "vendor after a write"
    );
    Ok(())
}

/// The engine's registers: fixed values, widths, read-only and read-write ones.
pub fn engine_registers() -> Outcome {
    let gpu = PciDevice::enabled_gpu()?;
    let engine = Engine::of(&gpu)?.registers;
    check_eq!(engine.read32(reg::ID), reg::ID_VALUE, "ID");
    check_eq!(engine.read32(reg::VERSION), reg::VERSION_VALUE, "VERSION");
    check_eq!(
        engine.read32(reg::CAPS) >> 16,
        u32::from(model_gpu::VECTORS),
        "vectors in CAPS"
    );
    check_eq!(
        engine.read64(reg::VRAM_SIZE),
        model_gpu::VRAM_SIZE,
        "VRAM_SIZE"
    );
    for value in [0x0123_4567, u32::MAX, 0] {
        engine.write32(reg::SCRATCH, value);
        check_eq!(engine.read32(reg::SCRATCH), value, "SCRATCH");
    }
    engine.write32(reg::ID, 0);
    check_eq!(engine.read32(reg::ID), reg::ID_VALUE, "ID after a write");
    // Other widths than the register's own do nothing.
    check_eq!(engine.read8(reg::ID), 0, "a byte of a 32-bit register");
    engine.write8(reg::SCRATCH, 0xff);
    check_eq!(
        engine.read32(reg::SCRATCH),
        0,
        "SCRATCH after a write of one byte"
    );
    // A 64-bit register is one access or two.
    engine.write64(reg::SRC, 0x1122_3344_5566_7788);
    check_eq!(engine.read32(reg::SRC), 0x5566_7788, "low half of SRC");
    check_eq!(engine.read32(reg::SRC + 4), 0x1122_3344, "high half of SRC");
    engine.write32(reg::SRC + 4, 0xaabb_ccdd);
    check_eq!(
        engine.read64(reg::SRC),
        0xaabb_ccdd_5566_7788,
        "SRC after a write of one half"
    );
    let display = gpu.bar(2)?;
    let id = display.read32(dispi::BASE + 2 * dispi::ID) & 0xfff0;
    check_eq!(id, 0xb0c0, "id of the Bochs display interface");
    Ok(())
}

/// VRAM keeps what is written through the mapped BAR, and is the same memory that the engine works on.
pub fn vram() -> Outcome {
    let gpu = PciDevice::enabled_gpu()?;
    let vram = gpu.bar(0)?;
    let last = model_gpu::VRAM_SIZE - 4096;
    for start in [0, 4096, 0x12_3000, last] {
        let seed = u32::try_from(start >> 12)?;
        (0..1024).for_each(|index| {
            vram.write32(start + u64::from(index) * 4, pattern::word(seed, index))
        });
    }
    for start in [0, 4096, 0x12_3000, last] {
        let seed = u32::try_from(start >> 12)?;
        for index in 0..1024 {
            let at = start + u64::from(index) * 4;
            check_eq!(
                vram.read32(at),
                pattern::word(seed, index),
                "VRAM at {at:#x}"
            );
        }
    }
    let config = gpu.config()?;
    config.write16(
        pci::COMMAND,
        config.read16(pci::COMMAND)? | pci::COMMAND_MASTER,
    )?;
    let engine = Engine::of(&gpu)?;
    engine.registers.write32(reg::FILL, 0xfeed_face);
    let filled = engine.run(
        reg::COMMAND_FILL | reg::COMMAND_DST_VRAM,
        0,
        0x20_0000,
        4096,
    )?;
    check_eq!(
        (filled.error, filled.completed),
        (0, 4096),
        "fill (error, bytes)"
    );
    for at in [0x20_0000, 0x20_0ffc] {
        check_eq!(vram.read32(at), 0xfeed_face, "filled VRAM at {at:#x}");
    }
    check_eq!(vram.read32(0x20_1000), 0, "VRAM behind the filled part");
    Ok(())
}
