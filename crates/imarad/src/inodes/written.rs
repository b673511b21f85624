//! Files that somebody may be writing to.

use std::time::Instant;

use imara_integrity::iint::Writable;
use imara_linux::file::FileFacts;

use super::Inodes;
use crate::closer::LateFd;
use crate::key::Key;
use crate::look::Look;

/// Written files without a name that are remembered at most.
const ORPHANS: usize = 4096;

/// A file that somebody may be writing to.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) writable: Writable,
    /// What was found in the file before anybody wrote; absent if it is sure that somebody did.
    pub(crate) before: Option<Look>,
    /// Kept for a short while after a writer came or went, to see whether he has gone and to renew the label.
    pub(crate) file: Option<LateFd>,
    /// When that is tried next.
    pub(crate) due: Option<Instant>,
    /// If there was no writer: how many events must have been handled until all that happened before is known.
    pub(crate) quiet: Option<u64>,
    /// Whether we have already complained that its label could not be renewed.
    pub(crate) complained: bool,
    /// Whether somebody who wrote, and for whom others vouch, has closed it since. Without that, whoever changed it did so by
    /// name (`truncate(2)`), and nobody knows who he was.
    pub(crate) closed: bool,
    /// Whether owner, mode or label have changed since: it may have been somebody else's file for a while.
    pub(crate) attributes: bool,
    /// Whether somebody may have it open for writing whom no rule asked about. Nobody vouches for what is in it then, as long
    /// as it has a writer.
    pub(crate) stranger: bool,
}

impl Written {
    /// Whether what has changed in it is to be followed. To be asked when all notices have been heard.
    pub(crate) const fn is_followed(&self) -> bool {
        self.writable.good && (self.closed || !self.attributes)
    }

    /// Whether it makes a difference that somebody closes it: whoever changed it may have opened it.
    pub(crate) const fn depends_on_close(&self) -> bool {
        self.before.is_some() || (self.writable.good && !self.is_followed())
    }

    /// One of which nothing else is known yet.
    pub(crate) const fn new(writable: Writable) -> Self {
        Self {
            writable,
            before: None,
            file: None,
            due: None,
            quiet: None,
            complained: false,
            closed: false,
            attributes: false,
            stranger: false,
        }
    }

    /// Whether the file, which looks so now, has surely not been written to.
    pub(crate) fn is_untouched(&self, now: &FileFacts) -> bool {
        self.before.as_ref().is_some_and(|before| before.sighting.holds(now))
    }
}

impl Inodes {
    pub(crate) fn written(&self, key: &Key) -> Option<&Written> {
        self.written.get(key)
    }

    pub(crate) fn written_mut(&mut self, key: &Key) -> Option<&mut Written> {
        self.written.get_mut(key)
    }

    pub(crate) fn write(&mut self, key: Key, written: Written) {
        self.written_by_handle.insert(key);
        self.written.insert(key, written);
    }

    /// Owner, mode or label of the file with this handle have changed.
    pub(crate) fn note_attributes(&mut self, handle: &[u8; 24]) {
        for key in self.written_by_handle.get(handle) {
            if let Some(written) = self.written.get_mut(key) {
                written.attributes = true;
            }
        }
    }

    pub(crate) fn take_written(&mut self, key: &Key) -> Option<Written> {
        self.orphans.remove(key);
        self.written_by_handle.remove(key);
        self.written.remove(key)
    }

    pub(super) fn forget_written(&mut self, which: impl Fn(&Key) -> bool) {
        let keys: Vec<Key> = self.written.keys().filter(|key| which(key)).copied().collect();
        keys.iter().for_each(|key| drop(self.take_written(key)));
    }

    /// Notes that a written file has no name any more. Such files are forgotten in turn: nobody tells us of their end.
    pub(crate) fn orphan(&mut self, key: Key) {
        if key.is_unique() {
            self.bound(key);
        } else {
            drop(self.take_written(&key));
        }
    }

    /// Keeps what is written of this file among the last few thousand that may never be heard of again.
    pub(crate) fn bound(&mut self, key: Key) {
        self.orphans.insert(key);
        if self.orphans.len() > ORPHANS
            && let Some(oldest) = self.orphans.pop_front()
        {
            drop(self.take_written(&oldest));
        }
    }

    /// Whether there are descriptors to spare for files that are being written. Of those that nobody may ever ask for again
    /// none is kept.
    pub(crate) fn has_room_for_writers(&self) -> bool {
        self.written.len().saturating_sub(self.orphans.len()) < self.capacity / 4
    }

    /// Written files with this handle: one, or none, but for copies of file systems.
    pub(crate) fn written_with(&self, handle: &[u8; 24]) -> Vec<Key> {
        self.written_by_handle.get(handle).to_vec()
    }

    /// How many files with a name are being written by writers who found them good.
    pub(crate) fn good_writers(&self) -> usize {
        let good = self.written.iter().filter(|(_, written)| written.writable.good);
        good.filter(|(key, _)| !self.orphans.contains(*key)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inodes(keys: &[Key]) -> Inodes {
        let mut inodes = Inodes::new(16);
        for key in keys {
            inodes.write(*key, Written::new(Writable { good: true }));
        }
        inodes
    }

    #[test]
    fn a_change_of_attributes_counts_for_each_copy_of_a_file_that_has_the_handle() {
        let [one, copy, other] =
            [(1, 7), (2, 7), (1, 8)].map(|(minor, byte)| Key::of_handle((8, minor), 12, [byte; 24]));
        let mut inodes = inodes(&[one, copy, other]);
        inodes.note_attributes(&[7; 24]);
        let changed = [one, copy, other].map(|key| inodes.written(&key).unwrap().attributes);
        assert_eq!(changed, [true, true, false]);
    }

    #[test]
    fn files_without_a_name_take_no_room_of_others() {
        let keys: Vec<Key> = (0..4).map(|byte| Key::of_handle((8, 1), 12, [byte; 24])).collect();
        let mut inodes = inodes(&keys);
        assert!(!inodes.has_room_for_writers());
        keys.iter().for_each(|key| inodes.orphan(*key));
        assert!(inodes.has_room_for_writers());
        assert_eq!(inodes.written_with(&[2; 24]), [keys[2]]);
    }

    #[test]
    fn nothing_stays_of_what_is_forgotten() {
        let key = |minor: u32| Key::of_handle((8, minor), 12, [7; 24]);
        let mut inodes = inodes(&[key(1), key(2)]);
        [key(1), key(2)].into_iter().for_each(|key| inodes.orphan(key));
        assert_eq!(inodes.good_writers(), 0, "none has a name");
        inodes.forget_devices(&[(8, 1)]);
        inodes.write(key(1), Written::new(Writable { good: true }));
        assert_eq!((inodes.good_writers(), inodes.orphans.len()), (1, 1), "this one has");
        inodes.forget_everything();
        assert!(
            inodes.written.is_empty() && inodes.orphans.is_empty() && inodes.written_by_handle.get(&[7; 24]).is_empty()
        );
    }
}
