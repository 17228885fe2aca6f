// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The address space against real memory files, and against a simple model of intervals.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, Mode, OFlags, ftruncate, memfd_create, open};
use rustix::io::{Errno, pread, pwrite};

use super::*;

const P: u64 = PAGE_SIZE;

fn memfd(pages: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, pages * P).unwrap();
    file
}

fn space() -> AddressSpace {
    AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS)
}

fn request(iova: u64, size: u64, access: Access, file: Option<(&OwnedFd, u64)>) -> MapRequest {
    let backing = file.map(|(file, offset)| Backing {
        file: file.try_clone().unwrap(),
        offset,
    });
    MapRequest {
        iova,
        size,
        access,
        backing,
    }
}

fn map(space: &AddressSpace, iova: u64, pages: u64, access: Access) -> OwnedFd {
    let file = memfd(pages);
    space
        .map(request(iova, pages * P, access, Some((&file, 0))))
        .unwrap();
    file
}

fn refused(space: &AddressSpace, request: MapRequest) -> Errno {
    space.map(request).unwrap_err().errno()
}

fn fault(done: u64, iova: u64, reason: FaultReason) -> Result<(), DmaFault> {
    Err(DmaFault { iova, reason, done })
}

#[test]
fn misuse_is_refused_with_the_right_errno() {
    let space = space();
    let rw = Access::READ_WRITE;
    let file = memfd(4);
    for (iova, size) in [(0, 0), (1, P), (P, P + 1), (u64::MAX - P + 1, 2 * P)] {
        assert_eq!(
            refused(&space, request(iova, size, rw, None)),
            Errno::INVAL,
            "{iova:#x} {size:#x}"
        );
    }
    for offset in [1, P, u64::MAX - P + 1] {
        let request = request(0, 4 * P, rw, Some((&file, offset)));
        assert_eq!(refused(&space, request), Errno::INVAL, "{offset:#x}");
    }
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let errno = refused(&space, request(0, P, rw, Some((&pipe, 0))));
    assert!([Errno::ACCESS, Errno::NODEV].contains(&errno), "{errno}");
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let read_only = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let writable = request(0, P, rw, Some((&read_only, 0)));
    assert_eq!(refused(&space, writable), Errno::ACCESS);
    assert!(space.is_empty());
    let readable = request(0, P, Access::READ, Some((&read_only, 0)));
    space.map(readable).unwrap();
}

#[test]
fn overlap_is_refused_and_an_identical_repeat_is_not() {
    let space = space();
    let rw = Access::READ_WRITE;
    let file = memfd(8);
    let map = |iova, pages, access, file| space.map(request(iova, pages * P, access, file));
    map(2 * P, 2, rw, Some((&file, P))).unwrap();
    map(6 * P, 2, rw, None).unwrap();
    map(2 * P, 2, rw, Some((&file, P))).unwrap();
    map(6 * P, 2, rw, None).unwrap();
    let other = memfd(8);
    for (iova, pages, access, file) in [
        (P, 2, rw, None),
        (3 * P, 2, rw, None),
        (P, 8, rw, None),
        (2 * P, 1, rw, Some((&file, P))),
        (2 * P, 2, Access::READ, Some((&file, P))),
        (2 * P, 2, rw, Some((&file, 2 * P))),
        (2 * P, 2, rw, Some((&other, P))),
        (2 * P, 2, rw, None),
        (6 * P, 2, rw, Some((&file, 0))),
    ] {
        let error = map(iova, pages, access, file).unwrap_err();
        assert_eq!(error.errno(), Errno::EXIST, "{iova:#x} {pages}");
    }
    assert_eq!(space.len(), 2);
    map(4 * P, 2, rw, None).unwrap();
}

#[test]
fn the_last_page_of_the_space_can_be_used() {
    let space = space();
    let last_page = u64::MAX - P + 1;
    let file = map(&space, last_page, 1, Access::READ_WRITE);
    space.write(last_page, &[5; 4096]).unwrap();
    let mut byte = [0];
    pread(&file, &mut byte, P - 1).unwrap();
    assert_eq!(byte, [5]);
    assert_eq!(
        space.write(last_page, &[5; 4097]),
        fault(0, last_page, FaultReason::Wraps)
    );
    space.unmap(last_page, P).unwrap();
}

#[test]
fn the_number_of_maps_is_limited() {
    let space = AddressSpace::new(CpuAccess::Mapped, 2);
    for n in 0..2 {
        space.map(request(n * P, P, Access::READ, None)).unwrap();
    }
    let error = refused(&space, request(9 * P, P, Access::READ, None));
    assert_eq!(error, Errno::NOSPC);
    space.map(request(0, P, Access::READ, None)).unwrap();
}

#[test]
fn unmap_takes_exactly_one_map() {
    let space = space();
    for n in [0, 1, 4] {
        map(&space, n * P, 1, Access::READ_WRITE);
    }
    for (iova, size) in [(0, 2 * P), (0, 0), (P / 2, P), (2 * P, P), (0, u64::MAX)] {
        let error = space.unmap(iova, size).unwrap_err();
        assert_eq!(error.errno(), Errno::NOENT);
    }
    space.unmap(P, P).unwrap();
    assert_eq!(space.len(), 2);
    assert_eq!(space.unmap_all().unwrap(), 2);
    assert!(space.is_empty());
}

#[test]
fn unmap_range_takes_whole_maps_or_nothing() {
    let space = space();
    for (iova, pages) in [(0, 2), (2, 2), (4, 2), (8, 1)] {
        let request = request(iova * P, pages * P, Access::READ, None);
        space.map(request).unwrap();
    }
    // What it leaves of a map the device could still reach, though the client was told otherwise.
    for (iova, pages) in [(1, 4), (1, 3), (2, 3), (6, 0), (3, 1)] {
        assert_eq!(
            space.unmap_range(iova * P, pages * P).unwrap(),
            0,
            "{iova} {pages}"
        );
    }
    assert_eq!(space.unmap_range(2 * P, 5 * P).unwrap(), 2);
    assert_eq!(space.unmap_range(2 * P, u64::MAX).unwrap(), 1);
    assert_eq!(space.len(), 1);
}

#[test]
fn an_unmapped_file_is_let_go() {
    let space = space();
    let file = map(&space, 0, 1, Access::READ_WRITE);
    let inode = rustix::fs::fstat(&file).unwrap().st_ino;
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines()
            .any(|line| line.split_whitespace().nth(4) == Some(&inode.to_string()))
    };
    assert!(mapped());
    space.unmap(0, P).unwrap();
    assert!(!mapped());
}

#[test]
fn tracked_only_never_maps() {
    let space = AddressSpace::new(CpuAccess::TrackedOnly, DEFAULT_MAX_MAPS);
    map(&space, 0, 1, Access::READ_WRITE);
    assert_eq!(
        space.read(0, &mut [0]),
        fault(0, 0, FaultReason::NoDescriptor)
    );
}

#[test]
fn access_spans_adjacent_maps() {
    let space = space();
    let files = [0, 1].map(|n| map(&space, n * P, 1, Access::READ_WRITE));
    space.write(P - 3, b"abcdef").unwrap();
    let mut ends = [[0; 3]; 2];
    pread(&files[0], &mut ends[0], P - 3).unwrap();
    pread(&files[1], &mut ends[1], 0).unwrap();
    assert_eq!(&ends, &[*b"abc", *b"def"]);
    let mut back = [0; 6];
    space.read(P - 3, &mut back).unwrap();
    assert_eq!(&back, b"abcdef");
    space.copy(P - 3, 10, 6).unwrap();
    space.read(10, &mut back).unwrap();
    assert_eq!(&back, b"abcdef");
}

#[test]
fn a_fault_names_address_and_reason() {
    let space = space();
    map(&space, 0, 1, Access::READ_WRITE);
    map(&space, P, 1, Access::READ);
    map(&space, 3 * P, 1, Access::WRITE);
    let mut buffer = [0; 3 * 4096];
    assert_eq!(
        space.write(8, &buffer),
        fault(P - 8, P, FaultReason::NotWritable)
    );
    assert_eq!(
        space.read(8, &mut buffer),
        fault(2 * P - 8, 2 * P, FaultReason::Unmapped)
    );
    assert_eq!(
        space.read(3 * P, &mut buffer),
        fault(0, 3 * P, FaultReason::NotReadable)
    );
    assert_eq!(
        space.copy(0, 3 * P, 2 * P),
        fault(P, 4 * P, FaultReason::Unmapped)
    );
    assert_eq!(space.copy(0, 0, 0), Ok(()));
    assert_eq!(
        space.copy(u64::MAX, 0, 2),
        fault(0, u64::MAX, FaultReason::Wraps)
    );
}

#[test]
fn pieces_are_bounded() {
    let space = space();
    map(&space, 0, 1024, Access::READ_WRITE);
    let mut pieces = Vec::new();
    space
        .for_each(5, 3 << 20, Access::READ, |slice| pieces.push(slice.len()))
        .unwrap();
    assert_eq!(pieces, [MAX_PIECE; 3]);
}

#[test]
fn a_truncated_file_is_a_fault_where_it_ends() {
    let space = space();
    let file = map(&space, 0x10 * P, 4, Access::READ_WRITE);
    let other = map(&space, 0x20 * P, 4, Access::READ_WRITE);
    pwrite(&file, b"kept", P - 4).unwrap();
    ftruncate(&file, P).unwrap();
    let mut buffer = [1; 2 * 4096];
    let lost = fault(P, 0x11 * P, FaultReason::Lost);
    assert_eq!(space.read(0x10 * P, &mut buffer), lost);
    assert_eq!(&buffer[4092..4100], b"kept\0\0\0\0");
    assert_eq!(space.copy(0x10 * P, 0x20 * P, 2 * P), lost);
    assert_eq!(space.copy(0x20 * P, 0x10 * P, 2 * P), lost);
    assert_eq!(
        space.read(0x12 * P, &mut [0]),
        fault(0, 0x12 * P, FaultReason::Lost)
    );
    space.read(0x10 * P, &mut [0; 4096]).unwrap();
    pwrite(&other, b"x", 0).unwrap();
    space.unmap(0x10 * P, 4 * P).unwrap();
}

/// Guest memory that answers messages, up to an address.
#[derive(Debug)]
struct Client {
    memory: Mutex<Vec<u8>>,
    asked: Mutex<Vec<usize>>,
}

impl Client {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: Mutex::new(vec![3; 80 * 4096]),
            asked: Mutex::default(),
        })
    }

    fn range(iova: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(iova).unwrap();
        if start + len > 80 * 4096 {
            return Err(Errno::FAULT.into());
        }
        Ok(start..start + len)
    }
}

impl MessageDma for Client {
    fn read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
        self.asked.lock().unwrap().push(data.len());
        data.copy_from_slice(&self.memory.lock().unwrap()[Self::range(iova, data.len())?]);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> io::Result<()> {
        self.asked.lock().unwrap().push(data.len());
        self.memory.lock().unwrap()[Self::range(iova, data.len())?].copy_from_slice(data);
        Ok(())
    }
}

#[test]
fn memory_without_a_descriptor_goes_through_the_client() {
    let space = space();
    let size = 100 * P;
    space
        .map(request(0, size, Access::READ_WRITE, None))
        .unwrap();
    let file = map(&space, size, 100, Access::READ_WRITE);
    assert_eq!(
        space.write(4, b"hello"),
        fault(0, 4, FaultReason::NoDescriptor)
    );
    let client = Client::new();
    space.set_message_dma(Some(client.clone()));
    space.write(4, b"hello").unwrap();
    let mut back = [0; 9];
    space.read(0, &mut back).unwrap();
    assert_eq!(&back, b"\x03\x03\x03\x03hello");
    space.copy(0, size, 70_000).unwrap();
    let mut copied = [0; 9];
    pread(&file, &mut copied, 0).unwrap();
    assert_eq!(copied, back);
    space.copy(size, 10 * P, 5).unwrap();
    assert_eq!(
        client.memory.lock().unwrap()[40_960..40_966],
        [3, 3, 3, 3, b'h', 3]
    );
    let failed = fault(0, 80 * P, FaultReason::Client(Errno::FAULT));
    assert_eq!(space.write(80 * P, &[0; 8]), failed);
    assert!(client.asked.lock().unwrap().iter().all(|n| *n <= 64 << 10));
    space.clear().unwrap();
    assert!(space.is_empty());
}

#[test]
fn unmap_waits_for_the_piece_in_flight() {
    let space = space();
    map(&space, 0, 1, Access::READ_WRITE);
    let in_flight = Mutex::new(true);
    thread::scope(|scope| {
        let (entered, wait) = std::sync::mpsc::channel();
        let (space, in_flight) = (&space, &in_flight);
        scope.spawn(move || {
            space
                .for_each(0, P, Access::READ_WRITE, |slice| {
                    entered.send(()).unwrap();
                    // Long enough for an unmap that did not wait to come first.
                    for _ in 0..2000 {
                        slice.copy_from(&[1_u8; 4096]);
                        thread::yield_now();
                    }
                    *in_flight.lock().unwrap() = false;
                })
                .unwrap();
        });
        wait.recv().unwrap();
        space.unmap(0, P).unwrap();
        assert!(!*in_flight.lock().unwrap());
    });
}

#[test]
fn many_maps_need_no_descriptors() {
    let space = space();
    let file = memfd_create("many-maps", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, P).unwrap();
    for n in 0..3000 {
        space
            .map(request(2 * n * P, P, Access::READ, Some((&file, 0))))
            .unwrap();
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let ours = open
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().contains("many-maps"));
    assert_eq!(ours.count(), 1);
    assert_eq!(space.unmap_range(0, u64::MAX).unwrap(), 3000);
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, bool),
    Unmap(u64, u64),
    UnmapRange(u64, u64),
    UnmapAll,
    Write(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0_u64..24, 0_u64..6);
    prop_oneof![
        8 => (range(), any::<bool>()).prop_map(|((i, n), w)| Op::Map(i, n, w)),
        3 => range().prop_map(|(i, n)| Op::Unmap(i, n)),
        1 => range().prop_map(|(i, n)| Op::UnmapRange(i, n)),
        1 => Just(Op::UnmapAll),
        4 => range().prop_map(|(i, n)| Op::Write(i, n)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a list of (first page, pages, writable).
    #[test]
    fn behaves_like_a_list_of_intervals(ops in prop::collection::vec(op(), 1..60)) {
        let space = space();
        let file = memfd(32);
        let mut model: Vec<(u64, u64, bool)> = Vec::new();
        for op in ops {
            match op {
                Op::Map(at, pages, writable) => {
                    let access = if writable { Access::READ_WRITE } else { Access::READ };
                    let backing = Some((&file, at * P));
                    let got = space.map(request(at * P, pages * P, access, backing));
                    let clash = model.iter().any(|(a, n, _)| *a < at + pages && at < a + n);
                    let expected = if pages == 0 {
                        Err(Errno::INVAL)
                    } else if model.contains(&(at, pages, writable)) {
                        Ok(())
                    } else if clash {
                        Err(Errno::EXIST)
                    } else {
                        model.push((at, pages, writable));
                        Ok(())
                    };
                    prop_assert_eq!(got.map_err(|error| error.errno()), expected);
                }
                Op::Unmap(at, pages) => {
                    let before = model.len();
                    model.retain(|(a, n, _)| (*a, *n) != (at, pages));
                    let got = space.unmap(at * P, pages * P).is_ok();
                    prop_assert_eq!(got, model.len() < before);
                }
                Op::UnmapRange(at, pages) => {
                    let before = model.len();
                    let end = at + pages;
                    let cut = |edge| model.iter().any(|(a, n, _)| *a < edge && edge < a + n);
                    if !cut(at) && !cut(end) {
                        model.retain(|(a, n, _)| *a < at || a + n > end);
                    }
                    let got = space.unmap_range(at * P, pages * P).unwrap();
                    prop_assert_eq!(got, before - model.len());
                }
                Op::UnmapAll => {
                    prop_assert_eq!(space.unmap_all().unwrap(), model.len());
                    model.clear();
                }
                Op::Write(at, pages) => {
                    let data = vec![1; usize::try_from(pages * P).unwrap()];
                    let expected = (at..at + pages).find_map(|page| {
                        match model.iter().find(|(a, n, _)| (*a..a + n).contains(&page)) {
                            None => Some((page, FaultReason::Unmapped)),
                            Some((_, _, false)) => Some((page, FaultReason::NotWritable)),
                            Some(_) => None,
                        }
                    });
                    let got = space.write(at * P, &data).map_err(|f| (f.iova / P, f.reason));
                    prop_assert_eq!(got, expected.map_or(Ok(()), Err));
                }
            }
            prop_assert_eq!(space.len(), model.len());
        }
    }
}

/// Notes whether the space was being emptied when it let go of a map.
#[derive(Debug, Default)]
struct Emptied {
    space: OnceLock<Weak<AddressSpace>>,
    emptying: Mutex<Vec<bool>>,
}

impl Iommu for Emptied {
    fn map(&self, _: &IommuMap<'_>) -> Result<(), IommuError> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), IommuError> {
        let space = self.space.get().and_then(Weak::upgrade).unwrap();
        self.emptying.lock().unwrap().push(space.is_emptying());
        Ok(())
    }
}

#[test]
fn whoever_waits_can_tell_that_maps_are_being_let_go_of() {
    let iommu = Arc::new(Emptied::default());
    let space = Arc::new(AddressSpace::with_iommu(Arc::clone(&iommu) as _, 8));
    iommu.space.set(Arc::downgrade(&space)).unwrap();
    for iova in [0, P, 2 * P] {
        map(&space, iova, 1, Access::READ_WRITE);
    }
    space.unmap(0, P).unwrap();
    space.clear().unwrap();
    assert_eq!(*iommu.emptying.lock().unwrap(), [false, true, true]);
    assert!(!space.is_emptying());
}
