// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device made of a few lines, in front of which a function is composed.

use std::io::Write;

use super::*;
use crate::function::Function;
use crate::memory::{AddressSpace, CpuAccess};
use crate::migration::Guest;
use crate::pci::GuestView;

const LINES: &str = "\
# Region 1: 64-bit, prefetchable [size=16M]
# Region 5: ports [size=128]
# Expansion ROM at 0 [size=64K]
00: de 10 80 1b 07 05 10 00 a1 00 00 03 10 00 00 00
10: 00 00 00 f6 0c 00 00 e0 ff 3b 00 00 00 00 00 00
20: 00 00 00 00 01 e0 00 00 00 00 00 00 de 10 d8 11
30: 00 00 00 f7 60 00 00 00 00 00 00 00 0b 01 00 00
60: 01 68 23 00 0b 00 00 00 05 78 85 00 0c f0 e0 fe
70: 00 00 00 00 21 40 00 00 10 c8 02 00 e1 8d e8 17
80: 5f 29 09 00 03 3d 45 00 40 01 03 11 00 00 00 00
90: 00 00 00 00 00 00 00 00 00 00 00 00 13 00 00 00
c0: 00 00 00 00 00 00 00 00 11 00 05 80 00 00 b9 00
d0: 00 00 ba 00 00 00 00 00 00 00 00 00 00 00 00 00
100: 0b 00 01 00 01 00 41 02 00 00 00 00 00 00 00 00
";

fn device() -> DumpedGpu {
    let dump = Dump::parse(LINES.as_bytes()).unwrap();
    DumpedGpu::new(&dump, &ModelOptions::default()).unwrap()
}

fn function() -> Function {
    let memory = AddressSpace::new(CpuAccess::TrackedOnly, 8);
    Function::new(Arc::new(device()), Arc::new(memory), &GuestView::default()).unwrap()
}

fn config<const N: usize>(function: &Function, at: u64) -> [u8; N] {
    let mut data = [0; N];
    function.read(region::CONFIG, at, &mut data).unwrap();
    data
}

#[test]
fn what_a_driver_had_set_up_is_gone() {
    let function = function();
    assert_eq!(
        config(&function, 0),
        [0xde, 0x10, 0x80, 0x1b, 0, 0, 0x10, 0]
    );
    assert_eq!(
        config(&function, 0x10),
        [0, 0, 0, 0, 0xc, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(config(&function, 0x24), [1, 0, 0, 0]);
    assert_eq!(config(&function, 0x3c), [0, 1], "line and pin");
    assert_eq!(config(&function, 0x64), [8, 0], "awake");
    assert_eq!(config(&function, 0x6a), [0x84, 0], "MSI off");
    assert_eq!(config(&function, 0xca), [5, 0], "MSI-X off");
    assert_eq!(config(&function, 0x100), [0x0b, 0, 1, 0]);
}

#[test]
fn registers_take_what_is_written_until_a_reset() {
    let function = function();
    let write = |at, data: &[u8]| function.write(region::CONFIG, at, data).unwrap();
    write(0x14, &[0xff; 8]);
    assert_eq!(
        config(&function, 0x14),
        [0x0c, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff]
    );
    write(0x04, &[7, 4, 0xff, 0xff]);
    assert_eq!(
        config(&function, 0x04),
        [7, 4, 0x10, 0],
        "status is not written"
    );
    write(0x3c, &[11, 9]);
    assert_eq!(config(&function, 0x3c), [11, 1]);
    write(0x80, &[0x5f, 0x29]);
    assert_eq!(config(&function, 0x80), [0x5f, 0x29]);
    write(0x81, &[0xa9]);
    assert_eq!(config(&function, 0x80), [0, 0], "Initiate FLR");
    assert_eq!(config(&function, 0x04), [0, 0, 0x10, 0]);
}

#[test]
fn it_has_the_power_states_that_its_capability_says() {
    let with_d1 = LINES.replace("60: 01 68 23 00", "60: 01 68 23 02");
    for (lines, d1) in [(LINES, 0), (&with_d1, 1)] {
        let dump = Dump::parse(lines.as_bytes()).unwrap();
        let device = DumpedGpu::new(&dump, &ModelOptions::default()).unwrap();
        let memory = AddressSpace::new(CpuAccess::TrackedOnly, 8);
        let view = GuestView::default();
        let function = Function::new(Arc::new(device), Arc::new(memory), &view).unwrap();
        function.write(region::CONFIG, 4, &[2, 0]).unwrap();
        for (written, state) in [(1, d1), (0, 0), (2, 0), (3, 3), (0, 0)] {
            function.write(region::CONFIG, 0x64, &[written]).unwrap();
            assert_eq!(config(&function, 0x64), [8 | state], "D{written}");
            let mut data = [1];
            function.read(0, 0, &mut data).unwrap();
            let asleep = if state == 0 { 0 } else { 0xff };
            assert_eq!(data, [asleep], "BAR0 in D{state}");
        }
    }
}

#[test]
fn bars_are_memory() {
    let function = function();
    let mut data = [0; 4];
    function.write(region::CONFIG, 4, &[3]).unwrap();
    for (bar, at) in [(0, 0x9_0000), (1, 0xff_fffc), (5, 0x7c)] {
        function.write(bar, at, &[1, 2, 3, 4]).unwrap();
        function.read(bar, at, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4], "BAR {bar}");
    }
    assert!(function.read(5, 0x80, &mut data).is_err());
    assert!(function.read(3, 0, &mut data).is_err());
    // The MSI-X table is the composition's.
    function.read(0, 0xb9_000c, &mut data).unwrap();
    assert_eq!(data, [1, 0, 0, 0], "vector 0 is masked");
    function.reset(ResetCause::Client).unwrap();
    function.write(region::CONFIG, 4, &[3]).unwrap();
    for (bar, at) in [(0, 0x9_0000), (1, 0xff_fffc), (5, 0x7c)] {
        function.read(bar, at, &mut data).unwrap();
        assert_eq!(data, [0; 4], "BAR {bar}");
    }
}

#[test]
fn what_it_has_follows_its_capabilities() {
    let device = device();
    assert_eq!(device.irqs.map(|info| info.count), [1, 4, 6, 1, 1]);
    assert!(device.mapping(1).unwrap().is_some() && device.mapping(0).unwrap().is_none());
    assert_eq!(device.region(region::ROM).size, 0x1_0000);
    let images = rom::validate(&device.rom).unwrap();
    assert_eq!((images[0].vendor_id, images[0].device_id), (0x10de, 0x1b80));
    assert_eq!(device.region(region::VGA).size, 0);
}

#[test]
fn a_file_that_is_none_is_named() {
    let error = |path: &Path| {
        let opened = DumpedGpu::open(path, &ModelOptions::default());
        crate::report::chain(&opened.unwrap_err())
    };
    let missing = error(Path::new("no/such/file"));
    assert!(
        missing.contains("no/such/file") && missing.contains("No such file"),
        "{missing}"
    );
    assert!(error(Path::new("/dev/zero")).contains("More than"));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"00: 00\n").unwrap();
    assert!(error(file.path()).contains("Line 1"));
    file.write_all(&[0xff; 249]).unwrap();
    let bridge = error(file.path());
    assert!(bridge.contains("Header type 0x7f"), "{bridge}");
}

#[test]
fn a_clique_is_part_of_who_it_is() {
    let identity = |clique: Option<&str>| {
        let memory = AddressSpace::new(CpuAccess::TrackedOnly, 8);
        let view = GuestView {
            nvidia_clique: clique.map(|number| number.parse().unwrap()),
            ..GuestView::default()
        };
        let function = Function::new(Arc::new(device()), Arc::new(memory), &view).unwrap();
        Guest::identity(&function)
    };
    let (none, three, four) = (identity(None), identity(Some("3")), identity(Some("4")));
    assert!(three.differences(&identity(Some("3"))).is_empty());
    let other = three.differences(&four);
    assert_eq!(other.len(), 1, "nothing else differs");
    assert!(other[0].to_string().contains("clique"), "{}", other[0]);
    // The list of capabilities differs too.
    assert_eq!(three.differences(&none).len(), 2);
}
