// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that keeps changing VRAM while it is migrated: fills and copies of the engine, and writes through the
//! mapping, here and there. A VMM slows a guest down whose memory changes faster than it can be moved; so does this.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use vfio_user_client::mapping::RegionMapping;

use super::gpu::{Gpu, Place, Work};
use super::memory::GUEST;
use crate::report::Failure;

/// Bytes of one change.
const PIECE: u64 = 64 << 10;
/// Rest between changes, at full speed.
const REST: Duration = Duration::from_millis(2);
/// Passes at full speed.
const UNHURRIED: usize = 2;
/// The rest is never longer than so many times as at full speed.
const SLOWEST: u32 = 2048;

/// How the guest is told.
#[derive(Debug, Default)]
pub struct Control {
    stop: AtomicBool,
    /// How many times longer it rests.
    slower: AtomicU32,
}

impl Control {
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// So many passes did not do.
    pub fn passes(&self, number: usize) {
        let doublings = number.saturating_sub(UNHURRIED);
        let doublings = u32::try_from(doublings).unwrap_or(u32::MAX);
        let slower = 4_u32.checked_pow(doublings).unwrap_or(SLOWEST);
        self.slower.store(slower.min(SLOWEST), Ordering::Relaxed);
    }
}

/// Works until it is told to stop; how many commands the engine carried out. `used` bytes of VRAM change, from the
/// start; `source` bytes of guest memory are copied from.
pub fn run(
    gpu: &Gpu<'_>,
    vram: &RegionMapping,
    control: &Control,
    used: u64,
    source: u64,
) -> Result<u32, Failure> {
    let vectors = gpu.vectors()?;
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut commands: u32 = 0;
    while !control.stop.load(Ordering::Relaxed) {
        let to = numbers.piece(used);
        let pattern = numbers.word();
        let fill = Work::Fill { to, pattern };
        gpu.run(fill, PIECE, commands % vectors)?;
        let from = Place::Guest(GUEST + numbers.piece(source));
        let to = Place::Vram(numbers.piece(used));
        gpu.run(Work::Copy { from, to }, PIECE, (commands + 1) % vectors)?;
        commands += 2;
        let at = numbers.piece(used);
        for line in (at..at + PIECE).step_by(4096) {
            vram.write(line, u64::from(numbers.word()))?;
        }
        // Woken early when it is to stop.
        thread::park_timeout(REST.saturating_mul(control.slower.load(Ordering::Relaxed).max(1)));
    }
    Ok(commands)
}

/// Numbers that repeat only after very long (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn word(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap_or_default()
    }

    /// Where a piece of so many bytes begins.
    fn piece(&mut self, size: u64) -> u64 {
        self.next() % (size / PIECE).max(1) * PIECE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_inside_and_everywhere() {
        let mut numbers = Numbers(1);
        let mut seen = [false; 16];
        for _ in 0..1000 {
            let at = numbers.piece(16 * PIECE);
            seen[usize::try_from(at / PIECE).unwrap()] = true;
        }
        assert_eq!(seen, [true; 16]);
    }

    #[test]
    fn a_guest_is_slowed_down_after_a_while_and_not_for_ever() {
        let control = Control::default();
        let slower = |passes| {
            control.passes(passes);
            control.slower.load(Ordering::Relaxed)
        };
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 1000].map(slower),
            [1, 1, 4, 16, 64, 256, 2048]
        );
    }
}
