// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A client leaves while a driver works on its migration.

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, MutexGuard};

use vfio_user_protocol::extension::migration::MIG_CHANNEL;
use vfio_user_protocol::feature::{MIG_DEVICE_STATE, SET};
use vfio_user_protocol::migration::MigrationState::{self as State, *};

use super::*;
use crate::migration::{DataStream, MigrationDriver, Support};

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
