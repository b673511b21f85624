//! Work that is handed to the workers, and what follows from their reports.

use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use imara_integrity::event::{Hook, Mask, Uid};
use imara_linux::file;

use crate::ask::{Hold, Repair};
use crate::failure::Failure;
use crate::inodes::{Busy, Renewing, Task};
use crate::key::Key;
use crate::pool::{Job, Report};
use crate::serve::Guard;
use crate::worker::{Covered, Done, Order, Work};

/// A worker that makes no progress for this long is given up.
const STALL: Duration = Duration::from_secs(30);

/// If one makes none for this long, its file system is left to workers altogether.
const SLOW: Duration = Duration::from_secs(1);

impl Guard {
    /// Gives a job to the workers; `lease` is the descriptor that holds the lease meanwhile.
    pub(crate) fn hand_over(&mut self, key: Key, lease: Option<RawFd>, task: Task, work: Work) {
        let file = match task.file().try_clone_to_owned() {
            Ok(file) => file,
            Err(error) => {
                let renewal = matches!(task, Task::Renew(_));
                if renewal {
                    self.still_to_renew(key);
                }
                let failure = if renewal { Failure::LabelNotWritten } else { Failure::ContentUnreadable };
                return self.give_up(task, failure, &error.to_string());
            }
        };
        self.serial += 1;
        self.counters.handed_over += 1;
        let (owner, size) = file::facts(file.as_fd()).map_or((Uid(0), 0), |facts| (facts.owner, facts.size));
        let file_system = self.filesystems.number(key.device());
        let progress = Arc::new(AtomicU64::new(0));
        let awaited = !matches!(task, Task::Renew(Renewing::For(_)));
        let mount = self.filesystems.private(key.device());
        let busy = Busy {
            task: Some(task),
            serial: self.serial,
            job: self.closer.late(file, false),
            mount,
            lease,
            broken: None,
            waiting: std::collections::VecDeque::new(),
            closed: None,
            progress: Arc::clone(&progress),
            seen: (0, Instant::now()),
            stalled: None,
            complained: false,
            disowned: false,
        };
        let (file, own) = (busy.job.as_raw_fd(), busy.mount.as_ref().map(|mount| mount.as_raw_fd()));
        let (serial, times) = (self.serial, self.filesystems.times(key.device()));
        self.inodes.occupy(key, busy);
        let cover = if matches!(work, Work::Renew(_)) { self.covered(key, file_system) } else { None };
        let order = Order { work, times, cover };
        let mount = own;
        self.pool.submit(Job { key, serial, owner, file_system, size, file, mount, order, progress, awaited });
    }

    fn covered(&self, key: Key, file_system: usize) -> Option<Covered> {
        let (scribe, handle) = (self.journal.scribe(file_system)?, key.handle()?);
        Some(Covered { scribe, file_system, handle, inode: key.inode() })
    }

    /// A worker is done.
    pub(crate) fn reported(&mut self, report: Report) {
        let Report { key, serial, file_system, done, noted } = report;
        match noted {
            Some((Ok(id), label)) => self.journal.adopt(id, (key, file_system), Some(&label)),
            Some((Err(why), _)) => self.not_noted(None, &why),
            None => {}
        }
        let Some(mut busy) = self.inodes.take_busy(&key, serial) else { return };
        self.inodes.note_move(&key);
        // A lease that was being broken for so long may have been taken from us, and the content with it.
        let trusted = busy.broken.is_none_or(|since| since.elapsed() < self.break_time);
        self.done(key, &mut busy, done, trusted);
        if busy.disowned {
            self.inodes.disown(&key);
            self.journal.disown(&key);
            self.recall.forget(&key);
        }
        if let Some(file) = busy.closed.take() {
            self.closed(file);
        }
        for ask in busy.waiting {
            self.reconsider(ask);
        }
        if let (Some(since), Some(fd)) = (busy.broken, busy.lease) {
            self.lease_breaks_since(fd, since);
        }
    }

    /// What follows for the one whom the work was for. `trusted`: nobody can have written meanwhile.
    fn done(&mut self, key: Key, busy: &mut Busy, done: Done, trusted: bool) {
        match (busy.task.take(), done) {
            (Some(Task::Judge(ask)), Done::Looked(look)) if trusted => self.looked(*ask, look),
            (Some(Task::Judge(ask)), Done::Looked(_)) => {
                self.fail(*ask, Failure::ContentChanging, "a writer was let in while it was read");
            }
            (Some(Task::Part(known)), Done::Looked(look)) if trusted => {
                if let Ok(facts) = file::facts(known.file.as_fd()) {
                    let decision = self.filesystems.decide(&self.policy, Hook::FileCheck, &[Mask::WRITE], None, &facts);
                    self.part(key, *known, look, decision);
                }
            }
            (Some(Task::Repair(repair)), Done::Labelled) => self.repaired(*repair, true),
            (Some(Task::Repair(repair)), Done::NotWritten(why)) => {
                self.not_repaired(*repair, Failure::LabelNotWritten, &why);
            }
            (Some(Task::Renew(whose)), Done::Renewed { look, digest, wrote }) if trusted => {
                self.renewed(key, whose, look, digest, wrote);
            }
            (Some(Task::Renew(whose)), Done::Renewed { .. }) => self.renewed_in_vain(key, whose),
            (Some(Task::Renew(whose)), Done::NotWritten(why) | Done::Unreadable(why)) => {
                self.not_renewed(key, whose, busy, &why);
            }
            (Some(task), Done::Unreadable(why)) => self.give_up(task, Failure::ContentUnreadable, &why),
            (Some(Task::Part(known)), Done::Looked(_)) => {
                self.note_failure(
                    Failure::ContentChanging,
                    known.file.as_fd(),
                    "a writer was let in while its label was read",
                );
            }
            // Given up before. What was good stays good; whether the label has been written is seen at the next open.
            (None, _) if busy.stalled == Some(Failure::LabelNotWritten) => self.still_to_renew(key),
            // Given up before, or a report of another kind of work, which cannot be.
            (Some(_), _) | (None, _) => {}
        }
    }

    /// A writer was let in meanwhile: what was written may be wrong, and will be renewed after him.
    fn renewed_in_vain(&mut self, key: Key, whose: Renewing) {
        self.now_written(key, true, None, None);
        if let Some(written) = self.inodes.written_mut(&key) {
            // Whoever changed it before has closed it.
            written.closed = true;
        }
        match whose {
            Renewing::For(mut file) => {
                file.release();
                self.closed(file);
            }
            Renewing::Asked(ask) => self.reconsider(*ask),
        }
    }

    fn repaired(&mut self, repair: Repair, wrote: bool) {
        let Repair { ask, outcome, mut look } = repair;
        if let Some(digest) = outcome.repair.filter(|_| wrote) {
            look = look.rewritten(&digest);
        }
        self.finish(ask, outcome, look, Some(wrote));
    }

    /// Answers first, and says then why the label was not written.
    fn not_repaired(&mut self, repair: Repair, failure: Failure, why: &str) {
        let copy = repair.ask.file().try_clone_to_owned().map(|copy| self.closer.late(copy, false));
        self.repaired(repair, false);
        match copy {
            Ok(file) => self.note_failure(failure, file.as_fd(), why),
            Err(error) => self.note(failure, &format!("{why} ({error})")),
        }
    }

    /// Answers whoever a task was for by the failure table.
    fn give_up(&mut self, task: Task, failure: Failure, why: &str) {
        match task {
            Task::Judge(ask) | Task::Renew(Renewing::Asked(ask)) => self.fail(*ask, failure, why),
            Task::Repair(mut repair) => {
                // Its lease has been given back.
                repair.ask.hold = Hold::Unleased;
                self.not_repaired(*repair, failure, why);
            }
            // The writer goes on; his changes are not vouched for.
            Task::Part(known) => self.note_failure(failure, known.file.as_fd(), why),
            Task::Renew(Renewing::For(file)) => self.note_failure(failure, file.as_fd(), why),
        }
    }

    /// Answers those who wait for work that does not move.
    pub(crate) fn watch_progress(&mut self, now: Instant) {
        for (failure, task, waiting) in self.inodes.abandon_stuck(now, STALL) {
            let why = "no progress";
            self.counters.stalls += 1;
            if let Some(task) = task {
                self.give_up(task, failure, why);
            }
            waiting.into_iter().for_each(|ask| self.fail(ask, failure, why));
        }
        for device in self.inodes.stalled_for(now, SLOW) {
            self.filesystems.was_slow(device, now);
        }
    }
}
