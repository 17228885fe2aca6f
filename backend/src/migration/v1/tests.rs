// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A v1 region over a simulated driver: every layout, and drivers that lie.

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState::{self as State, *};
use vm_memory::VolatileSlice;

use super::save::EMPTY_ROUNDS;
use super::sim::{RESERVED, Sim};
use crate::migration::{DataStream, MigrationDriver, Taken};

const SIZE: usize = 4096;

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at * 7 + seed * 31) % 251).unwrap();
    (0..count).map(byte).collect()
}

fn take(stream: &mut dyn DataStream, size: usize) -> Result<(Vec<u8>, bool), Errno> {
    let mut data = vec![0; size];
    let slice = VolatileSlice::from(data.as_mut_slice());
    let Taken {
        length,
        ends_transaction,
    } = stream.read(&slice)?;
    data.truncate(length);
    Ok((data, ends_transaction))
}

fn give(stream: &mut dyn DataStream, data: &[u8], ends: bool) -> Result<usize, Errno> {
    let mut data = data.to_vec();
    stream.write(&VolatileSlice::from(data.as_mut_slice()), ends)
}

/// Everything until there is nothing, as transactions.
fn take_all(stream: &mut dyn DataStream, size: usize) -> Vec<Vec<u8>> {
    let mut transactions = vec![Vec::new()];
    loop {
        let (data, ends) = take(stream, size).unwrap();
        if data.is_empty() {
            break;
        }
        transactions.last_mut().unwrap().extend(data);
        if ends {
            transactions.push(Vec::new());
        }
    }
    assert_eq!(transactions.pop(), Some(vec![]), "the last one has ended");
    transactions
}

fn open(driver: &dyn MigrationDriver, states: &[State]) -> Box<dyn DataStream> {
    let mut stream = None;
    for state in states {
        stream = driver.set_state(*state).unwrap().or(stream);
    }
    stream.unwrap()
}

#[test]
fn a_device_goes_over() {
    let areas = [(0x800, 0x200), (0x400, 0x300)];
    let sim = Sim::new(SIZE, &areas);
    let precopy = [bytes(100, 1), bytes(0x200, 2)];
    let last = [bytes(700, 3), bytes(1, 4)];
    {
        let mut driver = sim.driver();
        driver.outgoing = [precopy.clone().into(), last.clone().into()];
        // Trapped, mapped, from trapped into mapped, from mapped past its end.
        driver.places = [0x20, 0x480, 0x7f0, 0x9ff].into();
        driver.step = 33;
    }
    let source = sim.migration();
    assert!(source.support().pre_copy && !source.support().p2p);
    assert_eq!(source.state(), Ok(Running));
    assert_eq!(source.stop_copy_size(), Err(Errno::NOTTY), "not known");
    let mut stream = open(&*source, &[PreCopy]);
    assert_eq!(source.stop_copy_size(), Ok(612));
    assert_eq!(stream.precopy_info().unwrap().dirty, 612);
    let mut all = take_all(&mut *stream, 64);
    assert_eq!(all, precopy);
    assert_eq!(take(&mut *stream, 64), Ok((vec![], false)), "for now");
    assert_eq!(source.set_state(StopCopy).unwrap().map(drop), None);
    assert_eq!(stream.precopy_info(), Err(Errno::INVAL));
    all.extend(take_all(&mut *stream, 1000));
    source.set_state(Stop).unwrap();
    assert_eq!(take(&mut *stream, 64), Err(Errno::NODEV));

    let copy = Sim::new(SIZE, &areas);
    copy.driver().places = [0xa00, 0x3f0].into();
    let destination = copy.migration();
    let mut stream = open(&*destination, &[Stop, Resuming]);
    for transaction in &all {
        let (first, rest) = transaction.split_at(transaction.len() / 2);
        assert_eq!(give(&mut *stream, first, false), Ok(first.len()));
        assert_eq!(give(&mut *stream, rest, true), Ok(rest.len()));
    }
    for state in [Stop, Running] {
        destination.set_state(state).unwrap();
    }
    assert_eq!(give(&mut *stream, &[1], true), Err(Errno::NODEV));
    assert_eq!(copy.driver().incoming, [&precopy[..], &last].concat());
    for sim in [sim, copy] {
        assert_eq!(sim.driver().offended, None);
        assert_eq!(sim.driver().device_state & !7, RESERVED & !7);
    }
}

#[test]
fn a_driver_that_knows_only_the_published_ways_is_resumed() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().strict = true;
    let migration = sim.migration();
    let mut stream = open(&*migration, &[Stop, Resuming]);
    assert_eq!(migration.state(), Ok(Resuming));
    assert_eq!(give(&mut *stream, &bytes(100, 1), true), Ok(100));
    for state in [Stop, Running] {
        migration.set_state(state).unwrap();
        assert_eq!(migration.state(), Ok(state));
    }
    assert_eq!(sim.driver().incoming, [bytes(100, 1)]);
    // What was refused for good stays refused, and where it was.
    migration.set_state(Stop).unwrap();
    let state = u64::from(RESERVED);
    sim.driver().instead = [(0, Ok(state)), (0, Err(Errno::IO))].into();
    assert_eq!(migration.set_state(Resuming).err(), Some(Errno::IO));
    assert_eq!(migration.state(), Ok(Stop));
    let driver = sim.driver();
    let written = driver.accesses.iter().filter(|access| access.1);
    // STOP; RESUMING in vain, RUNNING, RESUMING; the data's size; STOP likewise; RUNNING; STOP; RESUMING in vain.
    assert_eq!(written.count(), 1 + 3 + 1 + 3 + 1 + 1 + 1);
}

#[test]
fn only_arcs_reach_the_driver() {
    let sim = Sim::new(SIZE, &[]);
    let migration = sim.migration();
    for wrong in [Error, Running, RunningP2p, PreCopyP2p, StopCopy, Resuming] {
        assert_eq!(migration.set_state(wrong).err(), Some(Errno::INVAL));
    }
    sim.driver().device_state = RESERVED | 6;
    assert_eq!(migration.state(), Ok(Error));
    assert_eq!(migration.set_state(Stop).err(), Some(Errno::INVAL));
    assert!(!sim.driver().accesses.contains(&(0, true)));
}

#[test]
fn a_refused_change_is_told_by_the_state() {
    let sim = Sim::new(SIZE, &[]);
    let migration = sim.migration();
    sim.driver().instead = [(0, Ok((RESERVED | 1).into())), (0, Err(Errno::BUSY))].into();
    assert_eq!(migration.set_state(PreCopy).err(), Some(Errno::BUSY));
    assert_eq!(migration.state(), Ok(Running));
}

#[test]
fn asking_for_sizes_never_takes_a_section_away() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().outgoing[0] = [bytes(100, 1), bytes(50, 2)].into();
    let source = sim.migration();
    let mut stream = open(&*source, &[PreCopy]);
    assert_eq!(
        take(&mut *stream, 30),
        Ok((bytes(100, 1)[..30].to_vec(), false))
    );
    for _ in 0..3 {
        assert_eq!(stream.precopy_info().unwrap().dirty, 120);
        assert_eq!(source.stop_copy_size(), Ok(120));
    }
    assert_eq!(
        take(&mut *stream, 99),
        Ok((bytes(100, 1)[30..].to_vec(), true))
    );
    assert_eq!(stream.precopy_info().unwrap().dirty, 50);
    assert_eq!(take_all(&mut *stream, 7), [bytes(50, 2)]);
}

#[test]
fn a_section_goes_on_in_stop_copy_or_the_transfer_fails() {
    for forgetful in [false, true] {
        let sim = Sim::new(SIZE, &[]);
        {
            let mut driver = sim.driver();
            driver.outgoing[0] = [bytes(100, 1), bytes(50, 2)].into();
            driver.places = [0x20, 0x100].into();
            driver.forgetful = forgetful;
        }
        let source = sim.migration();
        let mut stream = open(&*source, &[PreCopy]);
        take(&mut *stream, 30).unwrap();
        source.set_state(StopCopy).unwrap();
        let rest = take(&mut *stream, 99);
        if forgetful {
            assert_eq!(rest, Err(Errno::IO));
            assert_eq!(take(&mut *stream, 99), Err(Errno::IO), "for good");
        } else {
            assert_eq!(rest, Ok((bytes(100, 1)[30..].to_vec(), true)));
            assert_eq!(take_all(&mut *stream, 99), [bytes(50, 2)]);
        }
    }
}

#[test]
fn a_pending_figure_without_data_comes_to_an_end() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().outgoing = [[vec![]].into(), [vec![]].into()];
    let source = sim.migration();
    let mut stream = open(&*source, &[PreCopy]);
    let endless = |sim: &Sim| {
        let state = u64::from(sim.driver().device_state);
        let round = [(8, Ok(5)), (16, Ok(32)), (24, Ok(0))];
        let rounds = (0..EMPTY_ROUNDS).flat_map(|_| round);
        sim.driver().instead = [(0, Ok(state))].into_iter().chain(rounds).collect();
        sim.driver().accesses.clear();
    };
    endless(&sim);
    assert_eq!(take(&mut *stream, 9), Ok((vec![], false)), "not an end");
    source.set_state(StopCopy).unwrap();
    endless(&sim);
    assert_eq!(take(&mut *stream, 9), Err(Errno::IO));
    assert_eq!(sim.driver().accesses.len(), 1 + 3 * EMPTY_ROUNDS as usize);
}

#[test]
fn a_size_of_nothing_is_not_the_end() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().outgoing[1] = [bytes(10, 1)].into();
    let source = sim.migration();
    let mut stream = open(&*source, &[Stop, StopCopy]);
    let round = [(8, Ok(10)), (16, Ok(32)), (24, Ok(0))];
    let state = [(0, Ok((RESERVED | 2).into()))];
    sim.driver().instead = state.into_iter().chain(round).collect();
    assert_eq!(take_all(&mut *stream, 99), [bytes(10, 1)]);
}

#[test]
fn sections_outside_the_region_end_the_transfer() {
    for (offset, size) in [
        (0, 16),
        (31, 1),
        (24, 4096),
        (4096, 1),
        (4095, 2),
        (32, 4065),
        (u64::MAX, 1),
        (32, u64::MAX),
        (u64::MAX - 3, 8),
        (1 << 32 | 32, 4),
        (32, 1 << 32 | 4),
    ] {
        let sim = Sim::new(SIZE, &[(0, 4096)]);
        let source = sim.migration();
        let mut stream = open(&*source, &[PreCopy]);
        sim.driver().instead = [
            (0, Ok((RESERVED | 3).into())),
            (8, Ok(u64::MAX)),
            (16, Ok(offset)),
            (24, Ok(size)),
        ]
        .into();
        assert_eq!(take(&mut *stream, SIZE), Err(Errno::IO), "{offset} {size}");
        assert_eq!(sim.driver().offended, None);
        assert_eq!(take(&mut *stream, SIZE), Err(Errno::IO), "for good");
    }
}

#[test]
fn garbage_figures_are_handed_on() {
    let sim = Sim::new(SIZE, &[]);
    let source = sim.migration();
    let mut stream = open(&*source, &[PreCopy]);
    let state = (0, Ok((RESERVED | 3).into()));
    sim.driver().instead = [state, (8, Ok(u64::MAX)), state, (8, Ok(1 << 63))].into();
    assert_eq!(source.stop_copy_size(), Ok(u64::MAX));
    let info = stream.precopy_info().unwrap();
    assert_eq!((info.initial, info.dirty, info.reinit), (0, 1 << 63, false));
}

#[test]
fn a_transaction_that_does_not_fit_is_refused_whole() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().places = [4096 - 100].into();
    let destination = sim.migration();
    let mut stream = open(&*destination, &[Stop, Resuming]);
    assert_eq!(give(&mut *stream, &bytes(100, 1), true), Ok(100));
    assert_eq!(give(&mut *stream, &bytes(60, 2), false), Ok(60));
    assert_eq!(give(&mut *stream, &bytes(41, 3), true), Err(Errno::NOSPC));
    assert_eq!(give(&mut *stream, &bytes(1, 4), true), Err(Errno::IO));
    assert_eq!(destination.set_state(Stop).err(), Some(Errno::IO));
    assert_eq!(destination.state(), Ok(Resuming), "not even asked");
    assert_eq!(sim.driver().incoming, [bytes(100, 1)]);
}

#[test]
fn half_a_transaction_is_not_loaded() {
    let sim = Sim::new(SIZE, &[]);
    let destination = sim.migration();
    let mut stream = open(&*destination, &[Stop, Resuming]);
    assert_eq!(give(&mut *stream, &[], true), Ok(0), "nothing to end");
    assert_eq!(give(&mut *stream, &bytes(9, 1), false), Ok(9));
    assert_eq!(destination.set_state(Stop).err(), Some(Errno::INVAL));
    assert_eq!(give(&mut *stream, &[], true), Ok(0));
    destination.set_state(Stop).unwrap();
    assert_eq!(sim.driver().incoming, [bytes(9, 1)]);
}

#[test]
fn the_drivers_errors_come_through() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().outgoing[1] = [bytes(10, 1)].into();
    let source = sim.migration();
    let mut stream = open(&*source, &[Stop, StopCopy]);
    let state = (0, Ok((RESERVED | 2).into()));
    sim.driver().instead = [state, (8, Err(Errno::INTR)), (8, Err(Errno::AGAIN))].into();
    assert_eq!(take(&mut *stream, 9), Err(Errno::AGAIN));
    sim.driver().instead = [state, (8, Ok(10)), (16, Err(Errno::NODEV))].into();
    assert_eq!(take(&mut *stream, 9), Err(Errno::NODEV));
    assert_eq!(take(&mut *stream, 9).unwrap().0, bytes(10, 1)[..9]);
    sim.driver().device_state = RESERVED | 6;
    assert_eq!(take(&mut *stream, 9), Err(Errno::IO));

    let sim = Sim::new(SIZE, &[]);
    let destination = sim.migration();
    let mut stream = open(&*destination, &[Stop, Resuming]);
    let state = (0, Ok((RESERVED | 4).into()));
    sim.driver().instead = [state, (16, Err(Errno::AGAIN)), state].into();
    assert_eq!(give(&mut *stream, &[1], false), Err(Errno::AGAIN));
    assert_eq!(give(&mut *stream, &[1], false), Ok(1));
    sim.driver().instead = [state, (24, Err(Errno::AGAIN))].into();
    assert_eq!(give(&mut *stream, &[2], true), Err(Errno::AGAIN));
    assert_eq!(
        give(&mut *stream, &[2], true),
        Err(Errno::IO),
        "what was given cannot be given again"
    );
}

#[test]
fn a_reset_ends_the_transfer() {
    let sim = Sim::new(SIZE, &[]);
    sim.driver().outgoing[0] = [bytes(10, 1)].into();
    let source = sim.migration();
    let mut stream = open(&*source, &[PreCopy]);
    take(&mut *stream, 5).unwrap();
    sim.driver().device_state = RESERVED | 1;
    assert_eq!(take(&mut *stream, 5), Err(Errno::NODEV));
    let mut next = open(&*source, &[PreCopy]);
    assert_eq!(
        take(&mut *stream, 5),
        Err(Errno::NODEV),
        "of another transfer"
    );
    assert_eq!(stream.precopy_info(), Err(Errno::NODEV));
    take(&mut *next, 5).unwrap();
}

#[test]
fn a_region_without_data_is_none() {
    let sim = Sim::new(32, &[]);
    let migration = super::V1Migration::new(Box::new(sim), String::new());
    assert_eq!(migration.err(), Some(Errno::INVAL));
}

fn areas() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let size = prop_oneof![0_u64..300, Just(u64::MAX), Just(u64::MAX - 700)];
    vec((0_u64..700, size), 0..5)
}

proptest! {
    /// Any layout on either side, any sections, any segmentation.
    #[test]
    fn every_layout_moves_every_transaction(
        layouts in (areas(), areas()),
        sections in vec((1_usize..300, 0_u64..200), 1..8),
        split in 0_usize..8,
        pieces in (1_usize..400, 1_usize..400),
        steps in (1_usize..50, 1_usize..50),
    ) {
        let all: Vec<_> = sections.iter().zip(1..).map(|((size, _), n)| bytes(*size, n)).collect();
        let sim = Sim::new(600, &layouts.0);
        {
            let mut driver = sim.driver();
            let mut first = all.clone();
            let second = first.split_off(split.min(all.len()));
            driver.outgoing = [first.into(), second.into()];
            driver.places = sections.iter().map(|(_, place)| 32 + place).collect();
            driver.step = steps.0;
        }
        let source = sim.migration();
        let mut stream = open(&*source, &[PreCopy]);
        let mut taken = take_all(&mut *stream, pieces.0);
        source.set_state(StopCopy).unwrap();
        taken.extend(take_all(&mut *stream, pieces.0));
        prop_assert_eq!(&taken, &all);
        prop_assert_eq!(sim.driver().offended, None);

        let copy = Sim::new(700, &layouts.1);
        copy.driver().step = steps.1;
        copy.driver().places = sections.iter().rev().map(|(_, place)| 33 + place).collect();
        let destination = copy.migration();
        let mut stream = open(&*destination, &[Stop, Resuming]);
        for transaction in &taken {
            let mut pieces = transaction.chunks(pieces.1).peekable();
            while let Some(piece) = pieces.next() {
                let ends = pieces.peek().is_none();
                prop_assert_eq!(give(&mut *stream, piece, ends), Ok(piece.len()));
            }
        }
        destination.set_state(Stop).unwrap();
        prop_assert_eq!(&copy.driver().incoming, &all);
        prop_assert_eq!(copy.driver().offended, None);
    }

    /// A driver that says anything at all is never read outside its region, and never for ever.
    #[test]
    fn hostile_drivers_are_contained(
        layout in areas(),
        answers in vec(prop_oneof![0_u64..700, any::<u64>(), Just(u64::MAX - 31)], 0..40),
        asks in vec((0_usize..4, 0_usize..700), 1..20),
    ) {
        let sim = Sim::new(600, &layout);
        let migration = sim.migration();
        let saving = asks.len() % 2 == 0;
        let states: &[State] = if saving { &[PreCopy] } else { &[Stop, Resuming] };
        let mut stream = open(&*migration, states);
        let mut answers = answers.into_iter().cycle();
        for (what, size) in asks {
            let state = u64::from(sim.driver().device_state);
            sim.driver().instead = [(0, Ok(state))].into();
            let mut answer = |register| answers.next().map(|value| (register, Ok(value)));
            let row = match saving {
                true => vec![answer(8), answer(16), answer(24)],
                false => vec![answer(16)],
            };
            sim.driver().instead.extend(row.into_iter().flatten());
            match what {
                0 => drop(stream.precopy_info()),
                1 => drop(migration.stop_copy_size()),
                _ if saving => drop(take(&mut *stream, size)),
                _ => drop(give(&mut *stream, &bytes(size, 1), what == 3)),
            }
            sim.driver().instead.clear();
            prop_assert_eq!(sim.driver().offended, None);
        }
    }
}
