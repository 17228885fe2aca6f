// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The records that a migration stream is made of. This is the place that defines them.
//!
//! Little endian, whatever the host. Every record is a header and its payload:
//!
//! ```text
//!  0        4      6      8        12       16           24       28       32         64
//!  +--------+------+------+--------+--------+------------+--------+--------+----------+---------
//!  | "VUGM" | vers.| kind | stream | flags  |  sequence  | length |  CRC   | zeros    | payload
//!  +--------+------+------+--------+--------+------------+--------+--------+----------+---------
//!
//!  1 IDENTITY       first; what the destination must be like: name and value pairs
//!  2 DEVICE_DATA    what the device's driver gave; flag 1: ends one of its transactions
//!  3 INITIAL_DONE   all initial data of pre-copy came before this
//!  4 INITIAL_AGAIN  no longer: new initial data follows
//!  5 GUEST_STATE    config space, MSI-X table and the like, once nothing runs any more
//!  6 END            last: how many bytes of device data there were (u64)
//! ```
//!
//! `stream` is a number drawn for this stream, `sequence` counts its records from 0, so that records left
//! out, repeated, moved or taken from another stream are noticed. The CRC (CRC-32 of ISO-HDLC) covers the
//! payload and then the header before it. It guards against accidents, not against malice: a stream is to be
//! believed as far as whoever sends it.
//!
//! A header takes a whole cache line, so that a payload behind one in shared memory begins with one: copies to where
//! none begins are slower.

use std::mem::offset_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of every record.
pub const MAGIC: [u8; 4] = *b"VUGM";
/// The version written here, and the only one read.
pub const VERSION: u16 = 2;
/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();
/// The longest payload, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// In the flags of DEVICE_DATA: the device wants what came since the last such record in one transaction.
pub const ENDS_TRANSACTION: u32 = 1;

/// What is wrong with a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Not a record at all.
    #[error("Record {0} does not begin as one: not a stream of this program, or bytes were lost")]
    Magic(u64),
    /// A version this program does not read.
    #[error("The stream has version {0}, this program reads {VERSION}")]
    Version(u16),
    /// A kind this program does not know.
    #[error("Record {0} is of an unknown kind ({1})")]
    Kind(u64, u16),
    /// Flags that the kind does not have.
    #[error("Record {0} has unknown flags ({1:#x})")]
    Flags(u64, u32),
    /// Not the record that must come now.
    #[error(
        "Record {expected} expected, {found} came: records are missing, repeated or in another order"
    )]
    Sequence {
        /// Which should have come.
        expected: u64,
        /// Which came.
        found: u64,
    },
    /// Bytes of a header that must be zero are not.
    #[error("Record {0} has something where its header must be zero")]
    NotZero(u64),
    /// A record of another stream.
    #[error("Record {0} belongs to another stream")]
    Stream(u64),
    /// A payload longer than any, or than its kind has.
    #[error("Record {0} has an impossible length ({1})")]
    Length(u64, u32),
    /// The checksum is another.
    #[error("Record {0} is damaged: its checksum does not match")]
    Checksum(u64),
    /// A record where it may not be.
    #[error("Record {0} is out of place: {1}")]
    Place(u64, &'static str),
    /// A payload that is not what its kind has.
    #[error("Record {0} cannot be read: {1}")]
    Payload(u64, &'static str),
    /// Bytes after the end.
    #[error("The stream goes on after its end")]
    AfterEnd,
    /// It stopped before its end.
    #[error("The stream ends after {0} records, without its end record")]
    Truncated(u64),
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// What the destination must be like.
    Identity = 1,
    /// Bytes of the driver.
    DeviceData = 2,
    /// Initial data is over.
    InitialDone = 3,
    /// It is not.
    InitialAgain = 4,
    /// What the guest set up in front of the device.
    GuestState = 5,
    /// The end.
    End = 6,
}

impl Kind {
    fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Identity,
            2 => Self::DeviceData,
            3 => Self::InitialDone,
            4 => Self::InitialAgain,
            5 => Self::GuestState,
            6 => Self::End,
            _ => return None,
        })
    }

    fn known_flags(self) -> u32 {
        match self {
            Self::DeviceData => ENDS_TRANSACTION,
            _ => 0,
        }
    }

    fn takes_length(self, length: usize) -> bool {
        match self {
            Self::InitialDone | Self::InitialAgain => length == 0,
            Self::End => length == size_of::<u64>(),
            Self::Identity | Self::DeviceData | Self::GuestState => {
                (1..=MAX_PAYLOAD).contains(&length)
            }
        }
    }
}

/// A header as it is in the stream.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    stream: U32,
    flags: U32,
    sequence: U64,
    length: U32,
    crc: U32,
    zeros: [u8; 32],
}

impl Header {
    /// What of a header the checksum covers.
    fn covered(&self) -> &[u8] {
        &self.as_bytes()[..offset_of!(Self, crc)]
    }
}

/// A record's header, read and found possible; its checksum is still to be compared.
#[derive(Clone, Debug)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// Its number in the stream.
    pub sequence: u64,
    /// [`ENDS_TRANSACTION`].
    pub flags: u32,
    /// Bytes of payload.
    pub length: usize,
    header: Header,
}

impl Record {
    /// Compares the checksum with that of a hasher that has seen the payload, and nothing else.
    ///
    /// # Errors
    /// [`StreamError::Checksum`].
    pub fn check(&self, mut hasher: crc32fast::Hasher) -> Result<(), StreamError> {
        hasher.update(self.header.covered());
        if hasher.finalize() == self.header.crc.get() {
            Ok(())
        } else {
            Err(StreamError::Checksum(self.sequence))
        }
    }
}

/// Numbers the records of one stream as they are written.
#[derive(Debug)]
pub struct Numbering {
    stream: u32,
    next: u64,
}

impl Numbering {
    /// A stream with this number.
    #[must_use]
    pub fn new(stream: u32) -> Self {
        Self { stream, next: 0 }
    }

    /// The header of the next record; `hasher` has seen its payload, and nothing else.
    ///
    /// The caller keeps `length` within [`MAX_PAYLOAD`].
    pub fn header(
        &mut self,
        kind: Kind,
        flags: u32,
        length: usize,
        mut hasher: crc32fast::Hasher,
    ) -> [u8; HEADER] {
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            kind: (kind as u16).into(),
            stream: self.stream.into(),
            flags: flags.into(),
            sequence: self.next.into(),
            length: u32::try_from(length).unwrap_or(u32::MAX).into(),
            crc: 0.into(),
            zeros: [0; 32],
        };
        self.next += 1;
        hasher.update(header.covered());
        header.crc = hasher.finalize().into();
        zerocopy::transmute!(header)
    }

    /// A whole record with a payload at hand.
    pub fn record(&mut self, kind: Kind, flags: u32, payload: &[u8]) -> Vec<u8> {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(payload);
        let header = self.header(kind, flags, payload.len(), hasher);
        [&header[..], payload].concat()
    }
}

/// Checks the headers of one stream as they are read.
#[derive(Debug, Default)]
pub struct Sequence {
    stream: Option<u32>,
    next: u64,
    ended: bool,
}

impl Sequence {
    /// How many records have come.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.next
    }

    /// Reads the next header.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is then not to be read any further.
    pub fn header(&mut self, bytes: &[u8; HEADER]) -> Result<Record, StreamError> {
        let header: Header = zerocopy::transmute!(*bytes);
        let at = self.next;
        if self.ended {
            return Err(StreamError::AfterEnd);
        }
        if header.magic != MAGIC {
            return Err(StreamError::Magic(at));
        }
        if header.version.get() != VERSION {
            return Err(StreamError::Version(header.version.get()));
        }
        let number = header.kind.get();
        let kind = Kind::from_number(number).ok_or(StreamError::Kind(at, number))?;
        let flags = header.flags.get();
        if flags & !kind.known_flags() != 0 {
            return Err(StreamError::Flags(at, flags));
        }
        if header.zeros != [0; 32] {
            return Err(StreamError::NotZero(at));
        }
        let found = header.sequence.get();
        if found != at {
            return Err(StreamError::Sequence {
                expected: at,
                found,
            });
        }
        if *self.stream.get_or_insert(header.stream.get()) != header.stream.get() {
            return Err(StreamError::Stream(at));
        }
        let length = header.length.get();
        let bounded = usize::try_from(length)
            .ok()
            .filter(|n| kind.takes_length(*n));
        let length = bounded.ok_or(StreamError::Length(at, length))?;
        match (at, kind) {
            (0, Kind::Identity) | (1.., _) => {}
            (0, _) => return Err(StreamError::Place(at, "a stream begins with its identity")),
        }
        if at > 0 && kind == Kind::Identity {
            return Err(StreamError::Place(at, "a second identity"));
        }
        self.next += 1;
        self.ended = kind == Kind::End;
        Ok(Record {
            kind,
            sequence: at,
            flags,
            length,
            header,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sequence: &mut Sequence, bytes: &[u8]) -> Result<Kind, StreamError> {
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let record = sequence.header(header)?;
        assert_eq!(record.length, payload.len());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(payload);
        record.check(hasher)?;
        Ok(record.kind)
    }

    fn stream(number: u32) -> Vec<Vec<u8>> {
        let mut numbering = Numbering::new(number);
        vec![
            numbering.record(Kind::Identity, 0, b"who"),
            numbering.record(Kind::DeviceData, ENDS_TRANSACTION, b"data"),
            numbering.record(Kind::InitialDone, 0, b""),
            numbering.record(Kind::GuestState, 0, b"state"),
            numbering.record(Kind::End, 0, &4_u64.to_le_bytes()),
        ]
    }

    fn read_all(records: &[Vec<u8>]) -> Result<(), StreamError> {
        let mut sequence = Sequence::default();
        records
            .iter()
            .try_for_each(|record| read(&mut sequence, record).map(drop))
    }

    #[test]
    fn the_layout() {
        let record = &stream(0x0102_0304)[1];
        let expected = [
            b'V', b'U', b'G', b'M', 2, 0, 2, 0, 4, 3, 2, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4,
            0, 0, 0,
        ];
        assert_eq!(record[..28], expected);
        assert_eq!(
            record[28..32],
            crc32fast::hash(&[b"data", &expected[..]].concat()).to_le_bytes()
        );
        assert_eq!(record[32..64], [0; 32]);
        assert_eq!(&record[64..], b"data");
    }

    #[test]
    fn a_stream_reads_back_and_any_other_order_does_not() {
        let good = stream(7);
        read_all(&good).unwrap();
        for at in 0..good.len() {
            let mut without = good.clone();
            without.remove(at);
            // Only the end can be missing unnoticed by the sequence.
            assert_eq!(read_all(&without).is_ok(), at + 1 == good.len());
            let mut twice = good.clone();
            twice.insert(at, good[at].clone());
            assert!(read_all(&twice).is_err(), "{at} twice");
            let mut foreign = good.clone();
            foreign[at] = stream(8)[at].clone();
            assert!(read_all(&foreign).is_err(), "{at} of another");
            for other in 0..at {
                let mut moved = good.clone();
                moved.swap(at, other);
                assert!(read_all(&moved).is_err(), "{at} and {other}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = stream(7);
        for (at, record) in good.iter().enumerate() {
            for bit in 0..record.len() * 8 {
                let mut bad = good.clone();
                bad[at][bit / 8] ^= 1 << (bit % 8);
                let mut sequence = Sequence::default();
                let outcome = bad.iter().try_for_each(|record| {
                    let header = record.first_chunk().unwrap();
                    let read = sequence.header(header)?;
                    if read.length != record.len() - HEADER {
                        return Err(StreamError::Truncated(at as u64));
                    }
                    let mut hasher = crc32fast::Hasher::new();
                    hasher.update(&record[HEADER..]);
                    read.check(hasher)
                });
                assert!(outcome.is_err(), "record {at}, bit {bit}");
            }
        }
    }
}
