// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The dispatch path allocates nothing: a session on its own thread, in this process, under an allocator that counts
//! what that thread asks for.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use system_tests::{
    model_gpu::{
        MSIX_PBA, MSIX_TABLE,
        engine::{ID, SCRATCH, SRC},
    },
    pci,
    raw_client::{RawClient, access},
};
use vfio_user_gpu::{
    device::{
        Device,
        model::{ModelGpu, ModelOptions},
    },
    function::Function,
    memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS},
    pci::GuestView,
    server::Session,
};
use vfio_user_protocol::{Command, Request, header::NO_REPLY, version::Capabilities};

const VRAM: u32 = 0;
const ENGINE: u32 = 4;
const CONFIG: u32 = 7;

/// Rounds before counting begins: every buffer has grown to its size.
const WARM_UP: usize = 10;
/// Messages that are counted.
const COUNTED: usize = 10_000;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread's requests are counted. Initialised without an allocation.
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

fn count() {
    if IS_COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every request goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The accesses of a busy guest, and the largest there are.
fn requests(data: &[u8]) -> Vec<(Command, u32, Vec<u8>)> {
    let read = |region, offset, count| {
        let request = Request::RegionRead(access(region, offset, count));
        (Command::RegionRead, 0, request.encode())
    };
    let write = |flags, region, offset, data: &[u8]| {
        let request = Request::RegionWrite(access(region, offset, data.len()), data);
        (Command::RegionWrite, flags, request.encode())
    };
    let mut requests = vec![
        read(CONFIG, 0, 4),
        read(CONFIG, 6, 2),
        read(CONFIG, 0, 256),
        write(0, CONFIG, pci::COMMAND.into(), &[2, 0]),
        write(0, CONFIG, pci::COMMAND.into(), &[6, 0]),
        write(0, CONFIG, pci::BAR0.into(), &[0xff; 4]),
        read(ENGINE, ID, 4),
        read(ENGINE, SRC, 8),
        read(ENGINE, MSIX_PBA, 8),
        write(0, ENGINE, SCRATCH, &[1; 4]),
        write(0, ENGINE, SRC, &[1; 8]),
        write(0, ENGINE, MSIX_TABLE, &[1; 16]),
        write(0, ENGINE, MSIX_TABLE, &[0; 16]),
        write(NO_REPLY, ENGINE, SCRATCH, &[2; 4]),
        write(NO_REPLY, ENGINE, SCRATCH, &[3; 4]),
        write(NO_REPLY, VRAM, 12, &data[..4096]),
        read(VRAM, 0, 4),
        write(0, VRAM, 8, &[1]),
    ];
    let multi = [
        &2_u64.to_ne_bytes()[..],
        &[0; 12],
        &4_u32.to_ne_bytes(),
        &[5; 8],
        &[0; 12],
        &8_u32.to_ne_bytes(),
        &[6; 8],
    ];
    requests.push((Command::RegionWriteMulti, 0, multi.concat()));
    requests
}

fn exchange(client: &mut RawClient, (command, flags, body): &(Command, u32, Vec<u8>)) {
    let message = client.message(*command, *flags, body);
    client.send(&message, &[]);
    if flags & NO_REPLY == 0 {
        let answer = client.answer_to(&message);
        assert!(
            answer.is_ok(),
            "{command:?} refused with {:?}",
            answer.err()
        );
    }
}

#[test]
fn accesses_allocate_nothing() {
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
    let options = ModelOptions::default();
    let device: Arc<dyn Device> =
        Arc::new(ModelGpu::new(&options, Arc::clone(&memory)).expect("a model GPU"));
    let function = Function::new(device, memory, &GuestView::default()).expect("a function");
    let function = Arc::new(function);
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let (session, receiver) = Session::new(function, theirs, true).expect("a session");
    let server = thread::spawn(move || {
        IS_COUNTED.set(true);
        let ended = session.run(receiver);
        IS_COUNTED.set(false);
        ended
    });
    let mut client = RawClient::over(ours);
    client.negotiate(&Capabilities::default());
    assert_ne!(
        ALLOCATIONS.load(Ordering::Relaxed),
        0,
        "the allocator counts: VERSION is text"
    );

    let megabyte = vec![0x5a; 1 << 20];
    let requests = requests(&megabyte);
    let large = [
        Request::RegionRead(access(VRAM, 0, 1 << 20)),
        Request::RegionWrite(access(VRAM, 0, 1 << 20), &megabyte),
    ];
    let large = large.map(|request| (request.command(), 0, request.encode()));
    for _ in 0..WARM_UP {
        for request in requests.iter().chain(&large) {
            exchange(&mut client, request);
        }
    }
    client.assert_in_step();

    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for request in requests.iter().cycle().take(COUNTED) {
        exchange(&mut client, request);
    }
    for request in large.iter().cycle().take(COUNTED / 100) {
        exchange(&mut client, request);
    }
    // Posted writes are done once what follows them is answered.
    client.assert_in_step();
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);

    drop(client);
    let ended = server.join().expect("the session's thread");
    assert!(ended.is_ok(), "{ended:?}");
}
