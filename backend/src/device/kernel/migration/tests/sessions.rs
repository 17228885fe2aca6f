// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Kernel devices behind the session: from one scripted kernel into another, as a client does it.

use super::*;
use crate::device::kernel::fake::{Data, DataScript, PCI};
use crate::function::Function;
use crate::memory::{AddressSpace, CpuAccess};
use crate::migration::buffer::{Piece, Room};
use crate::migration::{Error as SessionError, More, ShowP2p};
use crate::pci::GuestView;

fn function(script: Script) -> Function {
    let (_, device) = device_of(script);
    let memory = AddressSpace::new(CpuAccess::TrackedOnly, 8);
    Function::new(Arc::new(device), Arc::new(memory), &GuestView::default()).unwrap()
}

fn set(function: &Function, state: MigrationState) -> Result<(), SessionError> {
    let migration = function.migration();
    migration.set_state(state.into(), ShowP2p(true), function)
}

/// Reads pieces of `size` until there is nothing for now, or no more.
fn read_all(function: &Function, size: usize) -> Result<Vec<u8>, SessionError> {
    let mut stream = Vec::new();
    loop {
        let mut room = vec![0; size];
        let (length, more) = function.migration().read(
            &mut Room::Reply {
                bytes: &mut room,
                borrowed: &mut None,
            },
            function,
        )?;
        stream.extend_from_slice(&room[..length]);
        if more != More::Yes {
            return Ok(stream);
        }
    }
}

/// Everything that a source gives.
fn save(function: &Function, size: usize) -> Vec<u8> {
    set(function, PreCopy).unwrap();
    let mut stream = read_all(function, size).unwrap();
    set(function, StopCopy).unwrap();
    stream.extend(read_all(function, size).unwrap());
    set(function, Stop).unwrap();
    stream
}

fn load(function: &Function, stream: &[u8], size: usize) -> Result<(), SessionError> {
    set(function, Resuming)?;
    for piece in stream.chunks(size) {
        function
            .migration()
            .write(Piece::Private(piece), function, &|| false)?;
    }
    set(function, Running)
}

/// What a v1 device has to give: in pre-copy, and at the end.
fn transactions() -> [Vec<Vec<u8>>; 2] {
    [
        vec![vec![1; 0x1800], vec![2; 1]],
        vec![vec![3; 0x1fff], vec![4; 0x800], vec![5; 32]],
    ]
}

fn fill(sim: &Sim) {
    let mut driver = sim.driver();
    driver.outgoing = transactions().map(Into::into);
    driver.places = [0x1000, 0x1fe0, 0x20, 0xff0].into();
    driver.step = 1000;
}

#[test]
fn a_v1_device_migrates_in_every_layout() {
    let layouts: [&[(u64, u64)]; 4] = [
        &[],
        &[(0, 0x4000)],
        &[(0x1000, 0x1000)],
        &[(0x3000, 0x1000), (0x1000, 0x1000)],
    ];
    for (from, to) in layouts.iter().zip(layouts.iter().cycle().skip(1)) {
        for size in [100, 5000, 1 << 20] {
            let (source, sim) = with_region(from, TYPE);
            fill(&sim);
            let (destination, copy) = with_region(to, TYPE);
            let destination = function(destination);
            load(&destination, &save(&function(source), size), size).unwrap();
            assert_eq!(copy.driver().incoming, transactions().concat());
            assert_eq!(destination.migration().state().unwrap(), Running);
            assert_eq!(sim.driver().offended.or(copy.driver().offended), None);
        }
    }
}

#[test]
fn a_v1_source_goes_on_when_it_is_cancelled_anywhere() {
    for reads in 0..6 {
        let (source, sim) = with_region(&[(0x1000, 0x1000)], TYPE);
        fill(&sim);
        let source = function(source);
        set(&source, PreCopy).unwrap();
        for read in 0..reads {
            if read == 3 {
                set(&source, StopCopy).unwrap();
            }
            let mut room = vec![0; 0x1234];
            let mut room = Room::Reply {
                bytes: &mut room,
                borrowed: &mut None,
            };
            source.migration().read(&mut room, &source).unwrap();
        }
        set(&source, Running).unwrap();
        assert_eq!(sim.driver().device_state & 7, 1);
    }
}

#[test]
fn a_state_changes_in_the_midst_of_a_section() {
    for forgetful in [false, true] {
        let (source, sim) = with_region(&[], TYPE);
        fill(&sim);
        sim.driver().forgetful = forgetful;
        let source = function(source);
        set(&source, PreCopy).unwrap();
        let mut stream = vec![0; 0x1300];
        let mut room = Room::Reply {
            bytes: &mut stream,
            borrowed: &mut None,
        };
        assert_eq!(
            source.migration().read(&mut room, &source).unwrap(),
            (0x1300, More::Yes),
            "not all of the first"
        );
        set(&source, StopCopy).unwrap();
        let rest = read_all(&source, 5000);
        if forgetful {
            let error = rest.unwrap_err();
            assert_eq!(error.errno(), Errno::IO);
            set(&source, Running).unwrap();
            continue;
        }
        stream.extend(rest.unwrap());
        let (destination, copy) = with_region(&[], TYPE);
        load(&function(destination), &stream, 999).unwrap();
        assert_eq!(copy.driver().incoming, transactions().concat());
    }
}

#[test]
fn a_v1_destination_that_is_too_small_is_reset() {
    let (source, sim) = with_region(&[], TYPE);
    fill(&sim);
    let stream = save(&function(source), 5000);
    let (script, copy) = with_region(&[], TYPE);
    copy.driver().places = [0x4000 - 0x1fff + 1].into();
    let destination = function(script);
    let error = load(&destination, &stream, 5000).unwrap_err();
    assert_eq!(error.errno(), Errno::NOSPC);
    set(&destination, Running).unwrap_err();
    assert_eq!(copy.driver().device_state & 7, 1, "by a reset");
    assert_eq!(destination.migration().state().unwrap(), Running);
}

#[test]
fn what_a_v2_driver_refused_is_not_loaded_though_the_driver_would() {
    let (source, _) = v2(|data| {
        data.reads = [Ok(vec![7; 50]), Err(Errno::NOMSG), Ok(vec![8; 50])].into();
        data.precopy = [Ok((0, 50, 0)), Ok((0, 0, 0)), Ok((0, 0, 0))].into();
    });
    let stream = save(&source, 5000);
    for (writes, refused) in [(vec![], false), (vec![Err(Errno::FAULT)], true)] {
        let (destination, data) = v2(|data| data.writes = writes.into());
        let loaded = load(&destination, &stream, 5000);
        if refused {
            assert_eq!(loaded.unwrap_err().errno(), Errno::FAULT);
            set(&destination, Running).unwrap_err();
        } else {
            loaded.unwrap();
            let written = &data.script().written;
            assert_eq!(*written, [vec![7; 50], vec![8; 50]].concat());
        }
        assert_eq!(destination.migration().state().unwrap(), Running);
        assert!(data.script().closed);
    }
}

#[test]
fn a_v2_driver_breaks_in_the_midst() {
    let (source, data) = v2(|data| data.reads = [Ok(vec![7; 50]), Err(Errno::NODEV)].into());
    set(&source, StopCopy).unwrap();
    assert_eq!(read_all(&source, 5000).unwrap_err().errno(), Errno::NODEV);
    set(&source, Running).unwrap();
    assert!(data.script().closed);
}

#[test]
fn a_v2_driver_that_is_not_ready_yet_is_waited_for() {
    let (source, data) = v2(|data| {
        let again = Err(Errno::AGAIN);
        data.reads = [Ok(vec![7; 50]), again.clone(), again, Ok(vec![8; 50])].into();
    });
    set(&source, StopCopy).unwrap();
    let stream = read_all(&source, 5000).unwrap();
    assert_eq!(data.script().waits, 2);
    let (destination, data) = v2(|data| data.writes = [Err(Errno::AGAIN), Ok(30)].into());
    load(&destination, &stream, 5000).unwrap();
    assert_eq!(data.script().waits, 1);
    let written = data.script().written.clone();
    assert_eq!(written, [vec![7; 50], vec![8; 50]].concat());
}

#[test]
fn a_v1_driver_that_is_not_ready_yet_is_asked_again() {
    let (source, sim) = with_region(&[], TYPE);
    fill(&sim);
    let source = function(source);
    set(&source, StopCopy).unwrap();
    let state = (0, Ok(u64::from(sim.driver().device_state)));
    sim.driver().instead = [state, (8, Err(Errno::AGAIN))].into();
    let stream = read_all(&source, 5000).unwrap();
    let (destination, copy) = with_region(&[], TYPE);
    load(&function(destination), &stream, 5000).unwrap();
    assert_eq!(copy.driver().incoming, transactions()[1]);
}

/// A function with a v2 driver, and its data.
fn v2(write: impl FnOnce(&mut DataScript)) -> (Function, Data) {
    let driver = Migrating::new(ALL);
    let data = driver.data.clone();
    write(&mut data.script());
    let migration = Some(driver);
    let script = Script {
        migration,
        ..script()
    };
    (function(script), data)
}

#[test]
fn a_device_that_migrates_is_reset_though_it_does_not_announce_that() {
    let (source, _) = with_region(&[], TYPE);
    let stream = save(&function(source), 5000);
    let (mut script, sim) = with_region(&[], TYPE);
    script.flags = PCI;
    let destination = function(script);
    load(&destination, &stream[..stream.len() - 1], 5000).unwrap_err();
    assert_eq!(sim.driver().device_state & 7, 1);
    assert_eq!(destination.migration().state().unwrap(), Running);
}
