// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From one model GPU to another, in process.

mod cycle;
mod faults;
mod hostile;

use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState::{self, *};
use vm_memory::VolatileSlice;

use super::super::tests::{Rig, VRAM};
use super::super::{Device, ModelOptions, VRAM_REGION};
use super::format::{GRANULE, HEADER, Header, Kind};
use crate::migration::states::way;
use crate::migration::{DataStream, MigrationDriver, PrecopyInfo};

type Opened = Option<Box<dyn DataStream>>;

/// A GPU with faults, as `--model=faults=` has them.
fn rig(faults: &str) -> Rig {
    let text = format!("vram=8M,faults={faults}");
    Rig::with(&text.parse::<ModelOptions>().unwrap())
}

impl Rig {
    fn driver(&self) -> &dyn MigrationDriver {
        self.gpu.migration().unwrap()
    }

    /// Takes the arcs to a state; the last stream that one opened.
    fn go(&self, to: MigrationState) -> Result<Opened, Errno> {
        let driver = self.driver();
        let mut opened = None;
        for arc in way(driver.state().unwrap(), to, driver.support()).unwrap() {
            let stream = driver.set_state(arc)?;
            assert_eq!(driver.state(), Ok(arc));
            opened = stream.or(opened);
        }
        Ok(opened)
    }

    fn open(&self, to: MigrationState) -> Box<dyn DataStream> {
        self.go(to).unwrap().expect("a stream")
    }

    fn state(&self) -> MigrationState {
        self.driver().state().unwrap()
    }

    fn vram(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(VRAM).unwrap()];
        self.gpu.read(VRAM_REGION, 0, &mut bytes).unwrap();
        bytes
    }

    fn poke(&self, offset: usize, data: &[u8]) {
        self.gpu.write(VRAM_REGION, offset as u64, data).unwrap();
    }

    /// Loads a stream in pieces and runs.
    fn load(&self, data: &[u8], piece: usize) -> Result<(), Errno> {
        let mut stream = self.open(Resuming);
        for piece in data.chunks(piece) {
            assert_eq!(write(&mut *stream, piece)?, piece.len());
        }
        self.go(Running).map(|_| ())
    }
}

fn read(stream: &mut dyn DataStream, length: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; length];
    let taken = stream.read(&VolatileSlice::from(bytes.as_mut_slice()))?;
    assert!(!taken.ends_transaction);
    bytes.truncate(taken.length);
    Ok(bytes)
}

fn write(stream: &mut dyn DataStream, data: &[u8]) -> Result<usize, Errno> {
    let mut data = data.to_vec();
    stream.write(&VolatileSlice::from(data.as_mut_slice()), false)
}

/// Reads until there is nothing (more for now).
fn drain(stream: &mut dyn DataStream, piece: usize) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    loop {
        match read(stream, piece) {
            Ok(bytes) if bytes.is_empty() => return Ok(all),
            Err(Errno::NOMSG) => return Ok(all),
            Ok(bytes) => all.extend(bytes),
            Err(errno) => return Err(errno),
        }
    }
}

/// All the data of a device that runs, with its pre-copy; the device is in STOP then.
fn save(rig: &Rig, piece: usize) -> Vec<u8> {
    let mut stream = rig.open(PreCopy);
    let mut data = drain(&mut *stream, piece).unwrap();
    assert!(rig.go(StopCopy).unwrap().is_none(), "the stream goes on");
    data.extend(drain(&mut *stream, piece).unwrap());
    rig.go(Stop).unwrap();
    data
}

/// The headers of a stream and where each chunk begins.
fn chunks(data: &[u8]) -> Vec<(usize, Header)> {
    use zerocopy::FromBytes;
    let mut found = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let (header, _) = Header::read_from_prefix(&data[at..]).unwrap();
        found.push((at, header));
        let payload = match Kind::try_from(header.kind.get()).unwrap() {
            Kind::Zero => 0,
            _ => usize::try_from(header.length.get()).unwrap(),
        };
        at += HEADER + payload;
    }
    assert_eq!(at, data.len());
    found
}

/// The chunks of one kind: where in VRAM, and how many bytes.
fn places(data: &[u8], kind: Kind) -> Vec<(usize, usize)> {
    let convert = |v: zerocopy::little_endian::U64| usize::try_from(v.get()).unwrap();
    chunks(data)
        .into_iter()
        .filter(|(_, header)| header.kind.get() == kind as u32)
        .map(|(_, header)| (convert(header.offset), convert(header.length)))
        .collect()
}

fn info(stream: &mut dyn DataStream) -> PrecopyInfo {
    stream.precopy_info().unwrap()
}
