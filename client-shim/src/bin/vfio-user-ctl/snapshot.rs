// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `save` and `load`: the stream of one device to and from a file or pipe.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use vfio_user_client::Client;
use vfio_user_client::migration::{Convergence, Decision, Migration, Progress, Saver};
use vfio_user_client::protocol::migration::MigrationState;

use crate::args::{Load, Save};
use crate::interrupt::Interrupt;
use crate::migrate::{attach, migration};
use crate::report::Failure;
use crate::transfer::watch::Watch;
use crate::units::size;

/// A live save goes over to the stop-copy once the rest takes no longer than this, or does not get less.
const LIMIT: Duration = Duration::from_millis(100);

/// How a transfer that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    Interrupted,
}

/// Saves the device; it goes on afterwards.
pub fn save(options: &Save) -> Result<End, Failure> {
    let mut stream: OwnedFd = match &options.output {
        Some(path) => File::create(path)
            .map_err(|error| format!("Cannot write {}: {error}", path.display()))?
            .into(),
        None if io::stdout().is_terminal() => {
            return Err("The stream is not for a terminal; give -o FILE, or a pipe".into());
        }
        None => io::stdout().as_fd().try_clone_to_owned()?,
    };
    let interrupt = Interrupt::catch()?;
    let client = attach(&options.socket, options.timeout)?;
    let migration = migration(&client, &options.socket)?;
    let before = migration.state()?;
    let watch = Watch::new();
    // Dropped on any way out of here, it cancels: the device goes on.
    let mut saver = migration.save(options.live)?;
    let start = Instant::now();
    let mut moved = 0;
    let mut down = None;
    if !options.live
        || !migration.support().pre_copy
        || converge(&mut saver, &mut stream, &interrupt, &watch, &mut moved)?
    {
        down = Some(Instant::now());
        saver.switch_over()?;
        stretch(&mut saver, &mut stream, &interrupt, &watch, &mut moved)?;
    }
    if interrupt.is_asked() {
        watch.end();
        saver.cancel()?;
        return Ok(End::Interrupted);
    }
    saver.finish()?;
    go_on(&migration, before)?;
    let stood = down.map(|down| down.elapsed()).unwrap_or_default();
    let what = format!("saved, device stopped for {}", crate::units::time(stood));
    watch.end_stream(&what, moved, start.elapsed());
    Ok(End::Done)
}

/// The device goes on as it did before it was saved.
fn go_on(migration: &Migration, before: MigrationState) -> Result<(), Failure> {
    Ok(migration.set_state(before)?)
}

/// Passes while the device runs, until the rest is little or does not get less. False if interrupted.
fn converge(
    saver: &mut Saver,
    stream: &mut OwnedFd,
    interrupt: &Interrupt,
    watch: &Watch,
    moved: &mut u64,
) -> Result<bool, Failure> {
    let mut convergence = Convergence::new(LIMIT, None);
    loop {
        let start = Instant::now();
        let before = *moved;
        stretch(saver, stream, interrupt, watch, moved)?;
        if interrupt.is_asked() {
            return Ok(false);
        }
        convergence.moved(*moved - before, start.elapsed());
        match convergence.pass_ended(&saver.pending(true)?, true) {
            Decision::GoOn => {}
            Decision::SwitchOver | Decision::Stalled(_) => return Ok(true),
        }
    }
}

/// Passes the stream on until there is nothing for now, or nothing more.
fn stretch(
    saver: &mut Saver,
    stream: &mut OwnedFd,
    interrupt: &Interrupt,
    watch: &Watch,
    moved: &mut u64,
) -> Result<(), Failure> {
    while !interrupt.is_asked() {
        match saver.iterate(stream)? {
            Progress::Data(bytes) => *moved += bytes,
            Progress::Idle | Progress::End => break,
        }
        if let Watch::Bar(_) = watch {
            let left = saver.pending(false)?.total();
            watch.stream(*moved, Some(moved.saturating_add(left)));
        }
    }
    Ok(())
}

/// Loads a device; it runs afterwards.
pub fn load(options: &Load) -> Result<End, Failure> {
    let (mut stream, total): (OwnedFd, _) = match &options.file {
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
    let interrupt = Interrupt::catch()?;
    let client = attach(&options.socket, options.timeout)?;
    let migration = migration(&client, &options.socket)?;
    let watch = Watch::new();
    // Dropped on any way out of here, it resets the device.
    let mut loader = migration.load()?;
    let start = Instant::now();
    let mut moved: u64 = 0;
    loop {
        if interrupt.is_asked() {
            watch.end();
            loader.cancel()?;
            return Ok(End::Interrupted);
        }
        match loader.load_from(&mut stream)? {
            0 => break,
            length => moved += u64::try_from(length)?,
        }
        watch.stream(moved, total);
    }
    if moved == 0 {
        watch.end();
        loader.cancel()?;
        return Err("Nothing loaded, the device is reset: there is nothing in the stream".into());
    }
    let finished = loader.finish(true);
    watch.end();
    finished.map_err(|error| {
        let after = format!("Nothing loaded after {}, the device is reset", size(moved));
        NotLoaded(after, error)
    })?;
    watch.end_stream("loaded", moved, start.elapsed());
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
