// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A set of granules of VRAM: one bit for each. Pure.

/// Bits of a word.
const WORD: usize = u64::BITS as usize;

/// Which granules are meant. Numbers past the end are never in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granules {
    words: Vec<u64>,
    count: usize,
    /// No bit is set in the words before this one.
    first: usize,
}

impl Granules {
    /// None of `size` granules (rounded up to whole words).
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self {
            words: vec![0; size.div_ceil(WORD)],
            count: 0,
            first: 0,
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(&self, granule: usize) -> bool {
        let word = self.words.get(granule / WORD);
        word.is_some_and(|word| word & bit(granule) != 0)
    }

    /// Puts it in.
    pub fn insert(&mut self, granule: usize) {
        if let Some(word) = self.words.get_mut(granule / WORD)
            && *word & bit(granule) == 0
        {
            *word |= bit(granule);
            self.count += 1;
            self.first = self.first.min(granule / WORD);
        }
    }

    /// Takes it out.
    pub fn remove(&mut self, granule: usize) {
        if let Some(word) = self.words.get_mut(granule / WORD)
            && *word & bit(granule) != 0
        {
            *word &= !bit(granule);
            self.count -= 1;
        }
    }

    /// The lowest.
    pub fn lowest(&mut self) -> Option<usize> {
        let words = self.words.get(self.first..)?;
        let Some(skip) = words.iter().position(|word| *word != 0) else {
            self.first = self.words.len();
            return None;
        };
        self.first += skip;
        let zeros = self.words.get(self.first)?.trailing_zeros();
        Some(self.first * WORD + zeros as usize)
    }

    /// Takes out the lowest and what follows it without a gap, `limit` at most: the first, and how many.
    pub fn take_run(&mut self, limit: usize) -> Option<(usize, usize)> {
        let start = self.lowest()?;
        let mut length = 0;
        while length < limit && self.contains(start + length) {
            self.remove(start + length);
            length += 1;
        }
        Some((start, length))
    }
}

fn bit(granule: usize) -> u64 {
    1 << (granule % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_go_over_words_and_end_at_gaps_and_limits() {
        let mut granules = Granules::new(200);
        for granule in (60..70).chain(130..132).chain([199, 200, 5000]) {
            granules.insert(granule);
        }
        assert_eq!(
            granules.len(),
            14,
            "200 is in the last word, 5000 past the end"
        );
        assert_eq!(granules.take_run(4), Some((60, 4)));
        assert_eq!(granules.take_run(usize::MAX), Some((64, 6)));
        granules.insert(3);
        assert_eq!(granules.take_run(9), Some((3, 1)));
        assert_eq!(granules.take_run(9), Some((130, 2)));
        assert_eq!(granules.take_run(9), Some((199, 2)));
        assert_eq!(granules.take_run(9), None);
        granules.insert(0);
        assert_eq!(granules.lowest(), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0..3, 0_usize..300), 0..200)) {
            let (mut set, mut plain) = (Granules::new(257), BTreeSet::new());
            for (step, granule) in steps {
                match step {
                    0 => {
                        set.insert(granule);
                        if granule < 320 {
                            plain.insert(granule);
                        }
                    }
                    1 => {
                        set.remove(granule);
                        plain.remove(&granule);
                    }
                    _ => {
                        let run = set.take_run(3);
                        prop_assert_eq!(run.map(|(start, _)| start), plain.first().copied());
                        if let Some((start, length)) = run {
                            for granule in start..start + length {
                                prop_assert!(plain.remove(&granule));
                            }
                        }
                    }
                }
                prop_assert_eq!(set.len(), plain.len());
                prop_assert_eq!(set.contains(granule), plain.contains(&granule));
                prop_assert_eq!(set.clone().lowest(), plain.first().copied());
            }
        }
    }
}
