// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stream in pieces, beside the same stream cut into messages in one go.
//!
//! The first byte is the largest message in units of 8 bytes; then the stream, of which the first half byte by byte
//! says how the other is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfio_user_protocol::{
    HEADER_SIZE, Header,
    deframer::{Deframer, Frame},
};
use zerocopy::FromBytes;

/// A message as both sides tell it: its header and body, or nothing of a body that was too long.
type Told = (Header, Option<Vec<u8>>);

/// The messages of a whole stream, and whether it ends in one that cannot be framed.
fn expected(mut stream: &[u8], max: usize) -> (Vec<Told>, bool) {
    let mut messages = Vec::new();
    while let Ok((header, _)) = Header::read_from_prefix(stream) {
        let size = header.size as usize;
        if size < HEADER_SIZE {
            return (messages, true);
        }
        if size > stream.len() {
            break;
        }
        let body = stream[HEADER_SIZE..size].to_vec();
        messages.push((header, (size <= max).then_some(body)));
        stream = &stream[size..];
    }
    (messages, false)
}

fuzz_target!(|data: &[u8]| {
    let Some((&max, rest)) = data.split_first() else {
        return;
    };
    let max = usize::from(max) * 8;
    let (cuts, stream) = rest.split_at(rest.len() / 2);
    let mut cuts = cuts.iter().map(|cut| usize::from(*cut % 40) + 1).cycle();
    let mut deframer = Deframer::new(max);
    let max = max.max(HEADER_SIZE);

    let mut told = Vec::new();
    let mut bad = false;
    let mut left = stream;
    'stream: loop {
        loop {
            match deframer.next_frame() {
                Ok(Some(Frame::Message { header, body, fds })) => {
                    assert!(fds.is_empty());
                    told.push((header, Some(body.to_vec())));
                }
                Ok(Some(Frame::TooLong(header))) => told.push((header, None)),
                Ok(None) => break,
                Err(_) => {
                    bad = true;
                    break 'stream;
                }
            }
        }
        if left.is_empty() {
            break;
        }
        let space = deframer.space();
        assert!(!space.is_empty(), "no room, and no message");
        let count = cuts.next().unwrap_or(1).min(left.len()).min(space.len());
        space[..count].copy_from_slice(&left[..count]);
        left = &left[count..];
        deframer.received(count, []).expect("no descriptors");
    }
    assert_eq!((told, bad), expected(stream, max));
});
