// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Foreign client 1: the crate `vfio_user`, which is what Cloud Hypervisor speaks, against the running backend.
//!
//! Numbers of the protocol are written down here as linux/vfio.h has them, so that a mistake in our own does not cancel
//! out.

use std::{
    fs::File,
    os::fd::{AsRawFd, RawFd},
};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use system_tests::{
    backend::Backend,
    engine::{Outcome, REGION as ENGINE, Registers, finish, run, start},
    eventfd::Eventfd,
    model_gpu::{
        self,
        engine::{
            CAPS, COMMAND_COPY, COMMAND_DST_VRAM, COMMAND_EVENT, COMMAND_SRC_VRAM,
            COMMAND_VECTOR_SHIFT, ERROR_DMA_FAULT, FENCE, ID, ID_VALUE, INT_ENABLE, INT_RAISE,
            INT_STATUS, SCRATCH, STATUS, STATUS_DONE, STATUS_ERROR, VRAM_SIZE, error_code,
        },
    },
    pattern, pci,
};
use vfio_user::Client;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

const VRAM: u32 = 0;
const DISPLAY: u32 = 2;
const ROM: u32 = 6;
const CONFIG: u32 = 7;

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;

const DATA_NONE: u32 = 1 << 0;
const DATA_EVENTFD: u32 = 1 << 2;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;

/// Where guest memory begins for the device.
const GUEST: u64 = 0x4000_0000;
const GUEST_SIZE: usize = 4 << 20;

/// The foreign client, with the words a driver would use.
struct Gpu(Client);

impl Registers for Gpu {
    fn get(&mut self, offset: u64) -> u32 {
        self.read32(ENGINE, offset)
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.write32(ENGINE, offset, value);
    }
}

impl Gpu {
    fn attach(backend: &Backend) -> Self {
        Self(Client::new(&backend.socket()).expect("the foreign client attaches"))
    }

    /// Attached, with memory decoding and bus mastering on.
    fn enabled(backend: &Backend) -> Self {
        let mut gpu = Self::attach(backend);
        let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
        gpu.write(CONFIG, pci::COMMAND.into(), &command.to_le_bytes());
        gpu
    }

    fn read<const N: usize>(&mut self, region: u32, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        let read = self.0.region_read(region, offset, &mut data);
        read.expect("a read");
        data
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) {
        let written = self.0.region_write(region, offset, data);
        written.expect("a write");
    }

    fn read32(&mut self, region: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(region, offset))
    }

    fn write32(&mut self, region: u32, offset: u64, value: u32) {
        self.write(region, offset, &value.to_le_bytes());
    }

    fn config16(&mut self, register: u16) -> u16 {
        u16::from_le_bytes(self.read(CONFIG, register.into()))
    }

    /// Writes all ones to a BAR register and reads back which bits are the address, then puts the value back.
    fn probe_bar(&mut self, index: u64) -> u32 {
        let register = u64::from(pci::BAR0) + 4 * index;
        let before = self.read32(CONFIG, register);
        self.write32(CONFIG, register, u32::MAX);
        let mask = self.read32(CONFIG, register);
        self.write32(CONFIG, register, before);
        assert_eq!(self.read32(CONFIG, register), before);
        mask
    }

    /// The VRAM, mapped as Cloud Hypervisor does: from the descriptor and offset that came with the region.
    fn map_vram(&self) -> MmapRegion {
        let region = self.0.region(VRAM).expect("region 0");
        let file = region.file_offset.clone().expect("a descriptor to map");
        let size = usize::try_from(region.size).expect("a size that can be mapped");
        MmapRegion::from_file(file, size).expect("VRAM mapped")
    }

    fn arm(&mut self, index: u32, start: u32, eventfds: &[Eventfd]) {
        let fds: Vec<RawFd> = eventfds.iter().map(AsRawFd::as_raw_fd).collect();
        let count = u32::try_from(fds.len()).expect("few eventfds");
        let armed = self
            .0
            .set_irqs(index, DATA_EVENTFD | ACTION_TRIGGER, start, count, &fds);
        armed.expect("SET_IRQS");
    }
}

/// Guest memory: a memfd, mapped here and given to the device at [`GUEST`].
struct GuestMemory {
    file: File,
    memory: MmapRegion,
}

impl GuestMemory {
    fn mapped(gpu: &mut Gpu) -> Self {
        let file: File = memfd_create("guest", MemfdFlags::CLOEXEC)
            .expect("a memfd")
            .into();
        ftruncate(&file, GUEST_SIZE as u64).expect("a size for it");
        let shared = file.try_clone().expect("another descriptor");
        let memory = MmapRegion::from_file(FileOffset::new(shared, 0), GUEST_SIZE);
        let memory = memory.expect("guest memory mapped");
        let mapped = gpu.0.dma_map(0, GUEST, GUEST_SIZE as u64, file.as_raw_fd());
        mapped.expect("DMA_MAP");
        Self { file, memory }
    }
}

fn put(memory: &MmapRegion, offset: usize, data: &[u8]) {
    let slice = memory.get_slice(offset, data.len());
    slice.expect("inside").copy_from(data);
}

fn get(memory: &MmapRegion, offset: usize, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    let slice = memory.get_slice(offset, length);
    slice.expect("inside").copy_to(&mut data);
    data
}

fn eventfds<const N: usize>() -> [Eventfd; N] {
    std::array::from_fn(|_| Eventfd::new())
}

#[test]
fn regions_and_interrupts_are_what_the_device_has() {
    let backend = Backend::start();
    let mut gpu = Gpu::attach(&backend);
    // READ 1, WRITE 2, MMAP 4.
    let expected = [
        (VRAM, model_gpu::VRAM_SIZE, 7),
        (1, 0, 0),
        (DISPLAY, model_gpu::DISPLAY_SIZE, 3),
        (3, 0, 0),
        (ENGINE, model_gpu::ENGINE_SIZE, 3),
        (5, 0, 0),
        (CONFIG, 4096, 3),
        (8, 0, 0),
    ];
    for (index, size, flags) in expected {
        let region = gpu.0.region(index).expect("nine regions");
        assert_eq!((region.size, region.flags), (size, flags), "region {index}");
        assert_eq!(region.file_offset.is_some(), index == VRAM);
    }
    let rom = gpu.0.region(ROM).expect("nine regions");
    assert!(rom.size.is_power_of_two() && rom.flags == 1, "{rom:?}");
    assert_eq!(gpu.read::<2>(ROM, 0), [0x55, 0xaa]);

    // EVENTFD 1, MASKABLE 2, AUTOMASKED 4, NORESIZE 8.
    let vectors = u32::from(model_gpu::VECTORS);
    for (index, count, flags) in [
        (INTX, 1, 7),
        (MSI, vectors, 11),
        (MSIX, vectors, 3),
        (3, 1, 9),
        (4, 1, 9),
    ] {
        let info = gpu.0.get_irq_info(index).expect("GET_IRQ_INFO");
        assert_eq!((info.count, info.flags), (count, flags), "index {index}");
    }
    // Version 0.1.7 returns the opposite of the flag.
    assert!(!gpu.0.resettable(), "the device says that it can be reset");
}

#[test]
fn config_space_and_bar_sizing() {
    let backend = Backend::start();
    let mut gpu = Gpu::attach(&backend);
    assert_eq!(gpu.config16(pci::VENDOR_ID), model_gpu::VENDOR);
    assert_eq!(gpu.config16(pci::VENDOR_ID + 2), model_gpu::DEVICE);
    let class = model_gpu::CLASS << 8 | u32::from(model_gpu::REVISION);
    assert_eq!(gpu.read32(CONFIG, pci::CLASS_REVISION.into()), class);
    assert_eq!(gpu.read::<1>(CONFIG, pci::INTERRUPT_PIN.into()), [1]);

    // 64-bit prefetchable memory; 32-bit memory; no BAR.
    let vram = u32::try_from(model_gpu::VRAM_SIZE).expect("64 MiB");
    let display = u32::try_from(model_gpu::DISPLAY_SIZE).expect("4 KiB");
    let engine = u32::try_from(model_gpu::ENGINE_SIZE).expect("16 KiB");
    let masks = [
        vram.wrapping_neg() | 0xc,
        u32::MAX,
        display.wrapping_neg(),
        0,
        engine.wrapping_neg(),
        0,
    ];
    for (index, mask) in (0..).zip(masks) {
        assert_eq!(gpu.probe_bar(index), mask, "BAR {index}");
    }
    gpu.write32(CONFIG, pci::BAR0.into(), 0xe400_0123);
    assert_eq!(gpu.read32(CONFIG, pci::BAR0.into()), 0xe400_000c);

    let mut found = Vec::new();
    let [mut at] = gpu.read::<1>(CONFIG, pci::CAPABILITIES.into());
    while at != 0 && found.len() < 48 {
        let [id, next] = gpu.read::<2>(CONFIG, at.into());
        found.push(id);
        at = next;
    }
    found.sort_unstable();
    let expected = [pci::CAP_PM, pci::CAP_MSI, pci::CAP_EXPRESS, pci::CAP_MSIX];
    assert_eq!(found, expected);
}

#[test]
fn registers_and_the_mapped_vram() {
    let backend = Backend::start();
    let mut gpu = Gpu::attach(&backend);
    assert_eq!(gpu.get(ID), u32::MAX, "memory decoding is off");
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    gpu.write(CONFIG, pci::COMMAND.into(), &command.to_le_bytes());
    assert_eq!(gpu.get(ID), ID_VALUE);
    assert_eq!(gpu.get(CAPS) >> 16, u32::from(model_gpu::VECTORS));
    assert_eq!(gpu.get64(VRAM_SIZE), model_gpu::VRAM_SIZE);
    gpu.set(SCRATCH, 0x1234_5678);
    assert_eq!(gpu.get(SCRATCH), 0x1234_5678);
    assert_eq!(gpu.read32(DISPLAY, 0x604), 0x1e1e_1e1e, "little endian");

    let vram = gpu.map_vram();
    let last = vram.size() - 64;
    for offset in [0, 4096 - 32, last] {
        let place = offset as u64;
        put(&vram, offset, &pattern::bytes(1, 64));
        assert_eq!(gpu.read::<64>(VRAM, place)[..], pattern::bytes(1, 64));
        gpu.write(VRAM, place, &pattern::bytes(2, 64));
        assert_eq!(get(&vram, offset, 64), pattern::bytes(2, 64));
    }
}

#[test]
fn dma_to_vram_and_back_with_completion_by_msix() {
    const LENGTH: usize = 1 << 20;
    let backend = Backend::start();
    let mut gpu = Gpu::enabled(&backend);
    let guest = GuestMemory::mapped(&mut gpu);
    let interrupts = eventfds::<8>();
    gpu.arm(MSIX, 0, &interrupts);
    gpu.set(INT_ENABLE, 0xff);
    let data = pattern::bytes(3, LENGTH);
    put(&guest.memory, 0x1000, &data);

    let copies = [
        (5, COMMAND_DST_VRAM, GUEST + 0x1000, 0x20_0000),
        (6, COMMAND_SRC_VRAM, 0x20_0000, GUEST + 0x20_0000),
    ];
    for (vector, place, src, dst) in copies {
        let command = COMMAND_COPY | place | COMMAND_EVENT | vector << COMMAND_VECTOR_SHIFT;
        start(&mut gpu, command, src, dst, LENGTH as u64);
        assert_eq!(interrupts[vector as usize].wait(), 1);
        let done = Outcome {
            status: STATUS_DONE,
            completed: LENGTH as u64,
            fault_address: 0,
        };
        assert_eq!(finish(&mut gpu), done);
        assert_eq!(gpu.get(INT_STATUS), 1 << vector);
        gpu.set(INT_STATUS, 1 << vector);
    }
    assert_eq!(gpu.get(FENCE), 2);
    assert_eq!(get(&guest.memory, 0x20_0000, LENGTH), data);
    assert_eq!(get(&gpu.map_vram(), 0x20_0000, LENGTH), data);
    assert!(interrupts.iter().all(|eventfd| eventfd.count() == 0));
}

#[test]
fn msix_vectors_armed_in_batches() {
    let backend = Backend::start();
    let mut gpu = Gpu::enabled(&backend);
    let interrupts = eventfds::<8>();
    gpu.arm(MSIX, 0, &interrupts[..3]);
    gpu.arm(MSIX, 3, &interrupts[3..7]);
    gpu.arm(MSIX, 7, &interrupts[7..]);
    gpu.set(INT_ENABLE, 0xff);
    for vector in 0..8 {
        gpu.set(INT_RAISE, 1 << vector);
        let counts = interrupts.each_ref().map(Eventfd::count);
        let expected = std::array::from_fn(|other| u64::from(other == vector));
        assert_eq!(counts, expected, "vector {vector}");
    }
    let disabled = gpu.0.set_irqs(MSIX, DATA_NONE | ACTION_TRIGGER, 0, 0, &[]);
    disabled.expect("SET_IRQS");
    gpu.set(INT_RAISE, 0xff);
    assert!(interrupts.iter().all(|eventfd| eventfd.count() == 0));
}

#[test]
fn intx_is_a_level() {
    let backend = Backend::start();
    let mut gpu = Gpu::enabled(&backend);
    let [interrupt] = eventfds();
    gpu.arm(INTX, 0, std::slice::from_ref(&interrupt));
    gpu.set(INT_ENABLE, 1);
    let status = |gpu: &mut Gpu| gpu.config16(pci::STATUS) & pci::STATUS_INTERRUPT != 0;
    assert!(!status(&mut gpu));
    gpu.set(INT_RAISE, 1);
    assert_eq!(interrupt.wait(), 1);
    assert!(status(&mut gpu));
    gpu.set(INT_RAISE, 1);
    assert_eq!(interrupt.count(), 0, "masked by firing");
    let unmask = |gpu: &mut Gpu| {
        let unmasked = gpu.0.set_irqs(INTX, DATA_NONE | ACTION_UNMASK, 0, 1, &[]);
        unmasked.expect("SET_IRQS");
    };
    unmask(&mut gpu);
    assert_eq!(interrupt.wait(), 1, "still asserted");
    gpu.set(INT_STATUS, 1);
    assert!(!status(&mut gpu));
    unmask(&mut gpu);
    assert_eq!(interrupt.count(), 0, "no longer asserted");

    // What a hypervisor counts on at the guest's end of interrupt, with no message.
    let resample = Eventfd::new();
    let flags = DATA_EVENTFD | ACTION_UNMASK;
    let armed = gpu.0.set_irqs(INTX, flags, 0, 1, &[resample.as_raw_fd()]);
    armed.expect("SET_IRQS");
    gpu.set(INT_RAISE, 1);
    assert_eq!(interrupt.wait(), 1);
    resample.signal();
    assert_eq!(interrupt.wait(), 1, "still asserted");
}

#[test]
fn unmapped_memory_is_out_of_reach() {
    let backend = Backend::start();
    let mut gpu = Gpu::enabled(&backend);
    let guest = GuestMemory::mapped(&mut gpu);
    let copy = COMMAND_COPY | COMMAND_SRC_VRAM;
    put(&guest.memory, 0, &[0x5a; 4096]);
    assert_eq!(run(&mut gpu, copy, 0, GUEST, 4096).status, STATUS_DONE);
    assert_eq!(get(&guest.memory, 0, 4096), [0; 4096]);

    put(&guest.memory, 0, &[0x5a; 4096]);
    let unmapped = gpu.0.dma_unmap(GUEST, GUEST_SIZE as u64);
    unmapped.expect("DMA_UNMAP");
    let outcome = run(&mut gpu, copy, 0, GUEST, 4096);
    assert_eq!(outcome.status & STATUS_ERROR, STATUS_ERROR);
    assert_eq!(error_code(outcome.status), ERROR_DMA_FAULT);
    assert_eq!((outcome.completed, outcome.fault_address), (0, GUEST));
    assert_eq!(get(&guest.memory, 0, 4096), [0x5a; 4096]);

    // The same range again, from another place of the file.
    let mapped = gpu.0.dma_map(4096, GUEST, 4096, guest.file.as_raw_fd());
    mapped.expect("DMA_MAP");
    put(&guest.memory, 4096, &[0x5a; 4096]);
    assert_eq!(run(&mut gpu, copy, 0, GUEST, 4096).status, STATUS_DONE);
    assert_eq!(get(&guest.memory, 4096, 4096), [0; 4096]);
}

/// Leaves traces wherever a client can.
fn leave_traces(gpu: &mut Gpu) -> GuestMemory {
    let guest = GuestMemory::mapped(gpu);
    put(&gpu.map_vram(), 12345, b"a secret");
    gpu.set(SCRATCH, 7);
    gpu.set(INT_ENABLE, 1);
    gpu.set(INT_RAISE, 1);
    gpu.write32(CONFIG, pci::BAR0.into(), 0xe400_0000);
    run(gpu, COMMAND_COPY | COMMAND_DST_VRAM, GUEST, 0, 4096);
    assert_eq!(gpu.get(FENCE), 1);
    guest
}

fn assert_clean(gpu: &mut Gpu) {
    assert_eq!(
        gpu.config16(pci::COMMAND),
        0,
        "decoding and bus mastering are off"
    );
    assert_eq!(gpu.read32(CONFIG, pci::BAR0.into()), 0xc);
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    gpu.write(CONFIG, pci::COMMAND.into(), &command.to_le_bytes());
    for register in [SCRATCH, INT_ENABLE, INT_STATUS, FENCE, STATUS] {
        assert_eq!(gpu.get(register), 0, "register {register:#x}");
    }
    assert_eq!(gpu.read::<8>(VRAM, 12345), [0; 8]);
    assert_eq!(get(&gpu.map_vram(), 12345, 8), [0; 8]);
}

#[test]
fn reset_leaves_nothing_but_the_maps() {
    let backend = Backend::start();
    let mut gpu = Gpu::enabled(&backend);
    let guest = leave_traces(&mut gpu);
    gpu.0.reset().expect("DEVICE_RESET");
    assert_clean(&mut gpu);
    put(&guest.memory, 0, b"still mapped");
    let copy = COMMAND_COPY | COMMAND_DST_VRAM;
    let outcome = run(&mut gpu, copy, GUEST, 0, 4096);
    assert_eq!(outcome.status, STATUS_DONE);
    assert_eq!(gpu.read::<12>(VRAM, 0), *b"still mapped");
}

#[test]
fn the_next_client_finds_a_clean_device() {
    let backend = Backend::start();
    let mut gpu = Gpu::enabled(&backend);
    leave_traces(&mut gpu);
    let mapped_by_the_first = gpu.map_vram();
    // Not a drop alone: a child that another test is starting may hold a copy of the socket for a moment.
    gpu.0.shutdown().expect("a connection to end");
    drop(gpu);
    // At once: what the backend still has to clear away must not turn the newcomer away.
    let mut gpu = Gpu::attach(&backend);
    assert_clean(&mut gpu);
    put(&mapped_by_the_first, 12345, b"too late");
    assert_eq!(
        gpu.read::<8>(VRAM, 12345),
        [0; 8],
        "the first one's mapping reaches the newcomer's VRAM"
    );
    let copy = COMMAND_COPY | COMMAND_DST_VRAM;
    let outcome = run(&mut gpu, copy, GUEST, 0, 4096);
    assert_eq!(
        error_code(outcome.status),
        ERROR_DMA_FAULT,
        "the first one's memory is gone"
    );
}
