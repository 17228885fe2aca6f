// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of which pages of memory a device of the kernel is said to have written.

use std::error::Error;

use system_tests::pci;
use vfio_user_client::{Access, Client, protocol::feature::DmaLoggingRange};

use super::{
    backend::{Device, Launch, chain},
    dma::{map, mastering_edu},
    edu::{self, BUFFER, Direction, Registers},
    gpu::{BAR2, TestGpu},
    memory::SharedMemory,
    pci::Function,
    places::{EDU, IOVA, UNMAPPED_IOVA},
};
use crate::{Outcome, check_eq, say};

const PAGE: u64 = 4096;

/// Starts to log, from address 0.
fn start(client: &Client, length: u64) -> Result<(), i32> {
    let ranges = [DmaLoggingRange { iova: 0, length }];
    let started = client.dma_logging_start(PAGE, &ranges);
    started.map_err(|error| error.errno())
}

/// The dirty pages of a range, by their number in it.
fn report(
    client: &Client,
    iova: u64,
    length: u64,
    page_size: u64,
) -> Result<Vec<u64>, Box<dyn Error>> {
    let reported = client.dma_logging_report(iova, length, page_size);
    let words = reported.map_err(|error| chain(&error))?;
    let bits = words.iter().zip((0..).step_by(64));
    Ok(bits
        .flat_map(|(word, base)| {
            let set = (0..64).filter(move |bit| word >> bit & 1 != 0);
            set.map(move |bit| base + bit)
        })
        .collect())
}

/// A type1 container says that everything pinned is dirty, every time; QEMU's IOMMU under iommufd cannot tell.
pub fn hardware() -> Outcome {
    let backend = mastering_edu(&[])?;
    let client = backend.client();
    let memory = SharedMemory::new(4 * BUFFER)?;
    let page = u64::try_from(BUFFER)?;
    let supported = client.has_dma_logging().map_err(|error| chain(&error))?;
    let iommufd = Function::at(EDU)?.cdev_file()?.is_some();
    say(&format!("iommufd: {iommufd}, logging: {supported}"));
    check_eq!(supported, !iommufd, "whether anything can tell");
    map(&backend, IOVA, 2 * page, Access::ReadWrite, &memory, 0)?;
    if !supported {
        check_eq!(start(client, 1 << 32), Err(libc::ENOTTY), "START");
        return Ok(());
    }
    check_eq!(start(client, 1 << 32), Ok(()), "START");
    let read_only = IOVA + 2 * page;
    map(&backend, read_only, page, Access::Read, &memory, 2 * page)?;
    let bar = backend.trapped(0);
    memory.fill(0, BUFFER, 1);
    edu::dma(&bar, Direction::FromRam, IOVA)?;
    edu::dma(&bar, Direction::ToRam, IOVA + page)?;
    memory.check(BUFFER, BUFFER, 1)?;
    for round in ["first", "second"] {
        let found = report(client, IOVA, 4 * PAGE, PAGE)?;
        check_eq!(found, [0, 1], "everything writable, the {round} time");
    }
    let larger = report(client, IOVA, 4 * PAGE, 2 * PAGE)?;
    check_eq!(larger, [0], "in pages of 8 KiB");
    let part = report(client, IOVA + PAGE, PAGE, PAGE)?;
    check_eq!(part, [0], "a part of a map");
    map(
        &backend,
        IOVA + 8 * page,
        page,
        Access::ReadWrite,
        &memory,
        3 * page,
    )?;
    let new = report(client, IOVA + 4 * PAGE, 8 * PAGE, PAGE)?;
    check_eq!(new, [4], "a map made while logging");
    let unmapped = client.dma_unmap(IOVA, 2 * page);
    unmapped.map_err(|error| chain(&error))?;
    let kept = report(client, IOVA, 2 * PAGE, PAGE)?;
    check_eq!(kept, [0, 1], "what was unmapped while logging");
    let gone = report(client, IOVA, 2 * PAGE, PAGE)?;
    check_eq!(gone, [0_u64; 0], "the same, told already");
    let never = report(client, UNMAPPED_IOVA, 64 * PAGE, PAGE)?;
    check_eq!(never, [0_u64; 0], "what was never mapped");
    let stopped = client.dma_logging_stop();
    stopped.map_err(|error| chain(&error))?;
    let again = client.dma_logging_stop().map_err(|error| error.errno());
    check_eq!(again, Err(libc::EINVAL), "STOP again");
    check_eq!(start(client, 1 << 32), Ok(()), "START after STOP");
    Ok(())
}

/// A mediated device whose driver tracks by itself (mtty, which writes nothing), and one that leaves it to the container
/// (mdpy, which pins nothing).
pub fn mediated() -> Outcome {
    for (parent, kind, uuid, by_itself) in [
        (
            "mtty",
            "mtty-1",
            "6d646576-0000-4000-8000-000000000005",
            true,
        ),
        (
            "mdpy",
            "mdpy-vga",
            "6d646576-0000-4000-8000-000000000006",
            false,
        ),
    ] {
        let function = Function::mediated(parent, kind, uuid)?;
        let iommufd = function.cdev_file()?.is_some();
        let path = function.path();
        let backend = Launch::with(&["--device", &path]).attach()?;
        let client = backend.client();
        let memory = SharedMemory::new(4 * BUFFER)?;
        let page = u64::try_from(BUFFER)?;
        map(&backend, IOVA, 2 * page, Access::ReadWrite, &memory, 0)?;
        let supported = client.has_dma_logging().map_err(|error| chain(&error))?;
        say(&format!("{kind}: iommufd: {iommufd}, logging: {supported}"));
        check_eq!(
            supported,
            by_itself || !iommufd,
            "whether anything can tell of {kind}"
        );
        if !supported {
            check_eq!(start(client, 1 << 32), Err(libc::ENOTTY), "START of {kind}");
            continue;
        }
        check_eq!(start(client, 1 << 32), Ok(()), "START of {kind}");
        for page_size in [PAGE, 16 * PAGE] {
            let found = report(client, IOVA, 64 * PAGE, page_size)?;
            check_eq!(found, [0_u64; 0], "what {kind} wrote");
        }
        client
            .dma_unmap(IOVA, 2 * page)
            .map_err(|error| chain(&error))?;
        let kept = report(client, IOVA, 64 * PAGE, PAGE)?;
        check_eq!(kept, [0_u64; 0], "what {kind} wrote before the unmap");
        client.dma_logging_stop().map_err(|error| chain(&error))?;
    }
    Ok(())
}

/// Where registers of the test GPU's DMA are: address in memory, offset in VRAM, length, direction, result.
const DMA_REGISTERS: [u64; 5] = [0x90, 0x98, 0x9c, 0xa0, 0xa4];
const TO_MEMORY: u32 = 1;

/// Has the test GPU write memory.
fn write_memory(backend: &impl Device, iova: u64, length: u32) -> Outcome {
    let bar = backend.trapped(BAR2);
    let [address, offset, size, direction, result] = DMA_REGISTERS;
    bar.write32(address, u32::try_from(iova & 0xffff_ffff)?)?;
    bar.write32(address + 4, u32::try_from(iova >> 32)?)?;
    bar.write32(offset, 0)?;
    bar.write32(size, length)?;
    bar.write32(direction, TO_MEMORY)?;
    check_eq!(bar.read32(result)?, 0, "DMA to {iova:#x}");
    Ok(())
}

/// The test GPU tracks what it writes: exact at every page size, over several maps, and kept past an unmap. A kernel
/// without iova_bitmap (Debian's stock one) cannot report it, but its container sees what a mediated device writes.
pub fn device_itself() -> Outcome {
    const PAGES: u64 = 64;
    let gpu = TestGpu::new("log")?;
    let backend = Launch::with(&["--device", &gpu.path()]).attach()?;
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    let client = backend.client();
    let memory = SharedMemory::new(usize::try_from(2 * PAGES * PAGE)?)?;
    let access = Access::ReadWrite;
    let second = IOVA + PAGES * PAGE;
    map(&backend, IOVA, PAGES * PAGE, access, &memory, 0)?;
    map(
        &backend,
        second,
        PAGES * PAGE,
        access,
        &memory,
        PAGES * PAGE,
    )?;
    check_eq!(
        client.has_dma_logging().map_err(|error| chain(&error))?,
        true,
        "PROBE"
    );
    write_memory(&backend, IOVA, 64)?;
    check_eq!(start(client, 1 << 32), Ok(()), "START");
    write_memory(&backend, IOVA + 2 * PAGE + 0xffc, 8)?;
    write_memory(&backend, second - 4, 8)?;
    let found = report(client, IOVA, 2 * PAGES * PAGE, PAGE)?;
    check_eq!(found, [2, 3, PAGES - 1, PAGES], "pages");
    check_eq!(
        report(client, IOVA, 2 * PAGES * PAGE, PAGE)?,
        [0_u64; 0],
        "asked again"
    );
    for (shift, expected) in [(13, vec![2, PAGES / 2]), (16, vec![0, PAGES / 16])] {
        write_memory(&backend, IOVA + 5 * PAGE, 4)?;
        write_memory(&backend, second + PAGE, 4)?;
        let found = report(client, IOVA, 2 * PAGES * PAGE, 1 << shift)?;
        check_eq!(found, expected, "in pages of {} bytes", 1 << shift);
    }
    write_memory(&backend, second + 7 * PAGE, 4)?;
    write_memory(&backend, IOVA + 9 * PAGE, 4)?;
    let unmapped = client.dma_unmap(second, PAGES * PAGE);
    unmapped.map_err(|error| chain(&error))?;
    let found = report(client, IOVA, 2 * PAGES * PAGE, PAGE)?;
    check_eq!(found, [9, PAGES + 7], "one map gone meanwhile");
    client.dma_logging_stop().map_err(|error| chain(&error))?;
    Ok(())
}
