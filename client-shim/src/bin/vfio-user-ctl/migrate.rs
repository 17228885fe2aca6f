// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `migrate`: a device from one backend to another, with this tool as the client of both.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use vfio_user_client::migration::Migration;
use vfio_user_client::{Client, Error};

use crate::args::{self, Migrate};
use crate::interrupt::{INTERRUPTED, Interrupt};
use crate::report::{Failure, chain, complain, json as print_json, print};
use crate::transfer::timeline::Timeline;
use crate::transfer::watch::Watch;
use crate::transfer::{self, End, NoGuest, Plan, picture};
use crate::units::milliseconds_up;

/// It will not converge.
pub const STALLED: u8 = 3;

/// The limit where none is asked for.
const LIMIT: Duration = Duration::from_millis(300);

/// Migrates; the verdict is the exit code and, with `--json`, the object.
pub fn run(options: &Migrate) -> ExitCode {
    let mut timeline = Timeline::new();
    let outcome = migrate(options, &mut timeline);
    let (end, plan) = match outcome {
        Ok((end, plan)) => (end, plan),
        Err(error) => {
            let line = chain(error.as_ref());
            if options.json {
                let _ = print(&print_json(&object(&timeline, Some(&line), None)));
            }
            complain(&line);
            return ExitCode::FAILURE;
        }
    };
    let (code, line) = match end {
        End::Done => (0, None),
        End::Stalled(needs) => (STALLED, Some(transfer::explain(&needs, &plan))),
        End::Interrupted => {
            let line = "Interrupted: the source runs on, the destination is reset";
            (INTERRUPTED, Some(line.to_owned()))
        }
    };
    if options.json {
        let _ = print(&print_json(&object(&timeline, line.as_deref(), Some(&end))));
    } else if line.is_none() {
        let _ = print(&transfer::summary(&timeline, &plan));
    }
    if let Some(line) = line {
        complain(&line);
    }
    ExitCode::from(code)
}

fn migrate(options: &Migrate, timeline: &mut Timeline) -> Result<(End, Plan), Failure> {
    let plan = Plan {
        bandwidth: options.bandwidth,
        limit: options.downtime_limit.map_or(LIMIT, Duration::from_millis),
        strict: options.downtime_limit.is_some(),
        interrupt: Interrupt::catch()?,
    };
    // Before anything is moved: what cannot be reported is not begun.
    let report = options.report.as_deref().map(Report::open).transpose()?;
    let source = attach(&options.from, options.timeout)?;
    let destination = attach(&options.to, options.timeout)?;
    *timeline = Timeline::new();
    let watch = if options.json {
        Watch::Silent
    } else {
        Watch::new()
    };
    let from = migration(&source, &options.from)?;
    let to = migration(&destination, &options.to)?;
    let end = transfer::run(&from, &to, &plan, timeline, &watch, &mut NoGuest);
    watch.end();
    if let Some(report) = report {
        let title = format!("{} to {}", options.from.display(), options.to.display());
        if let Err(error) = report.write(&picture::render(&title, timeline, &plan)) {
            complain(&error.to_string());
        }
    }
    let end = end?;
    if end == End::Done {
        crate::snapshot::warn_of_reset(&destination, &options.to);
    }
    Ok((end, plan))
}

/// A file that can be written, and that has what it had before until it is.
#[derive(Debug)]
struct Report {
    path: PathBuf,
    file: File,
    /// It was not there: unless it is written, it goes again.
    new: bool,
}

impl Report {
    fn open(path: &Path) -> Result<Self, Failure> {
        let new = !path.exists();
        // Not emptied: a migration that does not begin has nothing to report.
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(path);
        let file = file.map_err(|error| cannot_write(path, &error))?;
        // Of a link that led nowhere only the file goes again. What a pipe is called leads nowhere either.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { path, file, new })
    }

    fn write(mut self, page: &str) -> Result<(), Failure> {
        self.new = false;
        let written = empty(&self.file).and_then(|()| self.file.write_all(page.as_bytes()));
        written.map_err(|error| cannot_write(&self.path, &error))
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if self.new {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Pipes and devices have nothing that could be cut.
fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(())
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    format!("Cannot write {}: {error}", path.display()).into()
}

/// Attaches with all that migration can use.
pub fn attach(socket: &Path, timeout: u64) -> Result<Client, Failure> {
    let client = Client::connect(socket, args::for_migration(timeout));
    client.map_err(|error| match error {
        error @ Error::Connect { .. } => error.into(),
        source => NotAttached {
            socket: socket.to_owned(),
            source,
        }
        .into(),
    })
}

/// Why a server is of no use, and which.
#[derive(Debug, thiserror::Error)]
#[error("{}", socket.display())]
struct NotAttached {
    socket: PathBuf,
    source: Error,
}

/// The migration of the device there.
pub fn migration(client: &Client, socket: &Path) -> Result<Migration, Failure> {
    let migration = client.migration()?;
    Ok(migration.ok_or_else(|| format!("{}: The device does not migrate", socket.display()))?)
}

fn object(timeline: &Timeline, error: Option<&str>, end: Option<&End>) -> Value {
    let mut object = timeline.object();
    let needs = match end {
        Some(End::Stalled(needs)) => json!({
            "downtime_limit_ms": needs
                .limit
                .and_then(|limit| u64::try_from(milliseconds_up(limit)).ok()),
            "bandwidth": needs.bandwidth,
        }),
        _ => Value::Null,
    };
    if let Some(object) = object.as_object_mut() {
        object.insert("ok".to_owned(), error.is_none().into());
        object.insert("error".to_owned(), error.into());
        object.insert("needs".to_owned(), needs);
    }
    object
}
