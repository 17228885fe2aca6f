// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device under load goes from one backend to another, and everything is compared there.

use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use vfio_user_client::Client;
use vfio_user_client::mapping::RegionMapping;
use vfio_user_client::migration::Migration;
use vfio_user_client::protocol::migration::MigrationState;

use super::Progress;
use super::gpu::{Gpu, Place, Work, wait_for_one};
use super::memory::{GUEST, GuestMemory, compare, random};
use super::workload::{self, Control};
use crate::interrupt::Interrupt;
use crate::pci::region;
use crate::report::{Failure, bytes, milliseconds};
use crate::transfer::timeline::{Pass, Timeline};
use crate::transfer::watch::Watch;
use crate::transfer::{self, End, Guest, Plan};
use crate::units::{rate, size, time};

/// The link, in bytes a second, and what most VMMs take for a limit: a machine that is busy with other things must meet it too.
const BANDWIDTH: u64 = 128 << 20;
const LIMIT: Duration = Duration::from_millis(300);
/// VRAM that the guest uses, and guest memory that it copies from.
const USED: usize = 24 << 20;
const SOURCE: usize = 8 << 20;
/// Bytes of the last command: not foreseen by any prediction, so few.
const LAST: usize = 256 << 10;
/// Where it writes: VRAM that nothing else uses.
const LAST_TO: u64 = USED as u64;
const LAST_VECTOR: u32 = 3;
const SCRATCH_VALUE: u32 = 0x0ddb_a115;

/// What the guest knows of its device when it stops.
#[derive(Debug)]
struct Known {
    vram: Vec<u8>,
    registers: [u32; 4],
    config: Vec<u8>,
}

/// The guest: its work goes on on a thread until the device stops.
struct Loaded<'scope, 'a> {
    gpu: &'a Gpu<'a>,
    vram: &'a RegionMapping,
    control: &'a Control,
    thread: Option<ScopedJoinHandle<'scope, Result<u32, Failure>>>,
    progress: &'a mut Progress,
    known: Option<Known>,
}

impl Guest for Loaded<'_, '_> {
    fn pass_ended(&mut self, number: usize, _pass: &Pass) {
        self.control.passes(number);
    }

    /// The vCPUs stop; a command of the device is under way, as it may be.
    fn stop(&mut self) -> Result<(), Failure> {
        self.control.stop();
        let thread = self.thread.take().ok_or("The guest has stopped before")?;
        thread.thread().unpark();
        let commands = thread.join().map_err(|_| "The guest's thread failed")??;
        self.progress.interrupts += commands;
        let mut vram = vec![0; usize::try_from(self.gpu.vram_size)?];
        self.vram.read_bytes(0, &mut vram)?;
        self.known = Some(Known {
            vram,
            registers: self.gpu.kept()?,
            config: self.gpu.config_space()?,
        });
        self.gpu.start(last(), LAST as u64, LAST_VECTOR)
    }
}

/// The command that the switch-over finds under way.
fn last() -> Work {
    Work::Copy {
        from: Place::Guest(GUEST),
        to: Place::Vram(LAST_TO),
    }
}

pub fn run(source: &Client, destination: &Client, progress: &mut Progress) -> Result<(), Failure> {
    let (from, to) = (migration(source)?, migration(destination)?);
    let memory = GuestMemory::new(2 * SOURCE as u64)?;
    let data = random(SOURCE)?;
    memory.write(0, &data)?;

    let start = Instant::now();
    let mut gpu = Gpu::probe(source)?;
    gpu.set_up()?;
    memory.map(source)?;
    let vram = source.region_info(region::BAR0)?.map()?;
    vram.write_bytes(0, &random(USED)?)?;
    gpu.set_scratch(SCRATCH_VALUE)?;
    // What the VMM prepares at the other end: the same memory, eventfds of its own, and nothing of the guest's.
    let mut other = Gpu::find(destination)?;
    other.arm()?;
    memory.map(destination)?;
    progress.done(
        start.elapsed(),
        format!("put {} of random data into VRAM", bytes(USED as u64)),
    );

    let mut timeline = Timeline::new();
    let known = move_loaded(&from, &to, &gpu, &vram, progress, &mut timeline)?;

    let start = Instant::now();
    let known = known.ok_or("The guest was never stopped")?;
    other.vram_size = gpu.vram_size;
    let found = verify(&gpu, &other, destination, known, &data)?;
    if from.state()? != MigrationState::Stop {
        return Err("The source has not stopped".into());
    }
    progress.interrupts += 1;
    progress.done(
        start.elapsed(),
        format!(
            "compared {} of VRAM, the engine's registers and config space: the same at the destination",
            bytes(gpu.vram_size)
        ),
    );
    alive(&other, &memory, &found, progress)?;
    progress.verified = true;
    Ok(())
}

/// Migrates while the guest works.
fn move_loaded(
    from: &Migration,
    to: &Migration,
    gpu: &Gpu<'_>,
    vram: &RegionMapping,
    progress: &mut Progress,
    timeline: &mut Timeline,
) -> Result<Option<Known>, Failure> {
    let plan = Plan {
        bandwidth: Some(BANDWIDTH),
        limit: LIMIT,
        strict: true,
        interrupt: Interrupt::default(),
    };
    let control = Control::default();
    let (end, known) = thread::scope(|scope| {
        let work = || workload::run(gpu, vram, &control, USED as u64, SOURCE as u64);
        let mut guest = Loaded {
            gpu,
            vram,
            control: &control,
            thread: Some(scope.spawn(work)),
            progress,
            known: None,
        };
        let end = transfer::run(from, to, &plan, timeline, &Watch::Silent, &mut guest);
        // On every way out: the scope waits for the guest.
        control.stop();
        (end, guest.known)
    });
    progress.timeline = Some(timeline.clone());
    for (number, pass) in timeline.passes.iter().enumerate() {
        let (moved, left) = (size(pass.bytes), size(pass.remaining));
        progress.done(
            pass.took,
            format!("pass {}: {moved} moved under load, {left} left", number + 1),
        );
    }
    match end? {
        End::Done => {}
        End::Stalled(needs) => return Err(transfer::explain(&needs, &plan).into()),
        End::Interrupted => return Err("The migration was given up".into()),
    }
    let downtime = timeline.downtime.unwrap_or_default();
    let expected = timeline.expected.map_or_else(|| "?".to_owned(), time);
    progress.done(
        downtime,
        format!(
            "switched over: {} in all, {}, downtime {:.3} ms, expected {expected}",
            size(timeline.moved),
            rate(timeline.throughput()),
            milliseconds(downtime)
        ),
    );
    Ok(known)
}

/// Everything at the destination is as the guest left it, but for the command that was under way and is done. What
/// is in VRAM there.
fn verify(
    gpu: &Gpu<'_>,
    other: &Gpu<'_>,
    destination: &Client,
    mut known: Known,
    data: &[u8],
) -> Result<Vec<u8>, Failure> {
    // It may have been done just before the device stopped.
    wait_for_one(&[gpu, other], LAST_VECTOR)?;
    other.finish(last(), LAST as u64, LAST_VECTOR)?;
    let copied = known.vram.get_mut(USED..USED + LAST);
    let copied = copied.zip(data.get(..LAST));
    let (copied, data) = copied.ok_or("VRAM is too small")?;
    copied.copy_from_slice(data);
    let vram = destination.region_info(region::BAR0)?.map()?;
    let mut vram_found = vec![0; known.vram.len()];
    vram.read_bytes(0, &mut vram_found)?;
    compare("VRAM at the destination", &known.vram, &vram_found)?;
    let [scratch, _, fence, enable] = known.registers;
    let [found_scratch, _, found_fence, found_enable] = other.kept()?;
    let expected = [scratch, fence.wrapping_add(1), enable];
    let found = [found_scratch, found_fence, found_enable];
    if scratch != SCRATCH_VALUE || expected != found {
        let text =
            format!("SCRATCH, FENCE and INT_ENABLE are {found:#x?} instead of {expected:#x?}");
        return Err(text.into());
    }
    compare(
        "Config space at the destination",
        &known.config,
        &other.config_space()?,
    )?;
    Ok(vram_found)
}

/// The device goes on working: its engine, its DMA, each of its interrupts.
fn alive(
    gpu: &Gpu<'_>,
    memory: &GuestMemory,
    vram: &[u8],
    progress: &mut Progress,
) -> Result<(), Failure> {
    let start = Instant::now();
    let vectors = gpu.vectors()?;
    let piece = SOURCE as u64 / u64::from(vectors);
    for vector in 0..vectors {
        let at = u64::from(vector) * piece;
        let work = Work::Copy {
            from: Place::Vram(at),
            to: Place::Guest(GUEST + SOURCE as u64 + at),
        };
        gpu.run(work, piece, vector)?;
    }
    let returned = memory.read(SOURCE as u64, SOURCE)?;
    let expected = vram.get(..SOURCE).unwrap_or_default();
    compare("Guest memory after the migration", expected, &returned)?;
    progress.interrupts += vectors;
    progress.dma_bytes += SOURCE as u64;
    progress.done(
        start.elapsed(),
        format!("copied on at the destination, {vectors} vectors interrupted"),
    );
    Ok(())
}

fn migration(client: &Client) -> Result<Migration, Failure> {
    Ok(client
        .migration()?
        .ok_or("The backend's device does not migrate")?)
}
