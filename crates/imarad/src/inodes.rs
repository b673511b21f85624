//! What the guard remembers of inodes, and the descriptors that keep it true.
//!
//! An inode is in at most one of three states:
//!
//! * [`Known`]: its content's digest, true because we hold a read lease on it;
//! * [`Written`]: somebody has, or had a moment ago, the file open for writing;
//! * [`Busy`]: a worker is reading or labelling it, and openers wait for that.
//!
//! Each state has a file; here is what they share.

mod busy;
mod by_handle;
mod known;
mod written;

use std::collections::HashMap;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use hashlink::{LinkedHashMap, LinkedHashSet};

pub(crate) use busy::{Busy, Renewing, Task};
use by_handle::ByHandle;
pub(crate) use known::Known;
pub(crate) use written::Written;

use crate::key::Key;

/// Whoever changed a file without opening it has done so by the time that the next try is further away than this.
const SOON: Duration = Duration::from_millis(50);

/// All that is remembered.
#[derive(Debug)]
pub(crate) struct Inodes {
    known: LinkedHashMap<Key, Known>,
    known_by_handle: ByHandle,
    written: HashMap<Key, Written>,
    written_by_handle: ByHandle,
    busy: HashMap<Key, Busy>,
    leases: HashMap<RawFd, Key>,
    /// When work on a device last moved.
    moved: HashMap<(u32, u32), Instant>,
    orphans: LinkedHashSet<Key>,
    capacity: usize,
}

impl Inodes {
    /// Room for this many leases.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            known: LinkedHashMap::new(),
            known_by_handle: ByHandle::default(),
            written: HashMap::new(),
            written_by_handle: ByHandle::default(),
            busy: HashMap::new(),
            leases: HashMap::new(),
            moved: HashMap::new(),
            orphans: LinkedHashSet::new(),
            capacity: capacity.max(1),
        }
    }

    /// Forgets digests and writers; what workers have in hand ends by itself.
    pub(crate) fn forget_everything(&mut self) {
        self.forget_all_known();
        self.forget_written(|_| true);
    }

    /// Forgets all about these devices' inodes, except what workers have in hand.
    pub(crate) fn forget_devices(&mut self, devices: &[(u32, u32)]) {
        self.forget_known_of(devices);
        self.forget_written(|key| devices.contains(&key.device()));
    }

    /// The inode whose lease this descriptor holds.
    pub(crate) fn lease_holder(&self, fd: RawFd) -> Option<Key> {
        self.leases.get(&fd).copied()
    }

    /// How many leases are held, for what is known or for a worker.
    pub(crate) fn leases(&self) -> usize {
        self.leases.len()
    }

    /// All descriptors that hold a lease.
    pub(crate) fn leased(&self) -> Vec<RawFd> {
        self.leases.keys().copied().collect()
    }

    /// Whether somebody has it open for writing, or a worker has it in hand.
    pub(crate) fn is_written_or_busy(&self, key: &Key) -> bool {
        self.written.contains_key(key) || self.busy.contains_key(key)
    }

    /// Somebody may be writing to it of whom nobody knows whether his changes are to be followed.
    pub(crate) fn disown(&mut self, key: &Key) {
        if let Some(written) = self.written.get_mut(key) {
            written.writable.good = false;
            written.stranger = true;
        }
        if let Some(busy) = self.busy.get_mut(key) {
            busy.disowned = true;
        }
    }

    /// Numbers for `imara status`: known, written, busy.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.known.len(), self.written.len(), self.busy.len())
    }

    /// Whether a label is being renewed, or will be in a moment.
    pub(crate) fn has_unfinished(&self, now: Instant) -> bool {
        let soon = |written: &Written| {
            let closed = written.before.is_none();
            written.due.is_some_and(|due| closed || due.saturating_duration_since(now) < SOON)
        };
        !self.busy.is_empty() || self.written.values().any(|written| written.writable.good && soon(written))
    }
}
