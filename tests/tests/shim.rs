// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our own client library against our own backend: what a VMM that links it relies on.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use system_tests::backend::Backend;
use system_tests::binaries;
use system_tests::model_gpu::engine::{
    COMMAND, COMMAND_COPY, COMMAND_DST_VRAM, COMMAND_EVENT, COMMAND_SRC_VRAM, COMMAND_VECTOR_SHIFT,
    DOORBELL, DST, INT_ENABLE, INT_RAISE, LEN, SCRATCH, SRC, STATUS, STATUS_DONE, STATUS_ERROR,
    error_code,
};
use system_tests::model_gpu::{self, MSIX_PBA, MSIX_TABLE};
use vfio_user_client::protocol::extension::{IrqRoute, ROUTE_ENABLED, ROUTE_MASKED};
use vfio_user_client::protocol::region::MultiWrite;
use vfio_user_client::{Access, Callbacks, Client, Error, Options, Spawned, spawn};

const CONFIG: u32 = 7;
const ENGINE: u32 = 4;
const VRAM: u32 = 0;
const MSIX: u32 = 2;
const MIB: u64 = 1 << 20;

fn backend(options: Options) -> Spawned {
    let mut command = Command::new(binaries::backend());
    command.args(["--model", "--log-level", "warn"]);
    spawn(command, options).expect("a backend")
}

fn read32(client: &Client, region: u32, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    client
        .region_read(region, offset, &mut bytes)
        .expect("REGION_READ");
    u32::from_le_bytes(bytes)
}

fn write32(client: &Client, region: u32, offset: u64, value: u32) {
    client
        .region_write(region, offset, &value.to_le_bytes())
        .expect("REGION_WRITE");
}

/// COMMAND: memory decoding and bus mastering.
fn enable(client: &Client) {
    client.region_write(CONFIG, 4, &[6, 0]).expect("COMMAND");
}

/// The place of a capability, as a VMM with PCI code would find it.
fn capability(client: &Client, id: u8) -> u64 {
    let mut config = [0; 256];
    client
        .region_read(CONFIG, 0, &mut config)
        .expect("config space");
    let mut at = config[0x34];
    while at != 0 {
        if config[usize::from(at)] == id {
            return at.into();
        }
        at = config[usize::from(at) + 1];
    }
    panic!("capability {id:#x} is not in the list");
}

fn new_eventfd() -> File {
    eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd").into()
}

/// Waits for the interrupt.
fn wait(eventfd: &File) -> u64 {
    let mut count = [0; 8];
    let mut eventfd = eventfd;
    eventfd.read_exact(&mut count).expect("an interrupt");
    u64::from_ne_bytes(count)
}

fn start(client: &Client, command: u32, source: u64, target: u64, length: u64) {
    for (register, value) in [(SRC, source), (DST, target), (LEN, length)] {
        client
            .region_write_posted(ENGINE, register, &value.to_le_bytes())
            .expect("posted");
    }
    write32(client, ENGINE, INT_ENABLE, u32::MAX);
    write32(client, ENGINE, COMMAND, command | COMMAND_EVENT);
    write32(client, ENGINE, DOORBELL, 1);
}

/// What the backend asked of the VMM.
#[derive(Default)]
struct Vmm {
    routes: Mutex<Vec<(u32, u32, Vec<IrqRoute>)>>,
    memory: Option<File>,
    refuse: bool,
}

impl Callbacks for Vmm {
    fn dma_read(&self, iova: u64, data: &mut [u8]) -> io::Result<()> {
        if self.refuse {
            return Err(Errno::FAULT.into());
        }
        self.memory
            .as_ref()
            .ok_or(Errno::FAULT)?
            .read_exact_at(data, iova)
    }

    fn dma_write(&self, iova: u64, data: &[u8]) -> io::Result<()> {
        self.memory
            .as_ref()
            .ok_or(Errno::FAULT)?
            .write_all_at(data, iova)
    }

    fn irq_routes(&self, index: u32, start: u32, routes: &[IrqRoute]) -> io::Result<()> {
        self.routes
            .lock()
            .expect("routes")
            .push((index, start, routes.to_vec()));
        Ok(())
    }
}

impl Vmm {
    fn told(&self) -> Vec<(u32, u32, Vec<IrqRoute>)> {
        std::mem::take(&mut *self.routes.lock().expect("routes"))
    }
}

fn with_callbacks(vmm: &Arc<Vmm>, irq_routes: bool) -> Options {
    Options {
        callbacks: Some(Arc::clone(vmm) as _),
        irq_routes,
        ..Options::default()
    }
}

/// A VMM without PCI code: it arms every vector once, forwards what the guest does, and is told the routes.
#[test]
fn interrupt_routes_reach_a_vmm_that_only_forwards() {
    let vmm = Arc::new(Vmm::default());
    let backend = backend(with_callbacks(&vmm, true));
    let client = &backend.client;
    assert!(client.negotiated().irq_routes);
    let eventfds: Vec<File> = (0..model_gpu::VECTORS).map(|_| new_eventfd()).collect();
    let armed: Vec<_> = eventfds.iter().map(|fd| Some(fd.as_fd())).collect();
    client.arm(MSIX, 0, &armed).expect("armed");

    // From here on only what a guest's driver writes is forwarded.
    enable(client);
    let msix = capability(client, 0x11);
    for (at, value) in [(0, 0xfee0_1000_u32), (4, 0), (8, 0x41), (12, 0)] {
        write32(client, ENGINE, MSIX_TABLE + 3 * 16 + at, value);
    }
    assert_eq!(vmm.told(), [], "MSI-X is not enabled");
    client
        .region_write(CONFIG, msix + 2, &[0x07, 0x80])
        .expect("MSI-X control");
    let told = vmm.told();
    let enabled = IrqRoute {
        address: 0xfee0_1000,
        data: 0x41,
        flags: ROUTE_ENABLED,
    };
    let [(MSIX, 0, routes)] = &told[..] else {
        panic!("all vectors at once: {told:?}")
    };
    assert_eq!(routes.len(), usize::from(model_gpu::VECTORS));
    assert_eq!(routes[3], enabled);
    assert_eq!(
        routes[2].flags,
        ROUTE_ENABLED | ROUTE_MASKED,
        "as the table comes up"
    );

    write32(client, ENGINE, INT_ENABLE, u32::MAX);
    write32(client, ENGINE, INT_RAISE, 1 << 3);
    assert_eq!(wait(&eventfds[3]), 1);

    // Masked: held back, pending seen by the guest, delivered on unmask by the route told before.
    write32(client, ENGINE, MSIX_TABLE + 3 * 16 + 12, 1);
    let masked = IrqRoute {
        flags: ROUTE_ENABLED | ROUTE_MASKED,
        ..enabled
    };
    assert_eq!(vmm.told(), [(MSIX, 3, vec![masked])]);
    write32(client, ENGINE, INT_RAISE, 1 << 3);
    assert_eq!(read32(client, ENGINE, MSIX_PBA), 1 << 3);
    write32(client, ENGINE, MSIX_TABLE + 3 * 16 + 8, 0x42);
    write32(client, ENGINE, MSIX_TABLE + 3 * 16 + 12, 0);
    assert_eq!(wait(&eventfds[3]), 1);
    let moved = IrqRoute {
        data: 0x42,
        ..enabled
    };
    assert_eq!(vmm.told().last(), Some(&(MSIX, 3, vec![moved])));
    assert_eq!(read32(client, ENGINE, MSIX_PBA), 0);

    client.reset().expect("reset");
    let gone = vmm.told();
    assert_eq!(
        gone,
        [(
            MSIX,
            0,
            vec![IrqRoute::default(); model_gpu::VECTORS.into()]
        )]
    );
    assert!(backend.finish().expect("exit status").success());
}

#[test]
fn memory_without_a_descriptor_is_reached_by_messages_while_threads_read() {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd"));
    ftruncate(&file, 4 * MIB).expect("size");
    let pattern: Vec<u8> = (0..2 * MIB).map(|i| (i % 251) as u8).collect();
    file.write_all_at(&pattern, 0).expect("guest memory");
    let memory = Some(file.try_clone().expect("dup"));
    let vmm = Arc::new(Vmm {
        memory,
        ..Vmm::default()
    });
    let backend = backend(with_callbacks(&vmm, false));
    let client = &backend.client;
    client
        .dma_map(0, 4 * MIB, Access::ReadWrite, None)
        .expect("map without a descriptor");
    let interrupt = new_eventfd();
    client
        .arm(MSIX, 1, &[Some(interrupt.as_fd())])
        .expect("armed at start 1");
    enable(client);
    let vector = 1 << COMMAND_VECTOR_SHIFT;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..500 {
                        assert_eq!(read32(client, CONFIG, 0), 0x1111_1234);
                    }
                })
            })
            .collect();
        start(
            client,
            COMMAND_COPY | COMMAND_DST_VRAM | vector,
            0,
            0,
            2 * MIB,
        );
        wait(&interrupt);
        start(
            client,
            COMMAND_COPY | COMMAND_SRC_VRAM | vector,
            0,
            2 * MIB,
            2 * MIB,
        );
        wait(&interrupt);
        for reader in readers {
            reader.join().expect("reader");
        }
    });
    assert_eq!(read32(client, ENGINE, STATUS), STATUS_DONE);
    let mut back = vec![0; pattern.len()];
    file.read_exact_at(&mut back, 2 * MIB)
        .expect("guest memory");
    assert!(back == pattern, "what went out did not come back");
}

#[test]
fn a_vmm_that_refuses_memory_makes_a_dma_fault() {
    let vmm = Arc::new(Vmm {
        refuse: true,
        ..Vmm::default()
    });
    let backend = backend(with_callbacks(&vmm, false));
    let client = &backend.client;
    client
        .dma_map(0, MIB, Access::ReadWrite, None)
        .expect("map");
    let interrupt = new_eventfd();
    client
        .arm(MSIX, 0, &[Some(interrupt.as_fd())])
        .expect("armed");
    enable(client);
    start(client, COMMAND_COPY | COMMAND_DST_VRAM, 0, 0, 4096);
    wait(&interrupt);
    let status = read32(client, ENGINE, STATUS);
    assert_eq!(status & STATUS_ERROR, STATUS_ERROR, "{status:#x}");
    assert_eq!(error_code(status), model_gpu::engine::ERROR_DMA_FAULT);
    assert_eq!(read32(client, CONFIG, 0), 0x1111_1234, "the client goes on");
}

#[test]
fn long_accesses_and_posted_writes_keep_their_order() {
    let backend = backend(Options::default());
    let client = &backend.client;
    enable(client);
    let data: Vec<u8> = (0..3 * MIB + 5).map(|i| (i * 7 % 253) as u8).collect();
    client.region_write(VRAM, 3, &data).expect("three messages");
    let mut back = vec![0; data.len()];
    client
        .region_read(VRAM, 3, &mut back)
        .expect("three messages");
    assert!(back == data);
    let mapping = client
        .region_info(VRAM)
        .expect("info")
        .map()
        .expect("mapped");
    let mut mapped = vec![0; data.len()];
    mapping.read_bytes(3, &mut mapped).expect("inside");
    assert!(mapped == data);

    for value in 0..200_u32 {
        client
            .region_write_posted(ENGINE, SCRATCH, &value.to_le_bytes())
            .expect("posted");
    }
    assert_eq!(read32(client, ENGINE, SCRATCH), 199);
    let writes: Vec<MultiWrite> = (200..400_u32)
        .map(|value| MultiWrite::new(ENGINE, SCRATCH, &value.to_le_bytes()).expect("4 bytes"))
        .collect();
    client.region_write_multi(&writes).expect("posted");
    assert_eq!(read32(client, ENGINE, SCRATCH), 399);
}

#[test]
fn a_refusal_carries_its_errno_and_the_connection_goes_on() {
    let backend = backend(Options::default());
    let client = &backend.client;
    client
        .dma_map(0, MIB, Access::ReadWrite, None)
        .expect("map");
    let errno = |result: Result<(), Error>| result.expect_err("refused").errno();
    let overlap = client.dma_map(4096, 4096, Access::Read, None);
    assert_eq!(errno(overlap), Errno::EXIST.raw_os_error());
    assert_eq!(
        errno(client.dma_unmap(2 * MIB, 4096)),
        Errno::NOENT.raw_os_error()
    );
    assert_eq!(
        errno(client.region_read(8, 0, &mut [0; 4])),
        Errno::INVAL.raw_os_error()
    );
    assert!(
        !client.feature_probe(3, 1 << 17).expect("PROBE"),
        "no such feature (low power)"
    );
    client.dma_unmap(0, MIB).expect("unmap");
}

#[test]
fn a_killed_backend_ends_every_call() {
    let mut backend = Backend::start();
    let client = Client::connect(backend.socket(), Options::default()).expect("attached");
    enable(&client);
    thread::scope(|scope| {
        let forwarders: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        if let Err(error) = client.region_read(CONFIG, 0, &mut [0; 4]) {
                            return error;
                        }
                    }
                })
            })
            .collect();
        backend.kill();
        for forwarder in forwarders {
            let error = forwarder.join().expect("forwarder");
            assert!(!matches!(error, Error::Peer { .. }), "{error}");
        }
    });
    let later = client.region_read(CONFIG, 0, &mut [0; 4]);
    assert!(matches!(later, Err(Error::Disconnected)), "{later:?}");
}

#[test]
fn the_next_client_finds_nothing_of_the_last() {
    let backend = Backend::start();
    let first = Client::connect(backend.socket(), Options::default()).expect("attached");
    enable(&first);
    let kept = first
        .region_info(VRAM)
        .expect("info")
        .map()
        .expect("mapped");
    kept.write_bytes(0, b"secret").expect("inside");
    write32(&first, ENGINE, SCRATCH, 7);
    first.dma_map(0, MIB, Access::ReadWrite, None).expect("map");
    drop(first);
    backend.wait_until_left(1);

    let second = Client::connect(backend.socket(), Options::default()).expect("attached");
    assert_eq!(read32(&second, CONFIG, 4) & 0xffff, 0, "COMMAND");
    enable(&second);
    assert_eq!(read32(&second, ENGINE, SCRATCH), 0);
    // The first one kept its mapping, and writes to it still.
    kept.write_bytes(0, b"again!").expect("inside");
    let mut seen = [1; 6];
    second.region_read(VRAM, 0, &mut seen).expect("VRAM");
    assert_eq!(seen, [0; 6]);
    second
        .dma_map(0, MIB, Access::ReadWrite, None)
        .expect("the IOVA is free");
}

/// A client that takes no descriptors gets none, and is not told to map.
#[test]
fn a_client_without_room_for_descriptors_maps_nothing() {
    let options = Options {
        max_msg_fds: 0,
        ..Options::default()
    };
    let backend = backend(options);
    let info = backend.client.region_info(VRAM).expect("info");
    assert_eq!(info.size, model_gpu::VRAM_SIZE);
    assert!(info.mapping.is_none());
    assert_eq!(info.mappable_areas(), []);
}
