// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What quirks need of a kernel device: trapped pages, device-specific regions, doorbells, the ROM.

use super::*;
use crate::function::ComposeError;
use crate::memory::CpuAccess;
use crate::pci::RomView;
use crate::quirks::{Doorbell, MAX_DOORBELLS};

fn function_of(script: Script, view: &GuestView) -> (Arc<Fake>, Result<Function, ComposeError>) {
    let (fake, device) = device_with(script, BarHandoff::DeviceFd);
    fake.take_asked();
    let memory = AddressSpace::new(CpuAccess::TrackedOnly, 8);
    let function = Function::new(Arc::new(device.unwrap()), Arc::new(memory), view);
    (fake, function)
}

#[test]
fn the_rom_is_copied_once_while_memory_is_decoded() {
    let (fake, function) = function_of(script(), &GuestView::default());
    let function = function.unwrap();
    let decoding = |on| Asked::Write(region::CONFIG, 4, vec![on, 0]);
    assert_eq!(fake.take_asked(), [decoding(2), decoding(0)]);
    fake.script()
        .regions
        .get_mut(&region::ROM)
        .unwrap()
        .1
        .fill(0);
    let mut rom = vec![0; 0x800];
    function.read(region::ROM, 0, &mut rom).unwrap();
    let images = crate::pci::rom::validate(&rom).unwrap();
    assert_eq!(images[0].device_id, 0x1050, "for the device that shows it");
    assert!(function.write(region::ROM, 0, &[1]).is_err());
}

#[test]
fn a_rom_that_is_none_is_not_shown() {
    let mut broken = script();
    broken.regions.get_mut(&region::ROM).unwrap().1[0] = 0;
    let view = GuestView::default();
    let off = GuestView {
        rom: RomView::Off,
        ..GuestView::default()
    };
    for (script, view) in [(broken, view), (script(), off)] {
        let (_fake, function) = function_of(script, &view);
        let function = function.unwrap();
        assert_eq!(function.region(region::ROM).size, 0);
        assert!(function.read(region::ROM, 0, &mut [0]).is_err());
        let mut bar = [0; 4];
        function.write(region::CONFIG, 0x30, &[0xff; 4]).unwrap();
        function.read(region::CONFIG, 0x30, &mut bar).unwrap();
        assert_eq!(bar, [0; 4], "no BAR to size");
    }
}

#[test]
fn a_rom_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rom");
    let of = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let view = GuestView {
            rom: RomView::File(path.clone()),
            ..GuestView::default()
        };
        function_of(script(), &view).1
    };
    let function = of(&rom_bytes()[..512]).unwrap();
    assert_eq!(
        function.region(region::ROM).size,
        0x800,
        "what a BAR decodes"
    );
    let mut bar = [0; 4];
    function.write(region::CONFIG, 0x30, &[0xff; 4]).unwrap();
    function.read(region::CONFIG, 0x30, &mut bar).unwrap();
    assert_eq!(bar, 0xffff_f801_u32.to_le_bytes());
    let mut end = [0; 2];
    function.read(region::ROM, 0x1ff, &mut end).unwrap();
    assert_eq!(end, [0, 0xff]);

    let refused = |bytes: &[u8]| crate::report::chain(&of(bytes).map(drop).unwrap_err());
    let mut unsigned = rom_bytes();
    unsigned[1] = 0;
    assert!(refused(&unsigned).contains("does not begin with 55 aa"));
    assert!(refused(&[]).contains("past the end"));
    let mut damaged = rom_bytes();
    damaged[0x100] = 1;
    assert!(
        refused(&damaged).contains("wrong checksum"),
        "a file has none to mend"
    );
    assert!(refused(&vec![0; (16 << 20) + 1]).contains("more than 16 MiB"));
    std::fs::remove_file(&path).unwrap();
    let view = GuestView {
        rom: RomView::File(path.clone()),
        ..GuestView::default()
    };
    let missing = function_of(script(), &view).1.map(drop).unwrap_err();
    assert!(crate::report::chain(&missing).contains("No such file"));
}

#[test]
fn trapped_pages_leave_the_descriptor() {
    let mut script = script();
    script.dma_buf = true;
    let (_, device) = device_with(script, BarHandoff::Auto);
    let device = device.unwrap();
    let length = |index| {
        let mapping = device.mapping(index).unwrap()?;
        Some(rustix::fs::fstat(mapping.fd).unwrap().st_size)
    };
    assert_eq!(length(0), Some(0x8000));
    let trapped = 0x3010..0x3020;
    device.trap(0, std::slice::from_ref(&trapped));
    assert_eq!(length(0), Some(0x3000), "nothing of the page is in it");
    device.trap(5, std::slice::from_ref(&trapped));
    device.trap(99, &[trapped]);
    let first = 0..1;
    device.trap(0, &[first]);
    assert_eq!(length(0), None);
}

#[test]
fn device_specific_regions_are_found_by_type() {
    let kind = |subtype| RegionCapability::Type {
        region_type: 0x8000_8086,
        subtype,
    };
    let mut script = script();
    script.specific = 5;
    script.regions.extend([
        (9, (1, vec![9; 64], vec![kind(2)])),
        // 10 is not there.
        (11, (1, vec![11; 300], vec![kind(1)])),
        (12, (2, vec![12; 64], vec![kind(3)])),
        (13, (1, vec![13; 64], vec![])),
    ]);
    let device = device_with(script, BarHandoff::None).1.unwrap();
    let read = |subtype, largest| device.specific(0x8000_8086, subtype, largest);
    assert_eq!(read(1, 300).unwrap(), Some(vec![11; 300]));
    assert_eq!(read(2, 300).unwrap(), Some(vec![9; 64]));
    assert_eq!(read(4, 300).unwrap(), None);
    let too_large = crate::report::chain(&read(1, 299).unwrap_err());
    assert!(
        too_large.contains("300 bytes, more than 299"),
        "{too_large}"
    );
    assert!(matches!(read(3, 300), Err(Error::Denied { .. })));
}

#[test]
fn doorbells_reach_the_kernel() {
    let (fake, device) = device();
    let doorbell = Doorbell {
        region: 2,
        offset: 0x704,
        size: 4,
        data: 7,
    };
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    device.set_doorbell(&doorbell, Some(event.as_fd())).unwrap();
    device.set_doorbell(&doorbell, None).unwrap();
    let at = 2 << 40 | 0x704;
    assert_eq!(
        fake.take_asked(),
        [
            Asked::IoEventFd(at, 4, 7, true),
            Asked::IoEventFd(at, 4, 7, false)
        ]
    );
    let outside = Doorbell {
        offset: 0x3ffe,
        ..doorbell
    };
    assert!(device.set_doorbell(&outside, None).is_err());
    fake.script().fail = vec![(Request::IoEventFd, Errno::INVAL)];
    let refused = device.set_doorbell(&doorbell, None).unwrap_err();
    assert_eq!(refused.errno(), Errno::INVAL);
}

#[test]
fn a_client_gets_doorbells_until_it_leaves() {
    let mut script = script();
    let config = &mut script.regions.get_mut(&region::CONFIG).unwrap().1;
    config[..4].copy_from_slice(&[0xde, 0x10, 0x80, 0x1b]);
    config[9..12].copy_from_slice(&[0, 0, 3]);
    script.regions.insert(0, (3, vec![0; 1 << 20], vec![]));
    let (fake, function) = function_of(script, &GuestView::default());
    let function = function.unwrap();
    fake.take_asked();
    let first = function.doorbells(0, 16).unwrap();
    assert_eq!((first.len(), first[0].0.offset), (1, 0x8_8704));
    assert_eq!(fake.take_asked(), [Asked::IoEventFd(0x8_8704, 4, 0, true)]);
    assert_eq!(function.doorbells(0, 16).unwrap().len(), 1);
    assert_eq!(function.doorbells(0, 0).unwrap().len(), 0);
    assert_eq!(function.doorbells(2, 16).unwrap().len(), 0);
    assert_eq!(fake.take_asked(), [], "armed once");
    function.reset(ResetCause::Client).unwrap();
    assert_eq!(function.doorbells(0, 16).unwrap().len(), 1);
    fake.take_asked();
    function.disconnect(true).unwrap();
    let silenced = Asked::IoEventFd(0x8_8704, 4, 0, false);
    assert!(fake.take_asked().contains(&silenced));
    fake.script().fail = vec![(Request::IoEventFd, Errno::NOTTY)];
    assert_eq!(function.doorbells(0, 16).unwrap().len(), 0, "an old kernel");
}

#[test]
fn a_guest_that_resets_comes_to_an_end_of_doorbells() {
    let mut script = script();
    let config = &mut script.regions.get_mut(&region::CONFIG).unwrap().1;
    config[..4].copy_from_slice(&[0xde, 0x10, 0x80, 0x1b]);
    config[9..12].copy_from_slice(&[0, 0, 3]);
    script.regions.insert(0, (3, vec![0; 1 << 20], vec![]));
    let (_fake, function) = function_of(script, &GuestView::default());
    let function = function.unwrap();
    for round in 1..=20 {
        function.reset(ResetCause::Client).unwrap();
        function.write(region::CONFIG, 4, &[2, 0]).unwrap();
        for _ in 0..10 {
            function.write(0, 0x8_8704, &[round, 0, 0, 0]).unwrap();
        }
        let armed = function.doorbells(0, 64).unwrap().len();
        // The one that is known, and one of each round.
        assert_eq!(armed, MAX_DOORBELLS.min(1 + usize::from(round)));
    }
}
