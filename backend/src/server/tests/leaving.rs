// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client leaves while a driver works on its migration.

use std::ops::RangeInclusive;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Condvar, Mutex, MutexGuard};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_user_protocol::dma::{DmaMap, MAP_READ, MAP_WRITE};
use vfio_user_protocol::extension::migration::MIG_CHANNEL;
use vfio_user_protocol::feature::{
    DMA_LOGGING_REPORT, DMA_LOGGING_START, DmaLoggingControl, DmaLoggingRange, DmaLoggingReport,
    GET, MIG_DEVICE_STATE, SET,
};
use vfio_user_protocol::migration::MigrationState::{self as State, *};
use vm_memory::VolatileSlice;

use super::*;
use crate::memory::{DirtyTracker, Mark};
use crate::migration::{DataStream, MigrationDriver, PrecopyInfo, Support, Taken};

const MIB: u64 = 1 << 20;

/// The body of a request for a state.
fn to_state(state: State) -> [u32; 4] {
    [16, MIG_DEVICE_STATE | SET, state.into(), u32::MAX]
}

/// A driver whose first arc waits for a reset, and is over before that is.
#[derive(Debug)]
struct Parking {
    state: Mutex<State>,
    arcs: Mutex<Vec<State>>,
    /// Says that the first arc is under way, and waits for the reset.
    first: Mutex<Option<(Sender<()>, Receiver<()>)>>,
    /// Says that it is over.
    over: Sender<()>,
}

impl Parking {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl MigrationDriver for Parking {
    fn support(&self) -> Support {
        Support::default()
    }

    fn data_version(&self) -> String {
        String::new()
    }

    fn state(&self) -> Result<State, Errno> {
        Ok(*self.state())
    }

    fn set_state(&self, next: State) -> Result<Option<Box<dyn DataStream>>, Errno> {
        let first = self.first.lock().unwrap().take();
        if let Some((there, reset)) = &first {
            there.send(()).unwrap();
            reset.recv().unwrap();
        }
        *self.state() = next;
        self.arcs.lock().unwrap().push(next);
        if first.is_some() {
            self.over.send(()).unwrap();
        }
        Ok(None)
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        Err(Errno::NOTTY)
    }
}

#[test]
fn a_reset_in_the_midst_of_a_change_of_state_is_made_good() {
    let (there, parked) = mpsc::channel();
    let (resets, reset) = mpsc::channel();
    let (over, is_over) = mpsc::channel();
    let driver = Arc::new(Parking {
        state: Mutex::new(Running),
        arcs: Mutex::default(),
        first: Mutex::new(Some((there, reset))),
        over,
    });
    let is_over = Mutex::new(is_over);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let function = function_of(|gpu| {
        let driver = Arc::clone(&driver);
        let known = Arc::clone(&driver);
        let reset = move |gpu: &ModelGpu, cause| {
            *known.state() = Running;
            // The first time an arc comes in between, as a kernel finds that asks what the reset left.
            if resets.send(()).is_ok() {
                is_over.lock().unwrap().recv().unwrap();
            }
            match *known.state() {
                Running => gpu.reset(cause),
                _ => Err(io_error()),
            }
        };
        let mut device = Altered::new(gpu, reset);
        device.driver = Some(driver);
        Arc::new(device)
    });
    let (session, receiver) = Session::new(function, ours, true).unwrap();
    let session = thread::spawn(move || session.run(receiver));
    let mut client = Peer::new(theirs);
    client.negotiate(&[MIG_CHANNEL]);
    let channel = client.open_channel();
    let request = Header::request(1, Command::DeviceFeature, 16);
    let body = to_state(Resuming);
    channel
        .sender
        .send(&request, &[body.as_bytes()], &[])
        .unwrap();
    parked.recv().unwrap();
    drop(client);
    session.join().unwrap().unwrap();
    assert_eq!(*driver.arcs.lock().unwrap(), [Stop], "and no arc after it");
    assert_eq!(*driver.state(), Running);
}

/// Shares a MiB of memory at address 0.
fn map(client: &mut Peer) {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, MIB).unwrap();
    let map = DmaMap {
        argsz: 32,
        flags: MAP_READ | MAP_WRITE,
        size: MIB,
        ..DmaMap::default()
    };
    let request = Header::request(1, Command::DmaMap, size_of::<DmaMap>());
    let sent = client
        .sender
        .send(&request, &[map.as_bytes()], &[memory.as_fd()]);
    sent.unwrap();
    assert_eq!(client.next().expect("a reply").0.error(), None);
}

/// Tells nothing of what was written until the device is reset.
#[derive(Debug)]
struct SilentTracker {
    /// Told when it is asked.
    asked: Sender<()>,
    reset: Mutex<bool>,
    changed: Condvar,
}

impl DirtyTracker for SilentTracker {
    fn start(&self, _: u64, _: &[RangeInclusive<u64>]) -> Result<(), Errno> {
        Ok(())
    }

    fn stop(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn collect(
        &self,
        _: &RangeInclusive<u64>,
        _: &RangeInclusive<u64>,
        _: &mut Mark<'_>,
    ) -> Result<(), Errno> {
        self.asked.send(()).unwrap();
        let reset = self.reset.lock().unwrap();
        drop(self.changed.wait_while(reset, |reset| !*reset).unwrap());
        Err(Errno::NODEV)
    }
}

#[test]
fn a_driver_that_does_not_tell_what_was_written_is_reset() {
    for (reset_on_disconnect, on_channel) in [(true, true), (false, true), (true, false)] {
        let (asked, is_asked) = mpsc::channel();
        let function = function_of(|gpu| {
            let tracker = Arc::new(SilentTracker {
                asked,
                reset: Mutex::new(false),
                changed: Condvar::new(),
            });
            let known = Arc::clone(&tracker);
            let reset = move |gpu: &ModelGpu, cause| {
                *known.reset.lock().unwrap() = true;
                known.changed.notify_all();
                gpu.reset(cause)
            };
            let mut device = Altered::new(gpu, reset);
            device.tracker = Some(tracker);
            Arc::new(device)
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _served = serve_at(&path, function, reset_on_disconnect);
        let mut client = Peer::new(UnixStream::connect(&path).unwrap());
        client.negotiate(&[MIG_CHANNEL]);
        map(&mut client);
        let feature = |argsz: u32, flags: u32, data: &[u8]| {
            [&argsz.to_ne_bytes(), &flags.to_ne_bytes(), data].concat()
        };
        let control = DmaLoggingControl {
            page_size: 4096,
            num_ranges: 1,
            reserved: 0,
        };
        let length = MIB;
        let range = DmaLoggingRange { iova: 0, length };
        let start = [control.as_bytes(), range.as_bytes()].concat();
        let start = feature(4096, DMA_LOGGING_START | SET, &start);
        let (started, ..) = client.call(Command::DeviceFeature, &start);
        assert_eq!(started.error(), None);
        let channel = on_channel.then(|| client.open_channel());
        let report = DmaLoggingReport {
            iova: 0,
            length,
            page_size: 4096,
        };
        let report = feature(4096, DMA_LOGGING_REPORT | GET, report.as_bytes());
        let request = Header::request(1, Command::DeviceFeature, report.len());
        let asking = channel.as_ref().unwrap_or(&client);
        asking.sender.send(&request, &[&report], &[]).unwrap();
        is_asked.recv_timeout(PATIENCE).expect("a report asked for");
        drop(client);
        let mut next = Peer::new(UnixStream::connect(&path).unwrap());
        next.negotiate(&[]);
    }
}

/// Data that says so when it is closed.
#[derive(Debug)]
struct Data(Sender<()>);

impl DataStream for Data {
    fn read(&mut self, _: &VolatileSlice<'_>) -> Result<Taken, Errno> {
        Ok(Taken::default())
    }

    fn write(&mut self, from: &VolatileSlice<'_>, _: bool) -> Result<usize, Errno> {
        Ok(from.len())
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        Ok(PrecopyInfo::default())
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        self.0.send(()).unwrap();
    }
}

/// A driver with one data stream.
#[derive(Debug)]
struct OneStream {
    state: Mutex<State>,
    data: Mutex<Option<Data>>,
}

impl MigrationDriver for OneStream {
    fn support(&self) -> Support {
        Support {
            pre_copy: true,
            p2p: false,
        }
    }

    fn data_version(&self) -> String {
        String::new()
    }

    fn state(&self) -> Result<State, Errno> {
        Ok(*self.state.lock().unwrap())
    }

    fn set_state(&self, next: State) -> Result<Option<Box<dyn DataStream>>, Errno> {
        *self.state.lock().unwrap() = next;
        let data = self.data.lock().unwrap().take();
        Ok(data.map(|data| Box::new(data) as _))
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        Err(Errno::NOTTY)
    }
}

#[test]
fn a_transfer_is_let_go_of_when_its_client_leaves() {
    let (closes, closed) = mpsc::channel();
    let function = function_of(|gpu| {
        let driver = Arc::new(OneStream {
            state: Mutex::new(Running),
            data: Mutex::new(Some(Data(closes))),
        });
        let known = Arc::clone(&driver);
        let reset = move |gpu: &ModelGpu, cause| {
            *known.state.lock().unwrap() = Running;
            gpu.reset(cause)
        };
        let mut device = Altered::new(gpu, reset);
        device.driver = Some(driver);
        Arc::new(device)
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, receiver) = Session::new(Arc::clone(&function), ours, true).unwrap();
    let session = thread::spawn(move || session.run(receiver));
    let mut client = Peer::new(theirs);
    client.negotiate(&[]);
    let (saves, ..) = client.call(Command::DeviceFeature, to_state(PreCopy).as_bytes());
    assert_eq!(saves.error(), None);
    assert!(closed.try_recv().is_err(), "open");
    drop(client);
    session.join().unwrap().unwrap();
    assert_eq!(
        closed.try_recv(),
        Ok(()),
        "though the function is still there"
    );
    drop(function);
}

/// A driver that notes how much of the guest's memory the device reaches, change by change.
#[derive(Debug)]
struct Watching {
    memory: Arc<AddressSpace>,
    state: Mutex<State>,
    reached: Mutex<Vec<(State, usize)>>,
}

impl MigrationDriver for Watching {
    fn support(&self) -> Support {
        Support::default()
    }

    fn data_version(&self) -> String {
        String::new()
    }

    fn state(&self) -> Result<State, Errno> {
        Ok(*self.state.lock().unwrap())
    }

    fn set_state(&self, next: State) -> Result<Option<Box<dyn DataStream>>, Errno> {
        *self.state.lock().unwrap() = next;
        let maps = self.memory.len();
        self.reached.lock().unwrap().push((next, maps));
        Ok(None)
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        Err(Errno::NOTTY)
    }
}

#[test]
fn a_device_that_is_kept_goes_on_without_the_memory_of_its_guest() {
    let mut watching = None;
    let function = function_in(|gpu, memory| {
        let driver = Arc::new(Watching {
            memory: Arc::clone(memory),
            state: Mutex::new(Running),
            reached: Mutex::default(),
        });
        watching = Some(Arc::clone(&driver));
        let mut device = Altered::new(gpu, ModelGpu::reset);
        device.driver = Some(driver);
        Arc::new(device)
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (session, receiver) = Session::new(function, ours, false).unwrap();
    let session = thread::spawn(move || session.run(receiver));
    let mut client = Peer::new(theirs);
    client.negotiate(&[]);
    map(&mut client);
    let (stopped, ..) = client.call(Command::DeviceFeature, to_state(Stop).as_bytes());
    assert_eq!(stopped.error(), None);
    drop(client);
    session.join().unwrap().unwrap();
    let reached = watching.unwrap();
    assert_eq!(*reached.reached.lock().unwrap(), [(Stop, 1), (Running, 0)]);
}
