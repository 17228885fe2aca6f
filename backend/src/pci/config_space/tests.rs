// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest can and cannot do to a configuration space.

use proptest::prelude::*;

use super::*;
use crate::pci::{
    BarOffset, Capability, Command, ConfigSpaceBuilder, Express, ExtendedCapability, Identity, Msi,
    MsiX, PowerState, bar::halves,
};

const VRAM: u64 = 8 << 30;

/// A function with everything: in offset order PM, MSI, MSI-X, Express, then AER and a serial
/// number.
fn full() -> ConfigSpace {
    let at = |offset| BarOffset { bar: 2, offset };
    ConfigSpaceBuilder::new(Identity {
        vendor_id: 0x1234,
        device_id: 0x1111,
        class_code: 0x03_8000,
        ..Identity::default()
    })
    .interrupt_pin(1)
    .bar(0, Bar::memory64(VRAM).prefetchable())
    .bar(2, Bar::memory32(0x1000))
    .bar(5, Bar::io(0x20))
    .rom(0x1_0000)
    .capability_at(0x40, Capability::PowerManagement)
    .capability_at(
        0x48,
        Capability::Msi(Msi {
            vectors: 8,
            address_64bit: true,
            per_vector_masking: true,
        }),
    )
    .capability_at(
        0x60,
        Capability::MsiX(MsiX {
            vectors: 16,
            table: at(0),
            pba: at(0x800),
        }),
    )
    .capability_at(0x80, Capability::Express(Express::default()))
    .extended_capability(ExtendedCapability::AdvancedErrorReporting)
    .extended_capability(ExtendedCapability::SerialNumber(7))
    .build()
    .unwrap()
}

fn write32(config: &mut ConfigSpace, offset: u64, value: u32) -> Changes {
    config.write(offset, &value.to_le_bytes()).unwrap()
}

fn read32(config: &ConfigSpace, offset: u64) -> u32 {
    let mut out = [0; 4];
    config.read(offset, &mut out).unwrap();
    u32::from_le_bytes(out)
}

/// What firmware does to size a BAR: write all ones, read back, restore.
fn size_mask(config: &mut ConfigSpace, offset: u64) -> u32 {
    let before = read32(config, offset);
    write32(config, offset, u32::MAX);
    let mask = read32(config, offset);
    write32(config, offset, before);
    mask
}

#[test]
fn sizing_reads_back_the_mask() {
    let mut config = full();
    let (low, high) = halves(!(VRAM - 1));
    assert_eq!(size_mask(&mut config, 0x10), low | 0xc);
    assert_eq!(size_mask(&mut config, 0x14), high);
    assert_eq!(size_mask(&mut config, 0x18), 0xffff_f000);
    assert_eq!(size_mask(&mut config, 0x1c), 0, "absent");
    assert_eq!(size_mask(&mut config, 0x24), 0xffff_ffe1);
    assert_eq!(size_mask(&mut config, 0x30), 0xffff_0001);
    assert_eq!(config.bytes(), full().bytes());
}

#[test]
fn rom_sizing_leaves_the_enable_bit_off() {
    let mut config = full();
    assert!(write32(&mut config, 0x30, 0xffff_f800).rom());
    assert_eq!(read32(&config, 0x30), 0xffff_0000);
    assert!(write32(&mut config, 0x30, 0xfeb0_0001).rom());
    let rom = config.rom().unwrap();
    assert_eq!(
        (rom.size, rom.address, rom.enabled),
        (0x1_0000, 0xfeb0_0000, true)
    );
}

#[test]
fn bars_take_their_addresses() {
    let mut config = full();
    let (low, high) = halves(0x38_0000_0000);
    assert!(
        !write32(&mut config, 0x10, low | 3).any(),
        "flag bits are not the guest's"
    );
    assert!(write32(&mut config, 0x14, high).bars());
    assert!(write32(&mut config, 0x24, 0xc0ff).bars());
    let addresses: Vec<_> = config
        .bars()
        .map(|(index, state)| (index, state.address))
        .collect();
    assert_eq!(addresses, [(0, 0x38_0000_0000), (2, 0), (5, 0xc0e0)]);
    assert_eq!((config.bar(1), config.bar(200)), (None, None));
}

#[test]
fn command_reports_only_a_change() {
    let mut config = full();
    assert_eq!(config.write(0x04, &[0xff, 0xff]), Ok(Changes::COMMAND));
    assert_eq!(read32(&config, 0x04) & 0xffff, 0x0547);
    assert_eq!(config.write(0x04, &[0xff, 0xff]), Ok(Changes::NONE));
    assert_eq!(
        config.command(),
        Command {
            io: true,
            memory: true,
            bus_master: true,
            intx_disable: true
        }
    );
    assert_eq!(config.write(0x05, &[0]), Ok(Changes::COMMAND));
    assert!(!config.command().intx_disable && config.command().memory);
}

#[test]
fn status_errors_clear_by_one_and_interrupt_status_is_read_only() {
    let mut config = full();
    config.set_by_device(0x06, &[0x10, 0xf9]).unwrap();
    config.set_interrupt_status(true);
    assert_eq!(config.write(0x06, &[0x08, 0x40]), Ok(Changes::NONE));
    assert_eq!(config.bytes()[0x06..0x08], [0x18, 0xb9]);
    config.write(0x06, &[0xff, 0xff]).unwrap();
    assert_eq!(config.bytes()[0x06..0x08], [0x18, 0x00]);
    config.set_interrupt_status(false);
    assert_eq!(config.bytes()[0x06], 0x10);
}

#[test]
fn scratch_registers_keep_what_is_written() {
    let mut config = full();
    for offset in [0x0c, 0x3c] {
        assert_eq!(config.write(offset, &[0x5a]), Ok(Changes::NONE));
        assert_eq!(read32(&config, offset) & 0xff, 0x5a);
    }
}

#[test]
fn power_states_that_do_not_exist_are_ignored() {
    let mut config = full();
    assert_eq!(config.write(0x44, &[1]), Ok(Changes::NONE));
    assert_eq!(config.write(0x44, &[3]), Ok(Changes::POWER_STATE));
    assert_eq!(config.write(0x44, &[2]), Ok(Changes::NONE));
    assert_eq!(config.power_state(), PowerState::Asleep);
    assert_eq!(config.bytes()[0x44], 0x0b, "no soft reset stays set");
    assert_eq!(config.write(0x44, &[0]), Ok(Changes::POWER_STATE));
    assert_eq!(config.power_state(), PowerState::D0);
}

#[test]
fn power_states_that_do_not_exist_are_not_taken_over() {
    for state in [1, 2] {
        let mut config = full();
        let mut saved = config.bytes().to_vec();
        saved[0x44] |= state;
        config.restore(&saved).unwrap();
        assert_eq!(config.bytes(), full().bytes(), "{state}");
    }
    let mut asleep = full();
    asleep.write(0x44, &[3]).unwrap();
    let mut config = full();
    config.restore(asleep.bytes()).unwrap();
    assert_eq!(config.power_state(), PowerState::Asleep);
}

#[test]
fn flr_reads_zero_and_is_reported_each_time() {
    let mut config = full();
    for _ in 0..2 {
        assert_eq!(config.write(0x88, &[0x10, 0xa8]), Ok(Changes::FLR));
        assert_eq!(config.bytes()[0x89], 0x28);
    }
    assert_eq!(config.write(0x89, &[0x80]), Ok(Changes::FLR), "one byte");
    assert_eq!(config.write(0x89, &[0x28]), Ok(Changes::NONE));
}

#[test]
fn msix_control_takes_single_bytes() {
    let mut config = full();
    assert_eq!(config.write(0x63, &[0xc0]), Ok(Changes::MSIX));
    let msix = config.msix().unwrap();
    assert!(msix.enabled && msix.function_mask);
    assert_eq!(
        (msix.table_size, msix.table.bar, msix.pba.offset),
        (16, 2, 0x800)
    );
    assert_eq!(
        config.write(0x62, &[0xff]),
        Ok(Changes::NONE),
        "the table size is read-only"
    );
    assert_eq!(config.msix().unwrap().table_size, 16);
}

#[test]
fn msi_reports_mask_and_message() {
    let mut config = full();
    for (offset, byte) in [
        (0x4a, 0x31),
        (0x4c, 0xf0),
        (0x50, 1),
        (0x54, 0x41),
        (0x58, 0xff),
    ] {
        assert_eq!(
            config.write(offset, &[byte]),
            Ok(Changes::MSI),
            "{offset:#x}"
        );
    }
    assert_eq!(
        config.write(0x5c, &[0xff]),
        Ok(Changes::NONE),
        "pending is read-only"
    );
    config.set_msi_pending(0xfff);
    let msi = config.msi().unwrap();
    assert!(msi.enabled);
    assert_eq!((msi.vectors, msi.mask, msi.pending), (8, 0xff, 0xff));
}

#[test]
fn reset_keeps_sticky_bits_only() {
    let mut config = full();
    let fresh = config.clone();
    config
        .set_by_device(0x104, &0x0010_0000_u32.to_le_bytes())
        .unwrap();
    write32(&mut config, 0x108, 0x0010_0000);
    config.write(0, &[0xff; 0x100]).unwrap();
    config.set_interrupt_status(true);
    config.reset();
    assert_eq!(read32(&config, 0x104), 0x0010_0000, "AER status");
    assert_eq!(read32(&config, 0x108), 0x0010_0000, "AER mask");
    assert_eq!(
        config.bytes()[0x88],
        0xf0,
        "payload size is kept, error reporting is not"
    );
    assert_eq!(
        (config.command(), config.msi(), config.msix(), config.rom()),
        (fresh.command(), fresh.msi(), fresh.msix(), fresh.rom())
    );
    assert!(config.bars().eq(fresh.bars()));
    assert_eq!(config.bytes()[..0x88], fresh.bytes()[..0x88]);

    write32(&mut config, 0x104, 0x0010_0000);
    assert_eq!(read32(&config, 0x104), 0, "written 1 clears");
    config.power_on();
    assert_eq!(config.bytes(), fresh.bytes());
}

#[test]
fn out_of_range_changes_nothing() {
    let mut config = full();
    let before = config.bytes().to_vec();
    let error = OutOfRange {
        offset: 4094,
        len: 4,
        size: 4096,
    };
    assert_eq!(config.write(4094, &[0xff; 4]), Err(error));
    assert_eq!(config.read(4094, &mut [0; 4]), Err(error));
    assert!(config.write(u64::MAX, &[1]).is_err());
    assert_eq!(config.bytes(), before);
    let mut all = vec![0; 4096];
    assert_eq!(config.read(0, &mut all), Ok(()));
    assert_eq!(all, before);
}

/// A write at any offset, often past the end, of any bytes.
fn any_write() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let offset =
        prop_oneof![4 => 0..0x100_u64, 1 => 0..0x140_u64, 1 => 0..5000_u64, 1 => any::<u64>()];
    let data = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 1..=4),
        1 => proptest::collection::vec(any::<u8>(), 0..300),
    ];
    (offset, data)
}

proptest! {
    #[test]
    fn no_guest_breaks_what_is_read_only(writes in proptest::collection::vec(any_write(), 0..40)) {
        let fresh = full();
        let mut config = full();
        for (offset, data) in writes {
            let before = config.clone();
            let result = config.write(offset, &data);
            let inside = offset.checked_add(data.len() as u64).is_some_and(|end| end <= 4096);
            prop_assert_eq!(result.is_ok(), inside);
            if let Ok(changes) = result {
                prop_assert_eq!(changes.command(), config.u16_at(4) != before.u16_at(4));
                prop_assert_eq!(changes.bars(), !config.bars().eq(before.bars()));
                prop_assert_eq!(changes.rom(), config.rom() != before.rom());
                let power = config.power_state() != before.power_state();
                prop_assert_eq!(changes.power_state(), power);
                prop_assert_eq!(changes.msix(), config.msix() != before.msix());
            }
        }
        let rules = config.values.iter().zip(&config.rules);
        for ((value, rule), original) in rules.zip(&fresh.values) {
            prop_assert_eq!((value ^ original) & !rule.write & !rule.clear, 0);
        }
        prop_assert!(config.capabilities().eq(fresh.capabilities()));
        prop_assert!(config.extended_capabilities().eq(fresh.extended_capabilities()));
        prop_assert_eq!(config.identity(), fresh.identity());
        config.power_on();
        prop_assert_eq!(config.bytes(), fresh.bytes());
    }

    #[test]
    fn one_write_equals_its_bytes(
        offset in 0..0x140_u64,
        data in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let (mut whole, mut bytes) = (full(), full());
        let changes = whole.write(offset, &data).unwrap();
        let mut sum = Changes::NONE;
        for (at, byte) in (offset..).zip(&data) {
            sum |= bytes.write(at, &[*byte]).unwrap();
        }
        prop_assert_eq!(whole.bytes(), bytes.bytes());
        prop_assert_eq!(changes, sum);
    }

    #[test]
    fn getters_never_panic(content in proptest::collection::vec(any::<u8>(), 4096)) {
        let mut config = full();
        config.set_by_device(0, &content).unwrap();
        let msi = config.msi().unwrap();
        prop_assert!(msi.vectors.is_power_of_two() && msi.vectors <= 32);
        for vector in 0..=255 {
            prop_assert_eq!(msi.message(vector).is_some(), vector < msi.vectors);
        }
        config.set_msi_pending(u32::MAX);
        let _ = (config.msix(), config.identity(), config.power_state(), config.rom());
        let _ = (config.bars().count(), config.capabilities().count());
        config.write(0, &content).unwrap();
    }
}
