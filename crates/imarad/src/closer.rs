//! Descriptors that are closed by somebody who has time.
//!
//! Closing the last descriptor of a deleted file ends the file: the file system frees its blocks, and may take its time
//! for that (a slow disk) or stand still (a frozen btrfs). The dispatcher must not wait for it, so it never closes a
//! guarded file itself: it holds them as [`LateFd`]s, which when dropped go to threads made for that.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use imara_linux::lease;

/// Threads at most. Each that stands still has one descriptor in hand.
const CLOSERS: usize = 16;

/// If nothing has been closed for this long although something waits, another thread helps.
const PATIENCE: Duration = Duration::from_millis(200);

/// How long a thread rests after it has emptied the queue. Handing over to one that rests costs no system call; but
/// whoever has closed a file may unmount next, and umount(8) takes longer than this to begin.
const REST: Duration = Duration::from_micros(100);

/// The threads, seen from the dispatcher. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Closer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

/// What is to be done in turn.
enum Step {
    Close(OwnedFd),
    Call(Box<dyn FnOnce() + Send>),
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Close(fd) => f.debug_tuple("Close").field(fd).finish(),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Step>,
    closers: usize,
    waiting: usize,
    /// When a descriptor was last taken out.
    taken: Option<Instant>,
}

impl Closer {
    /// Starts the first thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let closer = Self(Arc::default());
        closer.0.lock().closers = 1;
        closer.spawn()?;
        Ok(closer)
    }

    /// A descriptor that is closed later. `leased`: it holds a lease, which is to be given back at once even so.
    pub(crate) fn late(&self, fd: OwnedFd, leased: bool) -> LateFd {
        LateFd { fd: Some(fd), leased, closer: self.clone() }
    }

    /// Sees to it that threads that stand still do not keep the others' descriptors open. To be called now and then.
    pub(crate) fn watch(&self, now: Instant) {
        let mut state = self.0.lock();
        let stuck = state.taken.is_some_and(|taken| now.duration_since(taken) > PATIENCE);
        if stuck && !state.queue.is_empty() && state.waiting == 0 && state.closers < CLOSERS {
            state.closers += 1;
            drop(state);
            if self.spawn().is_err() {
                self.0.lock().closers -= 1;
            }
        }
    }

    fn spawn(&self) -> std::io::Result<()> {
        let shared = Arc::clone(&self.0);
        std::thread::Builder::new().name("closer".into()).spawn(move || shared.serve())?;
        Ok(())
    }

    /// Calls this when what has been dropped until now is closed, or stands still.
    pub(crate) fn afterwards(&self, call: impl FnOnce() + Send + 'static) {
        self.put(Step::Call(Box::new(call)));
    }

    fn put(&self, step: Step) {
        let mut state = self.0.lock();
        state.queue.push_back(step);
        if state.taken.is_none() {
            state.taken = Some(Instant::now());
        }
        if state.waiting > 0 {
            self.0.work.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        loop {
            let mut state = self.lock();
            while state.queue.is_empty() {
                state.taken = None;
                state.waiting += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
            }
            while let Some(step) = state.queue.pop_front() {
                state.taken = Some(Instant::now());
                drop(state);
                match step {
                    Step::Close(fd) => drop(fd),
                    Step::Call(call) => call(),
                }
                state = self.lock();
            }
            drop(state);
            std::thread::sleep(REST);
        }
    }
}

/// A descriptor of a guarded file: dropping it takes no time.
#[derive(Debug)]
pub(crate) struct LateFd {
    /// There until it is dropped.
    fd: Option<OwnedFd>,
    leased: bool,
    closer: Closer,
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
        if let Some(fd) = self.fd.take() {
            self.closer.put(Step::Close(fd));
        }
    }
}
