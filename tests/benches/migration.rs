// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What migration data costs beyond moving it: the backend beside a bare peer that sends as much, and beside the same
//! reads done in this process. Alternating in one run, all on one core; the ratio is what counts. Both sides work on the
//! very same memory, that of the device, in different places at a time: how fast memory is depends on where in the
//! machine its pages lie. Then what pre-copy does to the guest's accesses, with a core for the guest.
//!
//! `cargo bench -p system-tests --bench migration [-- socket|shm|access ...]`

use std::env;
use std::hint::black_box;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::thread::{CpuSet, sched_setaffinity};
use vfio_user_protocol::deframer::Frame;
use vfio_user_protocol::device::RegionInfo;
use vfio_user_protocol::extension::migration::{
    MIG_CHANNEL, MIG_SHM, MigShm, Query, SHM_END_OF_STREAM, ShmTransfer,
};
use vfio_user_protocol::feature::{DeviceState, Feature, MIG_DEVICE_STATE, SET};
use vfio_user_protocol::migration::{MigData, MigrationState};
use vfio_user_protocol::region::RegionAccess;
use vfio_user_protocol::transport::{Receiver, Sender, split};
use vfio_user_protocol::version::{Capabilities, Extension, Version};
use vfio_user_protocol::{Command as Message, Header, Request, extension};
use zerocopy::{FromBytes, IntoBytes};

/// Device memory on either side.
const DEVICE: usize = 1 << 30;
/// Batches by which the other side is behind in the device's memory: far enough for the last level of caches to have
/// forgotten what this side has read there.
const LAG: usize = 3;
/// Where the other side begins, in bytes.
const BEHIND: usize = DEVICE - LAG * BATCH * PIECE;
/// Bytes of one read.
const PIECE: usize = 1 << 20;
/// Reads of one batch; batches of the two sides alternate.
const BATCH: usize = 32;
/// Batches of each side; together they stay within the device's memory.
const ROUNDS: usize = 25;
/// Slots of shared memory that are asked for ahead, and bytes of one, as in the client library.
const SLOTS: usize = 2;
const SLOT: usize = 4 << 20;

fn main() {
    if let Some(fd) = env::var_os("MIGRATION_PEER") {
        let number = fd.to_str().and_then(|fd| fd.parse().ok());
        // SAFETY: the parent made this descriptor for us and names it once.
        let fd = unsafe { OwnedFd::from_raw_fd(number.expect("a descriptor number")) };
        let memory = env::var("MIGRATION_MEMORY").expect("the device's memory");
        // SAFETY: as above.
        let memory = unsafe { OwnedFd::from_raw_fd(memory.parse().expect("a descriptor")) };
        return bare_peer(UnixStream::from(fd), &memory);
    }
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // Across cores the wake-up would dominate whatever is measured.
    run_on(&[0]);
    println!("{ROUNDS} x {BATCH} reads of 1 MiB each, alternating, one core; medians");
    let named: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let wanted = |part: &str| named.is_empty() || named.iter().any(|name| name == part);
    if wanted("socket") {
        over_the_socket("MIG_DATA_READ, lent", "", ">= 0.85");
        // What a kernel's driver has must be read; an error far beyond the end makes the model's data alike.
        over_the_socket("MIG_DATA_READ, read", ",faults=read-error@1G", "-");
    }
    if wanted("shm") {
        through_shared_memory();
    }
    if !wanted("access") {
        return;
    }
    if cores > 1 {
        accesses_during_pre_copy();
    } else {
        println!("accesses during pre-copy: not measured, there is one core for guest and save");
    }
}

/// A guest's trapped accesses while its device is saved as fast as it can be, beside those of an idle device.
fn accesses_during_pre_copy() {
    const ACCESSES: u32 = 2_000;
    run_on(&[0, 1]);
    let mut server = Backend::spawn("");
    server.negotiate();
    server.fill();
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let query = Query { argsz: 8, flags: 0 };
    server
        .peer
        .call(&Request::MigChannel(query), Some(theirs.as_fd()));
    // The guest's thread has a core of its own; the backend and the save find theirs.
    run_on(&[0]);
    let read = Request::RegionRead(RegionAccess {
        offset: 0,
        region: 7,
        count: 4,
    });
    let batch = |server: &mut Backend| {
        let start = Instant::now();
        for _ in 0..ACCESSES {
            server.peer.call(&read, None);
        }
        start.elapsed().as_secs_f64()
    };
    let saving = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let moved = Arc::new(AtomicU64::new(0));
    let saver = {
        let (saving, stop, moved) = (saving.clone(), stop.clone(), moved.clone());
        std::thread::spawn(move || save_again_and_again(ours, &saving, &stop, &moved))
    };
    let mut times = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        times.0.push(batch(&mut server));
        saving.store(true, Ordering::SeqCst);
        saver.thread().unpark();
        let before = moved.load(Ordering::SeqCst);
        while moved.load(Ordering::SeqCst) == before {
            std::thread::yield_now();
        }
        times.1.push(batch(&mut server));
        saving.store(false, Ordering::SeqCst);
    }
    stop.store(true, Ordering::SeqCst);
    saver.thread().unpark();
    saver.join().expect("the saver");
    let mut ratios: Vec<f64> = times
        .0
        .iter()
        .zip(&times.1)
        .map(|(idle, busy)| busy / idle)
        .collect();
    ratios.sort_by(f64::total_cmp);
    let each = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2] * 1e6 / f64::from(ACCESSES)
    };
    println!(
        "trapped access         {:6.2} us during pre-copy   idle {:6.2} us   ratio {:.3} ({:.3}..{:.3})   target <= 1.50",
        each(&mut times.1),
        each(&mut times.0),
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
    );
}

/// Reads pre-copy data over a channel while `saving`, beginning anew whenever there is no more.
fn save_again_and_again(
    channel: UnixStream,
    saving: &AtomicBool,
    stop: &AtomicBool,
    moved: &AtomicU64,
) {
    run_on(&[1]);
    let (receiver, sender) = split(channel, PIECE + 4096);
    let mut channel = Channel { receiver, sender };
    let ask = u32::try_from(PIECE).expect("a size");
    let data = MigData {
        argsz: ask + 8,
        size: ask,
    };
    while !stop.load(Ordering::SeqCst) {
        if !saving.load(Ordering::SeqCst) {
            std::thread::park();
            continue;
        }
        channel.set_state(MigrationState::PreCopy);
        while saving.load(Ordering::SeqCst) {
            let length = channel.call(&Request::MigDataRead(data)).len() - size_of::<MigData>();
            moved.fetch_add(length as u64, Ordering::SeqCst);
            if length < PIECE {
                break;
            }
        }
        channel.set_state(MigrationState::Running);
    }
}

/// The client's end of a migration channel.
struct Channel {
    receiver: Receiver,
    sender: Sender,
}

impl Channel {
    fn call(&mut self, request: &Request<'_>) -> &[u8] {
        let body = request.encode();
        let header = Header::request(1, request.command(), body.len());
        self.sender.send(&header, &[&body], &[]).expect("sent");
        match self.receiver.receive().expect("a reply") {
            Some(Frame::Message { header, body, .. }) => {
                assert_eq!(header.error(), None, "command {} refused", header.command);
                body
            }
            other => panic!("{other:?}"),
        }
    }

    fn set_state(&mut self, state: MigrationState) {
        let (feature, data) = state_request(state);
        self.call(&Request::DeviceFeature(feature, data.as_bytes()));
    }
}

fn state_request(state: MigrationState) -> (Feature, DeviceState) {
    let feature = Feature {
        argsz: 16,
        flags: MIG_DEVICE_STATE | SET,
    };
    let data = DeviceState {
        device_state: state.into(),
        data_fd: -1,
    };
    (feature, data)
}

/// Lets the calling thread, and what it starts, run on these cores.
fn run_on(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).expect("to choose cores");
}

fn over_the_socket(name: &str, options: &str, target: &str) {
    let mut server = Backend::spawn(options);
    server.negotiate();
    let vram = server.fill();
    fcntl_setfd(&vram, FdFlags::empty()).expect("inheritable");
    let mut peer = Command::new(env::current_exe().expect("own path"));
    peer.env("MIGRATION_MEMORY", vram.as_raw_fd().to_string());
    let mut bare = Peer::spawn(peer, "MIGRATION_PEER");
    server.set_state(MigrationState::StopCopy);
    let ask = u32::try_from(PIECE).expect("a size");
    let data = MigData {
        argsz: ask + 8,
        size: ask,
    };
    let (mut ours, mut theirs) = (0, 0);
    compare(
        name,
        "bare socket peer",
        target,
        || {
            let start = Instant::now();
            for _ in 0..BATCH {
                let request = Request::MigDataRead(data);
                ours += server.peer.call(&request, None).len() - size_of::<MigData>();
            }
            start.elapsed()
        },
        || {
            let start = Instant::now();
            for _ in 0..BATCH {
                let request = Request::MigDataRead(data);
                theirs += bare.call(&request, None).len() - size_of::<MigData>();
            }
            start.elapsed()
        },
    );
    assert_eq!(ours, theirs, "the device had less than it should");
}

fn through_shared_memory() {
    let mut server = Backend::spawn("");
    server.negotiate();
    let device = server.fill();
    let shared = memfd(SLOTS * SLOT);
    let shm = MigShm {
        argsz: 16,
        flags: 0,
        size: (SLOTS * SLOT) as u64,
    };
    server
        .peer
        .call(&Request::MigShm(shm), Some(shared.as_fd()));
    server.set_state(MigrationState::StopCopy);

    // Into the same slots, too.
    let slots = map(shared.as_fd(), SLOTS * SLOT);
    let mut at = BEHIND as u64;
    let mut in_this_process = |after: fn(&[u8])| {
        let start = Instant::now();
        for index in 0..BATCH * PIECE / SLOT {
            let slot = &mut slots[index % SLOTS * SLOT..][..SLOT];
            for piece in slot.chunks_exact_mut(PIECE) {
                read_at(&device, piece, &mut at);
                after(piece);
            }
        }
        start.elapsed()
    };
    compare(
        "mig_shm",
        "same read(), and its checksum",
        ">= 0.95",
        || server.shared_batch(),
        || {
            in_this_process(|piece| {
                black_box(crc32fast::hash(piece));
            })
        },
    );
    server.set_state(MigrationState::Running);
    server.set_state(MigrationState::StopCopy);
    compare(
        "mig_shm",
        "same read() without checksum",
        "-",
        || server.shared_batch(),
        || in_this_process(|_| ()),
    );
}

fn read_at(device: &OwnedFd, buffer: &mut [u8], at: &mut u64) {
    let read = rustix::io::pread(device, &mut *buffer, *at).expect("pread");
    assert_eq!(read, buffer.len());
    *at = (*at + read as u64) % DEVICE as u64;
}

fn memfd(size: usize) -> OwnedFd {
    let file = memfd_create("bench", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&file, size as u64).expect("memfd size");
    file
}

/// Puts something other than zeros into every page.
fn scribble(file: BorrowedFd<'_>, size: usize) {
    let memory = map(file, size);
    for (byte, value) in memory.iter_mut().zip((0..251).cycle()) {
        *byte = value;
    }
}

/// All of a file, which nobody else changes while it is used here.
fn map(file: BorrowedFd<'_>, size: usize) -> &'static mut [u8] {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice, which is never unmapped.
    unsafe {
        let start = mmap(
            std::ptr::null_mut(),
            size,
            protection,
            MapFlags::SHARED,
            file,
            0,
        );
        std::slice::from_raw_parts_mut(start.expect("mmap").cast::<u8>(), size)
    }
}

fn compare(
    name: &str,
    beside: &str,
    target: &str,
    mut ours: impl FnMut() -> Duration,
    mut theirs: impl FnMut() -> Duration,
) {
    let mut times = (Vec::new(), Vec::new());
    // Round by round on different memory; what is compared is the time that either side took for the same.
    for round in 0..ROUNDS + LAG {
        let (a, b) = (ours(), theirs());
        if round < ROUNDS {
            times.0.push(a.as_secs_f64());
        }
        if round >= LAG {
            times.1.push(b.as_secs_f64());
        }
    }
    let pairs = times.0.iter().zip(&times.1);
    let mut ratios: Vec<f64> = pairs.map(|(ours, theirs)| theirs / ours).collect();
    ratios.sort_by(f64::total_cmp);
    let speed = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        BATCH as f64 / times[ROUNDS / 2]
    };
    println!(
        "{name:22} {:6.0} MiB/s   {beside} {:6.0} MiB/s   ratio {:.3} ({:.3}..{:.3})   target {target}",
        speed(&mut times.0),
        speed(&mut times.1),
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
    );
}

/// The release build of the backend beside this bench.
fn backend() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "vfio-user-gpu",
            "--bin",
            "vfio-user-gpu",
        ])
        .status()
        .expect("cargo");
    assert!(built.success(), "the backend does not build");
    let exe = env::current_exe().expect("own path");
    let dir = exe.ancestors().nth(2).map(Path::to_owned);
    dir.expect("target/release").join("vfio-user-gpu")
}

struct Peer {
    receiver: Receiver,
    sender: Sender,
    child: Child,
}

impl Peer {
    /// Starts a process with one end of a socket pair: `--fd N`, or in the environment for our own peer.
    fn spawn(mut command: Command, how: &str) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        fcntl_setfd(&theirs, FdFlags::empty()).expect("inheritable");
        let number = theirs.as_raw_fd().to_string();
        if how.starts_with("--") {
            command.args([how, &number]);
        } else {
            command.env(how, &number);
        }
        let child = command.stdin(Stdio::null()).spawn().expect("peer process");
        let (receiver, sender) = split(ours, PIECE + 4096);
        Self {
            receiver,
            sender,
            child,
        }
    }

    fn send(&self, request: &Request<'_>, fd: Option<BorrowedFd<'_>>) {
        let body = request.encode();
        let header = Header::request(1, request.command(), body.len());
        self.sender
            .send(&header, &[&body], fd.as_slice())
            .expect("sent");
    }

    /// The body of the next reply and its descriptor.
    fn reply(&mut self) -> (&[u8], Option<OwnedFd>) {
        match self.receiver.receive().expect("a reply") {
            Some(Frame::Message {
                header,
                body,
                mut fds,
            }) => {
                assert_eq!(header.error(), None, "command {} refused", header.command);
                (body, fds.pop())
            }
            other => panic!("{other:?}"),
        }
    }

    fn call(&mut self, request: &Request<'_>, fd: Option<BorrowedFd<'_>>) -> &[u8] {
        self.send(request, fd);
        self.reply().0
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.sender.stream().shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

struct Backend {
    peer: Peer,
}

impl Backend {
    /// The software GPU, with more options behind `--model=vram=SIZE`.
    fn spawn(options: &str) -> Self {
        let mut command = Command::new(backend());
        let model = format!("--model=vram={DEVICE}{options}");
        command.args([&model, "--log-level", "warn"]);
        let peer = Peer::spawn(command, "--fd");
        Self { peer }
    }

    fn negotiate(&mut self) {
        let offer = Capabilities {
            extension: Some(Extension {
                version: extension::VERSION,
                features: vec![MIG_SHM.to_owned(), MIG_CHANNEL.to_owned()],
                ..Extension::default()
            }),
            ..Capabilities::default()
        };
        self.peer
            .call(&Request::Version(Version::default(), offer), None);
    }

    /// Fills VRAM as a guest does that has it mapped; the file behind it.
    fn fill(&mut self) -> OwnedFd {
        let info = RegionInfo {
            argsz: 64,
            index: 0,
            ..RegionInfo::default()
        };
        self.peer.send(&Request::DeviceGetRegionInfo(info), None);
        let (body, fd) = self.peer.reply();
        let (info, _) = RegionInfo::read_from_prefix(body).expect("a region");
        assert_eq!(info.size, DEVICE as u64);
        let vram = fd.expect("VRAM is mappable");
        scribble(vram.as_fd(), DEVICE);
        // The kernel notes the first reads of a page, which takes it time: they are neither side's.
        let mut page = vec![0; PIECE];
        for _ in 0..3 {
            let mut at = 0;
            for _ in 0..DEVICE / PIECE {
                read_at(&vram, &mut page, &mut at);
            }
        }
        vram
    }

    fn set_state(&mut self, state: MigrationState) {
        let (feature, data) = state_request(state);
        let request = Request::DeviceFeature(feature, data.as_bytes());
        self.peer.call(&request, None);
    }

    /// One batch through shared memory, always asked for ahead.
    fn shared_batch(&mut self) -> Duration {
        let slot = |index: usize| {
            Request::MigShmRead(ShmTransfer {
                argsz: 24,
                flags: 0,
                offset: (index % SLOTS * SLOT) as u64,
                size: SLOT as u64,
            })
        };
        let start = Instant::now();
        for index in 0..SLOTS {
            self.peer.send(&slot(index), None);
        }
        let slots = BATCH * PIECE / SLOT;
        for index in 0..slots {
            let (reply, _) =
                ShmTransfer::read_from_prefix(self.peer.reply().0).expect("a transfer");
            assert_eq!(
                reply.flags & SHM_END_OF_STREAM,
                0,
                "the device had less than it should"
            );
            // A slot ends where a cache line of the driver's stream does.
            assert!(SLOT as u64 - reply.size < 64, "{} bytes", reply.size);
            if index + SLOTS < slots {
                self.peer.send(&slot(index), None);
            }
        }
        start.elapsed()
    }
}

/// The other side of the comparison: sends from the device's memory, and does nothing else.
fn bare_peer(stream: UnixStream, memory: &OwnedFd) {
    let memory = map(memory.as_fd(), DEVICE);
    let (mut receiver, sender) = split(stream, PIECE + 4096);
    let mut at = BEHIND;
    while let Ok(Some(Frame::Message { header, body, .. })) = receiver.receive() {
        assert_eq!(header.command, u16::from(Message::MigDataRead));
        let (asked, _) = MigData::read_from_prefix(body).expect("a request");
        let size = usize::try_from(asked.size).expect("a size");
        if at + size > memory.len() {
            at = 0;
        }
        let reply = header.reply(size_of::<MigData>() + size);
        let parts = [asked.as_bytes(), &memory[at..at + size]];
        if sender.send(&reply, &parts, &[]).is_err() {
            return;
        }
        at += size;
    }
}
