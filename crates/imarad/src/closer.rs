//! Descriptors that are closed by somebody who has time.
//!
//! Closing the last descriptor of a deleted file ends the file: the file system frees its blocks, and may take its time
//! for that (a slow disk) or stand still (a frozen btrfs). The dispatcher must not wait for it, so it never closes a
//! guarded file as the last one: it holds them as [`LateFd`]s, which when dropped are handed over to threads made for
//! that. These are [apart](imara_linux::apart), because not even SIGKILL ends them while they stand still.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use imara_linux::apart::{AT_ONCE, Apart, Giver, Taker, handing_over};
use imara_linux::error::CallError;
use imara_linux::fanotify::PermissionGroup;
use imara_linux::{file, lease};

/// Lanes for files that have lost their names. A file system that stands still blocks the lane of its files, and perhaps
/// those of others whose device number happens to lead there.
const LANES: usize = 16;

/// Threads of a lane at most. Each that stands still has up to [`AT_ONCE`] descriptors in hand.
const CLOSERS: u64 = 4;

/// How long a descriptor waits for others, to be handed over together with them: waking a thread for each would cost more
/// than all else about a question.
const LINGER: Duration = Duration::from_millis(1);

/// How long a call waits for what is being closed.
const PATIENCE: Duration = Duration::from_millis(500);

/// Channels to the threads: one for each lane, and one for files that have a name, which are closed in no time.
pub(crate) type Channels = Vec<(Giver, Taker)>;

/// Makes them; must be done before parting.
pub(crate) fn channels() -> Result<Channels, CallError> {
    (0..=LANES).map(|_| handing_over()).collect()
}

/// The threads, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Closer {
    apart: Apart,
    dropped: Dropped,
    /// When the first of them was seen to wait.
    since: Option<Instant>,
    /// The first is for files that have a name.
    lanes: Vec<Lane>,
    /// So many descriptors may wait to be closed; if there are more, the dispatcher takes no more for a moment.
    allowance: u64,
}

/// What has been dropped and is to be handed over.
#[derive(Clone, Debug, Default)]
struct Dropped(Arc<Mutex<Vec<OwnedFd>>>);

#[derive(Debug)]
struct Lane {
    giver: Giver,
    shared: Arc<Shared>,
    /// The number of the last lot that was handed over.
    given: u64,
    /// The same, when it was last looked whether the threads keep up.
    before: u64,
    /// Descriptors in all lots that were handed over.
    given_files: u64,
    closers: u64,
    /// What found no room.
    left: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    taker: Taker,
    progress: Mutex<Progress>,
    parted: Condvar,
}

/// Something to be called after a lot is closed, or at a time.
struct Call {
    lot: u64,
    due: Instant,
    run: Box<dyn FnOnce() + Send>,
}

/// What the threads have done.
#[derive(Default)]
struct Progress {
    /// Lots that the dispatcher does not hold any more.
    parted: u64,
    /// Lots that are closed.
    closed: u64,
    /// Descriptors in all of them.
    closed_files: u64,
    /// When the last one was closed.
    last: Option<Instant>,
    calls: Vec<Call>,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("closed", &self.closed)
            .field("calls", &self.calls.len())
            .finish_non_exhaustive()
    }
}

impl Closer {
    /// No threads yet; they come with the first descriptors.
    pub(crate) fn new(apart: Apart, channels: Channels, allowance: u64) -> Self {
        let lanes = channels.into_iter().map(|(giver, taker)| {
            let shared = Arc::new(Shared { taker, progress: Mutex::default(), parted: Condvar::new() });
            Lane { giver, shared, given: 0, given_files: 0, before: 0, closers: 0, left: Vec::new() }
        });
        Self { apart, dropped: Dropped::default(), since: None, lanes: lanes.collect(), allowance }
    }

    /// A descriptor that is closed later. `leased`: it holds a lease, which is to be given back at once even so.
    pub(crate) fn late(&self, fd: OwnedFd, leased: bool) -> LateFd {
        LateFd { fd: Some(fd), leased, ignored: None, dropped: self.dropped.clone() }
    }

    /// When something that has been dropped is to be [handed over](Self::flush_due); `None` if there is nothing.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Instant> {
        let waits = !lock(&self.dropped.0).is_empty() || self.lanes.iter().any(|lane| !lane.left.is_empty());
        self.since = waits.then(|| self.since.unwrap_or(now));
        self.since.map(|since| since + LINGER)
    }

    /// Hands over what has been dropped, if that is worth it: enough, or long enough ago.
    pub(crate) fn flush_due(&mut self) {
        let enough = lock(&self.dropped.0).len() >= AT_ONCE;
        if enough || self.since.is_some_and(|since| since.elapsed() >= LINGER) {
            self.flush();
        }
    }

    /// Hands over what has been dropped.
    pub(crate) fn flush(&mut self) {
        self.since = None;
        let dropped = std::mem::take(&mut *lock(&self.dropped.0));
        for fd in dropped {
            let lane = lane_of(fd.as_fd());
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.left.push(fd);
            }
        }
        for lane in &mut self.lanes {
            lane.flush(&self.apart);
        }
    }

    /// Whether files with names are being closed more slowly than they come; not if none is being closed at all, because
    /// then waiting would not help.
    pub(crate) fn is_behind(&self) -> bool {
        self.lanes.first().is_some_and(|lane| {
            let progress = lock(&lane.shared.progress);
            let waiting = lane.given_files.saturating_sub(progress.closed_files) > self.allowance;
            waiting && progress.last.is_some_and(|last| last.elapsed() < PATIENCE)
        })
    }

    /// Calls this when what has been dropped until now is closed, or stands still.
    pub(crate) fn afterwards(&mut self, call: impl FnOnce() + Send + 'static) {
        self.flush();
        if let Some(lane) = self.lanes.first() {
            let now = Instant::now();
            let mut progress = lock(&lane.shared.progress);
            progress.calls.push(Call { lot: lane.given, due: now + PATIENCE, run: Box::new(call) });
            progress.call(now);
        }
    }

    /// Sees to it that threads that stand still do not keep the others' descriptors open. To be called now and then.
    pub(crate) fn watch(&mut self, now: Instant) {
        self.flush();
        for lane in &mut self.lanes {
            lane.watch(&self.apart, now);
        }
    }
}

/// The lane of a file: the first, unless it has lost its name.
fn lane_of(fd: BorrowedFd<'_>) -> usize {
    match file::facts(fd) {
        Ok(facts) if facts.links == 0 => {
            let (major, minor) = facts.device;
            let number = usize::try_from(major.wrapping_mul(31).wrapping_add(minor)).unwrap_or(0);
            1 + number % LANES
        }
        Ok(_) | Err(_) => 0,
    }
}

impl Lane {
    fn flush(&mut self, apart: &Apart) {
        while !self.left.is_empty() {
            let lot = self.left.len().saturating_sub(AT_ONCE);
            let files: Vec<BorrowedFd<'_>> = self.left.iter().skip(lot).map(AsFd::as_fd).collect();
            // No room, or no memory: another time.
            if !self.giver.give(&files, self.given + 1).unwrap_or(false) {
                break;
            }
            self.given += 1;
            self.given_files += u64::try_from(files.len()).unwrap_or(0);
            // They are open on the other side too, which waits for us: closing them here ends nothing.
            self.left.truncate(lot);
            lock(&self.shared.progress).parted = self.given;
            self.shared.parted.notify_all();
            if self.closers == 0 {
                self.spawn(apart);
            }
        }
    }

    fn watch(&mut self, apart: &Apart, now: Instant) {
        let mut progress = lock(&self.shared.progress);
        progress.call(now);
        // All but one may stand still.
        let stuck = progress.closed + self.closers <= self.before;
        drop(progress);
        self.before = self.given;
        if stuck && self.before > 0 && self.closers < CLOSERS {
            self.spawn(apart);
        }
    }

    fn spawn(&mut self, apart: &Apart) {
        self.closers += 1;
        let shared = Arc::clone(&self.shared);
        apart.start("closer", move || shared.serve());
    }
}

impl Shared {
    fn serve(&self) {
        let mut files = Vec::new();
        while let Ok(number) = self.taker.take(&mut files) {
            let mut progress = lock(&self.progress);
            while progress.parted < number {
                progress = self.parted.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
            drop(progress);
            let count = u64::try_from(files.len()).unwrap_or(0);
            files.clear();
            let (mut progress, now) = (lock(&self.progress), Instant::now());
            progress.closed += 1;
            progress.closed_files += count;
            progress.last = Some(now);
            progress.call(now);
        }
    }
}

impl Progress {
    fn call(&mut self, now: Instant) {
        let closed = self.closed;
        for Call { run, .. } in self.calls.extract_if(.., |call| call.lot <= closed || call.due <= now) {
            run();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor of a guarded file: dropping it takes no time.
#[derive(Debug)]
pub(crate) struct LateFd {
    /// There until it is dropped.
    fd: Option<OwnedFd>,
    leased: bool,
    /// Who does not ask about the file any more, as long as its lease is held.
    ignored: Option<Arc<PermissionGroup>>,
    dropped: Dropped,
}

impl LateFd {
    /// Says that a lease has been taken on it.
    pub(crate) const fn now_leased(&mut self) {
        self.leased = true;
    }

    /// Says that the kernel answers for the file, which holds a lease.
    pub(crate) fn now_ignored(&mut self, by: &Arc<PermissionGroup>) {
        self.ignored = Some(Arc::clone(by));
    }

    /// Whether the kernel answers for the file, unless somebody changed it under its lease.
    pub(crate) const fn is_ignored(&self) -> bool {
        self.ignored.is_some()
    }

    /// Has the kernel ask about the file again.
    pub(crate) fn heed(&mut self) {
        if let Some(group) = self.ignored.take() {
            // An error says that the group is closed.
            let _ = group.heed_inode(self.as_fd());
        }
    }

    /// Stands in for `other`, whose lease may then be given back although the kernel answers for the file. Must hold a
    /// lease itself.
    pub(crate) fn stand_in_for(&mut self, other: &mut Self) {
        self.ignored = other.ignored.take();
    }

    /// Gives its lease back, if it holds one; but nobody is let in to write before the kernel asks again.
    pub(crate) fn release(&mut self) {
        self.heed();
        if std::mem::take(&mut self.leased) {
            // An error says that the kernel has taken it away before.
            let _ = lease::release(self.as_fd());
        }
    }
}

impl AsFd for LateFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => unreachable!("taken out by drop only"),
        }
    }
}

impl AsRawFd for LateFd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for LateFd {
    fn drop(&mut self) {
        self.release();
        lock(&self.dropped.0).extend(self.fd.take());
    }
}
