// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bits in words of 64, the lowest first: what bitmaps of pages are made of, here and in the kernel. Pure.

use std::ops::RangeInclusive;

/// The bits of a range of bit numbers that are in the word whose first bit is `base`.
pub(super) fn mask(base: u64, bits: &RangeInclusive<u64>) -> u64 {
    let end = base.saturating_add(63);
    if *bits.end() < base || *bits.start() > end {
        return 0;
    }
    let low = bits.start().saturating_sub(base);
    let high = (*bits.end()).min(end) - base;
    (u64::MAX << low) & (u64::MAX >> (63 - high))
}

/// Sets a range of bits; what is behind the last word is passed over.
pub(super) fn set(words: &mut [u64], bits: &RangeInclusive<u64>) {
    let Ok(skip) = usize::try_from(bits.start() / 64) else {
        return;
    };
    let bases = (0..).step_by(64).skip(skip);
    for (word, base) in words.iter_mut().skip(skip).zip(bases) {
        if base > *bits.end() {
            break;
        }
        *word |= mask(base, bits);
    }
}

/// Calls `visit` for each stretch of set bits, in order, however many words it spans.
pub fn for_each_run(words: &[u64], mut visit: impl FnMut(RangeInclusive<u64>)) {
    let mut run: Option<(u64, u64)> = None;
    for (word, base) in words.iter().zip((0..).step_by(64)) {
        let mut at = 0;
        while at < 64 {
            let rest = word >> at;
            let Some(zeros) = rest.checked_ilog2().map(|_| rest.trailing_zeros()) else {
                break;
            };
            let low = at + zeros;
            let ones = (word >> low).trailing_ones();
            let (first, last) = (base + u64::from(low), base + u64::from(low + ones - 1));
            run = match run {
                Some((start, end)) if end + 1 == first => Some((start, last)),
                before => {
                    if let Some((start, end)) = before {
                        visit(start..=end);
                    }
                    Some((first, last))
                }
            };
            at = low + ones;
        }
    }
    if let Some((start, end)) = run {
        visit(start..=end);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edges_of_words() {
        assert_eq!(mask(64, &(64..=127)), u64::MAX);
        assert_eq!(mask(64, &(0..=64)), 1);
        assert_eq!(mask(64, &(127..=500)), 1 << 63);
        assert_eq!(mask(64, &(0..=63)), 0);
        assert_eq!(mask(64, &(128..=u64::MAX)), 0);
        let mut words = [0; 2];
        set(&mut words, &(63..=u64::MAX));
        assert_eq!(words, [1 << 63, u64::MAX]);
        set(&mut words, &(128..=u64::MAX));
        set(&mut words, &(u64::MAX..=u64::MAX));
    }

    proptest! {
        #[test]
        fn what_is_set_is_found(runs in prop::collection::vec((0..300_u64, 0..130_u64), 0..6)) {
            let mut words = [0; 5];
            let mut model = [false; 320];
            for (first, length) in runs {
                let run = first..=(first + length).min(319);
                set(&mut words, &run);
                for (bit, is_set) in (0..).zip(&mut model) {
                    *is_set |= run.contains(&bit);
                }
            }
            let mut found = Vec::new();
            for_each_run(&words, |run| {
                let before = found.last();
                assert!(before.is_none_or(|end| end + 1 < *run.start()), "stretches are whole");
                found.extend(run);
            });
            let expected = (0..).zip(model).filter_map(|(bit, is_set)| is_set.then_some(bit));
            prop_assert_eq!(found, expected.collect::<Vec<u64>>());
        }
    }
}
