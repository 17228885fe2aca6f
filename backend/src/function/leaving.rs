// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a function does when its client has left.

use std::io;

use super::{Function, State};
use crate::device::{Error, ResetCause};
use crate::interrupts::{Delivery, IrqConfig};

impl Function {
    /// The client is gone: bus mastering off, interrupts off, the device reset if asked for, and the client's
    /// memory gone, in that order: a driver that is telling what was written holds the memory until it is reset.
    /// Every step is taken, whatever an earlier one says.
    ///
    /// # Errors
    /// What the device says, of the reset first.
    pub fn disconnect(&self, reset: bool) -> Result<(), Error> {
        let mut state = self.state();
        let stopped = self.silence_device(&mut state);
        let done = if reset {
            self.reset_locked(&mut state, ResetCause::Disconnect)
        } else {
            Ok(())
        };
        let unmapped = self.forget_memory();
        if !reset {
            // Bus mastering went off behind the composition's back.
            self.refresh(&mut state);
            self.update_interrupts(&mut state);
        }
        self.device.set_delivery(Delivery::default());
        self.migration.forget();
        done.and(unmapped).and(stopped)
    }

    /// The client of a device that is to be kept is gone: whatever the device does from now on reaches nothing of
    /// the client's. [`Self::disconnect`] is to follow.
    ///
    /// # Errors
    /// What the device says; it must then be reset.
    pub fn cut_off(&self) -> Result<(), Error> {
        let stopped = self.silence_device(&mut self.state());
        stopped.and(self.forget_memory())
    }

    /// Whether the device is being reset, or lets go of the client's memory: both may take long, and end.
    #[must_use]
    pub fn takes_its_time(&self) -> bool {
        self.migration.is_being_reset() || self.memory.is_emptying()
    }

    /// Makes a driver return that keeps a client's thread, by a reset of the device and of nothing in front of it:
    /// [`Self::disconnect`] with a reset is to follow.
    ///
    /// # Errors
    /// What the device says.
    pub fn interrupt(&self) -> Result<(), Error> {
        let reset = || self.device.reset(ResetCause::Disconnect);
        self.migration.reset(false, reset)
    }

    /// No DMA, no interrupts, no doorbells.
    fn silence_device(&self, state: &mut State) -> Result<(), Error> {
        state.routes.set_sink(None);
        state.delivery = Delivery::default();
        let stopped = self.device.stop_dma();
        self.device.release_irqs();
        self.device.set_irq_config(IrqConfig::default());
        let mut doorbells = std::mem::take(&mut state.doorbells);
        self.silence(&mut doorbells);
        stopped
    }

    fn forget_memory(&self) -> Result<(), Error> {
        self.memory.clear().map_err(|error| Error::Io {
            what: "Guest memory stays mapped",
            source: io::Error::other(error),
        })
    }
}
