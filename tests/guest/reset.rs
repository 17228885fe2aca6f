// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Function-level reset, as the kernel does it for a device's owner.

use system_tests::model_gpu::engine as reg;

use crate::{Outcome, check_eq, engine::Engine, pci_device::PciDevice};

/// FLR is how the kernel resets it, clears registers and VRAM, and leaves the device working.
pub fn function_level() -> Outcome {
    let gpu = PciDevice::enabled_gpu()?;
    let methods = gpu.read("reset_method")?;
    if !methods.split(' ').any(|method| method == "flr") {
        return Err(format!("the kernel would not use FLR but: {methods}").into());
    }
    gpu.write("reset_method", "flr")?;
    let engine = Engine::of(&gpu)?.registers;
    let vram = gpu.bar(0)?;
    engine.write32(reg::SCRATCH, 0x5cca_7c11);
    vram.write32(0x1000, 0x1eaf);
    check_eq!(
        engine.read32(reg::SCRATCH),
        0x5cca_7c11,
        "SCRATCH before the reset"
    );
    gpu.write("reset", "1")?;
    check_eq!(engine.read32(reg::ID), reg::ID_VALUE, "ID after the reset");
    check_eq!(engine.read32(reg::SCRATCH), 0, "SCRATCH after the reset");
    check_eq!(engine.read32(reg::FENCE), 0, "FENCE after the reset");
    check_eq!(vram.read32(0x1000), 0, "VRAM after the reset");
    Ok(())
}
