// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving the state of a model GPU: which parts of VRAM are to be sent, and the bytes of the stream.
//!
//! The client has VRAM mapped, so nobody hears of writes to it. A pass therefore looks at all of VRAM that takes
//! room and compares a hash of each granule with that of what was sent last; only bytes that were copied are hashed,
//! for what is shared may change between two looks. Kept are the hashes (2 MiB for 4 GiB of VRAM), three bits for each
//! granule, and two granules; pages of all of these are used only where VRAM takes room.
//!
//! ```text
//!   begin ─► first pass ──used up──► begin_pass ─► a pass over what changed ──used up─┐
//!              │                         ▲                        │                  │
//!              │                         └────────────────────────┼──────────────────┘
//!              └────────────── stop ─► last pass, with engine, display, lines, extra, end
//! ```

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;

use log::debug;
use rustix::io::Errno;
use vm_memory::VolatileSlice;
use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::IntoBytes;

use super::super::vram::{Vram, VramError, VramFault};
use super::format::{self, GRANULE, HEADER, Header, Kind, MAGIC, Start, VERSION};
use super::granules::Granules;
use super::{Parts, parts, pattern};
use crate::migration::Lent;

/// Bytes of ENGINE, DISPLAY and LINES.
const FIXED_TAIL: usize = 3 * HEADER
    + size_of::<format::Engine>()
    + size_of::<format::Display>()
    + size_of::<format::Lines>();

/// What is being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    /// Initial data.
    First,
    /// What changed.
    Changed,
    /// What changed since, and all the rest; the device is stopped.
    Last,
}

/// What follows the last pass over VRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Fixed,
    Extra,
    End,
    Over,
}

/// The way out for chunks that do not fit into what the reader offers.
#[derive(Debug)]
struct Stage {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What one step did.
enum Step {
    /// A chunk is staged.
    Staged,
    /// So many bytes were put straight where they were wanted.
    Direct(usize),
    /// There is no more, for now or at all.
    Nothing,
}

/// A stream that is being given.
#[derive(Debug)]
pub struct Saving {
    pass: Pass,
    tail: Tail,
    /// Send in this pass what did not change, too.
    again: bool,
    /// To be sent with their contents.
    todo: Granules,
    /// To be sent as zero.
    zeros: Granules,
    /// Bytes of VRAM whose chunk was begun in the last pass.
    run: Range<u64>,
    /// For each granule the hash of what the destination has; 0 for zeros.
    sent: Vec<u64>,
    hash: Hash,
    stage: Stage,
    extra: u64,
    extra_size: u64,
    /// ENGINE, DISPLAY and LINES as they were when the device stopped.
    fixed: Vec<u8>,
    /// For looking, beside the stage.
    look: Box<[u8]>,
}

/// Hashes of granules, with a seed that nobody else knows; that of zeros is 0.
#[derive(Debug)]
struct Hash {
    seed: u64,
    zeros: u64,
}

impl Hash {
    fn new() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        let zeros = xxh3_64_with_seed(&[0; GRANULE], seed);
        Self { seed, zeros }
    }

    fn of(&self, granule: &[u8]) -> u64 {
        xxh3_64_with_seed(granule, self.seed) ^ self.zeros
    }
}

impl Stage {
    fn new() -> Self {
        let bytes = vec![0; HEADER + GRANULE].into();
        Self {
            bytes,
            start: 0,
            end: 0,
        }
    }

    fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Stages a chunk whose payload was put into [`Self::payload`].
    fn chunk(&mut self, kind: Kind, offset: u64, payload: u64, length: usize) {
        let header = Header::new(kind, offset, payload);
        self.bytes[..HEADER].copy_from_slice(header.as_bytes());
        self.start = 0;
        self.end = (HEADER + length).min(self.bytes.len());
    }

    /// Where a payload of up to a granule is put.
    fn payload(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER..]
    }

    /// Stages bytes as they are.
    fn raw(&mut self, bytes: &[u8]) {
        let length = bytes.len().min(self.bytes.len());
        self.bytes[..length].copy_from_slice(&bytes[..length]);
        self.start = 0;
        self.end = length;
    }

    fn drain(&mut self, into: &VolatileSlice<'_>) -> usize {
        let length = self.len().min(into.len());
        into.copy_from(&self.bytes[self.start..self.start + length]);
        self.start += length;
        length
    }
}

impl Saving {
    /// Begins a stream. `stopped`: the device is, and what is given first is all there is.
    ///
    /// # Errors
    /// VRAM cannot be looked at.
    pub fn begin(parts: &Parts, extra_size: u64, stopped: bool) -> Result<Self, Errno> {
        let size = parts.vram.size();
        let granules = usize::try_from(size).map_err(|_| Errno::FBIG)? / GRANULE;
        let mut saving = Self {
            pass: Pass::First,
            tail: Tail::Fixed,
            again: false,
            todo: allocated(&parts.vram)?,
            zeros: Granules::new(granules),
            run: 0..0,
            // Zeros, of which the operating system gives pages only where they are written.
            sent: vec![0; granules],
            hash: Hash::new(),
            stage: Stage::new(),
            extra: 0,
            extra_size,
            fixed: Vec::new(),
            look: vec![0; GRANULE].into(),
        };
        if stopped {
            saving.pass = Pass::Last;
            saving.fixed = fixed_tail(parts);
        }
        let start = Start {
            magic: MAGIC,
            version: VERSION.into(),
            granule: u32::try_from(GRANULE).map_err(|_| Errno::FBIG)?.into(),
            vram_size: size.into(),
            extra_size: extra_size.into(),
            ..Start::default()
        };
        let length = start.as_bytes().len();
        saving.stage.payload()[..length].copy_from_slice(start.as_bytes());
        let payload = length as u64;
        saving.stage.chunk(Kind::Start, 0, payload, length);
        Ok(saving)
    }

    /// Begins another pass with what changed.
    ///
    /// # Errors
    /// ENODEV for a reset meanwhile, or VRAM cannot be looked at.
    pub fn begin_pass(&mut self, parts: &Parts) -> Result<(), Errno> {
        self.look(parts)?;
        self.pass = Pass::Changed;
        self.again = false;
        Ok(())
    }

    /// Begins again, with all of VRAM.
    ///
    /// # Errors
    /// VRAM cannot be looked at.
    pub fn begin_again(&mut self, parts: &Parts) -> Result<(), Errno> {
        self.todo = allocated(&parts.vram)?;
        self.pass = Pass::First;
        self.again = true;
        Ok(())
    }

    /// The device stopped: what changed since, what was not sent yet, and all that is not VRAM follow.
    ///
    /// # Errors
    /// As [`Self::begin_pass`].
    pub fn stop(&mut self, parts: &Parts) -> Result<(), Errno> {
        self.look(parts)?;
        self.pass = Pass::Last;
        self.again = false;
        self.fixed = fixed_tail(parts);
        Ok(())
    }

    /// About how many bytes the pass has left.
    #[must_use]
    pub fn pass_left(&self) -> u64 {
        let granules = (self.todo.len() as u64).saturating_mul((HEADER + GRANULE) as u64);
        let zeros = (self.zeros.len() as u64).saturating_mul(HEADER as u64);
        granules
            .saturating_add(zeros)
            .saturating_add(self.run_left())
            .saturating_add(self.stage.len() as u64)
    }

    /// Whether the pass sends initial data.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.pass == Pass::First
    }

    /// About how many bytes a device that stops now has left.
    #[must_use]
    pub fn left(&self) -> u64 {
        let extra = tail_size(self.extra_size.saturating_sub(self.extra));
        let tail = match self.tail {
            Tail::Fixed => extra,
            Tail::Extra => extra.saturating_sub(FIXED_TAIL as u64),
            Tail::End => HEADER as u64,
            Tail::Over => 0,
        };
        self.pass_left().saturating_add(tail)
    }

    /// Fills `into`, or as much of it as there is for now.
    ///
    /// # Errors
    /// ENODEV for a reset meanwhile; EIO where VRAM was lost.
    pub fn read(&mut self, into: &VolatileSlice<'_>, parts: &Parts) -> Result<usize, Errno> {
        let mut done = 0;
        while done < into.len() {
            let room = into.offset(done).map_err(|_| Errno::INVAL)?;
            if self.stage.len() > 0 {
                done += self.stage.drain(&room);
                continue;
            }
            match self.step(&room, parts)? {
                Step::Staged => {}
                Step::Direct(length) => done += length,
                Step::Nothing => break,
            }
        }
        Ok(done)
    }

    fn step(&mut self, room: &VolatileSlice<'_>, parts: &Parts) -> Result<Step, Errno> {
        if let Some((first, count)) = self.zeros.take_run(usize::MAX) {
            if let Some(sent) = self.sent.get_mut(first..first + count) {
                sent.fill(0);
            }
            self.stage_zeros(first, count);
            return Ok(Step::Staged);
        }
        if self.pass == Pass::Last {
            return self.step_last(room, parts);
        }
        while let Some((granule, _)) = self.todo.take_run(1) {
            parts.go_on()?;
            copy_out(&parts.vram, granule, self.stage.payload())?;
            let hash = self.hash.of(self.stage.payload());
            let Some(sent) = self.sent.get_mut(granule) else {
                continue;
            };
            // What both have as zero need never be sent.
            if hash == *sent && (!self.again || hash == 0) {
                continue;
            }
            *sent = hash;
            if hash == 0 {
                self.stage_zeros(granule, 1);
            } else {
                let offset = place(granule);
                self.stage
                    .chunk(Kind::Vram, offset, GRANULE as u64, GRANULE);
            }
            return Ok(Step::Staged);
        }
        Ok(Step::Nothing)
    }

    /// Nobody needs to know any more what was sent, so that nothing is hashed, and a chunk is as long as there are
    /// granules side by side.
    fn step_last(&mut self, room: &VolatileSlice<'_>, parts: &Parts) -> Result<Step, Errno> {
        parts.go_on()?;
        if !self.begin_run() {
            return Ok(self.step_tail());
        }
        if self.stage.len() > 0 {
            return Ok(Step::Staged);
        }
        let length = room.len().min(clamp(self.run_left()));
        let target = room.subslice(0, length).map_err(|_| Errno::INVAL)?;
        let read = parts.vram.read_file(self.run.start, &target);
        read.map_err(lost)?;
        self.run.start += length as u64;
        Ok(Step::Direct(length))
    }

    /// Begins the next chunk of the last pass unless one is under way; false if there is none.
    fn begin_run(&mut self) -> bool {
        if self.run.is_empty() {
            let Some((first, count)) = self.todo.take_run(usize::MAX) else {
                return false;
            };
            self.run = place(first)..place(first.saturating_add(count));
            let length = self.run_left();
            self.stage.chunk(Kind::Vram, self.run.start, length, 0);
        }
        true
    }

    fn run_left(&self) -> u64 {
        self.run.end.saturating_sub(self.run.start)
    }

    /// What comes next where it lies, `most` bytes at the most; `None` for what must be read.
    pub fn lend(&mut self, most: usize, parts: &Parts) -> Option<Lent> {
        parts.go_on().ok()?;
        if self.stage.len() > 0 || self.run.is_empty() {
            return None;
        }
        let length = most.min(clamp(self.run_left()));
        let lent = parts.vram.lend(self.run.start, length)?;
        self.run.start += length as u64;
        Some(lent)
    }

    fn step_tail(&mut self) -> Step {
        match self.tail {
            Tail::Fixed => {
                self.stage.raw(&self.fixed);
                self.tail = Tail::Extra;
            }
            Tail::Extra => {
                let left = self.extra_size.saturating_sub(self.extra);
                let length = usize::try_from(left).map_or(GRANULE, |left| left.min(GRANULE));
                if length == 0 {
                    self.tail = Tail::End;
                    return self.step_tail();
                }
                pattern::fill(self.extra, &mut self.stage.payload()[..length]);
                self.stage
                    .chunk(Kind::Extra, self.extra, length as u64, length);
                self.extra = self.extra.saturating_add(length as u64);
            }
            Tail::End => {
                self.stage.chunk(Kind::End, 0, 0, 0);
                self.tail = Tail::Over;
            }
            Tail::Over => return Step::Nothing,
        }
        Step::Staged
    }

    fn stage_zeros(&mut self, first: usize, count: usize) {
        let length = (count as u64).saturating_mul(GRANULE as u64);
        self.stage.chunk(Kind::Zero, place(first), length, 0);
    }

    /// Finds what differs from what the destination has.
    fn look(&mut self, parts: &Parts) -> Result<(), Errno> {
        let allocated = allocated(&parts.vram)?;
        for granule in 0..self.sent.len() {
            let Some(sent) = self.sent.get(granule).copied() else {
                break;
            };
            if !allocated.contains(granule) {
                self.sort(granule, sent, 0);
                continue;
            }
            // Never sent, and to be sent: there is nothing to compare with.
            if sent == 0 && self.todo.contains(granule) {
                continue;
            }
            parts.go_on()?;
            copy_out(&parts.vram, granule, &mut self.look)?;
            let now = self.hash.of(&self.look);
            self.sort(granule, sent, now);
        }
        Ok(())
    }

    /// Decides how a granule is sent.
    fn sort(&mut self, granule: usize, sent: u64, now: u64) {
        self.todo.remove(granule);
        self.zeros.remove(granule);
        match now {
            _ if now == sent => {}
            0 => self.zeros.insert(granule),
            _ => self.todo.insert(granule),
        }
    }
}

/// About how many bytes a device that stops now would give.
///
/// # Errors
/// VRAM cannot be looked at.
pub fn whole_size(vram: &Vram, extra_size: u64) -> Result<u64, Errno> {
    let granules = vram
        .allocated()
        .map_err(|error| refused(&error))?
        .div_ceil(GRANULE as u64);
    let start = (HEADER + size_of::<Start>()) as u64;
    Ok(granules
        .saturating_mul((HEADER + GRANULE) as u64)
        .saturating_add(start)
        .saturating_add(tail_size(extra_size)))
}

/// Bytes of all that follows VRAM, with so much EXTRA.
fn tail_size(extra: u64) -> u64 {
    let headers = extra.div_ceil(GRANULE as u64).saturating_mul(HEADER as u64);
    let rest = (FIXED_TAIL + HEADER) as u64;
    extra.saturating_add(headers).saturating_add(rest)
}

fn clamp(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

fn place(granule: usize) -> u64 {
    (granule as u64).saturating_mul(GRANULE as u64)
}

fn copy_out(vram: &Vram, granule: usize, into: &mut [u8]) -> Result<(), Errno> {
    vram.read(place(granule), into).map_err(lost)
}

fn allocated(vram: &Vram) -> Result<Granules, Errno> {
    let size = usize::try_from(vram.size()).map_err(|_| Errno::FBIG)?;
    let mut found = Granules::new(size / GRANULE);
    let granule = |at: u64| usize::try_from(at).unwrap_or(size) / GRANULE;
    vram.for_each_allocated(|range| {
        for granule in granule(range.start)..=granule(range.end.saturating_sub(1)) {
            found.insert(granule);
        }
    })
    .map_err(|error| refused(&error))?;
    Ok(found)
}

fn fixed_tail(parts: &Parts) -> Vec<u8> {
    let size = parts.vram.size();
    let engine = parts::engine(&parts.engine.save(), size);
    let display = parts::display(&parts.display());
    let lines = parts::lines(parts.lines.save());
    let chunks: [(Kind, &[u8]); 3] = [
        (Kind::Engine, engine.as_bytes()),
        (Kind::Display, display.as_bytes()),
        (Kind::Lines, lines.as_bytes()),
    ];
    let mut tail = Vec::with_capacity(FIXED_TAIL);
    for (kind, payload) in chunks {
        let header = Header::new(kind, 0, payload.len() as u64);
        tail.extend_from_slice(header.as_bytes());
        tail.extend_from_slice(payload);
    }
    tail
}

fn lost(fault: VramFault) -> Errno {
    debug!("VRAM cannot be saved: {fault}");
    Errno::IO
}

fn refused(error: &VramError) -> Errno {
    debug!("VRAM cannot be saved: {}", crate::report::chain(error));
    match error {
        VramError::Io { source, .. } => *source,
        _ => Errno::IO,
    }
}
