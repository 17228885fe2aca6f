// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging: what the device wrote is reported, page by page, once.

use super::{
    TestGpu, check_errno,
    feature::{report, start_logging, stop_logging},
    fill, register, set_register,
};
use crate::{
    Outcome, check_eq, say,
    vfio::{kernel::OpenDevice, memory::SharedMemory, places::IOVA},
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
