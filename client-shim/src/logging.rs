// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA logging: which pages of guest memory the device wrote, for a VMM that copies them while it migrates.
//!
//! A server that cannot tell refuses the start: every page is then to be taken for written.

use zerocopy::IntoBytes;

use crate::info::size_u32;
use crate::protocol::Command;
use crate::protocol::codec::{DecodeError, Reader};
use crate::protocol::feature::{
    DMA_LOGGING_REPORT, DMA_LOGGING_START, DMA_LOGGING_STOP, DmaLoggingControl, DmaLoggingRange,
    DmaLoggingReport, Feature, GET, SET,
};
use crate::{Client, Error};

/// Bytes of a word of a bitmap.
const WORD: u32 = 8;

impl Client {
    /// Whether the server can log what the device writes.
    ///
    /// # Errors
    /// As [`Self::feature_probe`].
    pub fn has_dma_logging(&self) -> Result<bool, Error> {
        self.feature_probe(DMA_LOGGING_START, SET)
    }

    /// Logs what the device writes to `ranges` from now on; `page_size` is a wish. Maps may come and go.
    ///
    /// # Errors
    /// As [`Self::feature_set`]; ENOTTY or EINVAL where nothing can tell.
    pub fn dma_logging_start(
        &self,
        page_size: u64,
        ranges: &[DmaLoggingRange],
    ) -> Result<(), Error> {
        let num_ranges = u32::try_from(ranges.len())
            .map_err(|_| Error::InvalidArgument("Too many ranges to log"))?;
        let control = DmaLoggingControl {
            page_size,
            num_ranges,
            reserved: 0,
        };
        let data = [control.as_bytes(), ranges.as_bytes()].concat();
        self.feature_set(DMA_LOGGING_START, &data)
    }

    /// Ends logging; what was not reported is forgotten.
    ///
    /// # Errors
    /// As [`Self::feature_set`].
    pub fn dma_logging_stop(&self) -> Result<(), Error> {
        self.feature_set(DMA_LOGGING_STOP, &[])
    }

    /// Which pages the device wrote since the start, or since they were last reported: bit n of the words is
    /// the page at `iova + n * page_size`. A range too long for one reply is asked for in parts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a page size that is no power of two, else as [`Self::feature_get`]. What
    /// was reported before the error is forgotten by the server: every page is to be taken for written.
    pub fn dma_logging_report(
        &self,
        iova: u64,
        length: u64,
        page_size: u64,
    ) -> Result<Vec<u64>, Error> {
        if !page_size.is_power_of_two() {
            return Err(Error::InvalidArgument("A page size is a power of two"));
        }
        // As many bytes as one reply takes, in whole words.
        let most = self.negotiated().max_data_xfer_size.max(WORD) / WORD * WORD;
        let span = page_size.saturating_mul(u64::from(most) * 8);
        let mut words = Vec::new();
        let (mut at, mut rest) = (iova, length);
        loop {
            let part = rest.min(span);
            self.report(at, part, page_size, &mut words)?;
            rest -= part;
            if rest == 0 {
                return Ok(words);
            }
            let next = at.checked_add(part);
            at = next.ok_or(Error::InvalidArgument("A range to report wraps"))?;
        }
    }

    /// One report, appended.
    fn report(
        &self,
        iova: u64,
        length: u64,
        page_size: u64,
        words: &mut Vec<u64>,
    ) -> Result<(), Error> {
        let range = DmaLoggingReport {
            iova,
            length,
            page_size,
        };
        // Bounded by the transfer size, as the caller sees to.
        let bytes = length.div_ceil(page_size).div_ceil(64).saturating_mul(8);
        let fixed = size_u32::<Feature>() + size_u32::<DmaLoggingReport>();
        let argsz = u32::try_from(bytes).map_or(u32::MAX, |bytes| bytes.saturating_add(fixed));
        let flags = DMA_LOGGING_REPORT | GET;
        let request = Feature { argsz, flags };
        let parts = [request.as_bytes(), range.as_bytes()];
        self.call(Command::DeviceFeature, &parts, &[], |body, _| {
            let mut reader = Reader::new(body);
            let _: Feature = reader.take("device_feature")?;
            let found: DmaLoggingReport = reader.take("dma_logging_report")?;
            if found != range {
                return Err(DecodeError::BadValue {
                    field: "dma_logging_report.iova",
                    value: found.iova,
                });
            }
            // Not a word less, or pages would be taken for clean; what is behind is nobody's.
            let size = usize::try_from(bytes).unwrap_or(usize::MAX);
            let bitmap = reader.take_bytes("dma_logging_report.bitmap", size)?;
            let read = |word: &[u8; 8]| u64::from_ne_bytes(*word);
            words.extend(bitmap.as_chunks::<8>().0.iter().map(read));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;
    use crate::testing::{Message, Peer, capabilities, client};

    /// Reads a request's range.
    fn range(request: &Message) -> DmaLoggingReport {
        DmaLoggingReport::read_from_bytes(&request.body[8..]).unwrap()
    }

    fn answer(peer: &Peer, request: &Message, words: &[u64]) {
        let reply = [&request.body[..], words.as_bytes()].concat();
        peer.reply(request, &reply, &[]);
    }

    #[test]
    fn a_start_carries_its_ranges_and_a_stop_nothing() {
        let (client, server) = client(capabilities(), |peer| {
            let start = peer.expect(Command::DeviceFeature);
            let fixed = [8 + 16 + 32, DMA_LOGGING_START | SET, 0x2000, 0, 2, 0];
            assert_eq!(&start.body[..24], fixed.as_bytes());
            assert_eq!(
                &start.body[24..],
                [0_u64, 0x4000, 0x8000, 0x2000].as_bytes()
            );
            peer.reply(&start, &start.body, &[]);
            let stop = peer.expect(Command::DeviceFeature);
            assert_eq!(stop.body, [8, DMA_LOGGING_STOP | SET].as_bytes());
            peer.reply(&stop, &stop.body, &[]);
        });
        let range = |iova, length| DmaLoggingRange { iova, length };
        let ranges = [range(0, 0x4000), range(0x8000, 0x2000)];
        client.dma_logging_start(0x2000, &ranges).unwrap();
        client.dma_logging_stop().unwrap();
        server.join().unwrap();
    }

    #[test]
    fn a_long_range_is_reported_in_parts() {
        // The scripted server takes 64 bytes of data: but no client offers less than a page.
        let (client, server) = client(capabilities(), |peer| {
            let mut asked = Vec::new();
            while let Some(request) = peer.next() {
                let range = range(&request);
                let words = range.length.div_ceil(range.page_size).div_ceil(64);
                let mut bitmap = vec![0; usize::try_from(words).unwrap()];
                bitmap[0] = asked.len() as u64 + 1;
                answer(peer, &request, &bitmap);
                asked.push((range.iova, range.length));
            }
            asked
        });
        let most = u64::from(client.negotiated().max_data_xfer_size / 8 * 8) * 8 * 4096;
        let words = client
            .dma_logging_report(0x1000, 2 * most + 0x1000, 4096)
            .unwrap();
        let per_part = usize::try_from(most / 4096 / 64).unwrap();
        assert_eq!(words.len(), 2 * per_part + 1);
        let firsts = [words[0], words[per_part], words[2 * per_part]];
        assert_eq!(firsts, [1, 2, 3]);
        assert!(matches!(
            client.dma_logging_report(0, 1, 3),
            Err(Error::InvalidArgument(_))
        ));
        drop(client);
        let parts = [
            (0x1000, most),
            (0x1000 + most, most),
            (0x1000 + 2 * most, 0x1000),
        ];
        assert_eq!(server.join().unwrap(), parts);
    }

    #[test]
    fn a_reply_about_something_else_or_cut_short_is_refused() {
        for cut in [0, 8, 31, 32, 39] {
            let (client, server) = client(capabilities(), move |peer| {
                let request = peer.expect(Command::DeviceFeature);
                let mut reply = [&request.body[..], &[0xff; 8]].concat();
                reply.truncate(cut);
                peer.reply(&request, &reply, &[]);
            });
            let report = client.dma_logging_report(0, 0x4_0000, 4096);
            assert!(
                matches!(report, Err(Error::Reply { .. })),
                "{cut}: {report:?}"
            );
            server.join().unwrap();
        }
        let (client, server) = client(capabilities(), |peer| {
            let mut request = peer.expect(Command::DeviceFeature);
            request.body[9] ^= 0x10;
            answer(peer, &request, &[1]);
        });
        assert!(client.dma_logging_report(0, 4096, 4096).is_err());
        server.join().unwrap();
    }
}
