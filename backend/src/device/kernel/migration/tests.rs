// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration over a scripted kernel, with drivers that do what drivers have been seen to do.

use std::sync::Arc;

use vfio_user_protocol::device::{RegionCapability, SparseArea};
use vfio_user_protocol::migration::MigrationState::*;

use super::*;
use crate::device::Device;
use crate::device::kernel::fake::{Fake, Migrating, Script};
use crate::device::kernel::tests::{open_with, script};
use crate::device::kernel::{BarHandoff, KernelDevice};
use crate::migration::v1::sim::Sim;

mod sessions;

const ALL: u64 = 7;
const STOP_COPY: u64 = 1;

fn device(migration: Migrating) -> (Arc<Fake>, KernelDevice) {
    device_of(Script {
        migration: Some(migration),
        ..script()
    })
}

fn device_of(script: Script) -> (Arc<Fake>, KernelDevice) {
    let fake = Arc::new(Fake::new(script));
    let mut open = open_with(&fake);
    open.driver = "mlx5_vfio_pci".into();
    let device = KernelDevice::new(open, BarHandoff::None).unwrap();
    (fake, device)
}

fn how(device: &KernelDevice) -> String {
    let description = device.description();
    let migration = description.iter().find(|(name, _)| *name == "migration");
    migration.unwrap().1.clone()
}

fn read(stream: &mut dyn DataStream, size: usize) -> Result<Vec<u8>, Errno> {
    let mut data = vec![0; size];
    let taken = stream.read(&VolatileSlice::from(data.as_mut_slice()))?;
    assert!(!taken.ends_transaction);
    data.truncate(taken.length);
    Ok(data)
}

fn write(stream: &mut dyn DataStream, data: &[u8]) -> Result<usize, Errno> {
    let mut data = data.to_vec();
    stream.write(&VolatileSlice::from(data.as_mut_slice()), true)
}

#[test]
fn what_there_is_is_told() {
    for (flags, support, text) in [
        (ALL, (true, true), "v2 (STOP_COPY, P2P, PRE_COPY)"),
        (STOP_COPY, (false, false), "v2 (STOP_COPY)"),
        (3, (true, false), "v2 (STOP_COPY, P2P)"),
        (u64::MAX, (true, true), "v2 (STOP_COPY, P2P, PRE_COPY)"),
    ] {
        let (fake, device) = device(Migrating::new(flags));
        assert_eq!(how(&device), text);
        let migration = device.migration().unwrap();
        let (p2p, pre_copy) = support;
        assert_eq!(migration.support(), Support { p2p, pre_copy });
        assert_eq!(migration.data_version(), "mlx5_vfio_pci");
        let script = fake.script();
        let opted = script.migration.as_ref().unwrap().opted;
        assert_eq!(opted, usize::from(pre_copy), "only where there is PRE_COPY");
    }
    let (_, without) = device(Migrating::new(6));
    assert!(without.migration().is_none());
    assert_eq!(how(&without), "none (the driver mlx5_vfio_pci has none)");
    let fake = Arc::new(Fake::new(script()));
    let unknown = KernelDevice::new(open_with(&fake), BarHandoff::None).unwrap();
    assert_eq!(how(&unknown), "none (the driver has none)");
}

#[test]
fn states_are_set_and_asked() {
    let (fake, device) = device(Migrating::new(ALL));
    let migration = device.migration().unwrap();
    assert_eq!(migration.state(), Ok(Running));
    let stream = migration.set_state(PreCopy).unwrap();
    assert!(stream.is_some());
    assert!(migration.set_state(PreCopyP2p).unwrap().is_none());
    assert!(migration.set_state(StopCopy).unwrap().is_none(), "goes on");
    assert_eq!(migration.state(), Ok(StopCopy));
    let asked = |fake: &Fake| fake.script().migration.as_ref().unwrap().set.clone();
    assert_eq!(asked(&fake), [6, 7, 3]);
    let closed = || {
        fake.script()
            .migration
            .as_ref()
            .unwrap()
            .data
            .script()
            .closed
    };
    assert!(!closed());
    drop(stream);
    assert!(closed());
    let number = |state| fake.script().migration.as_mut().unwrap().state = state;
    for (state, answer) in [(0, Ok(Error)), (99, Err(Errno::IO))] {
        number(state);
        assert_eq!(migration.state(), answer);
    }
}

#[test]
fn after_a_refusal_only_the_device_knows_its_state() {
    let mut driver = Migrating::new(ALL);
    driver.refused = [(1, (Errno::IO, 5)), (4, (Errno::BUSY, 0))].into();
    let (_, device) = device(driver);
    let migration = device.migration().unwrap();
    assert_eq!(migration.set_state(Stop).err(), Some(Errno::IO));
    assert_eq!(migration.state(), Ok(RunningP2p), "on the way");
    assert_eq!(migration.set_state(Resuming).err(), Some(Errno::BUSY));
    assert_eq!(migration.state(), Ok(Error));
}

#[test]
fn data_is_read_as_drivers_give_it() {
    let driver = Migrating::new(ALL);
    let data = driver.data.clone();
    let (_, device) = device(driver);
    let mut stream = device.migration().unwrap().set_state(PreCopy);
    let stream = stream.as_mut().unwrap().as_mut().unwrap();
    data.script().reads = [
        Err(Errno::INTR),
        Ok(vec![1, 2, 3]),
        Err(Errno::NOMSG),
        Ok(vec![]),
        Err(Errno::AGAIN),
        Ok(vec![4; 10]),
        Err(Errno::NODEV),
    ]
    .into();
    assert_eq!(read(&mut **stream, 8), Ok(vec![1, 2, 3]), "short");
    assert_eq!(read(&mut **stream, 8), Err(Errno::NOMSG), "mlx5, virtio");
    assert_eq!(read(&mut **stream, 8), Ok(vec![]), "mtty, qat, hisi");
    assert_eq!(read(&mut **stream, 8), Err(Errno::AGAIN));
    assert_eq!(read(&mut **stream, 8), Ok(vec![4; 8]));
    assert_eq!(read(&mut **stream, 8), Ok(vec![4; 2]));
    assert_eq!(read(&mut **stream, 8), Err(Errno::NODEV));
    data.script().claims = 9;
    assert_eq!(
        read(&mut **stream, 8),
        Err(Errno::IO),
        "more than there is room"
    );
}

#[test]
fn data_is_written_as_drivers_take_it() {
    let driver = Migrating::new(ALL);
    let data = driver.data.clone();
    let (_, device) = device(driver);
    let migration = device.migration().unwrap();
    let mut stream = migration.set_state(Resuming).unwrap().unwrap();
    data.script().writes = [
        Err(Errno::INTR),
        Ok(2),
        Err(Errno::AGAIN),
        Ok(0),
        Err(Errno::FAULT),
    ]
    .into();
    assert_eq!(write(&mut *stream, &[1, 2, 3]), Ok(2));
    assert_eq!(write(&mut *stream, &[3]), Err(Errno::AGAIN));
    assert_eq!(write(&mut *stream, &[3]), Err(Errno::IO), "no progress");
    assert_eq!(write(&mut *stream, &[]), Ok(0));
    assert_eq!(write(&mut *stream, &[3]), Err(Errno::FAULT));
    // mtty: what it refused it loads all the same. Whoever writes must remember.
    assert!(migration.set_state(Stop).unwrap().is_none());
    assert_eq!(data.script().written, [1, 2]);
    data.script().claims = 1;
    assert_eq!(write(&mut *stream, &[3]), Err(Errno::IO));
}

#[test]
fn new_initial_data_is_believed_only_where_the_kernel_says_it() {
    for (granted, told) in [
        (Ok(()), true),
        (Err(Errno::NOTTY), false),
        (Err(Errno::INVAL), false),
        (Err(Errno::IO), false),
    ] {
        let mut driver = Migrating::new(ALL);
        driver.flags_wanted = granted;
        let data = driver.data.clone();
        let (_, device) = device(driver);
        let mut stream = device.migration().unwrap().set_state(PreCopy);
        let stream = stream.as_mut().unwrap().as_mut().unwrap();
        data.script().precopy = [
            Err(Errno::INTR),
            Ok((0, 100, 0)),
            Ok((1, u64::MAX, 1 << 63)),
            Ok((2, 0, 0)),
        ]
        .into();
        let mut info = || {
            let info = stream.precopy_info()?;
            Ok((info.initial, info.dirty, info.reinit))
        };
        assert_eq!(info(), Ok((100, 0, false)));
        assert_eq!(info(), Ok((u64::MAX, 1 << 63, told)), "as it is");
        assert_eq!(info(), Ok((0, 0, false)), "another flag");
        assert_eq!(info(), Err(Errno::INVAL));
    }
}

#[test]
fn sizes_are_handed_on() {
    for size in [
        Ok(0),
        Ok(u64::MAX),
        Ok((-5_i64).cast_unsigned()),
        Err(Errno::NOTTY),
    ] {
        let mut driver = Migrating::new(STOP_COPY);
        driver.size = size;
        let (_, device) = device(driver);
        assert_eq!(device.migration().unwrap().stop_copy_size(), size);
    }
}

const INDEX: u32 = 10;
const TYPE: RegionCapability = RegionCapability::Type {
    region_type: 3,
    subtype: 1,
};

/// A device with a v1 region of four pages, of which the areas may be mapped.
fn with_region(areas: &[(u64, u64)], capability: RegionCapability) -> (Script, Sim) {
    let sim = Sim::in_file(0x4000, areas, u64::from(INDEX) << 40);
    let sparse = areas
        .iter()
        .map(|&(offset, size)| SparseArea { offset, size })
        .collect();
    let capabilities = vec![RegionCapability::SparseMmap(sparse), capability];
    let mut script = script();
    script.specific = 3;
    script
        .regions
        .insert(INDEX, (7, vec![0; 0x4000], capabilities));
    script.v1 = Some((INDEX, sim.clone()));
    (script, sim)
}

#[test]
fn a_region_of_v1_is_found_and_mapped() {
    // Begins in the mapped part and runs past its end.
    let areas = [(0x3000, 0x1000), (0x1000, 0x1000)];
    let (source, sim) = with_region(&areas, TYPE);
    let (_, source) = device_of(source);
    assert_eq!(how(&source), "v1 region");
    assert_eq!(source.region(INDEX).size, 0, "not for clients");
    {
        let mut driver = sim.driver();
        driver.outgoing[1] = [vec![7; 0x1800], vec![8; 3]].into();
        driver.places = [0x1800, 0xfff].into();
    }
    let migration = source.migration().unwrap();
    assert_eq!(migration.data_version(), "mlx5_vfio_pci v1");
    migration.set_state(Stop).unwrap();
    let mut stream = migration.set_state(StopCopy).unwrap().unwrap();
    let mut transactions = vec![vec![]];
    loop {
        let mut data = vec![0; 0x500];
        let into = VolatileSlice::from(data.as_mut_slice());
        let taken = stream.read(&into).unwrap();
        if taken.length == 0 {
            break;
        }
        let last = transactions.last_mut().unwrap();
        last.extend_from_slice(&data[..taken.length]);
        if taken.ends_transaction {
            transactions.push(vec![]);
        }
    }
    assert_eq!(transactions, [vec![7; 0x1800], vec![8; 3], vec![]]);

    let (destination, copy) = with_region(&areas, TYPE);
    let (_, destination) = device_of(destination);
    copy.driver().places = [0x2700, 0x20].into();
    let migration = destination.migration().unwrap();
    migration.set_state(Stop).unwrap();
    let mut stream = migration.set_state(Resuming).unwrap().unwrap();
    for transaction in &transactions[..2] {
        assert_eq!(write(&mut *stream, transaction), Ok(transaction.len()));
    }
    migration.set_state(Stop).unwrap();
    assert_eq!(copy.driver().incoming, transactions[..2]);
    assert_eq!(sim.driver().offended.or(copy.driver().offended), None);
}

#[test]
fn other_regions_and_v2_come_first_or_not_at_all() {
    let (mut script, _) = with_region(&[], TYPE);
    script.migration = Some(Migrating::new(STOP_COPY));
    assert_eq!(how(&device_of(script).1), "v2 (STOP_COPY)");
    let (mut unusable, _) = with_region(&[], TYPE);
    unusable.migration = Some(Migrating::new(6));
    assert_eq!(how(&device_of(unusable).1), "v1 region");
    let other = RegionCapability::Type {
        region_type: 1,
        subtype: 1,
    };
    let none = "none (the driver mlx5_vfio_pci has none)";
    assert_eq!(how(&device_of(with_region(&[], other).0).1), none);
    let mut of_a_bar = crate::device::kernel::tests::script();
    of_a_bar.regions.get_mut(&2).unwrap().2.push(TYPE);
    assert_eq!(how(&device_of(of_a_bar).1), none);
    let (mut beyond, _) = with_region(&[], TYPE);
    beyond.specific = 1;
    assert_eq!(how(&device_of(beyond).1), none);
    let (mut endless, _) = with_region(&[], TYPE);
    endless.specific = u32::MAX - 9;
    assert_eq!(how(&device_of(endless).1), "v1 region");
    let (mut small, sim) = with_region(&[], TYPE);
    small.regions.get_mut(&INDEX).unwrap().1.truncate(32);
    assert_eq!(how(&device_of(small).1), none);
    assert_eq!(sim.driver().accesses, []);
    let (mut mute, sim) = with_region(&[], TYPE);
    sim.driver().instead = [(0, Err(Errno::IO))].into();
    mute.regions.get_mut(&INDEX).unwrap().0 = 3;
    assert_eq!(how(&device_of(mute).1), none);
    let (mut read_only, _) = with_region(&[], TYPE);
    read_only.regions.get_mut(&INDEX).unwrap().0 = 1;
    assert_eq!(how(&device_of(read_only).1), none);
}

#[test]
fn memory_that_goes_away_ends_the_transfer() {
    let (script, sim) = with_region(&[(0x1000, 0x3000)], TYPE);
    let (fake, device) = device_of(script);
    {
        let mut driver = sim.driver();
        driver.outgoing[1] = [vec![7; 0x2000]].into();
        driver.places = [0x1800].into();
    }
    let migration = device.migration().unwrap();
    migration.set_state(Stop).unwrap();
    let mut stream = migration.set_state(StopCopy).unwrap().unwrap();
    let mut data = vec![0; 0x800];
    stream
        .read(&VolatileSlice::from(data.as_mut_slice()))
        .unwrap();
    let end = (u64::from(INDEX) << 40) + 0x2000;
    rustix::fs::ftruncate(crate::device::kernel::VfioFile::fd(&*fake), end).unwrap();
    for _ in 0..2 {
        let mut data = vec![0; 0x800];
        let gone = stream.read(&VolatileSlice::from(data.as_mut_slice()));
        assert_eq!(gone, Err(Errno::IO));
    }
}
