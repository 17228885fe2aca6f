// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sending end: turns what the driver gives into records, in whatever pieces the client asks for.
//!
//! Device data is read from the driver straight into the client's room, behind space for the record's header; in a reply,
//! a device that can lends it instead. Only where the room is too small for that is a record made apart and handed out
//! piece by piece.
//!
//! Shared memory is filled up to where a cache line of the driver's stream ends, so that the next piece begins with one:
//! processors copy slower where source and destination are not at the same place in a cache line.

use std::time::Instant;

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::buffer::Room;
use super::checksum;
use super::driver::{DataStream, PrecopyInfo, Taken};
use super::error::Error;
use super::estimate::Estimate;
use super::guest::Guest;
use super::record::{ENDS_TRANSACTION, HEADER, Kind, MAX_PAYLOAD, Numbering};
use crate::ratelimit::peer_log;

/// Less room than this is not worth a record of its own in it.
const MIN_DIRECT: usize = HEADER + 4096;
/// Bytes of a cache line.
const LINE: u64 = 64;
/// Bytes of device data in a record that is made apart.
const STAGED: usize = 64 << 10;

/// Whether more can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// The room is full, or nearly: what is left of shared memory is too little for a record.
    Yes,
    /// Nothing for now: pre-copy goes on.
    Later,
    /// That was the end of the stream.
    No,
}

/// What one read of the driver gave.
enum Given {
    Data(Taken),
    Nothing(Nothing),
}

/// Why it gave nothing.
enum Nothing {
    Later,
    End,
}

/// A record of what the driver gave, if it gave anything, and what it said after that.
struct Filled {
    data: Option<Taken>,
    then: Result<Option<Nothing>, Errno>,
}

/// How far initial data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initial {
    /// Some is still to come, or it is not known yet.
    Expected,
    /// It is over, and the stream says so.
    Done,
}

/// One stream being sent.
#[derive(Debug)]
pub struct Source {
    stream: Box<dyn DataStream>,
    numbering: Numbering,
    /// Bytes made, of which those up to `handed` are with the client.
    staged: Vec<u8>,
    handed: usize,
    initial: Initial,
    /// The driver told of new initial data, and no client knows yet.
    reinit: bool,
    sent: u64,
    ended: bool,
}

impl Source {
    /// Begins a stream with the identity of `guest`; `number` tells it from others.
    pub fn new(stream: Box<dyn DataStream>, number: u32, guest: &dyn Guest) -> Self {
        let mut numbering = Numbering::new(number);
        let staged = numbering.record(Kind::Identity, 0, &guest.identity().encode());
        Self {
            stream,
            numbering,
            staged,
            handed: 0,
            initial: Initial::Expected,
            reinit: false,
            sent: 0,
            ended: false,
        }
    }

    /// Whether all initial data was handed to the client. May be taken back.
    #[must_use]
    pub fn initial_done(&self) -> bool {
        self.initial == Initial::Done
    }

    /// Asks the driver what is left of pre-copy, which also makes it begin another pass.
    ///
    /// # Errors
    /// The driver's errno.
    pub fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
        let mut info = self.stream.precopy_info()?;
        // Garbage is not initial data that the destination would have to wait for.
        if i64::try_from(info.initial).is_err() {
            info.initial = 0;
        }
        self.reinit |= info.reinit;
        if (info.reinit || info.initial > 0) && self.initial == Initial::Done {
            self.initial = Initial::Expected;
            self.stage(Kind::InitialAgain, &[]);
        }
        Ok(info)
    }

    /// Whether the driver told of new initial data since this was last asked, to whomever.
    pub fn take_reinit(&mut self) -> bool {
        std::mem::take(&mut self.reinit)
    }

    /// Fills `room` from its start; returns how much was filled and whether there is more. `stopped` is
    /// whether the device is in STOP_COPY.
    ///
    /// # Errors
    /// What the driver says. Nothing of what it gave before is lost: it is handed out at the next call.
    pub fn read(
        &mut self,
        room: &mut Room<'_>,
        stopped: bool,
        estimate: &mut Estimate,
        guest: &dyn Guest,
    ) -> Result<(usize, More), Error> {
        let mut at = 0;
        let mut later = false;
        loop {
            at += self.hand_out(room, at);
            if at == room.len() {
                return Ok((at, More::Yes));
            }
            if self.ended {
                return Ok((at, More::No));
            }
            // Not asked again, whatever was staged: a driver whose figures change all the time would never be done.
            if later {
                return Ok((at, More::Later));
            }
            if at > 0 && room.may_be_short() && room.len() - at < MIN_DIRECT {
                return Ok((at, More::Yes));
            }
            match self.more(room, &mut at, stopped, estimate, guest) {
                Ok(nothing) => later = nothing,
                // The error comes again, or does not matter.
                Err(_) if at > 0 && room.may_be_short() => return Ok((at, More::Yes)),
                Err(errno) => {
                    self.take_back(room, at);
                    let what = "Reading migration data";
                    return Err(Error::Driver { what, errno });
                }
            }
        }
    }

    /// Gets something into `room` at `at`, or staged. True if the driver has nothing more for now.
    fn more(
        &mut self,
        room: &mut Room<'_>,
        at: &mut usize,
        stopped: bool,
        estimate: &mut Estimate,
        guest: &dyn Guest,
    ) -> Result<bool, Errno> {
        let filled = if room.len() - *at >= MIN_DIRECT {
            self.fill(room, at, stopped)
        } else {
            self.stage_data(stopped)
        };
        if let Some(taken) = filled.data {
            self.sent += taken.length as u64;
            estimate.read(taken.length as u64);
            if !stopped && estimate.initial() == 0 && self.initial == Initial::Expected {
                self.refresh(estimate)?;
            }
        }
        match filled.then? {
            None => return Ok(false),
            // Asking makes some drivers go on; what they then have is for the next call.
            Some(Nothing::Later) => self.refresh(estimate)?,
            Some(Nothing::End) => {
                let state = guest.save().map_err(|why| {
                    peer_log!(Warn, "What the guest set up cannot be saved: {why}");
                    Errno::IO
                })?;
                let total = self.sent.to_le_bytes();
                self.stage(Kind::GuestState, &state.encode());
                self.stage(Kind::End, &total);
                self.ended = true;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One record of device data straight into `room` at `at`, where at least [`MIN_DIRECT`] bytes are left. Goes on
    /// until that is full or the driver gives nothing more, so that short reads make no short records.
    fn fill(&mut self, room: &mut Room<'_>, at: &mut usize, stopped: bool) -> Filled {
        let payload = *at + HEADER;
        let mut most = (room.len() - payload).min(MAX_PAYLOAD);
        if room.may_be_short() {
            let beyond = self.sent.wrapping_add(most as u64) % LINE;
            most -= usize::try_from(beyond).unwrap_or(0);
        }
        let mut taken = Taken::default();
        let mut hasher = crc32fast::Hasher::new();
        let mut then = Ok(None);
        if stopped {
            match room.borrow(payload, most, &mut *self.stream) {
                Ok(Some(lent)) => {
                    checksum::feed(&mut hasher, &lent);
                    taken.length = lent.len();
                }
                Ok(None) => {}
                Err(errno) => then = Err(errno),
            }
        }
        while then.is_ok() && taken.length < most && !taken.ends_transaction {
            let length = most - taken.length;
            let stream = &mut *self.stream;
            let given = room.fill(payload + taken.length, length, |to| {
                let given = give(stream, to, stopped)?;
                if let Given::Data(more) = &given
                    && let Ok(data) = to.subslice(0, more.length)
                {
                    checksum::feed(&mut hasher, &data);
                }
                Ok(given)
            });
            match given.unwrap_or(Err(Errno::INVAL)) {
                Ok(Given::Data(more)) => {
                    taken.length += more.length;
                    taken.ends_transaction = more.ends_transaction;
                }
                Ok(Given::Nothing(nothing)) => {
                    then = Ok(Some(nothing));
                    break;
                }
                Err(errno) => {
                    then = Err(errno);
                    break;
                }
            }
        }
        if taken.length == 0 {
            return Filled { data: None, then };
        }
        let flags = flags(&taken);
        let header = self
            .numbering
            .header(Kind::DeviceData, flags, taken.length, hasher);
        room.put(*at, &header);
        *at = payload + taken.length;
        Filled {
            data: Some(taken),
            then,
        }
    }

    /// Asks what is left, and tells the destination when initial data is over.
    fn refresh(&mut self, estimate: &mut Estimate) -> Result<(), Errno> {
        let info = match self.precopy_info() {
            // A driver that has pre-copy and no figures: what is read is what there is.
            Err(Errno::NOTTY | Errno::INVAL) => PrecopyInfo::default(),
            other => other?,
        };
        estimate.told_precopy(info, Instant::now());
        if info.initial == 0 && self.initial == Initial::Expected {
            self.initial = Initial::Done;
            self.stage(Kind::InitialDone, &[]);
        }
        Ok(())
    }

    /// One record of device data, made apart.
    fn stage_data(&mut self, stopped: bool) -> Filled {
        let mut record = std::mem::take(&mut self.staged);
        record.resize(HEADER + STAGED, 0);
        self.handed = 0;
        let (header, payload) = record.split_at_mut(HEADER);
        let given = give(
            &mut *self.stream,
            &VolatileSlice::from(&mut *payload),
            stopped,
        );
        let (data, then) = match given {
            Ok(Given::Data(taken)) => (Some(taken), Ok(None)),
            Ok(Given::Nothing(nothing)) => (None, Ok(Some(nothing))),
            Err(errno) => (None, Err(errno)),
        };
        let length = data.map_or(0, |taken| {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&payload[..taken.length]);
            let flags = flags(&taken);
            header.copy_from_slice(&self.numbering.header(
                Kind::DeviceData,
                flags,
                taken.length,
                hasher,
            ));
            HEADER + taken.length
        });
        record.truncate(length);
        self.staged = record;
        Filled { data, then }
    }

    fn stage(&mut self, kind: Kind, payload: &[u8]) {
        let record = self.numbering.record(kind, 0, payload);
        self.staged.extend_from_slice(&record);
    }

    /// Hands out what is staged; how much of it.
    fn hand_out(&mut self, room: &mut Room<'_>, at: usize) -> usize {
        let waiting = self.staged.get(self.handed..).unwrap_or_default();
        let length = waiting.len().min(room.len() - at);
        room.put(at, &waiting[..length]);
        self.handed += length;
        if self.handed == self.staged.len() {
            self.staged.clear();
            self.handed = 0;
        }
        length
    }

    /// Keeps the first `length` bytes of `room` for the next call, before what is staged.
    fn take_back(&mut self, room: &mut Room<'_>, length: usize) {
        if length == 0 {
            return;
        }
        let mut kept = room.copy_out(length);
        kept.extend_from_slice(self.staged.get(self.handed..).unwrap_or_default());
        self.staged = kept;
        self.handed = 0;
    }
}

fn flags(taken: &Taken) -> u32 {
    if taken.ends_transaction {
        ENDS_TRANSACTION
    } else {
        0
    }
}

/// One read of the driver's stream, its errnos understood.
fn give(
    stream: &mut dyn DataStream,
    to: &VolatileSlice<'_>,
    stopped: bool,
) -> Result<Given, Errno> {
    loop {
        return match (stream.read(to), stopped) {
            // A driver that claims more than there was room for.
            (Ok(taken), _) if taken.length > to.len() => Err(Errno::IO),
            (Ok(taken), _) if taken.length > 0 => Ok(Given::Data(taken)),
            (Ok(_), true) => Ok(Given::Nothing(Nothing::End)),
            (Ok(_) | Err(Errno::NOMSG | Errno::AGAIN), false) => Ok(Given::Nothing(Nothing::Later)),
            (Err(Errno::NOMSG), true) => {
                // Not allowed there; the drivers known to do it mean the end.
                peer_log!(
                    Warn,
                    "The driver says ENOMSG in STOP_COPY: taken as the end of its data"
                );
                Ok(Given::Nothing(Nothing::End))
            }
            (Err(Errno::AGAIN), true) => {
                stream.wait()?;
                continue;
            }
            (Err(Errno::INTR), _) => continue,
            (Err(errno), _) => Err(errno),
        };
    }
}
