// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Doorbells of the function: writes that go from the guest to the device through an eventfd, past this process.
//!
//! A client asks for them (DEVICE_GET_REGION_IO_FDS) and lets its hypervisor signal the eventfd. From then on it is
//! kept until the client leaves, resets included: the hypervisor would go on signalling it. A guest that makes new ones
//! after each reset comes to [`MAX_DOORBELLS`] in a region, and no further.

use std::os::fd::{AsFd, OwnedFd};

use log::debug;
use rustix::event::{EventfdFlags, eventfd};

use super::Function;
use crate::device::Error;
use crate::quirks::{Doorbell, MAX_DOORBELLS};
use crate::report::chain;

/// What a client has, and the device listens to.
pub(super) type Armed = Vec<(Doorbell, OwnedFd)>;

impl Function {
    /// The doorbells in a region, at most so many, each with its eventfd. None where the device takes none.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn doorbells(&self, region: u32, most: usize) -> Result<Armed, Error> {
        let no_descriptor = |source: std::io::Error| Error::Io {
            what: "Eventfd of a doorbell",
            source,
        };
        let mut state = self.state();
        let here = state.quirks.doorbells();
        for doorbell in here.into_iter().filter(|d| d.region == region) {
            let in_region = state.doorbells.iter().filter(|(d, _)| d.region == region);
            if in_region.count() >= MAX_DOORBELLS {
                break;
            }
            if state.doorbells.iter().any(|(armed, _)| *armed == doorbell) {
                continue;
            }
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let event = eventfd(0, flags).map_err(|errno| no_descriptor(errno.into()))?;
            match self.device.set_doorbell(&doorbell, Some(event.as_fd())) {
                Ok(()) => state.doorbells.push((doorbell, event)),
                // Then the write comes as a message, as before.
                Err(error) => debug!("No doorbell at {:#x}: {}", doorbell.offset, chain(&error)),
            }
        }
        let armed = state.doorbells.iter().filter(|(d, _)| d.region == region);
        armed
            .take(most)
            .map(|(doorbell, event)| {
                let event = event.try_clone().map_err(no_descriptor)?;
                Ok((*doorbell, event))
            })
            .collect()
    }

    /// The client is gone, and so are its doorbells.
    pub(super) fn silence(&self, armed: &mut Armed) {
        for (doorbell, _) in armed.drain(..) {
            if let Err(error) = self.device.set_doorbell(&doorbell, None) {
                debug!("Doorbell at {:#x}: {}", doorbell.offset, chain(&error));
            }
        }
    }
}
