// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Resets that have begun and not ended: while there is one, nobody can say which state the device is in.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many resets are under way.
#[derive(Debug, Default)]
pub(super) struct Resetting {
    count: Mutex<usize>,
    /// Told when there is none left.
    ended: Condvar,
}

/// One reset, under way until this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay<'a>(&'a Resetting);

impl Resetting {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One begins.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        *self.count() += 1;
        UnderWay(self)
    }

    /// Whether there is one.
    pub(super) fn any(&self) -> bool {
        *self.count() > 0
    }

    /// Waits until there is none.
    pub(super) fn wait(&self) {
        let none = self.ended.wait_while(self.count(), |count| *count > 0);
        drop(none.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count();
        *count -= 1;
        if *count == 0 {
            self.0.ended.notify_all();
        }
    }
}
