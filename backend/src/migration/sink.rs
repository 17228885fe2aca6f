// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The receiving end: checks records, in whatever pieces they come, and gives the driver what is for it.
//!
//! A record reaches the driver only once its checksum was compared. What is wrong once stays wrong: nothing
//! more is taken, and the device is never made to load.

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::buffer::Piece;
use super::checksum;
use super::driver::DataStream;
use super::error::Error;
use super::guest::{Guest, GuestState, Identity};
use super::record::{ENDS_TRANSACTION, HEADER, Kind, MAX_PAYLOAD, Record, Sequence, StreamError};

/// One stream being received.
#[derive(Debug)]
pub struct Sink {
    stream: Box<dyn DataStream>,
    sequence: Sequence,
    /// The beginning of a record whose end has not come, header and payload.
    partial: Vec<u8>,
    /// The record whose header has come.
    open: Option<Record>,
    received: u64,
    initial_done: bool,
    guest_state: Option<GuestState>,
    ended: bool,
    failed: Option<Error>,
}

impl Sink {
    /// Begins a stream. Without `pre_copy` there is no initial data to wait for.
    #[must_use]
    pub fn new(stream: Box<dyn DataStream>, pre_copy: bool) -> Self {
        Self {
            stream,
            sequence: Sequence::default(),
            partial: Vec::new(),
            open: None,
            received: 0,
            initial_done: !pre_copy,
            guest_state: None,
            ended: false,
            failed: None,
        }
    }

    /// Whether nothing came at all.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.sequence.records() == 0 && self.partial.is_empty() && self.failed.is_none()
    }

    /// Whether all initial data that was sent is with the driver. May be taken back.
    #[must_use]
    pub fn initial_done(&self) -> bool {
        self.initial_done && self.failed.is_none()
    }

    /// What the guest set up at the source, if the whole stream came and everything was right.
    ///
    /// # Errors
    /// What was wrong, or that it is not whole.
    pub fn finish(&mut self) -> Result<GuestState, Error> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        match self.guest_state.take().filter(|_| self.ended) {
            Some(state) => Ok(state),
            None => Err(StreamError::Truncated(self.sequence.records()).into()),
        }
    }

    /// A piece was not what the client meant: nothing that came is loaded.
    pub fn spoil(&mut self) -> Error {
        self.failed.get_or_insert(Error::Lost).clone()
    }

    /// Takes a piece of the stream, all of it.
    ///
    /// # Errors
    /// What is wrong with the stream, or what the driver says; again at every later call.
    pub fn write(&mut self, piece: Piece<'_>, guest: &dyn Guest) -> Result<(), Error> {
        if let Some(failed) = &self.failed {
            return Err(Error::Failed(crate::report::chain(failed)));
        }
        let taken = self.take(piece, guest);
        if let Err(error) = &taken {
            self.failed = Some(error.clone());
            self.partial = Vec::new();
        }
        taken
    }

    fn take(&mut self, mut piece: Piece<'_>, guest: &dyn Guest) -> Result<(), Error> {
        while !piece.is_empty() {
            let Some(record) = &self.open else {
                piece = self.take_header(piece)?;
                continue;
            };
            // Most records come whole: those of the device are then used where they lie.
            if let (Piece::Shared(_), Kind::DeviceData) = (&piece, record.kind)
                && self.partial.is_empty()
                && piece.len() >= record.length
            {
                let (payload, rest) = piece.split(record.length);
                if let Piece::Shared(payload) = payload {
                    self.shared_data(&payload)?;
                }
                piece = rest;
                continue;
            }
            let (part, rest) = piece.split(record.length - self.partial.len());
            part.append_to(&mut self.partial);
            piece = rest;
            if self.partial.len() == record.length {
                self.private_record(guest)?;
            }
        }
        Ok(())
    }

    fn take_header<'a>(&mut self, piece: Piece<'a>) -> Result<Piece<'a>, Error> {
        let (part, rest) = piece.split(HEADER - self.partial.len());
        part.append_to(&mut self.partial);
        if let Some(header) = self.partial.first_chunk::<HEADER>() {
            let record = self.sequence.header(header)?;
            self.partial.clear();
            if record.length > 0 {
                // The longest record is allocated once, and bounded by what the header may say.
                self.partial.reserve_exact(MAX_PAYLOAD.min(record.length));
                self.open = Some(record);
            } else {
                record.check(crc32fast::Hasher::new())?;
                self.mark(record.kind);
            }
        } else if self.ended {
            return Err(StreamError::AfterEnd.into());
        }
        Ok(rest)
    }

    fn mark(&mut self, kind: Kind) {
        match kind {
            Kind::InitialDone => self.initial_done = true,
            Kind::InitialAgain => self.initial_done = false,
            _ => {}
        }
    }

    /// A record of device data that lies whole in shared memory.
    fn shared_data(&mut self, payload: &VolatileSlice<'_>) -> Result<(), Error> {
        let Some(record) = self.open.take() else {
            return Ok(());
        };
        let mut hasher = crc32fast::Hasher::new();
        checksum::feed(&mut hasher, payload);
        record.check(hasher)?;
        self.give(payload, record.flags & ENDS_TRANSACTION != 0)
    }

    /// A record whose payload is in `partial`.
    fn private_record(&mut self, guest: &dyn Guest) -> Result<(), Error> {
        let Some(record) = self.open.take() else {
            return Ok(());
        };
        let mut payload = std::mem::take(&mut self.partial);
        let mut hasher = crc32fast::Hasher::new();
        checksum::feed(&mut hasher, &VolatileSlice::from(&mut payload[..]));
        record.check(hasher)?;
        match record.kind {
            Kind::DeviceData => {
                let ends = record.flags & ENDS_TRANSACTION != 0;
                self.give(&VolatileSlice::from(&mut payload[..]), ends)?;
            }
            kind => self.control(kind, record.sequence, &payload, guest)?,
        }
        payload.clear();
        self.partial = payload;
        Ok(())
    }

    fn control(
        &mut self,
        kind: Kind,
        sequence: u64,
        payload: &[u8],
        guest: &dyn Guest,
    ) -> Result<(), Error> {
        let unreadable = |what| StreamError::Payload(sequence, what);
        match kind {
            Kind::Identity => {
                let source = Identity::decode(payload).ok_or(unreadable("not an identity"))?;
                let differences = guest.identity().differences(&source);
                if !differences.is_empty() {
                    return Err(Error::Incompatible(differences));
                }
            }
            Kind::GuestState => {
                let state = GuestState::decode(payload).ok_or(unreadable("not a guest's state"))?;
                if self.guest_state.is_some() {
                    return Err(StreamError::Place(sequence, "a second guest's state").into());
                }
                guest.check(&state).map_err(Error::Guest)?;
                self.guest_state = Some(state);
            }
            Kind::End => {
                if payload != self.received.to_le_bytes() {
                    return Err(unreadable("it counts other device data than came").into());
                }
                if self.guest_state.is_none() {
                    return Err(
                        StreamError::Place(sequence, "the end before the guest's state").into(),
                    );
                }
                self.ended = true;
            }
            Kind::DeviceData | Kind::InitialDone | Kind::InitialAgain => {}
        }
        Ok(())
    }

    /// Writes device data to the driver, all of it.
    fn give(&mut self, data: &VolatileSlice<'_>, ends_transaction: bool) -> Result<(), Error> {
        if self.guest_state.is_some() {
            let at = self.sequence.records().saturating_sub(1);
            return Err(StreamError::Place(at, "device data after the guest's state").into());
        }
        let what = "Writing migration data";
        let mut at = 0;
        while at < data.len() {
            let outcome = match data.offset(at) {
                Ok(rest) => self.stream.write(&rest, ends_transaction),
                Err(_) => Err(Errno::INVAL),
            };
            match outcome {
                // No progress, or more than there was: neither leads anywhere.
                Ok(written) if written == 0 || written > data.len() - at => {
                    let errno = Errno::IO;
                    return Err(Error::Driver { what, errno });
                }
                Ok(written) => at += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let waited = self.stream.wait();
                    waited.map_err(|errno| Error::Driver { what, errno })?;
                }
                Err(errno) => return Err(Error::Driver { what, errno }),
            }
        }
        self.received += data.len() as u64;
        Ok(())
    }
}
