//! Files whose content's digest is known.
//!
//! They are few and short-lived on purpose: each holds a descriptor, which keeps its file system mounted and a deleted
//! file's blocks allocated. The least recently used go first, and none stays for
//! long that nobody asks for.

use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use imara_integrity::digest::Digest;

use super::Inodes;
use crate::closer::LateFd;
use crate::key::Key;
use crate::look::{Label, Look, Sighting};

/// How long a digest is remembered that nobody asks for.
const IDLE: Duration = Duration::from_secs(5);

/// How long the kernel answers for a file before we look at it again: whoever wants to write to it with `O_NONBLOCK`
/// meanwhile is sent away once (`EAGAIN`).
const IGNORED: Duration = Duration::from_secs(60);

/// The digest of a content that cannot change while `file` is open: its description holds a read lease.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) digest: Digest,
    /// The label, true as long as the file looks as it did then.
    pub(crate) label: Label,
    pub(crate) sighting: Sighting,
    pub(crate) file: LateFd,
    used: Instant,
}

impl Known {
    /// `file` holds the lease, and held it when the digest was taken.
    pub(crate) fn new(digest: Digest, look: Look, file: LateFd) -> Self {
        let Look { sighting, label, .. } = look;
        Self { digest, label, sighting, file, used: Instant::now() }
    }

    /// What was found in it.
    pub(crate) fn look(&self) -> Look {
        Look { sighting: self.sighting, label: self.label.clone(), digest: Some(self.digest) }
    }
}

impl Inodes {
    /// What is known of it; counts as use.
    pub(crate) fn known(&mut self, key: &Key) -> Option<&Known> {
        let known = self.known.to_back(key)?;
        known.used = Instant::now();
        Some(known)
    }

    /// Remembers a digest. Whoever calls has made room.
    pub(crate) fn know(&mut self, key: Key, known: Known) {
        self.take_known(&key);
        self.leases.insert(known.file.as_raw_fd(), key);
        self.known_by_handle.insert(key);
        self.known.insert(key, known);
    }

    /// What is known of files with this handle: one, or none, but for copies of file systems.
    pub(crate) fn known_by_handle(&self, handle: &[u8; 24]) -> Vec<Key> {
        self.known_by_handle.get(handle).to_vec()
    }

    /// The same as [`known`](Self::known), but no use of it, and to be changed.
    pub(crate) fn known_mut(&mut self, key: &Key) -> Option<&mut Known> {
        self.known.get_mut(key)
    }

    /// Notes a newer look at the label.
    pub(crate) fn relabelled(&mut self, key: &Key, label: Label, sighting: Sighting) {
        if let Some(known) = self.known.get_mut(key) {
            (known.label, known.sighting) = (label, sighting);
        }
    }

    /// Whether a digest is remembered; does not count as use.
    pub(crate) fn is_known(&self, key: &Key) -> bool {
        self.known.contains_key(key)
    }

    /// Lets another descriptor, which holds a lease too, keep a remembered digest true.
    pub(crate) fn hold_by(&mut self, key: &Key, mut file: LateFd) {
        if let Some(known) = self.known.get_mut(key) {
            self.leases.remove(&known.file.as_raw_fd());
            self.leases.insert(file.as_raw_fd(), *key);
            file.stand_in_for(&mut known.file);
            known.file = file;
        }
    }

    /// Takes a known inode out, for example because its lease is being broken.
    pub(crate) fn take_known(&mut self, key: &Key) -> Option<Known> {
        let known = self.known.remove(key)?;
        self.no_longer_known(key, &known);
        Some(known)
    }

    fn no_longer_known(&mut self, key: &Key, known: &Known) {
        self.leases.remove(&known.file.as_raw_fd());
        self.known_by_handle.remove(key);
    }

    /// Forgets a digest and gives its lease back.
    pub(crate) fn forget_known(&mut self, key: &Key) {
        drop(self.take_known(key));
    }

    /// Forgets every digest.
    pub(crate) fn forget_all_known(&mut self) {
        while self.take_oldest().is_some() {}
    }

    /// Has the kernel ask about every known file again.
    pub(crate) fn heed_all(&mut self) {
        self.known.values_mut().for_each(|known| known.file.heed());
    }

    /// Forgets the digests of these devices' inodes.
    pub(crate) fn forget_known_of(&mut self, devices: &[(u32, u32)]) {
        let keys: Vec<Key> = self.known.keys().filter(|key| devices.contains(&key.device())).copied().collect();
        keys.iter().for_each(|key| self.forget_known(key));
    }

    /// Those that have been known for long enough without anybody asking. Of files that the kernel answers for we do not
    /// hear whether they are in use, but if they are they are known again in a moment.
    pub(crate) fn idle(&self, now: Instant) -> Vec<Key> {
        let age = |known: &Known| now.duration_since(known.used);
        let old = self.known.iter().take_while(|(_, known)| age(known) >= IDLE);
        let idle = old.filter(|(_, known)| age(known) >= if known.file.is_ignored() { IGNORED } else { IDLE });
        idle.map(|(key, _)| *key).collect()
    }

    /// Takes out the least recently used one.
    pub(crate) fn take_oldest(&mut self) -> Option<(Key, Known)> {
        let (key, oldest) = self.known.pop_front()?;
        self.no_longer_known(&key, &oldest);
        Some((key, oldest))
    }

    /// Takes out the least recently used one, if there are as many as there may be.
    pub(crate) fn take_surplus(&mut self) -> Option<(Key, Known)> {
        if self.known.len() < self.capacity { None } else { self.take_oldest() }
    }

    /// Files that may be known at most.
    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Known files that the kernel answers for.
    pub(crate) fn ignored(&self) -> usize {
        self.known.values().filter(|known| known.file.is_ignored()).count()
    }
}
