// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Config space shown in a BAR at a fixed offset.

use std::ops::Range;

use super::{Handled, Place, Quirk, Window};

/// A part of a BAR that shows config space from its start.
#[derive(Debug)]
pub(super) struct Mirror {
    name: &'static str,
    window: Window,
    /// Bytes of config space whose write means something to the hardware, though nothing is stored there.
    acknowledge: Range<u64>,
}

impl Mirror {
    /// `size` bytes of config space from `offset` of a region.
    pub(super) fn new(name: &'static str, region: u32, offset: u64, size: u64) -> Self {
        Self {
            name,
            window: Window {
                region,
                range: offset..offset.saturating_add(size),
            },
            acknowledge: 0..0,
        }
    }

    /// A write to these bytes of config space goes to the device too, through the mirror.
    pub(super) fn acknowledged_by(mut self, bytes: Range<u64>) -> Self {
        self.acknowledge = bytes;
        self
    }

    fn config(&self, place: Place) -> u64 {
        place.offset.saturating_sub(self.window.range.start)
    }
}

impl Quirk for Mirror {
    fn name(&self) -> &'static str {
        self.name
    }

    fn windows(&self) -> Vec<Window> {
        vec![self.window.clone()]
    }

    fn read(&mut self, place: Place, _length: usize) -> Handled {
        Handled::ConfigAndDevice(self.config(place))
    }

    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        let at = self.config(place);
        let end = at.saturating_add(data.len() as u64);
        if at >= self.acknowledge.start && end <= self.acknowledge.end {
            return Handled::ConfigAndDevice(at);
        }
        Handled::Config(at)
    }
}
