// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a piece of the stream is: memory of this process, or memory shared with the client.
//!
//! Shared memory may change at any moment, so that it is never a Rust slice: what must be believed is copied
//! out first.

use vm_memory::VolatileSlice;

/// Bytes hashed at once from shared memory: fits the first-level cache beside what else is there.
const TILE: usize = 16 << 10;

/// Room for a piece of the stream.
#[derive(Debug)]
pub enum Room<'a> {
    /// Of this process.
    Private(&'a mut [u8]),
    /// Shared with the client.
    Shared(VolatileSlice<'a>),
}

impl Room<'_> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Shared(slice) => slice.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets `fill` write to a part; `None` if it is not all inside.
    pub fn fill<R>(
        &mut self,
        at: usize,
        length: usize,
        fill: impl FnOnce(&VolatileSlice<'_>) -> R,
    ) -> Option<R> {
        let end = at.checked_add(length)?;
        match self {
            Self::Private(bytes) => Some(fill(&VolatileSlice::from(bytes.get_mut(at..end)?))),
            Self::Shared(slice) => Some(fill(&slice.subslice(at, length).ok()?)),
        }
    }

    /// Copies `bytes` to the offset `at`, as far as they fit.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        match self {
            Self::Private(room) => {
                let room = room.get_mut(at..).unwrap_or_default();
                let n = room.len().min(bytes.len());
                room[..n].copy_from_slice(&bytes[..n]);
            }
            Self::Shared(slice) => {
                if let Ok(slice) = slice.offset(at) {
                    slice.copy_from(bytes);
                }
            }
        }
    }

    /// Feeds a part to a checksum.
    pub fn hash(&self, at: usize, length: usize, hasher: &mut crc32fast::Hasher) {
        match self {
            Self::Private(bytes) => {
                let part = bytes.get(at..).unwrap_or_default();
                hasher.update(part.get(..length).unwrap_or(part));
            }
            Self::Shared(slice) => {
                if let Ok(part) = slice.subslice(at, length) {
                    hash_shared(&part, hasher);
                }
            }
        }
    }
}

/// A piece of the stream to be read.
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// Of this process.
    Private(&'a [u8]),
    /// Shared with the client.
    Shared(VolatileSlice<'a>),
}

impl<'a> Piece<'a> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Private(bytes) => bytes.len(),
            Self::Shared(slice) => slice.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first `length` bytes and the rest; all and nothing if there are not as many.
    #[must_use]
    pub fn split(self, length: usize) -> (Self, Self) {
        let length = length.min(self.len());
        match self {
            Self::Private(bytes) => {
                let (first, rest) = bytes.split_at(length);
                (Self::Private(first), Self::Private(rest))
            }
            Self::Shared(slice) => match slice.split_at(length) {
                Ok((first, rest)) => (Self::Shared(first), Self::Shared(rest)),
                // `length` is inside.
                Err(_) => (self, Self::Private(&[])),
            },
        }
    }

    /// Copies all of it to the end of `to`.
    pub fn append_to(&self, to: &mut Vec<u8>) {
        match self {
            Self::Private(bytes) => to.extend_from_slice(bytes),
            Self::Shared(slice) => {
                let at = to.len();
                to.resize(at + slice.len(), 0);
                slice.copy_to(&mut to[at..]);
            }
        }
    }
}

/// Feeds shared memory to a checksum, by way of a copy that nobody else can change.
pub fn hash_shared(slice: &VolatileSlice<'_>, hasher: &mut crc32fast::Hasher) {
    let mut tile = [0; TILE];
    let mut at = 0;
    while let Ok(rest) = slice.offset(at)
        && !rest.is_empty()
    {
        let copied = rest.copy_to(&mut tile[..]);
        hasher.update(&tile[..copied]);
        at += copied;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_shared_are_alike() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        let mut private = bytes.clone();
        let mut shared = bytes.clone();
        let mut rooms = [
            Room::Private(&mut private),
            Room::Shared(VolatileSlice::from(&mut shared[..])),
        ];
        for room in &mut rooms {
            room.put(99_998, &[1, 2, 3]);
            assert!(room.fill(99_999, 2, |_| ()).is_none());
            room.fill(0, 2, |slice| slice.copy_from(&[9_u8, 8]))
                .unwrap();
            let mut hasher = crc32fast::Hasher::new();
            room.hash(10, 90_000, &mut hasher);
            assert_eq!(hasher.finalize(), crc32fast::hash(&bytes[10..90_010]));
        }
        assert_eq!(private, shared);
        assert_eq!(
            (private[0], private[1], private[99_998], private[99_999]),
            (9, 8, 1, 2)
        );
        for piece in [
            Piece::Private(&private),
            Piece::Shared(VolatileSlice::from(&mut shared[..])),
        ] {
            let (first, rest) = piece.split(70_000);
            let mut all = Vec::new();
            first.append_to(&mut all);
            assert_eq!(all.len(), 70_000);
            rest.append_to(&mut all);
            assert_eq!(all, private);
            assert!(rest.split(1 << 20).1.is_empty());
        }
    }
}
