// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VM's side of one device: what it put there, and whether that is still there.

use std::path::Path;
use std::process::Command;

use system_tests::model_gpu::engine::{SCRATCH, STATUS, STATUS_DONE};
use system_tests::{
    binaries,
    engine::{self, Registers},
    model_gpu::engine::{COMMAND_DST_VRAM, COMMAND_FILL, FILL},
    pattern,
};
use vfio_user_client::mapping::RegionMapping;
use vfio_user_client::migration::{Loader, Migration, Progress, Saver};
use vfio_user_client::protocol::migration::MigrationState;
use vfio_user_client::{Client, MigrationFeatures, Options, Spawned, spawn};

pub const CONFIG: u32 = 7;
const VRAM: u32 = 0;

/// With and without channel, with and without shared memory, nothing at all and all there is.
pub fn ways() -> Vec<MigrationFeatures> {
    let mut ways = vec![MigrationFeatures::ALL];
    for channel in [false, true] {
        for shared_memory in [false, true] {
            ways.push(MigrationFeatures {
                channel,
                shared_memory,
                ..MigrationFeatures::default()
            });
        }
    }
    ways
}

pub fn options(migration: MigrationFeatures) -> Options {
    Options {
        explain: true,
        migration,
        ..Options::default()
    }
}

/// A backend with a model GPU of `model`, as its only client.
#[track_caller]
pub fn backend(model: &str, migration: MigrationFeatures) -> Spawned {
    backend_with(model, &[], migration)
}

/// The same, with `arguments` beside those that every start has.
#[track_caller]
pub fn backend_with(model: &str, arguments: &[&str], migration: MigrationFeatures) -> Spawned {
    let mut command = Command::new(binaries::backend());
    command
        .args([&format!("--model={model}"), "--log-level", "error"])
        .args(arguments);
    spawn(command, options(migration)).expect("a backend")
}

/// The client of one device.
#[derive(Debug)]
pub struct Vm<'a> {
    pub client: &'a Client,
    pub migration: Migration,
    pub vram: RegionMapping,
}

impl Registers for Vm<'_> {
    fn get(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client
            .region_read(engine::REGION, offset, &mut bytes)
            .expect("a register");
        u32::from_le_bytes(bytes)
    }

    fn set(&mut self, offset: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.client
            .region_write(engine::REGION, offset, &bytes)
            .expect("a register");
    }
}

impl<'a> Vm<'a> {
    #[track_caller]
    pub fn new(client: &'a Client) -> Self {
        let migration = client.migration().expect("MIGRATION");
        let info = client.region_info(VRAM).expect("BAR 0");
        Self {
            client,
            migration: migration.expect("the model GPU migrates"),
            vram: info.map().expect("VRAM is mapped"),
        }
    }

    /// Memory decoding and bus mastering.
    #[track_caller]
    pub fn enable(&self) {
        self.client
            .region_write(CONFIG, 4, &[6, 0])
            .expect("COMMAND");
    }

    /// Puts something into VRAM and registers by which it is known again.
    #[track_caller]
    pub fn fill(&mut self, seed: u32, length: usize) {
        self.enable();
        self.vram
            .write_bytes(0, &pattern::bytes(seed, length))
            .expect("VRAM");
        self.set(SCRATCH, seed);
    }

    /// What [`Self::fill`] put there is there, and the device works.
    #[track_caller]
    pub fn check(&mut self, seed: u32, length: usize) {
        assert_eq!(self.state(), MigrationState::Running);
        assert_eq!(self.get(SCRATCH), seed, "SCRATCH");
        let mut found = vec![0; length];
        self.vram.read_bytes(0, &mut found).expect("VRAM");
        let expected = pattern::bytes(seed, length);
        let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
        assert_eq!(differs, None, "VRAM of {length} bytes");
        self.works();
    }

    /// The engine fills the end of VRAM.
    #[track_caller]
    pub fn works(&mut self) {
        let end = self.vram.areas()[0].len() as u64;
        self.set(FILL, 0x6d6f_7665);
        let outcome = engine::run(self, COMMAND_FILL | COMMAND_DST_VRAM, 0, end - 4096, 4096);
        assert_eq!(outcome.status, STATUS_DONE);
        assert_eq!(self.get(STATUS), STATUS_DONE);
        assert_eq!(self.vram.read::<u32>(end - 8).expect("VRAM"), 0x6d6f_7665);
    }

    #[track_caller]
    pub fn state(&self) -> MigrationState {
        self.migration.state().expect("a state")
    }
}

/// Reads to the end of a pass, or of the stream.
#[track_caller]
pub fn pass(saver: &mut Saver, into: &mut Vec<u8>) -> Progress {
    loop {
        match saver.iterate(into).expect("data") {
            Progress::Data(_) => {}
            other => return other,
        }
    }
}

/// The rest of a stream from the stopped device.
#[track_caller]
pub fn rest(saver: &mut Saver, into: &mut Vec<u8>) {
    saver.switch_over().expect("STOP_COPY");
    assert_eq!(pass(saver, into), Progress::End);
}

/// The stream of a stopped device; it runs afterwards.
#[track_caller]
pub fn snapshot(vm: &Vm<'_>) -> Vec<u8> {
    let mut saver = vm.migration.save(false).expect("a saver");
    let mut stream = Vec::new();
    rest(&mut saver, &mut stream);
    saver.cancel().expect("RUNNING");
    stream
}

/// Loads in parts of `length` bytes.
#[track_caller]
pub fn load(loader: &mut Loader, stream: &[u8], length: usize) {
    for part in stream.chunks(length) {
        loader.load(part).expect("taken");
    }
}

/// The place of a file in a folder, as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
