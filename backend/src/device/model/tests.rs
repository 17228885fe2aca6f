// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model GPU as a client drives it, with real memory files behind the guest's memory.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{Errno, pread, pwrite};

use super::command::CHUNK;
use super::registers::{command, offset, status};
use super::*;
use crate::memory::{Access, Backing, CpuAccess, DEFAULT_MAX_MAPS, MapRequest, MessageDma};

pub(super) const VRAM: u64 = 8 << 20;
pub(super) const RAM: u64 = 0x1_0000_0000;
/// Done, without an error.
pub(super) const DONE: u32 = status::DONE;

const fn failed(code: registers::ErrorCode) -> u32 {
    status::DONE | status::ERROR | ((code as u32) << status::CODE_SHIFT)
}

/// A GPU with bus mastering on, every event enabled, and an eventfd on MSI-X vector 3.
pub(super) struct Rig {
    pub gpu: ModelGpu,
    pub memory: Arc<AddressSpace>,
    event: OwnedFd,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(&ModelOptions {
            vram_size: VRAM,
            ..ModelOptions::default()
        })
    }

    pub fn with(options: &ModelOptions) -> Self {
        let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
        let gpu = ModelGpu::new(options, Arc::clone(&memory)).unwrap();
        let event = arm(&gpu, MSIX, 3);
        let rig = Self { gpu, memory, event };
        rig.prepare();
        rig
    }

    /// What a driver does after a reset.
    pub fn prepare(&self) {
        self.bus_master(true);
        self.set(offset::INT_ENABLE, 0xff);
    }

    pub fn bus_master(&self, bus_master: bool) {
        self.gpu.set_irq_config(IrqConfig {
            bus_master,
            ..IrqConfig::default()
        });
    }

    pub fn map(&self, iova: u64, pages: u64, access: Access) -> OwnedFd {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, pages * 4096).unwrap();
        let backing = Some(Backing {
            file: file.try_clone().unwrap(),
            offset: 0,
        });
        self.map_as(iova, pages * 4096, access, backing);
        file
    }

    pub fn map_as(&self, iova: u64, size: u64, access: Access, backing: Option<Backing>) {
        let request = MapRequest {
            iova,
            size,
            access,
            backing,
        };
        self.memory.map(request).unwrap();
    }

    pub fn set(&self, offset: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.gpu.write(ENGINE_REGION, offset, &bytes).unwrap();
    }

    pub fn get(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.gpu.read(ENGINE_REGION, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub fn get_wide(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.gpu.read(ENGINE_REGION, offset, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Starts a command that raises its event on vector 3.
    pub fn start(&self, flags: u32, src: u64, dst: u64, len: u64) {
        for (at, value) in [(offset::SRC, src), (offset::DST, dst), (offset::LEN, len)] {
            let bytes = value.to_le_bytes();
            self.gpu.write(ENGINE_REGION, at, &bytes).unwrap();
        }
        let event = command::EVENT | (3 << command::VECTOR_SHIFT);
        self.set(offset::COMMAND, flags | event);
        self.set(offset::DOORBELL, 1);
    }

    /// Blocks until vector 3 fires.
    pub fn wait(&self) {
        let mut count = [0; 8];
        assert_eq!(rustix::io::read(&self.event, &mut count), Ok(8));
        assert_eq!(u64::from_ne_bytes(count), 1);
        assert_eq!(self.get(offset::INT_STATUS), 8);
        self.set(offset::INT_STATUS, 8);
    }

    pub fn run(&self, flags: u32, src: u64, dst: u64, len: u64) -> u32 {
        self.start(flags, src, dst, len);
        self.wait();
        self.get(offset::STATUS)
    }

    pub fn fault(&self) -> (u64, u64) {
        let address = self.get_wide(offset::FAULT_ADDRESS);
        (address, self.get_wide(offset::COMPLETED))
    }
}

pub(super) fn arm(gpu: &ModelGpu, index: u32, vector: u32) -> OwnedFd {
    let ours = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let eventfds = vec![Some(ours.try_clone().unwrap())];
    gpu.set_irqs(IrqRequest::SetEventfds {
        index,
        start: vector,
        eventfds,
    })
    .unwrap();
    ours
}

/// Bytes that differ from page to page.
pub(super) fn noise(len: u64) -> Vec<u8> {
    let mut state = 1_u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
            state.to_le_bytes()[3]
        })
        .collect()
}

pub(super) fn contents(file: &OwnedFd, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    assert_eq!(pread(file, &mut bytes, offset), Ok(bytes.len()));
    bytes
}

pub(super) const TO_VRAM: u32 = command::COPY | command::DST_VRAM;
pub(super) const FROM_VRAM: u32 = command::COPY | command::SRC_VRAM;

#[test]
fn regions_and_interrupts_are_the_contract() {
    let rig = Rig::new();
    let sizes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 99].map(|index| rig.gpu.region(index).size);
    assert_eq!(sizes, [VRAM, 0, 0x1000, 0, 0x4000, 0, 0x800, 0, 0, 0]);
    assert!(!rig.gpu.region(region::ROM).writable);
    let counts = [0, 1, 2, 3, 4, 5].map(|index| rig.gpu.irq(index).count);
    assert_eq!(counts, [1, 8, 8, 1, 1, 0]);
    let mapping = rig.gpu.mapping(VRAM_REGION).unwrap().unwrap();
    assert!(mapping.areas.is_none());
    assert!(rig.gpu.mapping(DISPLAY_REGION).unwrap().is_none());
    assert!(rig.gpu.mapping(ENGINE_REGION).unwrap().is_none());
    assert_eq!(rig.gpu.name(), "model GPU, 8 MiB");
    assert_eq!(rig.gpu.config_space().identity(), config::IDENTITY);
}

#[test]
fn copies_both_ways_across_maps_and_interrupts() {
    let rig = Rig::new();
    let low = rig.map(RAM, 512, Access::READ_WRITE);
    let high = rig.map(RAM + (2 << 20), 512, Access::READ_WRITE);
    let data = noise(3 << 20);
    // Neither aligned nor a multiple of anything.
    let (src, len) = (RAM + 0x1003, (3 << 20) - 77);
    let split = (2 << 20) - 0x1003;
    pwrite(&low, &data[..split], 0x1003).unwrap();
    pwrite(&high, &data[split..], 0).unwrap();
    assert_eq!(rig.run(TO_VRAM, src, 5, len), DONE);
    assert_eq!(rig.fault(), (0, len));
    let wanted = &data[..usize::try_from(len).unwrap()];
    let mut vram = vec![0; wanted.len()];
    rig.gpu.read(VRAM_REGION, 5, &mut vram).unwrap();
    assert!(vram == wanted);
    // Now back to another place, again over both maps.
    assert_eq!(rig.run(FROM_VRAM, 5, RAM + 0x801, len), DONE);
    let mut back = contents(&low, 0x801, (2 << 20) - 0x801);
    back.extend(contents(&high, 0, len - back.len() as u64));
    assert!(back == wanted);
    assert_eq!(rig.get(offset::FENCE), 2);
}

#[test]
fn copies_within_vram_and_within_the_guest() {
    let rig = Rig::new();
    let file = rig.map(RAM, 1024, Access::READ_WRITE);
    let data = noise(3 << 19);
    pwrite(&file, &data, 0).unwrap();
    let len = data.len() as u64;
    assert_eq!(rig.run(command::COPY, RAM, RAM + (2 << 20), len), DONE);
    assert!(contents(&file, 2 << 20, len) == data);
    assert_eq!(rig.run(TO_VRAM, RAM, 0, len), DONE);
    let within = command::COPY | command::SRC_VRAM | command::DST_VRAM;
    assert_eq!(rig.run(within, 0, VRAM - len, len), DONE);
    let mut vram = vec![0; data.len()];
    rig.gpu.read(VRAM_REGION, VRAM - len, &mut vram).unwrap();
    assert!(vram == data);
    assert_eq!(
        rig.run(within, 0, VRAM - len + 1, len),
        failed(registers::ErrorCode::OutsideVram)
    );
}

#[test]
fn fills_repeat_the_pattern() {
    let rig = Rig::new();
    let files = [0, 1].map(|n| rig.map(RAM + n * 4096, 1, Access::READ_WRITE));
    rig.set(offset::FILL, 0x4433_2211);
    assert_eq!(rig.run(command::FILL, 0, RAM + 4093, 6), DONE);
    assert_eq!(contents(&files[0], 4092, 4), [0, 0x11, 0x22, 0x33]);
    assert_eq!(contents(&files[1], 0, 4), [0x44, 0x11, 0x22, 0]);
    // Three pieces: the pattern's phase is carried over all of them.
    let third = rig.map(RAM + 0x2000, 1, Access::READ_WRITE);
    assert_eq!(rig.run(command::FILL, 0, RAM + 4093, 4102), DONE);
    assert_eq!(contents(&third, 0, 4), [0x44, 0x11, 0x22, 0]);
    assert_eq!(
        rig.run(command::FILL | command::DST_VRAM, 0, 1, VRAM - 2),
        DONE
    );
    let mut vram = vec![0; usize::try_from(VRAM).unwrap()];
    rig.gpu.read(VRAM_REGION, 0, &mut vram).unwrap();
    let pattern = [0x11, 0x22, 0x33, 0x44];
    let middle = &vram[1..vram.len() - 1];
    assert!(middle.iter().enumerate().all(|(i, b)| *b == pattern[i % 4]));
    assert_eq!((vram[0], vram[vram.len() - 1]), (0, 0));
    assert_eq!(rig.run(command::FILL, 0, RAM, 0), DONE, "nothing to do");
}

#[test]
fn a_hole_is_a_fault_with_its_address() {
    let rig = Rig::new();
    rig.map(RAM, 1, Access::READ_WRITE);
    rig.map(RAM + 0x2000, 1, Access::READ_WRITE);
    let fault = failed(registers::ErrorCode::DmaFault);
    assert_eq!(rig.run(TO_VRAM, RAM + 16, 0, 0x2000), fault);
    assert_eq!(rig.fault(), (RAM + 0x1000, 0xff0));
    assert_eq!(
        rig.run(command::COPY, RAM + 0x2000, RAM + 0x800, 0x1000),
        fault
    );
    assert_eq!(rig.fault(), (RAM + 0x1000, 0x800));
    assert_eq!(rig.run(TO_VRAM, u64::MAX, 0, 2), fault);
    assert_eq!(rig.fault(), (u64::MAX, 0));
    assert_eq!(rig.get(offset::FENCE), 3, "failed ones count");
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 16), DONE);
    assert_eq!(rig.fault(), (0, 16));
}

#[test]
fn a_read_only_map_is_not_written() {
    let rig = Rig::new();
    let file = rig.map(RAM, 1, Access::READ);
    let fault = failed(registers::ErrorCode::DmaFault);
    rig.set(offset::FILL, u32::MAX);
    assert_eq!(rig.run(command::FILL, 0, RAM, 8), fault);
    assert_eq!(rig.fault(), (RAM, 0));
    assert_eq!(contents(&file, 0, 8), [0; 8]);
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 8), DONE);
}

#[test]
fn truncated_guest_memory_is_a_fault_and_no_more() {
    let rig = Rig::new();
    let file = rig.map(RAM, 1024, Access::READ_WRITE);
    ftruncate(&file, 0x18_0000).unwrap();
    let fault = failed(registers::ErrorCode::DmaFault);
    for flags in [TO_VRAM, FROM_VRAM] {
        let (src, dst) = if flags == TO_VRAM { (RAM, 0) } else { (0, RAM) };
        assert_eq!(rig.run(flags, src, dst, 4 << 20), fault);
        assert_eq!(rig.fault(), (RAM + 0x18_0000, 0x18_0000));
    }
    rig.memory.unmap(RAM, 4 << 20).unwrap();
    rig.map(RAM, 1024, Access::READ_WRITE);
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 4 << 20), DONE);
}

#[test]
fn dma_needs_bus_mastering() {
    let rig = Rig::new();
    rig.map(RAM, 1, Access::READ_WRITE);
    rig.bus_master(false);
    // Without bus mastering there is no message either: such a command ends within the write.
    rig.start(TO_VRAM, RAM, 0, 8);
    let off = failed(registers::ErrorCode::BusMasterOff);
    assert_eq!(rig.get(offset::STATUS), off);
    assert_eq!(rig.get(offset::INT_STATUS), 8);
    rig.set(offset::INT_STATUS, 8);
    rig.bus_master(true);
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 8), DONE);
}

/// Guest memory behind messages, which says when it is asked and waits to be let go on.
#[derive(Debug)]
pub(super) struct Slow {
    pub asked: AtomicU64,
    reached: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Slow {
    /// Answers the first `held` requests only when let go on; says so each time.
    pub fn install(rig: &Rig) -> (Arc<Self>, Receiver<()>, SyncSender<()>) {
        let (reached, reached_receiver) = sync_channel(1 << 16);
        let (go_on_sender, go_on) = sync_channel(1 << 16);
        let slow = Arc::new(Self {
            asked: AtomicU64::new(0),
            reached,
            go_on: Mutex::new(go_on),
        });
        rig.map_as(1 << 40, 1 << 40, Access::READ_WRITE, None);
        rig.memory.set_message_dma(Some(slow.clone()));
        (slow, reached_receiver, go_on_sender)
    }

    fn ask(&self) -> io::Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _ = self.reached.try_send(());
        // A sender that is gone lets everything through.
        let _ = self.go_on.lock().unwrap().recv();
        Ok(())
    }
}

impl MessageDma for Slow {
    fn read(&self, _iova: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(0x5a);
        self.ask()
    }

    fn write(&self, _iova: u64, _data: &[u8]) -> io::Result<()> {
        self.ask()
    }
}

#[test]
fn a_doorbell_while_busy_is_refused_and_disturbs_nothing() {
    let rig = Rig::new();
    let (_slow, reached, go_on) = Slow::install(&rig);
    rig.start(TO_VRAM, 1 << 40, 0, 16);
    reached.recv().unwrap();
    assert_eq!(rig.get(offset::STATUS), status::BUSY);
    rig.start(command::FILL | command::DST_VRAM, 0, 0, VRAM);
    let refused = (5 << status::CODE_SHIFT) | status::ERROR;
    assert_eq!(rig.get(offset::STATUS), refused | status::BUSY);
    assert_eq!(rig.get(offset::FENCE), 0);
    go_on.send(()).unwrap();
    rig.wait();
    assert_eq!(rig.get(offset::STATUS), refused | status::DONE);
    assert_eq!(rig.get(offset::FENCE), 1);
    let mut vram = [0; 17];
    rig.gpu.read(VRAM_REGION, 0, &mut vram).unwrap();
    assert_eq!(vram[..16], [0x5a; 16]);
    assert_eq!(vram[16], 0);
}

#[test]
fn reset_ends_a_long_copy_and_leaves_nothing() {
    let rig = Rig::new();
    let (slow, reached, go_on) = Slow::install(&rig);
    // Lets everything through: without the reset this goes on for 2^40 bytes.
    drop(go_on);
    rig.gpu.write(VRAM_REGION, VRAM - 1, &[1]).unwrap();
    rig.gpu.write(DISPLAY_REGION, 0x502, &[1, 1]).unwrap();
    rig.start(command::COPY, 1 << 40, 1 << 40, 1 << 40);
    reached.recv().unwrap();
    rig.gpu.reset(ResetCause::Client).unwrap();
    let asked = slow.asked.load(Ordering::SeqCst);
    for (at, value) in [
        (offset::STATUS, 0),
        (offset::FENCE, 0),
        (offset::LEN, 0),
        (offset::COMPLETED, 0),
        (offset::INT_ENABLE, 0),
        (offset::COMMAND, 0),
        (offset::ID, registers::ID_VALUE),
    ] {
        assert_eq!(rig.get(at), value, "{at:#x}");
    }
    assert_eq!(rig.get_wide(offset::VRAM_SIZE), VRAM);
    let mut byte = [1; 2];
    rig.gpu.read(VRAM_REGION, VRAM - 1, &mut byte[..1]).unwrap();
    assert_eq!(byte[0], 0);
    rig.gpu.read(DISPLAY_REGION, 0x502, &mut byte).unwrap();
    assert_eq!(byte, [0, 0]);
    rig.prepare();
    assert_eq!(
        rig.run(command::FILL | command::DST_VRAM, 0, 0, 4) & status::DONE,
        DONE
    );
    assert_eq!(
        slow.asked.load(Ordering::SeqCst),
        asked,
        "the old copy is over"
    );
}

#[test]
fn turning_bus_mastering_off_stops_dma() {
    let rig = Rig::new();
    let (slow, reached, go_on) = Slow::install(&rig);
    drop(go_on);
    rig.start(command::COPY, 1 << 40, 1 << 40, 1 << 40);
    reached.recv().unwrap();
    rig.bus_master(false);
    let asked = slow.asked.load(Ordering::SeqCst);
    // No message can tell of the end any more.
    while rig.get(offset::STATUS) & status::BUSY != 0 {
        thread::yield_now();
    }
    let off = failed(registers::ErrorCode::BusMasterOff);
    assert_eq!(rig.get(offset::STATUS), off);
    assert_eq!(rig.get(offset::FENCE), 1);
    assert_eq!(slow.asked.load(Ordering::SeqCst), asked);
}

#[test]
fn quiesce_holds_a_command_and_resume_completes_it() {
    let rig = Rig::new();
    rig.map(RAM, 1024, Access::READ_WRITE);
    let len = 4 * CHUNK;
    rig.gpu.engine.quiesce();
    rig.start(TO_VRAM, RAM, 0, len);
    assert_eq!(rig.get(offset::STATUS), status::BUSY);
    assert_eq!(rig.get_wide(offset::COMPLETED), 0);
    rig.gpu.engine.resume();
    rig.wait();
    assert_eq!(rig.get_wide(offset::COMPLETED), len);
    // While it runs: whatever was moved when it is held, no more is until it is let go.
    rig.start(TO_VRAM, RAM, 0, len);
    rig.gpu.engine.quiesce();
    let held_at = rig.get_wide(offset::COMPLETED);
    thread::yield_now();
    assert_eq!(rig.get_wide(offset::COMPLETED), held_at);
    rig.gpu.engine.resume();
    rig.wait();
    assert_eq!(rig.get(offset::STATUS), DONE);
    // A held command does not outlive a reset.
    rig.gpu.engine.quiesce();
    rig.start(TO_VRAM, RAM, 0, len);
    rig.gpu.reset(ResetCause::Disconnect).unwrap();
    rig.prepare();
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 1), DONE);
    assert_eq!(rig.get(offset::FENCE), 1);
}

#[test]
fn dropping_the_device_ends_a_long_copy() {
    let rig = Rig::new();
    let (_slow, reached, go_on) = Slow::install(&rig);
    drop(go_on);
    rig.start(command::COPY, 1 << 40, 1 << 40, 1 << 40);
    reached.recv().unwrap();
    drop(rig);
}

#[test]
fn raised_events_drive_intx() {
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, 1));
    let gpu = ModelGpu::new(&ModelOptions::default(), memory).unwrap();
    let intx = arm(&gpu, INTX, 0);
    let set = |offset, value: u32| {
        gpu.write(ENGINE_REGION, offset, &value.to_le_bytes())
            .unwrap();
    };
    set(offset::INT_RAISE, 0x10);
    assert!(!gpu.interrupt_status());
    set(offset::INT_ENABLE, 0x10);
    assert!(gpu.interrupt_status());
    let mut count = [0; 8];
    assert_eq!(rustix::io::read(&intx, &mut count), Ok(8));
    set(offset::INT_STATUS, 0x10);
    assert!(!gpu.interrupt_status());
    set(offset::INT_RAISE, 0x10);
    gpu.reset(ResetCause::Client).unwrap();
    assert!(!gpu.interrupt_status());
}

#[test]
fn accesses_outside_regions_are_refused() {
    let rig = Rig::new();
    let mut byte = [0; 8];
    for (index, offset) in [
        (VRAM_REGION, VRAM - 7),
        (DISPLAY_REGION, 0xff9),
        (ENGINE_REGION, 0x3ff9),
        (ENGINE_REGION, u64::MAX),
        (region::ROM, 0x7f9),
        (1, 0),
        (region::CONFIG, 0),
        (u32::MAX, 0),
    ] {
        let read = rig.gpu.read(index, offset, &mut byte).unwrap_err();
        let write = rig.gpu.write(index, offset, &byte).unwrap_err();
        assert_eq!((read.errno(), write.errno()), (Errno::INVAL, Errno::INVAL));
    }
    for index in [1, region::CONFIG, u32::MAX] {
        let nothing = rig.gpu.write(index, 0, &[]).unwrap_err();
        assert_eq!(nothing.errno(), Errno::INVAL);
        assert!(rig.gpu.read(index, 0, &mut []).is_err());
    }
    let rom = rig.gpu.write(region::ROM, 0, &byte).unwrap_err();
    assert_eq!(rom.errno(), Errno::PERM);
    rig.gpu.read(region::ROM, 0, &mut byte[..2]).unwrap();
    assert_eq!(byte[..2], [0x55, 0xaa]);
}

#[test]
fn a_truncated_vram_file_is_survived_and_healed_by_reset() {
    let name = format!("vfio-user-gpu-{}-model", std::process::id());
    let path = std::env::temp_dir().join(name);
    let rig = Rig::with(&ModelOptions {
        vram_size: VRAM,
        vram_file: Some(path.clone()),
        ..ModelOptions::default()
    });
    rig.map(RAM, 1024, Access::READ_WRITE);
    let client = std::fs::File::options().write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    client.set_len(0x10_8000).unwrap();
    let outside = failed(registers::ErrorCode::OutsideVram);
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 2 << 20), outside);
    assert_eq!(rig.get_wide(offset::FAULT_ADDRESS), 0x10_8000);
    let error = rig.gpu.read(VRAM_REGION, VRAM - 4, &mut [0; 4]);
    assert_eq!(error.unwrap_err().errno(), Errno::IO);
    rig.gpu.reset(ResetCause::Disconnect).unwrap();
    rig.prepare();
    assert_eq!(rig.run(TO_VRAM, RAM, 0, 2 << 20), DONE);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 128, ..ProptestConfig::default() })]

    /// Whatever a client writes, the device answers, and can be reset.
    #[test]
    fn no_access_panics_or_hangs(
        accesses in prop::collection::vec(
            (
                0_u32..10,
                prop_oneof![Just(0_u64), 0_u64..0x80, 0x400_u64..0x620, any::<u64>()],
                prop::collection::vec(any::<u8>(), 0..17),
                any::<bool>(),
            ),
            0..60,
        )
    ) {
        let rig = Rig::new();
        rig.map(0, 64, Access::READ_WRITE);
        for (index, offset, mut data, write) in accesses {
            let result = if write {
                rig.gpu.write(index, offset, &data)
            } else {
                rig.gpu.read(index, offset, &mut data)
            };
            let size = rig.gpu.region(index).size;
            let end = offset.checked_add(data.len() as u64);
            let expected = if size == 0 || end.is_none_or(|end| end > size) {
                Err(Errno::INVAL)
            } else if write && index == region::ROM {
                Err(Errno::PERM)
            } else {
                Ok(())
            };
            prop_assert_eq!(result.map_err(|error| error.errno()), expected);
        }
        rig.gpu.reset(ResetCause::Client).unwrap();
        prop_assert_eq!(rig.get(offset::STATUS), 0);
    }
}
