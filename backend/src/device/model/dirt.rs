// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The fault `dirty-rate`: a device that changes VRAM all the time, at a rate, while it may.
//!
//! One word of each granule is counted up, one granule after the other, so that any rate costs little.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use log::debug;

use super::engine::Engine;
use super::migration::GRANULE;
use super::vram::Vram;

/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(5);

/// The thread. Dropping this ends it.
#[derive(Debug)]
pub struct Dirt {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Dirt {
    /// Begins to change `rate` bytes of VRAM a second, while the engine is not held.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn new(rate: u64, vram: Arc<Vram>, engine: Arc<Engine>) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("model-gpu-dirt".into())
            .spawn(move || run(rate, &vram, &engine, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Dirt {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread does not panic; if it did, the panic was reported there.
            let _ = thread.join();
        }
    }
}

fn run(rate: u64, vram: &Vram, engine: &Engine, (stop, told): &(Mutex<bool>, Condvar)) {
    let granule = GRANULE as u64;
    let granules = vram.size() / granule;
    let mut due = 0_u64;
    let mut next = 0_u64;
    let mut last = Instant::now();
    let mut stopped = stop.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let waited = told.wait_timeout(stopped, TICK);
        stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
        let now = Instant::now();
        due = due.saturating_add(earned(rate, now - last));
        last = now;
        // More than all of it cannot change at once.
        let count = (due / granule).min(granules);
        due %= granule;
        let changed = engine.unless_held(|| {
            for number in next..next.saturating_add(count) {
                let offset = number % granules * granule;
                if let Err(fault) = vram.write(offset, &(number + 1).to_le_bytes()) {
                    debug!("VRAM is not changed: {fault}");
                }
            }
        });
        if changed {
            next = next.saturating_add(count);
        }
    }
}

/// What a rate of bytes a second comes to.
fn earned(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate).saturating_mul(time.as_nanos()) / 1_000_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(earned(1 << 30, Duration::from_millis(500)), 1 << 29);
        assert_eq!(earned(u64::MAX, Duration::from_secs(2)), u64::MAX);
        assert_eq!(earned(5, Duration::ZERO), 0);
    }
}
