// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is still to be moved: a server's figures, made safe, or an estimate kept here for servers that have only the
//! size of a stop-copy.
//!
//! Drivers have answered with sizes that are negative numbers: above `i64::MAX` means unknown, and nothing is ever
//! allocated by any of them. Pure.

use std::time::{Duration, Instant};

use super::memory::to_u64;
use crate::protocol::extension::migration as wire;

/// The largest size that is one (`i64::MAX`).
const MOST: u64 = u64::MAX >> 1;

/// How much is still to be moved, in bytes; the same whether the device was asked or not. Each may grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// What the destination wants before the switch-over.
    pub initial: u64,
    /// What changed since it was moved.
    pub dirty: u64,
    /// What only a stopped device gives, beyond the two above.
    pub stop_copy: u64,
    /// All of the initial data has been read (source) or loaded (destination).
    pub initial_done: bool,
    /// The device does not say how much a stop-copy takes: there is more than this.
    pub unknown: bool,
    /// How long ago the device was asked.
    pub age: Duration,
}

impl Pending {
    /// A server's answer.
    pub(super) fn new(wire: &wire::Pending) -> Self {
        let sizes = [wire.initial_bytes, wire.dirty_bytes, wire.stop_copy_bytes].map(known);
        let [initial, dirty, stop_copy] = sizes.map(|size| size.unwrap_or(0));
        Self {
            initial,
            dirty,
            stop_copy,
            initial_done: wire.flags & wire::PENDING_INITIAL_DONE != 0,
            unknown: wire.flags & wire::PENDING_UNKNOWN != 0 || sizes.contains(&None),
            age: Duration::from_micros(wire.age_us),
        }
    }

    /// What can be moved while the device runs.
    #[must_use]
    pub fn precopy(&self) -> u64 {
        self.initial.saturating_add(self.dirty).min(MOST)
    }

    /// All of it; never above `i64::MAX`.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.precopy().saturating_add(self.stop_copy).min(MOST)
    }

    /// How long all of it takes at so many bytes a second: the downtime if the device stopped now. `None` where the
    /// device does not say how much it is; more than a `Duration` holds is its maximum.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "below 2^63, what is lost is less than a thousandth of a millionth"
    )]
    pub fn expected(&self, bytes_per_second: f64) -> Option<Duration> {
        if self.unknown {
            return None;
        }
        if self.total() == 0 {
            return Some(Duration::ZERO);
        }
        let seconds = self.total() as f64 / bytes_per_second;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

/// What pre-copy still has, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyInfo {
    /// Initial data not read yet.
    pub initial: u64,
    /// State that changed since it was read.
    pub dirty: u64,
    /// New initial data is on the stream.
    pub reinit: bool,
}

impl PrecopyInfo {
    pub(super) fn new(wire: &wire::PrecopyInfo) -> Self {
        Self {
            initial: known(wire.initial_bytes).unwrap_or(0),
            dirty: known(wire.dirty_bytes).unwrap_or(0),
            reinit: wire.flags & wire::PRECOPY_REINIT != 0,
        }
    }
}

/// A size, if it can be one.
pub(super) fn known(size: u64) -> Option<u64> {
    (size <= MOST).then_some(size)
}

/// The last figures of a device, less what was read since.
#[derive(Debug, Default)]
pub(super) struct Estimate {
    stop_copy_size: Option<u64>,
    precopy: PrecopyInfo,
    asked: Option<Instant>,
}

impl Estimate {
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_none()
    }

    pub(super) fn asked(&mut self, stop_copy_size: Option<u64>, precopy: PrecopyInfo) {
        *self = Self {
            stop_copy_size,
            precopy,
            asked: Some(Instant::now()),
        };
    }

    /// Initial data comes first; all of it counts towards the whole.
    pub(super) fn read(&mut self, bytes: usize) {
        let bytes = to_u64(bytes);
        self.stop_copy_size = self.stop_copy_size.map(|size| size.saturating_sub(bytes));
        let initial = bytes.min(self.precopy.initial);
        self.precopy.initial -= initial;
        self.precopy.dirty = self.precopy.dirty.saturating_sub(bytes - initial);
    }

    /// The device has nothing for now, whatever it had said.
    pub(super) fn nothing_for_now(&mut self) {
        self.precopy = PrecopyInfo::default();
    }

    pub(super) fn pending(&self, stopped: bool) -> Pending {
        let (initial, dirty) = match stopped {
            true => (0, 0),
            false => (self.precopy.initial, self.precopy.dirty),
        };
        let size = self.stop_copy_size;
        let precopy = initial.saturating_add(dirty);
        Pending {
            initial,
            dirty,
            stop_copy: size.map_or(0, |size| size.saturating_sub(precopy)),
            initial_done: initial == 0,
            unknown: size.is_none(),
            age: self.asked.map_or(Duration::ZERO, |asked| asked.elapsed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(sizes: [u64; 3], flags: u32) -> wire::Pending {
        wire::Pending {
            argsz: 48,
            flags,
            initial_bytes: sizes[0],
            dirty_bytes: sizes[1],
            stop_copy_bytes: sizes[2],
            // A server's sum is not believed.
            total_bytes: u64::MAX,
            age_us: 7,
        }
    }

    #[test]
    fn a_server_s_sizes_are_made_safe() {
        // 18446744073708667040 was seen on real hardware.
        let garbage = 18_446_744_073_708_667_040;
        for (sizes, precopy, total, unknown) in [
            ([1, 2, 3], 3, 6, false),
            ([0, 0, 0], 0, 0, false),
            ([garbage, 2, 3], 2, 5, true),
            ([1, u64::MAX, 3], 1, 4, true),
            ([1, 2, 1 << 63], 3, 3, true),
            ([MOST, MOST, MOST], MOST, MOST, false),
        ] {
            let pending = Pending::new(&wire(sizes, 0));
            assert_eq!(
                (pending.precopy(), pending.total(), pending.unknown),
                (precopy, total, unknown),
                "{sizes:x?}"
            );
            assert!(Pending::new(&wire(sizes, wire::PENDING_UNKNOWN)).unknown);
        }
        let pending = Pending::new(&wire([0; 3], wire::PENDING_INITIAL_DONE));
        assert!(pending.initial_done && pending.age == Duration::from_micros(7));
    }

    #[test]
    fn what_is_not_known_takes_no_time_that_could_be_told() {
        let pending = Pending {
            initial: 1000,
            stop_copy: 500,
            ..Pending::default()
        };
        assert_eq!(pending.expected(1000.0), Some(Duration::from_millis(1500)));
        assert_eq!(Pending::default().expected(0.0), Some(Duration::ZERO));
        for rate in [0.0, -1.0, f64::NAN, f64::MIN_POSITIVE] {
            assert_eq!(pending.expected(rate), Some(Duration::MAX), "{rate}");
        }
        for total in [0, 1000] {
            let pending = Pending {
                initial: total,
                unknown: true,
                ..Pending::default()
            };
            assert_eq!(pending.expected(1000.0), None);
        }
    }

    #[test]
    fn an_estimate_counts_down_initial_data_first() {
        let mut estimate = Estimate::default();
        assert!(estimate.is_empty() && estimate.pending(false).unknown);
        let precopy = PrecopyInfo {
            initial: 10,
            dirty: 20,
            reinit: false,
        };
        estimate.asked(Some(100), precopy);
        let figures = |estimate: &Estimate, stopped| {
            let pending = estimate.pending(stopped);
            [pending.initial, pending.dirty, pending.stop_copy]
        };
        assert_eq!(figures(&estimate, false), [10, 20, 70]);
        assert_eq!(estimate.pending(false).total(), 100, "counted once");
        estimate.read(4);
        assert_eq!(figures(&estimate, false), [6, 20, 70]);
        estimate.read(16);
        assert_eq!(figures(&estimate, false), [0, 10, 70]);
        assert!(estimate.pending(false).initial_done);
        estimate.nothing_for_now();
        assert_eq!(figures(&estimate, false), [0, 0, 80]);
        assert_eq!(figures(&estimate, true), [0, 0, 80]);
        estimate.read(usize::MAX);
        assert_eq!(figures(&estimate, true), [0, 0, 0]);
        // More of it can be read while it runs than a stop-copy is said to take.
        let precopy = PrecopyInfo {
            dirty: 500,
            ..PrecopyInfo::default()
        };
        estimate.asked(Some(100), precopy);
        assert_eq!(estimate.pending(false).total(), 500);
        estimate.asked(None, precopy);
        assert_eq!(estimate.pending(false).total(), 500);
        assert!(estimate.pending(false).unknown);
    }
}
