//! What the guard remembers of inodes, and the descriptors that keep it true.
//!
//! An inode is in at most one of three states:
//!
//! * [`Known`]: its content's digest, true because we hold a read lease on it;
//! * [`Written`]: somebody has, or had a moment ago, the file open for writing;
//! * [`Busy`]: a worker is reading or labelling it, and openers wait for that.
//!
//! Known inodes are few and short-lived on purpose: each holds a descriptor, which keeps its file system mounted and a
//! deleted file's blocks allocated. The least recently used go first, and none stays longer than [`IDLE`] unused.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashlink::{LinkedHashMap, LinkedHashSet};
use imara_integrity::digest::Digest;
use imara_integrity::iint::Writable;
use imara_linux::file::FileFacts;

use crate::ask::Ask;
use crate::closer::LateFd;
use crate::failure::Failure;
use crate::key::Key;
use crate::look::{Label, Look, Sighting};

/// How long a digest is remembered that nobody asks for.
const IDLE: Duration = Duration::from_secs(5);

/// How long the kernel answers for a file before we look at it again: whoever wants to write to it with `O_NONBLOCK`
/// meanwhile is sent away once (`EAGAIN`).
const IGNORED: Duration = Duration::from_secs(60);

/// Whoever changed a file without opening it has done so by the time that the next try is further away than this.
const SOON: Duration = Duration::from_millis(50);

/// Written files without a name that are remembered at most.
const ORPHANS: usize = 4096;

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
}

impl Written {
    /// Whether what has changed in it is to be followed. To be asked when all notices have been heard.
    pub(crate) const fn is_followed(&self) -> bool {
        self.writable.good && (self.closed || !self.attributes)
    }

    /// One of which nothing is known but what it was.
    pub(crate) const fn of_nobody(writable: Writable) -> Self {
        Self {
            writable,
            before: None,
            file: None,
            due: None,
            quiet: None,
            complained: false,
            closed: false,
            attributes: true,
        }
    }

    /// Whether the file, which looks so now, has surely not been written to.
    pub(crate) fn is_untouched(&self, now: &FileFacts) -> bool {
        self.before.as_ref().is_some_and(|before| before.sighting.holds(now))
    }
}

/// What a worker is busy with, and who waits for it first.
#[derive(Debug)]
pub(crate) enum Task {
    /// Hashing, to answer this one.
    Judge(Box<Ask>),
    /// Writing the label in mode `fix`, to answer this one.
    Repair(Box<crate::ask::Repair>),
    /// Renewing the label after the last writer closed; the descriptor holds the lease unless the asker's does.
    Renew(Renewing),
    /// Reading the label of a file that somebody waits to write to, whose content we know.
    Part(Box<Known>),
}

impl Task {
    /// The descriptor that came with the task.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        match self {
            Self::Judge(ask) | Self::Renew(Renewing::Asked(ask)) => ask.file(),
            Self::Repair(repair) => repair.ask.file(),
            Self::Renew(Renewing::For(file)) => file.as_fd(),
            Self::Part(known) => known.file.as_fd(),
        }
    }
}

/// Work that is given up: why, whom it was for, and who else waits.
pub(crate) type Abandoned = (Failure, Option<Task>, VecDeque<Ask>);

/// Whose descriptor holds the lease under which a label is renewed.
#[derive(Debug)]
pub(crate) enum Renewing {
    /// Nobody waits yet.
    For(LateFd),
    /// This one came first and waits.
    Asked(Box<Ask>),
}

/// An inode that a worker has in hand.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) task: Option<Task>,
    pub(crate) serial: u64,
    /// What the worker works on.
    pub(crate) job: LateFd,
    /// The mount through which he may have to open it again.
    pub(crate) mount: Option<Arc<LateFd>>,
    /// The descriptor number that holds a read lease, if any.
    pub(crate) lease: Option<RawFd>,
    /// When a writer began to wait for that lease.
    pub(crate) broken: Option<Instant>,
    /// Others who want to open it, in order.
    pub(crate) waiting: VecDeque<Ask>,
    /// A writer closed it meanwhile.
    pub(crate) closed: Option<LateFd>,
    /// Bytes hashed so far, counted by the worker.
    pub(crate) progress: Arc<AtomicU64>,
    /// The last progress seen, and when.
    pub(crate) seen: (u64, Instant),
    /// Why it has been given up, if it has: openers are then answered by the failure table at once.
    pub(crate) stalled: Option<Failure>,
    /// What was known of the writers before, for renewals.
    pub(crate) complained: bool,
    /// Whether somebody was let in meanwhile who may write, and whom no rule asks about.
    pub(crate) disowned: bool,
}

/// All that is remembered.
#[derive(Debug)]
pub(crate) struct Inodes {
    known: LinkedHashMap<Key, Known>,
    /// Of what is known; files of different file systems may have the same handle.
    by_handle: HashMap<[u8; 24], Vec<Key>>,
    written: HashMap<Key, Written>,
    /// Of what is written.
    written_by_handle: HashMap<[u8; 24], Key>,
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
            by_handle: HashMap::new(),
            written: HashMap::new(),
            written_by_handle: HashMap::new(),
            busy: HashMap::new(),
            leases: HashMap::new(),
            moved: HashMap::new(),
            orphans: LinkedHashSet::new(),
            capacity: capacity.max(1),
        }
    }

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
        if let Some(handle) = key.handle() {
            self.by_handle.entry(handle).or_default().push(key);
        }
        self.known.insert(key, known);
    }

    /// What is known of files with this handle: one, or none, but for copies of file systems.
    pub(crate) fn known_by_handle(&self, handle: &[u8; 24]) -> Vec<Key> {
        self.by_handle.get(handle).cloned().unwrap_or_default()
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
        if let Some(Entry::Occupied(mut keys)) = key.handle().map(|handle| self.by_handle.entry(handle)) {
            keys.get_mut().retain(|other| other != key);
            if keys.get().is_empty() {
                keys.remove();
            }
        }
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

    /// Forgets digests and writers; what workers have in hand ends by itself.
    pub(crate) fn forget_everything(&mut self) {
        self.forget_all_known();
        self.written.clear();
        self.written_by_handle.clear();
    }

    /// Forgets the digests of these devices' inodes.
    pub(crate) fn forget_known_of(&mut self, devices: &[(u32, u32)]) {
        let keys: Vec<Key> = self.known.keys().filter(|key| devices.contains(&key.device())).copied().collect();
        keys.iter().for_each(|key| self.forget_known(key));
    }

    /// Forgets all about these devices' inodes, except what workers have in hand.
    pub(crate) fn forget_devices(&mut self, devices: &[(u32, u32)]) {
        self.forget_known_of(devices);
        self.written.retain(|key, _| !devices.contains(&key.device()));
        self.written_by_handle.retain(|_, key| !devices.contains(&key.device()));
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

    /// The inode whose lease this descriptor holds.
    pub(crate) fn lease_holder(&self, fd: RawFd) -> Option<Key> {
        self.leases.get(&fd).copied()
    }

    /// All descriptors that hold a lease.
    pub(crate) fn leased(&self) -> Vec<RawFd> {
        self.leases.keys().copied().collect()
    }

    pub(crate) fn written(&self, key: &Key) -> Option<&Written> {
        self.written.get(key)
    }

    pub(crate) fn written_mut(&mut self, key: &Key) -> Option<&mut Written> {
        self.written.get_mut(key)
    }

    /// Whether somebody has it open for writing, or a worker has it in hand.
    pub(crate) fn is_written_or_busy(&self, key: &Key) -> bool {
        self.written.contains_key(key) || self.busy.contains_key(key)
    }

    /// Somebody may be writing to it of whom nobody knows whether his changes are to be followed.
    pub(crate) fn disown(&mut self, key: &Key) {
        if let Some(written) = self.written.get_mut(key) {
            written.writable.good = false;
        }
        if let Some(busy) = self.busy.get_mut(key) {
            busy.disowned = true;
        }
    }

    pub(crate) fn write(&mut self, key: Key, written: Written) {
        if let Some(handle) = key.handle() {
            self.written_by_handle.insert(handle, key);
        }
        self.written.insert(key, written);
    }

    /// Owner, mode or label of the file with this handle have changed.
    pub(crate) fn note_attributes(&mut self, handle: &[u8; 24]) {
        let key = self.written_by_handle.get(handle);
        if let Some(written) = key.and_then(|key| self.written.get_mut(key)) {
            written.attributes = true;
        }
    }

    fn no_longer_written(&mut self, key: &Key) -> Option<Written> {
        if let Some(handle) = key.handle()
            && self.written_by_handle.get(&handle) == Some(key)
        {
            self.written_by_handle.remove(&handle);
        }
        self.written.remove(key)
    }

    /// Notes that a written file has no name any more. Such files are forgotten in turn: nobody tells us of their end.
    pub(crate) fn orphan(&mut self, key: Key) {
        if key.is_unique() {
            self.bound(key);
        } else {
            drop(self.no_longer_written(&key));
        }
    }

    /// Keeps what is written of this file among the last few thousand that may never be heard of again.
    pub(crate) fn bound(&mut self, key: Key) {
        self.orphans.insert(key);
        if self.orphans.len() > ORPHANS
            && let Some(oldest) = self.orphans.pop_front()
        {
            drop(self.no_longer_written(&oldest));
        }
    }

    pub(crate) fn take_written(&mut self, key: &Key) -> Option<Written> {
        self.orphans.remove(key);
        self.no_longer_written(key)
    }

    pub(crate) fn busy_mut(&mut self, key: &Key) -> Option<&mut Busy> {
        self.busy.get_mut(key)
    }

    /// Puts an inode into a worker's hand.
    pub(crate) fn occupy(&mut self, key: Key, busy: Busy) {
        if let Some(fd) = busy.lease {
            self.leases.insert(fd, key);
        }
        let before = self.busy.insert(key, busy);
        debug_assert!(before.is_none(), "whoever waits for that would be refused");
    }

    /// Takes it back, if this is still the same piece of work.
    pub(crate) fn take_busy(&mut self, key: &Key, serial: u64) -> Option<Busy> {
        if self.busy.get(key)?.serial != serial {
            return None;
        }
        let busy = self.busy.remove(key)?;
        if let Some(fd) = busy.lease {
            self.leases.remove(&fd);
        }
        Some(busy)
    }

    /// Whoever waits for work that has not moved for `limit`; their leases are given back. Work that has not begun counts
    /// as moving as long as other work on its file system does: it only waits for its turn.
    pub(crate) fn abandon_stuck(&mut self, now: Instant, limit: Duration) -> Vec<Abandoned> {
        let mut stuck = Vec::new();
        for (key, busy) in &mut self.busy {
            let progress = busy.progress.load(Ordering::Relaxed);
            if progress != busy.seen.0 {
                busy.seen = (progress, now);
                self.moved.insert(key.device(), now);
            }
        }
        self.moved.retain(|_, moved| now.duration_since(*moved) <= limit);
        for (key, busy) in &mut self.busy {
            let turn = busy.seen.0 == 0 && self.moved.contains_key(&key.device());
            if turn || busy.stalled.is_some() || now.duration_since(busy.seen.1) <= limit {
                continue;
            }
            let renewal = matches!(busy.task, Some(Task::Renew(_)));
            let failure = if renewal { Failure::LabelNotWritten } else { Failure::HashStalled };
            busy.stalled = Some(failure);
            if let Some(fd) = busy.lease.take() {
                self.leases.remove(&fd);
                if let Some(file) = busy.task.as_ref().map(Task::file) {
                    // The worker still holds the description; a writer must not wait for it.
                    let _ = imara_linux::lease::release(file);
                }
            }
            stuck.push((failure, busy.task.take(), std::mem::take(&mut busy.waiting)));
        }
        stuck
    }

    /// Work that was done: its file system moves.
    pub(crate) fn note_move(&mut self, key: &Key) {
        self.moved.insert(key.device(), Instant::now());
    }

    /// Devices of files on which a worker has begun and not moved for this long.
    pub(crate) fn stalled_for(&self, now: Instant, long: Duration) -> Vec<(u32, u32)> {
        let begun = self.busy.iter().filter(|(_, busy)| busy.seen.0 > 0);
        let stalled = begun.filter(|(_, busy)| now.duration_since(busy.seen.1) > long);
        stalled.map(|(key, _)| key.device()).collect()
    }

    /// Whether there are descriptors to spare for files that are being written.
    pub(crate) fn has_room_for_writers(&self) -> bool {
        self.written.len() < self.capacity / 4
    }

    /// Numbers for `imara status`: known, written, busy.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.known.len(), self.written.len(), self.busy.len())
    }

    /// Files that may be known at most.
    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Known files that the kernel answers for.
    pub(crate) fn ignored(&self) -> usize {
        self.known.values().filter(|known| known.file.is_ignored()).count()
    }

    /// Openers who wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        let first = |task: &Task| matches!(task, Task::Judge(_) | Task::Repair(_) | Task::Renew(Renewing::Asked(_)));
        self.busy.values().map(|busy| busy.waiting.len() + usize::from(busy.task.as_ref().is_some_and(first))).sum()
    }

    /// Whether a label is being renewed, or will be in a moment.
    pub(crate) fn has_unfinished(&self, now: Instant) -> bool {
        let soon = |written: &Written| {
            let closed = written.before.is_none();
            written.due.is_some_and(|due| closed || due.saturating_duration_since(now) < SOON)
        };
        !self.busy.is_empty() || self.written.values().any(|written| written.writable.good && soon(written))
    }

    /// How many files with a name are being written by writers who found them good.
    pub(crate) fn good_writers(&self) -> usize {
        let good = self.written.iter().filter(|(_, written)| written.writable.good);
        good.filter(|(key, _)| !self.orphans.contains(*key)).count()
    }
}
