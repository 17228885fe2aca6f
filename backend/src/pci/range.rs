// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bounds of an access made by a peer. The one place where its offset and length become indices.

use std::ops::Range;

/// An access does not lie inside what it addresses. Nothing was read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Access of {len} bytes at {offset:#x} is outside the {size} bytes there are")]
pub struct OutOfRange {
    /// First byte of the access.
    pub offset: u64,
    /// Bytes asked for.
    pub len: usize,
    /// Bytes there are.
    pub size: usize,
}

/// The bytes `offset..offset + len` of `size`. Length 0 is inside up to and including the end.
pub(super) fn checked(offset: u64, len: usize, size: usize) -> Result<Range<usize>, OutOfRange> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| Some(start..start.checked_add(len)?))
        .filter(|range| range.end <= size)
        .ok_or(OutOfRange { offset, len, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges() {
        assert_eq!(checked(252, 4, 256), Ok(252..256));
        assert_eq!(checked(256, 0, 256), Ok(256..256));
        for (offset, len) in [(253, 4), (256, 1), (257, 0), (u64::MAX, 1), (1, usize::MAX)] {
            assert_eq!(
                checked(offset, len, 256),
                Err(OutOfRange {
                    offset,
                    len,
                    size: 256
                })
            );
        }
    }
}
