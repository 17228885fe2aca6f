// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of which pages of memory a device of the kernel is said to have written.

use std::error::Error;

use vfio_user_client::{Access, Client, protocol::feature::DmaLoggingRange};

use super::{
    backend::{Device, Launch, chain},
    dma::{map, mastering_edu},
    edu::{self, BUFFER, Direction},
    memory::SharedMemory,
    pci::Function,
    places::{EDU, IOVA, UNMAPPED_IOVA},
};
use crate::{Outcome, check_eq, say};

const PAGE: u64 = 4096;

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
            check_eq!(found, [0_u64; 0], "nothing was written by {kind}");
        }
        client
            .dma_unmap(IOVA, 2 * page)
            .map_err(|error| chain(&error))?;
        let kept = report(client, IOVA, 64 * PAGE, PAGE)?;
        check_eq!(kept, [0_u64; 0], "after the unmap, by {kind}");
        client.dma_logging_stop().map_err(|error| chain(&error))?;
    }
    Ok(())
}
