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

use imara_linux::apart::{AT_ONCE, Apart, Giver, Taker};
use imara_linux::lease;

/// Threads at most. Each that stands still has up to [`AT_ONCE`] descriptors in hand.
const CLOSERS: u64 = 16;

/// How long a call waits for what is being closed.
const PATIENCE: Duration = Duration::from_millis(500);

/// The threads, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Closer {
    giver: Giver,
    apart: Apart,
    dropped: Dropped,
    shared: Arc<Shared>,
    /// The number of the last lot that was handed over.
    given: u64,
    /// The same, when it was last looked whether the threads keep up.
    before: u64,
    closers: u64,
}

/// What has been dropped and is to be handed over.
#[derive(Clone, Debug, Default)]
struct Dropped(Arc<Mutex<Vec<OwnedFd>>>);

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
    /// Starts the first thread.
    pub(crate) fn start(apart: Apart, (giver, taker): (Giver, Taker)) -> Self {
        let shared = Arc::new(Shared { taker, progress: Mutex::default(), parted: Condvar::new() });
        let closer = Self { giver, apart, dropped: Dropped::default(), shared, given: 0, before: 0, closers: 1 };
        closer.spawn();
        closer
    }

    /// A descriptor that is closed later. `leased`: it holds a lease, which is to be given back at once even so.
    pub(crate) fn late(&self, fd: OwnedFd, leased: bool) -> LateFd {
        LateFd { fd: Some(fd), leased, dropped: self.dropped.clone() }
    }

    /// Hands over what has been dropped. To be called whenever there is nothing more urgent.
    pub(crate) fn flush(&mut self) {
        let mut dropped = std::mem::take(&mut *lock(&self.dropped.0));
        while !dropped.is_empty() {
            let lot = dropped.len().saturating_sub(AT_ONCE);
            let files: Vec<BorrowedFd<'_>> = dropped.iter().skip(lot).map(AsFd::as_fd).collect();
            // No room, or no memory: another time.
            if !self.giver.give(&files, self.given + 1).unwrap_or(false) {
                break;
            }
            self.given += 1;
            // They are open on the other side too, which waits for us: closing them here ends nothing.
            dropped.truncate(lot);
            lock(&self.shared.progress).parted = self.given;
            self.shared.parted.notify_all();
        }
        lock(&self.dropped.0).append(&mut dropped);
    }

    /// Calls this when what has been dropped until now is closed, or stands still.
    pub(crate) fn afterwards(&mut self, call: impl FnOnce() + Send + 'static) {
        self.flush();
        let mut progress = lock(&self.shared.progress);
        let now = Instant::now();
        progress.calls.push(Call { lot: self.given, due: now + PATIENCE, run: Box::new(call) });
        progress.call(now);
    }

    /// Sees to it that threads that stand still do not keep the others' descriptors open. To be called now and then.
    pub(crate) fn watch(&mut self, now: Instant) {
        self.flush();
        let mut progress = lock(&self.shared.progress);
        progress.call(now);
        // All but one may stand still.
        let stuck = progress.closed + self.closers <= self.before;
        drop(progress);
        self.before = self.given;
        if stuck && self.closers < CLOSERS {
            self.closers += 1;
            self.spawn();
        }
    }

    fn spawn(&self) {
        let shared = Arc::clone(&self.shared);
        self.apart.start("closer", move || shared.serve());
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
            files.clear();
            let mut progress = lock(&self.progress);
            progress.closed += 1;
            progress.call(Instant::now());
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
    dropped: Dropped,
}

impl LateFd {
    /// Says that a lease has been taken on it.
    pub(crate) const fn now_leased(&mut self) {
        self.leased = true;
    }

    /// Gives its lease back, if it holds one.
    pub(crate) fn release(&mut self) {
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
