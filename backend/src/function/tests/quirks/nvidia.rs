// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Boards of NVIDIA, which show config space in BAR0.

use super::*;

#[test]
fn the_mirror_shows_what_is_composed() {
    let (function, board) = Board::nvidia().compose(&GuestView::default()).unwrap();
    function
        .write(CONFIG, 0x6c, &[0, 0x10, 0xe0, 0xfe])
        .unwrap();
    board.log.take();
    let message: [u8; 4] = read(&function, 0, 0x8_806c);
    assert_eq!(
        message,
        [0, 0x10, 0xe0, 0xfe],
        "the guest's, not the host's"
    );
    assert_eq!(
        board.log.take(),
        [Event::Read(0x8_806c, 4)],
        "read for its effect"
    );
    assert_eq!(read(&function, 0, 0x8_8000), [0xde, 0x10, 0x80, 0x1b]);
    // From before into it.
    assert_eq!(read(&function, 0, 0x8_7ffe), [0xdd, 0xdd, 0xde, 0x10]);

    board.log.take();
    function.write(0, 0x8_8004, &[7, 4]).unwrap();
    assert_eq!(board.log.take(), [Event::Write(4 | 7 << 40, vec![7, 4])]);
    assert!(function.state().config.command().intx_disable);
    function.write(0, 0x8_8068, &[5]).unwrap();
    let acknowledged = [Event::Write(0x8_8068, vec![5])];
    assert_eq!(board.log.take(), acknowledged, "the BAR of the hardware");
}

#[test]
fn a_3d_controller_shows_no_host_address() {
    let mut board = Board::new(0x10de, 0x1eb8, 0x03_0200);
    board.config[0x10..0x14].copy_from_slice(&[0x04, 0, 0, 0xa5]);
    let (function, board) = board.compose(&GuestView::default()).unwrap();
    let areas = function.mapping(0).unwrap().unwrap().areas.unwrap();
    assert_eq!((areas[0].size, areas[1].offset), (0x8_8000, 0x8_9000));
    for at in [0x10, 0x14, 4] {
        let config: [u8; 4] = read(&function, CONFIG, at);
        assert_eq!(read(&function, 0, 0x8_8000 + at), config, "{at:#x}");
    }
    board.log.take();
    // Across the end of the 256 bytes that there are.
    assert_eq!(read(&function, 0, 0x8_80fe), [0; 4]);
    assert_eq!(board.log.take(), [Event::Read(0x8_80fe, 2)]);
    function.write(0, 0x8_8100, &[1; 4]).unwrap();
    assert_eq!(board.log.take(), [], "no register that is hidden");
    function.write(0, 0x8_8704, &[0; 4]).unwrap();
    assert_eq!(board.log.take(), [Event::Write(0x8_8704, vec![0; 4])]);
}

#[test]
fn a_mirror_that_only_some_chips_have_is_found_by_its_ids() {
    let view = GuestView::default();
    let areas = |function: &Function| {
        let areas = function.mapping(0).unwrap().unwrap().areas.unwrap();
        areas.iter().map(|area| area.offset).collect::<Vec<_>>()
    };
    let hopper = || Board::new(0x10de, 0x2330, 0x03_0200);
    let mut board = hopper();
    board.mirrors = vec![0x9_2000];
    let (function, board) = board.compose(&view).unwrap();
    assert_eq!(
        function.quirks(),
        ["nvidia-bar0-88000", "nvidia-bar0-92000"]
    );
    function.write(CONFIG, 0x10, &[0, 0, 0, 0xa5]).unwrap();
    for at in [0, 0x10] {
        let config: [u8; 4] = read(&function, CONFIG, at);
        assert_eq!(read(&function, 0, 0x9_2000 + at), config, "{at:#x}");
    }
    board.log.take();
    function.write(0, 0x9_2014, &[1; 4]).unwrap();
    assert_eq!(board.log.take(), [Event::Write(0x14 | 7 << 40, vec![1; 4])]);
    assert_eq!(areas(&function), [0, 0x8_9000, 0x9_3000]);

    // Without one; and what cannot be read is not left open.
    let (function, _) = hopper().compose(&view).unwrap();
    assert_eq!(areas(&function), [0, 0x8_9000]);
    let mut board = hopper();
    board.unreadable = vec![0x1800, 0x9_2000];
    let (function, _) = board.compose(&view).unwrap();
    assert_eq!(areas(&function), [0, 0x2000, 0x8_9000, 0x9_3000]);

    // Memory is decoded for that, and only for that.
    let board = Arc::new(hopper());
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, 8));
    Function::new(Arc::clone(&board) as _, memory, &view).unwrap();
    let command = |bits| Event::Write(4 | 7 << 40, vec![bits, 0]);
    assert_eq!(
        board.log.take(),
        [
            command(2),
            Event::Read(0x1800, 4),
            Event::Read(0x9_2000, 4),
            command(0)
        ]
    );
    let plain = Arc::new(Board::new(0x1234, 0x2330, 0x03_0200));
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, 8));
    Function::new(Arc::clone(&plain) as _, memory, &view).unwrap();
    assert_eq!(plain.log.take(), []);
}

#[test]
fn trapped_pages_are_not_mapped() {
    let (function, board) = Board::nvidia().compose(&GuestView::default()).unwrap();
    let areas = function.mapping(0).unwrap().unwrap().areas.unwrap();
    let area = |offset, end| Area {
        offset,
        size: end - offset,
    };
    assert_eq!(areas, [area(0, 0x8_8000), area(0x8_9000, 16 << 20)]);
    // The config space of this board has 256 bytes.
    let parts = vec![0x8_8000..0x8_8100, 0x8_8100..0x8_9000];
    assert_eq!(*board.trapped.lock().unwrap(), [(0, parts)]);
    let plain = Board::new(0x1234, 0x1111, 0x03_0000);
    let (function, board) = plain.compose(&GuestView::default()).unwrap();
    assert!(function.mapping(0).unwrap().unwrap().areas.is_none());
    assert!(board.trapped.lock().unwrap().is_empty());
}
