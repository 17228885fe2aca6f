// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device state out of nothing, for tests of devices that have much of it: bytes that look random and follow
//! from where they are. Pure; several GB/s.

/// 2^64 / golden ratio, odd: neighbours get far apart.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Word number `n`: the bytes from 8n on, little endian.
fn word(n: u64) -> u64 {
    let spread = n.wrapping_add(1).wrapping_mul(SPREAD);
    (spread ^ (spread >> 29)).wrapping_mul(SPREAD)
}

/// Fills `bytes` with what is at `offset`, a multiple of 8.
pub fn fill(offset: u64, bytes: &mut [u8]) {
    let first = offset / 8;
    let (words, rest) = bytes.as_chunks_mut::<8>();
    let after = words.len() as u64;
    for (n, bytes) in (first..).zip(words) {
        *bytes = word(n).to_le_bytes();
    }
    for (byte, value) in rest
        .iter_mut()
        .zip(word(first.wrapping_add(after)).to_le_bytes())
    {
        *byte = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_from_the_place() {
        let mut whole = [0; 4096];
        fill(0, &mut whole);
        for (offset, length) in [(0, 4096), (8, 1), (8, 0), (2048, 2048), (4088, 7)] {
            let mut part = vec![0; length];
            fill(offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + length]);
        }
        let mut seen: Vec<_> = whole.chunks(8).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 512, "no word comes twice");
        fill(u64::MAX - 7, &mut whole);
    }
}
