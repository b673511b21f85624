//! Files that a worker has in hand, and who waits for them.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Inodes, Known};
use crate::ask::Ask;
use crate::closer::LateFd;
use crate::failure::Failure;
use crate::key::Key;

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
    /// Counts up whenever the worker has done something: bytes that it hashed, and steps in between.
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

impl Inodes {
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

    /// Openers who wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        let first = |task: &Task| matches!(task, Task::Judge(_) | Task::Repair(_) | Task::Renew(Renewing::Asked(_)));
        self.busy.values().map(|busy| busy.waiting.len() + usize::from(busy.task.as_ref().is_some_and(first))).sum()
    }
}
