// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI config space, decoded for reading in the manner of `lspci -vv`. No I/O; any bytes are welcome.
//!
//! `space` reads registers and walks capability lists, `header` decodes the type 0 header, `standard`,
//! `express` and `extended` the capabilities.

mod express;
mod extended;
mod header;
mod space;
mod standard;

pub use header::{BarKind, Header};
pub use space::{ConfigSpace, Entry, ids, region};

/// One capability, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Where and what it is.
    pub entry: Entry,
    /// Name and the most important values.
    pub title: String,
    /// Further lines.
    pub details: Vec<String>,
}

/// Both lists in order, and what is wrong with them.
pub fn capabilities(space: &ConfigSpace) -> (Vec<Capability>, Vec<String>) {
    let mut found = Vec::new();
    let mut problems = Vec::new();
    let mut take = |walk: space::Walk,
                    decode: fn(&ConfigSpace, &Entry) -> (String, Vec<String>)| {
        for entry in walk.entries {
            let (title, details) = decode(space, &entry);
            found.push(Capability {
                entry,
                title,
                details,
            });
        }
        problems.extend(walk.problem);
    };
    take(space.capabilities(), standard::decode);
    take(space.extended_capabilities(), extended::decode);
    (found, problems)
}

/// Names of bits with a sign each, as `Mem+ BusMaster-`.
fn signs(value: u32, names: &[(&str, u32)]) -> String {
    let sign = |&(name, bit): &(&str, u32)| {
        let sign = if value & (1 << bit) == 0 { '-' } else { '+' };
        format!("{name}{sign}")
    };
    names.iter().map(sign).collect::<Vec<_>>().join(" ")
}

/// `width` bits of `value` from bit `low` on.
fn field(value: u32, low: u32, width: u32) -> u32 {
    (value >> low) & ((1 << width) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signs_follow_the_bits() {
        assert_eq!(signs(0b10, &[("I/O", 0), ("Mem", 1)]), "I/O- Mem+");
        assert_eq!(field(0xabcd, 4, 8), 0xbc);
    }

    /// A config space full of pointers that lead to other capabilities, of all ids that are decoded.
    fn lists() -> impl Strategy<Value = Vec<u8>> {
        let length = prop::sample::select(vec![0_usize, 3, 63, 64, 256, 300, 4096]);
        let fill = prop::collection::vec(any::<[u8; 4]>(), 1024);
        let links = prop::collection::vec((0_u8..64, 0_u16..0x30, 0_u16..1024), 0..60);
        (length, fill, links, any::<bool>()).prop_map(|(length, fill, links, fixed)| {
            let mut bytes = fill.concat();
            if fixed {
                bytes[6] |= 0x10;
                bytes[0x34] = 0x40;
                for (at, id, next) in links {
                    let (at, id) = (usize::from(at) * 4, id.to_le_bytes());
                    if at >= 0x40 {
                        bytes[at] = id[0];
                        bytes[at + 1] = (next * 4).to_le_bytes()[0];
                    }
                    let at = 0x100 + at * 8;
                    if at + 4 <= bytes.len() {
                        let link = ((next * 4) << 4) | 1;
                        bytes[at..at + 2].copy_from_slice(&id);
                        bytes[at + 2..at + 4].copy_from_slice(&link.to_le_bytes());
                    }
                }
            }
            bytes.truncate(length);
            bytes
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_and_lists_end(bytes in lists()) {
            let length = bytes.len();
            let space = ConfigSpace::new(bytes);
            let (capabilities, _) = capabilities(&space);
            // One per double word at the most.
            prop_assert!(capabilities.len() <= length / 4);
            let header = Header::decode(&space);
            prop_assert!(header.bars.len() <= 6);
            for capability in &capabilities {
                let lines = capability.details.iter().chain([&capability.title]);
                prop_assert!(lines.clone().all(|line| !line.contains('\n') && line.len() < 400));
                prop_assert!(capability.details.len() < 64);
            }
        }
    }
}
