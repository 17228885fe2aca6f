// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of the copy engine against guest memory. The buffers are huge pages: ordinary RAM, contiguous, and their
//! physical addresses, which without an IOMMU are the device's too, can be learned.

use system_tests::{
    model_gpu::{self, engine as reg},
    pattern, pci,
};

use crate::{
    Outcome, check_eq,
    engine::{Engine, Finished},
    mapping::{HUGE_PAGE, Mapping},
    pci_device::PciDevice,
};

const LENGTH: u64 = HUGE_PAGE as u64;
const SEED: u32 = 0x444d_4121;
/// Where in VRAM the data rests on its way, off any round boundary.
const VRAM_OFFSET: u64 = 0x30_0040;

/// RAM to VRAM, and back to other RAM.
pub fn copy() -> Outcome {
    let (gpu, engine) = mastering_gpu()?;
    let (from, to) = (Mapping::huge_page()?, Mapping::huge_page()?);
    for index in 0..u32::try_from(LENGTH / 4)? {
        from.write32(u64::from(index) * 4, pattern::word(SEED, index));
    }
    let fence = engine.registers.read32(reg::FENCE);
    let done = Finished {
        error: 0,
        completed: LENGTH,
    };
    let to_vram = reg::COMMAND_COPY | reg::COMMAND_DST_VRAM;
    check_eq!(
        engine.run(to_vram, from.physical_address()?, VRAM_OFFSET, LENGTH)?,
        done,
        "copy to VRAM"
    );
    let vram = gpu.bar(0)?;
    for index in [0, 1, u32::try_from(LENGTH / 4)? - 1] {
        let seen = vram.read32(VRAM_OFFSET + u64::from(index) * 4);
        check_eq!(seen, pattern::word(SEED, index), "word {index} in VRAM");
    }
    // All but the last word, so that a copy that runs past its length shows.
    let from_vram = reg::COMMAND_COPY | reg::COMMAND_SRC_VRAM;
    check_eq!(
        engine.run(from_vram, VRAM_OFFSET, to.physical_address()?, LENGTH - 4)?,
        Finished {
            error: 0,
            completed: LENGTH - 4
        },
        "copy from VRAM"
    );
    let last = u32::try_from(LENGTH / 4)? - 1;
    for index in 0..last {
        let seen = to.read32(u64::from(index) * 4);
        check_eq!(
            seen,
            pattern::word(SEED, index),
            "word {index} in RAM after two copies"
        );
    }
    check_eq!(to.read32(u64::from(last) * 4), 0, "RAM behind the copy");
    check_eq!(
        engine.registers.read32(reg::FENCE),
        fence + 2,
        "commands finished"
    );
    Ok(())
}

/// What cannot be done is reported, and leaves the engine working.
pub fn errors() -> Outcome {
    let (gpu, engine) = mastering_gpu()?;
    let to_vram = reg::COMMAND_COPY | reg::COMMAND_DST_VRAM;
    // No machine has RAM at 1 PiB.
    let nowhere = 1 << 50;
    let fault = engine.run(to_vram, nowhere, 0, 4096)?;
    check_eq!(
        (fault.error, fault.completed),
        (reg::ERROR_DMA_FAULT, 0),
        "copy from no memory (error, bytes)"
    );
    check_eq!(
        engine.registers.read64(reg::FAULT_ADDRESS),
        nowhere,
        "fault address"
    );
    let page = Mapping::huge_page()?;
    let address = page.physical_address()?;
    let outside = engine.run(to_vram, address, model_gpu::VRAM_SIZE - 4, 4096)?;
    check_eq!(
        outside.error,
        reg::ERROR_VRAM_RANGE,
        "copy past the end of VRAM"
    );

    let config = gpu.config()?;
    let command = config.read16(pci::COMMAND)?;
    config.write16(pci::COMMAND, command & !pci::COMMAND_MASTER)?;
    let refused = engine.run(to_vram, address, 0, 4096)?;
    config.write16(pci::COMMAND, command)?;
    check_eq!(
        refused.error,
        reg::ERROR_BUS_MASTER,
        "copy without bus mastering"
    );

    let good = engine.run(to_vram, address, 0, 4096)?;
    check_eq!(
        (good.error, good.completed),
        (0, 4096),
        "copy after errors (error, bytes)"
    );
    Ok(())
}

fn mastering_gpu() -> Result<(PciDevice, Engine), Box<dyn std::error::Error>> {
    let gpu = PciDevice::enabled_gpu()?;
    let config = gpu.config()?;
    config.write16(
        pci::COMMAND,
        config.read16(pci::COMMAND)? | pci::COMMAND_MASTER,
    )?;
    let engine = Engine::of(&gpu)?;
    Ok((gpu, engine))
}
