// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Walks the two capability lists of any bytes, trusted or not: every walk ends, and no offset lies
//! outside.
//!
//! A list ends at a pointer that is zero, points into the header or past the end, or was followed
//! before. The low two bits of a pointer are reserved and ignored (PCI 3.0, 6.7; PCIe 6.0, 7.6.3).

use super::registers::{
    PCI_CAPABILITY_LIST, PCI_EXT_CAP_ID_NULL, PCI_EXT_CAP_START, PCI_STATUS, PCI_STATUS_CAP_LIST,
    PCI_STD_HEADER_SIZEOF,
};

/// Dwords in the largest configuration space, one bit each.
type Visited = [u64; 16];

/// Marks the dword at `offset`; false if it was marked before or is outside.
fn first_visit(visited: &mut Visited, offset: u16) -> bool {
    let dword = offset / 4;
    let Some(word) = visited.get_mut(usize::from(dword / 64)) else {
        return false;
    };
    let bit = 1 << (dword % 64);
    let first = *word & bit == 0;
    *word |= bit;
    first
}

fn bytes<const N: usize>(config: &[u8], offset: u16) -> Option<[u8; N]> {
    config.get(usize::from(offset)..)?.first_chunk().copied()
}

/// The standard capabilities of a configuration space, as `(id, offset)` in list order.
#[derive(Clone, Debug)]
pub struct Capabilities<'a> {
    config: &'a [u8],
    next: u16,
    visited: Visited,
}

impl<'a> Capabilities<'a> {
    /// Starts at the list head; empty unless the Status register says that there is a list.
    pub fn new(config: &'a [u8]) -> Self {
        let present = bytes(config, PCI_STATUS)
            .is_some_and(|status| u16::from_le_bytes(status) & PCI_STATUS_CAP_LIST != 0);
        let next = bytes(config, PCI_CAPABILITY_LIST)
            .filter(|_| present)
            .map_or(0, |[head]| u16::from(head));
        Self {
            config,
            next,
            visited: Visited::default(),
        }
    }
}

impl Iterator for Capabilities<'_> {
    type Item = (u8, u16);

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.next & !3;
        if offset < PCI_STD_HEADER_SIZEOF || !first_visit(&mut self.visited, offset) {
            return None;
        }
        let [id, next] = bytes(self.config, offset)?;
        self.next = next.into();
        Some((id, offset))
    }
}

/// The extended capabilities of a configuration space, as `(id, offset)` in list order. Versions
/// are in the header.
#[derive(Clone, Debug)]
pub struct ExtendedCapabilities<'a> {
    config: &'a [u8],
    next: u16,
    visited: Visited,
}

impl<'a> ExtendedCapabilities<'a> {
    /// Starts at 0x100; empty for 256 bytes, and where the header there says so.
    pub fn new(config: &'a [u8]) -> Self {
        Self {
            config,
            next: PCI_EXT_CAP_START,
            visited: Visited::default(),
        }
    }
}

impl Iterator for ExtendedCapabilities<'_> {
    type Item = (u16, u16);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let offset = self.next & !3;
            if offset < PCI_EXT_CAP_START || !first_visit(&mut self.visited, offset) {
                return None;
            }
            let [a, b, c, d] = bytes(self.config, offset)?;
            self.next = u16::from_le_bytes([c, d]) >> 4;
            match u16::from_le_bytes([a, b]) {
                // All ones are no capability, and the end.
                0xffff => return None,
                // The null capability holds a place; it may lead on (PCIe 6.0, 7.9.28).
                PCI_EXT_CAP_ID_NULL => {}
                id => return Some((id, offset)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_list(entries: &[(usize, [u8; 2])]) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[usize::from(PCI_STATUS)] = 0x10;
        config[usize::from(PCI_CAPABILITY_LIST)] = 0x40;
        for (offset, header) in entries {
            config[*offset..*offset + 2].copy_from_slice(header);
        }
        config
    }

    #[test]
    fn a_list_is_followed_in_its_order() {
        let config = with_list(&[(0x40, [1, 0xc8]), (0xc8, [9, 0x60]), (0x60, [5, 0])]);
        assert!(Capabilities::new(&config).eq([(1, 0x40), (9, 0xc8), (5, 0x60)]));
    }

    #[test]
    fn a_loop_ends() {
        let config = with_list(&[(0x40, [1, 0x50]), (0x50, [5, 0x40])]);
        assert!(Capabilities::new(&config).eq([(1, 0x40), (5, 0x50)]));
    }

    #[test]
    fn a_pointer_into_the_header_ends() {
        let config = with_list(&[(0x40, [1, 0x3c])]);
        assert!(Capabilities::new(&config).eq([(1, 0x40)]));
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut config = with_list(&[(0x40, [1, 0])]);
        config[usize::from(PCI_STATUS)] = 0;
        assert_eq!(Capabilities::new(&config).count(), 0);
    }

    #[test]
    fn an_extended_list_ends_at_loops_and_absence() {
        let mut config = vec![0; 4096];
        assert_eq!(ExtendedCapabilities::new(&config).count(), 0);
        config[0x100..0x104].copy_from_slice(&0x2001_0003_u32.to_le_bytes());
        config[0x200..0x204].copy_from_slice(&0x1001_000b_u32.to_le_bytes());
        assert!(ExtendedCapabilities::new(&config).eq([(3, 0x100), (0xb, 0x200)]));
        assert_eq!(ExtendedCapabilities::new(&config[..256]).count(), 0);
        config[0x100..0x104].copy_from_slice(&0x2000_0000_u32.to_le_bytes());
        assert!(
            ExtendedCapabilities::new(&config).eq([(0xb, 0x200)]),
            "past a null capability"
        );
        config[0x100..0x104].copy_from_slice(&0xffff_ffff_u32.to_le_bytes());
        assert_eq!(ExtendedCapabilities::new(&config).count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_end_and_stay_inside(
            config in proptest::collection::vec(any::<u8>(), 0..=4096),
        ) {
            for (_, offset) in Capabilities::new(&config) {
                prop_assert!(offset >= 0x40 && usize::from(offset) + 2 <= config.len());
            }
            for (_, offset) in ExtendedCapabilities::new(&config) {
                prop_assert!(offset >= 0x100 && usize::from(offset) + 4 <= config.len());
            }
        }
    }
}
