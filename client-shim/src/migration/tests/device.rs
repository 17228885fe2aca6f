// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device that migrates, as far as a client can see: states, passes of data, and the ways it goes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use zerocopy::{FromBytes, IntoBytes};

use crate::protocol::extension::migration as wire;
use crate::protocol::feature::{
    DeviceState, Feature, GET, INDEX_MASK, MIG_DATA_SIZE, MIG_DEVICE_STATE, MIG_PRECOPY_INFO_V2,
    MIGRATION,
};
use crate::protocol::migration::{MigData, MigrationState as State};
use crate::protocol::version::{Capabilities, Extension};
use crate::protocol::{Command, extension};
use crate::testing::{Message, Peer, word};

/// What is served.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) migrates: bool,
    pub(super) pre_copy: bool,
    pub(super) state: State,
    /// What pre-copy gives; the first is initial data.
    pub(super) passes: Vec<Vec<u8>>,
    pub(super) stop_copy: Vec<u8>,
    pub(super) loaded: Vec<u8>,
    /// Bytes of the longest write.
    pub(super) longest: usize,
    pub(super) resets: usize,
    /// Refuses the stream once it is so long.
    pub(super) refuse_at: Option<usize>,
    /// How often data was asked for.
    pub(super) reads: usize,
    /// Reads of data wait.
    pub(super) hold: bool,
    pub(super) pass: usize,
    /// What can be read now.
    pub(super) ready: Vec<u8>,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            migrates: true,
            pre_copy: true,
            state: State::Running,
            passes: Vec::new(),
            stop_copy: Vec::new(),
            loaded: Vec::new(),
            longest: 0,
            resets: 0,
            refuse_at: None,
            reads: 0,
            hold: false,
            pass: 0,
            ready: Vec::new(),
        }
    }
}

impl Device {
    /// The device changes: another pass can be read.
    pub(super) fn next_pass(&mut self) {
        let data = self.passes.get(self.pass).cloned().unwrap_or_default();
        self.pass += 1;
        self.ready.extend(data);
    }

    /// All that a stop-copy would give now.
    pub(super) fn size(&self) -> u64 {
        let passes = self.passes.iter().skip(self.pass.max(1)).map(Vec::len);
        let first = match self.pass {
            0 => self.passes.first().map_or(0, Vec::len),
            _ => self.ready.len(),
        };
        (first + passes.sum::<usize>() + self.stop_copy.len()) as u64
    }

    fn set_state(&mut self, state: State) {
        match state {
            State::PreCopy if self.state == State::Running => {
                self.pass = 0;
                self.ready.clear();
                self.next_pass();
            }
            State::StopCopy => {
                let rest = self.stop_copy.clone();
                self.ready.extend(rest);
            }
            State::Resuming => self.loaded.clear(),
            _ => {}
        }
        self.state = state;
    }

    fn read(&mut self, most: usize) -> Vec<u8> {
        self.reads += 1;
        let count = most.min(self.ready.len());
        let data = self.ready[..count].to_vec();
        self.ready.drain(..count);
        data
    }

    fn write(&mut self, data: &[u8]) -> Result<(), u32> {
        if self.state != State::Resuming {
            return Err(22);
        }
        self.loaded.extend_from_slice(data);
        self.longest = self.longest.max(data.len());
        match self.refuse_at {
            Some(limit) if self.loaded.len() > limit => Err(71),
            _ => Ok(()),
        }
    }
}

/// Ends what [`Device::hold`] began.
pub(super) fn let_go(device: &Mutex<Device>) {
    device.lock().unwrap().hold = false;
}

/// Serves the main socket, and the channel on a thread of its own.
pub(super) fn serve(peer: &mut Peer, device: &Arc<Mutex<Device>>) {
    let features = [
        extension::migration::PRECOPY_INFO,
        extension::migration::PENDING,
        extension::migration::MIG_CHANNEL,
        extension::migration::MIG_SHM,
        extension::migration::MIG_P2P,
        extension::migration::EXPLAIN,
    ];
    let capabilities = Capabilities {
        max_msg_fds: Some(4),
        max_data_xfer_size: Some(1 << 20),
        extension: Some(Extension {
            version: extension::VERSION,
            features: features.map(str::to_owned).to_vec(),
            ..Extension::default()
        }),
        ..Capabilities::default()
    };
    peer.negotiate(&capabilities, &[]);
    let mut channel = None;
    let mut memory = None;
    while let Some(mut request) = peer.next() {
        if request.header.command == u16::from(Command::MigChannel) {
            assert_eq!(request.body, [8, 0, 0, 0, 0, 0, 0, 0]);
            let end = UnixStream::from(request.fds.pop().unwrap());
            peer.reply(&request, &[], &[]);
            let device = Arc::clone(device);
            channel = Some(thread::spawn(move || {
                let mut peer = Peer::new(end);
                let mut memory = None;
                while let Some(mut request) = peer.next() {
                    answer(&mut peer, &mut request, &device, &mut memory);
                }
            }));
        } else {
            answer(peer, &mut request, device, &mut memory);
        }
    }
    if let Some(channel) = channel {
        channel.join().unwrap();
    }
}

fn answer(
    peer: &mut Peer,
    request: &mut Message,
    device: &Mutex<Device>,
    memory: &mut Option<File>,
) {
    let command = Command::try_from(request.header.command).unwrap();
    let reads = [Command::MigDataRead, Command::MigShmRead].contains(&command);
    while reads && device.lock().unwrap().hold {
        thread::yield_now();
    }
    let mut device = device.lock().unwrap();
    match reply(command, request, &mut device, memory) {
        Ok(body) => peer.reply(request, &body, &[]),
        Err(errno) => {
            let header = request.header.error_reply(errno);
            peer.sender.send(&header, &[], &[]).unwrap();
        }
    }
}

fn reply(
    command: Command,
    request: &mut Message,
    device: &mut Device,
    memory: &mut Option<File>,
) -> Result<Vec<u8>, u32> {
    let body = &request.body;
    Ok(match command {
        Command::DeviceFeature => return feature(body, device),
        Command::DeviceReset => {
            device.resets += 1;
            device.state = State::Running;
            Vec::new()
        }
        Command::RegionRead => [&body[..], &[0; 4]].concat(),
        Command::MigDataRead => {
            let size = word(body, 4);
            assert_eq!(word(body, 0), size + 8);
            let data = device.read(size as usize);
            let size = u32::try_from(data.len()).unwrap();
            let argsz = size + 8;
            [MigData { argsz, size }.as_bytes(), &data].concat()
        }
        Command::MigDataWrite => {
            assert_eq!(word(body, 4) as usize, body.len() - 8);
            device.write(&body[8..])?;
            Vec::new()
        }
        Command::MigShm => {
            *memory = Some(File::from(request.fds.pop().unwrap()));
            Vec::new()
        }
        Command::MigShmRead => {
            let mut transfer = wire::ShmTransfer::read_from_bytes(body).unwrap();
            let data = device.read(usize::try_from(transfer.size).unwrap());
            let short = data.len() < usize::try_from(transfer.size).unwrap();
            let memory = memory.as_ref().unwrap();
            memory.write_all_at(&data, transfer.offset).unwrap();
            transfer.size = data.len() as u64;
            transfer.flags = match device.state {
                State::StopCopy if short => wire::SHM_END_OF_STREAM,
                State::PreCopy if short => wire::SHM_END_OF_PRECOPY,
                _ => 0,
            };
            transfer.as_bytes().to_vec()
        }
        Command::MigShmWrite => {
            let transfer = wire::ShmTransfer::read_from_bytes(body).unwrap();
            let mut data = vec![0; usize::try_from(transfer.size).unwrap()];
            let memory = memory.as_ref().unwrap();
            memory.read_exact_at(&mut data, transfer.offset).unwrap();
            device.write(&data)?;
            body.clone()
        }
        Command::MigPrecopyInfo => {
            let (initial_bytes, dirty_bytes) = precopy(device);
            wire::PrecopyInfo {
                argsz: 24,
                flags: 0,
                initial_bytes,
                dirty_bytes,
            }
            .as_bytes()
            .to_vec()
        }
        Command::MigPending => {
            let (initial_bytes, dirty_bytes) = precopy(device);
            let stop_copy_bytes = device.size() - initial_bytes - dirty_bytes;
            wire::Pending {
                argsz: 48,
                flags: match initial_bytes {
                    0 => wire::PENDING_INITIAL_DONE,
                    _ => 0,
                },
                initial_bytes,
                dirty_bytes,
                stop_copy_bytes,
                total_bytes: device.size(),
                age_us: 0,
            }
            .as_bytes()
            .to_vec()
        }
        Command::Explain => [&body[..], b"Not\x1b\nfor this device"].concat(),
        other => panic!("{other:?}"),
    })
}

/// Initial and dirty bytes.
fn precopy(device: &Device) -> (u64, u64) {
    let ready = device.ready.len() as u64;
    match device.state {
        State::PreCopy if device.pass <= 1 => (ready, 0),
        State::PreCopy => (0, ready),
        _ => (0, 0),
    }
}

fn feature(body: &[u8], device: &mut Device) -> Result<Vec<u8>, u32> {
    let flags = word(body, 4);
    let fixed = Feature {
        argsz: word(body, 0),
        flags,
    };
    let data = match (flags & INDEX_MASK, flags & GET != 0) {
        _ if !device.migrates => return Err(25),
        (MIGRATION, true) => {
            let flags: u64 = if device.pre_copy { 7 } else { 3 };
            flags.as_bytes().to_vec()
        }
        (MIG_DEVICE_STATE, true) => DeviceState {
            device_state: device.state.into(),
            data_fd: -1,
        }
        .as_bytes()
        .to_vec(),
        (MIG_DEVICE_STATE, false) => {
            device.set_state(State::try_from(word(body, 8)).unwrap());
            Vec::new()
        }
        (MIG_DATA_SIZE, true) => device.size().as_bytes().to_vec(),
        (MIG_PRECOPY_INFO_V2, false) => return Err(25),
        other => panic!("{other:?}"),
    };
    Ok([fixed.as_bytes(), &data].concat())
}
