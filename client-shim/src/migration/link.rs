// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where migration's requests go: a socket of their own, or the main one. A channel that broke is not opened again:
//! the main socket takes migration's commands still, without a time limit, and data goes by message.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::memory::SharedMemory;
use super::pending::{Pending, PrecopyInfo, known};
use crate::client::{expect_empty, lock};
use crate::connection::Connection;
use crate::feature::is_unsupported;
use crate::info::size_u32;
use crate::protocol::codec::Reader;
use crate::protocol::extension::migration as wire;
use crate::protocol::feature::{
    DeviceState, Feature, GET, MIG_DATA_SIZE, MIG_DEVICE_STATE, MIG_PRECOPY_INFO_V2, SET,
};
use crate::protocol::migration::MigrationState;
use crate::protocol::transport::{self, Sender};
use crate::protocol::{Command, DecodeError};
use crate::{Error, MigrationFeatures, Negotiated};

/// One per client.
#[derive(Debug)]
pub(crate) struct Link {
    main: Arc<Mutex<Connection>>,
    channel: Option<Mutex<Connection>>,
    /// For ending a wait from outside the mutex.
    sender: Option<Sender>,
    /// Registered at the first transfer that can use it.
    memory: Mutex<Option<Arc<SharedMemory>>>,
    /// A transfer is under way.
    taken: AtomicBool,
    pub(super) features: MigrationFeatures,
    /// Bytes of data in one message.
    pub(super) transfer_size: usize,
}

impl Link {
    /// Opens the channel where it was granted.
    pub(crate) fn open(
        main: Arc<Mutex<Connection>>,
        negotiated: &Negotiated,
        timeout: Option<Duration>,
        max_message: usize,
    ) -> Result<Self, Error> {
        let features = negotiated.migration;
        let channel = if features.channel {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_read_timeout(timeout)?;
            ours.set_write_timeout(timeout)?;
            let request = wire::Query {
                argsz: size_u32::<wire::Query>(),
                flags: 0,
            };
            let parts = [request.as_bytes()];
            let fds = [theirs.as_fd()];
            lock(&main).call(Command::MigChannel, &parts, &fds, |body, _| {
                expect_empty(body)
            })?;
            let mut channel = Connection::new(transport::split(ours, max_message), timeout);
            channel.set_explain(negotiated.explain);
            Some(channel)
        } else {
            None
        };
        let limit = usize::try_from(negotiated.max_data_xfer_size).unwrap_or(usize::MAX);
        Ok(Self {
            main,
            sender: channel.as_ref().map(|channel| channel.sender().clone()),
            channel: channel.map(Mutex::new),
            memory: Mutex::new(None),
            taken: AtomicBool::new(false),
            features,
            transfer_size: limit,
        })
    }

    /// Ends the channel; a call that waits on it returns.
    pub(crate) fn disconnect(&self) {
        if let Some(sender) = &self.sender {
            // Fails only if the socket is already shut down.
            let _ = sender.stream().shutdown(Shutdown::Both);
        }
    }

    /// Makes a transfer the only one.
    pub(super) fn take(&self) -> Result<(), Error> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return Err(Error::InvalidArgument(
                "A transfer of this device is under way",
            ));
        }
        Ok(())
    }

    pub(super) fn release(&self) {
        self.taken.store(false, Ordering::Release);
    }

    /// For the data of a transfer, which stays where it began: bytes are lost with a channel that breaks.
    pub(super) fn data(&self, apart: bool) -> MutexGuard<'_, Connection> {
        let channel = self.channel.as_ref().filter(|_| apart);
        lock(channel.unwrap_or(&self.main))
    }

    /// Whether there is a socket that nothing else waits for: only there can requests be sent ahead.
    pub(super) fn is_apart(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_some_and(|channel| !lock(channel).is_broken())
    }

    /// For whatever does not depend on what went before: over the channel while it is whole, else over the main socket.
    fn call<T>(
        &self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        read: impl FnOnce(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, Error> {
        let read = |body: &[u8], _: Vec<OwnedFd>| read(body);
        let Some(channel) = &self.channel else {
            return lock(&self.main).call(command, parts, fds, read);
        };
        let mut channel = lock(channel);
        if !channel.is_broken() {
            return channel.call(command, parts, fds, read);
        }
        drop(channel);
        // The driver may still be busy with what the channel did not wait for; the guest must not lose this one, too.
        lock(&self.main).call_patiently(command, parts, fds, read)
    }

    /// The memory that data goes through, where that was granted; the server forgets it with the channel.
    pub(super) fn memory(&self) -> Result<Option<Arc<SharedMemory>>, Error> {
        if !self.features.shared_memory || self.is_apart() != self.features.channel {
            return Ok(None);
        }
        let mut memory = lock(&self.memory);
        if memory.is_none() {
            let made = SharedMemory::new().map_err(Error::SharedMemory)?;
            let request = wire::MigShm {
                argsz: size_u32::<wire::MigShm>(),
                flags: 0,
                size: made.size(),
            };
            let parts = [request.as_bytes()];
            let fds = [made.fd()];
            self.call(Command::MigShm, &parts, &fds, expect_empty)?;
            *memory = Some(Arc::new(made));
        }
        Ok(memory.clone())
    }

    /// The data of a feature that is one structure.
    pub(super) fn feature_get<T: FromBytes + KnownLayout + Immutable>(
        &self,
        feature: u32,
    ) -> Result<T, Error> {
        let request = Feature {
            argsz: size_u32::<Feature>() + size_u32::<T>(),
            flags: feature | GET,
        };
        self.call(Command::DeviceFeature, &[request.as_bytes()], &[], |body| {
            let mut reader = Reader::new(body);
            let _: Feature = reader.take("device_feature")?;
            reader.take("device_feature.data")
        })
    }

    pub(super) fn state(&self) -> Result<MigrationState, Error> {
        let data: DeviceState = self.feature_get(MIG_DEVICE_STATE)?;
        MigrationState::try_from(data.device_state).map_err(|number| Error::Reply {
            command: Command::DeviceFeature,
            source: DecodeError::BadValue {
                field: "device_state",
                value: number.into(),
            },
        })
    }

    pub(super) fn set_state(&self, state: MigrationState) -> Result<(), Error> {
        let data = DeviceState {
            device_state: state.into(),
            data_fd: -1,
        };
        self.feature_set(MIG_DEVICE_STATE, data.as_bytes())
    }

    fn feature_set(&self, feature: u32, data: &[u8]) -> Result<(), Error> {
        let request = Feature {
            argsz: size_u32::<Feature>() + u32::try_from(data.len()).unwrap_or(u32::MAX),
            flags: feature | SET,
        };
        let parts = [request.as_bytes(), data];
        self.call(Command::DeviceFeature, &parts, &[], |_| Ok(()))
    }

    /// The size as the device says, if that can be one.
    pub(super) fn stop_copy_size(&self) -> Result<Option<u64>, Error> {
        match self.feature_get(MIG_DATA_SIZE) {
            Ok(size) => Ok(known(size)),
            Err(error) if is_unsupported(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Wants the flags of pre-copy information; servers without them do not mind.
    pub(super) fn want_precopy_flags(&self) -> Result<(), Error> {
        match self.feature_set(MIG_PRECOPY_INFO_V2, &[]) {
            Err(Error::Peer { .. }) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What pre-copy still has; drivers begin another pass when asked. `None` where the device cannot tell.
    pub(super) fn precopy_info(&self) -> Result<Option<PrecopyInfo>, Error> {
        let request = wire::Query {
            argsz: size_u32::<wire::PrecopyInfo>(),
            flags: 0,
        };
        let answer = self.call(
            Command::MigPrecopyInfo,
            &[request.as_bytes()],
            &[],
            |body| {
                let info: wire::PrecopyInfo = Reader::new(body).take("precopy_info")?;
                Ok(PrecopyInfo::new(&info))
            },
        );
        match answer {
            Ok(info) => Ok(Some(info)),
            Err(error) if is_unsupported(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn pending(&self, exact: bool) -> Result<Pending, Error> {
        let request = wire::Query {
            argsz: size_u32::<wire::Pending>(),
            flags: if exact { wire::PENDING_EXACT } else { 0 },
        };
        self.call(Command::MigPending, &[request.as_bytes()], &[], |body| {
            let pending: wire::Pending = Reader::new(body).take("pending")?;
            Ok(Pending::new(&pending))
        })
    }

    /// Resets the device, over the main socket.
    pub(super) fn reset(&self) -> Result<(), Error> {
        lock(&self.main).call(Command::DeviceReset, &[], &[], |body, _| expect_empty(body))
    }
}
