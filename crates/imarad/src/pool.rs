//! Workers for what may take long: hashing what is large or not in memory, and writing labels.
//!
//! The dispatcher never waits for them: it hands a job over and finds the report later, when the wake-up descriptor is
//! readable. A worker may wait for the guarded file system (a slow disk, a frozen one); openers of *other* files do not.
//! Workers are [apart](imara_linux::apart): one that cannot be killed keeps nothing open but the file it works on.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imara_integrity::event::Uid;
use imara_linux::apart::{Apart, Home};
use imara_linux::epoll::Waker;
use imara_linux::private_mount;

use crate::key::Key;
use crate::worker::{Done, NewNote, Opened, Order, Work, Worker};

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

/// One in so many jobs is taken in turn, whether anybody waits for it or not: labels are to follow, however many ask.
const OTHERS: usize = 4;

/// How long a worker waits for work before it ends.
const IDLE: Duration = Duration::from_secs(10);

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
    /// The dispatcher's descriptor. It stays open until the report.
    pub(crate) file: RawFd,
    /// The root of the guard's own mount of the file system, if it has one; open until the report too.
    pub(crate) mount: Option<RawFd>,
    pub(crate) order: Order,
    pub(crate) progress: Arc<AtomicU64>,
    /// Whether somebody waits for it.
    pub(crate) awaited: bool,
}

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
        let kind = match self.order.work {
            Work::Renew(_) | Work::Label(_) => Some(Share::Writers),
            Work::Look(_) => (self.size > LARGE).then_some(Share::Large),
        };
        [Some(Share::FileSystem(self.file_system)), Some(Share::Owner(self.owner)), kind]
            .into_iter()
            .flatten()
            .collect()
    }
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
    /// Jobs begun so far.
    begun: usize,
}

impl State {
    /// The job that is to begin now: one that somebody waits for, if there is any; but one of [`OTHERS`] is the next in line.
    fn take(&mut self) -> Option<Job> {
        let free = |share: &Share| self.shares.get(share).copied().unwrap_or(0) < share.limit();
        let may_begin = |job: &Job| job.shares().iter().all(free);
        let next_in_line = || self.queue.iter().position(may_begin);
        let awaited = || self.queue.iter().position(|job| job.awaited && may_begin(job));
        let in_line = self.begun.is_multiple_of(OTHERS);
        let at = if in_line { next_in_line() } else { awaited().or_else(next_in_line) }?;
        self.begun = self.begun.wrapping_add(1);
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

    /// Somebody waits for this job from now on. Nothing happens if it has begun.
    pub(crate) fn hasten(&self, serial: u64) {
        let mut state = self.shared.lock();
        if let Some(job) = state.queue.iter_mut().find(|job| job.serial == serial) {
            job.awaited = true;
        }
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
        let mut worker = Worker::new(&self.hashed);
        while let Some(job) = self.next() {
            let shares = job.shares();
            let Job { key, serial, file_system, file, mount, order, progress, .. } = job;
            // It has begun. (Whoever waits for one that does not begin in time is answered too.)
            progress.fetch_add(1, Ordering::Relaxed);
            let (done, noted) = match self.home.fetch(file) {
                // Ours is closed before the report: the dispatcher may give the lease back, which it would keep.
                Ok(file) => {
                    let other = || private_mount::reopen(self.home.fetch(mount?).ok()?.as_fd(), file.as_fd()).ok();
                    worker.carry_out(order, &Opened { file: &file, other: &other }, &progress)
                }
                Err(error) => (Done::Unreadable(error.to_string()), None),
            };
            self.lock().ended(&shares);
            // That may let more than one job begin.
            self.work.notify_one();
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

#[cfg(test)]
mod tests {
    use super::*;
    use imara_integrity::check::{Mode, Settings};
    use imara_integrity::digest::HashAlgorithm;
    use imara_integrity::policy::Decision;
    use imara_linux::file::{self, Times};

    use crate::look::Wanted;

    /// How many of these jobs may begin at once.
    fn begun(state: &mut State, file_system: usize, owner: Uid, size: u64, work: Work, count: usize) -> usize {
        let null = std::fs::File::open("/dev/null").unwrap();
        let key = Key::of(null.as_fd(), &file::facts(null.as_fd()).unwrap());
        for _ in 0..count {
            let order = Order { work, times: Times::Coarse, cover: None };
            let (file, mount, progress) = (-1, None, Arc::default());
            let awaited = false;
            state.queue.push_back(Job {
                key,
                serial: 0,
                owner,
                file_system,
                size,
                file,
                mount,
                order,
                progress,
                awaited,
            });
        }
        std::iter::from_fn(|| state.take()).count()
    }

    #[test]
    fn who_waits_for_a_job_does_not_wait_for_those_for_which_nobody_does() {
        let settings = Settings { mode: Mode::Enforce, hash: HashAlgorithm::Sha256 };
        let mut state = State::default();
        // One owner's jobs, of which none may begin: his share is taken.
        state.shares.insert(Share::Owner(Uid(1)), PER_OWNER);
        assert_eq!(begun(&mut state, 1, Uid(1), 1, Work::Renew(settings), 3), 0);
        for (number, job) in state.queue.iter_mut().enumerate() {
            job.serial = u64::try_from(number).unwrap();
        }
        state.shares.clear();
        state.queue[2].awaited = true;
        state.begun = 1;
        assert_eq!(std::iter::from_fn(|| state.take()).map(|job| job.serial).collect::<Vec<_>>(), [2, 0, 1]);
    }

    #[test]
    fn nothing_takes_all_workers() {
        let settings = Settings { mode: Mode::Enforce, hash: HashAlgorithm::Sha256 };
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
