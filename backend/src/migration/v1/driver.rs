// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A v1 region as a [`MigrationDriver`]: its states, and the streams of saving and resuming.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_STATE_V1_RESUMING, VFIO_DEVICE_STATE_V1_RUNNING, VFIO_DEVICE_STATE_V1_SAVING,
    VFIO_DEVICE_STATE_V1_STOP,
};
use vfio_user_protocol::migration::MigrationState::{self as State, *};
use vm_memory::VolatileSlice;

use super::access::{Region, RegionAccess};
use super::error::V1Error;
use super::load::Load;
use super::save::Save;
use crate::migration::{DataStream, MigrationDriver, PrecopyInfo, Support, Taken, states};
use crate::ratelimit::peer_log;

/// Every driver has pre-copy, if only without data, and none has P2P.
const SUPPORT: Support = Support {
    p2p: false,
    pre_copy: true,
};
/// The bits of `device_state` that are ours; the others are kept as they are.
const STATE_MASK: u32 =
    VFIO_DEVICE_STATE_V1_RUNNING | VFIO_DEVICE_STATE_V1_SAVING | VFIO_DEVICE_STATE_V1_RESUMING;
const PRE_COPY: u32 = VFIO_DEVICE_STATE_V1_RUNNING | VFIO_DEVICE_STATE_V1_SAVING;
/// What trapped data passes through, in bytes.
const BOUNCE: usize = 64 << 10;

/// Between two tries with a driver that says EAGAIN.
const PAUSE: Duration = Duration::from_millis(1);

/// The bits of a state.
fn bits(state: State) -> Option<u32> {
    match state {
        Stop => Some(VFIO_DEVICE_STATE_V1_STOP),
        Running => Some(VFIO_DEVICE_STATE_V1_RUNNING),
        StopCopy => Some(VFIO_DEVICE_STATE_V1_SAVING),
        PreCopy => Some(PRE_COPY),
        Resuming => Some(VFIO_DEVICE_STATE_V1_RESUMING),
        Error | RunningP2p | PreCopyP2p => None,
    }
}

/// The state of `device_state`. What is neither a state nor the encoding of an error is one.
fn state_of(word: u32) -> State {
    match word & STATE_MASK {
        VFIO_DEVICE_STATE_V1_STOP => Stop,
        VFIO_DEVICE_STATE_V1_RUNNING => Running,
        VFIO_DEVICE_STATE_V1_SAVING => StopCopy,
        PRE_COPY => PreCopy,
        VFIO_DEVICE_STATE_V1_RESUMING => Resuming,
        _ => Error,
    }
}

/// A device that migrates through a v1 region.
///
/// A section that was read in part when PRE_COPY becomes STOP_COPY is read on if the driver still has it;
/// whoever can should change the state at the end of a transaction.
#[derive(Debug)]
pub struct V1Migration {
    shared: Arc<Shared>,
    data_version: String,
}

#[derive(Debug)]
struct Shared {
    region: Region,
    /// Held during accesses that may block, but not for the state: that can always be asked.
    session: Mutex<Session>,
}

/// One transfer.
#[derive(Debug, Default)]
struct Session {
    /// Which one; a stream of another one is over.
    number: u64,
    save: Save,
    load: Load,
}

impl V1Migration {
    /// Takes a region that its driver calls one of migration.
    ///
    /// # Errors
    /// The errno of its first register, or EINVAL for a region without data.
    pub fn new(access: Box<dyn RegionAccess>, data_version: String) -> Result<Self, Errno> {
        let region = Region::new(access);
        if !region.layout().is_data(super::layout::REGISTERS, 1) {
            return Err(Errno::INVAL);
        }
        region.device_state().map_err(V1Error::errno)?;
        let session = Mutex::default();
        Ok(Self {
            shared: Arc::new(Shared { region, session }),
            data_version,
        })
    }

    fn stream(&self, number: u64) -> Box<dyn DataStream> {
        Box::new(Stream {
            shared: Arc::clone(&self.shared),
            number,
            bounce: vec![0; BOUNCE].into_boxed_slice(),
        })
    }
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> Result<State, V1Error> {
        self.region.device_state().map(state_of)
    }

    /// Takes an arc from the state of `word`. The ways that the interface publishes lead into RESUMING and out of
    /// it from RUNNING and to RUNNING only: a driver that holds to them is led from STOP, or to it, over RUNNING.
    fn change(&self, word: u32, next: State) -> Result<(), V1Error> {
        let now = state_of(word);
        let set = |state| {
            let bits = bits(state).ok_or(V1Error::Refused(Errno::INVAL))?;
            self.region.set_device_state(word & !STATE_MASK | bits)
        };
        let refused = set(next);
        let has_detour = matches!((now, next), (Stop, Resuming) | (Resuming, Stop));
        if refused != Err(V1Error::Refused(Errno::INVAL)) || !has_detour || self.state()? != now {
            return refused;
        }
        set(Running)?;
        set(next)
    }
}

impl MigrationDriver for V1Migration {
    fn support(&self) -> Support {
        SUPPORT
    }

    fn data_version(&self) -> String {
        self.data_version.clone()
    }

    fn state(&self) -> Result<State, Errno> {
        self.shared.state().map_err(V1Error::errno)
    }

    fn set_state(&self, next: State) -> Result<Option<Box<dyn DataStream>>, Errno> {
        let mut session = self.shared.session();
        let word = self.shared.region.device_state().map_err(V1Error::errno)?;
        let now = state_of(word);
        if !states::way(now, next, SUPPORT).is_ok_and(|way| way == [next]) {
            return Err(Errno::INVAL);
        }
        if now == Resuming {
            // The driver would go on with what it has.
            session.load.check_complete().map_err(told)?;
        }
        self.shared.change(word, next).map_err(V1Error::errno)?;
        if (now, next) == (PreCopy, StopCopy) {
            session.save.state_changed();
            return Ok(None);
        }
        *session = Session {
            number: session.number.wrapping_add(1),
            ..Session::default()
        };
        let opens = matches!(next, PreCopy | StopCopy | Resuming);
        Ok(opens.then(|| self.stream(session.number)))
    }

    /// What is pending, which says something only while the device is saved; ENOTTY else.
    fn stop_copy_size(&self) -> Result<u64, Errno> {
        let mut session = self.shared.session();
        match self.shared.state().map_err(V1Error::errno)? {
            PreCopy | StopCopy => {
                let pending = session.save.pending(&self.shared.region);
                pending.map_err(V1Error::errno)
            }
            _ => Err(Errno::NOTTY),
        }
    }
}

/// The data of one transfer. Over as soon as the device is in a state without data, by whatever way it came
/// there.
struct Stream {
    shared: Arc<Shared>,
    number: u64,
    bounce: Box<[u8]>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// The transfer and the state of the device, if the transfer is still this one.
    fn session<'a>(
        shared: &'a Shared,
        number: u64,
    ) -> Result<(MutexGuard<'a, Session>, State), V1Error> {
        let session = shared.session();
        if session.number != number {
            return Err(V1Error::Over);
        }
        match shared.state()? {
            Error => Err(V1Error::Failed),
            state => Ok((session, state)),
        }
    }
}

impl DataStream for Stream {
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<Taken, Errno> {
        let (mut session, state) = Self::session(&self.shared, self.number).map_err(told)?;
        let last = match state {
            PreCopy => false,
            StopCopy => true,
            _ => return Err(Errno::NODEV),
        };
        session
            .save
            .read(&self.shared.region, last, into, &mut self.bounce)
            .map_err(told)
    }

    fn write(&mut self, from: &VolatileSlice<'_>, ends_transaction: bool) -> Result<usize, Errno> {
        let (mut session, state) = Self::session(&self.shared, self.number).map_err(told)?;
        if state != Resuming {
            return Err(Errno::NODEV);
        }
        let bounce = &mut self.bounce;
        session
            .load
            .write(&self.shared.region, from, ends_transaction, bounce)
            .map_err(told)
    }

    /// There is nothing to wait on.
    fn wait(&mut self) -> Result<(), Errno> {
        thread::sleep(PAUSE);
        Ok(())
    }

    /// Nothing is initial; what is pending is dirty.
    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let (mut session, state) = Self::session(&self.shared, self.number).map_err(told)?;
        if state != PreCopy {
            return Err(Errno::INVAL);
        }
        let dirty = session.save.pending(&self.shared.region).map_err(told)?;
        Ok(PrecopyInfo {
            dirty,
            ..PrecopyInfo::default()
        })
    }
}

/// The errno of an error; what it says beyond that goes to the log, once for each transfer, and no more often than any peer's line.
fn told(error: V1Error) -> Errno {
    match error {
        V1Error::Refused(_) | V1Error::Failed | V1Error::Over => {}
        error => peer_log!(Warn, "Migration region: {error}"),
    }
    error.errno()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_their_bits() {
        for state in State::ALL {
            match bits(state) {
                Some(bits) => assert_eq!(state_of(0xffff_fff8 | bits), state),
                None => assert!(!states::exists(state, SUPPORT) || state == Error),
            }
        }
        for invalid in 5..8 {
            assert_eq!(state_of(invalid), Error);
        }
    }
}
