// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Levels, masks and messages, seen from the client's eventfds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::*;

fn new_eventfd() -> (OwnedFd, OwnedFd) {
    let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    (fd.try_clone().unwrap(), fd)
}

fn count(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(Errno::AGAIN) => 0,
        Err(error) => panic!("eventfd: {error}"),
    }
}

fn arm(lines: &Lines, index: u32, start: u32) -> OwnedFd {
    let (ours, theirs) = new_eventfd();
    let eventfds = vec![Some(theirs)];
    lines
        .apply(IrqRequest::SetEventfds {
            index,
            start,
            eventfds,
        })
        .unwrap();
    ours
}

fn lines() -> Arc<Lines> {
    let lines = Lines::new([1, 4, 8, 1, 1]);
    lines.set_config(IrqConfig {
        bus_master: true,
        ..IrqConfig::default()
    });
    lines
}

const FIRST: Vectors = Vectors::Range { start: 0, count: 1 };

#[test]
fn intx_fires_once_and_again_after_unmask_while_asserted() {
    let lines = lines();
    let intx = arm(&lines, INTX, 0);
    lines.set_level(true);
    lines.set_level(true);
    assert_eq!(count(&intx), 1);
    assert!(lines.intx_status());
    lines
        .apply(IrqRequest::Unmask {
            index: INTX,
            vectors: FIRST,
        })
        .unwrap();
    assert_eq!(count(&intx), 1, "still asserted");
    lines.set_level(false);
    lines
        .apply(IrqRequest::Unmask {
            index: INTX,
            vectors: FIRST,
        })
        .unwrap();
    assert_eq!(count(&intx), 0, "deasserted");
    lines
        .apply(IrqRequest::Mask {
            index: INTX,
            vectors: FIRST,
        })
        .unwrap();
    lines.set_level(true);
    assert_eq!(count(&intx), 0, "masked");
    lines
        .apply(IrqRequest::Unmask {
            index: INTX,
            vectors: FIRST,
        })
        .unwrap();
    assert_eq!(count(&intx), 1);
}

#[test]
fn intx_disable_holds_the_line_and_status_still_tells() {
    let lines = lines();
    let intx = arm(&lines, INTX, 0);
    let disabled = IrqConfig {
        intx_disable: true,
        bus_master: true,
        ..Default::default()
    };
    lines.set_config(disabled);
    lines.set_level(true);
    assert_eq!(count(&intx), 0);
    assert!(lines.intx_status());
    lines.set_config(IrqConfig {
        intx_disable: false,
        ..disabled
    });
    assert_eq!(count(&intx), 1);
}

#[test]
fn an_eventfd_armed_late_hears_of_an_asserted_line() {
    let lines = lines();
    lines.set_level(true);
    let intx = arm(&lines, INTX, 0);
    assert_eq!(count(&intx), 1);
}

#[test]
fn resample_eventfd_unmasks() {
    let lines = lines();
    let (ours, theirs) = new_eventfd();
    let intx = {
        let blocking = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let eventfds = vec![Some(blocking.try_clone().unwrap())];
        lines
            .apply(IrqRequest::SetEventfds {
                index: INTX,
                start: 0,
                eventfds,
            })
            .unwrap();
        blocking
    };
    lines
        .apply(IrqRequest::UnmaskEventfd {
            eventfd: Some(theirs),
        })
        .unwrap();
    lines.set_level(true);
    for _ in 0..3 {
        let mut bytes = [0; 8];
        // Blocks until the line fires again: the wait is the synchronisation.
        assert_eq!(rustix::io::read(&intx, &mut bytes), Ok(8));
        rustix::io::write(&ours, &1_u64.to_ne_bytes()).unwrap();
    }
    lines.release();
}

#[test]
fn a_resample_descriptor_that_is_no_eventfd_does_no_harm() {
    let lines = lines();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    lines
        .apply(IrqRequest::UnmaskEventfd {
            eventfd: Some(reader),
        })
        .unwrap();
    rustix::io::write(&writer, b"x").unwrap();
    drop(writer);
    lines
        .apply(IrqRequest::UnmaskEventfd { eventfd: None })
        .unwrap();
}

#[test]
fn messages_go_to_the_armed_vectors_only() {
    let lines = lines();
    let (v0, v5) = (arm(&lines, MSIX, 0), arm(&lines, MSIX, 5));
    for vector in [0, 5, 5, 3] {
        lines.message(vector);
    }
    assert_eq!((count(&v0), count(&v5)), (1, 2));
    lines
        .apply(IrqRequest::SetEventfds {
            index: MSIX,
            start: 5,
            eventfds: vec![None],
        })
        .unwrap();
    lines.message(5);
    assert_eq!(count(&v5), 0);
    lines.apply(IrqRequest::Disable { index: MSIX }).unwrap();
    lines.message(0);
    assert_eq!(count(&v0), 0);
}

#[test]
fn indexes_do_not_alias() {
    let lines = lines();
    let v0 = arm(&lines, MSIX, 0);
    lines.apply(IrqRequest::Disable { index: INTX }).unwrap();
    lines.message(0);
    assert_eq!(count(&v0), 1);
}

#[test]
fn messages_need_bus_mastering() {
    let lines = lines();
    let v0 = arm(&lines, MSIX, 0);
    lines.set_config(IrqConfig::default());
    lines.message(0);
    assert_eq!(count(&v0), 0);
}

#[test]
fn fewer_msi_vectors_share() {
    let lines = lines();
    let (v0, v1) = (arm(&lines, MSI, 0), arm(&lines, MSI, 1));
    lines.message(6);
    lines.message(7);
    assert_eq!((count(&v0), count(&v1)), (1, 1));
}

#[test]
fn masked_vectors_stay_pending() {
    let lines = lines();
    let v2 = arm(&lines, MSIX, 2);
    let second = Vectors::Flags {
        start: 0,
        flags: vec![false, false, true],
    };
    lines
        .apply(IrqRequest::Mask {
            index: MSIX,
            vectors: second.clone(),
        })
        .unwrap();
    lines.message(2);
    lines.message(2);
    assert!(lines.pending(MSIX, 2));
    assert_eq!(count(&v2), 0);
    lines
        .apply(IrqRequest::Unmask {
            index: MSIX,
            vectors: second,
        })
        .unwrap();
    assert_eq!(count(&v2), 1);
    assert!(!lines.pending(MSIX, 2));
}

#[test]
fn composed_delivery_follows_the_guest() {
    let lines = lines();
    lines.set_delivery(Delivery::Composed);
    let (intx, v0) = (arm(&lines, INTX, 0), arm(&lines, MSIX, 0));
    lines.set_level(true);
    lines.message(0);
    assert_eq!(
        (count(&intx), count(&v0)),
        (1, 0),
        "INTx until MSI-X is enabled"
    );
    lines.set_guest_mask(MSIX, 0, true);
    let enabled = IrqConfig {
        bus_master: true,
        msix_enabled: true,
        ..Default::default()
    };
    lines.set_config(enabled);
    lines.message(0);
    assert!(!lines.intx_status());
    assert!(lines.pending(MSIX, 0));
    lines.set_guest_mask(MSIX, 0, false);
    assert_eq!(count(&v0), 1);
}

#[test]
fn a_pending_message_waits_until_it_may_be_sent() {
    let lines = lines();
    lines.set_delivery(Delivery::Composed);
    let v0 = arm(&lines, MSIX, 0);
    let enabled = IrqConfig {
        bus_master: true,
        msix_enabled: true,
        ..Default::default()
    };
    lines.set_config(enabled);
    lines.set_guest_mask(MSIX, 0, true);
    lines.message(0);
    for held in [
        IrqConfig {
            msix_enabled: false,
            ..enabled
        },
        IrqConfig {
            bus_master: false,
            ..enabled
        },
    ] {
        lines.set_config(held);
        lines.set_guest_mask(MSIX, 0, false);
        assert_eq!(count(&v0), 0, "{held:?}");
        assert!(lines.pending(MSIX, 0));
    }
    lines.set_config(enabled);
    assert_eq!(count(&v0), 1);
    assert!(!lines.pending(MSIX, 0));
}

#[test]
fn unmasking_sends_nothing_without_bus_mastering() {
    let lines = lines();
    let v2 = arm(&lines, MSIX, 2);
    let vectors = Vectors::Range { start: 2, count: 1 };
    let mask = IrqRequest::Mask {
        index: MSIX,
        vectors: vectors.clone(),
    };
    lines.apply(mask).unwrap();
    lines.message(2);
    lines.set_config(IrqConfig::default());
    let unmask = IrqRequest::Unmask {
        index: MSIX,
        vectors,
    };
    lines.apply(unmask).unwrap();
    assert_eq!(count(&v2), 0);
    lines.set_config(IrqConfig {
        bus_master: true,
        ..IrqConfig::default()
    });
    assert_eq!(count(&v2), 1);
}

#[test]
fn a_full_or_dead_descriptor_never_blocks() {
    let lines = lines();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let stuffed = writer.try_clone().unwrap();
    rustix::io::ioctl_fionbio(&stuffed, true).unwrap();
    while rustix::io::write(&stuffed, &[0; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&stuffed, false).unwrap();
    let eventfds = vec![Some(writer)];
    lines
        .apply(IrqRequest::SetEventfds {
            index: MSIX,
            start: 0,
            eventfds,
        })
        .unwrap();
    lines.message(0);
    drop(reader);
    lines.message(0);
}

#[test]
fn no_thread_waits_for_a_client_that_fills_its_eventfd_in_time() {
    let lines = lines();
    let theirs = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    let eventfds = vec![Some(theirs.try_clone().unwrap())];
    lines
        .apply(IrqRequest::SetEventfds {
            index: MSIX,
            start: 0,
            eventfds,
        })
        .unwrap();
    let sent = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let device = thread::spawn({
        let (sent, stop) = (Arc::clone(&sent), Arc::clone(&stop));
        move || {
            while !stop.load(Ordering::Relaxed) {
                lines.message(0);
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    thread::spawn({
        let theirs = Arc::clone(&theirs);
        // Fills it as soon as there is room, for as long as the process lives.
        move || while rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).is_ok() {}
    });
    for _ in 0..20_000 {
        let _ = rustix::io::read(&*theirs, &mut [0; 8]);
        let before = sent.load(Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(5);
        while sent.load(Ordering::Relaxed) < before + 2 {
            assert!(Instant::now() < deadline, "a thread waits for the client");
        }
    }
    stop.store(true, Ordering::Relaxed);
    device.join().unwrap();
}

#[test]
fn release_forgets_the_client() {
    let lines = lines();
    let v0 = arm(&lines, MSIX, 0);
    lines.release();
    lines.message(0);
    assert_eq!(count(&v0), 0);
}

#[test]
fn what_is_held_waits_and_goes_along() {
    let source = lines();
    let fired = arm(&source, MSIX, 5);
    source.hold();
    source.message(5);
    source.message(5);
    source.set_level(true);
    assert_eq!(count(&fired), 0);
    let saved = source.save();
    let expected = LinesState {
        level: true,
        msi: 0,
        msix: 1 << 5,
    };
    assert_eq!(saved, expected);
    // Neither a mask nor the configuration lets anything out.
    let unmask = |index| IrqRequest::Unmask {
        index,
        vectors: Vectors::Range { start: 0, count: 8 },
    };
    source.apply(unmask(MSIX)).unwrap();
    source.set_guest_mask(MSIX, 5, false);
    source.set_config(IrqConfig {
        bus_master: true,
        ..IrqConfig::default()
    });
    assert_eq!(count(&fired), 0);

    let target = lines();
    let (elsewhere, other) = (arm(&target, MSIX, 5), arm(&target, MSIX, 4));
    target.hold();
    target.restore(saved).unwrap();
    assert_eq!(count(&elsewhere), 0);
    assert!(target.pending(MSIX, 5) && !target.pending(MSIX, 4));
    target.let_go();
    assert_eq!((count(&elsewhere), count(&other)), (1, 0));
    assert_eq!(target.save().msix, 0);

    // The source goes on instead: two events of one vector are one message.
    source.let_go();
    assert_eq!(count(&fired), 1);
    source.reset();
    assert_eq!(source.save(), LinesState::default());
}

#[test]
fn what_waits_behind_a_mask_waits_at_the_destination_too() {
    let target = lines();
    let fired = arm(&target, MSIX, 2);
    target.set_guest_mask(MSIX, 2, true);
    let waits = LinesState {
        msix: 1 << 2,
        ..LinesState::default()
    };
    target.restore(waits).unwrap();
    assert_eq!(count(&fired), 0);
    target.set_guest_mask(MSIX, 2, false);
    assert_eq!(count(&fired), 1);
}

#[test]
fn a_level_that_arrives_is_told() {
    let target = lines();
    let intx = arm(&target, INTX, 0);
    let level = LinesState {
        level: true,
        ..LinesState::default()
    };
    target.hold();
    target.restore(level).unwrap();
    assert_eq!(count(&intx), 0);
    target.let_go();
    assert_eq!(count(&intx), 1);
    assert!(target.intx_status());
}

#[test]
fn vectors_that_are_not_there_are_refused_whole() {
    let target = lines();
    for (index, msi, msix) in [(MSI, 1 << 4, 1), (MSIX, 1, 1 << 8), (MSIX, 0, 1 << 63)] {
        let saved = LinesState {
            level: true,
            msi,
            msix,
        };
        let pending = if index == MSI { msi } else { msix };
        assert_eq!(target.restore(saved), Err(NoSuchLine { index, pending }));
        assert_eq!(target.save(), LinesState::default());
    }
    // As many as fit into the words.
    let many = Lines::new([1, 64, 100, 1, 1]);
    let all = LinesState {
        level: false,
        msi: u64::MAX,
        msix: u64::MAX,
    };
    many.restore(all).unwrap();
    assert_eq!(many.save(), all);
}
