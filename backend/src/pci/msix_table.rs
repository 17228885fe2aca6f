// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The MSI-X vector table and the view of the pending bits. Pending bits themselves, and sending,
//! are the caller's.
//!
//! ```text
//! 0 address low, bits 1:0 read 0 │ 4 address high │ 8 data │ 12 control, bit 0 mask │ 16 next
//! ```
//!
//! The specification allows aligned dwords and qwords only; any other access acts on the bytes it
//! names.

use std::ops::Range;

use super::{OutOfRange, range};

const ENTRY: usize = 16;
const MASKED: u8 = 1;

/// Bits of an entry that software can change; the rest read 0.
const WRITABLE: [u8; ENTRY] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, MASKED, 0, 0, 0,
];

/// Every vector comes up masked, with no address.
const RESET: [u8; ENTRY] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, MASKED, 0, 0, 0];

/// One vector as programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixEntry {
    /// Where the message is written.
    pub address: u64,
    /// What is written there.
    pub data: u32,
    /// Its own mask bit; the function mask is in the capability.
    pub masked: bool,
}

/// A vector table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsixTable {
    bytes: Vec<u8>,
    vectors: u32,
}

impl MsixTable {
    /// A table of `vectors` entries, all masked. The capability allows 1 to 2048.
    pub fn new(vectors: u16) -> Self {
        Self {
            bytes: RESET.repeat(vectors.into()),
            vectors: vectors.into(),
        }
    }

    /// Entries in the table.
    pub fn vectors(&self) -> u32 {
        self.vectors
    }

    /// The whole table as the guest reads it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the guest reads at `offset` from the start of the table.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        let range = range::checked(offset, out.len(), self.bytes.len())?;
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    /// The guest writes `data` at `offset` from the start of the table. Returns the smallest range
    /// that holds every vector whose entry changed; empty if none did.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<Range<u32>, OutOfRange> {
        let range = range::checked(offset, data.len(), self.bytes.len())?;
        let mut changed: Option<Range<usize>> = None;
        for (index, &byte) in range.zip(data) {
            let writable = WRITABLE[index % ENTRY];
            let value = &mut self.bytes[index];
            let next = *value & !writable | byte & writable;
            if next != *value {
                *value = next;
                let first = changed.map_or(index, |range| range.start);
                changed = Some(first..index + 1);
            }
        }
        let vector = |index: usize| u32::try_from(index / ENTRY).unwrap_or(self.vectors);
        Ok(changed.map_or(0..0, |range| vector(range.start)..vector(range.end - 1) + 1))
    }

    /// One vector; `None` past the end.
    pub fn entry(&self, vector: u32) -> Option<MsixEntry> {
        let start = usize::try_from(vector).ok()?.checked_mul(ENTRY)?;
        let entry: &[u8; ENTRY] = self.bytes.get(start..)?.first_chunk()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, control, ..] = *entry;
        Some(MsixEntry {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
            masked: control & MASKED != 0,
        })
    }

    /// What the guest reads at `offset` from the start of the pending bit array: bit `v` is vector
    /// `v`, and the array ends with a whole qword. Writes there change nothing.
    pub fn pba_read(
        &self,
        offset: u64,
        out: &mut [u8],
        pending: impl Fn(u32) -> bool,
    ) -> Result<(), OutOfRange> {
        let size = (self.bytes.len() / ENTRY).div_ceil(64) * 8;
        let range = range::checked(offset, out.len(), size)?;
        let first = u32::try_from(range.start * 8).unwrap_or(self.vectors);
        let mut vectors = first..self.vectors;
        for byte in out {
            *byte = (0..8).fold(0, |bits, bit| {
                let is_pending = vectors.next().is_some_and(&pending);
                bits | u8::from(is_pending) << bit
            });
        }
        Ok(())
    }

    /// All vectors masked and without address.
    pub fn reset(&mut self) {
        for entry in self.bytes.chunks_exact_mut(ENTRY) {
            entry.copy_from_slice(&RESET);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_vector_is_programmed_by_dwords() {
        let mut table = MsixTable::new(4);
        let blank = MsixEntry {
            address: 0,
            data: 0,
            masked: true,
        };
        assert_eq!(table.entry(2), Some(blank));
        for (offset, value) in [
            (32, 0xfee0_1003_u32),
            (36, 1),
            (40, 0x4021),
            (44, 0xffff_fffe),
        ] {
            assert_eq!(table.write(offset, &value.to_le_bytes()), Ok(2..3));
        }
        let entry = MsixEntry {
            address: 0x1_fee0_1000,
            data: 0x4021,
            masked: false,
        };
        assert_eq!(table.entry(2), Some(entry));
        assert_eq!(table.write(44, &[0; 4]), Ok(0..0), "no change");
        assert_eq!(
            (table.entry(1), table.entry(4), table.entry(u32::MAX)),
            (Some(blank), None, None)
        );
        table.reset();
        assert_eq!(table, MsixTable::new(4));
    }

    #[test]
    fn a_write_across_entries_names_them() {
        let mut table = MsixTable::new(4);
        assert_eq!(table.write(12, &[0; 8]), Ok(0..1));
        assert_eq!(table.write(24, &[1; 32]), Ok(1..4));
        assert_eq!(
            table.write(60, &[0; 8]),
            Err(OutOfRange {
                offset: 60,
                len: 8,
                size: 64
            })
        );
        assert_eq!(
            table.read(64, &mut [0]),
            Err(OutOfRange {
                offset: 64,
                len: 1,
                size: 64
            })
        );
    }

    #[test]
    fn pending_bits() {
        let table = MsixTable::new(70);
        let pending = |vector| matches!(vector, 0 | 9 | 63 | 69);
        let mut all = [0xff; 16];
        table.pba_read(0, &mut all, pending).unwrap();
        assert_eq!(all, [1, 2, 0, 0, 0, 0, 0, 0x80, 0x20, 0, 0, 0, 0, 0, 0, 0]);
        let mut part = [0; 2];
        table.pba_read(7, &mut part, pending).unwrap();
        assert_eq!(part, [0x80, 0x20]);
        assert!(table.pba_read(9, &mut [0; 8], pending).is_err());
        table
            .pba_read(8, &mut [0; 8], |vector| {
                assert!((64..70).contains(&vector), "asked for {vector}");
                true
            })
            .unwrap();
    }

    proptest! {
        /// Against a model of dwords, written one byte at a time.
        #[test]
        fn any_writes_match_a_model_of_dwords(
            vectors in 1..20_u16,
            writes in proptest::collection::vec(
                (0..330_u64, proptest::collection::vec(any::<u8>(), 0..40)), 0..30),
        ) {
            let mut table = MsixTable::new(vectors);
            let mut model: Vec<[u32; 4]> = vec![[0, 0, 0, 1]; vectors.into()];
            let size = u64::from(vectors) * 16;
            for (offset, data) in writes {
                let before = model.clone();
                let result = table.write(offset, &data);
                let inside = offset + data.len() as u64 <= size;
                prop_assert_eq!(result.is_ok(), inside);
                if !inside { continue }
                for (at, byte) in (offset..).zip(data) {
                    let at = usize::try_from(at).unwrap();
                    let dword = &mut model[at / 16][at % 16 / 4];
                    let shift = at % 4 * 8;
                    *dword = *dword & !(0xff << shift) | u32::from(byte) << shift;
                    match at % 16 / 4 {
                        0 => *dword &= !3,
                        3 => *dword &= 1,
                        _ => {}
                    }
                }
                let changed: Vec<_> = (0..u32::from(vectors))
                    .filter(|v| before[*v as usize] != model[*v as usize])
                    .collect();
                let range = result.unwrap();
                match (changed.first(), changed.last()) {
                    (Some(first), Some(last)) => prop_assert_eq!(range, *first..*last + 1),
                    _ => prop_assert!(range.is_empty()),
                }
            }
            for (vector, [low, high, data, control]) in (0..).zip(model) {
                let address = u64::from(high) << 32 | u64::from(low);
                let entry = MsixEntry { address, data, masked: control == 1 };
                prop_assert_eq!(table.entry(vector), Some(entry));
            }
        }
    }
}
