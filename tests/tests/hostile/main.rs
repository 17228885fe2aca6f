// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Everything a client, or somebody who merely reaches the socket, can do wrong, against the running backend: the right
//! errno or a closed connection, and afterwards a backend that serves as before.

mod arguments;
mod closing;
mod descriptors;
mod framing;
mod fuse;
mod leaks;
mod lifecycle;
mod memory;
mod negotiation;
mod requests;
mod view;
mod witness;

const ENOENT: u32 = 2;
const EACCES: u32 = 13;
const EBUSY: u32 = 16;
const EEXIST: u32 = 17;
const EINVAL: u32 = 22;
const EPERM: u32 = 1;

/// The largest message that the backend takes: header, fixed part, and the 1 MiB of data that it advertises.
const MAX_MESSAGE: usize = 16 + 16 + MAX_DATA;
/// The largest count of a data transfer.
const MAX_DATA: usize = 1 << 20;
/// The most descriptors that the backend takes with one message.
const MAX_FDS: usize = 16;

/// Bytes of 32-bit words.
fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Bytes of 64-bit words.
fn longs<const N: usize>(longs: [u64; N]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}
