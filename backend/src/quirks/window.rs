// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Config space behind an address and a data register in an I/O BAR.
//!
//! The guest writes an address of the chip's register space and accesses the data register; where the address
//! falls on a mirror of config space, that access is for the composed one. An access of which any byte does is never
//! the hardware's: what is not config space then reads zero. While it is not certain what address the
//! hardware has, which is so until the guest writes one, no access gets through. Whether switches of the hardware close
//! the window does not matter: what they keep from the guest, the guest may have of the composition.

use std::ops::Range;

use super::{Handled, Place, Quirk, Window};

/// Addresses that show config space: `base`, and so many bytes from there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub base: u32,
    pub size: u32,
    /// Bytes of config space that there are; behind them the guest sees nothing of the hardware's.
    pub config_size: u64,
}

impl Match {
    /// What an access to so many bytes from `address` means; `None` if none of them falls here.
    fn answer(&self, address: u64, length: u64) -> Option<Handled> {
        let base = u64::from(self.base);
        let end = address.saturating_add(length);
        if end <= base || address >= base + u64::from(self.size) {
            return None;
        }
        Some(match address.checked_sub(base) {
            Some(at) if at >= self.config_size => Handled::Fixed(0),
            Some(at) if end - base <= self.config_size => Handled::Config(at),
            Some(at) => Handled::ConfigEdge { skip: 0, at },
            None => Handled::ConfigEdge {
                skip: base - address,
                at: 0,
            },
        })
    }
}

/// The address register as the guest wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Latch {
    value: u32,
    /// The hardware has the same one. Only a write of the whole register tells.
    certain: bool,
}

impl Latch {
    /// What the guest left in a function like this one.
    pub(super) fn restored(value: u32) -> Self {
        Self {
            value,
            certain: false,
        }
    }

    pub(super) fn value(self) -> u32 {
        self.value
    }

    /// The guest writes to the register, so many bytes into it.
    pub(super) fn write(&mut self, into: u64, data: &[u8]) {
        let into = usize::try_from(into).unwrap_or(usize::MAX);
        let mut bytes = self.value.to_le_bytes();
        for (byte, new) in bytes.iter_mut().skip(into).zip(data) {
            *byte = *new;
        }
        self.value = u32::from_le_bytes(bytes);
        self.certain = into == 0 && data.len() >= bytes.len();
    }

    /// What an access to so many bytes of the data register means, that begins so many bytes into it.
    pub(super) fn through(self, matches: &[Match], into: u64, length: usize) -> Handled {
        let address = u64::from(self.value).saturating_add(into);
        let hit = matches
            .iter()
            .find_map(|m| m.answer(address, length as u64));
        let elsewhere = if self.certain {
            Handled::Device
        } else {
            UNCERTAIN
        };
        hit.unwrap_or(elsewhere)
    }
}

/// What a data register answers that may show anything: as if nobody were there.
pub(super) const UNCERTAIN: Handled = Handled::Fixed(0xff);

/// A pair of registers in a BAR.
#[derive(Debug)]
pub(super) struct ConfigWindow {
    name: &'static str,
    region: u32,
    address: u64,
    data: u64,
    matches: Vec<Match>,
    latch: Latch,
}

const WIDTH: u64 = 4;
/// What earlier versions saved of the two switches of a window and looked at: both on.
const SWITCHES: [u32; 2] = [1; 2];

impl ConfigWindow {
    pub(super) fn new(
        name: &'static str,
        region: u32,
        (address, data): (u64, u64),
        matches: Vec<Match>,
    ) -> Self {
        Self {
            name,
            region,
            address,
            data,
            matches,
            latch: Latch::default(),
        }
    }

    fn register(at: u64) -> Range<u64> {
        at..at.saturating_add(WIDTH)
    }

    /// What an access to either register means.
    fn answer(&self, place: Place, length: usize) -> Handled {
        match place.offset.checked_sub(self.data) {
            Some(into) if into < WIDTH => self.latch.through(&self.matches, into, length),
            _ => Handled::Device,
        }
    }
}

impl Quirk for ConfigWindow {
    fn name(&self) -> &'static str {
        self.name
    }

    fn windows(&self) -> Vec<Window> {
        [self.address, self.data]
            .map(|at| Window {
                region: self.region,
                range: Self::register(at),
            })
            .to_vec()
    }

    fn read(&mut self, place: Place, length: usize) -> Handled {
        self.answer(place, length)
    }

    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        if Self::register(self.address).contains(&place.offset) {
            self.latch.write(place.offset - self.address, data);
        }
        self.answer(place, data.len())
    }

    fn reset(&mut self) {
        self.latch = Latch::default();
    }

    fn save(&self) -> Vec<u8> {
        let words = [self.latch.value()].into_iter().chain(SWITCHES);
        words.flat_map(u32::to_le_bytes).collect()
    }

    fn can_restore(&self, saved: &[u8]) -> bool {
        saved.len() == size_of::<u32>() + size_of_val(&SWITCHES)
    }

    fn restore(&mut self, saved: &[u8]) {
        if let Some(value) = saved.first_chunk() {
            self.latch = Latch::restored(u32::from_le_bytes(*value));
        }
    }
}
