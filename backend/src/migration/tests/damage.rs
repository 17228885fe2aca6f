// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams that are not right are never loaded: damaged, made of two, or with records that are not where they were.

use super::*;

/// A stream that is not right, in memory of either kind: refused as such, and the device unharmed.
#[track_caller]
fn refused(stream: &[u8], what: fmt::Arguments<'_>) {
    for shared in [false, true] {
        let Err(failed) = loads(stream, shared) else {
            panic!("loaded: {what}, shared: {shared}");
        };
        let (front, error) = *failed;
        assert_eq!(error.errno(), Errno::PROTO, "{what}: {error}");
        unharmed(&front);
    }
}

#[test]
fn a_damaged_stream_is_never_loaded() {
    let good = small();
    for shared in [false, true] {
        loads(&good, shared).unwrap();
        // Nothing at all is no stream, and no error.
        let nothing = loads(&[], shared).unwrap();
        assert!(!nothing.device.script().loaded);
    }
    for at in 0..good.len() {
        if at > 0 {
            refused(&good[..at], format_args!("cut at {at}"));
        }
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            refused(&bad, format_args!("byte {at}, bit {bit}"));
        }
        let mut longer = good.clone();
        longer.insert(at, good[at]);
        refused(&longer, format_args!("byte {at} twice"));
        let mut shorter = good.clone();
        shorter.remove(at);
        refused(&shorter, format_args!("without byte {at}"));
    }
    refused(&[&good[..], &good[..]].concat(), format_args!("twice"));
    refused(&[&good[..], b"V"].concat(), format_args!("a byte more"));
}

/// Where each record of a stream begins, and the stream ends.
fn bounds(stream: &[u8]) -> Vec<usize> {
    let mut bounds = vec![0];
    while let Some(header) = stream[bounds[bounds.len() - 1]..].first_chunk::<HEADER>() {
        let length = u32::from_le_bytes(*header[24..].first_chunk().unwrap());
        bounds.push(bounds[bounds.len() - 1] + HEADER + length as usize);
    }
    assert_eq!(bounds.last(), Some(&stream.len()));
    bounds
}

#[test]
fn two_streams_never_make_one() {
    // The same data again, so that nothing but the number of the stream tells them apart; and other data.
    for (one, other) in [(small(), small()), (small(), small_of(7))] {
        assert_eq!(one.len(), other.len());
        assert_ne!(one, other);
        for (a, b) in [(&one, &other), (&other, &one)] {
            for at in 0..=a.len() {
                let spliced = [&a[..at], &b[at..]].concat();
                if spliced == *a || spliced == *b {
                    drop(loads(&spliced, true).unwrap());
                } else {
                    refused(&spliced, format_args!("another stream from {at} on"));
                }
            }
            for ends in bounds(a).windows(2) {
                let mut foreign = a.clone();
                foreign[ends[0]..ends[1]].copy_from_slice(&b[ends[0]..ends[1]]);
                refused(&foreign, format_args!("another's record at {}", ends[0]));
            }
        }
    }
}

#[test]
fn records_moved_repeated_or_left_out_are_never_loaded() {
    let good = small();
    let bounds = bounds(&good);
    let records: Vec<_> = bounds
        .windows(2)
        .map(|ends| &good[ends[0]..ends[1]])
        .collect();
    assert!(records.len() > 5, "one of each kind, and data twice");
    for at in 0..records.len() {
        for to in 0..=records.len() {
            let mut twice = records.clone();
            twice.insert(to, records[at]);
            refused(&twice.concat(), format_args!("{at} again before {to}"));
        }
        for other in 0..at {
            let mut swapped = records.clone();
            swapped.swap(at, other);
            refused(&swapped.concat(), format_args!("{at} and {other} swapped"));
        }
        let mut without = records.clone();
        without.remove(at);
        refused(&without.concat(), format_args!("without {at}"));
    }
    // Wherever records begin: neighbours of a byte, of a header, of a record with a payload.
    for length in [1, HEADER, HEADER + 5, HEADER + 20] {
        for at in 0..=good.len() - 2 * length {
            let mut swapped = good.clone();
            swapped[at..at + 2 * length].rotate_left(length);
            if swapped != good {
                refused(&swapped, format_args!("{length} bytes swapped at {at}"));
            }
        }
    }
}
