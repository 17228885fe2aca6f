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
    if let Some(fold) = x86::folds().into_iter().flatten().next() {
        return fold_and_feed(&fold, hasher, memory);
    }
    copy_and_feed(hasher, memory);
}

#[cfg(target_arch = "x86_64")]
fn fold_and_feed(fold: &x86::Fold, hasher: &mut Hasher, memory: &VolatileSlice<'_>) {
    let lead = memory.ptr_guard().as_ptr().align_offset(fold.block);
    let bulk = memory.len().saturating_sub(lead) / fold.block * fold.block;
    let Ok((head, rest)) = memory.split_at(lead.min(memory.len())) else {
        return copy_and_feed(hasher, memory);
    };
    let Ok((bulk, tail)) = rest.split_at(bulk) else {
        return copy_and_feed(hasher, memory);
    };
    copy_and_feed(hasher, &head);
    if !bulk.is_empty() {
        let mut folded = [0; x86::WIDEST];
        let folded = &mut folded[..fold.block];
        // SAFETY: whole aligned blocks, and the fold is one of this processor's.
        unsafe { (fold.run)(!hasher.clone().finalize(), &bulk, folded) };
        // Folding leaves what has the same checksum when it begins with a register of zeros.
        let mut of_bulk = Hasher::new_with_initial(!0);
        of_bulk.update(folded);
        *hasher = Hasher::new_with_initial(of_bulk.finalize());
    }
    copy_and_feed(hasher, &tail);
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
        __m256i, __m512i, _mm_cvtsi32_si128, _mm_set_epi64x, _mm256_broadcastsi128_si256,
        _mm256_clmulepi64_epi128, _mm256_storeu_si256, _mm256_xor_si256, _mm256_zextsi128_si256,
        _mm512_broadcast_i32x4, _mm512_clmulepi64_epi128, _mm512_storeu_si512, _mm512_xor_si512,
        _mm512_zextsi128_si512,
    };

    use vm_memory::VolatileSlice;

    /// Vectors of a block: as many as are needed to hide what a carry-less product takes.
    const LANES: usize = 4;
    /// The largest [`Fold::block`].
    pub(super) const WIDEST: usize = LANES * size_of::<__m512i>();

    /// A way to fold.
    pub(super) struct Fold {
        /// Bytes folded at once, and the alignment of what is.
        pub(super) block: usize,
        /// Folds blocks to one; the first number is the CRC register to begin with.
        ///
        /// # Safety
        /// Whole aligned blocks, one at least.
        pub(super) run: unsafe fn(u32, &VolatileSlice<'_>, &mut [u8]),
    }

    /// Those that this processor has instructions for, the fastest first.
    pub(super) fn folds() -> [Option<Fold>; 2] {
        let products = is_x86_feature_detected!("vpclmulqdq");
        let wide = products && is_x86_feature_detected!("avx512f");
        let narrow = products && is_x86_feature_detected!("avx2");
        [
            wide.then_some(Fold {
                block: LANES * size_of::<__m512i>(),
                run: fold_512,
            }),
            narrow.then_some(Fold {
                block: LANES * size_of::<__m256i>(),
                run: fold_256,
            }),
        ]
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

    /// The same loop for vectors of either width.
    macro_rules! folding {
        (
            $name:ident, $features:literal, $vector:ty,
            $broadcast:ident, $zero_extend:ident, $product:ident, $xor:ident, $store:ident
        ) => {
            #[target_feature(enable = $features)]
            fn $name(register: u32, memory: &VolatileSlice<'_>, folded: &mut [u8]) {
                const LANE: usize = size_of::<$vector>();
                const DISTANCE: usize = LANES * LANE * 8;
                const LOW: i64 = power(DISTANCE + 32);
                const HIGH: i64 = power(DISTANCE - 32);
                let by = $broadcast(_mm_set_epi64x(HIGH, LOW));
                let guard = memory.ptr_guard();
                let lanes = guard.as_ptr().cast::<$vector>();
                let count = memory.len() / LANE;
                let load = |at: usize| {
                    debug_assert!(at < count && lanes.is_aligned());
                    // SAFETY: whole lanes inside the slice, aligned by the caller; volatile since others may write there.
                    unsafe { lanes.add(at).read_volatile() }
                };
                let mut held = [load(0), load(1), load(2), load(3)];
                let begin = $zero_extend(_mm_cvtsi32_si128(register.cast_signed()));
                held[0] = $xor(held[0], begin);
                let mut at = LANES;
                while at < count {
                    for (lane, held) in held.iter_mut().enumerate() {
                        let low = $product::<0x00>(*held, by);
                        let high = $product::<0x11>(*held, by);
                        *held = $xor($xor(low, high), load(at + lane));
                    }
                    at += LANES;
                }
                for (bytes, held) in folded.chunks_exact_mut(LANE).zip(held) {
                    // SAFETY: `bytes` has room for a lane.
                    unsafe { $store(bytes.as_mut_ptr().cast(), held) };
                }
            }
        };
    }

    folding!(
        fold_256,
        "avx2,vpclmulqdq",
        __m256i,
        _mm256_broadcastsi128_si256,
        _mm256_zextsi128_si256,
        _mm256_clmulepi64_epi128,
        _mm256_xor_si256,
        _mm256_storeu_si256
    );
    folding!(
        fold_512,
        "avx512f,vpclmulqdq",
        __m512i,
        _mm512_broadcast_i32x4,
        _mm512_zextsi128_si512,
        _mm512_clmulepi64_epi128,
        _mm512_xor_si512,
        _mm512_storeu_si512
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &mut [u8], before: &[u8], feed: impl Fn(&mut Hasher, &VolatileSlice<'_>)) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(before);
        feed(&mut hasher, &VolatileSlice::from(bytes));
        hasher.finalize()
    }

    #[test]
    fn the_check_value() {
        // "check" of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms.
        assert_eq!(of(&mut b"123456789".to_vec(), b"", feed), 0xcbf4_3926);
    }

    proptest! {
        #[test]
        fn the_same_as_of_a_slice(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            from in 0_usize..600, cut in 0_usize..600, before in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let from = from.min(bytes.len());
            let end = bytes.len().saturating_sub(cut).max(from);
            let expected = crc32fast::hash(&[&before[..], &bytes[from..end]].concat());
            let bytes = &mut bytes[from..end];
            prop_assert_eq!(of(bytes, &before, feed), expected);
            prop_assert_eq!(of(bytes, &before, copy_and_feed), expected);
            #[cfg(target_arch = "x86_64")]
            for fold in x86::folds().iter().flatten() {
                let folded = of(bytes, &before, |hasher, memory| fold_and_feed(fold, hasher, memory));
                prop_assert_eq!(folded, expected, "{} bytes at once", fold.block);
            }
        }
    }
}
