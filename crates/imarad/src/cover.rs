//! Whoever may write to a good file is let in when the journal says so, so that a power cut does not leave a file that
//! nobody can tell from a tampered one.
//!
//! Only he waits, and nobody else: not the dispatcher, and no reader as far as that can be told from his system call. He
//! waits for [a few seconds](crate::scribe::PATIENCE) at most: then, or if the journal cannot be written, he goes on, and the
//! file is not covered.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use imara_integrity::check::{Outcome, Verdict};
use imara_linux::file;

use crate::ask::{Ask, Hold};
use crate::closer::LateFd;
use crate::failure::Failure;
use crate::journal::{Cover, Waiting};
use crate::key::Key;
use crate::log::Level;
use crate::look::{Label, Look};
use crate::scribe::Waits;
use crate::serve::Guard;

/// How long a stop waits for file systems to be written out, and then for the journal.
const LAST_SYNCS: Duration = Duration::from_secs(2);

/// In these pieces, between which the watchman hears that we live.
const MOMENT: Duration = Duration::from_millis(200);

impl Guard {
    /// Has it noted that somebody may write to a file with this label. Returns the number of the note if it is not on the
    /// disk yet.
    pub(crate) fn cover(&mut self, key: Key, label: &Label, file: Option<BorrowedFd<'_>>, waits: Waits) -> Option<u64> {
        let file_system = self.filesystems.number(key.device());
        let path = || file.and_then(|file| file::path_of(file).ok()).unwrap_or_default();
        match self.journal.cover((key, file_system), label, path, waits) {
            Cover::Noted | Cover::NoJournal => None,
            Cover::Soon(id) => Some(id),
            Cover::Failed(why) => {
                self.not_noted(file, why);
                None
            }
        }
    }

    /// Lets somebody who has been judged wait, if he may write and the journal does not say so yet. Else gives him back.
    pub(crate) fn cover_first(
        &mut self,
        mut ask: Ask,
        outcome: Outcome,
        look: Look,
        repaired: Option<bool>,
    ) -> Option<(Ask, Outcome, Look)> {
        let allowed = matches!(outcome.verdict, Verdict::Allow(_));
        if ask.noted || ask.hold != Hold::Writer || !allowed || !outcome.good(repaired == Some(true)) {
            return Some((ask, outcome, look));
        }
        // What he does not vouch for would be given a label after a power cut.
        if !self.vouches(&mut ask, &look) {
            return Some((ask, outcome, look));
        }
        let waits = self.journal.waits_for(&look.label);
        let soon = self.cover(ask.key(), &look.label, Some(ask.file()), waits);
        let waiting = |_: &u64| waits == Waits::Opener && !self.only_reads(&ask);
        let Some(id) = soon.filter(waiting) else { return Some((ask, outcome, look)) };
        ask.noted = true;
        // Readers need not wait with him, and are told what is true: that it was good.
        self.now_written(ask.key(), true, Some(look.clone()), None);
        let first = Waiting::First { ask: Box::new(ask), outcome: Box::new(outcome), look, repaired };
        self.journal.wait(id, first);
        None
    }

    /// The same for somebody who comes to a file that is being written to already.
    pub(crate) fn cover_another(&mut self, key: Key, mut ask: Ask) -> Option<Ask> {
        self.journal.written_again(&key);
        let Some(id) = self.journal.pending(&key).filter(|_| !ask.noted && !self.only_reads(&ask)) else {
            return Some(ask);
        };
        ask.noted = true;
        self.journal.wait(id, Waiting::Another(Box::new(ask)));
        None
    }

    /// The same for somebody who breaks the lease on a good file. Gives the file back if he may go on at once.
    pub(crate) fn cover_parting(&mut self, key: Key, look: &Look, file: LateFd) -> Option<LateFd> {
        let Some(id) = self.cover(key, &look.label, Some(file.as_fd()), Waits::Opener) else { return Some(file) };
        self.now_written(key, true, Some(look.clone()), None);
        self.journal.wait(id, Waiting::Parting { key, look: look.clone(), file });
        None
    }

    /// Whether the asker surely does not write. Of `openat2(2)` and io_uring that cannot be told.
    fn only_reads(&self, ask: &Ask) -> bool {
        self.may_write(&ask.pending) == Some(false)
    }

    /// Hears from whoever writes the journal.
    pub(crate) fn hear_of_notes(&mut self) {
        while let Some((waiting, error)) = self.journal.noted() {
            let error = error.as_deref();
            if let Some(why) = error.filter(|_| waiting.is_empty()) {
                self.not_noted(None, why);
            }
            waiting.into_iter().for_each(|who| self.go_on(who, error));
        }
        self.journal.hear_of_syncs();
    }

    /// Lets those go on who have waited for too long, and has written out what is at rest.
    pub(crate) fn watch_journal(&mut self, now: Instant) {
        for who in self.journal.overdue(now) {
            self.go_on(who, Some("its disk does not answer"));
        }
        self.sync_file_systems(now, false);
    }

    fn sync_file_systems(&mut self, now: Instant, end: bool) {
        for file_system in self.journal.to_sync(now, end) {
            let root = self.filesystems.private_by_number(file_system);
            self.journal.sync(file_system, root, now);
        }
    }

    fn go_on(&mut self, who: Waiting, failed: Option<&str>) {
        if let Some(why) = failed {
            let file = match &who {
                Waiting::First { ask, .. } | Waiting::Another(ask) => ask.file(),
                Waiting::Parting { file, .. } => file.as_fd(),
            };
            if let Ok(copy) = file.try_clone_to_owned() {
                let copy = self.closer.late(copy, false);
                self.not_noted(Some(copy.as_fd()), why);
            }
        }
        match who {
            Waiting::First { ask, outcome, look, repaired } => {
                let key = ask.key();
                // He may have been killed meanwhile, and others have come, for whom perhaps nobody vouches.
                let vouched = self.inodes.written(&key).is_some_and(|written| written.writable.good);
                if !vouched || self.inodes.is_known(&key) || self.inodes.busy_mut(&key).is_some() {
                    return self.reconsider(*ask);
                }
                self.finish(*ask, *outcome, look, repaired);
            }
            Waiting::Another(ask) => self.reconsider(*ask),
            Waiting::Parting { key, look, mut file } => {
                file.release();
                // Unless that has been forgotten meanwhile, or nobody vouches for it any more.
                if self.inodes.written(&key).is_some_and(|written| written.writable.good) {
                    self.now_written(key, true, Some(look), Some(file));
                }
            }
        }
    }

    /// A file that is being written to is not in the journal. Each is counted, the first one logged.
    pub(crate) fn not_noted(&mut self, file: Option<BorrowedFd<'_>>, why: &str) {
        self.counters.count(Failure::JournalNotWritten);
        if std::mem::replace(&mut self.journal.complained, true) {
            return;
        }
        match file {
            Some(file) => self.say_failure(Failure::JournalNotWritten, file, why),
            None => self.say(Failure::JournalNotWritten, why),
        }
    }

    /// At the end, when everybody has been let go: has what is at rest written out, and the journal a last time.
    pub(crate) fn end_journal(&mut self) {
        self.hear_of_notes();
        let end = Instant::now() + LAST_SYNCS;
        self.sync_file_systems(Instant::now(), true);
        while !self.journal.await_syncs(MOMENT) && Instant::now() < end {
            self.life.beat();
        }
        let Some(ended) = self.journal.end() else { return };
        let end = Instant::now() + LAST_SYNCS;
        let result = loop {
            self.life.beat();
            match ended.recv_timeout(MOMENT) {
                Ok(result) => break result,
                Err(_) if Instant::now() < end => {}
                Err(error) => break Err(error.to_string()),
            }
        };
        if let Err(why) = result {
            self.log.say(Level::Warning, format!("imarad: the journal could not be ended: {why}"));
        }
    }
}
