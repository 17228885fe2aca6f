// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One device does its work: DMA there and back, mapped VRAM, interrupts, resets that leave nothing.

use std::time::Instant;

use vfio_user_client::mapping::RegionMapping;
use vfio_user_client::{Client, Error};

use super::Progress;
use super::gpu::{Gpu, Place, Work};
use super::memory::{GUEST, GuestMemory, compare, random};
use crate::pci::region;
use crate::report::{Failure, bytes};

/// How much is copied there and back.
const LENGTH: usize = 16 << 20;
/// Bytes of one copy command.
const PIECE: usize = 2 << 20;
/// Where in VRAM the data goes.
const VRAM_OFFSET: u64 = 1 << 20;
/// A value that a reset must not leave.
const SCRATCH_VALUE: u32 = 0x5ca1_ab1e;

pub fn run(client: &Client, progress: &mut Progress) -> Result<(), Failure> {
    let start = Instant::now();
    let mut gpu = Gpu::probe(client)?;
    gpu.set_up()?;
    let vectors = gpu.vectors()?;
    let vram = client.region_info(region::BAR0)?.map()?;
    let size = bytes(gpu.vram_size);
    progress.done(
        start.elapsed(),
        format!("found the GPU, {size} of VRAM, armed {vectors} MSI-X vectors"),
    );

    let start = Instant::now();
    let data = random(LENGTH)?;
    let size = u64::try_from(LENGTH)?;
    let memory = GuestMemory::new(2 * size)?;
    memory.write(0, &data)?;
    memory.map(client)?;
    let mut interrupts = 0;
    for way in [true, false] {
        for at in (0..size).step_by(PIECE) {
            let vram = Place::Vram(VRAM_OFFSET + at);
            let (from, to) = match way {
                true => (Place::Guest(GUEST + at), vram),
                false => (vram, Place::Guest(GUEST + size + at)),
            };
            let piece = u64::try_from(PIECE)?;
            gpu.run(Work::Copy { from, to }, piece, interrupts % vectors.max(1))?;
            interrupts += 1;
        }
    }
    let mut mapped = vec![0; LENGTH];
    vram.read_bytes(VRAM_OFFSET, &mut mapped)?;
    compare("Mapped VRAM", &data, &mapped)?;
    compare("Guest memory", &data, &memory.read(size, LENGTH)?)?;
    let fence = gpu.fence()?;
    if fence != interrupts {
        return Err(format!("{fence} commands finished, {interrupts} interrupted").into());
    }
    progress.interrupts += interrupts;
    progress.dma_bytes += 2 * size;
    progress.done(
        start.elapsed(),
        format!(
            "copied {} from guest memory to VRAM and back by DMA, {interrupts} interrupts; all compared",
            bytes(size)
        ),
    );

    let flr = || gpu.function_level_reset();
    reset(&gpu, &vram, "function level reset", flr, progress)?;
    reset(&gpu, &vram, "DEVICE_RESET", || client.reset(), progress)?;
    memory.unmap(client)
}

/// Resets in one way and checks that nothing is left.
fn reset(
    gpu: &Gpu<'_>,
    vram: &RegionMapping,
    what: &str,
    reset: impl FnOnce() -> Result<(), Error>,
    progress: &mut Progress,
) -> Result<(), Failure> {
    gpu.set_scratch(SCRATCH_VALUE)?;
    vram.write(VRAM_OFFSET, u64::from(SCRATCH_VALUE))?;
    let scratch = gpu.scratch()?;
    if scratch != SCRATCH_VALUE {
        return Err(format!("SCRATCH holds {scratch:#x} instead of what was written").into());
    }
    let start = Instant::now();
    reset()?;
    let took = start.elapsed();
    gpu.enable()?;
    let scratch = gpu.scratch()?;
    if scratch != 0 {
        return Err(format!("SCRATCH holds {scratch:#x} after a {what}").into());
    }
    let mut found = vec![0; LENGTH];
    vram.read_bytes(VRAM_OFFSET, &mut found)?;
    compare(&format!("VRAM after a {what}"), &vec![0; LENGTH], &found)?;
    progress.done(took, format!("reset by {what}: SCRATCH and VRAM are 0"));
    Ok(())
}
