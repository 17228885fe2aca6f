// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two capability lists of any bytes, as far as they make sense: what is left is aligned, inside, without
//! loops and without overlaps. Links them again in a [`ConfigSpace`]; decides nothing about what is shown.
//!
//! ```text
//! device: 0x34 ─► 60 ─► 68 ─► 62 (misaligned) ─► 60 (loop)
//! here:   0x34 ─► 60 ─► 68 ─► 0                              and the first fault, for people
//! ```

use std::fmt;
use std::ops::Range;

use super::lengths::{self, u8_at, u16_at, u32_at};
use super::{ConfigSpace, layout::overlaps, registers::*};

/// One capability of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its id; standard ones have 8 bits.
    pub id: u16,
    /// Its version; 0 in the standard list.
    pub version: u8,
    /// Where it begins.
    pub at: u16,
    /// Bytes it takes, never into another one.
    pub len: u16,
}

impl Entry {
    /// The first byte after it, on a dword.
    pub(super) fn end(&self) -> u16 {
        self.at + self.len.next_multiple_of(4)
    }
}

/// What is wrong with a list that was not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFault {
    /// A pointer with one of its two reserved bits set.
    Misaligned {
        /// Where the pointer is.
        pointer: u16,
        /// Where it points.
        to: u16,
    },
    /// A pointer to what was met before.
    Loop {
        /// Where the pointer is.
        pointer: u16,
        /// Where it points.
        to: u16,
    },
    /// A pointer into the header, or past the end.
    Outside {
        /// Where the pointer is.
        pointer: u16,
        /// Where it points.
        to: u16,
    },
    /// A pointer to all ones, which is no capability.
    Absent {
        /// Where it points.
        to: u16,
    },
    /// Bytes of another capability, or past the end.
    Overlap {
        /// The one that is left out.
        at: u16,
    },
    /// A second one of a kind that there is one of.
    Duplicate {
        /// The one that is left out.
        at: u16,
    },
}

impl fmt::Display for ListFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { pointer, to } => {
                write!(
                    f,
                    "the pointer at {pointer:#04x} is not aligned ({to:#04x})"
                )
            }
            Self::Loop { pointer, to } => {
                write!(f, "the pointer at {pointer:#04x} leads back to {to:#04x}")
            }
            Self::Outside { pointer, to } => write!(
                f,
                "the pointer at {pointer:#04x} leads to {to:#04x}, where no capability can be"
            ),
            Self::Absent { to } => write!(f, "there is no capability at {to:#04x}"),
            Self::Overlap { at } => {
                write!(f, "the capability at {at:#04x} overlaps another or the end")
            }
            Self::Duplicate { at } => {
                write!(f, "the capability at {at:#04x} is the second of its kind")
            }
        }
    }
}

/// Both lists, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lists {
    pub standard: Vec<Entry>,
    pub extended: Vec<Entry>,
    /// The first thing wrong with each.
    pub faults: [Option<ListFault>; 2],
}

impl Lists {
    /// What of the lists in `bytes` makes sense.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let (standard, first) = standard(bytes);
        let (extended, second) = extended(bytes);
        Self {
            standard,
            extended,
            faults: [first, second],
        }
    }
}

/// What is met on the way along a list.
struct Walk {
    window: Range<u16>,
    /// Each with the bytes it must have, and how many it commonly has.
    met: Vec<(Entry, u16)>,
    visited: Vec<u16>,
    fault: Option<ListFault>,
}

impl Walk {
    fn new(window: Range<u16>) -> Self {
        Self {
            window,
            met: Vec::new(),
            visited: Vec::new(),
            fault: None,
        }
    }

    fn blame(&mut self, fault: ListFault) {
        self.fault.get_or_insert(fault);
    }

    /// Where the pointer at `pointer` leads, if on.
    fn follow(&mut self, pointer: u16, to: u16) -> Option<u16> {
        if to == 0 {
            return None;
        }
        if !to.is_multiple_of(4) {
            self.blame(ListFault::Misaligned { pointer, to });
        }
        // The low bits are reserved, and to be ignored.
        let at = to & !3;
        if !self.window.contains(&at) {
            self.blame(ListFault::Outside { pointer, to });
            return None;
        }
        if self.visited.contains(&at) {
            self.blame(ListFault::Loop { pointer, to: at });
            return None;
        }
        self.visited.push(at);
        Some(at)
    }

    /// Keeps a capability that has at least its own `len` bytes to itself.
    fn keep(&mut self, entry: Entry, common: u16, unique: bool) {
        let at = entry.at;
        let taken =
            |(other, _): &(Entry, u16)| overlaps(&(at..entry.end()), &(other.at..other.end()));
        let same = |(other, _): &(Entry, u16)| other.id == entry.id;
        if entry.end() > self.window.end || self.met.iter().any(taken) {
            self.blame(ListFault::Overlap { at });
        } else if unique && self.met.iter().any(same) {
            self.blame(ListFault::Duplicate { at });
        } else {
            self.met.push((entry, common));
        }
    }

    /// Each capability with the bytes it commonly has, as far as the next one leaves them.
    fn finish(self) -> (Vec<Entry>, Option<ListFault>) {
        let starts: Vec<_> = self.met.iter().map(|(entry, _)| entry.at).collect();
        let end = self.window.end;
        let clip = |(entry, common): (Entry, u16)| {
            let next = starts.iter().filter(|start| **start > entry.at).min();
            let room = next.map_or(end, |next| *next) - entry.at;
            let len = common.max(entry.len).min(room);
            Entry { len, ..entry }
        };
        (self.met.into_iter().map(clip).collect(), self.fault)
    }
}

fn standard(bytes: &[u8]) -> (Vec<Entry>, Option<ListFault>) {
    let mut walk = Walk::new(PCI_STD_HEADER_SIZEOF..PCI_CFG_SPACE_SIZE);
    if u16_at(bytes, PCI_STATUS) & PCI_STATUS_CAP_LIST == 0 {
        return walk.finish();
    }
    let mut pointer = PCI_CAPABILITY_LIST;
    while let Some(at) = walk.follow(pointer, u8_at(bytes, pointer).into()) {
        let id = u8_at(bytes, at);
        if id == 0xff {
            walk.blame(ListFault::Absent { to: at });
            break;
        }
        let (len, common) = lengths::standard(bytes, id, at);
        let entry = Entry {
            id: id.into(),
            version: 0,
            at,
            len,
        };
        walk.keep(entry, common, lengths::is_unique(id));
        pointer = at + 1;
    }
    walk.finish()
}

fn extended(bytes: &[u8]) -> (Vec<Entry>, Option<ListFault>) {
    let end = u16::try_from(bytes.len()).unwrap_or(PCI_CFG_SPACE_EXP_SIZE);
    let mut walk = Walk::new(PCI_EXT_CAP_START..end & !3);
    // Without extended space there is no list; with it, the list begins at its first byte.
    let mut next = (end >= PCI_EXT_CAP_START + 4).then_some(PCI_EXT_CAP_START);
    walk.visited.extend(next);
    while let Some(at) = next {
        let header = u32_at(bytes, at);
        let [id_low, id_high, version, _] = header.to_le_bytes();
        let id = u16::from_le_bytes([id_low, id_high]);
        let first = at == PCI_EXT_CAP_START;
        if first && (header == 0 || header == u32::MAX) {
            break;
        }
        match id {
            u16::MAX => {
                walk.blame(ListFault::Absent { to: at });
                break;
            }
            // Holds the place of a capability that somebody hid.
            PCI_EXT_CAP_ID_NULL => {}
            _ => {
                let (len, common) = lengths::extended(bytes, id, at);
                let entry = Entry {
                    id,
                    version: version & 0xf,
                    at,
                    len,
                };
                walk.keep(entry, common, false);
            }
        }
        let to = u16_at(bytes, at + 2) >> 4;
        next = walk.follow(at + 2, to);
    }
    walk.finish()
}

/// The registers that link a list, as `(offset, value, mask)` of single bytes.
type Link = (u16, u8, u8);

/// What the pointers of these lists read, in a space of `size` bytes.
fn links(lists: &Lists, size: usize) -> Vec<Link> {
    let [present, _] = PCI_STATUS_CAP_LIST.to_le_bytes();
    let any = !lists.standard.is_empty();
    let mut links = vec![(PCI_STATUS, if any { present } else { 0 }, present)];
    let mut pointer = PCI_CAPABILITY_LIST;
    for Entry { id, at, .. } in &lists.standard {
        let ([id, _], [low, _]) = (id.to_le_bytes(), at.to_le_bytes());
        links.extend([(pointer, low, 0xff), (*at, id, 0xff)]);
        pointer = at + 1;
    }
    links.push((pointer, 0, 0xff));

    if size < usize::from(PCI_EXT_CAP_START) + 4 {
        return links;
    }
    let mut header = |at: u16, id: u16, version: u8, next: u16| {
        let [id_low, id_high] = id.to_le_bytes();
        let [low, high] = (next << 4 | u16::from(version)).to_le_bytes();
        links.extend(
            (at..)
                .zip([id_low, id_high, low, high])
                .map(|(at, byte)| (at, byte, 0xff)),
        );
    };
    let nexts = lists
        .extended
        .iter()
        .skip(1)
        .map(|entry| entry.at)
        .chain([0]);
    let first = lists.extended.first().map_or(0, |entry| entry.at);
    if first != PCI_EXT_CAP_START {
        // A list begins here whatever was hidden: the null capability leads on, and all zeros end it.
        header(PCI_EXT_CAP_START, PCI_EXT_CAP_ID_NULL, 0, first);
    }
    for (entry, next) in lists.extended.iter().zip(nexts) {
        header(entry.at, entry.id, entry.version, next);
    }
    links
}

impl ConfigSpace {
    /// Whether a capability of the standard list has any of these bytes.
    #[must_use]
    pub fn has_capability_in(&self, range: Range<u16>) -> bool {
        let (standard, _) = standard(self.bytes());
        let mut entries = standard.iter();
        entries.any(|entry| overlaps(&(entry.at..entry.end()), &range))
    }

    /// Makes these the lists that the guest finds; what is between their headers stays as it is.
    pub(super) fn link(&mut self, lists: &Lists) {
        for (at, value, mask) in links(lists, self.bytes().len()) {
            self.compose_bits(at, value, mask);
        }
        self.find_places();
    }

    /// What is wrong with the device's own lists, where something is: standard, then extended.
    #[must_use]
    pub fn list_faults(&self) -> [Option<ListFault>; 2] {
        self.list_faults
    }
}

#[cfg(test)]
pub(super) mod tests;
