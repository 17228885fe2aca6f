// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes that a guest repeats: once recognised, an eventfd can take them past this process.

use std::collections::VecDeque;

/// Repetitions after which a write is one (as QEMU counts).
const REPETITIONS: u32 = 10;
/// Doorbells that one region has at the most.
pub const MAX_DOORBELLS: usize = 10;
/// Different writes that are counted at a time.
const CANDIDATES: usize = 10;

/// A write that the device may be given by an eventfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// The region index.
    pub region: u32,
    /// Bytes from its start.
    pub offset: u64,
    /// Bytes written: 1, 2, 4 or 8.
    pub size: u8,
    /// What is written.
    pub data: u64,
}

impl Doorbell {
    /// The write, if it is of a width that an eventfd can stand for.
    pub(super) fn of(region: u32, offset: u64, bytes: &[u8]) -> Option<Self> {
        let size = u8::try_from(bytes.len()).ok()?;
        if !matches!(size, 1 | 2 | 4 | 8) {
            return None;
        }
        let mut data = [0; 8];
        for (byte, written) in data.iter_mut().zip(bytes) {
            *byte = *written;
        }
        Some(Self {
            region,
            offset,
            size,
            data: u64::from_le_bytes(data),
        })
    }
}

/// Counts the same writes.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    counted: VecDeque<(Doorbell, u32)>,
    found: Vec<Doorbell>,
}

impl Repeats {
    /// A write was seen.
    pub(super) fn count(&mut self, doorbell: Doorbell) {
        if self.found.len() >= MAX_DOORBELLS || self.found.contains(&doorbell) {
            return;
        }
        let known = self.counted.iter_mut().find(|(seen, _)| *seen == doorbell);
        let Some((_, times)) = known else {
            if self.counted.len() >= CANDIDATES {
                self.counted.pop_front();
            }
            self.counted.push_back((doorbell, 1));
            return;
        };
        *times += 1;
        if *times >= REPETITIONS {
            self.counted.retain(|(seen, _)| *seen != doorbell);
            self.found.push(doorbell);
        }
    }

    /// What was repeated often enough.
    pub(super) fn found(&self) -> &[Doorbell] {
        &self.found
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.counted.clear();
        self.found.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_found() {
        let mut repeats = Repeats::default();
        let ring = Doorbell::of(0, 0x8_8704, &[0; 4]).unwrap();
        let other = Doorbell::of(0, 0x8_8704, &[1, 0, 0, 0]).unwrap();
        for _ in 1..REPETITIONS {
            repeats.count(ring);
            repeats.count(other);
        }
        assert_eq!(repeats.found(), []);
        repeats.count(ring);
        assert_eq!(repeats.found(), [ring]);
        repeats.clear();
        repeats.count(other);
        assert_eq!(repeats.found(), []);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut repeats = Repeats::default();
        for offset in 0..1000 {
            for _ in 0..REPETITIONS {
                repeats.count(Doorbell::of(0, offset, &[0; 4]).unwrap());
            }
        }
        assert_eq!(repeats.found().len(), MAX_DOORBELLS);
        assert!(repeats.counted.len() <= CANDIDATES);
        assert_eq!(Doorbell::of(0, 0, &[0; 3]), None);
        assert_eq!(Doorbell::of(0, 0, &[0; 16]), None);
    }
}
