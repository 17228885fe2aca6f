// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration v2 of the kernel's VFIO: features of the device descriptor, and the data descriptor.
//!
//! Which of the two interfaces a device has is found here too. Answers are handed on as they come.

use std::thread;
use std::time::Duration;

use log::{debug, warn};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::VFIO_PRECOPY_INFO_REINIT;
use vfio_user_protocol::extension::migration::PrecopyInfo as PrecopyInfoBytes;
use vfio_user_protocol::migration::MigrationState;
use vm_memory::VolatileSlice;
use zerocopy::{FromZeros, IntoBytes};

use super::file::DataFile;
use super::migration_region;
use super::vfio::Vfio;
use crate::migration::{DataStream, MigrationDriver, PrecopyInfo, Support, Taken};

/// Between two tries with a driver that has nothing yet and cannot be polled.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a driver is polled before it is tried again: a reset of the device need not wake who polls.
const PATIENCE: Duration = Duration::from_millis(100);

/// How a device migrates.
#[derive(Debug)]
pub(super) struct Migration {
    /// How, for people.
    pub description: String,
    /// `None` if it does not.
    pub driver: Option<Box<dyn MigrationDriver>>,
}

impl Migration {
    /// Finds out: v2, else the region of v1. `driver` is the name of the device's driver, or empty.
    pub(super) fn find(vfio: &Vfio, indexes: u32, driver: &str) -> Self {
        if let Some(v2) = KernelMigration::find(vfio, driver) {
            return Self {
                description: v2.description(),
                driver: Some(Box::new(v2)),
            };
        }
        if let Some(v1) = migration_region::find(vfio, indexes, driver) {
            return Self {
                description: "v1 region".into(),
                driver: Some(Box::new(v1)),
            };
        }
        let space = if driver.is_empty() { "" } else { " " };
        Self {
            description: format!("none (the driver{space}{driver} has none)"),
            driver: None,
        }
    }

    /// Whether a reset ended whatever was going on; EIO if not.
    pub(super) fn check_running(&self) -> Result<(), Errno> {
        match self.driver.as_ref().map(|driver| driver.state()) {
            None | Some(Ok(MigrationState::Running)) => Ok(()),
            Some(Ok(state)) => {
                debug!("Migration state {state} after a reset");
                Err(Errno::IO)
            }
            Some(Err(errno)) => Err(errno),
        }
    }
}

/// A device whose driver has migration v2.
#[derive(Debug)]
struct KernelMigration {
    vfio: Vfio,
    support: Support,
    /// The kernel says in pre-copy information when there is new initial data.
    reinit: bool,
    data_version: String,
}

impl KernelMigration {
    /// `None` if the device does not have it.
    fn find(vfio: &Vfio, driver: &str) -> Option<Self> {
        let flags = match vfio.migration_flags() {
            Ok(flags) => flags,
            Err(errno) => {
                if errno != Errno::NOTTY {
                    warn!(
                        "VFIO_DEVICE_FEATURE_MIGRATION: {errno}; the device will not migrate by it"
                    );
                }
                return None;
            }
        };
        let support = Support::from_flags(flags)?;
        // Without PRE_COPY the answer would be EINVAL, and so it is not asked.
        let reinit = support.pre_copy
            && match vfio.enable_precopy_flags() {
                Ok(()) => true,
                // Kernels before it.
                Err(Errno::NOTTY | Errno::INVAL) => false,
                Err(errno) => {
                    warn!("VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2: {errno}");
                    false
                }
            };
        Some(Self {
            vfio: vfio.clone(),
            support,
            reinit,
            data_version: driver.into(),
        })
    }

    fn description(&self) -> String {
        let p2p = if self.support.p2p { ", P2P" } else { "" };
        let pre_copy = if self.support.pre_copy {
            ", PRE_COPY"
        } else {
            ""
        };
        format!("v2 (STOP_COPY{p2p}{pre_copy})")
    }
}

impl MigrationDriver for KernelMigration {
    fn support(&self) -> Support {
        self.support
    }

    fn data_version(&self) -> String {
        self.data_version.clone()
    }

    /// EIO for a state that is none.
    fn state(&self) -> Result<MigrationState, Errno> {
        let number = self.vfio.migration_state()?;
        MigrationState::try_from(number).map_err(|_| Errno::IO)
    }

    fn set_state(&self, next: MigrationState) -> Result<Option<Box<dyn DataStream>>, Errno> {
        let file = self.vfio.set_migration_state(next.into())?;
        Ok(file.map(|file| -> Box<dyn DataStream> {
            Box::new(KernelStream {
                file,
                reinit: self.reinit,
                waited: false,
            })
        }))
    }

    fn stop_copy_size(&self) -> Result<u64, Errno> {
        self.vfio.migration_data_size()
    }
}

/// The data descriptor of a transfer.
#[derive(Debug)]
struct KernelStream {
    file: Box<dyn DataFile>,
    reinit: bool,
    /// Nothing has moved since it was waited for.
    waited: bool,
}

impl DataStream for KernelStream {
    fn read(&mut self, into: &VolatileSlice<'_>) -> Result<Taken, Errno> {
        let length = retried(|| self.file.read(into))?;
        self.waited = false;
        if length > into.len() {
            return Err(Errno::IO);
        }
        Ok(Taken {
            length,
            ends_transaction: false,
        })
    }

    /// EIO if the driver takes nothing and says nothing.
    fn write(&mut self, from: &VolatileSlice<'_>, _ends_transaction: bool) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let length = retried(|| self.file.write(from))?;
        self.waited = false;
        match length {
            0 => Err(Errno::IO),
            length if length > from.len() => Err(Errno::IO),
            length => Ok(length),
        }
    }

    fn wait(&mut self) -> Result<(), Errno> {
        if self.waited {
            // Most drivers cannot be polled and always seem ready.
            thread::sleep(PAUSE);
        }
        self.waited = true;
        retried(|| self.file.wait(PATIENCE))
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let info = retried(|| {
            // Zero, since drivers may leave in it what was there.
            let mut info = PrecopyInfoBytes::new_zeroed();
            self.file.precopy_info(info.as_mut_bytes())?;
            Ok(info)
        })?;
        Ok(PrecopyInfo {
            initial: info.initial_bytes,
            dirty: info.dirty_bytes,
            reinit: self.reinit && info.flags & VFIO_PRECOPY_INFO_REINIT != 0,
        })
    }
}

/// Calls again when a signal came.
fn retried<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests;
