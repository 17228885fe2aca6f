// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a migration did over time: for the summary, `--json` and the picture. Pure but for the clock.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::report::milliseconds;
use crate::units::float;

/// More samples than this no picture shows.
const MOST: usize = 2000;

/// One look at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Since the beginning.
    pub at: Duration,
    /// Bytes moved so far.
    pub moved: u64,
    /// Bytes still to be moved, as far as known.
    pub remaining: u64,
    /// How long they take.
    pub expected: Option<Duration>,
}

/// One pass over what there was to move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// When it was over.
    pub at: Duration,
    pub bytes: u64,
    pub took: Duration,
    /// What the device then said.
    pub remaining: u64,
    pub expected: Option<Duration>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Timeline {
    start: Instant,
    pub samples: Vec<Sample>,
    /// The shortest time between two samples; grows with the migration.
    interval: Duration,
    pub passes: Vec<Pass>,
    /// Bytes moved.
    pub moved: u64,
    /// When the device stopped.
    pub switched_over: Option<Duration>,
    /// When the destination ran.
    pub ended: Option<Duration>,
    /// What was expected when it was decided to switch over, or not to.
    pub expected: Option<Duration>,
    /// From the stop of the source to the run of the destination.
    pub downtime: Option<Duration>,
}

impl Timeline {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            samples: Vec::new(),
            interval: Duration::from_millis(10),
            passes: Vec::new(),
            moved: 0,
            switched_over: None,
            ended: None,
            expected: None,
            downtime: None,
        }
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Whether it is time for another sample.
    pub fn is_due(&self) -> bool {
        let last = self.samples.last();
        last.is_none_or(|last| self.now().saturating_sub(last.at) >= self.interval)
    }

    /// Looks.
    pub fn sample(&mut self, remaining: u64, expected: Option<Duration>) -> Sample {
        let sample = Sample {
            at: self.now(),
            moved: self.moved,
            remaining,
            expected,
        };
        self.push(sample);
        sample
    }

    fn push(&mut self, sample: Sample) {
        self.samples.push(sample);
        if self.samples.len() > MOST {
            let mut number = 0;
            self.samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.interval = self.interval.saturating_mul(2);
        }
    }

    /// Bytes a second of the whole.
    pub fn throughput(&self) -> f64 {
        let took = self.ended.unwrap_or_else(|| self.now()).as_secs_f64();
        if took > 0.0 {
            float(self.moved) / took
        } else {
            0.0
        }
    }

    /// What programs are told.
    pub fn object(&self) -> Value {
        let pass = |pass: &Pass| {
            json!({
                "bytes": pass.bytes,
                "ms": milliseconds(pass.took),
                "remaining": pass.remaining,
                "expected_downtime_ms": pass.expected.map(milliseconds),
            })
        };
        let last = self.passes.last();
        json!({
            "bytes": self.moved,
            "passes": self.passes.len(),
            "downtime_ms": self.downtime.map(milliseconds),
            "expected_downtime_ms": self.expected.map(milliseconds),
            "throughput_mib_s": self.throughput() / 1_048_576.0,
            "total_ms": self.ended.map(milliseconds),
            "remaining": match self.ended {
                Some(_) => Some(0),
                None => last.map(|pass| pass.remaining),
            },
            "each_pass": self.passes.iter().map(pass).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_thinned_out_from_end_to_end() {
        let mut timeline = Timeline::new();
        let at = |n| Duration::from_millis(n);
        for n in 0..100_000 {
            timeline.push(Sample {
                at: at(n),
                moved: n,
                remaining: 0,
                expected: None,
            });
        }
        assert!(timeline.samples.len() <= MOST);
        assert_eq!(timeline.samples[0].at, at(0));
        assert!(timeline.samples.last().unwrap().at > at(90_000));
        assert!(timeline.samples.is_sorted_by(|a, b| a.at < b.at));
        assert!(timeline.interval > Duration::from_millis(100));
    }

    #[test]
    fn programs_are_told_what_is_not_known_as_null() {
        let object = Timeline::new().object();
        assert_eq!(object["downtime_ms"], Value::Null);
        assert_eq!(object["remaining"], Value::Null);
        assert_eq!(object["bytes"], 0);
    }
}
