// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! No more bytes a second than asked for. Pure: the caller tells the time and sleeps.

use std::time::{Duration, Instant};

use crate::units::float;

/// How far it may fall behind and catch up, so that a late wake-up costs nothing.
const SLACK: Duration = Duration::from_millis(20);

/// A link of a certain bandwidth.
#[derive(Clone, Debug)]
pub struct Pace {
    bytes_per_second: f64,
    /// When the link is free again.
    free: Instant,
}

impl Pace {
    /// A link that is free at `now`.
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: float(bytes_per_second.max(1)),
            free: now,
        }
    }

    /// Puts so many bytes on the link at `now`: how long until they have arrived.
    pub fn send(&mut self, bytes: u64, now: Instant) -> Duration {
        let earliest = now.checked_sub(SLACK).unwrap_or(now);
        let took = Duration::try_from_secs_f64(float(bytes) / self.bytes_per_second);
        let took = took.unwrap_or(Duration::MAX);
        let start = self.free.max(earliest);
        match start.checked_add(took) {
            Some(free) => {
                self.free = free;
                free.saturating_duration_since(now)
            }
            None => Duration::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn bytes_take_their_time() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000_000, start);
        assert_eq!(pace.send(1000, start), ms(1));
        assert_eq!(pace.send(1000, start), ms(2), "behind the first");
        // Woken late: what was lost is made up for.
        assert_eq!(pace.send(100_000, start + ms(10)), ms(92));
        // Idle: what was not used is gone, but for the slack.
        assert_eq!(pace.send(100_000, start + ms(10_000)), ms(80));
        assert_eq!(pace.send(0, start + ms(20_000)), ms(0));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let start = Instant::now();
        let mut pace = Pace::new(0, start);
        assert!(pace.send(u64::MAX, start) > ms(1000));
        let mut pace = Pace::new(u64::MAX, start);
        assert_eq!(pace.send(1 << 20, start + ms(100)), Duration::ZERO);
    }
}
