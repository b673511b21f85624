//! A set of files that takes no more room however many there are: for sure it has all that were put in, and some others.

use std::hash::{BuildHasher as _, RandomState};

/// Words of 64 bits: 256 KiB. A million files fill two fifths of it.
const WORDS: usize = 1 << 15;

/// Such a set, of handles.
#[derive(Debug)]
pub(crate) struct Traces {
    bits: Box<[u64]>,
    hasher: RandomState,
}

impl Default for Traces {
    fn default() -> Self {
        Self { bits: vec![0; WORDS].into_boxed_slice(), hasher: RandomState::new() }
    }
}

impl Traces {
    pub(crate) fn insert(&mut self, handle: [u8; 24]) {
        let (word, bit) = self.place(handle);
        if let Some(word) = self.bits.get_mut(word) {
            *word |= bit;
        }
    }

    pub(crate) fn may_contain(&self, handle: [u8; 24]) -> bool {
        let (word, bit) = self.place(handle);
        self.bits.get(word).is_none_or(|word| word & bit != 0)
    }

    pub(crate) fn clear(&mut self) {
        self.bits.fill(0);
    }

    fn place(&self, handle: [u8; 24]) -> (usize, u64) {
        let hash = self.hasher.hash_one(handle);
        (usize::try_from(hash >> 32).unwrap_or(0) % WORDS, 1 << (hash % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_found_and_little_else() {
        let handle = |number: u32| {
            let mut handle = [7; 24];
            handle[4..8].copy_from_slice(&number.to_le_bytes());
            handle
        };
        let mut traces = Traces::default();
        (0..10_000).for_each(|number| traces.insert(handle(number)));
        assert!((0..10_000).all(|number| traces.may_contain(handle(number))));
        let others = (10_000..20_000).filter(|number| traces.may_contain(handle(*number))).count();
        assert!(others < 200, "{others} of 10000");
        traces.clear();
        assert!((0..10_000).all(|number| !traces.may_contain(handle(number))));
    }
}
