// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What particular GPUs need beside a composed config space: parts of BARs that show it too, and registers
//! that hold what is the host's own.
//!
//! | file | job |
//! |---|---|
//! | `mirror.rs`, `window.rs` | the two ways in which a BAR shows config space: at an offset, or by address and data |
//! | `nvidia.rs`, `nvidia/`, `amd.rs` | where those are, and what else these boards do |
//! | `igd/` | Intel graphics in the processor: generations, OpRegion, stolen memory |
//! | `doorbells.rs` | writes that are repeated so often that an eventfd had better take them |
//! | `specific.rs` | device-specific regions that the client gets to read |
//!
//! A quirk is found once, when the function is composed. Each is a state machine without I/O: it says who
//! answers an access ([`Handled`]), and the function in front of the device sees to it. An access that no
//! quirk wants costs a look into the windows of its region, of which most functions have none.

mod amd;
mod doorbells;
pub mod igd;
mod mirror;
mod nvidia;
mod specific;
mod window;

#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;

use crate::device::region;
use crate::memory::AddressSpace;
use crate::pci::{ConfigSpace, Identity};
pub use doorbells::{Doorbell, MAX_DOORBELLS};
pub use specific::{SpecificKind, SpecificRegion};

const VENDOR_AMD: u16 = 0x1002;
const VENDOR_NVIDIA: u16 = 0x10de;
const VENDOR_INTEL: u16 = 0x8086;
/// Base class and subclass of a VGA compatible controller.
const CLASS_VGA: u32 = 0x0300;
/// Base class of every display controller.
const CLASS_DISPLAY: u32 = 0x03;

/// A part of a region whose accesses a quirk is asked about. The pages it lies in are never mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The region index.
    pub region: u32,
    /// Bytes from its start.
    pub range: Range<u64>,
}

/// Where an access is. It lies inside one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The region index.
    pub region: u32,
    /// Bytes from its start.
    pub offset: u64,
}

/// Who answers an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The device, as if there were no quirk.
    Device,
    /// The composed config space, at this offset.
    Config(u64),
    /// The composed config space, across its start or its end. Bytes on the other side read zero and take no
    /// writes.
    ConfigEdge {
        /// Bytes of the access before config space.
        skip: u64,
        /// Where in config space the access then goes on, as far as that reaches.
        at: u64,
    },
    /// Both. The device is read first, for what that does to it, and its answer thrown away; it is written
    /// last.
    ConfigAndDevice(u64),
    /// Nobody: each byte reads so, and takes no writes.
    Fixed(u8),
}

/// What a quirk may look at, and reach, when config space was written.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The composed config space, as written.
    pub config: &'a ConfigSpace,
    /// The guest memory that the device reaches.
    pub memory: &'a AddressSpace,
}

/// One quirk of one function.
///
/// Called with the function locked, in the order of the guest's accesses. Nothing here may block.
pub trait Quirk: Send + fmt::Debug {
    /// Its name, for people and for migration.
    fn name(&self) -> &'static str;

    /// The parts of regions it is asked about; the same each time.
    fn windows(&self) -> Vec<Window> {
        Vec::new()
    }

    /// The guest reads so many bytes in one of its windows.
    fn read(&mut self, place: Place, length: usize) -> Handled {
        let _ = (place, length);
        Handled::Device
    }

    /// The guest writes in one of its windows.
    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        let _ = (place, data);
        Handled::Device
    }

    /// The guest wrote these bytes of config space, which has the values already.
    fn config_written(&mut self, context: Context<'_>, range: Range<u64>) {
        let _ = (context, range);
    }

    /// Writes that the device would better take from an eventfd.
    fn doorbells(&self) -> Vec<Doorbell> {
        Vec::new()
    }

    /// The function was reset.
    fn reset(&mut self) {}

    /// What it remembers of the guest's accesses, for another function like this one.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Whether [`Self::restore`] would take these bytes.
    fn can_restore(&self, saved: &[u8]) -> bool {
        saved.is_empty()
    }

    /// Takes over what another saved, which was checked.
    fn restore(&mut self, saved: &[u8]) {
        let _ = saved;
    }
}

/// What decides which quirks a function has.
#[derive(Clone, Debug)]
pub struct Traits {
    /// What the device itself says it is.
    pub own: Identity,
    /// What the guest is told.
    pub shown: Identity,
    /// Bytes of each region up to [`region::VGA`].
    pub sizes: [u64; region::COUNT as usize],
    /// BARs with 64 bits.
    pub wide: [bool; 6],
    /// BARs in I/O space.
    pub io: [bool; 6],
    /// Bytes of config space.
    pub config_size: u64,
    /// Where the MSI capability is that the guest sees.
    pub msi: Option<u64>,
    /// Which of [`mirror_candidates`] show the device's own ids.
    pub ids_at: Vec<u64>,
}

/// Where in BAR0 this device may show config space, as its reading there the device's own ids tells.
#[must_use]
pub fn mirror_candidates(traits: &Traits) -> Vec<u64> {
    nvidia::candidates(traits)
}

impl Traits {
    /// Device and guest are asked: trapping too much is safe, and a changed identity changes no hardware.
    fn is(&self, vendor: u16, class: impl Fn(u32) -> bool) -> bool {
        [&self.own, &self.shown]
            .into_iter()
            .any(|ids| ids.vendor_id == vendor && class(ids.class_code >> 8))
    }

    fn is_vga(&self, vendor: u16) -> bool {
        self.is(vendor, |class| class == CLASS_VGA)
    }

    fn is_display(&self, vendor: u16) -> bool {
        self.is(vendor, |class| class >> 8 == CLASS_DISPLAY)
    }

    fn size(&self, index: u32) -> u64 {
        let size = usize::try_from(index).ok();
        size.and_then(|index| self.sizes.get(index))
            .copied()
            .unwrap_or(0)
    }

    fn is_wide(&self, bar: usize) -> bool {
        self.wide.get(bar).copied().unwrap_or(false)
    }

    fn is_io(&self, bar: usize) -> bool {
        self.io.get(bar).copied().unwrap_or(false)
    }
}

/// The quirks of one function.
#[derive(Debug, Default)]
pub struct Quirks {
    list: Vec<Box<dyn Quirk>>,
    /// By region: the windows in order, and whose they are.
    windows: [Vec<(Range<u64>, usize)>; region::COUNT as usize],
}

impl Quirks {
    /// The quirks that a function with these traits has, beside those in `more`.
    #[must_use]
    pub fn find(traits: &Traits, more: Vec<Box<dyn Quirk>>) -> Self {
        let mut list = nvidia::quirks(traits);
        list.extend(amd::quirks(traits));
        list.extend(more);
        Self::new(list, &traits.sizes)
    }

    /// Windows are cut to their regions; of two that overlap the first quirk has the bytes.
    fn new(list: Vec<Box<dyn Quirk>>, sizes: &[u64]) -> Self {
        let mut windows: [Vec<(Range<u64>, usize)>; region::COUNT as usize] = Default::default();
        for (owner, quirk) in list.iter().enumerate() {
            for Window { region, range } in quirk.windows() {
                let index = usize::try_from(region).unwrap_or(usize::MAX);
                let (Some(here), Some(&size)) = (windows.get_mut(index), sizes.get(index)) else {
                    continue;
                };
                let range = range.start..range.end.min(size);
                let taken = |(other, _): &(Range<u64>, usize)| {
                    other.start < range.end && range.start < other.end
                };
                if range.start < range.end && !here.iter().any(taken) {
                    here.push((range, owner));
                }
            }
        }
        for here in &mut windows {
            here.sort_by_key(|(range, _)| range.start);
        }
        Self { list, windows }
    }

    /// How many of `length` bytes from `at` in a region have one answer, and which quirk is to be asked.
    #[must_use]
    pub fn at(&self, region: u32, at: u64, length: usize) -> (usize, Option<usize>) {
        let index = usize::try_from(region).ok();
        let Some(windows) = index.and_then(|index| self.windows.get(index)) else {
            return (length, None);
        };
        // The first window that does not end before the access.
        let Some((range, owner)) = windows.iter().find(|(range, _)| at < range.end) else {
            return (length, None);
        };
        let (end, owner) = if at < range.start {
            (range.start, None)
        } else {
            (range.end, Some(*owner))
        };
        let room = usize::try_from(end - at).unwrap_or(length);
        (room.min(length), owner)
    }

    /// The trapped parts of a region.
    pub fn trapped(&self, region: u32) -> impl Iterator<Item = Range<u64>> + '_ {
        let index = usize::try_from(region).ok();
        let windows = index.and_then(|index| self.windows.get(index));
        windows
            .into_iter()
            .flatten()
            .map(|(range, _)| range.clone())
    }

    /// One of them, as [`Self::at`] named it.
    pub fn get(&mut self, owner: usize) -> Option<&mut (dyn Quirk + 'static)> {
        self.list.get_mut(owner).map(|quirk| &mut **quirk)
    }

    /// Their names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.list.iter().map(|quirk| quirk.name())
    }

    /// See [`Quirk::config_written`].
    pub fn config_written(&mut self, context: Context<'_>, range: &Range<u64>) {
        for quirk in &mut self.list {
            quirk.config_written(context, range.clone());
        }
    }

    /// See [`Quirk::doorbells`].
    #[must_use]
    pub fn doorbells(&self) -> Vec<Doorbell> {
        self.list
            .iter()
            .flat_map(|quirk| quirk.doorbells())
            .collect()
    }

    /// See [`Quirk::reset`].
    pub fn reset(&mut self) {
        for quirk in &mut self.list {
            quirk.reset();
        }
    }

    /// Of each quirk that has something to say: its name, with its length (u8), and its bytes, with theirs
    /// (u32, little endian).
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for quirk in &self.list {
            let saved = quirk.save();
            let lengths = (u8::try_from(quirk.name().len()), u32::try_from(saved.len()));
            if let ((Ok(name), Ok(length)), false) = (lengths, saved.is_empty()) {
                bytes.push(name);
                bytes.extend_from_slice(quirk.name().as_bytes());
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(&saved);
            }
        }
        bytes
    }

    /// Whether [`Self::restore`] would take these bytes.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub fn check(&self, saved: &[u8]) -> Result<(), String> {
        for (name, bytes) in sections(saved).ok_or("Quirks: their state is cut short")? {
            let known = self.list.iter().find(|quirk| quirk.name() == name);
            match known {
                None => return Err(format!("Quirk {name:?} is not there")),
                Some(quirk) if !quirk.can_restore(bytes) => {
                    return Err(format!("Quirk {name:?}: its state makes no sense"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Takes over what another function's quirks saved, which was checked.
    pub fn restore(&mut self, saved: &[u8]) {
        for (name, bytes) in sections(saved).unwrap_or_default() {
            let known = self.list.iter_mut().find(|quirk| quirk.name() == name);
            if let Some(quirk) = known {
                quirk.restore(bytes);
            }
        }
    }
}

/// Names and bytes of [`Quirks::save`]; `None` for bytes that are no such list.
fn sections(mut rest: &[u8]) -> Option<Vec<(&str, &[u8])>> {
    let mut sections = Vec::new();
    while let Some((&length, after)) = rest.split_first() {
        let (name, after) = after.split_at_checked(length.into())?;
        let (length, after) = after.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (bytes, after) = after.split_at_checked(length)?;
        sections.push((std::str::from_utf8(name).ok()?, bytes));
        rest = after;
    }
    Some(sections)
}
