// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `save` and `load`: the stream of one device to and from a file or pipe.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use vfio_user_client::Client;
use vfio_user_client::migration::{Progress, Saver};

use crate::args::{Load, Save};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::migrate::{attach, migration};
use crate::report::{Failure, chain, complain, fail, json as print_json, milliseconds, print};
use crate::stream::Stream;
use crate::transfer::convergence::{Convergence, Decision};
use crate::transfer::watch::Watch;
use crate::units::{size, time};

/// A live save goes over to the stop-copy once the rest takes no longer than this, or does not get less.
const LIMIT: Duration = Duration::from_millis(100);

/// One stream under way, and what people are told of it.
struct Move {
    watch: Watch,
    interrupt: Interrupt,
    start: Instant,
    /// Bytes so far.
    moved: u64,
    /// How long the device stood still.
    stopped: Option<Duration>,
}

/// How a stream that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Interrupted,
}

impl Move {
    fn new(json: bool) -> Result<Self, Failure> {
        let watch = if json { Watch::Silent } else { Watch::new() };
        Ok(Self {
            watch,
            interrupt: Interrupt::catch()?,
            start: Instant::now(),
            moved: 0,
            stopped: None,
        })
    }

    /// Says how it ended; with `json` to `out`.
    fn told(&self, what: &str, end: Result<End, Failure>, json: bool, out: Out) -> ExitCode {
        self.watch.end();
        let (code, failure) = match end {
            Ok(End::Done) => (ExitCode::SUCCESS, None),
            Ok(End::Interrupted) => (ExitCode::from(INTERRUPTED), Some("Interrupted".to_owned())),
            Err(error) => (ExitCode::FAILURE, Some(chain(error.as_ref()))),
        };
        if json {
            let object = print_json(&json!({
                "ok": failure.is_none(),
                "error": failure,
                "bytes": self.moved,
                "ms": milliseconds(self.start.elapsed()),
                "stopped_ms": self.stopped.map(milliseconds),
            }));
            match out {
                Out::Stdout => drop(print(&object)),
                // Whoever closed stderr wants no more of it.
                Out::Stderr => drop(io::stderr().write_all(object.as_bytes())),
            }
            if matches!(out, Out::Stderr) {
                return code;
            }
        }
        match failure {
            Some(failure) => complain(&failure),
            None => {
                let what = match self.stopped {
                    Some(stopped) => format!("{what}, device stopped for {}", time(stopped)),
                    None => what.to_owned(),
                };
                self.watch
                    .end_stream(&what, self.moved, self.start.elapsed());
            }
        }
        code
    }
}

/// Where the object of `--json` goes.
#[derive(Clone, Copy, Debug)]
enum Out {
    Stdout,
    Stderr,
}

/// Saves the device; it goes on afterwards.
pub fn save(options: &Save) -> ExitCode {
    let out = match options.output {
        Some(_) => Out::Stdout,
        None => Out::Stderr,
    };
    moved(options.json, "saved", out, |moving| {
        save_to(options, moving)
    })
}

/// Loads a device; it runs afterwards.
pub fn load(options: &Load) -> ExitCode {
    moved(options.json, "loaded", Out::Stdout, |moving| {
        load_from(options, moving)
    })
}

fn moved(
    json: bool,
    what: &str,
    out: Out,
    act: impl FnOnce(&mut Move) -> Result<End, Failure>,
) -> ExitCode {
    match Move::new(json) {
        Ok(mut moving) => {
            let end = act(&mut moving);
            moving.told(what, end, json, out)
        }
        Err(error) => fail(error.as_ref()),
    }
}

fn save_to(options: &Save, moving: &mut Move) -> Result<End, Failure> {
    let interrupt = &moving.interrupt;
    let mut sink = match &options.output {
        Some(path) => match Stream::create(path, interrupt) {
            Err(_) if interrupt.is_asked() => return Ok(End::Interrupted),
            Err(error) => return Err(format!("Cannot write {}: {error}", path.display()).into()),
            Ok(sink) => sink,
        },
        None if io::stdout().is_terminal() => {
            return Err("The stream is not for a terminal; give -o FILE, or a pipe".into());
        }
        None => Stream::new(io::stdout().as_fd().try_clone_to_owned()?, interrupt)?,
    };
    let client = attach(&options.socket, options.timeout)?;
    let migration = migration(&client, &options.socket)?;
    // Dropped on any way out of here, it cancels: the device goes on.
    let mut saver = migration.save(options.live)?;
    let live = options.live && migration.support().pre_copy;
    let saved = moving.save(&mut saver, &mut sink, live);
    // It may have failed for that reason.
    if moving.interrupt.is_asked() {
        saver.cancel()?;
        return Ok(End::Interrupted);
    }
    let stopped = saved?;
    let resumed = saver.cancel();
    moving.stopped = Some(stopped.elapsed());
    sink.keep()
        .map_err(|error| format!("Cannot keep the stream: {error}"))?;
    resumed.map_err(NotResumed)?;
    Ok(End::Done)
}

/// The stream is whole and kept all the same.
#[derive(Debug, thiserror::Error)]
#[error("Stream complete, device not resumed")]
struct NotResumed(#[source] vfio_user_client::Error);

impl Move {
    /// Moves all of it; when the device stopped.
    fn save(
        &mut self,
        saver: &mut Saver,
        sink: &mut Stream,
        live: bool,
    ) -> Result<Instant, Failure> {
        self.start = Instant::now();
        if live {
            self.converge(saver, sink)?;
        }
        let stopped = Instant::now();
        if !self.interrupt.is_asked() {
            saver.switch_over()?;
            self.pass(saver, sink)?;
        }
        Ok(stopped)
    }

    /// Passes while the device runs, until the rest is little or does not get less.
    fn converge(&mut self, saver: &mut Saver, sink: &mut Stream) -> Result<(), Failure> {
        let mut convergence = Convergence::new(LIMIT, None, false);
        while !self.interrupt.is_asked() {
            let start = Instant::now();
            let before = self.moved;
            self.pass(saver, sink)?;
            convergence.moved(self.moved - before, start.elapsed());
            match convergence.pass_ended(&saver.pending(true)?, true) {
                Decision::GoOn => {}
                Decision::SwitchOver | Decision::Stalled(_) => break,
            }
        }
        Ok(())
    }

    /// Passes the stream on until there is nothing for now, or nothing more.
    fn pass(&mut self, saver: &mut Saver, sink: &mut Stream) -> Result<(), Failure> {
        while !self.interrupt.is_asked() {
            match saver.iterate(sink)? {
                Progress::Data(bytes) => self.moved += u64::try_from(bytes)?,
                Progress::Idle | Progress::End => break,
            }
            if let Watch::Bar(_) = self.watch {
                let left = saver.pending(false)?.total();
                self.watch
                    .stream(self.moved, Some(self.moved.saturating_add(left)));
            }
        }
        Ok(())
    }
}

fn load_from(options: &Load, moving: &mut Move) -> Result<End, Failure> {
    let interrupt = &moving.interrupt;
    let (mut source, total) = match &options.file {
        Some(path) => match Stream::open(path, interrupt) {
            Err(_) if interrupt.is_asked() => return Ok(End::Interrupted),
            Err(error) => return Err(format!("Cannot read {}: {error}", path.display()).into()),
            Ok((source, size)) => (source, Some(size)),
        },
        None if io::stdin().is_terminal() => {
            return Err("The stream does not come from a terminal; give a FILE, or a pipe".into());
        }
        None => {
            let stdin = io::stdin().as_fd().try_clone_to_owned()?;
            (Stream::new(stdin, interrupt)?, None)
        }
    };
    let client = attach(&options.socket, options.timeout)?;
    let migration = migration(&client, &options.socket)?;
    // Dropped on any way out of here, it resets the device.
    let mut loader = migration.load()?;
    moving.start = Instant::now();
    while !moving.interrupt.is_asked() {
        match loader.load_from(&mut source) {
            Ok(0) => break,
            Ok(length) => moving.moved += u64::try_from(length)?,
            Err(_) if moving.interrupt.is_asked() => break,
            Err(error) => return Err(error.into()),
        }
        moving.watch.stream(moving.moved, total);
    }
    // Also when the other end of the pipe was interrupted with this one.
    if moving.interrupt.is_asked() {
        loader.cancel()?;
        return Ok(End::Interrupted);
    }
    if moving.moved == 0 {
        loader.cancel()?;
        return Err("Nothing loaded, the device is reset: there is nothing in the stream".into());
    }
    loader.finish(true).map_err(|error| {
        let moved = size(moving.moved);
        let after = format!("Nothing loaded after {moved}, the device is reset");
        NotLoaded(after, error)
    })?;
    warn_of_reset(&client, &options.socket);
    Ok(End::Done)
}

/// What came to nothing, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotLoaded(String, #[source] vfio_user_client::Error);

/// A backend that resets its device when this tool leaves has nothing of what was loaded.
pub fn warn_of_reset(client: &Client, socket: &Path) {
    let device = &client.negotiated().device;
    if device
        .get("on disconnect")
        .is_some_and(|policy| policy == "reset")
    {
        let socket = socket.display();
        complain(&format!(
            "{socket}: this backend resets its device when a client leaves, now; start it with --on-disconnect keep"
        ));
    }
}
