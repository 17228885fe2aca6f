// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Test data that both sides of a test can make: a mistake in place, order or width shows as a wrong value, since no
//! two neighbours are alike.

/// The 32-bit word number `index` of the stream `seed`.
#[must_use]
pub const fn word(seed: u32, index: u32) -> u32 {
    // A multiplicative mix (Knuth's constant), folded so that high and low bits both depend on all of the index.
    let mixed = index
        .wrapping_add(seed.rotate_left(16))
        .wrapping_mul(0x9e37_79b1);
    mixed ^ (mixed >> 15) ^ seed
}

/// The first `length` bytes of the stream `seed`, little endian.
#[must_use]
pub fn bytes(seed: u32, length: usize) -> Vec<u8> {
    (0..)
        .flat_map(|index| word(seed, index).to_le_bytes())
        .take(length)
        .collect()
}

/// The picture that the guest draws: the XRGB8888 pixel at column `x` of line `y`, its unused byte 0.
#[must_use]
pub const fn pixel(x: u32, y: u32) -> u32 {
    word(0x5049_5845, y << 16 | x) & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_and_streams_differ() {
        for index in 0..10_000 {
            assert_ne!(word(1, index), word(1, index + 1));
            assert_ne!(word(1, index), word(2, index));
        }
        assert_ne!(pixel(0, 1), pixel(1, 0));
    }

    #[test]
    fn bytes_are_the_words() {
        assert_eq!(bytes(7, 6)[..4], word(7, 0).to_le_bytes());
        assert_eq!(bytes(7, 6)[4..], word(7, 1).to_le_bytes()[..2]);
    }
}
