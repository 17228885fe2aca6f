// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `demo`: two backend processes, clients without device knowledge, and a driver, doing what a guest would do.
//!
//! | file | what |
//! |---|---|
//! | `checks` | one device does its work |
//! | `live` | it is migrated under load, and compared |
//! | `workload` | the load |
//! | `gpu`, `memory` | the device as its driver sees it; guest memory |
//!
//! Everything that moves is compared; the first difference ends it with a failure.

mod checks;
mod gpu;
mod live;
mod memory;
mod workload;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vfio_user_client::{Spawned, spawn};

use crate::args::{self, Demo};
use crate::report::{Failure, bytes, chain, complain, json as print_json, milliseconds, print};
use crate::transfer::timeline::Timeline;
use crate::units::size;

/// Longest wait for a reply, in seconds.
const TIMEOUT: u64 = 60;

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
    /// Bytes that the engine moved from and to guest memory, and was seen to.
    dma_bytes: u64,
    interrupts: u32,
    negotiated: Duration,
    /// The migration, once it has ended.
    timeline: Option<Timeline>,
    /// Everything was compared at the destination.
    verified: bool,
}

impl Progress {
    fn done(&mut self, took: Duration, what: String) {
        if self.verbose {
            // A closed stdout does not stop the work.
            let _ = print(&format!("{:>9.3} ms  {what}\n", milliseconds(took)));
        }
        self.steps.push(Step { what, took });
    }

    /// The migration's figures, and what it stands among.
    fn object(&self, failure: Option<&str>) -> Value {
        let step = |step: &Step| json!({ "what": step.what, "ms": milliseconds(step.took) });
        let none = Timeline::new();
        let mut object = self.timeline.as_ref().unwrap_or(&none).object();
        let more = json!({
            "ok": failure.is_none(),
            "verified": self.verified,
            "dma_bytes": self.dma_bytes,
            "interrupts": self.interrupts,
            "spawn_to_negotiated_ms": milliseconds(self.negotiated),
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
        });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
            if let Some(failure) = failure {
                object.insert("error".to_owned(), failure.into());
            }
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
                let migrated = progress.timeline.as_ref().map_or(0, |line| line.moved);
                let _ = print(&format!(
                    "ok: {} migrated and verified, {} copied by DMA, {} interrupts\n",
                    size(migrated),
                    bytes(progress.dma_bytes),
                    progress.interrupts
                ));
            }
            ExitCode::SUCCESS
        }
        Some(failure) => {
            complain(&failure);
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(options: &Demo, progress: &mut Progress) -> Result<(), Failure> {
    let backend = match &options.backend {
        Some(path) => path.clone(),
        None => beside("vfio-user-gpu")?,
    };
    let start = Instant::now();
    let source = start_backend(&backend)?;
    progress.negotiated = start.elapsed();
    progress.done(
        start.elapsed(),
        format!("spawned {} and negotiated", backend.display()),
    );
    checks::run(&source.client, progress)?;

    let start = Instant::now();
    let destination = start_backend(&backend)?;
    progress.done(start.elapsed(), "spawned another one".to_owned());
    live::run(&source.client, &destination.client, progress)?;

    let start = Instant::now();
    for spawned in [source, destination] {
        let status = spawned.finish()?;
        if !status.success() {
            return Err(format!("A backend ended with {status}").into());
        }
    }
    progress.done(
        start.elapsed(),
        "disconnected; the backends ended by themselves".to_owned(),
    );
    Ok(())
}

fn start_backend(backend: &Path) -> Result<Spawned, Failure> {
    let mut command = Command::new(backend);
    command.args(["--model", "--log-level", "warn"]);
    Ok(spawn(command, args::for_migration(TIMEOUT))?)
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
