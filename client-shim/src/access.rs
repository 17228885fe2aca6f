// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads and writes of regions by message: nothing is allocated, data goes from and to the caller's slice.
//!
//! Accesses longer than the negotiated transfer size are several messages, in ascending order; other threads'
//! accesses may come between them.

use zerocopy::IntoBytes;

use crate::client::expect_length;
use crate::protocol::codec::Reader;
use crate::protocol::region::{MultiWrite, RegionAccess};
use crate::protocol::{Command, DecodeError};
use crate::{Client, Error};

impl Client {
    /// Fills `data` from `offset` of a region.
    ///
    /// # Errors
    /// [`Error::Peer`], [`Error::InvalidArgument`] where the range wraps, and what a lost connection gives.
    pub fn region_read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Error> {
        check_range(offset, data.len())?;
        let mut offset = offset;
        for chunk in data.chunks_mut(self.transfer_size()) {
            let access = access(region, offset, chunk.len());
            self.call(Command::RegionRead, &[access.as_bytes()], &[], |body, _| {
                let data = check_reply(body, &access)?;
                expect_length("region_read.data", data.len(), chunk.len())?;
                chunk.copy_from_slice(data);
                Ok(())
            })?;
            offset = offset.wrapping_add(access.count.into());
        }
        Ok(())
    }

    /// Writes `data` at `offset` of a region and waits until the device has it.
    ///
    /// # Errors
    /// As [`Self::region_read`].
    pub fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        check_range(offset, data.len())?;
        let mut offset = offset;
        for chunk in data.chunks(self.transfer_size()) {
            let access = access(region, offset, chunk.len());
            let parts = [access.as_bytes(), chunk];
            self.call(Command::RegionWrite, &parts, &[], |body, _| {
                check_reply(body, &access).map(drop)
            })?;
            offset = offset.wrapping_add(access.count.into());
        }
        Ok(())
    }

    /// Writes `data` at `offset` of a region without waiting; a failure on the device's side is not told. A
    /// later call on this client comes after it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the range wraps, and what a lost connection gives.
    pub fn region_write_posted(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Error> {
        check_range(offset, data.len())?;
        let mut offset = offset;
        for chunk in data.chunks(self.transfer_size()) {
            let access = access(region, offset, chunk.len());
            self.connection()
                .post(Command::RegionWrite, &[access.as_bytes(), chunk])?;
            offset = offset.wrapping_add(access.count.into());
        }
        Ok(())
    }

    /// Posts several small writes, in order, in as few messages as the server takes: REGION_WRITE_MULTI if
    /// that was negotiated, else one message each.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a count that is not 1 to 8, then nothing is sent; and what a lost
    /// connection gives.
    pub fn region_write_multi(&self, writes: &[MultiWrite]) -> Result<(), Error> {
        if writes.iter().any(|write| write.bytes().is_none()) {
            return Err(Error::InvalidArgument("A write of a list is 1 to 8 bytes"));
        }
        if !self.negotiated().write_multiple {
            for write in writes {
                let data = write.bytes().unwrap_or_default();
                self.region_write_posted(write.region, write.offset, data)?;
            }
            return Ok(());
        }
        let most = (self.transfer_size() / size_of::<MultiWrite>()).max(1);
        for chunk in writes.chunks(most) {
            let count = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
            let parts = [count.as_bytes(), chunk.as_bytes()];
            self.connection().post(Command::RegionWriteMulti, &parts)?;
        }
        Ok(())
    }

    fn transfer_size(&self) -> usize {
        usize::try_from(self.negotiated().max_data_xfer_size).unwrap_or(usize::MAX)
    }
}

fn access(region: u32, offset: u64, length: usize) -> RegionAccess {
    RegionAccess {
        offset,
        region,
        // A chunk is no longer than the negotiated size, which is a u32.
        count: u32::try_from(length).unwrap_or(u32::MAX),
    }
}

fn check_range(offset: u64, length: usize) -> Result<(), Error> {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    match offset.checked_add(length) {
        Some(_) => Ok(()),
        None => Err(Error::InvalidArgument(
            "The range passes the end of 64 bits",
        )),
    }
}

/// Refuses a reply to another access, or to less of it; what follows the fixed part.
fn check_reply<'a>(body: &'a [u8], asked: &RegionAccess) -> Result<&'a [u8], DecodeError> {
    let mut reader = Reader::new(body);
    let answered: RegionAccess = reader.take("region_access")?;
    let pairs = [
        ("region_access.offset", answered.offset, asked.offset),
        (
            "region_access.region",
            answered.region.into(),
            asked.region.into(),
        ),
        (
            "region_access.count",
            answered.count.into(),
            asked.count.into(),
        ),
    ];
    match pairs
        .into_iter()
        .find(|(_, answered, asked)| answered != asked)
    {
        Some((field, value, _)) => Err(DecodeError::BadValue { field, value }),
        None => Ok(reader.rest()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Request;
    use crate::protocol::version::Capabilities;
    use crate::testing::{Peer, capabilities, client};

    /// Answers reads with bytes that tell their offset, and notes the sizes asked for.
    fn serve_reads(peer: &mut Peer) -> Vec<u32> {
        let mut counts = Vec::new();
        while let Some(request) = peer.next() {
            let Ok(Request::RegionRead(access)) = Request::decode(9, &request.body) else {
                panic!("{request:?}");
            };
            counts.push(access.count);
            let data = (0..u64::from(access.count)).map(|at| (access.offset + at).to_le_bytes()[0]);
            peer.reply(
                &request,
                &[access.as_bytes(), &data.collect::<Vec<_>>()].concat(),
                &[],
            );
        }
        counts
    }

    #[test]
    fn long_reads_are_split() {
        let (client, server) = client(capabilities(), serve_reads);
        let mut data = [0; 200];
        client.region_read(3, 5, &mut data).unwrap();
        assert!(
            data.iter()
                .zip(5..)
                .all(|(&found, expected)| found == expected),
            "{data:?}"
        );
        client.region_read(3, 5, &mut []).unwrap();
        client.region_read(3, u64::MAX - 4, &mut data[..4]).unwrap();
        let wraps = client.region_read(3, u64::MAX - 3, &mut data[..5]);
        assert!(matches!(wraps, Err(Error::InvalidArgument(_))), "{wraps:?}");
        drop(client);
        assert_eq!(server.join().unwrap(), [64, 64, 64, 8, 4]);
    }

    #[test]
    fn an_answer_to_another_access_is_refused() {
        type Change = fn(&mut Vec<u8>);
        let changes: [Change; 5] = [
            |body| body[0] ^= 1,
            |body| body[8] ^= 1,
            |body| body[12] = 3,
            |body| body.truncate(19),
            |body| body.push(0),
        ];
        for change in changes {
            let (client, server) = client(capabilities(), move |peer| {
                let request = peer.expect(Command::RegionRead);
                let mut body = [&request.body[..], &[0xff; 4]].concat();
                change(&mut body);
                peer.reply(&request, &body, &[]);
            });
            let mut data = [1; 4];
            let result = client.region_read(0, 0x10, &mut data);
            assert!(matches!(result, Err(Error::Reply { .. })), "{result:?}");
            assert_eq!(data, [1; 4]);
            server.join().unwrap();
        }
    }

    #[test]
    fn writes_wait_and_posted_writes_do_not() {
        let (client, server) = client(capabilities(), |peer| {
            let mut seen = Vec::new();
            while let Some(request) = peer.next() {
                let posted = request.header.wants_no_reply();
                if !posted {
                    peer.reply(&request, &request.body[..16], &[]);
                }
                seen.push((posted, request.body[16..].to_vec()));
            }
            seen
        });
        client.region_write_posted(2, 0, &[1; 100]).unwrap();
        client.region_write(2, 0, &[2; 100]).unwrap();
        drop(client);
        let expected = [(true, 1, 64), (true, 1, 36), (false, 2, 64), (false, 2, 36)];
        let expected = expected.map(|(posted, byte, count)| (posted, vec![byte; count]));
        assert_eq!(server.join().unwrap(), expected);
    }

    #[test]
    fn lists_of_writes_take_few_messages_or_one_each() {
        let writes: Vec<_> = (0..5_u8)
            .map(|n| MultiWrite::new(4, n.into(), &[n, n]).unwrap())
            .collect();
        for write_multiple in [true, false] {
            let capabilities = Capabilities {
                write_multiple: Some(write_multiple),
                ..capabilities()
            };
            let (client, server) = client(capabilities, |peer| {
                let (mut messages, mut seen) = (0, Vec::new());
                while let Some(request) = peer.next() {
                    assert!(request.header.wants_no_reply());
                    messages += 1;
                    match Request::decode(request.header.command, &request.body).unwrap() {
                        Request::RegionWriteMulti(_, list) => seen.extend(list),
                        Request::RegionWrite(access, data) => {
                            let write = MultiWrite::new(access.region, access.offset, data);
                            seen.push(write.unwrap());
                        }
                        other => panic!("{other:?}"),
                    }
                }
                (messages, seen)
            });
            client.region_write_multi(&writes).unwrap();
            client.region_write_multi(&[]).unwrap();
            let bad = [writes[0], MultiWrite::default()];
            assert!(client.region_write_multi(&bad).is_err());
            drop(client);
            let messages = if write_multiple { 3 } else { 5 };
            assert_eq!(server.join().unwrap(), (messages, writes.clone()));
        }
    }
}
