// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers of a config space and the walk over its two capability lists.

/// VFIO region indexes of a PCI device (`VFIO_PCI_*_REGION_INDEX`, linux/vfio.h).
pub mod region {
    /// BAR 0; the other BARs follow.
    pub const BAR0: u32 = 0;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// Config space.
    pub const CONFIG: u32 = 7;
    /// The VGA ranges.
    pub const VGA: u32 = 8;
}

/// Capability ids (PCI Code and ID Assignment Specification).
pub mod ids {
    /// Power management.
    pub const POWER_MANAGEMENT: u16 = 0x01;
    /// Message signalled interrupts.
    pub const MSI: u16 = 0x05;
    /// Vendor specific.
    pub const VENDOR: u16 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u16 = 0x10;
    /// MSI-X.
    pub const MSIX: u16 = 0x11;
}

/// Where capabilities may begin (PCI Local Bus Specification 3.0, 6.7).
const FIRST_CAPABILITY: usize = 0x40;
const END_OF_STANDARD: usize = 0x100;
const STATUS_CAPABILITY_LIST: u16 = 1 << 4;

/// The bytes of a config space, 256 or 4096 of them if all is well.
#[derive(Clone, Debug)]
pub struct ConfigSpace(Vec<u8>);

/// One element of a capability list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins.
    pub offset: usize,
    /// What it is.
    pub id: u16,
    /// The version of an extended capability; standard ones have none.
    pub version: Option<u8>,
}

/// A list as far as it could be followed.
#[derive(Debug, Default)]
pub struct Walk {
    /// In list order.
    pub entries: Vec<Entry>,
    /// Why it ends before its end.
    pub problem: Option<String>,
}

impl ConfigSpace {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let end = offset.checked_add(N);
        let bytes = end.and_then(|end| self.0.get(offset..end)?.try_into().ok());
        // As a bus answers where nothing is.
        bytes.unwrap_or([0xff; N])
    }

    pub fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.get(offset))
    }

    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    pub fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    /// `u16` for decoding bits of mixed registers.
    pub fn word(&self, offset: usize) -> u32 {
        self.u16(offset).into()
    }

    /// The list that begins at 0x34.
    pub fn capabilities(&self) -> Walk {
        let mut walk = Walk::default();
        if self.0.len() < FIRST_CAPABILITY || self.u16(0x06) & STATUS_CAPABILITY_LIST == 0 {
            return walk;
        }
        let mut next = usize::from(self.u8(0x34));
        while walk.may_go_on(
            &mut next,
            FIRST_CAPABILITY,
            self.0.len().min(END_OF_STANDARD),
        ) {
            walk.entries.push(Entry {
                offset: next,
                id: self.u8(next).into(),
                version: None,
            });
            next = self.u8(next + 1).into();
        }
        walk
    }

    /// The list that begins at 0x100 (PCI Express Base Specification, 7.6.3).
    pub fn extended_capabilities(&self) -> Walk {
        let mut walk = Walk::default();
        let mut next = END_OF_STANDARD;
        let end = self.0.len();
        if end <= END_OF_STANDARD || [0, u32::MAX].contains(&self.u32(next)) {
            return walk;
        }
        while walk.may_go_on(&mut next, END_OF_STANDARD, end) {
            let [_, _, version, _] = self.get(next);
            walk.entries.push(Entry {
                offset: next,
                id: self.u16(next),
                version: Some(version & 0xf),
            });
            next = usize::from(self.u16(next + 2) >> 4);
        }
        walk
    }

    /// The first standard capability with this id.
    pub fn find(&self, id: u16) -> Option<usize> {
        let walk = self.capabilities();
        walk.entries
            .iter()
            .find(|entry| entry.id == id)
            .map(|entry| entry.offset)
    }
}

impl Walk {
    /// Whether a capability can be at `next`, cleared of its reserved bits; 0 ends the list.
    fn may_go_on(&mut self, next: &mut usize, low: usize, high: usize) -> bool {
        *next &= !3;
        if *next == 0 {
            return false;
        }
        let problem = if *next < low || *next + 4 > high {
            "leads out of its space"
        } else if self.entries.iter().any(|entry| entry.offset == *next) {
            "loops"
        } else {
            return true;
        };
        self.problem = Some(format!("The capability list {problem} at {next:#x}"));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(bytes: &[(usize, &[u8])]) -> ConfigSpace {
        let mut all = vec![0; 4096];
        all[6] = 0x10;
        for (at, bytes) in bytes {
            all[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        ConfigSpace::new(all)
    }

    fn offsets(walk: &Walk) -> Vec<usize> {
        walk.entries.iter().map(|entry| entry.offset).collect()
    }

    #[test]
    fn lists_are_followed_in_order() {
        let space = space(&[
            (0x34, &[0x43]),
            (0x40, &[0x11, 0x80]),
            (0x80, &[0x01, 0x50]),
            (0x50, &[0x05, 0x00]),
            (0x100, &[0x01, 0x00, 0x02, 0x20]),
            (0x200, &[0x15, 0x00, 0x01, 0x00]),
        ]);
        let walk = space.capabilities();
        assert_eq!(
            (offsets(&walk), walk.problem),
            (vec![0x40, 0x80, 0x50], None)
        );
        assert_eq!(
            (space.find(ids::MSI), space.find(ids::EXPRESS)),
            (Some(0x50), None)
        );
        let walk = space.extended_capabilities();
        assert_eq!(walk.entries[0].version, Some(2));
        assert_eq!((offsets(&walk), walk.problem), (vec![0x100, 0x200], None));
    }

    #[test]
    fn loops_and_ways_out_are_told() {
        let looping = space(&[(0x34, &[0x40]), (0x40, &[1, 0x44]), (0x44, &[1, 0x40])]);
        let walk = looping.capabilities();
        assert_eq!(offsets(&walk), [0x40, 0x44]);
        assert_eq!(
            walk.problem.as_deref(),
            Some("The capability list loops at 0x40")
        );
        let leaving = space(&[
            (0x34, &[0x40]),
            (0x40, &[1, 0x20]),
            (0x100, &[1, 0, 1, 0x0c]),
        ]);
        assert!(leaving.capabilities().problem.is_some());
        assert!(leaving.extended_capabilities().problem.is_some());
    }

    #[test]
    fn what_is_not_there_reads_as_ones() {
        let short = ConfigSpace::new(vec![0; 3]);
        assert_eq!(
            (short.u16(0), short.u16(2), short.u32(usize::MAX)),
            (0, 0xffff, u32::MAX)
        );
        assert!(short.capabilities().entries.is_empty());
        assert!(space(&[]).extended_capabilities().entries.is_empty());
    }
}
