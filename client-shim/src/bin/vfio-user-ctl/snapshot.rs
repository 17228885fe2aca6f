// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `save` and `load`: the stream of one device to and from a file or pipe.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;
use vfio_user_client::Client;
use vfio_user_client::migration::{Progress, Saver};

use crate::args::{Load, Save};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::migrate::{attach, migration};
use crate::report::{Failure, chain, json as print_json, milliseconds, print};
use crate::transfer::convergence::{Convergence, Decision};
use crate::transfer::watch::Watch;
use crate::units::{size, time};

/// A live save goes over to the stop-copy once the rest takes no longer than this, or does not get less.
const LIMIT: Duration = Duration::from_millis(100);

/// One stream under way.
struct Stream {
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

impl Stream {
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
            Some(failure) => eprintln!("vfio-user-ctl: {failure}"),
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
    with_stream(options.json, "saved", out, |stream| {
        save_to(options, stream)
    })
}

/// Loads a device; it runs afterwards.
pub fn load(options: &Load) -> ExitCode {
    with_stream(options.json, "loaded", Out::Stdout, |stream| {
        load_from(options, stream)
    })
}

fn with_stream(
    json: bool,
    what: &str,
    out: Out,
    act: impl FnOnce(&mut Stream) -> Result<End, Failure>,
) -> ExitCode {
    match Stream::new(json) {
        Ok(mut stream) => {
            let end = act(&mut stream);
            stream.told(what, end, json, out)
        }
        Err(error) => {
            eprintln!("vfio-user-ctl: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn save_to(options: &Save, stream: &mut Stream) -> Result<End, Failure> {
    let mut sink: OwnedFd = match &options.output {
        Some(path) => File::create(path)
            .map_err(|error| format!("Cannot write {}: {error}", path.display()))?
            .into(),
        None if io::stdout().is_terminal() => {
            return Err("The stream is not for a terminal; give -o FILE, or a pipe".into());
        }
        None => io::stdout().as_fd().try_clone_to_owned()?,
    };
    let client = attach(&options.socket, options.timeout)?;
    let migration = migration(&client, &options.socket)?;
    let before = migration.state()?;
    // Dropped on any way out of here, it cancels: the device goes on.
    let mut saver = migration.save(options.live)?;
    stream.start = Instant::now();
    if options.live && migration.support().pre_copy {
        stream.converge(&mut saver, &mut sink)?;
    }
    if !stream.interrupt.is_asked() {
        let stopped = Instant::now();
        saver.switch_over()?;
        stream.pass(&mut saver, &mut sink)?;
        stream.stopped = Some(stopped.elapsed());
    }
    if stream.interrupt.is_asked() {
        saver.cancel()?;
        return Ok(End::Interrupted);
    }
    saver.finish()?;
    migration.set_state(before)?;
    Ok(End::Done)
}

impl Stream {
    /// Passes while the device runs, until the rest is little or does not get less.
    fn converge(&mut self, saver: &mut Saver, sink: &mut OwnedFd) -> Result<(), Failure> {
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
    fn pass(&mut self, saver: &mut Saver, sink: &mut OwnedFd) -> Result<(), Failure> {
        while !self.interrupt.is_asked() {
            match saver.iterate(sink)? {
                Progress::Data(bytes) => self.moved += bytes,
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

fn load_from(options: &Load, stream: &mut Stream) -> Result<End, Failure> {
    let (mut source, total): (OwnedFd, _) = match &options.file {
        Some(path) => {
            let file = File::open(path)
                .map_err(|error| format!("Cannot read {}: {error}", path.display()))?;
            let total = file.metadata().ok().map(|metadata| metadata.len());
            (file.into(), total)
        }
        None if io::stdin().is_terminal() => {
            return Err("The stream does not come from a terminal; give a FILE, or a pipe".into());
        }
        None => (io::stdin().as_fd().try_clone_to_owned()?, None),
    };
    let client = attach(&options.socket, options.timeout)?;
    let migration = migration(&client, &options.socket)?;
    // Dropped on any way out of here, it resets the device.
    let mut loader = migration.load()?;
    stream.start = Instant::now();
    while !stream.interrupt.is_asked() {
        match loader.load_from(&mut source)? {
            0 => break,
            length => stream.moved += u64::try_from(length)?,
        }
        stream.watch.stream(stream.moved, total);
    }
    // Also when the other end of the pipe was interrupted with this one.
    if stream.interrupt.is_asked() {
        loader.cancel()?;
        return Ok(End::Interrupted);
    }
    if stream.moved == 0 {
        loader.cancel()?;
        return Err("Nothing loaded, the device is reset: there is nothing in the stream".into());
    }
    loader.finish(true).map_err(|error| {
        let moved = size(stream.moved);
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
        eprintln!(
            "vfio-user-ctl: {socket}: this backend resets its device when a client leaves, now; start it with \
             --on-disconnect keep"
        );
    }
}
