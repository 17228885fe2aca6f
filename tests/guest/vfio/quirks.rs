// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks of quirks on devices of the kernel: Intel's regions of our test module, and edu passed off as an NVIDIA board.

use std::fs::File;
use std::os::{fd::AsFd, unix::fs::FileExt};

use system_tests::pci;
use vfio_user_client::{
    Access,
    protocol::{device::RegionCapability, io_fds::IoFd},
};

use super::{
    backend::{CONFIG, Device, Launch, chain},
    dma,
    edu::{self, Registers},
    gpu::TestGpu,
    memory::SharedMemory,
    places::IOVA,
};
use crate::{Outcome, check_eq};

const OPREGION: u32 = 9;
/// Bytes of the module's OpRegion.
const SIZE: usize = 0x3800;
const INTEL: u32 = 0x8000_8086;
const ASLS: u16 = 0xfc;
const BDSM: u16 = 0x5c;
const PAGE: u64 = 4096;

/// The OpRegion as the module makes it, without the address of a buffer in it.
fn opregion() -> Vec<u8> {
    let words = (0_u32..).step_by(4).take(SIZE / 4);
    let mut bytes: Vec<u8> = words
        .flat_map(|at| (0x0b00_0000 | at).to_le_bytes())
        .collect();
    let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
    put(0, b"IntelGraphicsMem");
    put(0x10, &8_u32.to_le_bytes());
    put(0x16, &0x0201_u16.to_le_bytes());
    put(0x58, &0x1f_u32.to_le_bytes());
    put(0x3aa, &[0; 12]);
    put(0x3ba, &0x2000_u64.to_le_bytes());
    put(0x3c2, &0x1800_u32.to_le_bytes());
    put(0x2000, b"$VBT VUGTEST        ");
    bytes
}

/// Intel's regions reach the client, the host's addresses do not, and firmware gets its copy in guest memory that the
/// backend otherwise never has.
pub fn igd() -> Outcome {
    let gpu = TestGpu::new("igd")?;
    let launch = Launch::with(&["--device", &gpu.path(), "--igd-opregion", "copy"]);
    let backend = launch.args(&["--igd-gms", "0x10"]).attach()?;
    backend.enable(pci::COMMAND_MEMORY | pci::COMMAND_MASTER)?;
    check_eq!(backend.config(ASLS)?, [0; 4], "ASLS");
    check_eq!(backend.config(BDSM)?, [0; 4], "BDSM");
    check_eq!(backend.config(0x50)?, [0xc1, 0x10], "GMCH");
    let info = backend
        .client()
        .device_info()
        .map_err(|error| chain(&error))?;
    check_eq!(info.num_regions, 12, "regions");
    for (index, subtype, size) in [(OPREGION, 1, SIZE), (10, 2, 256), (11, 3, 256)] {
        let region = backend.region(index)?;
        let kind = RegionCapability::Type {
            region_type: INTEL,
            subtype,
        };
        check_eq!(region.capabilities, [kind], "type of region {index}");
        check_eq!(region.size, u64::try_from(size)?, "size of region {index}");
        check_eq!(region.writable, false, "region {index} is read-only");
    }
    let mut served = vec![0; SIZE];
    let read = backend.client().region_read(OPREGION, 0, &mut served);
    read.map_err(|error| chain(&error))?;
    check_eq!(served == opregion(), true, "the OpRegion by messages");
    let (fd, offset) = backend.region(OPREGION)?.mapping.ok_or("not mappable")?;
    let mut mapped = vec![0; SIZE];
    File::from(fd.as_fd().try_clone_to_owned()?).read_exact_at(&mut mapped, offset)?;
    check_eq!(mapped == opregion(), true, "the OpRegion by its file");

    let memory = SharedMemory::new(8 * 4096)?;
    dma::map(&backend, IOVA, 8 * PAGE, Access::ReadWrite, &memory, 0)?;
    for bad in [IOVA + 4, IOVA + 5 * PAGE, IOVA - PAGE, 0xffff_f000] {
        backend.set_config32(ASLS, u32::try_from(bad)?)?;
        let touched = (0..8 * 4096).step_by(4).find(|&at| memory.word(at) != 0);
        check_eq!(touched, None, "memory after ASLS {bad:#x}");
    }
    backend.set_config32(ASLS, u32::try_from(IOVA + 2 * PAGE)?)?;
    for (index, word) in opregion().chunks_exact(4).enumerate() {
        let wanted = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        let at = 2 * 4096 + 4 * index;
        check_eq!(memory.word(at), wanted, "the copy at {at:#x}");
    }
    check_eq!(memory.word(2 * 4096 - 4), 0, "before it");
    check_eq!(memory.word(2 * 4096 + SIZE), 0, "behind it");
    let refused = backend.log().matches("OpRegion not copied to").count();
    check_eq!(refused, 4, "lines that say so");
    Ok(())
}

/// A board with NVIDIA's identity shows config space in BAR0, in pages that are not mapped, and its doorbell is taken by
/// the kernel.
pub fn mirror() -> Outcome {
    let disguise = ["--pci-vendor-id", "0x10de", "--pci-class", "0x030000"];
    let handoff = ["--bar-handoff", "device-fd"];
    let backend = dma::mastering_edu(&[&disguise[..], &handoff[..]].concat())?;
    let bar = backend.trapped(0);
    let ids = u32::from_le_bytes(backend.config(0)?);
    check_eq!(ids & 0xffff, 0x10de, "the disguise");
    let mirror = 0x8_8000;
    check_eq!(bar.read32(mirror)?, ids, "ids in the mirror");
    bar.write32(mirror + 0x3c, 0x5a)?;
    check_eq!(backend.config(0x3c)?, [0x5a], "a write to the mirror");
    let areas = backend.region(0)?.mappable_areas();
    let areas: Vec<_> = areas
        .iter()
        .map(|area| (area.offset, area.offset + area.size))
        .collect();
    let wanted = [(0, 0x8_8000), (0x8_9000, 1 << 20)];
    check_eq!(areas, wanted, "what of BAR0 can be mapped");
    edu::check_alive(&bar)?;
    edu::check_alive(&backend.mapped(0)?)?;

    let doorbells = backend
        .client()
        .region_io_fds(0)
        .map_err(|error| chain(&error))?;
    check_eq!(
        doorbells.fds.len(),
        1,
        "doorbells; the backend said: {}",
        backend.log()
    );
    let doorbell = doorbells.sub_regions.first().ok_or("no doorbell")?;
    check_eq!(
        (doorbell.offset, doorbell.size),
        (0x8_8704, 4),
        "the doorbell"
    );
    check_eq!(
        doorbell.kind,
        IoFd::IoEventFd { datamatch: 0 },
        "what it takes"
    );
    let event = doorbells.fds.first().ok_or("no eventfd")?;
    rustix::io::write(event, &1_u64.to_ne_bytes())?;
    check_eq!(backend.config::<2>(0)?, [0xde, 0x10], "alive after it rang");
    let none = backend
        .client()
        .region_io_fds(CONFIG)
        .map_err(|error| chain(&error))?;
    check_eq!(none.fds.len(), 0, "doorbells of config space");
    Ok(())
}
