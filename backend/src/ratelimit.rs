// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bounds how often a line that a guest or client can provoke reaches the log.

use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines in a row.
const BURST: u32 = 10;
/// How long one line takes to be earned again.
const REFILL: Duration = Duration::from_secs(1);

/// A bucket of log lines.
#[derive(Debug)]
pub struct RateLimit {
    left: u32,
    refilled: Instant,
    passed_over: u64,
}

/// How many lines were not written since the last one; prints nothing for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedOver(u64);

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more such lines not written)"),
        }
    }
}

/// For the whole process: who leaves and comes back has not earned new lines.
static PEER_LINES: LazyLock<Mutex<RateLimit>> = LazyLock::new(Mutex::default);

/// Whether a line that whoever reaches the socket can provoke may be written now, and how many were not
/// since the last.
pub fn peer_line() -> Option<PassedOver> {
    let mut limit = PEER_LINES.lock().unwrap_or_else(PoisonError::into_inner);
    limit.allow()
}

/// [`log::log`] for such lines.
macro_rules! peer_log {
    ($level:ident, $($line:tt)+) => {
        if log::log_enabled!(log::Level::$level)
            && let Some(passed_over) = $crate::ratelimit::peer_line()
        {
            log::log!(log::Level::$level, "{}{passed_over}", format_args!($($line)+));
        }
    };
}

pub(crate) use peer_log;

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            left: BURST,
            refilled: Instant::now(),
            passed_over: 0,
        }
    }
}

impl RateLimit {
    /// Whether a line may be written now, and how many were not since the last.
    pub fn allow(&mut self) -> Option<PassedOver> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&mut self, now: Instant) -> Option<PassedOver> {
        let earned = now.saturating_duration_since(self.refilled).as_secs() / REFILL.as_secs();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
            self.left = (self.left + earned).min(BURST);
            self.refilled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(PassedOver(std::mem::take(&mut self.passed_over)))
            }
            None => {
                self.passed_over += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_a_second() {
        let start = Instant::now();
        let mut limit = RateLimit {
            left: BURST,
            refilled: start,
            passed_over: 0,
        };
        assert_eq!(
            (0..100).filter(|_| limit.allow_at(start).is_some()).count(),
            10
        );
        let later = start + Duration::from_secs(1);
        assert_eq!(limit.allow_at(later), Some(PassedOver(90)));
        assert_eq!(limit.allow_at(later), None);
    }
}
