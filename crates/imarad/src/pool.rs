//! Workers for what may take long: hashing what is large or not in memory, and writing labels.
//!
//! The dispatcher never waits for them: it hands a job over and finds the report later, when the wake-up descriptor is
//! readable. A worker may wait for the guarded file system (a slow disk, a frozen one); openers of *other* files do not.
//! Workers are [apart](imara_linux::apart): one that cannot be killed keeps nothing open but the file it works on.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
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
use imara_linux::file::{self, Times};
use imara_linux::hash::{FileHasher, HashError};
use imara_linux::private_mount;
use imara_linux::xattr::{self, Refusal};

use crate::book::Note;
use crate::key::Key;
use crate::look::{Label, Look, Sighting, Wanted};
use crate::scribe::Scribe;

/// Workers at most. More than processors, because they wait for disks more than they compute, and some may hang.
const WORKERS: usize = 128;

/// Workers at most that one file system keeps busy: one that hangs leaves the others some.
const PER_FILE_SYSTEM: usize = 64;

/// Workers at most that write labels, which frozen file systems keep, and that read large files, which takes long: so
/// there are always some for what is over in a moment.
const PER_KIND: usize = 56;

/// A file larger than this is a large one.
const LARGE: u64 = 1 << 20;

/// Workers at most that the files of one owner keep busy, unless that is root: huge files cost him nothing.
const PER_OWNER: usize = 32;

const ROOT: Uid = Uid(0);

/// How often a file is read that is cut meanwhile.
const TRIES: u8 = 5;

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
    /// Number of the file system: all subvolumes of a btrfs have one.
    pub(crate) file_system: usize,
    /// Bytes.
    pub(crate) size: u64,
    /// What the file system's times are worth.
    pub(crate) times: Times,
    /// The dispatcher's descriptor. It stays open until the report.
    pub(crate) file: RawFd,
    /// The root of the guard's own mount of the file system, if it has one; open until the report too.
    pub(crate) mount: Option<RawFd>,
    pub(crate) work: Work,
    pub(crate) progress: Arc<AtomicU64>,
    /// Who has it noted that the file is going to have another label.
    pub(crate) cover: Option<Covered>,
}

/// Which file it is in the journal.
#[derive(Clone, Debug)]
pub(crate) struct Covered {
    pub(crate) scribe: Scribe,
    pub(crate) handle: [u8; 24],
    pub(crate) inode: u64,
}

/// The note about the new label: its number, or why there is none; and the label.
pub(crate) type NewNote = (Result<u64, String>, Box<[u8]>);

/// What a job takes part of, each of which is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Share {
    FileSystem(usize),
    Owner(Uid),
    Writers,
    Large,
}

impl Share {
    const fn limit(self) -> usize {
        match self {
            Self::FileSystem(_) => PER_FILE_SYSTEM,
            Self::Owner(ROOT) => WORKERS,
            Self::Owner(_) => PER_OWNER,
            Self::Writers | Self::Large => PER_KIND,
        }
    }
}

impl Job {
    fn shares(&self) -> Vec<Share> {
        let kind = match self.work {
            Work::Renew(_) | Work::Label(_) => Some(Share::Writers),
            Work::Look(_) => (self.size > LARGE).then_some(Share::Large),
        };
        [Some(Share::FileSystem(self.file_system)), Some(Share::Owner(self.owner)), kind]
            .into_iter()
            .flatten()
            .collect()
    }
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
    pub(crate) file_system: usize,
    pub(crate) done: Done,
    pub(crate) noted: Option<NewNote>,
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

/// What the workers have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    /// Jobs that have not begun.
    pub(crate) jobs: usize,
    /// Workers there are, busy or not.
    pub(crate) workers: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    home: Arc<Home>,
    out: Sender<Report>,
    wake: Arc<Waker>,
    /// Bytes hashed by all of them.
    hashed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Job>,
    shares: HashMap<Share, usize>,
    idle: usize,
    workers: usize,
}

impl State {
    /// The first job that may begin now.
    fn take(&mut self) -> Option<Job> {
        let free = |share: &Share| self.shares.get(share).copied().unwrap_or(0) < share.limit();
        let at = self.queue.iter().position(|job| job.shares().iter().all(free))?;
        let job = self.queue.remove(at)?;
        for share in job.shares() {
            *self.shares.entry(share).or_default() += 1;
        }
        Some(job)
    }

    /// A job that was taken, with these shares, has ended.
    fn ended(&mut self, shares: &[Share]) {
        for share in shares {
            if let Entry::Occupied(mut count) = self.shares.entry(*share) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }
}

impl Pool {
    /// No workers yet; they come with the work, and call `wake` after each report.
    pub(crate) fn new(apart: Apart, home: Arc<Home>, wake: Arc<Waker>) -> Self {
        let (out, reports) = channel();
        let hashed = AtomicU64::new(0);
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), home, out, wake, hashed };
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

    /// Numbers for `imara status`.
    pub(crate) fn load(&self) -> Load {
        let state = self.shared.lock();
        Load { jobs: state.queue.len(), workers: state.workers }
    }

    /// Bytes hashed up to now.
    pub(crate) fn hashed(&self) -> u64 {
        self.shared.hashed.load(Ordering::Relaxed)
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
        let mut worker = Worker {
            hasher: FileHasher::default(),
            label: Vec::new(),
            hashed: &self.hashed,
            times: Times::Coarse,
            cover: None,
            noted: None,
        };
        while let Some(job) = self.next() {
            let shares = job.shares();
            let Job { key, serial, file_system, file, mount, work, progress, times, cover, .. } = job;
            worker.times = times;
            // It has begun. (Whoever waits for one that does not begin in time is answered too.)
            progress.fetch_add(1, Ordering::Relaxed);
            worker.cover = cover.map(|cover| (cover, file_system));
            let done = match self.home.fetch(file) {
                // Ours is closed before the report: the dispatcher may give the lease back, which it would keep.
                Ok(file) => {
                    let other = || private_mount::reopen(self.home.fetch(mount?).ok()?.as_fd(), file.as_fd()).ok();
                    worker.work(&Opened { file: &file, other: &other }, work, &progress)
                }
                Err(error) => Done::Unreadable(error.to_string()),
            };
            self.lock().ended(&shares);
            // That may let more than one job begin.
            self.work.notify_one();
            let noted = worker.noted.take();
            if self.out.send(Report { key, serial, file_system, done, noted }).is_err() {
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
                // One may have come in after the time was over and before we had the lock again.
                return state.take();
            }
        }
    }
}

struct Worker<'s> {
    hasher: FileHasher,
    label: Vec<u8>,
    /// Of the file system of the present job.
    times: Times,
    hashed: &'s AtomicU64,
    cover: Option<(Covered, usize)>,
    noted: Option<NewNote>,
}

/// A file to be worked on.
struct Opened<'a> {
    /// As somebody has opened it.
    file: &'a OwnedFd,
    /// Opens it through the guard's own mount.
    other: &'a dyn Fn() -> Option<OwnedFd>,
}

impl Opened<'_> {
    /// Writes the label; through the guard's own mount, if the file was opened through one that is read-only.
    fn write_label(&self, digest: &Digest) -> Result<(), String> {
        let label = label::encode_digest(digest);
        let write = |file: &OwnedFd| xattr::write(file.as_fd(), xattr::IMA, &label);
        let written = match write(self.file) {
            Err(error) if error.refusal == Refusal::ReadOnly => (self.other)().map_or(Err(error), |file| write(&file)),
            written => written,
        };
        written.map_err(|error| error.to_string())
    }
}

impl Worker<'_> {
    /// Has it noted that the file is going to have this label. It may reach the disk before the content does.
    fn cover(&mut self, file: &OwnedFd, digest: &Digest) {
        let Some((Covered { scribe, handle, inode }, file_system)) = self.cover.take() else { return };
        let label: Box<[u8]> = label::encode_digest(digest).into();
        let path = file::path_of(file.as_fd()).unwrap_or_default().into();
        let note = Note { handle, inode, label: Some(label.clone()), path };
        self.noted = Some((scribe.note_and_wait(file_system, note), label));
    }

    fn work(&mut self, opened: &Opened<'_>, work: Work, progress: &AtomicU64) -> Done {
        match work {
            Work::Look(wanted) => match self.look(opened.file, wanted, progress) {
                Ok(look) => Done::Looked(look),
                Err(error) => Done::Unreadable(error),
            },
            Work::Renew(settings) => self.renew(opened, settings, progress),
            Work::Label(digest) => match opened.write_label(&digest) {
                Ok(()) => Done::Labelled,
                Err(error) => Done::NotWritten(error),
            },
        }
    }

    /// Reads the label, and the content if need be: anew if it was cut meanwhile.
    fn look(&mut self, file: &OwnedFd, wanted: Wanted, progress: &AtomicU64) -> Result<Look, String> {
        let mut tries = TRIES;
        loop {
            let facts = file::facts(file.as_fd()).map_err(|error| error.to_string())?;
            let sighting = Sighting::of(&facts, self.times);
            let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
            progress.fetch_add(1, Ordering::Relaxed);
            let Some(algorithm) = wanted.algorithm(label.as_read(), facts.size) else {
                return Ok(Look { sighting, label, digest: wanted.known });
            };
            if let Some(known) = wanted.known(algorithm) {
                return Ok(Look { sighting, label, digest: Some(known) });
            }
            // As many bytes as the sighting says: what looks otherwise afterwards is known to have been changed.
            match self.hasher.hash(file.as_fd(), facts.size, algorithm, progress) {
                Ok(digest) => return Ok(Look { sighting, label, digest: Some(digest) }),
                Err(HashError::Short { .. }) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn hash(&mut self, file: &OwnedFd, algorithm: HashAlgorithm, progress: &AtomicU64) -> Result<Digest, String> {
        let mut tries = TRIES;
        loop {
            let size = file::facts(file.as_fd()).map_err(|error| error.to_string())?.size;
            let before = progress.load(Ordering::Relaxed);
            let hashed = self.hasher.hash(file.as_fd(), size, algorithm, progress);
            // Nobody else counts there.
            self.hashed.fetch_add(progress.load(Ordering::Relaxed).wrapping_sub(before), Ordering::Relaxed);
            match hashed {
                Ok(digest) => return Ok(digest),
                Err(HashError::Short { .. }) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// What is in a file whose label has just been written.
    fn look_again(&mut self, file: &OwnedFd, before: Look, digest: Digest) -> Look {
        // The time of our own change, or of a later one; in that case the label may be another, so it is read once more.
        let sighting = file::facts(file.as_fd()).map(|facts| Sighting::of(&facts, self.times));
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        let written = before.rewritten(&digest);
        match sighting {
            Ok(sighting) if label == written.label => Look { sighting, ..written },
            Ok(_) | Err(_) => written,
        }
    }

    fn renew(&mut self, opened: &Opened<'_>, settings: Settings, progress: &AtomicU64) -> Done {
        let file = opened.file;
        let facts = match file::facts(file.as_fd()) {
            Ok(facts) => facts,
            Err(error) => return Done::Unreadable(error.to_string()),
        };
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        if matches!(label, Label::Failed | Label::Unsupported) {
            return Done::NotWritten("its label cannot be read".into());
        }
        let times = self.times;
        let look = |digest| Look { sighting: Sighting::of(&facts, times), label: label.clone(), digest: Some(digest) };
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
                    self.cover(file, &digest);
                    progress.fetch_add(1, Ordering::Relaxed);
                    return match opened.write_label(&digest) {
                        Ok(()) => {
                            Done::Renewed { look: self.look_again(file, look(digest), digest), digest, wrote: true }
                        }
                        Err(error) => Done::NotWritten(error),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use imara_integrity::policy::Decision;

    /// How many of these jobs may begin at once.
    fn begun(state: &mut State, file_system: usize, owner: Uid, size: u64, work: Work, count: usize) -> usize {
        let null = std::fs::File::open("/dev/null").unwrap();
        let key = Key::of(null.as_fd(), &file::facts(null.as_fd()).unwrap());
        for _ in 0..count {
            let progress = Arc::default();
            state.queue.push_back(Job {
                key,
                serial: 0,
                owner,
                file_system,
                size,
                times: Times::Coarse,
                file: -1,
                mount: None,
                work,
                progress,
                cover: None,
            });
        }
        std::iter::from_fn(|| state.take()).count()
    }

    #[test]
    fn nothing_takes_all_workers() {
        let settings = Settings { mode: check::Mode::Enforce, hash: HashAlgorithm::Sha256 };
        let wanted = Wanted { decision: Decision::default(), settings, known: None, anyway: None };
        let (look, write) = (Work::Look(wanted), Work::Renew(settings));
        let mut state = State::default();
        assert_eq!(begun(&mut state, 1, Uid(1000), 1, look, 100), PER_OWNER, "an owner");
        assert_eq!(begun(&mut state, 1, Uid(1001), 1, look, 10), 10, "another owner");
        assert_eq!(begun(&mut state, 1, ROOT, 1, look, 100), PER_FILE_SYSTEM - PER_OWNER - 10, "a file system");
        assert_eq!(begun(&mut state, 2, ROOT, 1, look, 10), 10, "another file system");
        state.ended(&[Share::FileSystem(1), Share::Owner(Uid(1000))]);
        assert_eq!(state.take().unwrap().owner, Uid(1000), "his turn again");

        let mut state = State::default();
        let frozen: usize = (1..9).map(|number| begun(&mut state, number, ROOT, 1, write, 20)).sum();
        assert_eq!(frozen, PER_KIND, "frozen file systems");
        let large: usize = (1..9).map(|number| begun(&mut state, number, ROOT, LARGE + 1, look, 20)).sum();
        assert_eq!(large, PER_KIND, "large files");
        assert_eq!(begun(&mut state, 9, ROOT, LARGE, look, 10), 10, "what is small begins at once");
        const { assert!(2 * PER_KIND < WORKERS) };
    }
}
