// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Functions in front of boards with quirks: what the guest sees of them, and what the hardware of the guest.

use std::collections::HashMap;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::device::{Area, Mapping};
use crate::memory::Backing;
use crate::pci::{DeviceSizes, GuestView};
use crate::quirks::igd::{IgdError, IgdView, OpRegionError, OpRegionUse};

mod nvidia;
mod windows;

/// Hardware: a live config space, BARs that read 0xdd, and what its driver shows beside.
#[derive(Debug)]
struct Board {
    log: Arc<Log>,
    config: Vec<u8>,
    bars: [u64; 6],
    specific: HashMap<(u32, u32), Vec<u8>>,
    trapped: Mutex<Vec<(u32, Vec<std::ops::Range<u64>>)>>,
    /// Where in BAR0 its own config space shows, and where it cannot be read.
    mirrors: Vec<u64>,
    unreadable: Vec<u64>,
}

const HOST_ASLS: [u8; 4] = [0x18, 0x00, 0x5e, 0x7a];
const HOST_BDSM: [u8; 4] = [0x01, 0x00, 0x80, 0x7b];
const OPREGION_SIZE: usize = 0x3800;

impl Board {
    fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut config = vec![0; 256];
        config[..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&device.to_le_bytes());
        config[8..12].copy_from_slice(&(class << 8).to_le_bytes());
        config[0x10] = 4;
        Self {
            log: Arc::default(),
            config,
            bars: [16 << 20, 0, 0, 0, 0, 0],
            specific: HashMap::new(),
            trapped: Mutex::default(),
            mirrors: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    fn nvidia() -> Self {
        let mut board = Self::new(0x10de, 0x1b80, 0x03_0000);
        board.config[6] = 0x10;
        board.config[0x34] = 0x68;
        // MSI with 64 bits.
        board.config[0x68..0x6c].copy_from_slice(&[5, 0, 0x80, 0]);
        board
    }

    fn intel(device: u16) -> Self {
        let mut board = Self::new(0x8086, device, 0x03_0000);
        board.config[0x50..0x52].copy_from_slice(&[0xc1, 0x01]);
        board.config[0x5c..0x60].copy_from_slice(&HOST_BDSM);
        board.config[0xc0..0xc4].copy_from_slice(&HOST_BDSM);
        board.config[0xfc..].copy_from_slice(&HOST_ASLS);
        board.specific.insert((0x8000_8086, 1), opregion());
        board.specific.insert((0x8000_8086, 2), vec![2; 256]);
        board.specific.insert((0x8000_8086, 3), vec![3; 256]);
        board
    }

    fn compose(self, view: &GuestView) -> Result<(Function, Arc<Self>), ComposeError> {
        let board = Arc::new(self);
        let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, 8));
        let function = Function::new(Arc::clone(&board) as _, memory, view)?;
        enable(&function);
        board.log.take();
        Ok((function, board))
    }
}

fn opregion() -> Vec<u8> {
    let mut bytes = vec![0x0b; OPREGION_SIZE];
    bytes[..16].copy_from_slice(b"IntelGraphicsMem");
    bytes[16..20].copy_from_slice(&8_u32.to_le_bytes());
    bytes[0x58..0x5c].fill(0);
    bytes[0x3aa..0x3c6].fill(0);
    bytes
}

impl Device for Board {
    fn name(&self) -> String {
        "board".into()
    }

    fn config_space(&self) -> ConfigSpace {
        let sizes = DeviceSizes {
            bars: self.bars,
            rom: 0,
        };
        ConfigSpace::from_device(&self.config, &sizes).unwrap()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        let at = usize::try_from(offset).unwrap();
        data.copy_from_slice(&self.config[at..at + data.len()]);
        Ok(())
    }

    fn write_config(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.log.push(Event::Write(offset | 7 << 40, data.to_vec()));
        Ok(())
    }

    fn resettable(&self) -> bool {
        true
    }

    fn region(&self, index: u32) -> Region {
        let size = self.bars.get(index as usize).copied().unwrap_or(0);
        Region {
            size,
            readable: true,
            writable: true,
        }
    }

    fn mapping(&self, index: u32) -> Result<Option<Mapping<'_>>, Error> {
        Ok((index == 0).then(|| Mapping {
            fd: memfd_create("bar", MemfdFlags::CLOEXEC).unwrap(),
            offset: 0,
            areas: None,
        }))
    }

    fn trap(&self, region: u32, parts: &[std::ops::Range<u64>]) {
        self.trapped.lock().unwrap().push((region, parts.to_vec()));
    }

    fn specific(&self, kind: u32, subtype: u32, largest: u64) -> Result<Option<Vec<u8>>, Error> {
        let found = self.specific.get(&(kind, subtype)).cloned();
        assert!(
            found
                .as_ref()
                .is_none_or(|found| found.len() as u64 <= largest)
        );
        Ok(found)
    }

    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        self.log.push(Event::Read(offset, data.len()));
        data.fill(0xdd);
        if self.unreadable.contains(&offset) {
            return Err(Error::Io {
                what: "Reading",
                source: Errno::IO.into(),
            });
        }
        if self.mirrors.contains(&offset) {
            data.copy_from_slice(&self.config[..data.len()]);
        }
        Ok(())
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        self.log.push(Event::Write(offset, data.to_vec()));
        Ok(())
    }

    fn irq(&self, _index: u32) -> IrqInfo {
        IrqInfo::default()
    }

    fn set_irqs(&self, _request: IrqRequest) -> Result<(), Error> {
        Ok(())
    }

    fn set_delivery(&self, _delivery: Delivery) {}

    fn set_irq_config(&self, _config: IrqConfig) {}

    fn set_vector_mask(&self, _index: u32, _vector: u32, _masked: bool) {}

    fn vector_pending(&self, _index: u32, _vector: u32) -> bool {
        false
    }

    fn interrupt_status(&self) -> bool {
        false
    }

    fn reset(&self, _cause: ResetCause) -> Result<(), Error> {
        Ok(())
    }

    fn release_irqs(&self) {}
}

fn igd(opregion: OpRegionUse, gms: Option<u8>) -> GuestView {
    GuestView {
        igd: IgdView { opregion, gms },
        ..GuestView::default()
    }
}

const CONFIG: u32 = region::CONFIG;

#[test]
fn host_addresses_stay_on_the_host() {
    for (device, bdsm) in [
        (0x1616, 0x5c),
        (0x3e92, 0x5c),
        (0x8a52, 0xc0),
        (0x9a49, 0xc0),
    ] {
        let view = igd(OpRegionUse::Serve, None);
        let (function, board) = Board::intel(device).compose(&view).unwrap();
        let all: [u8; 256] = read(&function, CONFIG, 0);
        assert_eq!(
            (&all[0xfc..], &all[bdsm..bdsm + 4]),
            (&[0; 4][..], &[0; 4][..])
        );
        assert_eq!(all[0x50..0x52], [0xc1, 0x01]);
        function.write(CONFIG, 0xfc, &[0, 0, 0xc0, 0xbf]).unwrap();
        function
            .write(CONFIG, bdsm as u64, &[0, 0, 0, 0xbc])
            .unwrap();
        function.write(CONFIG, 0x50, &[0xff; 2]).unwrap();
        assert_eq!(board.log.take(), [], "nothing for the hardware");
        assert_eq!(read(&function, CONFIG, 0xfc), [0, 0, 0xc0, 0xbf]);
        assert_eq!(read(&function, 0, 0x10_80c0), [0, 0, 0, 0xbc], "by BAR0");
        assert_eq!(read(&function, 0, 0x10_8040), [0xc1, 0x01, 0xdd, 0xdd]);
        function.write(0, 0x10_80c0, &[0, 0, 0, 0xac]).unwrap();
        assert_eq!(read(&function, CONFIG, bdsm as u64), [0, 0, 0, 0xac]);
        let areas = function.mapping(0).unwrap().unwrap().areas.unwrap();
        assert_eq!((areas[0].size, areas[1].offset), (0x10_8000, 0x10_9000));

        function.reset(ResetCause::FunctionLevel).unwrap();
        assert_eq!(
            read(&function, CONFIG, 0xfc),
            [0, 0, 0xc0, 0xbf],
            "set once"
        );
        function.disconnect(true).unwrap();
        assert_eq!(read(&function, CONFIG, 0xfc), [0; 4]);
    }
}

#[test]
fn an_unknown_generation_keeps_its_host_addresses_too() {
    let view = GuestView::default();
    for device in [0x0046, 0x64a0, 0x7d55] {
        let (function, board) = Board::intel(device).compose(&view).unwrap();
        let all: [u8; 256] = read(&function, CONFIG, 0);
        assert_eq!(
            (&all[0x5c..0x60], &all[0xc0..0xc8]),
            (&[0; 4][..], &[0; 8][..])
        );
        assert_eq!(all[0x50..0x52], [0xc1, 0x01]);
        for at in [0x50, 0x5c, 0xc0, 0xc4] {
            function.write(CONFIG, at, &[0xbc; 2]).unwrap();
        }
        assert_eq!(board.log.take(), [], "nothing for the hardware");
        assert_eq!(read(&function, 0, 0x10_8040), [0xc1, 0x01]);
        let new = [0xbc, 0xbc, 0, 0, 0xbc, 0xbc, 0, 0];
        assert_eq!(read(&function, 0, 0x10_80c0), new);
        assert_eq!(read(&function, 0, 0x10_8100), [0; 8]);
    }

    // A capability where others have a register.
    let mut board = Board::intel(0x7d55);
    board.config[6] = 0x10;
    board.config[0x34] = 0xc0;
    board.config[0xc0..0xc8].copy_from_slice(&[9, 0, 8, 1, 2, 3, 4, 5]);
    let (function, _) = board.compose(&view).unwrap();
    let vendor: [u8; 8] = read(&function, CONFIG, 0xc0);
    assert_eq!(vendor, [9, 0, 8, 1, 2, 3, 4, 5]);
    assert_eq!(read(&function, CONFIG, 0x5c), [0; 4]);
    assert_eq!(read(&function, 0, 0x10_80c0), [0; 8]);
}

#[test]
fn a_board_of_intels_with_its_own_memory_shows_where_it_is() {
    for (kind, integrated) in [(0x02, false), (0x12, false), (0x92, true)] {
        let mut board = Board::intel(0x56a0);
        board.config[6] = 0x10;
        board.config[0x34] = 0x70;
        board.config[0x70..0x74].copy_from_slice(&[0x10, 0, kind, 0]);
        let (function, _) = board.compose(&GuestView::default()).unwrap();
        assert_eq!(read(&function, CONFIG, 0x5c) == [0; 4], integrated);
        assert_eq!(read(&function, 0, 0x10_80c0) == [0; 8], integrated);
        assert_eq!(function.quirks(), ["igd-bar0"][..usize::from(integrated)]);
    }
}

#[test]
fn addresses_that_bar0_alone_has_read_zero() {
    for device in [0x1616, 0x9a49] {
        let view = igd(OpRegionUse::Off, None);
        let (function, board) = Board::intel(device).compose(&view).unwrap();
        for at in [0x10_8100, 0x10_82c0] {
            assert_eq!(read(&function, 0, at), [0; 8], "{at:#x}");
            board.log.take();
            let (outside, hidden) = ([0xdd; 4], [0; 4]);
            let before = [outside, hidden].concat();
            assert_eq!(read::<8>(&function, 0, at - 4)[..], before);
            let behind = [hidden, outside].concat();
            assert_eq!(read::<8>(&function, 0, at + 4)[..], behind);
            let around = [Event::Read(at - 4, 4), Event::Read(at + 8, 4)];
            assert_eq!(board.log.take(), around);
            function.write(0, at - 1, &[1; 10]).unwrap();
            let around = [at - 1, at + 8].map(|at| Event::Write(at, vec![1]));
            assert_eq!(board.log.take(), around);
        }
    }
}

#[test]
fn the_size_of_stolen_memory_can_be_said() {
    let view = igd(OpRegionUse::Off, Some(0xf0));
    let (function, _) = Board::intel(0x9a49).compose(&view).unwrap();
    assert_eq!(read(&function, CONFIG, 0x50), [0xc1, 0xf0]);
    assert_eq!(read(&function, 0, 0x10_8040), [0xc1, 0xf0]);
    let refused = |board: Board, gms| {
        let view = igd(OpRegionUse::Off, Some(gms));
        board.compose(&view).map(drop).unwrap_err().to_string()
    };
    assert!(refused(Board::intel(0x0102), 0x11).contains("generation 6"));
    assert!(refused(Board::intel(0x56a0), 1).contains("no Intel graphics"));
    assert!(refused(Board::nvidia(), 1).contains("no Intel graphics"));
}

#[test]
fn the_host_is_shown_in_regions_of_its_own() {
    let (function, _) = Board::intel(0x3e92).compose(&GuestView::default()).unwrap();
    assert_eq!(function.region_count(), 12);
    let kind = |index| {
        function
            .region_kind(index)
            .map(|kind| (kind.region_type, kind.subtype))
    };
    assert_eq!(kind(8), None);
    for (index, subtype, size) in [(9, 1, OPREGION_SIZE), (10, 2, 256), (11, 3, 256)] {
        assert_eq!(kind(index), Some((0x8000_8086, subtype)));
        let region = function.region(index);
        assert_eq!(
            (region.size, region.readable, region.writable),
            (size as u64, true, false)
        );
        assert_eq!(function.mapping(index).unwrap().is_some(), index == 9);
        let refused = function.write(index, 0, &[0]).unwrap_err();
        assert!(matches!(refused, Error::Denied { .. }), "{refused}");
        let end = region.size;
        assert!(function.read(index, end - 1, &mut [0; 2]).is_err());
        assert!(function.read(index, u64::MAX, &mut [0; 2]).is_err());
    }
    assert_eq!(&read::<16>(&function, 9, 0), b"IntelGraphicsMem");
    for (index, id) in [(10, 2), (11, 3)] {
        let bridge: [u8; 256] = read(&function, index, 0);
        let identity = [0..4, 8..12, 0x0e..0x0f, 0x2c..0x30];
        for (at, byte) in bridge.iter().enumerate() {
            let kept = identity.iter().any(|range| range.contains(&at));
            assert_eq!(*byte, if kept { id } else { 0 }, "{at:#x}: the host's own");
        }
    }
    assert_eq!(function.region(12), Region::default());
    assert!(function.read(12, 0, &mut [0]).is_err());
    // Asleep, undecoded: they are not the device's.
    function.write(CONFIG, 4, &[0, 0]).unwrap();
    assert_eq!(read(&function, 10, 0), [2; 4]);

    let off = igd(OpRegionUse::Off, None);
    let (function, _) = Board::intel(0x3e92).compose(&off).unwrap();
    assert_eq!(function.region_count(), 9);
}

fn map(function: &Function, iova: u64, pages: u64, access: Access) {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, pages * 4096).unwrap();
    let request = MapRequest {
        iova,
        size: pages * 4096,
        access,
        backing: Some(Backing { file, offset: 0 }),
    };
    function.memory().map(request).unwrap();
}

fn asls(function: &Function, address: u32) {
    function
        .write(CONFIG, 0xfc, &address.to_le_bytes())
        .unwrap();
}

#[test]
fn firmware_gets_its_copy() {
    let view = igd(OpRegionUse::Copy, None);
    let (function, _) = Board::intel(0x3e92).compose(&view).unwrap();
    // Two maps, of which the copy needs a part each.
    map(&function, 0x10_0000, 2, Access::READ_WRITE);
    map(&function, 0x10_2000, 6, Access::READ_WRITE);
    let there = |at: u64| {
        let mut bytes = vec![0; OPREGION_SIZE];
        function.memory().read(at, &mut bytes).unwrap();
        bytes
    };
    asls(&function, 0x10_1000);
    assert_eq!(there(0x10_1000), opregion());
    assert_eq!(read(&function, CONFIG, 0xfc), 0x10_1000_u32.to_le_bytes());
    // Byte by byte: only whole, and once.
    function
        .memory()
        .write(0x10_1000, &[0; OPREGION_SIZE])
        .unwrap();
    for (at, byte) in (0xfc..).zip(0x10_1000_u32.to_le_bytes()) {
        assert_eq!(there(0x10_1000), [0; OPREGION_SIZE]);
        function.write(CONFIG, at, &[byte]).unwrap();
    }
    assert_eq!(there(0x10_1000), opregion());
}

#[test]
fn a_bad_address_gets_nothing() {
    let view = igd(OpRegionUse::Copy, None);
    let (function, _) = Board::intel(0x3e92).compose(&view).unwrap();
    map(&function, 0x10_0000, 8, Access::READ_WRITE);
    map(&function, 0x10_8000, 8, Access::READ);
    map(&function, 0xffff_e000, 2, Access::READ_WRITE);
    for address in [
        0x10_0001, // unaligned
        0x10_0800,
        0x10_5000, // runs into memory that is only read
        0x10_8000,
        0x0f_f000,   // begins before
        0x20_0000,   // nowhere
        0xffff_e000, // ends above 4 GiB
        0xffff_f000,
        u32::MAX,
        0,
    ] {
        asls(&function, address);
        assert_eq!(read(&function, CONFIG, 0xfc), address.to_le_bytes());
        for (from, length) in [(0x10_0000, 0x1_0000), (0xffff_e000, 0x2000)] {
            let mut bytes = vec![1; length];
            function.memory().read(from, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{address:#x}");
        }
    }
}

#[test]
fn what_is_no_opregion_is_refused() {
    let refused = |change: fn(&mut Vec<u8>)| {
        let mut board = Board::intel(0x3e92);
        change(board.specific.get_mut(&(0x8000_8086, 1)).unwrap());
        match board.compose(&GuestView::default()).map(drop) {
            Err(ComposeError::Igd(IgdError::OpRegion(error))) => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(|b| b[0] = 0), OpRegionError::Signature);
    let (says, has) = (9000, 14);
    assert_eq!(
        refused(|b| b[16..20].copy_from_slice(&9000_u32.to_le_bytes())),
        OpRegionError::Size { says, has }
    );
    assert_eq!(refused(|b| b.truncate(100)), OpRegionError::Length(100));
    let mut without = Board::intel(0x3e92);
    without.specific.clear();
    let copy = igd(OpRegionUse::Copy, None);
    let error = without.compose(&copy).map(drop).unwrap_err();
    assert!(error.to_string().contains("has no OpRegion"), "{error}");
    assert!(Board::nvidia().compose(&copy).is_err());
}

#[test]
fn registers_and_quirks_move_to_another_function() {
    let view = igd(OpRegionUse::Copy, None);
    let (source, _) = Board::intel(0x9a49).compose(&view).unwrap();
    asls(&source, 0x7000);
    source.write(CONFIG, 0xc0, &[0, 0, 0, 0xbc, 1]).unwrap();
    let (destination, board) = Board::intel(0x9a49).compose(&view).unwrap();
    assert!(
        source
            .identity()
            .differences(&destination.identity())
            .is_empty()
    );
    map(&destination, 0x4000, 32, Access::READ_WRITE);
    Guest::load(&destination, &source.save().unwrap(), &|| true).unwrap();
    assert_eq!(read(&destination, CONFIG, 0xfc), [0, 0x70, 0, 0]);
    assert_eq!(
        read(&destination, CONFIG, 0xc0),
        [0, 0, 0, 0xbc, 1, 0, 0, 0]
    );
    let hardware = board.log.take();
    let is_ours = |event: &Event| matches!(event, Event::Write(at, _) if at & 0xff >= 0xc0);
    assert!(!hardware.iter().any(is_ours), "{hardware:?}");
    let mut memory = vec![1; 0x2_0000];
    destination.memory().read(0x4000, &mut memory).unwrap();
    assert!(
        memory.iter().all(|byte| *byte == 0),
        "guest memory moves itself"
    );

    let (plain, _) = Board::nvidia().compose(&GuestView::default()).unwrap();
    let differences = plain.identity().differences(&source.identity());
    assert!(
        differences
            .iter()
            .any(|difference| difference.name == "quirks")
    );
    let mut foreign = source.save().unwrap();
    foreign.quirks = vec![3, b'a', b'b', b'c', 0, 0, 0, 0];
    assert!(Guest::check(&source, &foreign).unwrap_err().contains("abc"));
}
