// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much is left to be moved, as a client asks for it.

use std::time::Instant;

use rustix::io::Errno;
use vfio_user_protocol::migration::MigrationState as State;

use super::driver::{MigrationDriver, PrecopyInfo};
use super::error::Error;
use super::estimate::{Estimate, Pending};
use super::session::{Inner, Migration, Transfer};
use super::source::Source;

/// What is left to be moved, for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The figures.
    pub pending: Pending,
    /// The driver was asked for them just now.
    pub exact: bool,
    /// A source handed all initial data out, a destination has all that was sent with its driver.
    pub initial_done: bool,
}

impl Migration {
    /// `VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`: the driver's estimate of a stop-copy, in bytes.
    ///
    /// # Errors
    /// What the driver says; ENOTTY for garbage, as 0 would be taken for next to nothing.
    pub fn data_size(&self) -> Result<u64, Error> {
        let _inner = self.lock();
        let what = "Asking for the size of a stop-copy";
        let size = self.driver()?.stop_copy_size();
        let size = size.map_err(|errno| Error::Driver { what, errno })?;
        if i64::try_from(size).is_err() {
            let errno = Errno::NOTTY;
            return Err(Error::Driver { what, errno });
        }
        Ok(size)
    }

    /// `VFIO_MIG_GET_PRECOPY_INFO`; garbage is 0.
    ///
    /// # Errors
    /// [`Error::WrongState`] outside pre-copy, or what the driver says.
    pub fn precopy_info(&self) -> Result<PrecopyInfo, Error> {
        let mut inner = self.lock();
        let driver = self.driver()?;
        let state = self.last_state();
        let wrong = Error::WrongState {
            what: "Pre-copy information",
            state,
        };
        if !matches!(state, State::PreCopy | State::PreCopyP2p) {
            return Err(wrong);
        }
        let Transfer::Saving(mut source) = std::mem::take(&mut inner.transfer) else {
            return Err(wrong);
        };
        let asked = self.ask_sizes(&mut inner, driver, &mut source);
        let reinit = asked.is_ok() && source.take_reinit();
        inner.transfer = Transfer::Saving(source);
        asked?;
        let Pending { initial, dirty, .. } = inner.estimate.pending(Instant::now());
        Ok(PrecopyInfo {
            initial,
            dirty,
            reinit,
        })
    }

    /// What is left to be moved; the driver is asked if `exact`, and if nothing moves yet.
    ///
    /// # Errors
    /// [`Error::NotSupported`], or what the driver says.
    pub fn pending(&self, exact: bool) -> Result<Report, Error> {
        let mut inner = self.lock();
        let driver = self.driver()?;
        let mut exact_now = false;
        let initial_done = match std::mem::take(&mut inner.transfer) {
            Transfer::Saving(mut source) => {
                if exact && matches!(self.last_state(), State::PreCopy | State::PreCopyP2p) {
                    exact_now = self.ask_sizes(&mut inner, driver, &mut source).is_ok();
                }
                let done = source.initial_done();
                inner.transfer = Transfer::Saving(source);
                done
            }
            Transfer::Loading(sink) => {
                let initial_done = sink.initial_done();
                inner.transfer = Transfer::Loading(sink);
                return Ok(Report {
                    pending: Pending::default(),
                    exact: false,
                    initial_done,
                });
            }
            other @ (Transfer::None | Transfer::Undone) => {
                inner.transfer = other;
                // Nothing moves yet: what a stop-copy would give is all there is to say, and always asked.
                inner.estimate = Estimate::new(Instant::now());
                ask_stop_copy(&mut inner.estimate, driver);
                exact_now = true;
                // A device without pre-copy has no initial data that a switch-over would wait for.
                !driver.support().pre_copy
            }
        };
        Ok(Report {
            pending: inner.estimate.pending(Instant::now()),
            exact: exact_now,
            initial_done,
        })
    }

    /// Asks the driver for its figures of pre-copy and stop-copy.
    pub(super) fn ask_sizes(
        &self,
        inner: &mut Inner,
        driver: &dyn MigrationDriver,
        source: &mut Source,
    ) -> Result<PrecopyInfo, Error> {
        let what = "Asking what is left of pre-copy";
        let info = source.precopy_info();
        if let Ok(info) = info {
            inner.estimate.told_precopy(info, Instant::now());
        }
        if let Ok(whole) = driver.stop_copy_size() {
            inner.estimate.told_whole(whole);
        }
        info.map_err(|errno| Error::Driver { what, errno })
    }
}

/// Asks how much a device gives that is stopped, or would be.
pub(super) fn ask_stop_copy(estimate: &mut Estimate, driver: &dyn MigrationDriver) {
    estimate.stopped(Instant::now());
    if let Ok(whole) = driver.stop_copy_size() {
        estimate.told_whole(whole);
    }
}
