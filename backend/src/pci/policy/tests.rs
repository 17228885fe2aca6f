// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules over good lists and over bad ones.

use proptest::prelude::*;

use super::*;
use crate::pci::lists::tests::{any_space, assert_well_formed, bytes_with, seen};
use crate::pci::{Clique, DeviceSizes, GuestView};

fn header(id: u16, next: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (id.to_le_bytes(), (next << 4 | 1).to_le_bytes());
    [a, b, c, d]
}

/// A device with this extended list, each of 0x40 bytes full of ones, one after the other.
fn with_extended(ids: &[u16]) -> (Vec<u8>, ConfigSpace) {
    let mut bytes = bytes_with(4096, &[(0x40, &[1, 0])]);
    bytes[0x100..0x100 + 0x40 * ids.len()].fill(0x11);
    for (position, &id) in ids.iter().enumerate() {
        let at = 0x100 + 0x40 * position;
        let last = position + 1 == ids.len();
        let next = if last {
            0
        } else {
            u16::try_from(at + 0x40).unwrap()
        };
        bytes[at..at + 4].copy_from_slice(&header(id, next));
    }
    let space = ConfigSpace::from_device(&bytes, &DeviceSizes::default()).unwrap();
    (bytes, space)
}

fn shown(ids: &[u16], policy: &Policy) -> (Vec<u16>, Vec<u8>) {
    let (bytes, mut space) = with_extended(ids);
    policy.apply(&mut space).unwrap();
    let read = seen(&space, &bytes);
    assert_well_formed(&read);
    (
        space.extended_capabilities().map(|(id, _)| id).collect(),
        read,
    )
}

#[test]
fn what_no_guest_is_shown() {
    let ids = [
        PCI_EXT_CAP_ID_ERR,
        PCI_EXT_CAP_ID_ARI,
        PCI_EXT_CAP_ID_SRIOV,
        PCI_EXT_CAP_ID_ATS,
        PCI_EXT_CAP_ID_PRI,
        PCI_EXT_CAP_ID_PASID,
        PCI_EXT_CAP_ID_VNDR,
        0x17,
        0x12,
    ];
    let (left, read) = shown(&ids, &Policy::for_guests(false));
    assert_eq!(left, [PCI_EXT_CAP_ID_ERR, PCI_EXT_CAP_ID_VNDR, 0x17, 0x12]);
    assert_eq!(read[0x140..0x148], [0; 8], "what is hidden reads zero");
    assert_eq!(read[0x180..0x1c0], [0; 0x40]);
    let (left, _) = shown(&ids, &Policy::for_guests(true));
    let translation = [PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_PRI, PCI_EXT_CAP_ID_PASID];
    assert_eq!(left[1..4], translation);
}

#[test]
fn hiding_the_first_leaves_a_head() {
    let (left, read) = shown(
        &[PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_VNDR],
        &Policy::for_guests(false),
    );
    assert_eq!(left, [PCI_EXT_CAP_ID_VNDR]);
    assert_eq!(
        read[0x100..0x104],
        [0, 0, 0, 0x14],
        "a null capability that leads on"
    );
    let (left, read) = shown(
        &[PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_PRI],
        &Policy::for_guests(false),
    );
    assert!(left.is_empty());
    assert_eq!(read[0x100..0x104], [0; 4], "no list");
}

#[test]
fn what_is_hidden_takes_no_writes() {
    let (_, mut space) = with_extended(&[PCI_EXT_CAP_ID_SRIOV]);
    assert_eq!(space.for_device(0x108, &[1, 0]).count(), 1);
    Policy::for_guests(false).apply(&mut space).unwrap();
    assert_eq!(space.for_device(0x108, &[1, 0]).count(), 0);
    space.write(0x108, &[0xff; 4]).unwrap();
    assert_eq!(space.bytes()[0x108..0x10c], [0; 4]);
}

#[test]
fn resizable_bars_have_their_size_and_no_other() {
    let rebar = |control: [u32; 2], supported: u32| {
        let (bytes, _) = with_extended(&[PCI_EXT_CAP_ID_REBAR]);
        let mut bytes = bytes;
        for (position, control) in control.into_iter().enumerate() {
            let at = 0x104 + 8 * position;
            bytes[at..at + 4].copy_from_slice(&supported.to_le_bytes());
            bytes[at + 4..at + 8].copy_from_slice(&control.to_le_bytes());
        }
        let mut space = ConfigSpace::from_device(&bytes, &DeviceSizes::default()).unwrap();
        Policy::for_guests(false).apply(&mut space).unwrap();
        let read = seen(&space, &bytes);
        let dword = |at| u32_at(&read, at);
        let left = space.extended_capabilities().count();
        (left, [0x104, 0x108, 0x10c, 0x110].map(dword))
    };
    // BAR 1 of 256 MiB and BAR 3 of 512 GiB, with what else there is in the upper half of control.
    let (left, registers) = rebar([0xffff_0841, 0x0000_1303], 0xffff_fff0);
    assert_eq!(left, 1);
    assert_eq!(registers, [1 << 12, 0x0841, 1 << 23, 0x1303]);
    let (left, registers) = rebar([0x1441, 0x1303], 0xffff_fff0);
    assert_eq!((left, registers), (0, [0; 4]), "a size without a bit");
    assert_eq!(rebar([0x08e1, 0], 0).0, 0, "seven BARs");
    assert_eq!(rebar([0x0801, 0], 0).0, 0, "none");
}

#[test]
fn standard_rules_and_insertions() {
    let bytes = bytes_with(
        4096,
        &[(0x40, &[9, 0x50, 8]), (0x50, &[3, 0x60]), (0x60, &[1, 0])],
    );
    let mut space = ConfigSpace::from_device(&bytes, &DeviceSizes::default()).unwrap();
    let policy = Policy {
        standard: vec![
            (PCI_CAP_ID_VNDR, Rule::Hide),
            (
                PCI_CAP_ID_VPD,
                Rule::Replace(|_| Some(RegisterBlock::new(4, &[Register::word(2, 7)]))),
            ),
            (PCI_CAP_ID_PM, Rule::Pass),
        ],
        insert: vec![(
            PCI_CAP_ID_VNDR,
            0x70,
            RegisterBlock::new(8, &[Register::byte(2, 8)]),
        )],
        insert_extended: vec![(PCI_EXT_CAP_ID_VNDR, 1, 0x300, RegisterBlock::new(12, &[]))],
        ..Policy::default()
    };
    policy.apply(&mut space).unwrap();
    let read = seen(&space, &bytes);
    assert_well_formed(&read);
    let list: Vec<_> = space.capabilities().collect();
    assert_eq!(list, [(3, 0x50), (1, 0x60), (9, 0x70)]);
    assert_eq!(read[0x40..0x48], [0; 8]);
    assert_eq!(read[0x50..0x54], [3, 0x60, 7, 0]);
    assert_eq!(read[0x70..0x78], [9, 0, 8, 0, 0, 0, 0, 0]);
    let list: Vec<_> = space.extended_capabilities().collect();
    assert_eq!(list, [(PCI_EXT_CAP_ID_VNDR, 0x300)]);
}

#[test]
fn what_has_no_room_is_refused() {
    let refused = |at: u16, len: usize| {
        let (_, mut space) = with_extended(&[1]);
        let policy = Policy {
            insert: vec![(9, at, RegisterBlock::new(len, &[]))],
            ..Policy::default()
        };
        policy.apply(&mut space).is_err()
    };
    assert!(!refused(0x48, 8) && !refused(0xf8, 8));
    for (at, len) in [
        (0x44, 8),
        (0x40, 4),
        (0x3c, 4),
        (0xfc, 8),
        (0x4a, 8),
        (0x100, 8),
        (0x50, 0),
    ] {
        assert!(refused(at, len), "{at:#x}");
    }
    assert!(refused(0x48, 0x1_0000));
}

proptest! {
    #[test]
    fn any_rules_over_any_bytes_leave_good_lists(
        bytes in any_space(),
        standard in proptest::collection::vec((any::<u8>(), 0..3_u8), 0..8),
        extended in proptest::collection::vec((0..0x20_u16, 0..3_u8), 0..16),
        places in proptest::collection::vec((0..0x400_u16, 0..64_usize), 0..3),
        ats in any::<bool>(),
    ) {
        let rule = |number| match number {
            0 => Rule::Pass,
            1 => Rule::Hide,
            _ => Rule::Replace(|bytes| Some(RegisterBlock::new(bytes.len(), &[]))),
        };
        let mut policy = Policy::for_guests(ats);
        policy.standard = standard.into_iter().map(|(id, number)| (id, rule(number))).collect();
        policy.extended.extend(extended.into_iter().map(|(id, number)| (id, rule(number))));
        for (at, len) in places {
            policy.insert.push((9, at, RegisterBlock::new(len, &[])));
            policy.insert_extended.push((0xb, 1, at * 4, RegisterBlock::new(len.max(8), &[])));
        }
        if let Ok(mut space) = ConfigSpace::from_device(&bytes, &DeviceSizes::default())
            && policy.apply(&mut space).is_ok()
        {
            assert_well_formed(&seen(&space, &bytes));
        }
    }

    #[test]
    fn a_clique_is_exact_or_refused(bytes in any_space(), number in 0..16_u8, display in any::<bool>()) {
        let mut bytes = bytes;
        if display {
            bytes[0x0b] = 3;
        }
        let clique: Clique = number.to_string().parse().unwrap();
        let view = GuestView { nvidia_clique: Some(clique), ..GuestView::default() };
        let Ok(space) = ConfigSpace::from_device(&bytes, &DeviceSizes::default()) else { return Ok(()) };
        let before: Vec<_> = space.capabilities().collect();
        if let Ok(mut space) = view.apply(space) {
            let after: Vec<_> = space.capabilities().collect();
            let (last, kept) = after.split_last().unwrap();
            prop_assert_eq!(kept, &before[..]);
            let place = if before.iter().any(|(_, at)| *at == 0xc8) { 0xd4 } else { 0xc8 };
            prop_assert_eq!(*last, (9, place));
            space.write(place.into(), &[0xff; 8]).unwrap();
            let read = seen(&space, &bytes);
            assert_well_formed(&read);
            let at = usize::from(place);
            prop_assert_eq!(&read[at..at + 8], &[9, 0, 8, b'P', b'2', b'P', number << 3, 0]);
        }
    }
}
