// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DEVICE_FEATURE: get, set and probe by number. What the bytes mean is the caller's business.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::client::MAX_ARGSZ;
use crate::info::size_u32;
use crate::protocol::Command;
use crate::protocol::codec::Reader;
use crate::protocol::feature::{Feature, GET, INDEX_MASK, PROBE, SET};
use crate::{Client, Error};

/// Room for a reply's data at the first try, in bytes; the features without bitmaps fit.
const FIRST_ROOM: u32 = 64;

impl Client {
    /// The data of a feature, with `input` as the request's (empty for most).
    ///
    /// # Errors
    /// [`Error::Peer`] (EINVAL or ENOTTY where the device has no such feature), [`Error::InvalidArgument`]
    /// for a number or an input that no message can carry, and what a lost connection gives.
    pub fn feature_get(&self, feature: u32, input: &[u8]) -> Result<Vec<u8>, Error> {
        let fixed = request_size(feature, input)?;
        self.grow(
            Command::DeviceFeature,
            fixed.saturating_add(FIRST_ROOM),
            |argsz| {
                let flags = feature | GET;
                let request = Feature { argsz, flags };
                let parts = [request.as_bytes(), input];
                self.call(Command::DeviceFeature, &parts, &[], |body, _| {
                    let mut reader = Reader::new(body);
                    let reply: Feature = reader.take("device_feature")?;
                    let whole = reply.argsz <= argsz;
                    Ok((reply.argsz, whole.then(|| reader.rest().to_vec())))
                })
            },
        )
    }

    /// Sets a feature.
    ///
    /// # Errors
    /// As [`Self::feature_get`].
    pub fn feature_set(&self, feature: u32, data: &[u8]) -> Result<(), Error> {
        let argsz = request_size(feature, data)?;
        let flags = feature | SET;
        let request = Feature { argsz, flags };
        let parts = [request.as_bytes(), data];
        self.call(Command::DeviceFeature, &parts, &[], |_, _| Ok(()))
    }

    /// Whether the device has a feature and it can be used in these ways (`GET`, `SET` or both).
    ///
    /// # Errors
    /// [`Error::Peer`] for other refusals than that there is no such feature, [`Error::InvalidArgument`],
    /// and what a lost connection gives.
    pub fn feature_probe(&self, feature: u32, ways: u32) -> Result<bool, Error> {
        let argsz = request_size(feature, &[])?;
        let flags = feature | PROBE | (ways & (GET | SET));
        let request = Feature { argsz, flags };
        match self.call(
            Command::DeviceFeature,
            &[request.as_bytes()],
            &[],
            |_, _| Ok(()),
        ) {
            Ok(()) => Ok(true),
            Err(error) if is_unsupported(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether a server says by this that it does not have what was asked for: the kernel ENOTTY, the reference
/// library EINVAL.
pub(crate) fn is_unsupported(error: &Error) -> bool {
    let no = [Errno::NOTTY, Errno::INVAL, Errno::NOTSUP, Errno::NOSYS];
    matches!(error, Error::Peer { .. })
        && no.iter().any(|errno| errno.raw_os_error() == error.errno())
}

fn request_size(feature: u32, data: &[u8]) -> Result<u32, Error> {
    if feature & !INDEX_MASK != 0 {
        return Err(Error::InvalidArgument("A feature's number has 16 bits"));
    }
    let size = u32::try_from(data.len())
        .ok()
        .and_then(|n| n.checked_add(size_u32::<Feature>()));
    match size {
        Some(size) if size <= MAX_ARGSZ => Ok(size),
        _ => Err(Error::InvalidArgument("Too much data for a feature")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::feature::{DMA_LOGGING_REPORT, MIGRATION};
    use crate::testing::{capabilities, client, word};

    #[test]
    fn a_long_answer_is_asked_for_again_with_room() {
        let (client, server) = client(capabilities(), |peer| {
            let mut rooms = Vec::new();
            while let Some(request) = peer.next() {
                assert_eq!(word(&request.body, 4), DMA_LOGGING_REPORT | GET);
                assert_eq!(&request.body[8..], [7; 24]);
                let room = word(&request.body, 0);
                rooms.push(room);
                let mut reply = [8_u32 + 24 + 512, DMA_LOGGING_REPORT | GET]
                    .as_bytes()
                    .to_vec();
                if room >= 8 + 24 + 512 {
                    reply.extend([7; 24 + 512]);
                }
                peer.reply(&request, &reply, &[]);
            }
            rooms
        });
        let data = client.feature_get(DMA_LOGGING_REPORT, &[7; 24]).unwrap();
        assert_eq!(data.len(), 24 + 512);
        drop(client);
        assert_eq!(server.join().unwrap(), [8 + 24 + FIRST_ROOM, 8 + 24 + 512]);
    }

    #[test]
    fn a_probe_tells_no_from_failure() {
        let (client, server) = client(capabilities(), |peer| {
            for errno in [0, 22, 25, 5] {
                let request = peer.expect(Command::DeviceFeature);
                assert_eq!(request.body, [8, MIGRATION | PROBE | GET].as_bytes());
                match errno {
                    0 => peer.reply(&request, &request.body, &[]),
                    errno => {
                        peer.sender
                            .send(&request.header.error_reply(errno), &[], &[])
                            .unwrap();
                    }
                }
            }
        });
        assert!(client.feature_probe(MIGRATION, GET).unwrap());
        assert!(!client.feature_probe(MIGRATION, GET).unwrap());
        assert!(!client.feature_probe(MIGRATION, GET).unwrap());
        assert_eq!(client.feature_probe(MIGRATION, GET).unwrap_err().errno(), 5);
        server.join().unwrap();
    }

    #[test]
    fn a_set_carries_its_data_and_nonsense_is_not_sent() {
        let (client, server) = client(capabilities(), |peer| {
            let request = peer.expect(Command::DeviceFeature);
            assert_eq!(request.body, [12_u32, 2 | SET, 0xabcd].as_bytes());
            peer.reply(&request, &request.body, &[]);
            assert!(peer.next().is_none());
        });
        client.feature_set(2, 0xabcd_u32.as_bytes()).unwrap();
        assert!(matches!(
            client.feature_get(GET, &[]),
            Err(Error::InvalidArgument(_))
        ));
        let long = vec![0; 1 << 20];
        assert!(matches!(
            client.feature_set(2, &long),
            Err(Error::InvalidArgument(_))
        ));
        drop(client);
        server.join().unwrap();
    }
}
