//! Labels that follow legitimate changes: leases that break, writers that close, workers that report.
//!
//! A file that was good when it was opened for writing gets a new label after its last writer has closed. Three things
//! tell us that this may be now: a writer closed, a lease that we gave up for a writer can be had again (truncate(2)
//! closes nothing), or somebody wants to read the file. Whichever comes first takes the lease and renews the label
//! under it; a reader waits for that and is never denied because we were late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use imara_integrity::appraise::FileState;
use imara_integrity::check::{self, Plan};
use imara_integrity::collect::Collect;
use imara_integrity::digest::Digest;
use imara_integrity::event::{Hook, Mask};
use imara_integrity::iint::Writable;
use imara_linux::{file, xattr};

use crate::answer::{Hold, Repair};
use crate::failure::Failure;
use crate::inodes::{Busy, Key, Renewing, Task, Written};
use crate::pool::{Done, Job, Report, Work};
use crate::serve::Guard;

/// How long a lease is tried for after a writer closed or a lease broke. The last `fput` of a writer, during which the
/// file still counts as open for writing, is over long before; a writer that stays will close some day.
const PATIENCE: Duration = Duration::from_secs(2);

/// A worker that makes no progress for this long is given up.
const STALL: Duration = Duration::from_secs(30);

/// Whose lease is to be tried for, and when.
#[derive(Debug, Default)]
pub(crate) struct Retries(BinaryHeap<Reverse<(Instant, u32, Key)>>);

impl Retries {
    /// Tries again after 1, 2, 4, … ms; says whether there will be another time.
    fn later(&mut self, key: Key, attempt: u32) -> bool {
        let delay = Duration::from_millis(1) * 2_u32.saturating_pow(attempt.min(12));
        if delay > PATIENCE {
            return false;
        }
        self.0.push(Reverse((Instant::now() + delay, attempt + 1, key)));
        true
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((when, ..))| *when)
    }

    fn due(&mut self, now: Instant) -> Option<(u32, Key)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse((_, attempt, key))| (attempt, key))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Guard {
    /// Somebody wants to write to a file whose content we know: he waits until the lease is released.
    pub(crate) fn lease_breaks(&mut self, fd: RawFd) {
        let Some(key) = self.inodes.lease_holder(fd) else { return };
        self.counters.lease_breaks += 1;
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.broken.get_or_insert_with(Instant::now);
            return;
        }
        let Some(known) = self.inodes.take_known(&key) else { return };
        if let Some(good) = self.good_for_writing(&known.file, known.digest) {
            self.now_written_by(key, good, known.file, false);
        } else {
            let _ = imara_linux::lease::release(known.file.as_fd());
        }
        // Else the policy does not ask about writers: the lease is given back and all is forgotten.
    }

    /// Whether the file is what its label says, seen from a writer; `None` if the policy does not appraise writers.
    fn good_for_writing(&mut self, file: &OwnedFd, digest: Digest) -> Option<bool> {
        let facts = file::facts(file.as_fd()).ok()?;
        let decision = self.filesystems.decide(&self.policy, Hook::FileCheck, &[Mask::WRITE], None, &facts);
        let Plan::Judge(labels) = check::plan(&decision, self.settings) else { return None };
        let mut buffer = std::mem::take(&mut self.label);
        let label = xattr::read_label(file.as_fd(), xattr::IMA, &mut buffer);
        let good = match labels.read(label, FileState { size: facts.size, new: false }) {
            Collect::Settled(outcome) => outcome.good(false),
            Collect::Content(stage) => stage.algorithm() == digest.algorithm() && stage.settle(digest).good(false),
        };
        self.label = buffer;
        Some(good)
    }

    /// Releases the lease and waits for the writer to be done.
    fn now_written_by(&mut self, key: Key, good: bool, file: OwnedFd, complained: bool) {
        let _ = imara_linux::lease::release(file.as_fd());
        let file = self.retries.later(key, 0).then_some(file);
        self.inodes.write(key, Written { writable: Writable { good }, file, complained });
    }

    /// A writer has closed the file; it need not have been the last one.
    pub(crate) fn closed(&mut self, file: OwnedFd) {
        let Ok(facts) = file::facts(file.as_fd()) else { return };
        let key = Key::from(&facts);
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.closed = Some(file);
            return;
        }
        let Some(written) = self.inodes.written_mut(&key) else { return };
        if facts.links == 0 {
            // Nobody will find it by a name. Who has it open, or was just about to, may still open it again: the label
            // is renewed then.
            self.inodes.orphan(key);
            return;
        }
        written.file = Some(file);
        self.try_renewal(key, 0);
    }

    /// Tries those whose time has come.
    pub(crate) fn retry(&mut self, now: Instant) {
        while let Some((attempt, key)) = self.retries.due(now) {
            if self.inodes.busy_mut(&key).is_none() && self.inodes.written(&key).is_some_and(|w| w.file.is_some()) {
                self.try_renewal(key, attempt);
            }
        }
    }

    fn try_renewal(&mut self, key: Key, attempt: u32) {
        let Some(mut written) = self.inodes.take_written(&key) else { return };
        let Some(file) = written.file.take() else {
            return self.inodes.write(key, written);
        };
        if !self.take_lease(file.as_fd()) {
            written.file = self.retries.later(key, attempt).then_some(file);
            self.inodes.write(key, written);
        } else if written.writable.good {
            self.renew(key, Renewing::For(file), written.complained);
        }
        // Else it was bad and still is: the next one to open it will be told.
    }

    /// Has the label renewed under the lease that the descriptor holds. `complained`: it failed before, and was logged.
    pub(crate) fn renew(&mut self, key: Key, whose: Renewing, complained: bool) {
        let task = Task::Renew(whose);
        let lease = task.file().as_raw_fd();
        self.hand_over(key, Some(lease), task, Work::Renew(self.settings));
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.complained = complained;
        }
    }

    /// Gives a job to the workers; `lease` is the descriptor that holds the lease meanwhile.
    pub(crate) fn hand_over(&mut self, key: Key, lease: Option<RawFd>, task: Task, work: Work) {
        let file = match task.file().try_clone_to_owned() {
            Ok(file) => file,
            Err(error) => {
                let renewal = matches!(task, Task::Renew(_));
                if renewal {
                    self.now_written(key, true);
                }
                let failure = if renewal { Failure::LabelNotWritten } else { Failure::ContentUnreadable };
                return self.give_up(task, failure, &error.to_string());
            }
        };
        self.serial += 1;
        let progress = Arc::new(AtomicU64::new(0));
        let busy = Busy {
            task: Some(task),
            serial: self.serial,
            lease,
            broken: None,
            waiting: std::collections::VecDeque::new(),
            closed: None,
            progress: Arc::clone(&progress),
            seen: (0, Instant::now()),
            stalled: None,
            complained: false,
        };
        self.inodes.occupy(key, busy);
        self.pool.submit(Job { key, serial: self.serial, file, work, progress });
    }

    /// A worker is done.
    pub(crate) fn reported(&mut self, report: Report) {
        let Report { key, serial, done } = report;
        let Some(mut busy) = self.inodes.take_busy(&key, serial) else { return };
        let leased = busy.lease.is_some();
        // A lease that was being broken for so long may have been taken from us, and the content with it.
        let trusted = busy.broken.is_none_or(|since| since.elapsed() < self.break_time);
        match (busy.task.take(), done) {
            (Some(Task::Judge(ask)), Done::Hashed(digest)) if trusted => self.hashed(*ask, leased, digest),
            (Some(Task::Judge(ask)), Done::Hashed(_)) => {
                self.fail(*ask, Failure::ContentChanging, "a writer was let in while it was read");
            }
            (Some(Task::Repair(repair)), Done::Labelled) => self.repaired(*repair, true),
            (Some(Task::Repair(repair)), Done::NotWritten(why)) => {
                self.note_failure(Failure::LabelNotWritten, repair.ask.file(), &why);
                self.repaired(*repair, false);
            }
            (Some(Task::Renew(whose)), Done::Renewed { digest, wrote }) if trusted => {
                self.renewed(key, whose, digest, wrote);
            }
            (Some(Task::Renew(whose)), Done::Renewed { .. }) => {
                // A writer was let in meanwhile: what was written may be wrong, and will be renewed after him.
                self.now_written(key, true);
                match whose {
                    Renewing::For(file) => self.closed(file),
                    Renewing::Asked(ask) => self.consider(*ask),
                }
            }
            (Some(Task::Renew(whose)), Done::NotWritten(why) | Done::Unreadable(why)) => {
                self.not_renewed(key, whose, &mut busy, &why);
            }
            (Some(task), Done::Unreadable(why)) => self.give_up(task, Failure::ContentUnreadable, &why),
            // Given up before. What was good stays good; whether the label has been written is seen at the next open.
            (None, _) if busy.stalled == Some(Failure::LabelNotWritten) => {
                self.inodes.write(key, Written { writable: Writable { good: true }, file: None, complained: true });
            }
            // Given up before, or a report of another kind of work, which cannot be.
            (Some(_), _) | (None, _) => {}
        }
        if let Some(file) = busy.closed.take() {
            self.closed(file);
        }
        for ask in busy.waiting {
            self.consider(ask);
        }
        if let (Some(_), Some(fd)) = (busy.broken, busy.lease) {
            self.lease_breaks(fd);
        }
    }

    fn repaired(&mut self, repair: Repair, wrote: bool) {
        let Repair { ask, outcome, hold } = repair;
        self.finish(ask, outcome, hold, Some(wrote));
    }

    /// The label is right again. Whoever waited for that is judged like anybody else, with the digest at hand.
    fn renewed(&mut self, key: Key, whose: Renewing, digest: Digest, wrote: bool) {
        if wrote {
            self.counters.renewed += 1;
        }
        match whose {
            Renewing::For(file) => self.know(key, digest, file),
            Renewing::Asked(ask) => self.judge(*ask, Hold::Lease, Some(digest)),
        }
    }

    /// The label could not be renewed. The file is good, we know it; whoever waits is let in, and the next one to ask
    /// tries again.
    fn not_renewed(&mut self, key: Key, whose: Renewing, busy: &mut Busy, why: &str) {
        let waiting = busy.waiting.drain(..);
        let mut first = Some(why).filter(|_| !busy.complained);
        let mut asks = Vec::new();
        match whose {
            Renewing::For(file) => {
                if let Some(why) = first.take() {
                    self.note_failure(Failure::LabelNotWritten, file.as_fd(), why);
                }
            }
            Renewing::Asked(ask) => asks.push(*ask),
        }
        asks.extend(waiting);
        for ask in asks {
            if let Some(why) = first.take() {
                self.note_failure(Failure::LabelNotWritten, ask.file(), why);
            }
            if let Some(pass) = Failure::LabelNotWritten.pass(self.settings.mode) {
                self.let_pass(ask.pending, pass);
            }
        }
        self.inodes.write(key, Written { writable: Writable { good: true }, file: None, complained: true });
    }

    /// Answers whoever a task was for by the failure table.
    fn give_up(&mut self, task: Task, failure: Failure, why: &str) {
        match task {
            Task::Judge(ask) | Task::Renew(Renewing::Asked(ask)) => self.fail(*ask, failure, why),
            Task::Repair(repair) => self.finish(repair.ask, repair.outcome, Hold::Writer, Some(false)),
            Task::Renew(Renewing::For(file)) => self.note_failure(failure, file.as_fd(), why),
        }
    }

    /// Answers those who wait for work that does not move.
    pub(crate) fn watch_progress(&mut self, now: Instant) {
        for (failure, task, waiting) in self.inodes.abandon_stuck(now, STALL) {
            let why = "no progress";
            if let Some(task) = task {
                self.give_up(task, failure, why);
            }
            waiting.into_iter().for_each(|ask| self.fail(ask, failure, why));
        }
    }
}
