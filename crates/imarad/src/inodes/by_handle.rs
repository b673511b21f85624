//! Inodes by their handles, which is all that notices tell of a file.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::key::Key;

/// Those that have one. Files of different file systems may share a handle, if one is a copy of the other.
#[derive(Debug, Default)]
pub(super) struct ByHandle(HashMap<[u8; 24], Vec<Key>>);

impl ByHandle {
    pub(super) fn insert(&mut self, key: Key) {
        let Some(handle) = key.handle() else { return };
        let keys = self.0.entry(handle).or_default();
        if !keys.contains(&key) {
            keys.push(key);
        }
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(Entry::Occupied(mut keys)) = key.handle().map(|handle| self.0.entry(handle)) {
            keys.get_mut().retain(|other| other != key);
            if keys.get().is_empty() {
                keys.remove();
            }
        }
    }

    pub(super) fn get(&self, handle: &[u8; 24]) -> &[Key] {
        self.0.get(handle).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_a_file_system_share_handles_and_are_told_apart() {
        let key = |minor: u32| Key::of_handle((8, minor), 12, [7; 24]);
        let mut all = ByHandle::default();
        [key(1), key(2), key(1)].into_iter().for_each(|key| all.insert(key));
        assert_eq!(all.get(&[7; 24]), [key(1), key(2)]);
        all.remove(&key(1));
        all.remove(&key(1));
        assert_eq!((all.get(&[7; 24]), all.get(&[8; 24])), (&[key(2)][..], &[][..]));
        all.remove(&key(2));
        assert!(all.0.is_empty(), "nothing is left of what is forgotten");
    }
}
