// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration data of a software GPU from a source that sends anything: nothing but a whole stream is loaded, what is
//! loaded is a device that can be, and a reset leaves none of it.
//!
//! The input is a row of chunks, honest ones as a source sends them, with bytes changed, or made up; and how the
//! stream is cut.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use rustix::io::Errno;
use vfio_user_gpu::device::{
    Device, ResetCause,
    model::{ENGINE_REGION, ModelGpu, ModelOptions},
};
use vfio_user_gpu::interrupts::IrqConfig;
use vfio_user_gpu::memory::{AddressSpace, CpuAccess, DEFAULT_MAX_MAPS};
use vfio_user_gpu::migration::MigrationDriver;
use vfio_user_protocol::migration::MigrationState::{
    Error, Resuming, Running, RunningP2p, Stop, StopCopy,
};
use vm_memory::VolatileSlice;

/// Bytes of a chunk's header, as the software GPU documents it; its length is in those from 16 to 24.
const HEADER: usize = 64;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Bytes of one write.
    piece: u16,
    parts: Vec<Part>,
}

#[derive(Arbitrary, Debug)]
enum Part {
    /// A chunk of the honest stream, by number.
    Honest(u8),
    /// All that follow this one.
    Rest(u8),
    /// One with bytes changed.
    Changed(u8, Vec<(u16, u8)>),
    Header {
        kind: u8,
        offset: u64,
        length: u64,
    },
    Raw(Vec<u8>),
}

struct Rig {
    gpu: ModelGpu,
    /// The chunks of a good stream.
    honest: Vec<Vec<u8>>,
}

fn gpu(options: &str) -> ModelGpu {
    let memory = Arc::new(AddressSpace::new(CpuAccess::Mapped, DEFAULT_MAX_MAPS));
    let options: ModelOptions = options.parse().expect("options");
    ModelGpu::new(&options, memory).expect("a model GPU")
}

/// The state changes to the end of `way`; the last stream.
fn go(
    driver: &dyn MigrationDriver,
    way: &[vfio_user_protocol::migration::MigrationState],
) -> Option<Stream> {
    let mut stream = None;
    for state in way {
        stream = driver.set_state(*state).expect("an arc");
    }
    stream
}

type Stream = Box<dyn vfio_user_gpu::migration::DataStream>;

fn rig() -> &'static Rig {
    static RIG: OnceLock<Rig> = OnceLock::new();
    RIG.get_or_init(|| {
        let source = gpu("vram=1M,faults=state-size=40");
        source.write(0, 0x8000, b"some of VRAM").expect("VRAM");
        source.write(0, 0xf_fff0, b"more").expect("VRAM");
        // A command that waits, for guest memory.
        let on = IrqConfig {
            bus_master: true,
            ..IrqConfig::default()
        };
        source.set_irq_config(on);
        let driver = source.migration().expect("migration");
        go(driver, &[RunningP2p]);
        for (offset, value) in [(0x30, 1 << 20), (0x3c, 0x0003_0101), (0x40, 1_u32)] {
            source
                .write(ENGINE_REGION, offset, &value.to_le_bytes())
                .expect("registers");
        }
        let mut stream = go(driver, &[Stop, StopCopy]).expect("a stream");
        let mut data = vec![0; 1 << 20];
        let mut length = 0;
        loop {
            let room = VolatileSlice::from(&mut data[length..]);
            match stream.read(&room).expect("data").length {
                0 => break,
                given => length += given,
            }
        }
        let mut honest = Vec::new();
        let mut rest = &data[..length];
        while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
            let kind = header[0];
            let length = header[16..].first_chunk().expect("8 bytes");
            let payload = u64::from_le_bytes(*length);
            let payload = if kind == 3 {
                0
            } else {
                usize::try_from(payload).expect("a length")
            };
            let (chunk, after) = rest.split_at(HEADER + payload);
            honest.push(chunk.to_vec());
            rest = after;
        }
        assert!(rest.is_empty(), "chunks to the end");
        Rig {
            gpu: gpu("vram=1M"),
            honest,
        }
    })
}

fn stream(input: &Input, honest: &[Vec<u8>]) -> Vec<u8> {
    let mut data = Vec::new();
    for part in &input.parts {
        match part {
            Part::Honest(n) => data.extend_from_slice(&honest[usize::from(*n) % honest.len()]),
            Part::Rest(n) => data.extend(honest[usize::from(*n) % honest.len()..].iter().flatten()),
            Part::Changed(n, changes) => {
                let mut chunk = honest[usize::from(*n) % honest.len()].clone();
                let length = chunk.len();
                for (at, value) in changes {
                    chunk[usize::from(*at) % length] ^= value;
                }
                data.extend(chunk);
            }
            Part::Header {
                kind,
                offset,
                length,
            } => {
                data.extend(u32::from(*kind).to_le_bytes());
                data.extend([0; 4]);
                data.extend(offset.to_le_bytes());
                data.extend(length.to_le_bytes());
                data.extend([0; HEADER - 24]);
            }
            Part::Raw(bytes) => data.extend_from_slice(bytes),
        }
    }
    data
}

fuzz_target!(|input: Input| {
    let Rig { gpu, honest } = rig();
    let driver = gpu.migration().expect("migration");
    let mut data = stream(&input, honest);
    let mut taking = go(driver, &[RunningP2p, Stop, Resuming]).expect("a stream");
    let mut refused = false;
    for piece in data.chunks_mut(usize::from(input.piece).max(1)) {
        let length = piece.len();
        match taking.write(&VolatileSlice::from(piece), false) {
            Ok(taken) => assert!(!refused && taken == length),
            Err(errno) => {
                assert_eq!(errno, Errno::INVAL);
                refused = true;
            }
        }
    }
    let whole = honest.concat();
    match driver.set_state(Stop) {
        Ok(None) => {
            assert!(!refused);
            // Whatever it is now, it can go on and answers as a device does.
            go(driver, &[RunningP2p, Running]);
            let mut word = [0; 4];
            gpu.read(ENGINE_REGION, 0x44, &mut word).expect("STATUS");
            assert_eq!(u32::from_le_bytes(word) & !0x707, 0);
            gpu.read(ENGINE_REGION, 0x60, &mut word)
                .expect("INT_STATUS");
            assert_eq!(u32::from_le_bytes(word) & !0xff, 0);
        }
        Ok(Some(_)) => panic!("a stream where none belongs"),
        Err(errno) => {
            assert_eq!(errno, Errno::INVAL);
            assert_eq!(driver.state(), Ok(Error));
            assert!(data != whole, "a good stream is refused");
        }
    }
    gpu.reset(ResetCause::Client).expect("a reset");
    assert_eq!(driver.state(), Ok(Running));
    assert_eq!(gpu.vram().allocated().expect("VRAM"), 0);
    let mut word = [1; 4];
    gpu.read(ENGINE_REGION, 0x3c, &mut word).expect("COMMAND");
    assert_eq!(word, [0; 4]);
});
