// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The data stream of a model GPU, good for one transfer, and the faults that show on it.

use std::sync::{Arc, MutexGuard};

use log::debug;
use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState;
use vm_memory::VolatileSlice;

use super::{Data, Shared, State, Transfer};
use crate::migration::{DataStream, Lent, PrecopyInfo, Taken};

/// The stream of one transfer.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    number: u64,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, number: u64) -> Self {
        Self { shared, number }
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, Errno> {
        self.shared.parts.go_on()?;
        Ok(self.shared.lock())
    }
}

impl State {
    /// The transfer, if it is still that of this stream.
    fn current(&mut self, number: u64) -> Result<&mut Transfer, Errno> {
        let current = self.transfer.as_mut().filter(|t| t.number == number);
        current.ok_or(Errno::NODEV)
    }
}

impl Transfer {
    /// As many of `wanted` bytes as come before an error that was asked for.
    fn before_error(&mut self, wanted: usize, error_at: Option<u64>) -> Result<usize, Errno> {
        if let Some(errno) = self.failed {
            return Err(errno);
        }
        let Some(at) = error_at else {
            return Ok(wanted);
        };
        let left = at.saturating_sub(self.moved);
        if left == 0 && wanted > 0 {
            return Err(self.fails(Errno::IO));
        }
        Ok(usize::try_from(left).map_or(wanted, |left| left.min(wanted)))
    }

    /// It fails, now and from now on.
    fn fails(&mut self, errno: Errno) -> Errno {
        self.failed = Some(errno);
        errno
    }
}

impl DataStream for Stream {
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<Taken, Errno> {
        let faults = &self.shared.faults;
        let mut state = self.lock()?;
        state.current(self.number)?;
        let mut state = self.shared.pause(state, faults.slow_save)?;
        let stopped = state.at == MigrationState::StopCopy;
        let transfer = state.current(self.number)?;
        let length = transfer.before_error(into.len(), faults.read_error)?;
        let Data::Saving(saving) = &mut transfer.data else {
            return Err(Errno::BADF);
        };
        let into = into.subslice(0, length).map_err(|_| Errno::INVAL)?;
        let given = match saving.read(&into, &self.shared.parts) {
            Ok(given) => given,
            Err(Errno::NODEV) => return Err(Errno::NODEV),
            Err(errno) => return Err(transfer.fails(errno)),
        };
        transfer.moved = transfer.moved.saturating_add(given as u64);
        if given == 0 && length > 0 && !stopped && !faults.zero_in_precopy {
            return Err(Errno::NOMSG);
        }
        Ok(Taken {
            length: given,
            ends_transaction: false,
        })
    }

    fn lend(&mut self, most: usize) -> Option<Lent> {
        let faults = &self.shared.faults;
        if faults.slow_save.is_some() || faults.read_error.is_some() {
            return None;
        }
        let mut state = self.lock().ok()?;
        let stopped = state.at == MigrationState::StopCopy;
        let transfer = state.current(self.number).ok()?;
        let Data::Saving(saving) = &mut transfer.data else {
            return None;
        };
        if !stopped || transfer.failed.is_some() {
            return None;
        }
        let lent = saving.lend(most, &self.shared.parts)?;
        transfer.moved = transfer.moved.saturating_add(lent.length as u64);
        Some(lent)
    }

    fn write(&mut self, from: &VolatileSlice<'_>, _: bool) -> Result<usize, Errno> {
        let mut state = self.lock()?;
        let transfer = state.current(self.number)?;
        let length = transfer.before_error(from.len(), self.shared.faults.write_error)?;
        let Data::Loading(loading) = &mut transfer.data else {
            return Err(Errno::BADF);
        };
        let from = from.subslice(0, length).map_err(|_| Errno::INVAL)?;
        if let Err(bad) = loading.write(&from, &self.shared.parts) {
            debug!("Migration data refused: {bad}");
            return Err(transfer.fails(bad.errno()));
        }
        transfer.moved = transfer.moved.saturating_add(length as u64);
        Ok(length)
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let mut state = self.lock()?;
        let at = state.at;
        let shared = &self.shared;
        let transfer = state.current(self.number)?;
        if !matches!(at, MigrationState::PreCopy | MigrationState::PreCopyP2p) {
            return Err(Errno::INVAL);
        }
        let Data::Saving(saving) = &mut transfer.data else {
            return Err(Errno::INVAL);
        };
        let due = shared.faults.reinit.is_some_and(|at| transfer.moved >= at);
        let reinit = due && !std::mem::replace(&mut transfer.began_again, true);
        if reinit {
            saving.begin_again(&shared.parts)?;
        } else if saving.pass_left() == 0 {
            saving.begin_pass(&shared.parts)?;
        }
        let (first, left) = (saving.is_first(), saving.pass_left());
        Ok(PrecopyInfo {
            initial: shared.told(&mut state, if first { left } else { 0 }),
            dirty: shared.told(&mut state, if first { 0 } else { left }),
            reinit,
        })
    }
}
