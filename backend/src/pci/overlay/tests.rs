// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Composed bits over a device's own, and devices that are none.

use std::borrow::Cow;

use proptest::prelude::*;

use super::*;
use crate::pci::BarOffset;
use crate::pci::{Capability, ConfigSpaceBuilder, Express, Identity, Msi, MsiX, PowerState};

const MSI_AT: u16 = 0x60;
const MSIX_AT: u16 = 0x80;

/// What a real device might read like, made by the builder and then moved about.
fn device() -> (Vec<u8>, DeviceSizes) {
    let config = ConfigSpaceBuilder::new(Identity {
        vendor_id: 0x1af4,
        device_id: 0x1050,
        ..Identity::default()
    })
    .interrupt_pin(1)
    .bar(0, Bar::memory64(1 << 20).prefetchable())
    .bar(2, Bar::memory32(0x4000))
    .bar(4, Bar::io(0x20))
    .rom(0x1_0000)
    .capability_at(0x40, Capability::PowerManagement)
    .capability_at(
        MSI_AT,
        Capability::Msi(Msi {
            vectors: 4,
            address_64bit: true,
            per_vector_masking: true,
        }),
    )
    .capability_at(
        MSIX_AT,
        Capability::MsiX(MsiX {
            vectors: 4,
            table: BarOffset { bar: 2, offset: 0 },
            pba: BarOffset {
                bar: 2,
                offset: 0x2000,
            },
        }),
    )
    .capability_at(0xa0, Capability::Express(Express::default()))
    .build()
    .unwrap();
    let mut sizes = DeviceSizes::default();
    sizes.bars[0] = 1 << 20;
    sizes.bars[2] = 0x4000;
    sizes.bars[4] = 0x20;
    sizes.rom = 0x1_0000;
    (config.bytes().to_vec(), sizes)
}

fn overlay() -> (Vec<u8>, ConfigSpace) {
    let (bytes, sizes) = device();
    let space = ConfigSpace::from_device(&bytes, &sizes).unwrap();
    (bytes, space)
}

#[test]
fn types_are_read_off_the_device() {
    let (_, space) = overlay();
    assert!(space.is_live());
    let bars: Vec<_> = space
        .bars()
        .map(|(index, state)| (index, state.bar))
        .collect();
    assert_eq!(
        bars,
        [
            (0, Bar::memory64(1 << 20).prefetchable()),
            (2, Bar::memory32(0x4000)),
            (4, Bar::io(0x20)),
        ]
    );
    assert_eq!(space.rom_size(), Some(0x1_0000));
    assert_eq!(space.msix().unwrap().table_size, 4);
}

#[test]
fn composed_bits_lie_over_live_ones() {
    let (_, mut space) = overlay();
    let changes = space.write(u64::from(MSI_AT) + 2, &[0x21]).unwrap();
    assert_eq!(changes, Changes::MSI);
    assert!(space.msi().unwrap().enabled);
    // The device says something else everywhere: only the composed bits are ours.
    let mut read = [0xee; 256];
    space.compose_over(0, &mut read).unwrap();
    assert_eq!(read[..4], [0xee; 4], "identity is live");
    assert_eq!(
        read[usize::from(MSI_AT) + 2] & 0x71,
        0x21,
        "control is ours"
    );
    assert_eq!(read[usize::from(MSI_AT) + 0x10], 0xee, "mask bits are live");
    assert_eq!(read[usize::from(MSIX_AT) + 4], 0xee, "table offset is live");
    assert_eq!(read[usize::from(MSIX_AT) + 3] & 0xc0, 0, "control is ours");
    assert!(space.compose_over(4095, &mut [0; 2]).is_err());
}

#[test]
fn the_device_decides_which_power_states_it_has() {
    for state in [1, 2] {
        let (device, mut space) = overlay();
        assert!(space.write(0x44, &[state]).unwrap().power_state());
        assert_eq!(space.power_state(), PowerState::Asleep, "D{state}");
        let mut asleep = device.clone();
        asleep[0x44] |= state;
        space.refresh(&asleep);
        assert_eq!(space.power_state(), PowerState::Asleep, "it has D{state}");
        space.refresh(&device);
        assert_eq!(space.power_state(), PowerState::D0, "it has none");
    }
}

#[test]
fn what_a_guest_writes_is_followed() {
    let (_, mut space) = overlay();
    assert_eq!(space.write(4, &[0x07]).unwrap(), Changes::COMMAND);
    assert!(space.command().memory && space.command().io);
    assert!(space.write(0x44, &[3]).unwrap().power_state());
    assert_eq!(space.power_state(), PowerState::Asleep);
    assert!(space.write(0x10, &[0, 0, 0x10, 0xfe]).unwrap().bars());
    assert!(space.write(0x30, &[1, 0, 0x20, 0xfe]).unwrap().rom());
    assert!(space.write(u64::from(MSIX_AT) + 3, &[0x80]).unwrap().msix());
    space.reset();
    assert_eq!(space.power_state(), PowerState::D0);
    assert!(!space.command().memory && !space.msix().unwrap().enabled);
}

#[test]
fn initiate_flr_is_reported_and_not_forwarded() {
    let (_, mut space) = overlay();
    let control = 0xa0 + u64::from(PCI_EXP_DEVCTL);
    let only = |offset, data: &[u8]| {
        let mut pieces = space.for_device(offset, data);
        let (at, piece) = pieces.next().unwrap();
        assert_eq!((at, pieces.next()), (offset, None));
        piece.into_owned()
    };
    assert_eq!(only(control, &[0x1f, 0x88]), [0x1f, 0x08]);
    let plain = space.for_device(control, &[0x1f, 0x08]).next();
    assert!(
        matches!(plain, Some((_, Cow::Borrowed([0x1f, 0x08])))),
        "nothing to take out, nothing copied"
    );
    assert_eq!(only(control - 1, &[9, 0x1f, 0x88]), [9, 0x1f, 0x08]);
    assert_eq!(
        space.for_device(9999, &[1, 2]).count(),
        1,
        "refused elsewhere"
    );
    assert!(space.write(control, &[0x1f, 0x88]).unwrap().flr());
}

#[test]
fn what_is_ours_alone_does_not_reach_the_device() {
    let (_, space) = overlay();
    let pieces = |offset, data: &[u8]| -> Vec<_> {
        let pieces = space.for_device(offset, data);
        pieces.map(|(at, piece)| (at, piece.into_owned())).collect()
    };
    // Id and next pointer of MSI, then its control.
    assert_eq!(pieces(MSI_AT.into(), &[1, 2, 3, 4]), [(0x62, vec![3, 4])]);
    // The end of the header, with the list head in the middle.
    assert_eq!(pieces(0x33, &[1, 2, 3]), [(0x33, vec![1]), (0x35, vec![3])]);
    assert_eq!(pieces(0x60, &[9]), []);
}

#[test]
fn refresh_takes_live_bits_only() {
    let (mut bytes, mut space) = overlay();
    space.write(u64::from(MSIX_AT) + 3, &[0x80]).unwrap();
    bytes[4] = 0x06;
    bytes[usize::from(MSIX_AT) + 3] = 0;
    space.refresh(&bytes);
    assert!(space.command().memory && space.command().bus_master);
    assert!(space.msix().unwrap().enabled);
}

#[test]
fn what_is_no_function_is_refused() {
    let (bytes, sizes) = device();
    let error = |bytes: &[u8], sizes| ConfigSpace::from_device(bytes, &sizes).unwrap_err();
    assert_eq!(error(&bytes[..128], sizes), OverlayError::Size(128));
    assert_eq!(error(&[0xff; 256], sizes), OverlayError::NoDevice);
    let mut bridge = bytes.clone();
    bridge[0x0e] = 0x81;
    assert_eq!(error(&bridge, sizes), OverlayError::HeaderType(1));
    let mut odd = sizes;
    odd.bars[2] = 0x3000;
    assert!(matches!(
        error(&bytes, odd),
        OverlayError::Bar { index: 2, .. }
    ));
    let mut crowded = sizes;
    crowded.bars[1] = 0x1000;
    assert_eq!(error(&bytes, crowded), OverlayError::NoUpperHalf(0));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(any::<u8>(), 256..=4096),
        sizes in proptest::array::uniform6(prop_oneof![Just(0_u64), Just(0x1000), any::<u64>()]),
        rom in any::<u64>(),
        writes in proptest::collection::vec((0..256_u64, any::<[u8; 4]>()), 0..20),
    ) {
        let sizes = DeviceSizes { bars: sizes, rom };
        let mut bytes = bytes;
        bytes[0x0e] = 0;
        bytes[6] |= 0x10;
        if let Ok(mut space) = ConfigSpace::from_device(&bytes, &sizes) {
            for (offset, data) in writes {
                for (at, piece) in space.for_device(offset, &data) {
                    prop_assert!(at >= offset && at + piece.len() as u64 <= offset + 4);
                }
                let _ = space.write(offset, &data);
            }
            space.reset();
            let _ = (space.msi(), space.msix(), space.rom(), space.bars().count());
            let mut read = vec![0; bytes.len()];
            space.compose_over(0, &mut read).unwrap();
        }
    }
}
