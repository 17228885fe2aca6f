// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The checksum of memory that others may change meanwhile: CRC-32 (ISO-HDLC).
//!
//! No crate hashes what cannot be a Rust slice, and copying it out first costs as much as half the checksum. So the
//! bulk is folded here by carry-less multiplication, each byte read once with a volatile load, to a few bytes that have
//! the same checksum; those, and all that is not aligned, go to crc32fast.
//!
//! Folding: a CRC is the remainder of a polynomial. A block that stands `n` bits before another can be replaced by the
//! remainder of `block * x^n` added to that other, and multiplying the two halves of a block by `x^(n + 32)` and
//! `x^(n - 32)` (mod the CRC's polynomial) keeps that within the block's size. Bits are reflected.

use crc32fast::Hasher;
use vm_memory::VolatileSlice;

/// Bytes copied out at once where nothing is folded: fits the first-level cache beside what else is there.
const TILE: usize = 4 << 10;

/// Feeds memory to a checksum. Each byte is read once; what is changed meanwhile counts as before or after.
pub fn feed(hasher: &mut Hasher, memory: &VolatileSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(fold) = x86::fold() {
        let lead = memory.ptr_guard().as_ptr().align_offset(x86::BLOCK);
        let bulk = memory.len().saturating_sub(lead) / x86::BLOCK * x86::BLOCK;
        if bulk > 0
            && let Ok((head, rest)) = memory.split_at(lead)
            && let Ok((bulk, tail)) = rest.split_at(bulk)
        {
            copy_and_feed(hasher, &head);
            let mut folded = [0; x86::BLOCK];
            fold(!hasher.clone().finalize(), &bulk, &mut folded);
            // Folding leaves what has the same checksum when it begins with a register of zeros.
            let mut of_bulk = Hasher::new_with_initial(!0);
            of_bulk.update(&folded);
            *hasher = Hasher::new_with_initial(of_bulk.finalize());
            return copy_and_feed(hasher, &tail);
        }
    }
    copy_and_feed(hasher, memory);
}

fn copy_and_feed(hasher: &mut Hasher, memory: &VolatileSlice<'_>) {
    let mut tile = [0; TILE];
    let mut at = 0;
    while let Ok(rest) = memory.offset(at)
        && !rest.is_empty()
    {
        let copied = rest.copy_to(&mut tile[..]);
        hasher.update(&tile[..copied]);
        at += copied;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, _mm256_clmulepi64_epi128, _mm256_set_epi32, _mm256_set_epi64x,
        _mm256_storeu_si256, _mm256_xor_si256,
    };

    use vm_memory::VolatileSlice;

    /// Bytes folded at once, and the alignment of what is.
    pub(super) const BLOCK: usize = LANES * LANE;
    const LANES: usize = 4;
    const LANE: usize = size_of::<__m256i>();

    /// Folds whole aligned blocks, one at least, to one; the first number is the CRC register to begin with.
    pub(super) type Fold = fn(u32, &VolatileSlice<'_>, &mut [u8; BLOCK]);

    /// `None` on processors without the instructions.
    pub(super) fn fold() -> Option<Fold> {
        let can = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("vpclmulqdq");
        can.then_some(|register, memory, folded| {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { fold_wide(register, memory, folded) }
        })
    }

    /// `x^n` modulo the polynomial of the CRC, bits reflected and one to the left, as carry-less products of
    /// reflected numbers come out one bit short.
    const fn power(n: usize) -> i64 {
        let mut remainder: u32 = 0x8000_0000;
        let mut i = 0;
        while i < n {
            let carry = remainder & 1 != 0;
            remainder = (remainder >> 1) ^ if carry { 0xedb8_8320 } else { 0 };
            i += 1;
        }
        (remainder as i64) << 1
    }

    #[target_feature(enable = "avx2,vpclmulqdq")]
    fn fold_wide(register: u32, memory: &VolatileSlice<'_>, folded: &mut [u8; BLOCK]) {
        const DISTANCE: usize = BLOCK * 8;
        const LOW: i64 = power(DISTANCE + 32);
        const HIGH: i64 = power(DISTANCE - 32);
        let by = _mm256_set_epi64x(HIGH, LOW, HIGH, LOW);
        let guard = memory.ptr_guard();
        let lanes = guard.as_ptr().cast::<__m256i>();
        let count = memory.len() / LANE;
        let load = |at: usize| {
            debug_assert!(at < count && lanes.is_aligned());
            // SAFETY: whole lanes inside the slice, aligned by the caller; volatile since others may write there.
            unsafe { lanes.add(at).read_volatile() }
        };
        let mut held = [load(0), load(1), load(2), load(3)];
        let begin = _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, register.cast_signed());
        held[0] = _mm256_xor_si256(held[0], begin);
        let mut at = LANES;
        while at < count {
            for (lane, held) in held.iter_mut().enumerate() {
                let low = _mm256_clmulepi64_epi128::<0x00>(*held, by);
                let high = _mm256_clmulepi64_epi128::<0x11>(*held, by);
                let moved = _mm256_xor_si256(low, high);
                *held = _mm256_xor_si256(moved, load(at + lane));
            }
            at += LANES;
        }
        for (bytes, held) in folded.chunks_exact_mut(LANE).zip(held) {
            // SAFETY: `bytes` has room for a lane.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), held) };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &mut [u8], from: usize, length: usize, before: &[u8]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(before);
        feed(
            &mut hasher,
            &VolatileSlice::from(&mut bytes[from..from + length]),
        );
        hasher.finalize()
    }

    #[test]
    fn the_check_value() {
        // "check" of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms.
        assert_eq!(of(&mut b"123456789".to_vec(), 0, 9, b""), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn the_same_as_of_a_slice(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            from in 0_usize..300, cut in 0_usize..300, before in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let from = from.min(bytes.len());
            let length = (bytes.len() - from).saturating_sub(cut);
            let whole = [&before[..], &bytes[from..from + length]].concat();
            prop_assert_eq!(of(&mut bytes, from, length, &before), crc32fast::hash(&whole));
        }
    }
}
