//! Which files are in the journal, seen from the dispatcher: who waits until he is, and when a file may leave it.
//!
//! A note says: *this file, which has this label now, is going to be written to*. A file has one for each label that it may
//! be found with on the disk. It may leave when its content and its label are on the disk, which is asked for now and then, for a
//! whole file system (`syncfs(2)`), by a thread of its own that is [apart](imara_linux::apart).

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use imara_integrity::check::Outcome;
use imara_integrity::journal::LONGEST_LABEL;
use imara_linux::apart::{Apart, Home};
use imara_linux::epoll::Waker;
use imara_linux::sync;

use crate::ask::Ask;
use crate::book::Note;
use crate::closer::LateFd;
use crate::config::Keeping;
use crate::key::Key;
use crate::look::{Label, Look};
use crate::scribe::{Noted, PATIENCE, Scribe, Waits};

/// A file system on which files are at rest is written out so often.
const SYNC_EVERY: Duration = Duration::from_secs(10);

/// Or when there are so many of them.
const SYNC_AT: usize = 8192;

/// Notes at most. What comes then is not covered.
const NOTES: usize = 262_144;

/// Somebody who waits for a note.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// The first one to open a file for writing, who has been judged.
    First { ask: Box<Ask>, outcome: Box<Outcome>, look: Look, repaired: Option<bool> },
    /// Another one who came before the note was made.
    Another(Box<Ask>),
    /// Somebody who breaks the lease on a file that is known.
    Parting { key: Key, look: Look, file: LateFd },
}

/// A note.
#[derive(Debug)]
struct Entry {
    key: Key,
    file_system: usize,
    label: Option<Box<[u8]>>,
    on_disk: bool,
    /// Whether nothing was in the journal of this file before.
    first: bool,
    /// Absent while the file may be written to; else the number of the sync that will do at the earliest.
    at_rest: Option<u64>,
}

/// Whether a file is in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cover {
    /// It is.
    Noted,
    /// It will be in a moment, when the note with this number is made.
    Soon(u64),
    /// There is no journal for it.
    NoJournal,
    /// It could not be.
    Failed(&'static str),
}

/// What came of writing a file system out.
#[derive(Debug)]
struct Synced {
    file_system: usize,
    number: u64,
    done: bool,
}

/// The threads beside, and how they wake us.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    pub(crate) apart: Apart,
    pub(crate) home: Arc<Home>,
    pub(crate) wake: Arc<Waker>,
}

/// The journal.
#[derive(Debug)]
pub(crate) struct Journal {
    /// Absent if there is none.
    scribe: Option<(Scribe, Receiver<Noted>)>,
    file_systems: Vec<usize>,
    entries: HashMap<u64, Entry>,
    by_file: HashMap<Key, Vec<u64>>,
    waiting: BTreeMap<u64, (Instant, Vec<Waiting>)>,
    beside: Beside,
    /// The number of the last sync.
    syncs: u64,
    /// Those that run, with the root that they need open.
    syncing: HashMap<usize, Option<Arc<LateFd>>>,
    /// When the last one of a file system began.
    synced: HashMap<usize, Instant>,
    out: Sender<Synced>,
    back: Receiver<Synced>,
    /// Whether whoever creates a file waits too.
    creators_wait: bool,
    /// Whether it has been said that it cannot be written.
    pub(crate) complained: bool,
}

impl Journal {
    /// None yet.
    pub(crate) fn new(beside: Beside) -> Self {
        let (out, back) = channel();
        Self {
            scribe: None,
            file_systems: Vec::new(),
            entries: HashMap::new(),
            by_file: HashMap::new(),
            waiting: BTreeMap::new(),
            beside,
            syncs: 0,
            syncing: HashMap::new(),
            synced: HashMap::new(),
            out,
            back,
            creators_wait: false,
            complained: false,
        }
    }

    pub(crate) const fn beside(&self) -> &Beside {
        &self.beside
    }

    /// There is one, of these file systems.
    pub(crate) fn begin(&mut self, scribe: (Scribe, Receiver<Noted>), file_systems: Vec<usize>, keeping: Keeping) {
        self.scribe = Some(scribe);
        self.creators_wait = keeping != Keeping::Labelled;
        self.file_systems = file_systems;
    }

    /// Whether somebody waits who may write to a file with this label.
    pub(crate) const fn waits_for(&self, label: &Label) -> Waits {
        match label {
            Label::Absent if !self.creators_wait => Waits::Nobody,
            Label::Value(_) | Label::Absent | Label::Unsupported | Label::Failed => Waits::Opener,
        }
    }

    /// Has a file noted that is going to be written to, unless it is with this label.
    pub(crate) fn cover(
        &mut self,
        (key, file_system): (Key, usize),
        label: &Label,
        path: impl FnOnce() -> Vec<u8>,
        waits: Waits,
    ) -> Cover {
        let label = match label {
            Label::Value(bytes) => Some(bytes.clone()),
            Label::Absent => None,
            Label::Unsupported | Label::Failed => return Cover::NoJournal,
        };
        let (Some((scribe, _)), Some(handle)) = (&self.scribe, key.handle()) else { return Cover::NoJournal };
        if !self.file_systems.contains(&file_system) {
            return Cover::NoJournal;
        }
        let ids = self.by_file.get(&key);
        for id in ids.into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.label == label) {
                entry.first &= entry.at_rest.take().is_none();
                return if entry.on_disk { Cover::Noted } else { Cover::Soon(*id) };
            }
        }
        if label.as_ref().is_some_and(|label| label.len() > LONGEST_LABEL) {
            // It must not hinder those that are noted together with it.
            return Cover::Failed("its label is too long");
        }
        if scribe.is_stuck() {
            return Cover::Failed("its disk does not answer");
        }
        if self.entries.len() >= NOTES {
            return Cover::Failed("it is full");
        }
        let first = ids.is_none_or(Vec::is_empty);
        let note = Note { handle, inode: key.inode(), label: label.clone(), path: path().into() };
        let id = scribe.note(file_system, note, waits);
        self.enter(id, Entry { key, file_system, label, on_disk: false, first, at_rest: None });
        Cover::Soon(id)
    }

    /// A note is on the disk that somebody else had made.
    pub(crate) fn adopt(&mut self, id: u64, (key, file_system): (Key, usize), label: Option<&[u8]>) {
        let label: Option<Box<[u8]>> = label.map(Into::into);
        let mut ids = self.by_file.get(&key).into_iter().flatten();
        if ids.any(|id| self.entries.get(id).is_some_and(|entry| entry.on_disk && entry.label == label)) {
            // One is enough.
            return self.strike_found(file_system, id);
        }
        self.enter(id, Entry { key, file_system, label, on_disk: true, first: false, at_rest: None });
    }

    fn enter(&mut self, id: u64, entry: Entry) {
        self.by_file.entry(entry.key).or_default().push(id);
        self.entries.insert(id, entry);
    }

    /// Who writes the journal of this file system, for workers.
    pub(crate) fn scribe(&self, file_system: usize) -> Option<Scribe> {
        let (scribe, _) = self.scribe.as_ref()?;
        self.file_systems.contains(&file_system).then(|| scribe.clone())
    }

    /// A note of this file that is not on the disk yet.
    pub(crate) fn pending(&self, key: &Key) -> Option<u64> {
        let ids = self.by_file.get(key)?;
        ids.iter().copied().find(|id| {
            self.entries.get(id).is_some_and(|entry| !entry.on_disk && (self.creators_wait || entry.label.is_some()))
        })
    }

    /// Lets somebody wait for a note.
    pub(crate) fn wait(&mut self, id: u64, who: Waiting) {
        self.waiting.entry(id).or_insert_with(|| (Instant::now(), Vec::new())).1.push(who);
    }

    /// Somebody comes once more to a file that is open for writing already.
    pub(crate) fn written_again(&mut self, key: &Key) {
        for id in self.by_file.get(key).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.first &= entry.at_rest.take().is_none();
            }
        }
    }

    /// The last writer has gone, and the label is what the content is; both may still be in memory only.
    pub(crate) fn at_rest(&mut self, key: &Key) {
        for id in self.by_file.get(key).into_iter().flatten() {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.at_rest.get_or_insert(self.syncs + 1);
            }
        }
    }

    /// The last writer has gone, and nobody has written anything.
    pub(crate) fn untouched(&mut self, key: &Key) {
        let ids = self.by_file.get(key).map_or(&[][..], Vec::as_slice);
        match ids {
            // What it was before is on the disk.
            &[id] if self.entries.get(&id).is_some_and(|entry| entry.first) => self.strike(id),
            _ => self.at_rest(key),
        }
    }

    /// Nobody vouches any more for what is being written to this file.
    pub(crate) fn disown(&mut self, key: &Key) {
        for id in self.by_file.get(key).cloned().unwrap_or_default() {
            self.strike(id);
        }
    }

    /// Strikes a note out.
    pub(crate) fn strike(&mut self, id: u64) {
        if let Some(entry) = self.leave(id)
            && let Some((scribe, _)) = &self.scribe
        {
            scribe.at_rest(entry.file_system, id);
        }
    }

    /// The same for one that was found at the start, and never entered.
    pub(crate) fn strike_found(&self, file_system: usize, id: u64) {
        if let Some((scribe, _)) = &self.scribe {
            scribe.at_rest(file_system, id);
        }
    }

    fn leave(&mut self, id: u64) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        if let Some(ids) = self.by_file.get_mut(&entry.key) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_file.remove(&entry.key);
            }
        }
        Some(entry)
    }

    /// Nobody follows any more what is being written.
    pub(crate) fn forget_writers(&mut self) {
        let open = |(id, entry): (&u64, &Entry)| entry.at_rest.is_none().then_some(*id);
        let ids: Vec<u64> = self.entries.iter().filter_map(open).collect();
        ids.into_iter().for_each(|id| self.strike(id));
    }

    /// A file system has gone, with all of it on the disk. What was not at rest stays in the journal for another start.
    pub(crate) fn file_system_gone(&mut self, devices: &[(u32, u32)]) {
        let of = |entry: &Entry| devices.contains(&entry.key.device());
        let ids: Vec<u64> = self.entries.iter().filter(|(_, entry)| of(entry)).map(|(id, _)| *id).collect();
        for id in ids {
            match self.entries.get(&id).and_then(|entry| entry.at_rest) {
                Some(_) => self.strike(id),
                None => drop(self.leave(id)),
            }
        }
    }

    /// The file system with this number is not the one any more whose journal was opened at the start.
    pub(crate) fn has_another(&mut self, file_system: usize) {
        self.file_systems.retain(|covered| *covered != file_system);
    }

    /// Who need not wait any more, because of what has been written, or could not be (and why).
    pub(crate) fn noted(&mut self) -> Option<(Vec<Waiting>, Option<String>)> {
        let (ids, error) = self.scribe.as_ref()?.1.try_recv().ok()?;
        let mut waiting = Vec::new();
        for id in ids {
            waiting.extend(self.waiting.remove(&id).into_iter().flat_map(|(_, who)| who));
            if error.is_some() {
                self.leave(id);
            } else if let Some(entry) = self.entries.get_mut(&id) {
                entry.on_disk = true;
            }
        }
        self.complained &= error.is_some();
        Some((waiting, error))
    }

    /// Who has waited for too long.
    pub(crate) fn overdue(&mut self, now: Instant) -> Vec<Waiting> {
        let late = self.waiting.first_key_value().is_some_and(|(_, (since, _))| now.duration_since(*since) > PATIENCE);
        if !late {
            return Vec::new();
        }
        if let Some((scribe, _)) = &self.scribe {
            scribe.now_stuck();
        }
        std::mem::take(&mut self.waiting).into_values().flat_map(|(_, who)| who).collect()
    }

    /// Whether there is a journal, and how many notes: of files that may be written to, and of files at rest.
    pub(crate) fn counts(&self) -> (bool, usize, usize) {
        let resting = self.entries.values().filter(|entry| entry.at_rest.is_some()).count();
        (!self.file_systems.is_empty(), self.entries.len() - resting, resting)
    }

    /// File systems that should be written out now; all that have something at rest, if it is the end.
    pub(crate) fn to_sync(&self, now: Instant, end: bool) -> Vec<usize> {
        let mut resting = HashMap::<usize, usize>::new();
        for entry in self.entries.values().filter(|entry| entry.at_rest.is_some()) {
            *resting.entry(entry.file_system).or_default() += 1;
        }
        let long_ago = |fs: &usize| self.synced.get(fs).is_none_or(|last| now.duration_since(*last) >= SYNC_EVERY);
        let due =
            |(fs, count): &(usize, usize)| !self.syncing.contains_key(fs) && (end || *count >= SYNC_AT || long_ago(fs));
        resting.into_iter().filter(due).map(|(fs, _)| fs).collect()
    }

    /// Has a file system written out that has this root.
    pub(crate) fn sync(&mut self, file_system: usize, root: Option<Arc<LateFd>>, now: Instant) {
        self.syncs += 1;
        let (number, home) = (self.syncs, Arc::clone(&self.beside.home));
        let (out, wake) = (self.out.clone(), Arc::clone(&self.beside.wake));
        let root_number = root.as_ref().map(|root| root.as_raw_fd());
        self.syncing.insert(file_system, root);
        self.synced.insert(file_system, now);
        self.beside.apart.start("syncer", move || {
            let done = match root_number {
                Some(root) => home.fetch(root).and_then(|root| sync::file_system(root.as_fd())).is_ok(),
                None => {
                    sync::everything();
                    true
                }
            };
            if out.send(Synced { file_system, number, done }).is_ok() {
                let _ = wake.wake();
            }
        });
    }

    /// Strikes out what is at rest on file systems that have been written out.
    pub(crate) fn hear_of_syncs(&mut self) {
        while let Ok(synced) = self.back.try_recv() {
            self.has_synced(&synced);
        }
    }

    fn has_synced(&mut self, synced: &Synced) {
        self.syncing.remove(&synced.file_system);
        if !synced.done {
            return;
        }
        let settled = |entry: &Entry| {
            entry.file_system == synced.file_system && entry.at_rest.is_some_and(|earliest| earliest <= synced.number)
        };
        let ids: Vec<u64> = self.entries.iter().filter(|(_, entry)| settled(entry)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.strike(id));
    }

    /// Waits a moment for syncs that run; whether none does any more.
    pub(crate) fn await_syncs(&mut self, moment: Duration) -> bool {
        if !self.syncing.is_empty()
            && let Ok(synced) = self.back.recv_timeout(moment)
        {
            self.has_synced(&synced);
        }
        self.syncing.is_empty()
    }

    /// Has everything written a last time; what comes of it can be received. Absent if there is no journal.
    pub(crate) fn end(&self) -> Option<Receiver<Result<(), String>>> {
        self.scribe.as_ref().map(|(scribe, _)| scribe.end())
    }
}
