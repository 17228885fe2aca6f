// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Config space shown in a BAR at a fixed offset.

use std::ops::Range;

use super::{Handled, Place, Quirk, Window};

/// A part of a BAR that shows config space from its start.
#[derive(Debug)]
pub(super) struct Mirror {
    name: &'static str,
    window: Window,
    /// Bytes of config space that there are; the hardware has the rest of the window for itself.
    config_size: u64,
    /// Bytes whose write means something to the hardware, though nothing is stored there.
    acknowledge: Vec<Range<u64>>,
}

impl Mirror {
    /// `size` bytes from `offset` of a region, which show config space of `config_size` bytes, and then nothing.
    pub(super) fn new(
        name: &'static str,
        region: u32,
        (offset, size): (u64, u64),
        config_size: u64,
    ) -> Self {
        Self {
            name,
            window: Window {
                region,
                range: offset..offset.saturating_add(size),
            },
            config_size,
            acknowledge: Vec::new(),
        }
    }

    /// A write to these bytes goes to the device too, through the mirror.
    pub(super) fn acknowledged_by(mut self, bytes: Range<u64>) -> Self {
        self.acknowledge.push(bytes);
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

    /// Divided where config space ends, so that an access is on one side of it.
    fn windows(&self) -> Vec<Window> {
        let Window { region, range } = self.window.clone();
        let end = range.start.saturating_add(self.config_size).min(range.end);
        [range.start..end, end..range.end]
            .map(|range| Window { region, range })
            .to_vec()
    }

    fn read(&mut self, place: Place, _length: usize) -> Handled {
        let at = self.config(place);
        if at < self.config_size {
            Handled::ConfigAndDevice(at)
        } else {
            Handled::Fixed(0)
        }
    }

    fn write(&mut self, place: Place, data: &[u8]) -> Handled {
        let at = self.config(place);
        let end = at.saturating_add(data.len() as u64);
        let mut acknowledge = self.acknowledge.iter();
        let acknowledged = acknowledge.any(|bytes| at >= bytes.start && end <= bytes.end);
        match (at < self.config_size, acknowledged) {
            (true, true) => Handled::ConfigAndDevice(at),
            (true, false) => Handled::Config(at),
            (false, true) => Handled::Device,
            (false, false) => Handled::Fixed(0),
        }
    }
}
