// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much is still to be moved: the driver's figures, made safe, and kept up to date between asking.
//!
//! ```text
//! precopy   = initial + dirty
//! stop-copy = max(0, what a stop-copy would give - precopy)
//! total     = precopy + stop-copy
//! ```
//!
//! The same figures whether the device was just asked (exact) or not (estimate). Every figure of a driver
//! is an estimate that may grow, shrink, or be garbage; nothing may be allocated from one.

use std::time::{Duration, Instant};

use super::driver::PrecopyInfo;

/// The largest figure that is believed; drivers were seen to answer with negative numbers.
const MAX: u64 = i64::MAX.cast_unsigned();

/// What is still to be moved, in bytes. No figure and no sum is above `i64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Initial data of pre-copy.
    pub initial: u64,
    /// What changed since it was read.
    pub dirty: u64,
    /// What only the stopped device gives, beyond the two above.
    pub stop_copy: u64,
    /// The driver's figure for the last one is missing or garbage, and counts as 0.
    pub unknown: bool,
    /// How long ago the driver was asked.
    pub age: Duration,
}

impl Pending {
    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        (self.initial + self.dirty)
            .saturating_add(self.stop_copy)
            .min(MAX)
    }
}

/// The figures as last told, less what was read since.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    initial: u64,
    dirty: u64,
    /// Of a whole stop-copy from now on, what pre-copy would give included.
    whole: Option<u64>,
    asked: Instant,
}

impl Estimate {
    /// Nothing known at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            initial: 0,
            dirty: 0,
            whole: None,
            asked: now,
        }
    }

    /// Takes the driver's answer about pre-copy, at `now`. Where it could not say, what was last told goes on counting.
    /// What changed since comes on top of what only the stopped device gives, until the driver is asked for that too.
    pub fn told_precopy(&mut self, precopy: PrecopyInfo, now: Instant) {
        let beyond = self.whole.map(|whole| self.beyond(whole));
        self.initial = believed(precopy.initial).unwrap_or(0);
        // Two figures that can each be believed may still have a sum that cannot.
        self.dirty = believed(precopy.dirty).unwrap_or(0).min(MAX - self.initial);
        let grown = |beyond: u64| self.precopy().saturating_add(beyond).min(MAX);
        self.whole = beyond.map(grown);
        self.asked = now;
    }

    /// Takes the driver's answer about a whole stop-copy.
    pub fn told_whole(&mut self, whole: u64) {
        self.whole = believed(whole);
    }

    /// Pre-copy is over: what it had not given yet is part of the stop-copy.
    pub fn stopped(&mut self, now: Instant) {
        self.initial = 0;
        self.dirty = 0;
        self.asked = now;
    }

    /// Some bytes were read: initial data first, then what changed.
    pub fn read(&mut self, bytes: u64) {
        let of_initial = bytes.min(self.initial);
        self.initial -= of_initial;
        self.dirty = self.dirty.saturating_sub(bytes - of_initial);
        self.whole = self.whole.map(|whole| whole.saturating_sub(bytes));
    }

    /// Initial data that is left, as far as known.
    #[must_use]
    pub fn initial(&self) -> u64 {
        self.initial
    }

    fn precopy(&self) -> u64 {
        self.initial + self.dirty
    }

    /// Of a whole stop-copy, what pre-copy would not give.
    fn beyond(&self, whole: u64) -> u64 {
        whole.saturating_sub(self.precopy())
    }

    /// What is left at `now`.
    #[must_use]
    pub fn pending(&self, now: Instant) -> Pending {
        Pending {
            initial: self.initial,
            dirty: self.dirty,
            stop_copy: self.whole.map_or(0, |whole| self.beyond(whole)),
            unknown: self.whole.is_none(),
            age: now.saturating_duration_since(self.asked),
        }
    }
}

fn believed(bytes: u64) -> Option<u64> {
    (bytes <= MAX).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(initial: u64, dirty: u64) -> PrecopyInfo {
        PrecopyInfo {
            initial,
            dirty,
            reinit: false,
        }
    }

    fn told(estimate: &mut Estimate, precopy: PrecopyInfo, whole: u64) {
        estimate.told_precopy(precopy, Instant::now());
        estimate.told_whole(whole);
    }

    fn figures(estimate: &Estimate) -> (u64, u64, u64, u64, bool) {
        let pending = estimate.pending(Instant::now());
        let Pending {
            initial,
            dirty,
            stop_copy,
            unknown,
            ..
        } = pending;
        (initial, dirty, stop_copy, pending.total(), unknown)
    }

    #[test]
    fn what_the_driver_says_and_what_was_read_since() {
        let now = Instant::now();
        let mut estimate = Estimate::new(now);
        assert_eq!(figures(&estimate), (0, 0, 0, 0, true));
        told(&mut estimate, info(100, 50), 1000);
        assert_eq!(figures(&estimate), (100, 50, 850, 1000, false));
        estimate.read(30);
        assert_eq!(figures(&estimate), (70, 50, 850, 970, false));
        estimate.read(100);
        assert_eq!(figures(&estimate), (0, 20, 850, 870, false));
        estimate.read(500);
        assert_eq!(figures(&estimate), (0, 0, 370, 370, false));
        told(&mut estimate, info(0, 10), 5);
        assert_eq!(
            figures(&estimate),
            (0, 10, 0, 10, false),
            "stop-copy below pre-copy"
        );
        // VFIO_PRECOPY_INFO_REINIT: initial data again.
        told(&mut estimate, info(40, 0), 900);
        assert_eq!(figures(&estimate), (40, 0, 860, 900, false));
    }

    #[test]
    fn a_new_pass_takes_nothing_from_what_the_stopped_device_gives() {
        let mut estimate = Estimate::new(Instant::now());
        told(&mut estimate, info(1000, 0), 1500);
        estimate.read(1000);
        assert_eq!(figures(&estimate), (0, 0, 500, 500, false));
        estimate.told_precopy(info(0, 700), Instant::now());
        assert_eq!(figures(&estimate), (0, 700, 500, 1200, false));
        estimate.told_precopy(info(0, 100), Instant::now());
        assert_eq!(figures(&estimate), (0, 100, 500, 600, false));
    }

    #[test]
    fn what_stays_when_the_device_stops() {
        let mut estimate = Estimate::new(Instant::now());
        told(&mut estimate, info(100, 50), 1000);
        estimate.read(120);
        estimate.stopped(Instant::now());
        assert_eq!(figures(&estimate), (0, 0, 880, 880, false));
    }

    #[test]
    fn garbage_is_not_believed() {
        let mut estimate = Estimate::new(Instant::now());
        // Seen from a driver in the field.
        told(
            &mut estimate,
            info(18_446_744_073_708_667_040, 4096),
            u64::MAX,
        );
        assert_eq!(figures(&estimate), (0, 4096, 0, 4096, true));
        told(&mut estimate, info(MAX, MAX), MAX);
        assert_eq!(figures(&estimate), (MAX, 0, 0, MAX, false));
        told(&mut estimate, info(0, 0), 1 << 63);
        assert_eq!(figures(&estimate), (0, 0, 0, 0, true));
    }

    #[test]
    fn the_age_is_since_the_driver_was_asked() {
        let now = Instant::now();
        let mut estimate = Estimate::new(now);
        estimate.told_precopy(info(0, 1), now);
        estimate.read(1);
        let later = now + Duration::from_secs(3);
        assert_eq!(estimate.pending(later).age, Duration::from_secs(3));
        assert_eq!(
            estimate.pending(now - Duration::from_secs(1)).age,
            Duration::ZERO
        );
    }

    proptest! {
        #[test]
        fn no_answer_and_no_order_overflows(
            steps in proptest::collection::vec(
                (any::<bool>(), any::<u64>(), any::<u64>(), any::<Option<u64>>()), 0..20)
        ) {
            let mut estimate = Estimate::new(Instant::now());
            for (told, a, b, whole) in steps {
                if told {
                    estimate.told_precopy(info(a, b), Instant::now());
                    if let Some(whole) = whole {
                        estimate.told_whole(whole);
                    }
                } else {
                    estimate.read(a);
                }
                let pending = estimate.pending(Instant::now());
                prop_assert!(pending.total() <= MAX);
                prop_assert!(pending.initial + pending.dirty <= pending.total());
            }
        }
    }
}
