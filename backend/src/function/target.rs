// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who answers an access to a region other than config space: nobody, the device, the composed MSI-X structures, or
//! what a quirk says. Only tables are looked into here; acting on it is the function's.

use std::ops::Range;

use super::State;
use crate::device::region;
use crate::interrupts::Delivery;
use crate::pci::{BarState, PowerState};
use crate::quirks::{Handled, Place};

/// Who answers a piece of a BAR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Device,
    /// The MSI-X table, at this offset in it.
    Table(u64),
    /// The MSI-X pending bits, at this offset in them.
    Pending(u64),
    /// What this quirk says.
    Quirk(usize),
}

impl State {
    /// The region answers: its kind of decoding is on and the function is awake.
    fn decodes(&self, index: u32) -> bool {
        let command = self.config.command();
        let bar = u8::try_from(index)
            .ok()
            .and_then(|index| self.config.bar(index));
        let decoding = match bar {
            Some(BarState { bar, .. }) if !bar.is_memory() => command.io,
            None if index == region::VGA => command.io || command.memory,
            _ => command.memory,
        };
        decoding && self.config.power_state() == PowerState::D0
    }

    /// Whether an access to a region other than config space reaches anything.
    pub(super) fn answers(&self, index: u32) -> bool {
        self.decodes(index) || index > region::BAR5 && !self.config.is_live()
    }

    pub(super) fn ask_read(
        &mut self,
        owner: usize,
        region: u32,
        offset: u64,
        length: usize,
    ) -> Handled {
        let quirk = self.quirks.get(owner);
        quirk.map_or(Handled::Device, |quirk| {
            quirk.read(Place { region, offset }, length)
        })
    }

    pub(super) fn ask_write(
        &mut self,
        owner: usize,
        region: u32,
        offset: u64,
        data: &[u8],
    ) -> Handled {
        let quirk = self.quirks.get(owner);
        quirk.map_or(Handled::Device, |quirk| {
            quirk.write(Place { region, offset }, data)
        })
    }

    /// Which of an access's `length` bytes are config space, that follows `skip` bytes, from `at` in it; `None` for none.
    pub(super) fn config_part(
        &self,
        (skip, at): (u64, u64),
        length: usize,
    ) -> Option<Range<usize>> {
        let skip = usize::try_from(skip).ok()?;
        let left = length.checked_sub(skip)?;
        let room = (self.config.bytes().len() as u64).checked_sub(at)?;
        Some(skip..skip + fitting(room, left)).filter(|part| !part.is_empty())
    }

    /// How many of `length` bytes from `at` in a region have one target, and which.
    pub(super) fn target(&self, index: u32, at: u64, length: usize) -> (usize, Target) {
        let (length, target) = self.msix_target(index, at, length);
        if target != Target::Device {
            return (length, target);
        }
        let (length, owner) = self.quirks.at(index, at, length);
        (length, owner.map_or(Target::Device, Target::Quirk))
    }

    /// The same without quirks.
    fn msix_target(&self, index: u32, at: u64, length: usize) -> (usize, Target) {
        let Some((msix, table)) = &self.msix else {
            return (length, Target::Device);
        };
        // A real device's pending bits are its own, unless vectors are held back here.
        let own_pending = self.config.is_live() && self.delivery == Delivery::Armed;
        let vectors = u64::from(table.vectors());
        let windows = [
            (msix.table, vectors * 16, Target::Table as fn(u64) -> Target),
            (msix.pba, vectors.div_ceil(64) * 8, Target::Pending),
        ];
        let mut end = u64::MAX;
        for (place, size, target) in windows {
            if u32::from(place.bar) != index {
                continue;
            }
            let start = u64::from(place.offset);
            if (start..start + size).contains(&at) {
                let target = match target(at - start) {
                    Target::Pending(_) if own_pending => Target::Device,
                    target => target,
                };
                return (fitting(start + size - at, length), target);
            }
            if at < start {
                end = end.min(start);
            }
        }
        (fitting(end - at, length), Target::Device)
    }
}

/// The smaller of the two.
fn fitting(room: u64, length: usize) -> usize {
    usize::try_from(room).map_or(length, |room| room.min(length))
}
