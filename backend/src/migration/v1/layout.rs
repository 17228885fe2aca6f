// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which bytes of the region are reached through memory, and which by a system call. Pure.
//!
//! Areas come as the driver lists them: in any order, overlapping, reaching over the registers or past the
//! end. Here they become a sorted list of parts that do none of that.

use std::ops::Range;

use crate::device::Area;

/// Bytes of the registers at the start (`struct vfio_device_migration_info`); never mapped.
pub(super) const REGISTERS: u64 = 32;

/// A run of bytes that is reached in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The mapped area and the offset in it; `None` if trapped.
    pub mapped: Option<(usize, u64)>,
    /// Bytes; not 0.
    pub length: u64,
}

/// A mapped part of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Where it is in the region.
    range: Range<u64>,
    /// The area it is of.
    area: usize,
    /// Where that area begins in the region.
    start: u64,
}

/// The mapped parts of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    size: u64,
    /// Sorted; none overlaps another.
    parts: Vec<Part>,
}

impl Layout {
    /// For a region of `size` bytes.
    pub(super) fn new(size: u64, areas: &[Area]) -> Self {
        let mut listed: Vec<_> = areas.iter().enumerate().collect();
        // By index too, so that of two at one place the first of the list is taken.
        listed.sort_by_key(|(index, area)| (area.offset, *index));
        let mut parts = Vec::new();
        let mut from = REGISTERS;
        for (index, area) in listed {
            let end = area.offset.saturating_add(area.size).min(size);
            let start = area.offset.max(from);
            if start < end {
                parts.push(Part {
                    range: start..end,
                    area: index,
                    start: area.offset,
                });
                from = end;
            }
        }
        Self { size, parts }
    }

    /// Bytes of the region.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether a range is all data: behind the registers and inside the region.
    pub(super) fn is_data(&self, offset: u64, length: u64) -> bool {
        let end = offset.checked_add(length);
        offset >= REGISTERS && end.is_some_and(|end| end <= self.size)
    }

    /// The first piece of a range of data; `None` if nothing is left of it in the region.
    pub(super) fn piece(&self, offset: u64, length: u64) -> Option<Piece> {
        let length = length.min(self.size.checked_sub(offset)?);
        if length == 0 || offset < REGISTERS {
            return None;
        }
        let next = self.parts.partition_point(|part| part.range.end <= offset);
        let Some(part) = self.parts.get(next) else {
            let mapped = None;
            return Some(Piece { mapped, length });
        };
        Some(match part.range.start.checked_sub(offset) {
            Some(before) if before > 0 => Piece {
                mapped: None,
                length: length.min(before),
            },
            _ => Piece {
                mapped: Some((part.area, offset.saturating_sub(part.start))),
                length: length.min(part.range.end.saturating_sub(offset)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn area((offset, size): (u64, u64)) -> Area {
        Area { offset, size }
    }

    /// How each byte of the data is reached.
    fn walk(layout: &Layout) -> Vec<Option<(usize, u64)>> {
        let mut bytes = Vec::new();
        let mut at = REGISTERS;
        while let Some(piece) = layout.piece(at, layout.size().saturating_sub(at)) {
            for byte in 0..piece.length {
                bytes.push(piece.mapped.map(|(index, offset)| (index, offset + byte)));
            }
            at += piece.length;
        }
        bytes
    }

    #[test]
    fn garbage_areas_are_cut_to_what_is_there() {
        let areas = [
            (u64::MAX - 4, 100),
            (0, 0),
            (60, u64::MAX),
            (0, 40),
            (36, 10),
            (46, 2),
            (1000, 8),
        ];
        let layout = Layout::new(64, &areas.map(area));
        let ways = walk(&layout);
        assert_eq!(ways.len(), 32);
        assert_eq!(ways[0], Some((3, 32)), "behind the registers");
        assert_eq!(ways[8], Some((4, 4)), "the rest of an area that overlaps");
        assert_eq!(ways[14], Some((5, 0)));
        assert_eq!(ways[16], None);
        assert_eq!(ways[28], Some((2, 0)));
        assert_eq!(Layout::new(64, &[]).piece(40, 100).unwrap().length, 24);
        assert_eq!(Layout::new(10, &[]).piece(32, 1), None);
        assert_eq!(layout.piece(0, 4), None);
        assert_eq!(layout.piece(u64::MAX, u64::MAX), None);
    }

    #[test]
    fn data_is_behind_the_registers_and_inside() {
        let layout = Layout::new(64, &[]);
        assert!(layout.is_data(32, 32) && layout.is_data(64, 0));
        for (offset, length) in [
            (0, 1),
            (31, 1),
            (32, 33),
            (65, 0),
            (u64::MAX, 1),
            (33, u64::MAX),
        ] {
            assert!(!layout.is_data(offset, length), "{offset} {length}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_reached_once_and_in_its_own_area(
            size in 0_u64..200,
            areas in vec((0_u64..220, prop_oneof![0_u64..90, Just(u64::MAX)]), 0..6),
        ) {
            let areas: Vec<_> = areas.into_iter().map(area).collect();
            let ways = walk(&Layout::new(size, &areas));
            prop_assert_eq!(ways.len() as u64, size.saturating_sub(REGISTERS));
            for (at, way) in (REGISTERS..).zip(ways) {
                let covers = |area: &Area| at >= area.offset && at - area.offset < area.size;
                match way {
                    None => prop_assert!(!areas.iter().any(covers)),
                    Some((index, offset)) => {
                        prop_assert!(covers(&areas[index]));
                        prop_assert_eq!(areas[index].offset + offset, at);
                    }
                }
            }
        }
    }
}
