// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a message costs beyond the socket it travels on: the backend beside a bare peer that receives and
//! sends the same sizes (and, for DMA maps, maps and unmaps the same memory), alternating in one run, all
//! on one core. The ratio is what counts; the machine's speed cancels out.
//!
//! `cargo bench -p system-tests --bench round_trip`

use std::env;
use std::hint::black_box;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use vfio_user_protocol::dma::{DmaMap, DmaUnmap, MAP_READ, MAP_WRITE};
use vfio_user_protocol::region::RegionAccess;
use vfio_user_protocol::version::{Capabilities, Version};
use vfio_user_protocol::{Header, Request};
use zerocopy::FromBytes;

/// Exchanges in one batch; batches of the two sides alternate.
const BATCH: u32 = 2_000;
/// Batches of each side.
const ROUNDS: usize = 41;
/// Guest memory mapped and unmapped, in bytes.
const MAPPED: usize = 2 << 20;
const MAX_MESSAGE: usize = (1 << 20) + 4096;

fn main() {
    if let Some(fd) = env::var_os("ROUND_TRIP_PEER") {
        let fd = fd
            .to_str()
            .and_then(|fd| fd.parse().ok())
            .expect("a descriptor number");
        // SAFETY: the parent made this descriptor for us and names it once.
        return bare_peer(UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    pin();
    let mut server = Peer::spawn(
        Command::new(backend()).args(["--model", "--log-level", "warn"]),
        true,
    );
    let this = env::current_exe().expect("own path");
    let mut bare = Peer::spawn(&mut Command::new(this), false);
    server.negotiate();

    println!("{ROUNDS} x {BATCH} exchanges each, alternating, one core; medians");
    let read = |count| request(Request::RegionRead(access(count)));
    compare(
        "REGION_READ 4 B",
        "<= 1.10",
        &mut server,
        &mut bare,
        &[(read(4), 36, false)],
    );
    let data = [0_u8; 4];
    let write = request(Request::RegionWrite(
        RegionAccess {
            offset: 0x3c,
            ..access(4)
        },
        &data,
    ));
    compare(
        "REGION_WRITE 4 B",
        "<= 1.10",
        &mut server,
        &mut bare,
        &[(write, 32, false)],
    );
    compare(
        "REGION_READ 4 KiB",
        "-",
        &mut server,
        &mut bare,
        &[(read(4096), 32 + 4096, false)],
    );
    let size = MAPPED as u64;
    let map = DmaMap {
        argsz: 32,
        flags: MAP_READ | MAP_WRITE,
        offset: 0,
        address: 0,
        size,
    };
    let unmap = DmaUnmap {
        argsz: 24,
        flags: 0,
        address: 0,
        size,
    };
    let pair = [
        (request(Request::DmaMap(map)), 16, true),
        (request(Request::DmaUnmap(unmap)), 40, false),
    ];
    compare(
        "DMA_MAP (2 MiB memfd) + DMA_UNMAP",
        "<= 1.10",
        &mut server,
        &mut bare,
        &pair,
    );
}

/// Everything on one core: across cores the wake-up dominates whatever is measured.
fn pin() {
    let mut set = CpuSet::new();
    set.set(0);
    sched_setaffinity(None, &set).expect("to be pinned to one core");
}

/// The release build of the backend beside this bench.
fn backend() -> PathBuf {
    let cargo = env!("CARGO");
    let built = Command::new(cargo)
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
    let dir = exe
        .ancestors()
        .nth(2)
        .map(Path::to_owned)
        .expect("target/release");
    dir.join("vfio-user-gpu")
}

fn access(count: u32) -> RegionAccess {
    // Config space: the same for every device.
    RegionAccess {
        offset: 0,
        region: 7,
        count,
    }
}

/// A whole message.
fn request(request: Request<'_>) -> Vec<u8> {
    let body = request.encode();
    let header = Header::request(1, request.command(), body.len());
    [zerocopy::IntoBytes::as_bytes(&header), &body].concat()
}

/// Messages of one exchange: bytes, length of the reply, whether guest memory goes with it.
type Exchange = [(Vec<u8>, usize, bool)];

fn compare(name: &str, target: &str, server: &mut Peer, bare: &mut Peer, exchange: &Exchange) {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&memory, MAPPED as u64).expect("memfd size");
    bare.tell_plan(exchange);
    let mut times = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let a = server.batch(exchange, memory.as_fd());
        let b = bare.batch(exchange, memory.as_fd());
        // The first round warms caches and buffers.
        if round > 0 {
            times.0.push(a);
            times.1.push(b);
        }
    }
    let mut ratios: Vec<f64> = times
        .0
        .iter()
        .zip(&times.1)
        .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let each = |times: &mut Vec<Duration>| {
        times.sort();
        times[ROUNDS / 2].as_secs_f64() * 1e6 / f64::from(BATCH)
    };
    println!(
        "{name:36} {:7.2} us   bare {:7.2} us   ratio {:.3} ({:.3}..{:.3})   target {target}",
        each(&mut times.0),
        each(&mut times.1),
        ratios[ROUNDS / 2],
        ratios[0],
        ratios[ROUNDS - 1],
    );
}

struct Peer {
    stream: UnixStream,
    child: Child,
    buffer: Vec<u8>,
}

impl Peer {
    /// Starts a process with one end of a socket pair: `--fd N`, or in the environment for our own peer.
    fn spawn(command: &mut Command, backend: bool) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        fcntl_setfd(&theirs, FdFlags::empty()).expect("inheritable");
        let number = theirs.as_raw_fd().to_string();
        if backend {
            command.args(["--fd", &number]);
        } else {
            command.env("ROUND_TRIP_PEER", &number);
        }
        let child = command.stdin(Stdio::null()).spawn().expect("peer process");
        Self {
            stream: ours,
            child,
            buffer: vec![0; MAX_MESSAGE],
        }
    }

    fn negotiate(&mut self) {
        let version = request(Request::Version(
            Version::default(),
            Capabilities::default(),
        ));
        send(&self.stream, &version, None).expect("sent");
        let length = receive(&self.stream, &mut self.buffer)
            .expect("VERSION reply")
            .0;
        let (header, _) = Header::read_from_prefix(&self.buffer[..length]).expect("header");
        assert_eq!(header.error(), None, "VERSION refused");
    }

    /// Tells our own peer what to answer: pairs of request and reply length, whether to map.
    fn tell_plan(&mut self, exchange: &Exchange) {
        let mut plan = Vec::new();
        for (message, reply, map) in exchange {
            plan.extend_from_slice(&[message.len() as u64, *reply as u64, (*map).into()]);
        }
        send(&self.stream, zerocopy::IntoBytes::as_bytes(&plan[..]), None).expect("plan");
        receive(&self.stream, &mut self.buffer).expect("plan taken");
    }

    fn batch(&mut self, exchange: &Exchange, memory: BorrowedFd<'_>) -> Duration {
        let start = Instant::now();
        for _ in 0..BATCH {
            for (message, reply, with_memory) in exchange {
                send(&self.stream, message, with_memory.then_some(memory)).expect("sent");
                let mut length = 0;
                while length < *reply {
                    length += receive(&self.stream, &mut self.buffer).expect("reply").0;
                }
                assert_eq!(length, *reply, "an answer of another size");
            }
        }
        start.elapsed()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn send(stream: &UnixStream, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    assert_eq!(sent, message.len(), "message taken in one piece");
    Ok(())
}

/// One recvmsg: bytes, and a descriptor if one came.
fn receive(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut buffers = [IoSliceMut::new(buffer)];
    let received = recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((received.bytes, fd))
}

/// The other side of the comparison: receives and sends, maps where told, and nothing else.
fn bare_peer(stream: UnixStream) {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut plan: Vec<u64> = Vec::new();
    let mut held: Option<*mut std::ffi::c_void> = None;
    let mut at = 0;
    loop {
        let Ok((length, fd)) = receive(&stream, &mut buffer) else {
            return;
        };
        if length == 0 {
            return;
        }
        let step = plan
            .get(at..at + 3)
            .filter(|step| step[0] == length as u64)
            .map(<[u64]>::to_owned);
        let Some(step) = step else {
            let words = buffer[..length].chunks_exact(8);
            plan = words
                .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")))
                .collect();
            at = 0;
            send(&stream, &[0], None).expect("plan taken");
            continue;
        };
        at = (at + 3) % plan.len();
        if let Some(address) = held.take() {
            // SAFETY: mapped below with this size, and used by nobody.
            unsafe { munmap(address, MAPPED) }.expect("munmap");
        }
        if step[2] != 0 {
            let fd = fd.expect("guest memory");
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice.
            let address = unsafe {
                mmap(
                    std::ptr::null_mut(),
                    MAPPED,
                    protection,
                    MapFlags::SHARED,
                    &fd,
                    0,
                )
            };
            held = Some(address.expect("mmap"));
        }
        let reply = usize::try_from(step[1]).expect("a length");
        send(&stream, black_box(&buffer[..reply]), None).expect("sent");
    }
}
