// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Config space behind an address and a data register in an I/O BAR.
//!
//! The guest writes an address of the chip's register space and accesses the data register; where the address
//! falls on a mirror of config space, that access is for the composed one.

use std::ops::Range;

use super::{Handled, Place, Quirk, Window};

/// Addresses that show config space: `base`, and so many bytes from there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub base: u32,
    pub size: u32,
}

/// Two registers whose lowest bit must be set in both for the window to be open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gate {
    pub master: u64,
    pub enable: u64,
}

/// A pair of registers in a BAR.
#[derive(Debug)]
pub(super) struct ConfigWindow {
    name: &'static str,
    region: u32,
    address: u64,
    data: u64,
    gate: Option<Gate>,
    matches: Vec<Match>,
    /// As the guest wrote them: address, master, enable.
    latched: [u32; 3],
}

const WIDTH: u64 = 4;
const ADDRESS: usize = 0;
const MASTER: usize = 1;
const ENABLE: usize = 2;

impl ConfigWindow {
    pub(super) fn new(
        name: &'static str,
        region: u32,
        (address, data): (u64, u64),
        gate: Option<Gate>,
        matches: Vec<Match>,
    ) -> Self {
        Self {
            name,
            region,
            address,
            data,
            gate,
            matches,
            latched: [0; 3],
        }
    }

    fn register(at: u64) -> Range<u64> {
        at..at.saturating_add(WIDTH)
    }

    /// Which of the latched registers is at an offset.
    fn latch(&self, offset: u64) -> Option<(usize, u64)> {
        let gate = self.gate;
        [
            (ADDRESS, Some(self.address)),
            (MASTER, gate.map(|gate| gate.master)),
            (ENABLE, gate.map(|gate| gate.enable)),
        ]
        .into_iter()
        .find_map(|(index, at)| {
            let at = at?;
            Self::register(at)
                .contains(&offset)
                .then(|| (index, offset - at))
        })
    }

    fn is_open(&self) -> bool {
        let [_, master, enable] = self.latched;
        self.gate.is_none() || master & enable & 1 != 0
    }

    /// What an access to the data register means, that begins so many bytes into it.
    fn through(&self, into: u64) -> Handled {
        let [address, ..] = self.latched;
        let hit = self
            .matches
            .iter()
            .find(|m| self.is_open() && address >= m.base && address - m.base < m.size);
        match hit {
            Some(m) => Handled::Config(u64::from(address - m.base).saturating_add(into)),
            None => Handled::Device,
        }
    }
}

impl Quirk for ConfigWindow {
    fn name(&self) -> &'static str {
        self.name
    }

    fn windows(&self) -> Vec<Window> {
        let gate = self.gate.map(|gate| [gate.master, gate.enable]);
        let registers = gate.into_iter().flatten().chain([self.address, self.data]);
        registers
            .map(|at| Window {
                region: self.region,
                range: Self::register(at),
            })
            .collect()
    }

    fn read(&mut self, place: Place, _length: usize) -> Handled {
        if Self::register(self.data).contains(&place.offset) {
            return self.through(place.offset - self.data);
        }
        Handled::Device
    }

    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        if let Some((index, into)) = self.latch(place.offset) {
            let into = usize::try_from(into).unwrap_or(usize::MAX);
            if let Some(latched) = self.latched.get_mut(index) {
                let mut bytes = latched.to_le_bytes();
                for (byte, new) in bytes.iter_mut().skip(into).zip(data) {
                    *byte = *new;
                }
                *latched = u32::from_le_bytes(bytes);
            }
            return Handled::Device;
        }
        if Self::register(self.data).contains(&place.offset) {
            return self.through(place.offset - self.data);
        }
        Handled::Device
    }

    fn reset(&mut self) {
        self.latched = [0; 3];
    }

    fn save(&self) -> Vec<u8> {
        self.latched
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn can_restore(&self, saved: &[u8]) -> bool {
        saved.len() == size_of_val(&self.latched)
    }

    fn restore(&mut self, saved: &[u8]) {
        for (word, bytes) in self.latched.iter_mut().zip(saved.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
}
