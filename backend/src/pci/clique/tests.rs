// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a clique goes, and where it does not.

use super::*;
use crate::pci::lists::tests::{assert_well_formed, bytes_with, seen};
use crate::pci::{
    Capability, ConfigSpaceBuilder, DeviceSizes, GuestView, IdentityOverrides, ListFault, ViewError,
};

fn view(clique: &str) -> GuestView {
    GuestView {
        nvidia_clique: Some(clique.parse().unwrap()),
        ..GuestView::default()
    }
}

fn shown(parts: &[(usize, &[u8])], clique: &str) -> Result<Vec<u8>, CliqueError> {
    let bytes = bytes_with(256, parts);
    let space = ConfigSpace::from_device(&bytes, &DeviceSizes::default()).unwrap();
    match view(clique).apply(space) {
        Ok(space) => {
            let read = seen(&space, &bytes);
            assert_well_formed(&read);
            Ok(read)
        }
        Err(ViewError::Clique(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn numbers() {
    let get = |text: &str| text.parse().map(Clique::number);
    assert_eq!((get("0"), get("8"), get("15")), (Ok(0), Ok(8), Ok(15)));
    for bad in ["", "16", "255", "256", "-1", "+1", "abc", "0x8", " 8", "8 "] {
        assert_eq!(get(bad), Err(NotAClique), "{bad:?}");
    }
}

#[test]
fn the_first_place_where_it_is_free() {
    let read = shown(&[(0x40, &[1, 0x50]), (0x50, &[9, 0, 8])], "8").unwrap();
    assert_eq!(read[0x51], 0xc8, "linked from the last");
    assert_eq!(read[0xc8..0xd0], [9, 0, 8, 0x50, 0x32, 0x50, 0x40, 0]);
    // A vendor capability that ends where the place begins.
    let read = shown(&[(0x40, &[9, 0, 0x88])], "15").unwrap();
    assert_eq!(read[0xc8..0xd0], [9, 0, 8, 0x50, 0x32, 0x50, 0x78, 0]);
}

#[test]
fn the_second_where_something_begins_at_the_first() {
    let read = shown(&[(0x40, &[1, 0xc8]), (0xc8, &[0x11, 0])], "0").unwrap();
    assert_eq!(read[0xc9], 0xd4);
    assert_eq!(read[0xd4..0xdc], [9, 0, 8, 0x50, 0x32, 0x50, 0, 0]);
}

#[test]
fn an_empty_list_gets_one() {
    let mut bytes = bytes_with(256, &[]);
    (bytes[6], bytes[0x34]) = (0, 0);
    let space = ConfigSpace::from_device(&bytes, &DeviceSizes::default()).unwrap();
    let read = seen(&view("3").apply(space).unwrap(), &bytes);
    assert_well_formed(&read);
    assert_eq!(
        (read[6] & 0x10, read[0x34], read[0xce]),
        (0x10, 0xc8, 3 << 3)
    );
}

#[test]
fn all_eight_bytes_must_be_free() {
    let no_room: &[&[(usize, &[u8])]] = &[
        // Reaches into the first place without beginning there.
        &[(0x40, &[9, 0, 0x90])],
        // Begins inside the first place.
        &[(0x40, &[1, 0xcc]), (0xcc, &[9, 0, 4])],
        // The first taken, and the second too.
        &[
            (0x40, &[0x11, 0xc8]),
            (0xc8, &[9, 0xd4, 4]),
            (0xd4, &[1, 0]),
        ],
        &[
            (0x40, &[0x11, 0xc8]),
            (0xc8, &[9, 0xd8, 4]),
            (0xd8, &[1, 0]),
        ],
        // MSI with 64 bits and masks, of 24 bytes, from the first place over the second.
        &[(0x40, &[1, 0xc8]), (0xc8, &[5, 0, 0x80, 1])],
    ];
    for parts in no_room {
        assert_eq!(shown(parts, "1"), Err(CliqueError::NoRoom), "{parts:x?}");
    }
}

#[test]
fn broken_lists_are_refused() {
    let looping = shown(&[(0x40, &[1, 0x50]), (0x50, &[9, 0x40, 8])], "1");
    let (pointer, to) = (0x51, 0x40);
    assert_eq!(
        looping,
        Err(CliqueError::BrokenList(ListFault::Loop { pointer, to }))
    );
    let crooked = shown(&[(0x40, &[1, 0x51]), (0x50, &[9, 0, 8])], "1");
    let (pointer, to) = (0x41, 0x51);
    assert_eq!(
        crooked,
        Err(CliqueError::BrokenList(ListFault::Misaligned {
            pointer,
            to
        }))
    );
}

#[test]
fn vendor_and_class_are_those_the_guest_sees() {
    let build = |vendor_id, class_code| {
        let identity = Identity {
            vendor_id,
            class_code,
            ..Identity::default()
        };
        let builder = ConfigSpaceBuilder::new(identity).capability(Capability::PowerManagement);
        builder.build().unwrap()
    };
    let refused = |vendor, class| match view("1").apply(build(vendor, class)) {
        Err(ViewError::Clique(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(0x8086, 0x03_0000), CliqueError::NotNvidia(0x8086));
    assert_eq!(
        refused(0x10de, 0x04_0300),
        CliqueError::NotDisplay(0x04_0300)
    );
    for class in [0x03_0000, 0x03_0200, 0x03_8000] {
        assert!(view("1").apply(build(0x10de, class)).is_ok());
    }
    let overridden = GuestView {
        identity: IdentityOverrides {
            vendor_id: Some("0x10de".parse().unwrap()),
            class: Some("0x030200".parse().unwrap()),
            ..IdentityOverrides::default()
        },
        ..view("1")
    };
    let space = overridden.apply(build(0x8086, 0x02_0000)).unwrap();
    assert_eq!(space.capabilities().last(), Some((9, 0xc8)));
    let hidden = GuestView {
        identity: IdentityOverrides {
            vendor_id: Some("0x1002".parse().unwrap()),
            ..IdentityOverrides::default()
        },
        ..view("1")
    };
    assert!(hidden.apply(build(0x10de, 0x03_0000)).is_err());
}
