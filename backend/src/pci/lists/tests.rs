// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists as devices should not have them, and what is left of them.

use proptest::prelude::*;

use super::*;
use crate::pci::DeviceSizes;

/// What every guest may rely on, checked without any of the code under test.
pub(in crate::pci) fn assert_well_formed(bytes: &[u8]) {
    let dword = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut starts = Vec::new();
    let mut at = usize::from(bytes[0x34]);
    if bytes[6] & 0x10 == 0 {
        assert_eq!(at, 0, "a head without a list");
    }
    while at != 0 {
        assert!(at % 4 == 0 && (0x40..=0xfc).contains(&at), "{at:#x}");
        assert!(!starts.contains(&at), "a loop at {at:#x}");
        assert_ne!(bytes[at], 0xff);
        starts.push(at);
        at = bytes[at + 1].into();
    }
    if bytes.len() < 0x104 || dword(0x100) == 0 {
        return;
    }
    let mut extended = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        assert!(
            at % 4 == 0 && (0x100..bytes.len() - 7).contains(&at),
            "{at:#x}"
        );
        let header = dword(at);
        assert_ne!(header & 0xffff, 0xffff, "{at:#x}");
        if header & 0xffff == 0 {
            assert!(at == 0x100 && header >> 20 != 0, "a stray null capability");
        }
        // Even the smallest has 8 bytes, and a null capability its header.
        let len = if header & 0xffff == 0 { 4 } else { 8 };
        for (start, other) in &extended {
            assert!(
                at >= start + other || at + len <= *start,
                "overlap at {at:#x}"
            );
        }
        extended.push((at, len));
        at = usize::try_from(header >> 20).unwrap();
    }
    let lists = Lists::of(bytes);
    assert_eq!(lists.faults, [None; 2]);
    assert_eq!(lists.standard.len(), starts.len());
    for list in [&lists.standard, &lists.extended] {
        for (position, one) in list.iter().enumerate() {
            for other in &list[..position] {
                assert!(!overlaps(&(one.at..one.end()), &(other.at..other.end())));
            }
        }
    }
}

/// Bytes with a header, a list head, and these `(offset, bytes)`.
pub(in crate::pci) fn bytes_with(size: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[..2].copy_from_slice(&[0xde, 0x10]);
    bytes[6] = 0x10;
    bytes[0x0b] = 3;
    bytes[0x34] = 0x40;
    for (at, part) in parts {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    bytes
}

/// Arbitrary bytes, half of them with a list that leads somewhere.
pub(in crate::pci) fn any_space() -> impl Strategy<Value = Vec<u8>> {
    let ids = prop_oneof![
        Just(1_u8),
        Just(5),
        Just(9),
        Just(0x10),
        Just(0x11),
        any::<u8>()
    ];
    let end = prop_oneof![Just(0), any::<u8>()];
    let links = proptest::collection::vec((0x10_u8..0x40, ids, end), 0..12);
    let known = prop_oneof![
        Just(0_u16),
        Just(1),
        Just(0xb),
        Just(0xe),
        Just(0xf),
        Just(0x10),
        Just(0x13),
        Just(0x15),
        Just(0x1b),
        Just(0xffff),
        any::<u16>(),
    ];
    let headers = proptest::collection::vec((0_u16..0x3c0, known, 0_u16..16, 0_u16..0x1000), 0..12);
    let size = prop_oneof![Just(256_usize), Just(4096), 256..=4096_usize];
    let noise = proptest::collection::vec(any::<u8>(), 4096);
    (size, noise, links, headers).prop_map(|(size, mut bytes, links, headers)| {
        // The offsets drawn make the chain; the last pointer is what it is.
        let mut pointer = 0x34;
        for (dword, id, next) in links {
            let at = usize::from(dword) * 4;
            bytes[pointer] = dword * 4;
            bytes[at] = id;
            pointer = at + 1;
            bytes[pointer] = next;
        }
        let mut at = 0x100;
        for (next, id, version, odd) in headers {
            let to = if odd % 4 == 0 { odd } else { 0x100 + next * 4 };
            let [low, high] = (to << 4 | version).to_le_bytes();
            let [id_low, id_high] = id.to_le_bytes();
            bytes[at..at + 4].copy_from_slice(&[id_low, id_high, low, high]);
            at = usize::from(to & 0xffc).clamp(0x100, 0xffc);
        }
        bytes[..4].copy_from_slice(&[0xde, 0x10, 1, 2]);
        bytes[0x0e] = 0;
        bytes.truncate(size);
        bytes
    })
}

/// What a guest reads when the device still reads `bytes`.
pub(in crate::pci) fn seen(space: &ConfigSpace, bytes: &[u8]) -> Vec<u8> {
    let mut read = bytes.to_vec();
    space.compose_over(0, &mut read).unwrap();
    read
}

fn of(parts: &[(usize, &[u8])]) -> (Vec<u16>, Option<ListFault>) {
    let lists = Lists::of(&bytes_with(256, parts));
    let at = lists.standard.iter().map(|entry| entry.at).collect();
    (at, lists.faults[0])
}

#[test]
fn faults_are_named_and_the_rest_is_kept() {
    use ListFault::*;
    let good = (vec![0x40, 0x60], None);
    assert_eq!(of(&[(0x40, &[1, 0x60]), (0x60, &[0x11])]), good);
    let looping = of(&[(0x40, &[1, 0x60]), (0x60, &[0x11, 0x40])]);
    let back = Loop {
        pointer: 0x61,
        to: 0x40,
    };
    assert_eq!(looping, (vec![0x40, 0x60], Some(back)));
    assert_eq!(back.to_string(), "the pointer at 0x61 leads back to 0x40");
    let crooked = of(&[(0x40, &[1, 0x62]), (0x60, &[0x11])]);
    let fault = Misaligned {
        pointer: 0x41,
        to: 0x62,
    };
    assert_eq!(crooked, (vec![0x40, 0x60], Some(fault)));
    let outside = of(&[(0x40, &[1, 0x3c])]);
    let fault = Outside {
        pointer: 0x41,
        to: 0x3c,
    };
    assert_eq!(outside, (vec![0x40], Some(fault)));
    let absent = of(&[(0x40, &[1, 0xfc]), (0xfc, &[0xff, 0xff])]);
    assert_eq!(absent, (vec![0x40], Some(Absent { to: 0xfc })));
    let overlapping = of(&[(0x40, &[1, 0x44]), (0x44, &[0x11, 0x60]), (0x60, &[9])]);
    assert_eq!(overlapping, (vec![0x40, 0x60], Some(Overlap { at: 0x44 })));
    let past_the_end = of(&[(0x40, &[9, 0xf8, 8]), (0xf8, &[0x11])]);
    assert_eq!(past_the_end, (vec![0x40], Some(Overlap { at: 0xf8 })));
    let twice = of(&[(0x40, &[1, 0x50]), (0x50, &[1])]);
    assert_eq!(twice, (vec![0x40], Some(Duplicate { at: 0x50 })));
}

#[test]
fn a_length_ends_where_the_next_begins() {
    // A vendor capability that says 0x40 bytes, with another 0x10 bytes behind it.
    let bytes = bytes_with(256, &[(0x40, &[9, 0x50, 0x40]), (0x50, &[1])]);
    let lengths: Vec<_> = Lists::of(&bytes).standard.iter().map(|e| e.len).collect();
    assert_eq!(lengths, [0x10, 8]);
}

#[test]
fn extended_faults_too() {
    let header = |id: u16, next: u16| {
        let [a, b, c, d] = [id.to_le_bytes(), (next << 4 | 1).to_le_bytes()].concat()[..] else {
            unreachable!()
        };
        [a, b, c, d]
    };
    let of = |parts: &[(usize, &[u8])]| {
        let lists = Lists::of(&bytes_with(4096, parts));
        let ids: Vec<_> = lists.extended.iter().map(|entry| entry.id).collect();
        (ids, lists.faults[1])
    };
    let (first, second) = (header(3, 0x200), header(0xb, 0));
    assert_eq!(
        of(&[(0x100, &first), (0x200, &second)]),
        (vec![3, 0xb], None)
    );
    let (ids, fault) = of(&[(0x100, &first), (0x200, &header(0xb, 0x100))]);
    assert_eq!(ids, [3, 0xb]);
    assert!(matches!(fault, Some(ListFault::Loop { to: 0x100, .. })));
    let (ids, fault) = of(&[(0x100, &header(0, 0x200)), (0x200, &second)]);
    assert_eq!((ids, fault), (vec![0xb], None), "past what the kernel hid");
    assert_eq!(of(&[(0x100, &[0xff; 4])]), (vec![], None), "no list at all");
    let (_, fault) = of(&[(0x100, &header(3, 0xffc)), (0xffc, &second)]);
    assert_eq!(fault, Some(ListFault::Overlap { at: 0xffc }));
    let (_, fault) = of(&[(0x100, &header(3, 0x80))]);
    assert!(matches!(fault, Some(ListFault::Outside { to: 0x80, .. })));
}

#[test]
fn a_good_list_is_linked_as_it_was() {
    let bytes = bytes_with(
        4096,
        &[
            (0x40, &[1, 0x80, 3, 0]),
            (0x80, &[0x10, 0x60, 2, 0]),
            (0x60, &[9, 0, 8, 0x55]),
            (0x100, &[1, 0, 0x02, 0x20]),
            (0x200, &[0xb, 0, 0x01, 0]),
        ],
    );
    let space = ConfigSpace::from_device(&bytes, &DeviceSizes::default()).unwrap();
    assert_eq!(seen(&space, &bytes), bytes);
}

proptest! {
    #[test]
    fn whatever_a_device_has_the_guest_finds_good_lists(bytes in any_space()) {
        if let Ok(mut space) = ConfigSpace::from_device(&bytes, &DeviceSizes::default()) {
            assert_well_formed(&seen(&space, &bytes));
            assert_well_formed(space.bytes());
            // Nothing that a guest writes, and nothing that the device changes, breaks them.
            for at in (0..bytes.len() as u64).step_by(4).filter(|at| at + 4 <= bytes.len() as u64) {
                space.write(at, &[0xff; 4]).unwrap();
            }
            assert_well_formed(space.bytes());
            let inverted: Vec<_> = bytes.iter().map(|byte| !byte).collect();
            space.reset();
            space.refresh(&inverted);
            let (standard, extended) = (space.capabilities().count(), space.extended_capabilities().count());
            let lists = Lists::of(&bytes);
            prop_assert_eq!(standard, lists.standard.len());
            prop_assert_eq!(extended, lists.extended.len());
        }
    }
}
