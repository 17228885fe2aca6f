// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sending end: turns what the driver gives into records, in whatever pieces the client asks for.
//!
//! Device data is read from the driver straight into the client's room, behind space for the record's header.
//! Only where the room is too small for that is a record made apart and handed out piece by piece.

use log::warn;
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::buffer::Room;
use super::driver::{DataStream, PrecopyInfo, Taken};
use super::error::Error;
use super::estimate::Estimate;
use super::guest::Guest;
use super::record::{ENDS_TRANSACTION, HEADER, Kind, MAX_PAYLOAD, Numbering};

/// Less room than this is not worth a record of its own in it.
const MIN_DIRECT: usize = HEADER + 4096;
/// Bytes of device data in a record that is made apart.
const STAGED: usize = 64 << 10;

/// Whether more can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// The room is full.
    Yes,
    /// Nothing for now: pre-copy goes on.
    Later,
    /// That was the end of the stream.
    No,
}

/// What the driver had.
enum Given {
    Data(Taken),
    Later,
    End,
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
        if (info.reinit || info.initial > 0) && self.initial == Initial::Done {
            self.initial = Initial::Expected;
            self.stage(Kind::InitialAgain, &[]);
        }
        Ok(info)
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
        loop {
            at += self.hand_out(room, at);
            if at == room.len() {
                return Ok((at, More::Yes));
            }
            if self.ended {
                return Ok((at, More::No));
            }
            match self.more(room, &mut at, stopped, estimate, guest) {
                Ok(true) => {}
                Ok(false) => return Ok((at, More::Later)),
                Err(errno) => {
                    self.take_back(room, at);
                    let what = "Reading migration data";
                    return Err(Error::Driver { what, errno });
                }
            }
        }
    }

    /// Gets something into `room` at `at`, or staged. False if there is nothing for now.
    fn more(
        &mut self,
        room: &mut Room<'_>,
        at: &mut usize,
        stopped: bool,
        estimate: &mut Estimate,
        guest: &dyn Guest,
    ) -> Result<bool, Errno> {
        let left = room.len() - *at;
        let given = if left >= MIN_DIRECT {
            let length = (left - HEADER).min(MAX_PAYLOAD);
            let stream = &mut self.stream;
            let given = room.fill(*at + HEADER, length, |to| give(&mut **stream, to, stopped));
            let given = given.unwrap_or(Err(Errno::INVAL))?;
            if let Given::Data(taken) = &given {
                let payload = *at + HEADER;
                let header =
                    self.numbering
                        .header(Kind::DeviceData, flags(taken), taken.length, |hasher| {
                            room.hash(payload, taken.length, hasher)
                        });
                room.put(*at, &header);
                *at = payload + taken.length;
            }
            given
        } else {
            self.stage_data(stopped)?
        };
        match given {
            Given::Data(taken) => {
                self.sent += taken.length as u64;
                estimate.read(taken.length as u64);
                if !stopped && estimate.initial() == 0 && self.initial == Initial::Expected {
                    self.refresh(estimate)?;
                }
            }
            Given::Later => {
                // Asking makes some drivers go on; what they then have is for the next call.
                self.refresh(estimate)?;
                return Ok(self.handed < self.staged.len());
            }
            Given::End => {
                let state = guest.save().encode();
                let total = self.sent.to_le_bytes();
                self.stage(Kind::GuestState, &state);
                self.stage(Kind::End, &total);
                self.ended = true;
            }
        }
        Ok(true)
    }

    /// Asks what is left, and tells the destination when initial data is over.
    fn refresh(&mut self, estimate: &mut Estimate) -> Result<(), Errno> {
        let info = match self.precopy_info() {
            // A driver that has pre-copy and no figures: what is read is what there is.
            Err(Errno::NOTTY | Errno::INVAL) => PrecopyInfo::default(),
            other => other?,
        };
        estimate.told_precopy(info);
        if info.initial == 0 && self.initial == Initial::Expected {
            self.initial = Initial::Done;
            self.stage(Kind::InitialDone, &[]);
        }
        Ok(())
    }

    /// One record of device data, made apart.
    fn stage_data(&mut self, stopped: bool) -> Result<Given, Errno> {
        let mut data = std::mem::take(&mut self.staged);
        data.resize(HEADER + STAGED, 0);
        self.handed = 0;
        let given = give(
            &mut *self.stream,
            &VolatileSlice::from(&mut data[HEADER..]),
            stopped,
        );
        let length = match &given {
            Ok(Given::Data(taken)) => {
                let payload = &data[HEADER..HEADER + taken.length];
                let hash = |hasher: &mut crc32fast::Hasher| hasher.update(payload);
                let header =
                    self.numbering
                        .header(Kind::DeviceData, flags(taken), taken.length, hash);
                data[..HEADER].copy_from_slice(&header);
                HEADER + taken.length
            }
            _ => 0,
        };
        data.truncate(length);
        self.staged = data;
        given
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
        let mut kept = vec![0; length];
        room.fill(0, length, |slice| slice.copy_to(&mut kept[..]));
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
            (Ok(_), true) => Ok(Given::End),
            (Ok(_) | Err(Errno::NOMSG | Errno::AGAIN), false) => Ok(Given::Later),
            (Err(Errno::NOMSG), true) => {
                // Not allowed there; the drivers known to do it mean the end.
                warn!("The driver says ENOMSG in STOP_COPY: taken as the end of its data");
                Ok(Given::End)
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
