// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migration as a client of the bare specification does it, message by message, and with the extensions' layouts.

use std::os::fd::BorrowedFd;

use vfio_user_protocol::{
    Command, Request,
    extension::{self, migration::Query},
    feature::{DeviceState, Feature, GET, MIG_DEVICE_STATE, SET},
    migration::{MigData, MigrationState},
    version::{Capabilities, Extension},
};
use zerocopy::{FromBytes, IntoBytes};

use crate::raw_client::RawClient;

/// Capabilities that offer these features of the extension.
#[must_use]
pub fn offering(features: &[&str]) -> Capabilities {
    Capabilities {
        extension: Some(Extension {
            version: extension::VERSION,
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            ..Extension::default()
        }),
        ..Capabilities::default()
    }
}

/// Whoever can be asked to migrate.
pub trait Migrates {
    /// One DEVICE_FEATURE; the data of the reply.
    ///
    /// # Errors
    /// The errno of an error reply.
    fn feature(&mut self, flags: u32, argsz: usize, data: &[u8]) -> Result<Vec<u8>, u32>;

    /// Sets the migration state by its number.
    ///
    /// # Errors
    /// The errno of an error reply.
    fn try_set_state(&mut self, state: u32) -> Result<(), u32> {
        let data = DeviceState {
            device_state: state,
            data_fd: -1,
        };
        let reply = self.feature(MIG_DEVICE_STATE | SET, 16, data.as_bytes())?;
        assert_eq!(reply, data.as_bytes(), "the reply to a SET repeats it");
        Ok(())
    }

    /// Sets the migration state.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    fn set_state(&mut self, state: MigrationState) {
        if let Err(errno) = self.try_set_state(state.into()) {
            panic!("{state} refused with errno {errno}");
        }
    }

    /// The migration state.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    fn state(&mut self) -> MigrationState {
        let reply = match self.feature(MIG_DEVICE_STATE | GET, 16, &[]) {
            Ok(reply) => reply,
            Err(errno) => panic!("state not told: errno {errno}"),
        };
        let state = DeviceState::read_from_bytes(&reply).expect("8 bytes");
        assert_eq!(state.data_fd, -1);
        MigrationState::try_from(state.device_state).expect("a state")
    }

    /// One MIG_DATA_READ.
    ///
    /// # Errors
    /// The errno of an error reply.
    fn data_read(&mut self, size: usize) -> Result<Vec<u8>, u32>;

    /// One MIG_DATA_WRITE.
    ///
    /// # Errors
    /// The errno of an error reply.
    fn data_write(&mut self, data: &[u8]) -> Result<(), u32>;

    /// Everything there is now, `size` bytes at a time.
    ///
    /// # Errors
    /// The errno of an error reply.
    fn read_all(&mut self, size: usize) -> Result<Vec<u8>, u32> {
        let mut all = Vec::new();
        loop {
            let data = self.data_read(size)?;
            all.extend_from_slice(&data);
            if data.len() < size {
                return Ok(all);
            }
        }
    }

    /// Writes a stream, `size` bytes at a time.
    ///
    /// # Errors
    /// The errno of the first error reply.
    fn write_all(&mut self, stream: &[u8], size: usize) -> Result<(), u32> {
        stream
            .chunks(size)
            .try_for_each(|piece| self.data_write(piece))
    }

    /// The whole stream of a device that is stopped for it.
    ///
    /// # Panics
    /// When the backend refuses.
    #[track_caller]
    fn stop_and_copy(&mut self, size: usize) -> Vec<u8> {
        self.set_state(MigrationState::StopCopy);
        self.read_all(size).expect("the device's data")
    }
}

impl Migrates for RawClient {
    #[track_caller]
    fn feature(&mut self, flags: u32, argsz: usize, data: &[u8]) -> Result<Vec<u8>, u32> {
        let argsz = u32::try_from(argsz).expect("an argsz");
        let fixed = Feature { argsz, flags };
        let reply = self.request(&Request::DeviceFeature(fixed, data), &[])?;
        let (fixed, data) = Feature::read_from_prefix(&reply.body).expect("a feature");
        assert_eq!(fixed.flags, flags);
        Ok(data.to_vec())
    }

    #[track_caller]
    fn data_read(&mut self, size: usize) -> Result<Vec<u8>, u32> {
        let size = u32::try_from(size).expect("a size");
        let asked = MigData {
            argsz: size.saturating_add(8),
            size,
        };
        let reply = self.request(&Request::MigDataRead(asked), &[])?;
        let (fixed, data) = MigData::read_from_prefix(&reply.body).expect("migration data");
        assert_eq!(fixed.size as usize, data.len(), "no padding");
        assert!(fixed.size <= size);
        Ok(data.to_vec())
    }

    #[track_caller]
    fn data_write(&mut self, data: &[u8]) -> Result<(), u32> {
        let size = u32::try_from(data.len()).expect("a size");
        let fixed = MigData {
            argsz: size + 8,
            size,
        };
        let reply = self.request(&Request::MigDataWrite(fixed, data), &[])?;
        assert!(reply.body.is_empty());
        Ok(())
    }
}

/// Why the last request was refused (EXPLAIN).
///
/// # Panics
/// When the backend does not say.
#[track_caller]
pub fn explain(client: &mut RawClient) -> String {
    let asked = Query {
        argsz: 4096,
        flags: 0,
    };
    let no_fds: &[BorrowedFd<'_>] = &[];
    let reply = client.call(Command::Explain, asked.as_bytes(), no_fds);
    let body = reply.expect("a reason").body;
    String::from_utf8(body[size_of::<Query>()..].to_vec()).expect("UTF-8")
}
