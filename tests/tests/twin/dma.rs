// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA to memory that came without a descriptor: asked of the client, piece by piece.

use std::{
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use system_tests::{
    backend::Backend,
    engine::{Registers, finish, run, start},
    model_gpu::engine::{
        COMMAND_COPY, COMMAND_DST_VRAM, COMMAND_FILL, COMMAND_SRC_VRAM, ERROR_DMA_FAULT, FILL,
        STATUS_DONE, error_code,
    },
    pattern,
    raw_client::{Message, RawClient},
};
use vfio_user_protocol::{
    Command, Request,
    dma::{DmaAccess, DmaUnmap},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::{GUEST, GUEST_SIZE, VRAM, attach, enable, map_guest, offer};

fn reply(twin: &RawClient, request: &Message, parts: &[&[u8]]) {
    let header = request.header.reply(parts.iter().map(|p| p.len()).sum());
    let message = [header.as_bytes(), &parts.concat()].concat();
    twin.send(&message, &[]);
}

fn fail(twin: &RawClient, request: &Message, errno: u32) {
    twin.send(request.header.error_reply(errno).as_bytes(), &[]);
}

/// The DMA access of a request on the twin socket, and the data with it.
fn dma_access(request: &Message) -> (DmaAccess, &[u8]) {
    DmaAccess::read_from_prefix(&request.body).expect("an address and a count")
}

/// Guest memory that only the client has; serves the backend until it leaves.
struct GuestMemory {
    memory: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<Vec<u64>>,
}

impl GuestMemory {
    fn serve(twin: RawClient, contents: Vec<u8>) -> Self {
        let memory = Arc::new(Mutex::new(contents));
        let shared = Arc::clone(&memory);
        let thread = thread::spawn(move || {
            let mut counts = Vec::new();
            while let Some(request) = twin.receive() {
                let (access, data) = dma_access(&request);
                counts.push(access.count);
                let mut memory = shared.lock().expect("no other thread panicked");
                let from = usize::try_from(access.address - GUEST).expect("an offset");
                let length = usize::try_from(access.count).expect("a length");
                let place = &mut memory[from..from + length];
                match Command::try_from(request.header.command) {
                    Ok(Command::DmaRead) => {
                        assert_eq!(data.len(), 0);
                        reply(&twin, &request, &[access.as_bytes(), place]);
                    }
                    Ok(Command::DmaWrite) => {
                        place.copy_from_slice(data);
                        reply(&twin, &request, &[access.as_bytes()]);
                    }
                    other => panic!("{other:?} on the twin socket"),
                }
            }
            counts
        });
        Self { memory, thread }
    }

    /// What was asked for, in bytes, once the backend has gone from the socket.
    fn counts(self) -> Vec<u64> {
        self.thread.join().expect("the guest's memory")
    }
}

#[test]
fn dma_without_a_descriptor_is_asked_for() {
    const LENGTH: usize = 300_001;
    let backend = Backend::start();
    let (mut client, twin) = attach(&backend, &offer(Some(10_000), false));
    let data = pattern::bytes(1, LENGTH);
    let mut contents = vec![0; GUEST_SIZE];
    contents[5..5 + LENGTH].copy_from_slice(&data);
    let guest = GuestMemory::serve(twin, contents);
    enable(&mut client);
    map_guest(&mut client);

    let length = LENGTH as u64;
    let to_vram = COMMAND_COPY | COMMAND_DST_VRAM;
    let outcome = run(&mut client, to_vram, GUEST + 5, 7, length);
    assert_eq!((outcome.status, outcome.completed), (STATUS_DONE, length));
    assert_eq!(client.read::<16>(VRAM, 7)[..], data[..16]);
    let to_guest = COMMAND_COPY | COMMAND_SRC_VRAM;
    let outcome = run(&mut client, to_guest, 7, GUEST + 600_000, length);
    assert_eq!((outcome.status, outcome.completed), (STATUS_DONE, length));
    let within = run(
        &mut client,
        COMMAND_COPY,
        GUEST + 5,
        GUEST + 400_000,
        70_000,
    );
    assert_eq!(within.status, STATUS_DONE);
    client.set(FILL, 0x0403_0201);
    let fill = run(&mut client, COMMAND_FILL, 0, GUEST + 1_000_000, 10);
    assert_eq!(fill.status, STATUS_DONE);
    {
        let memory = guest.memory.lock().expect("no other thread panicked");
        assert!(memory[600_000..600_000 + LENGTH] == data);
        assert!(memory[400_000..470_000] == data[..70_000]);
        assert_eq!(memory[1_000_000..1_000_010], [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]);
    }
    client.assert_in_step();
    drop(client);
    assert!(guest.counts().iter().all(|count| *count <= 10_000));
}

#[test]
fn an_error_of_the_client_is_a_fault_of_the_device() {
    let backend = Backend::start();
    let (mut client, twin) = attach(&backend, &offer(None, false));
    enable(&mut client);
    map_guest(&mut client);
    let copies = [
        (COMMAND_COPY | COMMAND_DST_VRAM, GUEST + 4096, 0),
        (COMMAND_COPY | COMMAND_SRC_VRAM, 0, GUEST + 4096),
    ];
    // EFAULT, EPERM, and numbers that are no errno.
    for errno in [14, 1, 0, 4096, u32::MAX] {
        for (command, src, dst) in copies {
            start(&mut client, command, src, dst, 100);
            let request = twin.receive().expect("a request");
            assert_eq!(dma_access(&request).0.address, GUEST + 4096);
            fail(&twin, &request, errno);
            let outcome = finish(&mut client);
            assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT, "errno {errno}");
            assert_eq!(outcome.fault_address, GUEST + 4096);
            assert_eq!(outcome.completed, 0);
        }
    }
    // The second request of a transfer fails: the first one's bytes have moved.
    start(&mut client, copies[0].0, GUEST, 0, 200_000);
    let request = twin.receive().expect("a request");
    let (access, _) = dma_access(&request);
    let data = vec![0x5a; usize::try_from(access.count).expect("a length")];
    reply(&twin, &request, &[access.as_bytes(), &data]);
    let request = twin.receive().expect("another request");
    let fault_address = dma_access(&request).0.address;
    assert_eq!(fault_address, GUEST + access.count);
    fail(&twin, &request, 14);
    let outcome = finish(&mut client);
    assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT);
    assert_eq!(outcome.fault_address, fault_address);
    assert_eq!(outcome.completed, access.count);
    client.assert_in_step();
}

#[test]
fn nonsense_on_the_twin_socket_ends_it_and_only_it() {
    let backend = Backend::start();
    let good = |request: &Message| {
        let (access, _) = dma_access(request);
        let length = usize::try_from(access.count).expect("a length");
        let header = request.header.reply(16 + length);
        [header.as_bytes(), access.as_bytes(), &vec![0; length]].concat()
    };
    type Answer<'a> = &'a dyn Fn(&Message) -> Vec<u8>;
    let answers: [(&str, Answer<'_>); 9] = [
        ("another id", &|request| {
            let mut bytes = good(request);
            bytes[0] ^= 1;
            bytes
        }),
        ("another command", &|request| {
            let mut bytes = good(request);
            bytes[2] ^= 1;
            bytes
        }),
        ("a request", &|request| {
            let mut bytes = good(request);
            bytes[8] = 0;
            bytes
        }),
        ("another address", &|request| {
            let mut bytes = good(request);
            bytes[16] ^= 1;
            bytes
        }),
        ("less data", &|request| {
            let header = request.header.reply(16);
            [header.as_bytes(), &request.body].concat()
        }),
        ("no body", &|request| {
            request.header.reply(0).as_bytes().to_vec()
        }),
        ("too much data", &|request| {
            let body = vec![0; 2 << 20];
            [request.header.reply(body.len()).as_bytes(), &body].concat()
        }),
        ("a size below a header", &|_| vec![0; 16]),
        ("the end", &|_| vec![]),
    ];
    for (what, answer) in answers {
        let (mut client, twin) = attach(&backend, &offer(None, false));
        enable(&mut client);
        map_guest(&mut client);
        let copy = COMMAND_COPY | COMMAND_DST_VRAM;
        start(&mut client, copy, GUEST, 0, 64);
        let request = twin.receive().expect("a request");
        let _ = twin.try_send(&answer(&request), &[]);
        drop(twin);
        let outcome = finish(&mut client);
        assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT, "{what}");
        // The next is not even tried, and the main socket goes on.
        let outcome = run(&mut client, copy, GUEST, 0, 64);
        assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT, "{what}");
        client.assert_in_step();
    }
}

#[test]
fn a_map_that_is_gone_is_not_asked_for() {
    let backend = Backend::start();
    let (mut client, twin) = attach(&backend, &offer(None, false));
    enable(&mut client);
    map_guest(&mut client);
    let unmap = DmaUnmap {
        argsz: 24,
        flags: 0,
        address: GUEST,
        size: GUEST_SIZE as u64,
    };
    assert!(client.request(&Request::DmaUnmap(unmap), &[]).is_ok());
    let copy = COMMAND_COPY | COMMAND_DST_VRAM;
    let outcome = run(&mut client, copy, GUEST, 0, 64);
    assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT);
    drop(client);
    assert!(twin.receive().is_none(), "nothing was asked");
}
