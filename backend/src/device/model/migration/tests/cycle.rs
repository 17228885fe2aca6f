// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What leaves one device arrives at the other.

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, OFlags, fallocate, fcntl_setfl};
use rustix::io::{pwrite, read as read_fd};
use std::sync::atomic::Ordering;

use super::super::super::engine::{Job, Snapshot};
use super::super::super::registers::{Registers, command, offset, status};
use super::super::super::tests::{DONE, FROM_VRAM, RAM, Slow, TO_VRAM, contents, noise};
use super::super::super::{DISPLAY_REGION, ResetCause, command::Command};
use super::super::format::Start;
use super::*;
use crate::interrupts::{IrqConfig, IrqRequest, MSIX};
use crate::memory::Access;

const CHUNK: usize = HEADER + GRANULE;

/// Whether the eventfd has fired, and how often.
fn count(fd: &impl std::os::fd::AsFd) -> u64 {
    let mut bytes = [0; 8];
    match read_fd(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}

fn arm(rig: &Rig, vector: u32) -> std::os::fd::OwnedFd {
    let ours = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let request = IrqRequest::SetEventfds {
        index: MSIX,
        start: vector,
        eventfds: vec![Some(ours.try_clone().unwrap())],
    };
    rig.gpu.set_irqs(request).unwrap();
    ours
}

#[test]
fn everything_arrives_with_writes_during_precopy() {
    for piece in [7, 4096, CHUNK, 100_000, 1 << 20] {
        let (source, target) = (Rig::new(), Rig::new());
        source.poke(0, &noise(3 << 20));
        source.poke((5 << 20) + 77, &noise(70_000));
        source.set(offset::SCRATCH, 0xfeed);
        source.gpu.write(DISPLAY_REGION, 0x502, &[0x80, 2]).unwrap();
        // The target was in use, too: none of that may be left.
        target.poke(7 << 20, &[9; 100]);
        target.set(offset::SCRATCH, 5);

        let mut stream = source.open(PreCopy);
        let mut data = drain(&mut *stream, piece).unwrap();
        // Around the boundaries of granules, and back to what was sent.
        for at in [
            GRANULE - 1,
            GRANULE,
            2 * GRANULE - 1,
            7 * GRANULE,
            (8 << 20) - 1,
        ] {
            let mut byte = [0];
            source.gpu.read(VRAM_REGION, at as u64, &mut byte).unwrap();
            source.poke(at, &[!byte[0]]);
        }
        source.poke(9 * GRANULE, &[1]);
        source.poke(9 * GRANULE, &source.vram()[9 * GRANULE..=9 * GRANULE]);
        assert_eq!(info(&mut *stream).initial, 0);
        data.extend(drain(&mut *stream, piece).unwrap());
        source.poke(3 * GRANULE + 5, b"while it is read");
        source.go(PreCopyP2p).unwrap();
        info(&mut *stream);
        // Half a chunk is under way when it stops.
        data.extend(read(&mut *stream, CHUNK / 2).unwrap());
        source.poke(GRANULE, b"at the last moment");
        source.poke((6 << 20) + 5, b"new");
        assert!(source.go(StopCopy).unwrap().is_none());
        data.extend(drain(&mut *stream, piece).unwrap());
        assert_eq!(read(&mut *stream, 1), Ok(vec![]), "the end stays");
        source.go(Stop).unwrap();
        assert_eq!(read(&mut *stream, 1), Err(Errno::NODEV));

        target.load(&data, piece).unwrap();
        assert!(target.vram() == source.vram());
        assert_eq!(target.gpu.display(), source.gpu.display());
        assert_eq!(target.gpu.engine.save(), source.gpu.engine.save());
        // The source can go on, as after a target that failed.
        source.go(Running).unwrap();
        for rig in [source, target] {
            assert_eq!(rig.get(offset::SCRATCH), 0xfeed);
            assert_eq!(rig.run(command::FILL | command::DST_VRAM, 0, 0, 64), DONE);
        }
    }
}

#[test]
fn a_client_that_made_writes_append_keeps_nobody_from_loading() {
    let (source, target) = (Rig::new(), Rig::new());
    source.poke(0, &noise(1 << 20));
    let data = save(&source, 1 << 20);
    let shared = target.gpu.vram().share().unwrap();
    fcntl_setfl(&shared, OFlags::APPEND).unwrap();
    target.load(&data, 1 << 20).unwrap();
    assert!(target.vram() == source.vram());
}

#[test]
fn only_what_changed_is_sent_again() {
    let rig = Rig::new();
    rig.poke(0, &noise(1 << 20));
    rig.poke(4 << 20, &[0; 4096]);
    let mut stream = rig.open(PreCopy);
    let first = info(&mut *stream);
    // 64 granules, and one that takes room but is zero.
    let start = HEADER + 64;
    assert_eq!(first.initial, (start + 65 * CHUNK) as u64);
    assert_eq!(first.dirty, 0);
    let half = read(&mut *stream, start + 10 * CHUNK).unwrap();
    assert_eq!(info(&mut *stream).initial, (55 * CHUNK) as u64);
    let rest = drain(&mut *stream, 1 << 20).unwrap();
    let granules = |range: std::ops::Range<usize>| -> Vec<_> {
        range.map(|n| (n * GRANULE, GRANULE)).collect()
    };
    assert_eq!(places(&[half, rest].concat(), Kind::Vram), granules(0..64));
    // Without being asked there is no other pass.
    rig.poke(5 * GRANULE, b"new");
    rig.poke(6 * GRANULE - 1, b"new");
    assert_eq!(read(&mut *stream, 1), Err(Errno::NOMSG));
    let second = info(&mut *stream);
    assert_eq!((second.initial, second.dirty), (0, (2 * CHUNK) as u64));
    // What is undone before it is sent need not be.
    rig.poke(5 * GRANULE, &noise(1 << 20)[5 * GRANULE..][..3]);
    rig.poke(6 * GRANULE - 1, &noise(1 << 20)[6 * GRANULE - 1..][..1]);
    let data = drain(&mut *stream, 1 << 20).unwrap();
    assert_eq!(places(&data, Kind::Vram), granules(6..7));
    assert_eq!(info(&mut *stream), PrecopyInfo::default());
    rig.poke(20 * GRANULE, b"x");
    rig.poke(21 * GRANULE, b"y");
    rig.go(StopCopy).unwrap();
    let tail = rig.driver().stop_copy_size().unwrap();
    let data = drain(&mut *stream, 1 << 20).unwrap();
    assert_eq!(places(&data, Kind::Vram), [(20 * GRANULE, 2 * GRANULE)]);
    assert!(
        tail.abs_diff(data.len() as u64) <= HEADER as u64,
        "one chunk for two"
    );
    assert_eq!(rig.driver().stop_copy_size(), Ok(0));
}

#[test]
fn what_became_zero_is_sent_as_runs() {
    let (source, target) = (Rig::new(), Rig::new());
    source.poke(0, &noise(2 << 20));
    let mut stream = source.open(PreCopy);
    let mut data = drain(&mut *stream, 1 << 20).unwrap();
    let file = source.gpu.vram().share().unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 10 * GRANULE as u64, 20 * GRANULE as u64).unwrap();
    // Zero, but it takes room.
    source.poke(40 * GRANULE, &[0; 2 * GRANULE]);
    assert_eq!(info(&mut *stream).dirty, (22 * HEADER) as u64);
    let pass = drain(&mut *stream, 1 << 20).unwrap();
    let expected = [(10 * GRANULE, 20 * GRANULE), (40 * GRANULE, 2 * GRANULE)];
    assert_eq!(places(&pass, Kind::Zero), expected);
    assert_eq!(pass.len(), 2 * HEADER);
    data.extend(pass);
    assert_eq!(info(&mut *stream), PrecopyInfo::default());
    fallocate(&file, punch, 0, GRANULE as u64).unwrap();
    source.go(StopCopy).unwrap();
    let last = drain(&mut *stream, 1 << 20).unwrap();
    assert_eq!(places(&last, Kind::Zero), [(0, GRANULE)]);
    data.extend(last);
    source.go(Stop).unwrap();
    target.load(&data, 999).unwrap();
    assert!(target.vram() == source.vram());
}

#[test]
fn a_device_that_is_stopped_at_once_gives_all() {
    let (source, target) = (rig("no-precopy"), Rig::new());
    source.poke(0, &noise(1 << 20));
    source.poke((8 << 20) - 1, &[7]);
    let size = source.driver().stop_copy_size().unwrap();
    let mut stream = source.open(StopCopy);
    assert_eq!(stream.precopy_info(), Err(Errno::INVAL));
    let data = drain(&mut *stream, 1 << 20).unwrap();
    let chunk = HEADER as u64 + GRANULE as u64;
    assert!(
        size.abs_diff(data.len() as u64) <= chunk,
        "{size} {}",
        data.len()
    );
    source.go(Stop).unwrap();
    target.load(&data, 1 << 20).unwrap();
    assert!(target.vram() == source.vram());
}

#[test]
fn what_is_lent_is_what_would_be_read() {
    let source = rig("no-p2p");
    source.poke(0, &noise(3 * GRANULE as u64));
    source.poke(9 * GRANULE, &noise(GRANULE as u64));
    let read = read(&mut *source.open(StopCopy), 1 << 20).unwrap();
    source.go(Running).unwrap();

    let mut stream = source.open(StopCopy);
    let (mut all, mut lent) = (Vec::new(), 0);
    loop {
        if let Some(part) = stream.lend(10_000) {
            let bytes = part.bytes().unwrap();
            assert!((1..=10_000).contains(&bytes.len()));
            lent += bytes.len();
            all.resize(all.len() + bytes.len(), 0);
            let end = all.len();
            bytes.copy_to(&mut all[end - bytes.len()..]);
            continue;
        }
        let bytes = super::read(&mut *stream, 100).unwrap();
        if bytes.is_empty() {
            break;
        }
        all.extend(bytes);
    }
    assert!(all == read);
    assert!(lent > 3 * GRANULE, "{lent} bytes lent");
    // What was lent stays whatever becomes of the device.
    source.go(Running).unwrap();
    let mut stream = source.open(StopCopy);
    super::read(&mut *stream, 2 * HEADER + size_of::<Start>()).unwrap();
    let part = stream.lend(GRANULE).unwrap();
    source.gpu.reset(ResetCause::Disconnect).unwrap();
    assert!(part.bytes().is_some());
    assert!(stream.lend(GRANULE).is_none(), "a stream of before");
    for faults in ["slow-save=1ms", "read-error@1M"] {
        let source = rig(faults);
        source.poke(0, &noise(GRANULE as u64));
        let mut stream = source.open(StopCopy);
        super::read(&mut *stream, 2 * HEADER + size_of::<Start>()).unwrap();
        assert!(stream.lend(1).is_none(), "faults show in reads");
    }
}

#[test]
fn a_command_under_way_goes_on_where_it_was() {
    let (source, target) = (Rig::new(), Rig::new());
    // 1 MiB of 3 were copied at the source.
    let mut registers = Registers::new(VRAM);
    for (at, value) in [(offset::SRC, RAM), (offset::DST, 0), (offset::LEN, 3 << 20)] {
        registers.write(at, &value.to_le_bytes());
    }
    let word = TO_VRAM | command::EVENT | (3 << command::VECTOR_SHIFT);
    registers.write(offset::COMMAND, &word.to_le_bytes());
    registers.write(offset::INT_ENABLE, &0xff_u32.to_le_bytes());
    let running: Command = registers.doorbell(true).unwrap();
    registers.progress(1 << 20);
    let job = Some(Job {
        command: running,
        done: 1 << 20,
    });
    source.go(Stop).unwrap();
    source.gpu.engine.restore(Snapshot { registers, job });
    let mut stream = source.open(StopCopy);
    let data = drain(&mut *stream, 1 << 20).unwrap();
    source.go(Stop).unwrap();
    assert_eq!(source.get(offset::STATUS), status::BUSY);

    let memory = target.map(RAM, 768, Access::READ_WRITE);
    let bytes = noise(3 << 20);
    pwrite(&memory, &bytes, 0).unwrap();
    target.load(&data, 4096).unwrap();
    target.wait();
    assert_eq!(target.get(offset::STATUS), DONE);
    assert_eq!(target.fault(), (0, 3 << 20));
    let vram = target.vram();
    assert!(vram[..1 << 20].iter().all(|byte| *byte == 0), "done before");
    assert!(vram[1 << 20..3 << 20] == bytes[1 << 20..]);
    assert_eq!(target.run(FROM_VRAM, 1 << 20, RAM, 4096), DONE);
    assert!(contents(&memory, 0, 4096) == bytes[1 << 20..][..4096]);
}

#[test]
fn no_dma_while_stopped_or_p2p_and_the_rest_after() {
    let (source, target) = (Rig::new(), Rig::new());
    let (slow, reached, go_on) = Slow::install(&source);
    drop(go_on);
    source.start(command::COPY, 1 << 40, 1 << 40, 1 << 40);
    reached.recv().unwrap();
    let mut asked = 0;
    for state in [
        RunningP2p, Stop, StopCopy, Stop, RunningP2p, PreCopyP2p, StopCopy,
    ] {
        source.go(state).unwrap();
        let before = std::mem::replace(&mut asked, slow.asked.load(Ordering::SeqCst));
        assert!(before == 0 || before == asked, "{state}");
    }
    let done = source.get_wide(offset::COMPLETED);
    source.go(Stop).unwrap();
    let mut stream = source.open(StopCopy);
    let data = drain(&mut *stream, 4096).unwrap();
    assert_eq!(slow.asked.load(Ordering::SeqCst), asked);

    let (_slow, reached, go_on) = Slow::install(&target);
    drop(go_on);
    target.load(&data, 1).unwrap();
    reached.recv().unwrap();
    assert_eq!(target.get(offset::STATUS), status::BUSY);
    assert!(target.get_wide(offset::COMPLETED) >= done);
    // The source goes on, too.
    while reached.try_recv().is_ok() {}
    source.go(Running).unwrap();
    while slow.asked.load(Ordering::SeqCst) == asked {
        std::thread::yield_now();
    }
}

#[test]
fn interrupts_wait_and_arrive_once() {
    let (source, target) = (Rig::new(), Rig::new());
    let here = arm(&source, 5);
    source.go(Stop).unwrap();
    source.set(offset::INT_RAISE, 1 << 5);
    assert_eq!(count(&here), 0, "stopped");
    let mut stream = source.open(StopCopy);
    let data = drain(&mut *stream, 4096).unwrap();
    let there = arm(&target, 5);
    let mut stream = target.open(Resuming);
    write(&mut *stream, &data).unwrap();
    target.go(Stop).unwrap();
    assert_eq!(count(&there), 0, "still stopped");
    target.go(RunningP2p).unwrap();
    assert_eq!(count(&there), 1);
    target.set(offset::INT_STATUS, 1 << 5);
    target.set(offset::INT_RAISE, 1 << 5);
    assert_eq!(count(&there), 1, "P2P holds DMA only");
    target.go(Running).unwrap();
    assert_eq!(count(&there), 0);
    assert_eq!(target.get(offset::INT_STATUS), 1 << 5);
    // The migration is called off: the source tells its client itself.
    source.go(Running).unwrap();
    assert_eq!(count(&here), 1);
}

#[test]
fn a_level_goes_along() {
    let (source, target) = (Rig::new(), Rig::new());
    source.set(offset::INT_RAISE, 1);
    let data = save(&source, 1 << 20);
    // The rig armed MSI-X; with that gone the mode is INTx.
    target.gpu.release_irqs();
    let intx = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let request = IrqRequest::SetEventfds {
        index: crate::interrupts::INTX,
        start: 0,
        eventfds: vec![Some(intx.try_clone().unwrap())],
    };
    target.gpu.set_irqs(request).unwrap();
    target.load(&data, 4096).unwrap();
    assert_eq!(count(&intx), 1);
    assert!(target.gpu.interrupt_status());
    target.set(offset::INT_STATUS, 1);
    assert!(!target.gpu.interrupt_status());
    target.gpu.set_irq_config(IrqConfig::default());
}

#[test]
fn every_change_of_state_can_be_taken_and_taken_back() {
    for faults in ["reinit@1", "no-p2p", "no-precopy", "no-p2p+no-precopy"] {
        let rig = rig(faults);
        rig.poke(100, b"kept");
        let support = rig.driver().support();
        for from in MigrationState::ALL {
            for to in MigrationState::ALL {
                let good = |state| way(Running, state, support).is_ok();
                if !good(from) || !good(to) || way(from, to, support).is_err() {
                    continue;
                }
                // RESUMING wipes VRAM, and does not lead out without data.
                if from == Resuming || to == Resuming {
                    continue;
                }
                rig.go(from).unwrap();
                rig.go(to).unwrap();
                rig.go(Running).unwrap();
                assert_eq!(rig.run(command::FILL | command::DST_VRAM, 0, 0, 8), DONE);
            }
        }
        assert_eq!(&rig.vram()[100..104], b"kept");
        // Not more than an arc at a time, and none that is not there.
        let driver = rig.driver();
        assert!(driver.set_state(Resuming).is_err());
        assert!(driver.set_state(StopCopy).is_err());
        assert!(driver.set_state(Error).is_err());
        assert_eq!(driver.set_state(PreCopy).is_ok(), support.pre_copy);
        assert_eq!(driver.data_version(), "model 3");
        rig.gpu.reset(ResetCause::Client).unwrap();
        assert_eq!(rig.state(), Running);
    }
}

#[test]
fn vram_in_a_file_migrates_and_one_that_is_lost_fails() {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: &str| {
        Rig::with(&ModelOptions {
            vram_size: VRAM,
            vram_file: Some(folder.path().join(name)),
            ..ModelOptions::default()
        })
    };
    let (source, target) = (named("source"), named("target"));
    source.poke(GRANULE - 1, &noise(100_000));
    target.load(&save(&source, 4096), 4096).unwrap();
    assert!(target.vram() == source.vram());
    source.go(Running).unwrap();

    let mut stream = source.open(PreCopy);
    let file = std::fs::File::options();
    let file = file.clone().write(true).open(folder.path().join("source"));
    file.unwrap().set_len(5000).unwrap();
    assert_eq!(drain(&mut *stream, 4096), Err(Errno::IO));
    assert_eq!(read(&mut *stream, 1), Err(Errno::IO), "for good");
    source.go(Running).unwrap();
    assert_eq!(source.driver().set_state(PreCopy).unwrap_err(), Errno::IO);
    assert_eq!(source.state(), Running);
    source.gpu.reset(ResetCause::Client).unwrap();
    save(&source, 4096);
}

/// What happens while a device is saved.
#[derive(Clone, Debug)]
enum Step {
    /// The guest writes so many bytes of a value.
    Poke(usize, usize, u8),
    /// It gives memory back.
    Punch(usize, usize),
    /// The VMM reads.
    Read(usize),
    Ask,
    P2p,
    Back,
}

fn step() -> impl Strategy<Value = Step> {
    let size = usize::try_from(VRAM).unwrap();
    // Few places, so that they meet.
    let place = prop_oneof![0..4 * GRANULE, size - 3 * GRANULE..size - 1];
    prop_oneof![
        4 => (place, 1..2 * GRANULE, 0_u8..3)
            .prop_map(|(at, length, value)| Step::Poke(at, length, value)),
        1 => (0_usize..4, 1_usize..4).prop_map(|(first, count)| Step::Punch(first, count)),
        4 => prop_oneof![1_usize..50, 1..4 * GRANULE].prop_map(Step::Read),
        2 => Just(Step::Ask),
        1 => Just(Step::P2p),
        1 => Just(Step::Back),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    /// Whatever the guest and the VMM do, the destination has in the end what the source had.
    #[test]
    fn any_course_of_a_save(
        steps in prop::collection::vec(step(), 0..40),
        piece in 1_usize..100_000,
        reinit in any::<bool>(),
    ) {
        let source = rig(if reinit { "reinit@20000" } else { "moving-sizes" });
        let target = Rig::new();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let file = source.gpu.vram().share().unwrap();
        let mut stream = source.open(PreCopy);
        let mut data = Vec::new();
        for step in steps {
            match step {
                Step::Poke(at, length, value) => {
                    let end = usize::try_from(VRAM).unwrap();
                    source.poke(at, &vec![value; length.min(end - at)]);
                }
                Step::Punch(first, count) => {
                    let (first, count) = (first * GRANULE, count * GRANULE);
                    fallocate(&file, punch, first as u64, count as u64).unwrap();
                }
                Step::Read(length) => match read(&mut *stream, length) {
                    Ok(bytes) => data.extend(bytes),
                    Err(error) => prop_assert_eq!(error, Errno::NOMSG),
                },
                Step::Ask => {
                    stream.precopy_info().unwrap();
                }
                Step::P2p => {
                    source.go(PreCopyP2p).unwrap();
                }
                Step::Back => {
                    source.go(PreCopy).unwrap();
                }
            }
        }
        source.go(StopCopy).unwrap();
        data.extend(drain(&mut *stream, piece).unwrap());
        target.load(&data, piece).unwrap();
        prop_assert!(target.vram() == source.vram());
    }
}
