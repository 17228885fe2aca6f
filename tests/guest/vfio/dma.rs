// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of DMA by edu's engine into a client's memory, through the backend's maps and the emulated IOMMU.

use std::{
    error::Error,
    fs, thread,
    time::{Duration, Instant},
};

use rustix::fs::{FallocateFlags, fallocate};
use system_tests::pci;
use vfio_user_client::Access;

use super::{
    backend::{Backend, Device, Launch, chain},
    edu::{self, BUFFER, Direction},
    kernel::OpenDevice,
    memory::SharedMemory,
    pci::Function,
    places::{EDU, IOVA, UNMAPPED_IOVA},
};
use crate::{Outcome, check_eq, say, system};

/// Data goes to the device and back; a read-only map is not written; nothing arrives where no map is, also where one
/// was; and the device goes on working.
pub fn copy() -> Outcome {
    let backend = mastering_edu(&[])?;
    let bar = backend.trapped(0);
    let memory = SharedMemory::new(3 * BUFFER)?;
    let page = u64::try_from(BUFFER)?;
    map(&backend, IOVA, 2 * page, Access::ReadWrite, &memory, 0)?;
    map(
        &backend,
        IOVA + 2 * page,
        page,
        Access::Read,
        &memory,
        2 * page,
    )?;
    memory.fill(0, BUFFER, 1);
    edu::dma(&bar, Direction::FromRam, IOVA)?;
    edu::dma(&bar, Direction::ToRam, IOVA + page)?;
    memory.check(BUFFER, BUFFER, 1)?;

    memory.fill(2 * BUFFER, BUFFER, 2);
    edu::dma(&bar, Direction::FromRam, IOVA + 2 * page)?;
    edu::dma(&bar, Direction::ToRam, IOVA)?;
    memory.check(0, BUFFER, 2)?;
    memory.fill(2 * BUFFER, BUFFER, 3);
    // No fault is logged here: QEMU's IOMMU drops what its cache says is read-only.
    edu::dma(&bar, Direction::ToRam, IOVA + 2 * page)?;
    memory.check(2 * BUFFER, BUFFER, 3)?;

    faults(|| edu::dma(&bar, Direction::ToRam, UNMAPPED_IOVA))?;
    backend
        .client()
        .dma_unmap(IOVA, 2 * page)
        .map_err(|error| chain(&error))?;
    memory.fill(0, 2 * BUFFER, 4);
    faults(|| edu::dma(&bar, Direction::ToRam, IOVA))?;
    memory.check(0, 2 * BUFFER, 4)?;

    map(&backend, IOVA, page, Access::ReadWrite, &memory, 0)?;
    edu::dma(&bar, Direction::FromRam, IOVA)?;
    edu::dma(&bar, Direction::ToRam, IOVA)?;
    memory.check(0, BUFFER, 4)
}

/// Where the kernel maps files into the IOMMU, guest memory is never mapped into the backend.
pub fn not_mapped() -> Outcome {
    let function = Function::at(EDU)?;
    function.bind_to_vfio()?;
    let backend = mastering_edu(&[])?;
    let memory = SharedMemory::new(BUFFER)?;
    let size = u64::try_from(BUFFER)?;
    map(&backend, IOVA, size, Access::ReadWrite, &memory, 0)?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", backend.id()))?;
    let mapped = maps.contains("/memfd:ram");
    say(&format!(
        "guest memory is mapped into the backend: {mapped}"
    ));
    check_eq!(
        mapped && function.cdev_file()?.is_some(),
        false,
        "guest memory in the backend although iommufd is there"
    );
    Ok(())
}

/// How long 16 GiB of guest memory take to be mapped through the socket and by bare ioctls, in pieces of a huge page and
/// of 1 GiB. Told, not judged. The machine has not that much, so each page of 1 GiB is mapped sixteen times.
pub fn speed() -> Outcome {
    const GUEST: u64 = 16 << 30;
    const MEMORY: u64 = 1 << 30;
    // Above 4 GiB: below, interrupt messages have their window.
    const BASE: u64 = 4 << 30;
    let function = Function::at(EDU)?;
    function.bind_to_vfio()?;
    let memory = SharedMemory::new(usize::try_from(MEMORY)?)?;
    // Present, and known to this process, so that making pages is in neither time.
    fallocate(memory.fd(), FallocateFlags::empty(), 0, MEMORY)?;
    for page in (0..usize::try_from(MEMORY)?).step_by(4096) {
        memory.fill(page, 4, 0);
    }
    for piece in [2 << 20, 1 << 30] {
        let pieces = || (0..GUEST / piece).map(|index| index * piece);
        let backend = Launch::on(&function)?.attach()?;
        let start = Instant::now();
        for at in pieces() {
            let access = Access::ReadWrite;
            map(&backend, BASE + at, piece, access, &memory, at % MEMORY)?;
        }
        let socket = start.elapsed().as_secs_f64() * 1e3;
        drop(backend);
        let device = OpenDevice::open(&function)?;
        let start = Instant::now();
        for at in pieces() {
            device.map(BASE + at, memory.address() + at % MEMORY, piece)?;
        }
        let ioctl = start.elapsed().as_secs_f64() * 1e3;
        say(&format!(
            "milliseconds to map 16 GiB in pieces of {} MiB, socket / ioctl: {socket:.0} / {ioctl:.0}",
            piece >> 20,
        ));
    }
    Ok(())
}

/// Without bus mastering nothing moves, whatever the engine is told.
pub fn bus_master() -> Outcome {
    let backend = mastering_edu(&[])?;
    let bar = backend.trapped(0);
    let memory = SharedMemory::new(BUFFER)?;
    map(
        &backend,
        IOVA,
        u64::try_from(BUFFER)?,
        Access::ReadWrite,
        &memory,
        0,
    )?;
    let command = backend.config16(pci::COMMAND)?;
    backend.set_config16(pci::COMMAND, command & !pci::COMMAND_MASTER)?;
    memory.fill(0, BUFFER, 5);
    edu::dma(&bar, Direction::ToRam, IOVA)?;
    memory.check(0, BUFFER, 5)?;
    backend.set_config16(pci::COMMAND, command)?;
    edu::dma(&bar, Direction::FromRam, IOVA)?;
    memory.fill(0, BUFFER, 6);
    edu::dma(&bar, Direction::ToRam, IOVA)?;
    memory.check(0, BUFFER, 5)
}

/// Maps that cannot be are refused with their errno, and change nothing.
pub fn bad_maps() -> Outcome {
    let backend = mastering_edu(&[])?;
    let memory = SharedMemory::new(2 * BUFFER)?;
    let page = u64::try_from(BUFFER)?;
    map(&backend, IOVA, page, Access::ReadWrite, &memory, 0)?;
    let attempt = |iova, size, offset| {
        let memory = Some((memory.fd(), offset));
        match backend
            .client()
            .dma_map(iova, size, Access::ReadWrite, memory)
        {
            Ok(()) => 0,
            Err(error) => error.errno(),
        }
    };
    // Another page of the file: the same map again would be no mistake.
    check_eq!(
        attempt(IOVA, page, page),
        libc::EEXIST,
        "errno of an overlap"
    );
    check_eq!(
        attempt(IOVA + 2 * page, 0, 0),
        libc::EINVAL,
        "errno of an empty map"
    );
    check_eq!(
        attempt(IOVA + 2 * page, page + 1, 0),
        libc::EINVAL,
        "errno of part of a page"
    );
    check_eq!(
        attempt(u64::MAX - page + 1, 2 * page, 0),
        libc::EINVAL,
        "errno of a map that wraps"
    );
    let unmapped = backend.client().dma_unmap(IOVA + 4 * page, page);
    check_eq!(
        unmapped.map_err(|error| error.errno()),
        Err(libc::ENOENT),
        "unmap of nothing"
    );
    memory.fill(0, BUFFER, 7);
    let bar = backend.trapped(0);
    edu::dma(&bar, Direction::FromRam, IOVA)?;
    memory.fill(0, BUFFER, 8);
    edu::dma(&bar, Direction::ToRam, IOVA)?;
    memory.check(0, BUFFER, 7)
}

/// A backend on edu that may do DMA.
pub fn mastering_edu(arguments: &[&str]) -> Result<Backend, Box<dyn Error>> {
    let backend = Launch::on(&Function::at(EDU)?)?.args(arguments).attach()?;
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    Ok(backend)
}

/// Gives the device `size` bytes of `memory`, from `offset`.
pub fn map(
    device: &impl Device,
    iova: u64,
    size: u64,
    access: Access,
    memory: &SharedMemory,
    offset: u64,
) -> Result<(), Box<dyn Error>> {
    let mapped = device
        .client()
        .dma_map(iova, size, access, Some((memory.fd(), offset)));
    mapped.map_err(|error| chain(&error).into())
}

/// Expects `dma` to end in a fault, which the IOMMU logs when its own interrupt is served, a while after the DMA. The log
/// is rate limited, far above the few faults of these checks.
pub fn faults(dma: impl Fn() -> Outcome) -> Outcome {
    let before = fault_lines();
    dma()?;
    // Only turns a fault that never comes into a failure.
    let limit = Instant::now() + Duration::from_secs(60);
    while fault_lines() <= before {
        if Instant::now() > limit {
            return Err("no fault was logged".into());
        }
        thread::yield_now();
    }
    Ok(())
}

pub fn fault_lines() -> usize {
    system::kernel_log().matches("DMAR: [DMA ").count()
}
