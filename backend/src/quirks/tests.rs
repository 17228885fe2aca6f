// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which quirks a board has, and who answers where. No device is needed for that.

use super::*;

fn traits(vendor: u16, class: u32) -> Traits {
    let ids = Identity {
        vendor_id: vendor,
        device_id: 0x1234,
        class_code: class,
        ..Identity::default()
    };
    Traits {
        own: ids,
        shown: ids,
        sizes: [
            16 << 20,
            256 << 20,
            32 << 20,
            0,
            0x100,
            0x80,
            0,
            0,
            0xc_0000,
        ],
        wide: [false, true, true, false, false, false],
        io: [false, false, false, false, true, true],
        config_size: 4096,
        msi: Some(0x68),
        ids_at: Vec::new(),
    }
}

fn names(traits: &Traits) -> Vec<&'static str> {
    Quirks::find(traits, Vec::new()).names().collect()
}

fn read(quirks: &mut Quirks, region: u32, offset: u64, length: usize) -> (usize, Option<Handled>) {
    let (length, owner) = quirks.at(region, offset, length);
    let place = Place { region, offset };
    let quirk = owner.and_then(|owner| quirks.get(owner));
    (length, quirk.map(|quirk| quirk.read(place, length)))
}

fn write(quirks: &mut Quirks, region: u32, offset: u64, data: &[u8]) -> Option<Handled> {
    let (length, owner) = quirks.at(region, offset, data.len());
    assert_eq!(length, data.len(), "one answer for all of it");
    let place = Place { region, offset };
    let quirk = owner.and_then(|owner| quirks.get(owner));
    quirk.map(|quirk| quirk.write(place, data))
}

#[test]
fn who_has_which() {
    let vga = traits(VENDOR_NVIDIA, 0x03_0000);
    assert_eq!(
        names(&vga),
        [
            "nvidia-bar0-88000",
            "nvidia-bar0-1800",
            "nvidia-bar5",
            "nvidia-vga-3d0"
        ]
    );
    assert_eq!(
        names(&traits(VENDOR_NVIDIA, 0x03_0200)),
        ["nvidia-bar0-88000"],
        "a 3D controller"
    );
    assert!(names(&traits(VENDOR_NVIDIA, 0x04_0300)).is_empty(), "audio");
    assert!(names(&traits(VENDOR_INTEL, 0x03_0000)).is_empty());
    let mut modern = traits(VENDOR_NVIDIA, 0x03_0000);
    modern.sizes[8] = 0;
    assert_eq!(names(&modern), ["nvidia-bar0-88000", "nvidia-bar5"]);
    modern.ids_at = vec![0x1800];
    assert!(names(&modern).contains(&"nvidia-bar0-1800"));
    let mut hopper = traits(VENDOR_NVIDIA, 0x03_0200);
    hopper.ids_at = vec![0x9_2000];
    assert_eq!(names(&hopper), ["nvidia-bar0-88000", "nvidia-bar0-92000"]);
    let mut disguised = traits(VENDOR_NVIDIA, 0x03_0000);
    disguised.shown.vendor_id = 0x1234;
    assert_eq!(names(&disguised).len(), 4, "the hardware is what it is");

    let mut amd = traits(VENDOR_AMD, 0x03_0000);
    assert_eq!(
        names(&amd),
        ["amd-bar4", "amd-vga-3c3"],
        "registers in BAR5"
    );
    amd.sizes[5] = 0;
    assert_eq!(names(&amd), ["amd-bar4", "amd-vga-3c3", "amd-bar2-4000"]);
    amd.sizes[8] = 0;
    assert_eq!(
        names(&amd),
        ["amd-bar4", "amd-bar2-4000"],
        "without the VGA ranges"
    );
}

#[test]
fn an_access_is_divided_at_the_windows() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    assert_eq!(quirks.at(0, 0x1_7ffe, 4), (4, None));
    assert_eq!(quirks.at(0, 0x8_7ffe, 4), (2, None));
    assert_eq!(quirks.at(0, 0x17fc, 0x1000), (4, None));
    assert_eq!(
        read(&mut quirks, 0, 0x8_8ffe, 4),
        (2, Some(Handled::ConfigAndDevice(0xffe)))
    );
    assert_eq!(quirks.at(0, 0x8_9000, 4), (4, None));
    assert_eq!(
        read(&mut quirks, 0, 0x1804, 4),
        (4, Some(Handled::ConfigAndDevice(4)))
    );
    assert_eq!(quirks.at(0, 0x1900, 8), (8, None));
    for region in [1, 6, 7, 9, u32::MAX] {
        assert_eq!(quirks.at(region, 0x8_8000, 4), (4, None));
    }
    let trapped: Vec<_> = quirks.trapped(0).collect();
    assert_eq!(trapped, [0x1800..0x1900, 0x8_8000..0x8_9000]);
}

#[test]
fn windows_end_where_their_region_ends() {
    let mut small = traits(VENDOR_NVIDIA, 0x03_0000);
    small.sizes[0] = 0x8_8010;
    let quirks = Quirks::find(&small, Vec::new());
    let trapped: Vec<_> = quirks.trapped(0).collect();
    assert_eq!(trapped, [0x1800..0x1900, 0x8_8000..0x8_8010]);
    small.sizes[0] = 0x1000;
    assert_eq!(Quirks::find(&small, Vec::new()).trapped(0).count(), 0);
}

#[test]
fn behind_a_small_config_space_the_mirror_shows_nothing() {
    let mut small = traits(VENDOR_NVIDIA, 0x03_0200);
    small.config_size = 256;
    let mut quirks = Quirks::find(&small, Vec::new());
    let trapped: Vec<_> = quirks.trapped(0).collect();
    assert_eq!(trapped, [0x8_8000..0x8_8100, 0x8_8100..0x8_9000]);
    assert_eq!(
        read(&mut quirks, 0, 0x8_80fe, 4),
        (2, Some(Handled::ConfigAndDevice(0xfe)))
    );
    for at in [0x8_8100, 0x8_8200, 0x8_8704, 0x8_8ffc] {
        assert_eq!(read(&mut quirks, 0, at, 4), (4, Some(Handled::Fixed(0))));
    }
    for (at, data, answer) in [
        (0x8_8200, &[1; 4][..], Handled::Fixed(0)),
        (0x8_8704, &[0; 4], Handled::Device),
        (0x8_8704, &[0; 8], Handled::Fixed(0)),
        (0x8_8703, &[0; 2], Handled::Fixed(0)),
    ] {
        assert_eq!(write(&mut quirks, 0, at, data), Some(answer), "{at:#x}");
    }
}

#[test]
fn the_acknowledge_of_an_msi_reaches_the_hardware() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let at = 0x8_8068;
    for (offset, data, both) in [
        (at, &[5, 0][..], true),
        (at, &[5], true),
        (at + 1, &[0], true),
        (at, &[5, 0, 0x81, 0], false),
        (at + 2, &[0x81, 0], false),
        (at - 1, &[0], false),
    ] {
        let config = offset - 0x8_8000;
        let expected = if both {
            Handled::ConfigAndDevice(config)
        } else {
            Handled::Config(config)
        };
        assert_eq!(
            write(&mut quirks, 0, offset, data),
            Some(expected),
            "{offset:#x}"
        );
    }
}

#[test]
fn doorbells_are_what_is_known_and_what_is_repeated() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let known = Doorbell {
        region: 0,
        offset: 0x8_8704,
        size: 4,
        data: 0,
    };
    assert_eq!(quirks.doorbells(), [known]);
    for _ in 0..10 {
        write(&mut quirks, 0, 0x8_8704, &[0; 4]);
        write(&mut quirks, 0, 0x8_8706, &[1, 0]);
        // COMMAND, the address of an MSI, a capability that may be hidden, and what is around.
        write(&mut quirks, 0, 0x8_8004, &[6, 0]);
        write(&mut quirks, 0, 0x8_806c, &[0, 0, 0xe0, 0xfe]);
        write(&mut quirks, 0, 0x8_8604, &[1, 0]);
        write(&mut quirks, 0, 0x8_8700, &[0; 8]);
        write(&mut quirks, 0, 0x8_8704, &[0; 8]);
        write(&mut quirks, 0, 0x8_8704, &[0; 3]);
    }
    let repeated = Doorbell {
        offset: 0x8_8706,
        size: 2,
        data: 1,
        ..known
    };
    assert_eq!(quirks.doorbells(), [known, repeated]);
    quirks.reset();
    assert_eq!(quirks.doorbells(), [known]);
}

#[test]
fn the_ports_of_bar5() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let word = |value: u32| value.to_le_bytes();
    let data = |quirks: &mut Quirks| read(quirks, 5, 0xc, 4).1.unwrap();
    let nobody = Handled::Fixed(0xff);
    assert_eq!(data(&mut quirks), nobody, "the hardware has any address");
    assert_eq!(write(&mut quirks, 5, 0xc, &word(7)), Some(nobody));
    // Neither switch was touched.
    let written = write(&mut quirks, 5, 8, &word(0x8_8034));
    assert_eq!(written, Some(Handled::Device));
    assert_eq!(data(&mut quirks), Handled::Config(0x34));
    assert_eq!(read(&mut quirks, 5, 0xe, 2).1, Some(Handled::Config(0x36)));
    assert_eq!(
        write(&mut quirks, 5, 0xc, &word(7)),
        Some(Handled::Config(0x34))
    );
    for (address, answer) in [
        (0x1810, Handled::Config(0x10)),
        (0x1900, Handled::Device),
        (0x8_7ffc, Handled::Device),
        (0x8_7ffd, Handled::ConfigEdge { skip: 3, at: 0 }),
        (0x8_8ffc, Handled::Config(0xffc)),
        (0x8_8fff, Handled::ConfigEdge { skip: 0, at: 0xfff }),
        (0x8_9000, Handled::Device),
        (0, Handled::Device),
        (u32::MAX, Handled::Device),
    ] {
        write(&mut quirks, 5, 8, &word(address));
        assert_eq!(data(&mut quirks), answer, "{address:#x}");
        // In halves, of which nobody knows what the hardware makes.
        let [a, b, c, d] = word(address);
        write(&mut quirks, 5, 8, &[a, b]);
        write(&mut quirks, 5, 10, &[c, d]);
        let answer = match answer {
            Handled::Device => nobody,
            config => config,
        };
        assert_eq!(data(&mut quirks), answer, "{address:#x} in halves");
    }
}

#[test]
fn ports_show_nothing_behind_a_small_config_space() {
    for (vendor, region, address, data, mirror) in [
        (VENDOR_NVIDIA, 5, 8, 0xc, 0x8_8000_u32),
        (VENDOR_AMD, 4, 0, 4, 0x4000),
    ] {
        let mut small = traits(vendor, 0x03_0000);
        small.config_size = 256;
        let mut quirks = Quirks::find(&small, Vec::new());
        for (at, answer) in [
            (0xfc, Handled::Config(0xfc)),
            (0xfd, Handled::ConfigEdge { skip: 0, at: 0xfd }),
            (0x100, Handled::Fixed(0)),
            (0xffc, Handled::Fixed(0)),
            (0x1000, Handled::Device),
        ] {
            write(&mut quirks, region, address, &(mirror + at).to_le_bytes());
            assert_eq!(read(&mut quirks, region, data, 4).1, Some(answer));
        }
    }
}

#[test]
fn an_address_outlives_neither_reset_nor_migration_unless_it_is_composed() {
    let nvidia = || Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let (mut quirks, mut other) = (nvidia(), nvidia());
    let data = |quirks: &mut Quirks| read(quirks, 5, 0xc, 4).1.unwrap();
    let mut moved = |quirks: &Quirks| {
        let saved = quirks.save();
        other.check(&saved).unwrap();
        other.restore(&saved);
        data(&mut other)
    };
    assert_eq!(moved(&quirks), Handled::Fixed(0xff));
    write(&mut quirks, 5, 8, &0x100_u32.to_le_bytes());
    assert_eq!(data(&mut quirks), Handled::Device);
    assert_eq!(moved(&quirks), Handled::Fixed(0xff), "not its hardware's");
    write(&mut quirks, 5, 8, &0x8_8040_u32.to_le_bytes());
    assert_eq!(moved(&quirks), Handled::Config(0x40));
    quirks.reset();
    assert_eq!(data(&mut quirks), Handled::Fixed(0xff));
}

#[test]
fn what_earlier_versions_saved_is_read() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    // Its name, and address, master and enable.
    let words: [u32; 3] = [0x8_8010, 0, 1];
    let mut saved = [&[11][..], b"nvidia-bar5", &[12, 0, 0, 0]].concat();
    saved.extend(words.into_iter().flat_map(u32::to_le_bytes));
    quirks.check(&saved).unwrap();
    quirks.restore(&saved);
    assert_eq!(read(&mut quirks, 5, 0xc, 4).1, Some(Handled::Config(0x10)));
    // And they read what is saved: with both switches on, as they take it.
    let now = quirks.save();
    assert_eq!(now[16..28], [0x10, 0x80, 8, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
}

/// Writes to VGA ports, in the order of their bytes, as one access: who answers each piece.
fn out(quirks: &mut Quirks, port: u64, data: &[u8]) -> Vec<Option<Handled>> {
    let mut answers = Vec::new();
    let mut done = 0;
    while done < data.len() {
        let at = port + done as u64;
        let (length, _) = quirks.at(8, at, data.len() - done);
        answers.push(write(quirks, 8, at, &data[done..done + length]));
        done += length;
    }
    answers
}

const CRTC: u64 = 0x3d4;
const DATA: u64 = 0x3d0;

#[test]
fn the_old_way_through_vga_ports() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let device = [Some(Handled::Device)];
    let select = |quirks: &mut Quirks, address: u32, how: u8| {
        assert_eq!(out(quirks, CRTC, &[0x38, 3]), device);
        assert_eq!(out(quirks, DATA, &address.to_le_bytes()), device);
        assert_eq!(out(quirks, CRTC, &[0x38, how]), device);
    };
    for (address, config) in [(0x1834, 0x34), (0x8_8010, 0x10), (0x8_8ffc, 0xffc)] {
        select(&mut quirks, address, 5);
        for _ in 0..2 {
            let all = (4, Some(Handled::Config(config)));
            assert_eq!(read(&mut quirks, 8, DATA, 4), all, "{address:#x}");
            let upper = (2, Some(Handled::Config(config + 2)));
            assert_eq!(read(&mut quirks, 8, DATA + 2, 2), upper);
            read(&mut quirks, 8, CRTC, 2);
        }
        select(&mut quirks, address, 7);
        let written = out(&mut quirks, DATA, &[6, 0, 0, 0]);
        assert_eq!(written, [Some(Handled::Config(config))]);
    }
    select(&mut quirks, 0x8_8ffe, 5);
    let end = Handled::ConfigEdge { skip: 0, at: 0xffe };
    assert_eq!(read(&mut quirks, 8, DATA, 4).1, Some(end));
    let inside = Handled::Config(0xffe);
    assert_eq!(read(&mut quirks, 8, DATA, 2).1, Some(inside));
    assert_eq!(out(&mut quirks, DATA, &[0; 4]), [Some(end)]);
    assert_eq!(out(&mut quirks, DATA, &[0; 2]), [Some(inside)]);
    for address in [0x1900, 0x8_9000, 0] {
        select(&mut quirks, address, 5);
        assert_eq!(read(&mut quirks, 8, DATA, 4).1, Some(Handled::Device));
    }
    out(&mut quirks, CRTC, &[0x38, 0]);
    assert_eq!(read(&mut quirks, 8, DATA, 1).1, Some(Handled::Device));
}

#[test]
fn vga_ports_take_bytes_and_words_too() {
    let nvidia = || Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    // By bytes.
    let mut quirks = nvidia();
    out(&mut quirks, CRTC, &[0x38]);
    out(&mut quirks, CRTC + 1, &[3]);
    out(&mut quirks, DATA, &0x1810_u32.to_le_bytes());
    out(&mut quirks, CRTC + 1, &[5]);
    let bar0 = Some(Handled::Config(0x10));
    assert_eq!(read(&mut quirks, 8, DATA, 4), (4, bar0));
    // Another register of the CRTC, and one access from port to port.
    out(&mut quirks, CRTC, &[0x0c, 7]);
    assert_eq!(read(&mut quirks, 8, DATA, 4), (4, bar0));
    out(&mut quirks, CRTC, &[0x38, 3]);
    out(&mut quirks, DATA + 2, &[0, 0, 0x38, 5]);
    assert_eq!(read(&mut quirks, 8, DATA, 4), (4, bar0), "the upper half");
    // The lower half of an address: a mirror's, or any.
    for (low, answer) in [
        (0x1834_u16, Handled::Config(0x34)),
        (0x1904, Handled::Fixed(0xff)),
        (0x8010, Handled::Fixed(0xff)),
    ] {
        let mut quirks = nvidia();
        out(&mut quirks, CRTC, &[0x38, 3]);
        out(&mut quirks, DATA, &low.to_le_bytes());
        out(&mut quirks, CRTC, &[0x38, 5]);
        assert_eq!(read(&mut quirks, 8, DATA, 4).1, Some(answer), "{low:#x}");
    }
}

#[test]
fn vga_ports_let_nothing_through_before_they_are_told_what_they_are() {
    let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let nobody = Some(Handled::Fixed(0xff));
    assert_eq!(read(&mut quirks, 8, DATA, 4), (4, nobody));
    out(&mut quirks, CRTC + 1, &[5]);
    assert_eq!(out(&mut quirks, DATA, &[0; 4]), [nobody], "no index yet");
    out(&mut quirks, CRTC, &[0x38, 3]);
    out(&mut quirks, DATA, &0x1810_u32.to_le_bytes());
    let saved = quirks.save();
    quirks.reset();
    assert_eq!(read(&mut quirks, 8, DATA, 4), (4, nobody), "reset");
    // As earlier versions saved it, in the middle of a read.
    let mut earlier = saved.clone();
    let step = earlier.len() - 5;
    earlier[step] = 3;
    for saved in [saved, earlier] {
        quirks.check(&saved).unwrap();
        quirks.restore(&saved);
        assert_eq!(read(&mut quirks, 8, DATA, 4), (4, nobody), "migrated");
        out(&mut quirks, CRTC, &[0x38, 5]);
        let bar0 = Some(Handled::Config(0x10));
        assert_eq!(read(&mut quirks, 8, DATA, 4), (4, bar0));
    }
}

#[test]
fn amd_ports() {
    let mut amd = traits(VENDOR_AMD, 0x03_0000);
    amd.sizes[5] = 0;
    let mut quirks = Quirks::find(&amd, Vec::new());
    assert_eq!(
        read(&mut quirks, 8, 0x3c3, 1).1,
        Some(Handled::Config(0x21))
    );
    assert_eq!(read(&mut quirks, 4, 4, 4).1, Some(Handled::Fixed(0xff)));
    write(&mut quirks, 4, 0, &0x4008_u32.to_le_bytes());
    assert_eq!(read(&mut quirks, 4, 4, 4).1, Some(Handled::Config(8)));
    write(&mut quirks, 4, 0, &0x5008_u32.to_le_bytes());
    assert_eq!(read(&mut quirks, 4, 4, 4).1, Some(Handled::Device));
    assert_eq!(
        read(&mut quirks, 2, 0x4010, 4).1,
        Some(Handled::ConfigAndDevice(0x10))
    );
    assert_eq!(quirks.trapped(2).next(), Some(0x4000..0x4100));
    assert_eq!(quirks.trapped(2).count(), 1);
}

#[test]
fn foreign_state_is_refused() {
    let quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
    let saved = quirks.save();
    let none = Quirks::default();
    none.check(&[]).unwrap();
    assert!(none.check(&saved).unwrap_err().contains("nvidia-bar5"));
    for length in 1..saved.len() {
        // A cut between two of them leaves a list that is shorter.
        let cut = quirks.check(&saved[..length]);
        assert!(cut.is_err() || sections(&saved[..length]).is_some());
    }
    let mut wrong = saved.clone();
    *wrong.last_mut().unwrap() = 0;
    let at = saved.len() - 5;
    wrong[at] = 9;
    let refused = quirks.check(&wrong).unwrap_err();
    assert!(refused.contains("makes no sense"), "{refused}");
}

proptest::proptest! {
    #[test]
    fn no_state_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
        let mut quirks = Quirks::find(&traits(VENDOR_NVIDIA, 0x03_0000), Vec::new());
        if quirks.check(&bytes).is_ok() {
            quirks.restore(&bytes);
        }
    }
}
