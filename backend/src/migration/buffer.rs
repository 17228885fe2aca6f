// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a piece of the stream is: memory of this process, or memory shared with the client.
//!
//! Shared memory may change at any moment, so that it is never a Rust slice: what must be believed is copied
//! out first.

use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::driver::{DataStream, Lent};

/// Room for a piece of the stream.
#[derive(Debug)]
pub enum Room<'a> {
    /// Of a reply. Less in it than asked for means that there is no more.
    Reply {
        /// Where it is put together.
        bytes: &'a mut [u8],
        /// What is sent instead of a part of `bytes`.
        borrowed: &'a mut Option<Borrowed>,
    },
    /// Shared with the client, who is told apart why it is not full.
    Shared(VolatileSlice<'a>),
}

/// A part of a reply that lies elsewhere.
#[derive(Debug)]
pub struct Borrowed {
    /// Where in the reply's data it begins, in bytes.
    pub at: usize,
    /// What is sent there.
    pub lent: Lent,
}

impl Room<'_> {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Reply { bytes, .. } => bytes.len(),
            Self::Shared(slice) => slice.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the client can tell a room that is not full from the end.
    #[must_use]
    pub fn may_be_short(&self) -> bool {
        matches!(self, Self::Shared(_))
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
            Self::Reply { bytes, .. } => Some(fill(&VolatileSlice::from(bytes.get_mut(at..end)?))),
            Self::Shared(slice) => Some(fill(&slice.subslice(at, length).ok()?)),
        }
    }

    /// Has the stream lend what goes to the offset `at`, `most` bytes at the most, where that is possible: in a reply,
    /// and once in each.
    ///
    /// # Errors
    /// EIO for a device that lends what it does not have.
    pub fn borrow(
        &mut self,
        at: usize,
        most: usize,
        stream: &mut dyn DataStream,
    ) -> Result<Option<VolatileSlice<'_>>, Errno> {
        let Self::Reply { borrowed, .. } = self else {
            return Ok(None);
        };
        if borrowed.is_some() {
            return Ok(None);
        }
        let Some(lent) = stream.lend(most) else {
            return Ok(None);
        };
        let lent = &borrowed.insert(Borrowed { at, lent }).lent;
        let bytes = lent.bytes().filter(|bytes| bytes.len() <= most);
        bytes.map(Some).ok_or(Errno::IO)
    }

    /// Copies `bytes` to the offset `at`, as far as they fit.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        match self {
            Self::Reply { bytes: room, .. } => {
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

    /// The first `length` bytes, what was borrowed among them.
    pub fn copy_out(&mut self, length: usize) -> Vec<u8> {
        let mut copy = vec![0; length];
        self.fill(0, length, |slice| slice.copy_to(&mut copy[..]));
        if let Self::Reply { borrowed, .. } = self
            && let Some(Borrowed { at, lent }) = borrowed.take()
            && let Some(bytes) = lent.bytes()
        {
            bytes.copy_to(copy.get_mut(at..).unwrap_or_default());
        }
        copy
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::driver::{PrecopyInfo, Taken};
    use super::*;
    use crate::device::model::vram::Vram;

    #[test]
    fn private_and_shared_are_alike() {
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        let mut private = bytes.clone();
        let mut shared = bytes.clone();
        let mut rooms = [
            Room::Reply {
                bytes: &mut private,
                borrowed: &mut None,
            },
            Room::Shared(VolatileSlice::from(&mut shared[..])),
        ];
        for room in &mut rooms {
            room.put(99_998, &[1, 2, 3]);
            assert!(room.fill(99_999, 2, |_| ()).is_none());
            room.fill(0, 2, |slice| slice.copy_from(&[9_u8, 8]))
                .unwrap();
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

    /// A stream that lends part of the memory of a device.
    #[derive(Debug)]
    struct Lender(Arc<Vram>, usize);

    impl DataStream for Lender {
        fn read(&mut self, _: &VolatileSlice<'_>) -> Result<Taken, Errno> {
            Ok(Taken::default())
        }

        fn lend(&mut self, most: usize) -> Option<Lent> {
            let length = most.min(std::mem::take(&mut self.1));
            self.0.lend(0, length).filter(|_| length > 0)
        }

        fn write(&mut self, from: &VolatileSlice<'_>, _: bool) -> Result<usize, Errno> {
            Ok(from.len())
        }

        fn precopy_info(&mut self) -> Result<PrecopyInfo, Errno> {
            Ok(PrecopyInfo::default())
        }
    }

    #[test]
    fn a_reply_borrows_once_and_is_copied_whole() {
        let vram = Arc::new(Vram::anonymous(1 << 20).unwrap());
        vram.write(0, &[7; 100]).unwrap();
        let mut stream = Lender(vram, 100);
        let (mut bytes, mut borrowed) = (vec![1; 300], None);
        let mut room = Room::Reply {
            bytes: &mut bytes,
            borrowed: &mut borrowed,
        };
        let lent = room.borrow(50, 1000, &mut stream).unwrap();
        assert_eq!(lent.map(|bytes| bytes.len()), Some(100));
        stream.1 = 100;
        assert!(room.borrow(150, 100, &mut stream).unwrap().is_none());
        let copy = room.copy_out(200);
        let expected = [vec![1; 50], vec![7; 100], vec![1; 50]].concat();
        assert_eq!(copy, expected);
        // What was taken back is no longer sent from there.
        assert!(borrowed.is_none());
        let mut memory = vec![0; 300];
        let mut shared = Room::Shared(VolatileSlice::from(&mut memory[..]));
        assert!(shared.borrow(0, 100, &mut stream).unwrap().is_none());
    }
}
