// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When to switch over: once what is still to be moved can be moved within the limit, and never on a guess.
//!
//! Expected downtime = all that is pending / bandwidth. The limit that was expected makes it converge at once. Pure:
//! the caller measures.

use std::time::Duration;

use vfio_user_client::migration::Pending;

use crate::units::{float, whole};

/// Passes in a row that do not lower the expected downtime before a migration counts as stalled.
const PATIENCE: u32 = 5;
/// A pass that lowers it by less than one part in so many does not count, or a device could have it go on for ever.
const LEAST_PROGRESS: u32 = 1000;
/// Fewer bytes than this say nothing of a bandwidth: their time is that of the messages.
const LEAST: f64 = 1_048_576.0;
/// A given bandwidth is no longer believed once so many bytes took this much longer than they should: something
/// other than the link is slow.
const SLOW_AFTER: f64 = 16.0 * LEAST;
const SLOW_BELOW: f64 = 0.8;

/// Follows a migration pass by pass.
#[derive(Clone, Debug)]
pub struct Convergence {
    limit: Duration,
    /// What cannot be predicted is not risked.
    strict: bool,
    /// Bytes a second, as given.
    given: Option<f64>,
    /// What was measured.
    bytes: f64,
    seconds: f64,
    passes: u32,
    /// The lowest so far, and how many passes ago.
    lowest: Duration,
    since: u32,
}

/// What to do after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Move on while the device runs.
    GoOn,
    /// Stop the device and move the rest.
    SwitchOver,
    /// It does not get any lower.
    Stalled(Needs),
}

/// Why a migration does not converge, and what would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes that remain.
    pub remaining: u64,
    /// A limit that is enough at this bandwidth; `None` where that cannot be predicted.
    pub limit: Option<Duration>,
    /// Bytes a second that are enough for this limit; `None` where none is (a limit of 0), or nobody knows.
    pub bandwidth: Option<u64>,
    /// The destination has not acknowledged, or initial data is left.
    pub not_ready: bool,
    /// The device does not say how much a stop-copy takes.
    pub unknown: bool,
}

impl Convergence {
    /// `bandwidth` in bytes a second where it is known; else it is measured. Also where it is known, what is measured
    /// counts once that is clearly less. Unless `strict`, what cannot be predicted is risked.
    pub fn new(limit: Duration, bandwidth: Option<u64>, strict: bool) -> Self {
        Self {
            limit,
            strict,
            given: bandwidth.map(float).filter(|rate| *rate > 0.0),
            bytes: 0.0,
            seconds: 0.0,
            passes: 0,
            lowest: Duration::MAX,
            since: 0,
        }
    }

    /// So many bytes were moved in this time.
    pub fn moved(&mut self, bytes: u64, took: Duration) {
        if bytes > 0 {
            self.bytes += float(bytes);
            self.seconds += took.as_secs_f64();
        }
    }

    /// Bytes a second; `None` before anything is known (a MiB has to be moved for that).
    pub fn bandwidth(&self) -> Option<f64> {
        let measured = self.bytes / self.seconds;
        let slow = |given: f64| self.bytes >= SLOW_AFTER && measured < given * SLOW_BELOW;
        let rate = match self.given {
            Some(given) if !slow(given) => Some(given),
            _ => (self.bytes >= LEAST).then_some(measured),
        };
        rate.filter(|rate| rate.is_finite() && *rate > 0.0)
    }

    /// How long it takes to move so much. `None` before a bandwidth is known, and where the device does not say how
    /// much it is.
    pub fn expected(&self, pending: &Pending) -> Option<Duration> {
        match self.bandwidth() {
            // Nothing takes no time over any link.
            None if pending.total() > 0 => None,
            rate => pending.expected(rate.unwrap_or_default()),
        }
    }

    /// How long it takes at the most: what few bytes took is mostly the time of their messages.
    fn at_worst(&self, pending: &Pending) -> Option<Duration> {
        let measured = (self.bytes > 0.0).then(|| self.bytes / self.seconds);
        let slowest = || pending.expected(measured?);
        self.expected(pending).or_else(slowest)
    }

    /// A pass is over: `pending` as the device says now, `ready` as the destination says.
    pub fn pass_ended(&mut self, pending: &Pending, ready: bool) -> Decision {
        self.passes = self.passes.saturating_add(1);
        let known_part = Pending {
            unknown: pending.unknown && self.strict,
            ..*pending
        };
        let expected = self.expected(&known_part);
        let ready = ready && pending.initial_done && pending.initial == 0;
        // Nothing was moved and nothing is known of the way: a limit means nothing yet.
        let known = self.given.is_some() || self.bytes > 0.0 || self.passes > 1;
        let at_worst = self.at_worst(&known_part);
        if ready && known && at_worst.is_some_and(|at_worst| at_worst <= self.limit) {
            return Decision::SwitchOver;
        }
        let expected = expected.unwrap_or(Duration::MAX);
        if expected < self.lowest.saturating_sub(self.lowest / LEAST_PROGRESS) {
            self.lowest = expected;
            self.since = 0;
        } else {
            self.since = self.since.saturating_add(1);
        }
        if self.since < PATIENCE {
            return Decision::GoOn;
        }
        let needs = self.needs(pending, ready);
        // There is no better moment that could be told.
        if ready && !self.strict && needs.limit.is_none() {
            return Decision::SwitchOver;
        }
        Decision::Stalled(needs)
    }

    /// What it would take to switch over with so much pending.
    fn needs(&self, pending: &Pending, ready: bool) -> Needs {
        let remaining = pending.total();
        let seconds = self.limit.as_secs_f64();
        let bandwidth = (float(remaining) / seconds).ceil();
        Needs {
            remaining,
            limit: self
                .expected(pending)
                .filter(|needed| *needed != Duration::MAX),
            bandwidth: (seconds > 0.0 && !pending.unknown).then(|| whole(bandwidth)),
            not_ready: !ready,
            unknown: pending.unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn pending(total: u64) -> Pending {
        Pending {
            stop_copy: total,
            initial_done: true,
            ..Pending::default()
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The last decision of a migration that stays where it is, and the passes until then.
    fn settle(limit: Duration, bandwidth: Option<u64>, total: u64) -> (Decision, u32) {
        let mut convergence = Convergence::new(limit, bandwidth, true);
        loop {
            match convergence.pass_ended(&pending(total), true) {
                Decision::GoOn => assert!(convergence.passes < 100),
                decision => return (decision, convergence.passes),
            }
        }
    }

    /// The two scenes that were reported: 1.91 GiB at 1 GiB/s, and 309 MB at 950 Mbit/s.
    #[test]
    fn reported_scenes_come_out_as_reported() {
        let scenes = [
            (GIB * 191 / 100, GIB, ms(1900), ms(1910), ms(1911)),
            (309_000_000, 950_000_000 / 8, ms(2600), ms(2602), ms(3000)),
        ];
        for (total, bandwidth, below, expected, above) in scenes {
            let (decision, _) = settle(below, Some(bandwidth), total);
            let Decision::Stalled(needs) = decision else {
                panic!("{below:?}: {decision:?}")
            };
            assert_eq!(needs.remaining, total);
            let needed = needs.limit.unwrap();
            assert!(needed.abs_diff(expected) < ms(1), "{needed:?}");
            assert!(!needs.not_ready);
            // Each way out that is named is one, at once.
            assert_eq!(
                settle(needed, Some(bandwidth), total),
                (Decision::SwitchOver, 1)
            );
            assert_eq!(
                settle(below, needs.bandwidth, total),
                (Decision::SwitchOver, 1)
            );
            assert_eq!(
                settle(above, Some(bandwidth), total),
                (Decision::SwitchOver, 1)
            );
        }
    }

    #[test]
    fn bandwidth_is_measured_where_none_was_given() {
        let mut convergence = Convergence::new(ms(100), None, true);
        assert_eq!(convergence.bandwidth(), None);
        assert_eq!(convergence.expected(&pending(1)), None);
        assert_eq!(convergence.expected(&pending(0)), Some(Duration::ZERO));
        convergence.moved(0, ms(1000));
        assert_eq!(convergence.bandwidth(), None, "time without bytes");
        convergence.moved((1 << 20) - 1, ms(500));
        assert_eq!(convergence.bandwidth(), None, "too little to tell");
        convergence.moved((3 << 20) + 1, ms(500));
        assert_eq!(convergence.bandwidth(), Some(f64::from(4 << 20)));
        assert_eq!(convergence.expected(&pending(2 << 20)), Some(ms(500)));
        let mut given = Convergence::new(ms(100), Some(1000), true);
        given.moved(1 << 40, ms(1));
        assert_eq!(given.bandwidth(), Some(1000.0));
        // A link of 100 MiB/s, and a device that gives 80, then less.
        let mut slow = Convergence::new(ms(100), Some(100 << 20), true);
        slow.moved(80 << 20, ms(1000));
        assert_eq!(slow.bandwidth(), Some(f64::from(100 << 20)));
        slow.moved(40 << 20, ms(1000));
        assert_eq!(slow.bandwidth(), Some(f64::from(60 << 20)));
    }

    #[test]
    fn strange_measurements_are_no_bandwidth() {
        for (bytes, took, expected) in [
            (1 << 30, Duration::ZERO, None),
            (1, Duration::MAX, None),
            (1 << 30, Duration::MAX, Some(true)),
            (u64::MAX, Duration::from_nanos(1), Some(true)),
        ] {
            let mut convergence = Convergence::new(ms(1), Some(0), true);
            convergence.moved(bytes, took);
            assert_eq!(
                convergence.bandwidth().map(|rate| rate > 0.0),
                expected,
                "{bytes} {took:?}"
            );
            // Nothing panics, and nothing is promised.
            let _ = convergence.expected(&pending(u64::MAX >> 1));
            let _ = convergence.pass_ended(&pending(u64::MAX >> 1), true);
        }
        let mut slow = Convergence::new(ms(1), None, true);
        slow.moved(1 << 20, Duration::MAX);
        assert_eq!(slow.expected(&pending(u64::MAX >> 1)), Some(Duration::MAX));
        assert_eq!(slow.needs(&pending(GIB), true).limit, None);
    }

    #[test]
    fn nothing_is_decided_from_nothing() {
        let mut convergence = Convergence::new(ms(300), None, true);
        let first = convergence.pass_ended(&pending(0), true);
        assert_eq!(first, Decision::GoOn, "nothing moved, nothing known");
        let second = convergence.pass_ended(&pending(0), true);
        assert_eq!(second, Decision::SwitchOver, "there really is nothing");
        assert!(matches!(
            settle(ms(300), None, 1).0,
            Decision::Stalled(Needs { limit: None, .. })
        ));
        assert!(matches!(
            settle(Duration::ZERO, Some(GIB), 1).0,
            Decision::Stalled(Needs {
                bandwidth: None,
                ..
            })
        ));
    }

    #[test]
    fn a_size_that_is_not_known_is_risked_by_request_only() {
        for (total, rate) in [(0, Some(GIB)), (1000, Some(GIB)), (0, None)] {
            let pending = Pending {
                unknown: true,
                ..pending(total)
            };
            let mut strict = Convergence::new(ms(300), rate, true);
            assert_eq!(strict.expected(&pending), None, "{total}");
            let decision = (0..PATIENCE).map(|_| strict.pass_ended(&pending, true));
            let needs = Needs {
                remaining: total,
                limit: None,
                bandwidth: None,
                not_ready: false,
                unknown: true,
            };
            assert_eq!(decision.last(), Some(Decision::Stalled(needs)));
            let mut other = Convergence::new(ms(300), rate, false);
            assert_eq!(other.expected(&pending), None, "risked, not promised");
            let mut decisions = (0..2).map(|_| other.pass_ended(&pending, true));
            assert!(decisions.any(|decision| decision == Decision::SwitchOver));
        }
        // Nor is one that does not get any lower waited for, whatever it is.
        let pending = Pending {
            unknown: true,
            ..pending(GIB)
        };
        let mut other = Convergence::new(ms(300), Some(GIB), false);
        let last = (0..=PATIENCE)
            .map(|_| other.pass_ended(&pending, true))
            .last();
        assert_eq!(last, Some(Decision::SwitchOver));
    }

    #[test]
    fn few_bytes_tell_what_it_takes_at_the_most() {
        let mut convergence = Convergence::new(ms(100), None, true);
        convergence.moved(1000, ms(1));
        assert_eq!(convergence.expected(&pending(50_000)), None);
        let decision = convergence.clone().pass_ended(&pending(50_000), true);
        assert_eq!(decision, Decision::SwitchOver);
        let decision = convergence.pass_ended(&pending(200_000), true);
        assert_eq!(decision, Decision::GoOn, "it may be fast enough, who knows");
    }

    #[test]
    fn initial_data_and_the_destination_are_waited_for() {
        let not_done = Pending {
            initial_done: false,
            ..pending(1)
        };
        let some_left = Pending {
            initial: 1,
            ..pending(1)
        };
        for (pending, ready) in [(pending(1), false), (not_done, true), (some_left, true)] {
            let mut convergence = Convergence::new(ms(300), Some(GIB), true);
            for _ in 0..PATIENCE {
                assert_eq!(convergence.pass_ended(&pending, ready), Decision::GoOn);
            }
            match convergence.pass_ended(&pending, ready) {
                Decision::Stalled(needs) => assert!(needs.not_ready),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn hardly_lower_is_not_lower() {
        let mut convergence = Convergence::new(ms(1), Some(1 << 20), false);
        let ends = (0..1_000_000_u64).any(|pass| {
            let decision = convergence.pass_ended(&pending((1 << 40) - pass), true);
            matches!(decision, Decision::Stalled(_))
        });
        assert!(ends);
        assert_eq!(convergence.passes, 1 + PATIENCE);
    }

    #[test]
    fn it_stalls_once_no_pass_lowers_it() {
        let mut convergence = Convergence::new(ms(1), Some(1000), true);
        // Down, a little up and down again, and then up and down above the lowest.
        for total in [900, 800, 850, 840, 830, 820, 700, 900, 720, 701, 700] {
            let decision = convergence.pass_ended(&pending(total), true);
            assert_eq!(decision, Decision::GoOn, "{total}");
        }
        let decision = convergence.pass_ended(&pending(750), true);
        let needs = Needs {
            remaining: 750,
            limit: Some(ms(750)),
            bandwidth: Some(750_000),
            not_ready: false,
            unknown: false,
        };
        assert_eq!(decision, Decision::Stalled(needs));
    }
}
