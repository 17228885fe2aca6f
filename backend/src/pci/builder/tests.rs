// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the builder refuses, and that what it accepts is well formed.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::pci::{BarError, Express, Msi, Vsec};

fn builder() -> ConfigSpaceBuilder {
    ConfigSpaceBuilder::new(Identity::default())
}

fn vendor(len: usize) -> Capability {
    Capability::Vendor(vec![0xa5; len])
}

fn refused(builder: &ConfigSpaceBuilder) -> BuildError {
    builder.build().expect_err("must be refused")
}

#[test]
fn the_header_says_what_was_given() {
    let identity = Identity {
        vendor_id: 0x10de,
        device_id: 0x2330,
        revision: 0xa1,
        class_code: 0x03_0200,
        subsystem_vendor_id: 0x1234,
        subsystem_id: 0x5678,
    };
    let config = ConfigSpaceBuilder::new(identity)
        .interrupt_pin(1)
        .build()
        .unwrap();
    assert_eq!(config.identity(), identity);
    assert_eq!(config.interrupt_pin(), 1);
    assert_eq!(config.bytes().len(), 256);
    assert_eq!(config.capabilities().count(), 0);
    assert_eq!(config.bytes()[0x06], 0, "no capability list");
    assert_eq!(config.bytes()[0x09..0x0c], [0x00, 0x02, 0x03]);
}

#[test]
fn capabilities_are_listed_in_the_order_given() {
    let config = builder()
        .capability(vendor(6))
        .capability_at(0xc8, vendor(5))
        .capability(Capability::PowerManagement)
        .capability_at(0x40, Capability::Express(Express::default()))
        .extended_capability(ExtendedCapability::AdvancedErrorReporting)
        .extended_capability(ExtendedCapability::SerialNumber(1))
        .build()
        .unwrap();
    assert!(
        config
            .capabilities()
            .eq([(9, 0x7c), (9, 0xc8), (1, 0x88), (0x10, 0x40)])
    );
    assert!(config.extended_capabilities().eq([(1, 0x100), (3, 0x12c)]));
    assert_eq!(
        config.bytes()[0xc8..0xd0],
        [9, 0x88, 8, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5]
    );
    assert_eq!(config.bytes().len(), 4096);
}

#[test]
fn identity_and_pin_are_checked() {
    let with = |vendor_id, class_code| {
        refused(&ConfigSpaceBuilder::new(Identity {
            vendor_id,
            class_code,
            ..Default::default()
        }))
    };
    assert_eq!(with(0xffff, 0), BuildError::VendorId);
    assert_eq!(with(0, 0x100_0000), BuildError::ClassCode(0x100_0000));
    assert_eq!(
        refused(&builder().interrupt_pin(5)),
        BuildError::InterruptPin(5)
    );
}

#[test]
fn bars_and_rom_are_checked() {
    let (small, wide) = (Bar::memory32(0x1000), Bar::memory64(0x1000));
    let bad = Bar::memory32(0x1800);
    let source = BarError::NotPowerOfTwo(0x1800);
    for (builder, expected) in [
        (builder().bar(6, small), BuildError::BarIndex(6)),
        (builder().bar(255, wide), BuildError::BarIndex(255)),
        (builder().bar(5, wide), BuildError::NoUpperHalf),
        (
            builder().bar(2, small).bar(2, small),
            BuildError::BarTaken(2),
        ),
        (
            builder().bar(2, wide).bar(3, small),
            BuildError::BarTaken(3),
        ),
        (
            builder().bar(3, small).bar(2, wide),
            BuildError::BarTaken(3),
        ),
        (builder().bar(0, bad), BuildError::Bar { index: 0, source }),
        (builder().rom(0x400), BuildError::RomSize(0x400)),
        (builder().rom(0xc00), BuildError::RomSize(0xc00)),
        (builder().rom(0x200_0000), BuildError::RomSize(0x200_0000)),
    ] {
        assert_eq!(refused(&builder), expected);
    }
    assert!(
        builder()
            .bar(0, wide)
            .bar(2, wide)
            .bar(4, wide)
            .rom(0x800)
            .build()
            .is_ok()
    );
}

#[test]
fn places_are_checked() {
    let pm = || Capability::PowerManagement;
    for (builder, expected) in [
        (
            builder().capability_at(0x42, pm()),
            BuildError::BadOffset {
                id: 1,
                offset: 0x42,
            },
        ),
        (
            builder().capability_at(0x3c, pm()),
            BuildError::BadOffset {
                id: 1,
                offset: 0x3c,
            },
        ),
        (
            builder().capability_at(0x100, pm()),
            BuildError::BadOffset {
                id: 1,
                offset: 0x100,
            },
        ),
        (
            builder().capability_at(0xfc, pm()),
            BuildError::NoSpace { id: 1, len: 8 },
        ),
        (
            builder()
                .capability_at(0x80, vendor(5))
                .capability_at(0x84, pm()),
            BuildError::Overlap {
                id: 1,
                offset: 0x84,
            },
        ),
        (
            builder().capability(pm()).capability(pm()),
            BuildError::Duplicate(1),
        ),
        (
            builder().capability(vendor(182)).capability(pm()),
            BuildError::NoSpace { id: 1, len: 8 },
        ),
    ] {
        assert_eq!(refused(&builder), expected);
    }
    let full = builder()
        .capability(vendor(181))
        .capability(pm())
        .build()
        .unwrap();
    assert!(full.capabilities().eq([(9, 0x40), (1, 0xf8)]));
}

#[test]
fn extended_capabilities_need_express_and_space() {
    let express = || builder().capability(Capability::Express(Express::default()));
    let aer = || ExtendedCapability::AdvancedErrorReporting;
    let vsec = |len| {
        ExtendedCapability::Vendor(Vsec {
            id: 1,
            revision: 0,
            body: vec![0xa5; len],
        })
    };
    assert_eq!(
        refused(&builder().extended_capability(aer())),
        BuildError::NotExpress(1)
    );
    assert_eq!(
        refused(
            &express()
                .extended_capability(aer())
                .extended_capability(aer())
        ),
        BuildError::DuplicateExtended(1)
    );
    assert_eq!(
        refused(
            &express()
                .extended_capability(vsec(3792))
                .extended_capability(aer())
        ),
        BuildError::NoExtendedSpace { id: 1, len: 44 }
    );
    let full = express()
        .extended_capability(vsec(3788))
        .extended_capability(aer())
        .build();
    assert!(
        full.unwrap()
            .extended_capabilities()
            .eq([(0xb, 0x100), (1, 0xfd4)])
    );
}

#[test]
fn msix_must_lie_in_a_memory_bar() {
    let at = |bar, offset| BarOffset { bar, offset };
    let with = |bar, table, pba| {
        builder().bar(2, bar).capability(Capability::MsiX(MsiX {
            vectors: 65,
            table,
            pba,
        }))
    };
    let memory = Bar::memory32(0x1000);
    assert!(with(memory, at(2, 0), at(2, 0x410)).build().is_ok());
    let outside = |what, end| BuildError::MsixOutside {
        what,
        bar: 2,
        end,
        size: 0x1000,
    };
    for (builder, expected) in [
        (
            with(memory, at(0, 0), at(2, 0)),
            BuildError::MsixBar {
                what: "table",
                bar: 0,
            },
        ),
        (
            with(memory, at(2, 0), at(3, 0)),
            BuildError::MsixBar {
                what: "PBA",
                bar: 3,
            },
        ),
        (
            with(Bar::io(0x1000), at(2, 0), at(2, 0x800)),
            BuildError::MsixBar {
                what: "table",
                bar: 2,
            },
        ),
        (
            with(memory, at(2, 0xc00), at(2, 0)),
            outside("table", 0x1010),
        ),
        (with(memory, at(2, 0), at(2, 0xff8)), outside("PBA", 0x1008)),
        (
            with(memory, at(2, 0), at(2, 0xffff_fff8)),
            outside("PBA", 0x1_0000_0008),
        ),
        (
            with(memory, at(2, 0), at(2, 0x408)),
            BuildError::MsixOverlap(2),
        ),
    ] {
        assert_eq!(refused(&builder), expected);
    }
}

fn any_capability() -> impl Strategy<Value = (Option<u16>, Capability)> {
    let msi = (0..=5_u32, any::<bool>(), any::<bool>()).prop_map(
        |(log2, address_64bit, per_vector_masking)| {
            Capability::Msi(Msi {
                vectors: 1 << log2,
                address_64bit,
                per_vector_masking,
            })
        },
    );
    let raw = (0x12..=0xfe_u8, 2..40_usize).prop_map(|(id, len)| Capability::Raw {
        id,
        registers: RegisterBlock::new(len, &[]),
    });
    let capability = prop_oneof![
        Just(Capability::PowerManagement),
        Just(Capability::Express(Express::default())),
        msi,
        (0..60_usize).prop_map(vendor),
        raw,
    ];
    let offset = prop_oneof![4 => Just(None), 1 => any::<u8>().prop_map(|o| Some(o.into()))];
    (offset, capability)
}

fn any_extended() -> impl Strategy<Value = ExtendedCapability> {
    prop_oneof![
        Just(ExtendedCapability::AdvancedErrorReporting),
        any::<u64>().prop_map(ExtendedCapability::SerialNumber),
        (0..1500_usize).prop_map(|len| {
            ExtendedCapability::Vendor(Vsec {
                id: 1,
                revision: 0,
                body: vec![0xa5; len],
            })
        }),
    ]
}

/// Every byte of a capability is where it was put, and no two share one.
fn assert_apart(places: &[(usize, usize)], window: Range<usize>) -> Result<(), TestCaseError> {
    let mut taken = vec![false; window.end];
    for &(offset, len) in places {
        prop_assert!(offset % 4 == 0 && offset >= window.start && offset + len <= window.end);
        for byte in &mut taken[offset..offset + len] {
            prop_assert!(!*byte, "overlap in {offset:#x}+{len:#x}");
            *byte = true;
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn what_is_built_is_well_formed(
        capabilities in proptest::collection::vec(any_capability(), 0..8),
        extended in proptest::collection::vec(any_extended(), 0..6),
    ) {
        let mut builder = builder();
        builder.capabilities.clone_from(&capabilities);
        builder.extended.clone_from(&extended);
        let Ok(config) = builder.build() else { return Ok(()) };

        let listed: Vec<_> = config.capabilities().collect();
        prop_assert!(listed.iter().map(|(id, _)| *id).eq(capabilities.iter().map(|(_, c)| c.id())));
        let places: Vec<_> = listed
            .iter()
            .zip(&capabilities)
            .map(|((_, at), (_, c))| (usize::from(*at), c.registers().unwrap().len()))
            .collect();
        assert_apart(&places, 0x40..0x100)?;
        if let Some((_, last)) = listed.last() {
            prop_assert_eq!(config.u8_at(last + 1), 0);
        }

        let listed: Vec<_> = config.extended_capabilities().collect();
        prop_assert!(listed.iter().map(|(id, _)| *id).eq(extended.iter().map(|c| c.id())));
        let places: Vec<_> = listed
            .iter()
            .zip(&extended)
            .map(|((_, at), c)| (usize::from(*at), c.registers().unwrap().len()))
            .collect();
        assert_apart(&places, 0x100..0x1000)?;
        if let Some((_, last)) = listed.last() {
            prop_assert_eq!(config.u16_at(last + 2) >> 4, 0);
        }
    }

    #[test]
    fn whatever_fits_in_order_is_accepted(lens in proptest::collection::vec(0..60_usize, 0..12)) {
        let total: usize = lens.iter().map(|len| (len + 3).next_multiple_of(4)).sum();
        let builder = lens.iter().fold(builder(), |builder, len| builder.capability(vendor(*len)));
        prop_assert_eq!(builder.build().is_ok(), total <= 0xc0);
    }
}
