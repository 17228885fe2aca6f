// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Config space behind an address and a data register: accesses across the edges of what it shows there.

use std::ops::Range;

use super::*;

/// A board with such a window, whose config space ends in something.
struct Windowed {
    function: Function,
    board: Arc<Board>,
    bar: u32,
    address: u64,
    data: u64,
    /// Where each begins and ends, in the chip's registers.
    mirrors: &'static [(u64, u64)],
}

const SIZE: u64 = 256;

fn windowed() -> [Windowed; 2] {
    let compose = |mut board: Board, bar: u8| {
        board.config[0xf8..].copy_from_slice(&[0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]);
        board.config[0x10 + 4 * usize::from(bar)] = 1;
        board.bars[usize::from(bar)] = 0x80;
        let (function, board) = board.compose(&GuestView::default()).unwrap();
        function.write(CONFIG, 4, &[7, 0]).unwrap();
        (function, board, u32::from(bar))
    };
    let (function, board, bar) = compose(Board::nvidia(), 5);
    let nvidia = Windowed {
        function,
        board,
        bar,
        address: 8,
        data: 0xc,
        mirrors: &[(0x1800, 0x1900), (0x8_8000, 0x8_9000)],
    };
    let (function, board, bar) = compose(Board::new(0x1002, 0x6798, 0x03_0000), 4);
    let amd = Windowed {
        function,
        board,
        bar,
        address: 0,
        data: 4,
        mirrors: &[(0x4000, 0x5000)],
    };
    [nvidia, amd]
}

impl Windowed {
    fn point(&self, address: u64) {
        let address = u32::try_from(address).unwrap();
        let written = self
            .function
            .write(self.bar, self.address, &address.to_le_bytes());
        written.unwrap();
        self.board.log.take();
    }

    /// Where these bytes of the chip are in config space, `None` for one that is not; if a mirror has any of them.
    fn in_config(&self, bytes: Range<u64>) -> Option<Vec<Option<u64>>> {
        let mut mirrors = self.mirrors.iter();
        let (start, _) = mirrors.find(|(start, end)| *start < bytes.end && bytes.start < *end)?;
        let at = |byte: u64| byte.checked_sub(*start).filter(|at| *at < SIZE);
        Some(bytes.map(at).collect())
    }

    /// What the guest shall read of them.
    fn expected(&self, bytes: Range<u64>) -> Vec<u8> {
        let byte = |at| read::<1>(&self.function, CONFIG, at)[0];
        let hardware = bytes.clone().map(|_| 0xdd);
        match self.in_config(bytes) {
            Some(places) => places.into_iter().map(|at| at.map_or(0, byte)).collect(),
            None => hardware.collect(),
        }
    }

    /// Calls `check` with every address up to an edge, each part of the data register, and each width from there.
    fn about_edges(&self, check: impl Fn(u64, u64, u64)) {
        for (start, end) in self.mirrors {
            for edge in [*start, start + SIZE, *end] {
                for address in edge - 7..=edge {
                    self.point(address);
                    for (into, width) in (0..4).flat_map(|into| [1, 2, 4, 8].map(|w| (into, w))) {
                        check(address, into, width);
                    }
                }
            }
        }
    }
}

#[test]
fn a_read_across_an_edge_is_config_space_and_zeros() {
    for at in windowed() {
        at.about_edges(|address, into, width| {
            let mut found = vec![0xee; usize::try_from(width).unwrap()];
            let done = at.function.read(at.bar, at.data + into, &mut found);
            done.unwrap_or_else(|error| panic!("{address:#x} + {into}, {width} bytes: {error}"));
            // What is behind the register is another.
            let inside = width.min(4 - into);
            let mut expected = at.expected(address + into..address + into + inside);
            expected.resize(found.len(), 0xdd);
            assert_eq!(found, expected, "{address:#x} + {into}, {width} bytes");
        });
    }
}

#[test]
fn a_write_across_an_edge_reaches_config_space_alone() {
    for at in windowed() {
        at.about_edges(|address, into, width| {
            let data: Vec<u8> = (1..).take(usize::try_from(width).unwrap()).collect();
            at.board.log.take();
            let done = at.function.write(at.bar, at.data + into, &data);
            done.unwrap_or_else(|error| panic!("{address:#x} + {into}, {width} bytes: {error}"));
            let inside = width.min(4 - into);
            let bytes = address + into..address + into + inside;
            let mut expected = Vec::new();
            let (first, rest) = data.split_at(usize::try_from(inside).unwrap());
            if let Some(places) = at.in_config(bytes) {
                // All of it is the hardware's own, as far as the composition goes.
                let written = places.into_iter().zip(first);
                expected
                    .extend(written.filter_map(|(place, byte)| Some((place? | 7 << 40, *byte))));
            } else {
                expected.extend((at.data + into..).zip(first.iter().copied()));
            }
            expected.extend((at.data + 4..).zip(rest.iter().copied()));
            let written: Vec<(u64, u8)> = at
                .board
                .log
                .take()
                .into_iter()
                .flat_map(|event| match event {
                    Event::Write(at, data) => (at..).zip(data).collect::<Vec<_>>(),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(written, expected, "{address:#x} + {into}, {width} bytes");
        });
    }
}
