// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a byte stream with descriptors to messages, in any fragmentation. No I/O.
//!
//! A stream socket hands out descriptors with the first byte of the `sendmsg` they came with, and a read
//! ends behind that `sendmsg`'s bytes. With one `sendmsg` per message (or more, but never one for several)
//! the descriptors of a read therefore belong to the last message that the read touched.
//!
//! ```text
//!   consumed   ready messages            partial        space for the next read
//!  |-----------|-------------------------|--------------|------------------------|
//!  0           start                                    end                   capacity
//! ```

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use zerocopy::FromBytes;

use crate::header::{HEADER_SIZE, Header};

/// Descriptors the kernel passes in one `sendmsg` at the most (`SCM_MAX_FD`), and so per message here.
pub const MAX_FDS: usize = 253;

/// Why a stream cannot be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A header announces a message shorter than itself, so its end is not known.
    #[error("Message size {} is less than a header", .0.size)]
    Size(Header),
    /// More descriptors came with one message than can be sent at once.
    #[error("More than {MAX_FDS} descriptors with one message")]
    TooManyDescriptors,
}

/// A message, or what is left of one.
#[derive(Debug)]
pub enum Frame<'a> {
    /// A whole message.
    Message {
        /// Its header.
        header: Header,
        /// What follows the header.
        body: &'a [u8],
        /// The descriptors that came with it, in order.
        fds: Vec<OwnedFd>,
    },
    /// A message longer than this side takes; its body was skipped and its descriptors closed.
    TooLong(Header),
}

/// Collects bytes and descriptors, hands out messages.
#[derive(Debug)]
pub struct Deframer {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of a too long message still to come.
    skip: usize,
    skipped: Option<Header>,
    /// Stream position of `buffer[0]`.
    origin: u64,
    /// Descriptors by the stream position of the message they belong to.
    fds: VecDeque<(u64, Vec<OwnedFd>)>,
}

impl Deframer {
    /// For messages of at most `max_message` bytes, header included.
    #[must_use]
    pub fn new(max_message: usize) -> Self {
        Self {
            buffer: vec![0; max_message.max(HEADER_SIZE)],
            start: 0,
            end: 0,
            skip: 0,
            skipped: None,
            origin: 0,
            fds: VecDeque::new(),
        }
    }

    /// Where the next bytes go; never empty once [`Self::next_frame`] has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start > 0 && (self.start == self.end || self.end == self.buffer.len()) {
            self.buffer.copy_within(self.start..self.end, 0);
            self.origin += self.start as u64;
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// Takes note that `count` bytes were put at the start of [`Self::space`] and that these descriptors came
    /// with them.
    ///
    /// # Errors
    /// [`FrameError::TooManyDescriptors`].
    pub fn received(
        &mut self,
        count: usize,
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), FrameError> {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
        let mut fds = fds.into_iter().peekable();
        if fds.peek().is_none() {
            return Ok(());
        }
        let owner = self.origin + self.last_message() as u64;
        match self.fds.back_mut() {
            Some((position, owned)) if *position == owner => owned.extend(fds),
            _ => self.fds.push_back((owner, fds.collect())),
        }
        match self.fds.back() {
            Some((_, owned)) if owned.len() > MAX_FDS => Err(FrameError::TooManyDescriptors),
            _ => Ok(()),
        }
    }

    /// Where the last message that has a byte in the buffer begins.
    fn last_message(&self) -> usize {
        // The rest of a too long message counts as a message of its own; its descriptors are dropped.
        let mut at = self.start;
        let mut length = self.skip;
        loop {
            if length == 0 {
                match self.header_at(at) {
                    Some(header) => length = header.size as usize,
                    None => return at,
                }
            }
            if length < HEADER_SIZE && at != self.start {
                return at;
            }
            match at.checked_add(length) {
                Some(next) if next < self.end && length > 0 => at = next,
                _ => return at,
            }
            length = 0;
        }
    }

    fn header_at(&self, at: usize) -> Option<Header> {
        let bytes = self.buffer.get(at..self.end)?;
        Some(Header::read_from_prefix(bytes).ok()?.0)
    }

    /// Whether [`Self::next_frame`] has one. Passes over what has come of a too long message.
    ///
    /// # Errors
    /// [`FrameError::Size`]: the stream cannot be continued.
    pub fn is_ready(&mut self) -> Result<bool, FrameError> {
        if self.skipped.is_none() {
            let Some(header) = self.header_at(self.start) else {
                return Ok(false);
            };
            let size = header.size as usize;
            if size < HEADER_SIZE {
                return Err(FrameError::Size(header));
            }
            if size <= self.buffer.len() {
                return Ok(self.end - self.start >= size);
            }
            self.skip = size;
            self.skipped = Some(header);
        }
        drop(self.take_fds());
        let step = self.skip.min(self.end - self.start);
        self.skip -= step;
        self.start += step;
        Ok(self.skip == 0)
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// [`FrameError::Size`]: the stream cannot be continued.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        if !self.is_ready()? {
            return Ok(None);
        }
        if let Some(header) = self.skipped.take() {
            return Ok(Some(Frame::TooLong(header)));
        }
        let Some(header) = self.header_at(self.start) else {
            return Ok(None);
        };
        let fds = self.take_fds();
        let body = self.start + HEADER_SIZE..self.start + header.size as usize;
        self.start = body.end;
        Ok(Some(Frame::Message {
            header,
            body: &self.buffer[body],
            fds,
        }))
    }

    /// The descriptors of the message at `start`.
    fn take_fds(&mut self) -> Vec<OwnedFd> {
        let position = self.origin + self.start as u64;
        match self.fds.front() {
            Some((owner, _)) if *owner <= position => {
                self.fds.pop_front().map(|(_, fds)| fds).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    /// Nothing of an unfinished message is held: the peer may leave without losing any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end && self.skipped.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::header::Command;

    fn message(id: u16, body: usize) -> Vec<u8> {
        let header = Header::request(id, Command::RegionWrite, body);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend((0..body).map(|i| u8::try_from(i % 251).unwrap()));
        bytes
    }

    fn fds(count: usize) -> Vec<OwnedFd> {
        (0..count)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect()
    }

    /// What comes out: id, body length, descriptors; `None` for a too long one.
    fn drain(deframer: &mut Deframer) -> Vec<(u16, Option<(usize, usize)>)> {
        let mut seen = Vec::new();
        while let Some(frame) = deframer.next_frame().unwrap() {
            seen.push(match frame {
                Frame::Message { header, body, fds } => (header.id, Some((body.len(), fds.len()))),
                Frame::TooLong(header) => (header.id, None),
            });
        }
        seen
    }

    /// Feeds one read.
    fn feed(deframer: &mut Deframer, bytes: &[u8], fd_count: usize) {
        deframer.space()[..bytes.len()].copy_from_slice(bytes);
        deframer.received(bytes.len(), fds(fd_count)).unwrap();
    }

    #[test]
    fn descriptors_go_to_the_last_message_of_a_read() {
        let mut deframer = Deframer::new(4096);
        let bytes = [message(1, 4), message(2, 8)].concat();
        feed(&mut deframer, &bytes, 2);
        assert_eq!(drain(&mut deframer), [(1, Some((4, 0))), (2, Some((8, 2)))]);

        let partial = message(4, 100);
        feed(
            &mut deframer,
            &[message(3, 0), partial[..5].to_vec()].concat(),
            1,
        );
        assert_eq!(drain(&mut deframer), [(3, Some((0, 0)))]);
        feed(&mut deframer, &partial[5..50], 1);
        feed(&mut deframer, &partial[50..], 0);
        assert_eq!(drain(&mut deframer), [(4, Some((100, 2)))]);
        assert!(deframer.is_empty());
    }

    #[test]
    fn too_long_messages_are_skipped_with_their_descriptors() {
        let mut deframer = Deframer::new(64);
        let long = message(1, 90);
        feed(&mut deframer, &long[..60], 3);
        assert_eq!(drain(&mut deframer), []);
        assert!(!deframer.is_empty());
        feed(
            &mut deframer,
            &[&long[60..], &message(2, 0)[..]].concat(),
            0,
        );
        assert_eq!(drain(&mut deframer), [(1, None), (2, Some((0, 0)))]);
        feed(&mut deframer, &message(3, 1), 1);
        assert_eq!(drain(&mut deframer), [(3, Some((1, 1)))]);
        assert!(deframer.fds.is_empty());
    }

    #[test]
    fn a_size_below_the_header_ends_the_stream() {
        let mut deframer = Deframer::new(64);
        let header = Header {
            size: 15,
            ..Header::default()
        };
        feed(&mut deframer, header.as_bytes(), 0);
        assert_eq!(deframer.next_frame().unwrap_err(), FrameError::Size(header));
    }

    #[test]
    fn descriptors_without_end_are_refused() {
        let mut deframer = Deframer::new(64);
        let bytes = message(1, 4);
        feed(&mut deframer, &bytes[..1], 200);
        deframer.space()[0] = bytes[1];
        assert_eq!(
            deframer.received(1, fds(200)),
            Err(FrameError::TooManyDescriptors)
        );
    }

    proptest! {
        /// However the bytes are cut, the same messages come out with the descriptors of their first byte.
        #[test]
        fn any_fragmentation_gives_the_same_messages(
            messages in prop::collection::vec((0_usize..300, 0_usize..3), 1..12),
            cuts in prop::collection::vec(1_usize..400, 1..40),
        ) {
            let mut deframer = Deframer::new(256);
            let mut seen = Vec::new();
            let mut cuts = cuts.into_iter().cycle();
            let mut expected = Vec::new();
            let mut batch: Vec<u8> = Vec::new();
            for (id, (body, fd_count)) in messages.into_iter().enumerate() {
                let id = u16::try_from(id).unwrap();
                let bytes = message(id, body);
                expected.push((id, (bytes.len() <= 256).then_some((body, fd_count))));
                // As the kernel does: bytes before join a read, a read ends behind descriptors.
                let mut fds_left = fd_count;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let room = deframer.space().len() - batch.len();
                    let take = cuts.next().unwrap().min(rest.len()).min(room);
                    batch.extend_from_slice(&rest[..take]);
                    rest = &rest[take..];
                    if fds_left > 0 || batch.len() >= room || batch.len() > 200 {
                        feed(&mut deframer, &batch, fds_left);
                        fds_left = 0;
                        batch.clear();
                        seen.extend(drain(&mut deframer));
                    }
                }
            }
            feed(&mut deframer, &batch, 0);
            seen.extend(drain(&mut deframer));
            prop_assert_eq!(seen, expected);
            prop_assert!(deframer.fds.is_empty());
        }

        /// Whatever comes in, nothing panics and no more is consumed than came.
        #[test]
        fn arbitrary_bytes_never_panic(reads in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..80), 0_usize..2), 0..30)) {
            let mut deframer = Deframer::new(64);
            'reads: for (bytes, fd_count) in reads {
                for piece in bytes.chunks(16) {
                    let room = deframer.space().len();
                    prop_assert!(room > 0);
                    let piece = &piece[..piece.len().min(room)];
                    feed(&mut deframer, piece, fd_count);
                    loop {
                        match deframer.next_frame() {
                            Ok(Some(_)) => {}
                            Ok(None) => break,
                            Err(_) => break 'reads,
                        }
                    }
                }
            }
        }
    }
}
