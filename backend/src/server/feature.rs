// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_FEATURE: which features there are, and what GET, SET and PROBE of each mean.

use std::mem::size_of;

use vfio_user_protocol::codec::Reader;
use vfio_user_protocol::feature::{
    DMA_LOGGING_REPORT, DMA_LOGGING_START, DMA_LOGGING_STOP, DeviceState, Feature, GET, INDEX_MASK,
    MIG_DATA_SIZE, MIG_DEVICE_STATE, MIG_PRECOPY_INFO_V2, MIGRATION, PROBE, SET,
};
use zerocopy::IntoBytes;

use super::migration::MigrationCommands;
use super::refusal::Refusal;
use super::replies::Reply;
use crate::memory::LoggingError;
use crate::migration::Error;

impl MigrationCommands {
    /// Carries out one DEVICE_FEATURE.
    pub(super) fn feature(
        &mut self,
        asked: &Feature,
        data: &[u8],
        reply: &mut Reply,
    ) -> Result<(), Refusal> {
        let known = INDEX_MASK | GET | SET | PROBE;
        let flags = asked.flags;
        if flags & !known != 0 {
            return Err(Refusal::bad("device_feature.flags", flags.into()));
        }
        let ways = self.ways(asked.index())?;
        let wanted = flags & (GET | SET);
        if wanted & !ways != 0 {
            return Err(Refusal::bad("device_feature.flags", flags.into()));
        }
        if flags & PROBE != 0 {
            reply.payload.extend_from_slice(asked.as_bytes());
            reply.payload.extend_from_slice(data);
            return Ok(());
        }
        match wanted {
            GET => self.feature_get(asked, data, reply),
            SET => {
                // The reply repeats the request.
                let size = size_of::<Feature>() + data.len();
                if usize::try_from(asked.argsz).is_ok_and(|argsz| argsz < size) {
                    return Err(Refusal::bad("device_feature.argsz", asked.argsz.into()));
                }
                self.feature_set(asked.index(), data)?;
                reply.payload.extend_from_slice(asked.as_bytes());
                reply.payload.extend_from_slice(data);
                Ok(())
            }
            _ => Err(Refusal::bad("device_feature.flags", flags.into())),
        }
    }

    /// In which ways a feature can be used.
    fn ways(&self, feature: u32) -> Result<u32, Refusal> {
        // Whether a device tells what it writes has nothing to do with whether it migrates.
        if let DMA_LOGGING_START | DMA_LOGGING_STOP | DMA_LOGGING_REPORT = feature {
            return match (self.function.can_log(), feature) {
                (false, _) => Err(LoggingError::Unsupported.into()),
                (true, DMA_LOGGING_REPORT) => Ok(GET),
                (true, _) => Ok(SET),
            };
        }
        let support = self.function.migration().support(self.granted.p2p);
        let support = support.ok_or(Error::NotSupported)?;
        Ok(match feature {
            MIGRATION | MIG_DATA_SIZE => GET,
            MIG_DEVICE_STATE => GET | SET,
            MIG_PRECOPY_INFO_V2 if support.pre_copy => SET,
            _ => return Err(Refusal::Unexpected("The device has no such feature")),
        })
    }

    fn feature_get(&self, asked: &Feature, input: &[u8], reply: &mut Reply) -> Result<(), Refusal> {
        let migration = self.function.migration();
        match asked.index() {
            DMA_LOGGING_REPORT => self.logging_report(asked, input, reply),
            MIGRATION => {
                let support = migration.support(self.granted.p2p);
                let flags = support.ok_or(Error::NotSupported)?.flags();
                answer(asked, flags.as_bytes(), reply)
            }
            MIG_DEVICE_STATE => {
                let state = DeviceState {
                    device_state: migration.state()?.into(),
                    data_fd: -1,
                };
                answer(asked, state.as_bytes(), reply)
            }
            MIG_DATA_SIZE => answer(asked, migration.data_size()?.as_bytes(), reply),
            other => Err(Refusal::bad("device_feature.flags", other.into())),
        }
    }

    fn feature_set(&mut self, feature: u32, data: &[u8]) -> Result<(), Refusal> {
        let mut reader = Reader::new(data);
        match feature {
            DMA_LOGGING_START => self.logging_start(data),
            DMA_LOGGING_STOP => Ok(self.function.logging_stop()?),
            MIG_DEVICE_STATE => {
                let state: DeviceState = reader.take("mig_device_state")?;
                let (function, show) = (&*self.function, self.granted.p2p);
                let migration = function.migration();
                Ok(migration.set_state(state.device_state, show, function)?)
            }
            // Flags of pre-copy information are always valid here; the driver was told at the start.
            MIG_PRECOPY_INFO_V2 => Ok(()),
            other => Err(Refusal::bad("device_feature.flags", other.into())),
        }
    }
}

/// The reply to a GET whose data has a fixed size. Without room for it the request is refused, as the kernel and
/// the reference library do; a bitmap, whose size a client need not foresee, is another matter.
pub(super) fn answer(asked: &Feature, data: &[u8], reply: &mut Reply) -> Result<(), Refusal> {
    let whole = size_of::<Feature>() + data.len();
    let argsz = u32::try_from(whole).unwrap_or(u32::MAX);
    if asked.argsz < argsz {
        return Err(Refusal::bad("device_feature.argsz", asked.argsz.into()));
    }
    let fixed = Feature { argsz, ..*asked };
    reply.payload.extend_from_slice(fixed.as_bytes());
    reply.payload.extend_from_slice(data);
    Ok(())
}
