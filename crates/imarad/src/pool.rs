//! Workers for what may take long: hashing what is large or not in memory, and writing labels.
//!
//! The dispatcher never waits for them: it hands a job over and finds the report later, when the wake-up descriptor is
//! readable. A worker may wait for the guarded file system (a slow disk, a frozen one); openers of *other* files do not.
//! Workers are [apart](imara_linux::apart): one that cannot be killed keeps nothing open but the file it works on.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imara_integrity::check::{self, Renewal, Settings};
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::event::Uid;
use imara_integrity::label;
use imara_linux::apart::{Apart, Home};
use imara_linux::epoll::Waker;
use imara_linux::file;
use imara_linux::hash::FileHasher;
use imara_linux::xattr;

use crate::inodes::Key;
use crate::look::{Label, Look, Sighting, Wanted};

/// Workers at most. More than processors, because they wait for disks more than they compute, and some may hang.
const WORKERS: usize = 128;

/// Workers at most that one file system keeps busy: one that hangs leaves the others some.
const PER_DEVICE: usize = 96;

/// Workers at most that the files of one owner keep busy, unless that is root: huge files cost him nothing.
const PER_OWNER: usize = 32;

const ROOT: Uid = Uid(0);

/// How long a worker waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// What a worker does with a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Read the label, and hash the content if that matters.
    Look(Wanted),
    /// Hash the content and write the label unless it is right.
    Renew(Settings),
    /// Write this digest's label.
    Label(Digest),
}

/// One piece of work.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: Key,
    pub(crate) serial: u64,
    pub(crate) owner: Uid,
    /// The dispatcher's descriptor. It stays open until the report.
    pub(crate) file: RawFd,
    pub(crate) work: Work,
    pub(crate) progress: Arc<AtomicU64>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// What was found.
    Looked(Look),
    /// What is there now, with the content's digest; whether the label had to be written.
    Renewed { look: Look, digest: Digest, wrote: bool },
    /// The label is written.
    Labelled,
    /// The content could not be read.
    Unreadable(String),
    /// The label could not be read or written.
    NotWritten(String),
}

/// A report to the dispatcher.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) key: Key,
    pub(crate) serial: u64,
    pub(crate) done: Done,
}

/// The workers, seen from the dispatcher.
///
/// One waits for each job that is being done: a job that hangs (a frozen file system, a dead disk) takes its worker with
/// it, and the next job gets another one.
#[derive(Debug)]
pub(crate) struct Pool {
    apart: Apart,
    shared: Arc<Shared>,
    reports: Receiver<Report>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    home: Home,
    out: Sender<Report>,
    wake: Arc<Waker>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    devices: HashMap<(u32, u32), usize>,
    owners: HashMap<Uid, usize>,
    idle: usize,
    workers: usize,
}

impl State {
    /// The first job that may begin now.
    fn take(&mut self) -> Option<Job> {
        let at = self.queue.iter().position(|job| {
            let of_device = self.devices.get(&job.key.device()).copied().unwrap_or(0);
            let of_owner = self.owners.get(&job.owner).copied().unwrap_or(0);
            of_device < PER_DEVICE && (job.owner == ROOT || of_owner < PER_OWNER)
        })?;
        let job = self.queue.remove(at)?;
        *self.devices.entry(job.key.device()).or_default() += 1;
        *self.owners.entry(job.owner).or_default() += 1;
        Some(job)
    }

    /// A job that was taken has ended.
    fn ended(&mut self, device: (u32, u32), owner: Uid) {
        less(&mut self.devices, device);
        less(&mut self.owners, owner);
    }
}

fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut count) = counts.entry(key) {
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
        }
    }
}

impl Pool {
    /// No workers yet; they come with the work, and call `wake` after each report.
    pub(crate) fn new(apart: Apart, home: Home, wake: Arc<Waker>) -> Self {
        let (out, reports) = channel();
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), home, out, wake };
        Self { apart, shared: Arc::new(shared), reports }
    }

    /// Queues a job, and starts another worker if none is free. Never waits.
    pub(crate) fn submit(&self, job: Job) {
        let mut state = self.shared.lock();
        state.queue.push_back(job);
        if state.queue.len() > state.idle && state.workers < WORKERS {
            state.workers += 1;
            let place = Place(Arc::clone(&self.shared));
            // Without another thread the job waits for one that is there.
            self.apart.start("worker", move || place.0.serve());
        }
        self.shared.work.notify_one();
    }

    /// A report that has come in, if any.
    pub(crate) fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

/// A worker's place, given up when it ends or could not begin.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().workers -= 1;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until there has been nothing to do for a while.
    fn serve(&self) {
        let mut worker = Worker { hasher: FileHasher::default(), label: Vec::new() };
        while let Some(Job { key, serial, owner, file, work, progress }) = self.next() {
            // It has begun. (Whoever waits for one that does not begin in time is answered too.)
            progress.fetch_add(1, Ordering::Relaxed);
            let done = match self.home.fetch(file) {
                // Ours is closed before the report: the dispatcher may give the lease back, which it would keep.
                Ok(file) => worker.work(&file, work, &progress),
                Err(error) => Done::Unreadable(error.to_string()),
            };
            self.lock().ended(key.device(), owner);
            if self.out.send(Report { key, serial, done }).is_err() {
                return;
            }
            let _ = self.wake.wake();
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        state.idle += 1;
        loop {
            if let Some(job) = state.take() {
                state.idle -= 1;
                return Some(job);
            }
            let (back, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if waited.timed_out() {
                state.idle -= 1;
                return None;
            }
        }
    }
}

struct Worker {
    hasher: FileHasher,
    label: Vec<u8>,
}

impl Worker {
    fn work(&mut self, file: &OwnedFd, work: Work, progress: &AtomicU64) -> Done {
        match work {
            Work::Look(wanted) => match self.look(file, wanted, progress) {
                Ok(look) => Done::Looked(look),
                Err(error) => Done::Unreadable(error),
            },
            Work::Renew(settings) => self.renew(file, settings, progress),
            Work::Label(digest) => match write_label(file, &digest) {
                Ok(()) => Done::Labelled,
                Err(error) => Done::NotWritten(error),
            },
        }
    }

    fn look(&mut self, file: &OwnedFd, wanted: Wanted, progress: &AtomicU64) -> Result<Look, String> {
        let facts = file::facts(file.as_fd()).map_err(|error| error.to_string())?;
        let sighting = Sighting::of(&facts);
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        progress.fetch_add(1, Ordering::Relaxed);
        let digest = match wanted.algorithm(label.as_read(), facts.size) {
            None => wanted.known,
            Some(algorithm) => Some(match wanted.known(algorithm) {
                Some(digest) => digest,
                None => self.hash(file, algorithm, progress)?,
            }),
        };
        Ok(Look { sighting, label, digest })
    }

    fn hash(&mut self, file: &OwnedFd, algorithm: HashAlgorithm, progress: &AtomicU64) -> Result<Digest, String> {
        let size = file::facts(file.as_fd()).map_err(|error| error.to_string())?.size;
        self.hasher.hash(file.as_fd(), size, algorithm, progress).map_err(|error| error.to_string())
    }

    fn renew(&mut self, file: &OwnedFd, settings: Settings, progress: &AtomicU64) -> Done {
        let facts = match file::facts(file.as_fd()) {
            Ok(facts) => facts,
            Err(error) => return Done::Unreadable(error.to_string()),
        };
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        if matches!(label, Label::Failed | Label::Unsupported) {
            return Done::NotWritten("its label cannot be read".into());
        }
        let look = |digest| Look { sighting: Sighting::of(&facts), label: label.clone(), digest: Some(digest) };
        let mut algorithm = label::algorithm_asked(label.as_read().bytes(), settings.hash);
        loop {
            let digest = match self.hash(file, algorithm, progress) {
                Ok(digest) => digest,
                Err(error) => return Done::Unreadable(error),
            };
            match check::renew(label.as_read(), &digest, settings) {
                Renewal::Keep => return Done::Renewed { look: look(digest), digest, wrote: false },
                Renewal::Rehash(other) => algorithm = other,
                Renewal::Write(digest) => {
                    progress.fetch_add(1, Ordering::Relaxed);
                    return match write_label(file, &digest) {
                        Ok(()) => Done::Renewed { look: look(digest).rewritten(&digest), digest, wrote: true },
                        Err(error) => Done::NotWritten(error),
                    };
                }
            }
        }
    }
}

fn write_label(file: &OwnedFd, digest: &Digest) -> Result<(), String> {
    xattr::write(file.as_fd(), xattr::IMA, &label::encode_digest(digest)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_linux::file::FileFacts;

    /// How many of these jobs may begin at once.
    fn begun(state: &mut State, minor: u32, owner: Uid, count: usize) -> usize {
        let null = std::fs::File::open("/dev/null").unwrap();
        let facts = FileFacts { device: (7, minor), ..file::facts(null.as_fd()).unwrap() };
        for _ in 0..count {
            let (file, progress) = (-1, Arc::default());
            let work = Work::Label(Digest::of(HashAlgorithm::Sha256, b""));
            state.queue.push_back(Job { key: Key::from(&facts), serial: 0, owner, file, work, progress });
        }
        std::iter::from_fn(|| state.take()).count()
    }

    #[test]
    fn neither_an_owner_nor_a_file_system_takes_all_workers() {
        let mut state = State::default();
        assert_eq!(begun(&mut state, 1, Uid(1000), 100), PER_OWNER);
        assert_eq!(begun(&mut state, 1, Uid(1001), 10), 10, "another owner");
        assert_eq!(begun(&mut state, 1, ROOT, 100), PER_DEVICE - PER_OWNER - 10);
        assert_eq!(begun(&mut state, 2, ROOT, 10), 10, "another file system");
        state.ended((7, 1), Uid(1000));
        assert_eq!(state.take().unwrap().owner, Uid(1000), "his turn again");
        state.ended((7, 1), ROOT);
        assert!(state.take().is_some_and(|job| job.owner == ROOT), "whoever may, even if others came before");
    }
}
