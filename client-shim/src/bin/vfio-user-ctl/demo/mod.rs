// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `demo`: a backend process, a client without device knowledge, and a driver, doing what a guest would do.
//!
//! Everything that moves is compared; the first difference ends it with a failure.

mod gpu;

use std::env;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use serde_json::{Value, json};
use vfio_user_client::mapping::RegionMapping;
use vfio_user_client::{Access, Client, Error, Options, spawn};

use crate::args::Demo;
use crate::pci::region;
use crate::report::{Failure, bytes, chain, json as print_json, milliseconds, print};
use gpu::{Gpu, Place};

/// How much is copied there and back.
const LENGTH: usize = 16 << 20;
/// Bytes of one copy command.
const PIECE: usize = 2 << 20;
/// Where guest memory is: above 4 GiB, so that addresses need all their bits.
const GUEST: u64 = 0x1_8000_0000;
/// Where in VRAM the data goes.
const VRAM_OFFSET: u64 = 1 << 20;
/// A value that a reset must not leave.
const SCRATCH_VALUE: u32 = 0x5ca1_ab1e;
/// Longest wait for a reply.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What was done, with its time.
#[derive(Debug)]
struct Step {
    what: String,
    took: Duration,
}

/// What the demo has shown so far.
#[derive(Debug, Default)]
struct Progress {
    /// Tell people on the way.
    verbose: bool,
    steps: Vec<Step>,
    bytes: u64,
    interrupts: u32,
    negotiated: Duration,
}

impl Progress {
    fn done(&mut self, took: Duration, what: String) {
        if self.verbose {
            // A closed stdout does not stop the work.
            let _ = print(&format!("{:>9.3} ms  {what}\n", milliseconds(took)));
        }
        self.steps.push(Step { what, took });
    }

    fn object(&self, failure: Option<&str>) -> Value {
        let step = |step: &Step| json!({ "what": step.what, "ms": milliseconds(step.took) });
        let mut object = json!({
            "ok": failure.is_none(),
            "bytes": self.bytes,
            "interrupts": self.interrupts,
            "spawn_to_negotiated_ms": milliseconds(self.negotiated),
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
        });
        if let (Some(failure), Some(object)) = (failure, object.as_object_mut()) {
            object.insert("error".to_owned(), failure.into());
        }
        object
    }
}

/// Runs the demo; its verdict is the exit code and, with `--json`, the object.
pub fn run(options: &Demo) -> ExitCode {
    let mut progress = Progress {
        verbose: !options.json,
        ..Progress::default()
    };
    let failure = demonstrate(options, &mut progress)
        .err()
        .map(|error| chain(error.as_ref()));
    if options.json {
        let _ = print(&print_json(&progress.object(failure.as_deref())));
    }
    match failure {
        None => {
            if !options.json {
                let copied = bytes(progress.bytes);
                let _ = print(&format!(
                    "ok: {copied} copied, {} interrupts\n",
                    progress.interrupts
                ));
            }
            ExitCode::SUCCESS
        }
        Some(failure) => {
            eprintln!("vfio-user-ctl: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(options: &Demo, progress: &mut Progress) -> Result<(), Failure> {
    let start = Instant::now();
    let backend = match &options.backend {
        Some(path) => path.clone(),
        None => beside("vfio-user-gpu")?,
    };
    let mut command = Command::new(&backend);
    command.args(["--model", "--log-level", "warn"]);
    let options = Options {
        timeout: Some(TIMEOUT),
        ..Options::default()
    };
    let spawned = spawn(command, options)?;
    progress.negotiated = start.elapsed();
    progress.done(
        start.elapsed(),
        format!("spawned {} and negotiated", backend.display()),
    );

    work(&spawned.client, progress)?;

    let start = Instant::now();
    let status = spawned.finish()?;
    if !status.success() {
        return Err(format!("The backend ended with {status}").into());
    }
    progress.done(
        start.elapsed(),
        "disconnected; the backend ended by itself".to_owned(),
    );
    Ok(())
}

fn work(client: &Client, progress: &mut Progress) -> Result<(), Failure> {
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
    let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
    let size = u64::try_from(LENGTH)?;
    ftruncate(&memory, 2 * size)?;
    memory.write_all_at(&data, 0)?;
    client.dma_map(
        GUEST,
        2 * size,
        Access::ReadWrite,
        Some((memory.as_fd(), 0)),
    )?;
    progress.done(
        start.elapsed(),
        format!(
            "mapped {} of guest memory, half of it random",
            bytes(2 * size)
        ),
    );

    let there = |at| (Place::Guest(GUEST + at), Place::Vram(VRAM_OFFSET + at));
    let back = |at| {
        (
            Place::Vram(VRAM_OFFSET + at),
            Place::Guest(GUEST + size + at),
        )
    };
    copy(&gpu, vectors, progress, "guest memory to VRAM", there)?;
    check_vram(&vram, &data, progress)?;
    copy(&gpu, vectors, progress, "VRAM to guest memory", back)?;

    let start = Instant::now();
    let mut returned = vec![0; LENGTH];
    memory.read_exact_at(&mut returned, size)?;
    compare("Guest memory", &data, &returned)?;
    let fence = gpu.fence()?;
    if fence != progress.interrupts {
        return Err(format!(
            "{fence} commands finished, {} interrupted",
            progress.interrupts
        )
        .into());
    }
    progress.done(
        start.elapsed(),
        "compared guest memory: what went out came back".to_owned(),
    );

    reset(
        &gpu,
        &vram,
        "function level reset",
        || gpu.function_level_reset(),
        progress,
    )?;
    reset(&gpu, &vram, "DEVICE_RESET", || client.reset(), progress)?;
    client.dma_unmap(GUEST, 2 * size)?;
    Ok(())
}

/// Copies all of the data piece by piece; each piece interrupts another vector.
fn copy(
    gpu: &Gpu<'_>,
    vectors: u32,
    progress: &mut Progress,
    what: &str,
    places: impl Fn(u64) -> (Place, Place),
) -> Result<(), Failure> {
    let start = Instant::now();
    let piece = u64::try_from(PIECE)?;
    for at in (0..u64::try_from(LENGTH)?).step_by(PIECE) {
        let (from, to) = places(at);
        gpu.copy(from, to, piece, progress.interrupts % vectors.max(1))?;
        progress.bytes += piece;
        progress.interrupts += 1;
    }
    let length = bytes(u64::try_from(LENGTH)?);
    progress.done(
        start.elapsed(),
        format!(
            "copied {length} from {what} by DMA, {} interrupts",
            LENGTH / PIECE
        ),
    );
    Ok(())
}

fn check_vram(vram: &RegionMapping, data: &[u8], progress: &mut Progress) -> Result<(), Failure> {
    let start = Instant::now();
    let mut found = vec![0; data.len()];
    vram.read_bytes(VRAM_OFFSET, &mut found)?;
    compare("Mapped VRAM", data, &found)?;
    progress.done(
        start.elapsed(),
        "compared VRAM through its mapping".to_owned(),
    );
    Ok(())
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

fn compare(what: &str, expected: &[u8], found: &[u8]) -> Result<(), Failure> {
    match expected
        .iter()
        .zip(found)
        .position(|(expected, found)| expected != found)
    {
        Some(at) => Err(format!("{what} differs from byte {at:#x} on").into()),
        None if expected.len() != found.len() => Err(format!("{what} has another length").into()),
        None => Ok(()),
    }
}

fn random(length: usize) -> Result<Vec<u8>, Failure> {
    let mut data = vec![0; length];
    File::open("/dev/urandom")?.read_exact(&mut data)?;
    Ok(data)
}

/// A program in the folder of this one.
fn beside(name: &str) -> Result<PathBuf, Failure> {
    let path = env::current_exe()?.with_file_name(name);
    if !path.exists() {
        return Err(format!(
            "There is no {}; build it, or pass --backend",
            path.display()
        )
        .into());
    }
    Ok(path)
}
