// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging: what the device wrote is reported, page by page, once.

use system_tests::pci;
use vfio_user_client::Access;

use super::{
    TestGpu, check_errno,
    feature::{report, start_logging, stop_logging},
    fill, register, set_register,
};
use crate::{
    Outcome, check_eq, say,
    vfio::{
        backend::{Device, Launch},
        dirty,
        dma::map,
        edu::Registers,
        kernel::OpenDevice,
        memory::SharedMemory,
        pci::Function,
        places::{EDU, IOVA},
    },
};

/// The registers of the device's DMA.
const DMA_IOVA: u64 = 0x90;
const DMA_VRAM: u64 = 0x98;
const DMA_LENGTH: u64 = 0x9c;
const DMA_COMMAND: u64 = 0xa0;
const DMA_RESULT: u64 = 0xa4;
const TO_MEMORY: u32 = 1;
const FROM_MEMORY: u32 = 2;

const SIZE: usize = 0x10_0000;

/// The device copies to and from memory; the pages it wrote are reported where the kernel can.
pub fn logging() -> Outcome {
    let gpu = TestGpu::new("log")?;
    let device = gpu.open()?;
    fill(&device, 9)?;
    let memory = SharedMemory::new(SIZE)?;
    let size = u64::try_from(SIZE)?;
    device.map(IOVA, memory.address(), size)?;
    check_eq!(
        start_logging(&device.device, &[(IOVA, size)])?,
        4096,
        "page size"
    );
    check_errno(
        start_logging(&device.device, &[(IOVA, size)]),
        libc::EINVAL,
        "starting twice",
    )?;

    check_eq!(
        dma(&device, TO_MEMORY, IOVA + 0x2ffc, 0, 8)?,
        0,
        "DMA to memory"
    );
    check_eq!(
        dma(&device, TO_MEMORY, IOVA + 0x9_0000, 0, 0x2000)?,
        0,
        "DMA to memory"
    );
    check_eq!(
        dma(&device, FROM_MEMORY, IOVA + 0x8_0000, 0x1000, 0x1000)?,
        0,
        "DMA from memory"
    );
    memory.check(0x9_0000, 0x2000, 9)?;
    let outside = dma(&device, TO_MEMORY, IOVA + 2 * size, 0, 4)?;
    say(&format!("DMA where no memory is mapped: errno {outside}"));
    check_eq!(outside != 0, true, "DMA where no memory is mapped");

    match report(&device.device, IOVA, size, 4096) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            say("this kernel has no dirty bitmaps: DMA_LOGGING_REPORT is not supported");
            return Ok(());
        }
        pages => check_eq!(pages?, [2, 3, 0x90, 0x91], "pages that the device wrote"),
    }
    let again = report(&device.device, IOVA, size, 4096)?;
    check_eq!(again, Vec::<u64>::new(), "pages, asked again");
    check_eq!(
        dma(&device, TO_MEMORY, IOVA + 0x1_1000, 0, 1)?,
        0,
        "DMA to memory"
    );
    check_eq!(
        report(&device.device, IOVA, size, 0x1_0000)?,
        [1],
        "pages of 64 KiB"
    );
    gpu.set("log_stride", 64)?;
    check_eq!(
        report(&device.device, IOVA, size, 4096)?,
        [0, 0x40, 0x80, 0xc0],
        "every 64th page"
    );
    stop_logging(&device.device)?;
    check_errno(
        report(&device.device, IOVA, size, 4096),
        libc::EINVAL,
        "a report after the end",
    )
}

/// The same through a backend, which has the device do the tracking.
pub fn owned() -> Outcome {
    let gpu = TestGpu::new("log")?;
    let backend = Launch::with(&["--device", &gpu.function.path()]).attach()?;
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    let memory = SharedMemory::new(SIZE)?;
    let size = u64::try_from(SIZE)?;
    map(&backend, IOVA, size, Access::ReadWrite, &memory, 0)?;
    check_eq!(dirty::start(backend.client(), 1 << 32), Ok(()), "START");
    let bar = backend.trapped(super::BAR2);
    let dma = |iova: u64, length: u32| -> Outcome {
        bar.write32(DMA_IOVA, u32::try_from(iova)?)?;
        bar.write32(DMA_LENGTH, length)?;
        bar.write32(DMA_COMMAND, TO_MEMORY)?;
        check_eq!(bar.read32(DMA_RESULT)?, 0, "DMA to {iova:#x}");
        Ok(())
    };
    dma(IOVA + 0x2ffc, 8)?;
    dma(IOVA + 0x9_0000, 0x2000)?;
    let found = dirty::report(backend.client(), IOVA, size, 4096);
    // A kernel without iommufd has no bitmaps for drivers either.
    if Function::at(EDU)?.cdev_file()?.is_none() {
        let found = found.map(|pages| pages.len());
        say(&format!(
            "DMA_LOGGING_REPORT without bitmaps in the kernel: {found:?}"
        ));
        return Ok(());
    }
    check_eq!(found?, [2, 3, 0x90, 0x91], "pages that the device wrote");
    let again = dirty::report(backend.client(), IOVA, size, 4096)?;
    check_eq!(again, Vec::<u64>::new(), "pages, asked again");
    dma(IOVA + 0x1_1000, 1)?;
    let large = dirty::report(backend.client(), IOVA, size, 0x1_0000)?;
    check_eq!(large, [1], "pages of 64 KiB");
    Ok(())
}

/// Has the device copy, and returns its result.
fn dma(
    device: &OpenDevice,
    command: u32,
    iova: u64,
    vram: u32,
    length: u32,
) -> Result<u32, Box<dyn std::error::Error>> {
    device.write(super::BAR2, DMA_IOVA, &iova.to_le_bytes())?;
    set_register(device, DMA_VRAM, vram)?;
    set_register(device, DMA_LENGTH, length)?;
    set_register(device, DMA_COMMAND, command)?;
    register(device, DMA_RESULT)
}
