// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Logging through the address space: what this process writes, and what scripted hardware tells.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;

use super::*;
use crate::memory::{
    Access, AddressSpace, Backing, CpuAccess, Iommu, IommuError, IommuMap, MapRequest, MessageDma,
    PAGE_SIZE as P,
};

fn request(iova: u64, pages: u64, access: Access, backed: bool) -> MapRequest {
    let memfd = || {
        let file: OwnedFd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, pages * P).unwrap();
        Backing { file, offset: 0 }
    };
    MapRequest {
        iova,
        size: pages * P,
        access,
        backing: backed.then(memfd),
    }
}

fn everything() -> LoggingStart {
    LoggingStart::new(P, [(0, 1 << 63), (1 << 63, 1 << 63)].into_iter()).unwrap()
}

/// The pages of 4 KiB that a report finds dirty, by number from 0.
fn report(space: &AddressSpace, first: u64, pages: u64) -> Vec<u64> {
    let report = LoggingReport::new(first * P, pages * P, P).unwrap();
    let mut found = Vec::new();
    for_each_run(&space.logging_report(&report).unwrap(), |run| {
        found.extend(run.map(|bit| first + bit));
    });
    found
}

/// Takes every message.
#[derive(Debug)]
struct Client;

impl MessageDma for Client {
    fn read(&self, _: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(1);
        Ok(())
    }

    fn write(&self, iova: u64, _: &[u8]) -> io::Result<()> {
        if iova >= 0x80 * P {
            return Err(Errno::FAULT.into());
        }
        Ok(())
    }
}

#[test]
fn what_this_process_writes_is_reported_once() {
    let space = AddressSpace::new(CpuAccess::Mapped, 16);
    let rw = Access::READ_WRITE;
    space.map(request(0, 16, rw, true)).unwrap();
    space.write(0, &[1; 4096]).unwrap();
    space.logging_start(everything(), None).unwrap();
    assert!(report(&space, 0, 16).is_empty(), "before the start");
    space.write(3 * P - 1, &[1; 2]).unwrap();
    space.write(5 * P, &[]).unwrap();
    space.read(7 * P, &mut [0; 16]).unwrap();
    space.copy(8 * P, 9 * P + 4, 4096).unwrap();
    space.map(request(0x20 * P, 4, rw, false)).unwrap();
    space.set_message_dma(Some(Arc::new(Client)));
    space.write(0x21 * P, &[1; 4097]).unwrap();
    space.copy(0, 0x23 * P, 1).unwrap();
    assert_eq!(report(&space, 0, 3), [2], "only what is asked for");
    assert_eq!(report(&space, 0, 0x40), [3, 9, 10, 0x21, 0x22, 0x23]);
    assert!(report(&space, 0, 0x40).is_empty());
    // What was written in part before it failed.
    space.map(request(0x80 * P, 1, rw, false)).unwrap();
    assert!(space.write(0x80 * P, &[1; 8]).is_err());
    assert!(space.write(15 * P, &[1; 4097]).is_err());
    assert_eq!(report(&space, 0, 0x100), [15, 0x80]);
}

#[test]
fn maps_come_and_go_while_logging() {
    let space = AddressSpace::new(CpuAccess::Mapped, 16);
    let rw = Access::READ_WRITE;
    let narrow = LoggingStart::new(P, [(0, P)].into_iter()).unwrap();
    space.logging_start(narrow, None).unwrap();
    space.map(request(0x10 * P, 2, rw, true)).unwrap();
    space.write(0x11 * P, &[1]).unwrap();
    space.unmap(0x10 * P, 2 * P).unwrap();
    space.map(request(0x10 * P, 4, rw, true)).unwrap();
    space.write(0x13 * P, &[1]).unwrap();
    space.unmap_all().unwrap();
    assert_eq!(report(&space, 0x10, 8), [0x11, 0x13]);
    assert!(report(&space, 0, 0x1000).is_empty());
}

#[test]
fn starts_and_stops() {
    let space = AddressSpace::new(CpuAccess::Mapped, 16);
    let some = LoggingReport::new(0, P, P).unwrap();
    assert!(space.can_log(None));
    assert_eq!(space.logging_stop(), Err(LoggingError::NotStarted));
    assert_eq!(space.logging_report(&some), Err(LoggingError::NotStarted));
    space.map(request(0, 1, Access::WRITE, true)).unwrap();
    space.logging_start(everything(), None).unwrap();
    space.write(0, &[1]).unwrap();
    space.logging_start(everything(), None).unwrap();
    let other = LoggingStart::new(2 * P, [(0, 1 << 63), (1 << 63, 1 << 63)].into_iter()).unwrap();
    assert_eq!(space.logging_start(other, None), Err(LoggingError::Started));
    assert_eq!(space.logging_report(&some).unwrap(), [1], "all the same");
    space.write(0, &[1]).unwrap();
    space.logging_stop().unwrap();
    space.logging_start(everything(), None).unwrap();
    assert_eq!(space.logging_report(&some).unwrap(), [0]);
    space.clear().unwrap();
    assert_eq!(space.logging_stop(), Err(LoggingError::NotStarted));
}

/// Hardware that tells what it was told to, and remembers what it was asked.
#[derive(Debug, Default)]
struct Hardware {
    tracks: bool,
    /// Addresses written, told once.
    written: Mutex<Vec<u64>>,
    fail: Mutex<Option<Errno>>,
    asked: Mutex<Vec<String>>,
}

impl Hardware {
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, what: String) -> Result<(), Errno> {
        self.asked.lock().unwrap().push(what);
        self.fail.lock().unwrap().map_or(Ok(()), Err)
    }
}

impl DirtyTracker for Hardware {
    fn start(&self, page_size: u64, ranges: &[RangeInclusive<u64>]) -> Result<(), Errno> {
        self.note(format!("start {page_size:x} {}", ranges.len()))
    }

    fn stop(&self) -> Result<(), Errno> {
        self.note("stop".into())
    }

    fn collect(
        &self,
        map: &RangeInclusive<u64>,
        wanted: &RangeInclusive<u64>,
        mark: &mut Mark<'_>,
    ) -> Result<(), Errno> {
        let [a, b] = [wanted.start(), wanted.end()].map(|at| at >> 12);
        let of = [map.start(), map.end()].map(|at| at >> 12);
        self.note(format!("{a:x}-{b:x} of {:x}-{:x}", of[0], of[1]))?;
        let mut written = self.written.lock().unwrap();
        written.retain(|at| {
            if wanted.contains(at) {
                mark(*at..=*at);
            }
            !wanted.contains(at)
        });
        Ok(())
    }
}

impl Iommu for Hardware {
    fn map(&self, _: &IommuMap<'_>) -> Result<(), IommuError> {
        Ok(())
    }

    fn unmap(&self, iova: u64, _: u64) -> Result<(), IommuError> {
        let what = "unmap";
        self.note(format!("unmap {:x}", iova >> 12))
            .map_err(|errno| IommuError::Kernel { what, errno })
    }

    fn tracker(&self) -> Option<&dyn DirtyTracker> {
        self.tracks.then_some(self)
    }
}

fn hardware(tracks: bool) -> (Arc<Hardware>, AddressSpace) {
    let hardware = Arc::new(Hardware {
        tracks,
        ..Hardware::default()
    });
    let space = AddressSpace::with_iommu(Arc::clone(&hardware) as _, 8);
    space.map(request(0, 8, Access::READ_WRITE, true)).unwrap();
    space.map(request(0x10 * P, 8, Access::READ, true)).unwrap();
    space
        .map(request(0x20 * P, 8, Access::WRITE, true))
        .unwrap();
    space
        .map(request(0x30 * P, 8, Access::WRITE, false))
        .unwrap();
    (hardware, space)
}

#[test]
fn nobody_tracks() {
    let (_, space) = hardware(false);
    assert!(!space.can_log(None));
    let refused = space.logging_start(everything(), None).unwrap_err();
    assert_eq!(refused.errno(), Errno::NOTTY);
}

#[test]
fn the_iommu_is_asked_for_the_maps_it_has_that_can_be_written() {
    let (iommu, space) = hardware(true);
    space.logging_start(everything(), None).unwrap();
    *iommu.written.lock().unwrap() = vec![2 * P, 0x27 * P + 5];
    assert_eq!(report(&space, 0, 0x24), [2]);
    assert_eq!(
        iommu.asked(),
        ["start 1000 2", "0-7 of 0-7", "20-23 of 20-27"]
    );
    assert_eq!(report(&space, 0x27, 1), [0x27]);
    // What cannot be known is dirty; what cannot have been written is not.
    *iommu.fail.lock().unwrap() = Some(Errno::IO);
    let all: Vec<_> = (1..8).chain(0x20..0x28).collect();
    assert_eq!(report(&space, 1, 0x3f), all);
    *iommu.fail.lock().unwrap() = None;
    iommu.asked();
    // An IOMMU that cannot tell at the unmapping: every page of the map.
    space.unmap(0x20 * P, 8 * P).unwrap();
    space.unmap(0x10 * P, 8 * P).unwrap();
    assert_eq!(iommu.asked(), ["unmap 20", "unmap 10"]);
    assert_eq!(report(&space, 0x10, 0x30), (0x20..0x28).collect::<Vec<_>>());
    space.clear().unwrap();
    assert_eq!(
        iommu.asked(),
        ["stop", "unmap 0"],
        "nothing to be told any more"
    );
}

#[test]
fn the_device_comes_first_and_its_ranges_count() {
    let (iommu, space) = hardware(true);
    let device = Arc::new(Hardware::default());
    let ranges = [(2 * P, 2 * P), (5 * P, P), (0x21 * P, P), (0x100 * P, P)];
    let start = LoggingStart::new(P, ranges.into_iter()).unwrap();
    let tracker = Arc::clone(&device) as _;
    space.logging_start(start, Some(tracker)).unwrap();
    *device.written.lock().unwrap() = vec![3 * P, 0x21 * P];
    assert_eq!(
        report(&space, 0, 8),
        [0, 1, 3, 4, 6, 7],
        "nobody watched those"
    );
    let asked = ["start 1000 4", "2-3 of 0-7", "5-5 of 0-7"];
    assert_eq!(device.asked(), asked);
    assert!(report(&space, 2, 1).is_empty(), "nothing new");
    assert_eq!(device.asked(), ["2-2 of 0-7"]);
    // The device is asked once the IOMMU has let go.
    space.unmap(0x20 * P, 8 * P).unwrap();
    assert_eq!(iommu.asked(), ["unmap 20"]);
    assert_eq!(device.asked(), ["21-21 of 20-27"]);
    assert_eq!(report(&space, 0x21, 1), [0x21]);
    *device.fail.lock().unwrap() = Some(Errno::NODEV);
    assert_eq!(report(&space, 2, 2), [2, 3]);
    let refused = space.logging_stop().unwrap_err();
    assert_eq!(refused.errno(), Errno::NODEV);
    assert_eq!(space.logging_stop(), Err(LoggingError::NotStarted));
    let refused = space.logging_start(everything(), Some(Arc::clone(&device) as _));
    assert_eq!(refused.unwrap_err().errno(), Errno::NODEV);
    assert_eq!(space.logging_stop(), Err(LoggingError::NotStarted));
    assert!(iommu.asked().is_empty(), "never started");
}
