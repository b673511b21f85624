//! The second memory: labels that were found true, without a lease that keeps them so.
//!
//! An entry says what a file looked like when its content was what its label says: time of change (ctime) and size. If it
//! looks so again under a new lease, it need not be read again. That is sound where each change of content or label shows
//! in the time of change and can be told from what we saw:
//!
//! * where we saw it, no later change bears the same time (see [`Sighting`]);
//! * there was no writer then, so whoever changes the content opens the file first or cuts it (`truncate(2)`), and his
//!   first store shows: the file system writes the time of change at `write(2)` and when a mapped page is first stored to.
//!   tmpfs does not do the latter, and is left out;
//! * the inode was in memory all the time, as its mark shows, so nobody can have changed it on the disk. (Content that was
//!   dropped and read again may have been, as with the kernel's own memory of what it judged.)
//!
//! That mark also tells of whoever cuts a file without opening it, so that its label can follow.
//!
//! An entry costs about 160 bytes, and no descriptor.

use hashlink::LinkedHashMap;
use imara_integrity::digest::Digest;
use imara_integrity::label::ImaLabel;
use imara_linux::file::FileFacts;

use crate::key::Key;
use crate::look::{Label, Look, Sighting};

/// What was seen, of many files.
#[derive(Debug, Default)]
pub(crate) struct Recall {
    /// By handle. Of copies of a file system, which share handles, the one that was seen last counts.
    seen: LinkedHashMap<[u8; 24], Seen>,
}

#[derive(Debug)]
struct Seen {
    device: (u32, u32),
    inode: u64,
    /// Whether changes by somebody who did not ask are to be followed.
    followed: bool,
    sighting: Sighting,
    /// That of the content's digest.
    label: Box<[u8]>,
}

/// What is remembered of a file, beside what it looks like now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// Nothing.
    Nothing,
    /// It looks as it did.
    Same,
    /// It has changed, or is being changed. A notice tells how; changes of its content are to be followed.
    Followed,
    /// It has changed, and that is not to be followed.
    Changed,
}

impl Recall {
    /// Entries at most: about 22 MiB.
    pub(crate) const CAPACITY: usize = 131_072;

    /// Whether this can be remembered: what was seen is settled, and the label is the digest's.
    pub(crate) fn takes(key: &Key, look: &Look) -> bool {
        let found = look.digest.is_some() && look.digest == digest_in(&look.label);
        key.handle().is_some() && look.sighting.is_settled() && found
    }

    /// Remembers what was found under a lease, if it [can be](Self::takes).
    pub(crate) fn remember(&mut self, key: Key, look: Look, followed: bool) {
        let (true, Some(handle)) = (Self::takes(&key, &look), key.handle()) else { return };
        let Look { sighting, label: Label::Value(label), .. } = look else { return };
        self.seen.insert(handle, Seen { device: key.device(), inode: key.inode(), followed, sighting, label });
        if self.seen.len() > Self::CAPACITY {
            self.seen.pop_front();
        }
    }

    /// What is remembered of a file that looks so now.
    pub(crate) fn compare(&self, key: &Key, facts: &FileFacts) -> Recalled {
        match self.get(key) {
            None => Recalled::Nothing,
            Some(seen) if seen.sighting.holds(facts) => Recalled::Same,
            Some(Seen { followed: true, .. }) => Recalled::Followed,
            Some(Seen { followed: false, .. }) => Recalled::Changed,
        }
    }

    /// Takes out what was found in a file that looks as it did then.
    pub(crate) fn take(&mut self, key: &Key) -> Option<Look> {
        let Seen { sighting, label, .. } = self.take_seen(key)?;
        let label = Label::Value(label);
        Some(Look { sighting, digest: digest_in(&label), label })
    }

    fn get(&self, key: &Key) -> Option<&Seen> {
        let handle = key.handle()?;
        let seen = self.seen.get(&handle)?;
        (Key::of_handle(seen.device, seen.inode, handle) == *key).then_some(seen)
    }

    fn take_seen(&mut self, key: &Key) -> Option<Seen> {
        self.get(key)?;
        self.seen.remove(&key.handle()?)
    }

    /// Somebody may be writing to it.
    pub(crate) fn forget(&mut self, key: &Key) {
        drop(self.take_seen(key));
    }

    /// Something that matters of a file with this handle has changed, or somebody may be writing to it.
    pub(crate) fn forget_handle(&mut self, handle: [u8; 24]) {
        self.seen.remove(&handle);
    }

    /// Forgets the file that is remembered of those with this handle, because it was changed; says which, and the
    /// label that it had, if that is to be followed.
    pub(crate) fn take_modified(&mut self, handle: [u8; 24]) -> Option<(Key, Label)> {
        let seen = self.seen.remove(&handle)?;
        let key = Key::of_handle(seen.device, seen.inode, handle);
        seen.followed.then_some((key, Label::Value(seen.label)))
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.seen.clear();
    }

    /// Forgets all about these devices' files.
    pub(crate) fn forget_devices(&mut self, devices: &[(u32, u32)]) {
        self.seen.retain(|_, seen| !devices.contains(&seen.device));
    }

    /// How many files are remembered.
    pub(crate) fn len(&self) -> usize {
        self.seen.len()
    }
}

/// The digest that a label has, if it is one.
fn digest_in(label: &Label) -> Option<Digest> {
    let bytes = label.as_read().bytes()?;
    let Ok(ImaLabel::Digest(found)) = ImaLabel::parse(bytes) else { return None };
    Digest::new(found.algorithm()?, found.digest()).ok()
}
