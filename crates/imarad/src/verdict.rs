//! Looking at a file of which nothing useful is remembered, judging it, and what follows.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use imara_integrity::appraise::{FileState, Status};
use imara_integrity::audit::Action;
use imara_integrity::check::{self, Outcome, Pass, Plan, Verdict};
use imara_integrity::collect::Collect;
use imara_integrity::digest::Digest;
use imara_integrity::iint::Writable;
use imara_integrity::label::ImaLabel;
use imara_integrity::policy::Writers;
use imara_linux::file;
use imara_linux::lease::{self, Taken};

use crate::ask::{Ask, Hold, Repair};
use crate::closer::LateFd;
use crate::created::Newness;
use crate::failure::Failure;
use crate::inodes::{Known, Renewing, Task};
use crate::key::Key;
use crate::look::{Look, Wanted};
use crate::recall::{Recall, Recalled};
use crate::serve::Guard;
use crate::worker::Work;

/// How often a file is hashed again that changes while it is read without a lease.
const TRIES: u8 = 3;

impl Guard {
    /// Looks at label and content.
    pub(crate) fn look(&mut self, mut ask: Ask) {
        match self.refresh(&mut ask) {
            Ok(()) => self.look_now(ask),
            Err(why) => self.fail(ask, Failure::FactsUnreadable, &why),
        }
    }

    /// The same for somebody whose facts have been read just now, after the lease was taken.
    pub(crate) fn look_now(&mut self, mut ask: Ask) {
        match self.recall.compare(&ask.key(), &ask.facts) {
            Recalled::Nothing => {}
            // Without its mark, the inode has not been in memory all the time.
            Recalled::Same if ask.hold == Hold::Lease => {
                let look = self.recall.take(&ask.key());
                if self.ignoring.notices().unwatch_inode(ask.file()).unwrap_or(false)
                    && let Some(look) = look
                {
                    ask.recalled = true;
                    self.counters.recalled += 1;
                    return self.judge(ask, look);
                }
            }
            // He may be about to cut it by name, and does not ask: what was found before him is what counts.
            Recalled::Same if ask.hold == Hold::Writer && self.follows_all_writers(&ask.facts) => {
                if let Some(look) = self.recall.take(&ask.key()) {
                    (ask.recalled, ask.before_writers) = (true, true);
                    self.counters.recalled += 1;
                    return self.judge(ask, look);
                }
            }
            Recalled::Same => {}
            Recalled::Followed => return self.look_changed(ask),
            Recalled::Changed => self.recall.forget(&ask.key()),
        }
        self.look_anew(ask);
    }

    fn look_anew(&mut self, mut ask: Ask) {
        match self.look_at_once(&ask, None) {
            Some(look) => {
                ask.at_once = true;
                self.looked(ask, look);
            }
            None => self.look_elsewhere(ask, None),
        }
    }

    /// Looks at a file that was good, and has changed since in a way that may have to be followed: `truncate(2)` opens
    /// nothing. Its notice comes when it is done, and until then the file has a writer.
    fn look_changed(&mut self, mut ask: Ask) {
        let key = ask.key();
        self.hear_all_changes();
        if self.inodes.is_written_or_busy(&key) || self.inodes.is_known(&key) {
            return self.consider(ask);
        }
        if self.recall.compare(&key, &ask.facts) != Recalled::Followed {
            return self.look_anew(ask);
        }
        if ask.hold == Hold::Writer && self.follows_all_writers(&ask.facts) {
            // Whoever opens the file for writing asks, and would have had it forgotten.
            if let Some(pass) = check::while_written(Writable { good: true }) {
                self.counters.while_written += 1;
                let file = self.passed(ask.pending, pass, ask.opener);
                self.now_written(key, true, None, Some(file));
            }
            return;
        }
        // Attributes have changed, and the notice of that is not there yet.
        if ask.patience > 0 {
            ask.patience -= 1;
            return self.park(ask);
        }
        self.recall.forget(&key);
        self.look_anew(ask);
    }

    pub(crate) fn look_elsewhere(&mut self, ask: Ask, known: Option<Digest>) {
        let wanted = Wanted { decision: ask.decision, settings: self.settings, known, anyway: None };
        self.hand_over_ask(ask, wanted);
    }

    fn hand_over_ask(&mut self, mut ask: Ask, wanted: Wanted) {
        ask.at_once = false;
        let lease = ask.hold.is_lease().then(|| ask.file().as_raw_fd());
        self.hand_over(ask.key(), lease, Task::Judge(Box::new(ask)), Work::Look(wanted));
    }

    /// Somebody has looked.
    pub(crate) fn looked(&mut self, mut ask: Ask, look: Look) {
        if !ask.hold.is_lease() && look.digest.is_some() {
            // Nobody kept writers out. If the file moved meanwhile, the digest may be that of a content it never had.
            if let Err(why) = self.refresh(&mut ask) {
                return self.fail(ask, Failure::FactsUnreadable, &why);
            }
            if !look.sighting.looks_like(&ask.facts) {
                ask.tries += 1;
                if ask.tries >= TRIES {
                    return self.fail(ask, Failure::ContentChanging, "it changed while it was read");
                }
                // Whoever changes it may have been heard of since.
                return self.consider(ask);
            }
        }
        self.judge(ask, look);
    }

    /// Judges what was found.
    pub(crate) fn judge(&mut self, mut ask: Ask, look: Look) {
        let labels = match check::plan(&ask.decision, self.settings) {
            Plan::Allow(pass) => return self.let_ask_pass(ask, pass),
            Plan::Judge(labels) => labels,
        };
        let label = look.label.as_read();
        // A digest says what the file should be; without one, or before its data came, it counts whether it is new.
        let has_digest = matches!(label.bytes().map(ImaLabel::parse), Some(Ok(ImaLabel::Digest(_))));
        let new = if has_digest { Newness::Old } else { self.newness(&ask) };
        if new == Newness::NotKnownYet && ask.patience > 0 {
            ask.patience -= 1;
            return self.park(ask);
        }
        let new = new == Newness::New;
        let outcome = match labels.read(label, FileState { size: ask.facts.size, new }) {
            Collect::Settled(outcome) => {
                // Somebody other than its creator may ask before the kernel has told us that the file is new.
                if ask.patience > 0 && !new && self.looks_new(&ask, &outcome) {
                    ask.patience -= 1;
                    return self.park(ask);
                }
                outcome
            }
            Collect::Content(stage) => {
                let algorithm = stage.algorithm();
                match look.digest.filter(|digest| digest.algorithm() == algorithm) {
                    Some(digest) => stage.settle(digest),
                    None => {
                        // Whoever looked did not know all that we know: that the file is new, or another mode.
                        let (decision, settings) = (ask.decision, self.settings);
                        let wanted = Wanted { decision, settings, known: None, anyway: Some(algorithm) };
                        return self.hand_over_ask(ask, wanted);
                    }
                }
            }
        };
        self.settled(ask, outcome, look);
    }

    fn settled(&mut self, mut ask: Ask, outcome: Outcome, look: Look) {
        if matches!(outcome.verdict, Verdict::Deny(_)) && ask.patience > 0 && self.has_been_followed(&mut ask) {
            ask.patience -= 1;
            return self.consider(ask);
        }
        let Some(digest) = outcome.repair else { return self.finish(ask, outcome, look, None) };
        let key = ask.key();
        ask.at_once = false;
        if ask.hold == Hold::Remembered {
            // Of what is remembered the asker's own descriptor holds a lease too.
            ask.hold = Hold::Lease;
            self.inodes.forget_known(&key);
        }
        let lease = ask.hold.is_lease().then(|| ask.file().as_raw_fd());
        let task = Task::Repair(Box::new(Repair { ask, outcome, look }));
        self.hand_over(key, lease, task, Work::Label(digest));
    }

    /// Whether something has been heard of, since this file was looked at, that it may have to be judged otherwise for: it was
    /// good until somebody began to cut it.
    fn has_been_followed(&mut self, ask: &mut Ask) -> bool {
        let key = ask.key();
        self.hear_all_changes();
        let good = self.inodes.written(&key).is_some_and(|written| written.writable.good);
        good || self.inodes.busy_mut(&key).is_some()
            || self.refresh(ask).is_ok() && self.recall.compare(&key, &ask.facts) == Recalled::Followed
    }

    /// Answers, then logs, then remembers. `repaired`: whether a repair that was due could be made.
    pub(crate) fn finish(&mut self, ask: Ask, outcome: Outcome, look: Look, repaired: Option<bool>) {
        let Some((mut ask, outcome, look)) = self.cover_first(ask, outcome, look, repaired) else { return };
        let good = outcome.good(repaired == Some(true));
        if good
            && self.may_let_go(&ask, &outcome, &look)
            && let Verdict::Allow(pass) = outcome.verdict
        {
            return self.let_go(ask, look, pass);
        }
        let asker = outcome.complaint.map(|_| ask.asker());
        let vouches = ask.hold == Hold::Writer && self.vouches(&mut ask, &look);
        let (key, hold, facts, recalled, opener) = (ask.key(), ask.hold, ask.facts, ask.recalled, ask.opener);
        let (allowed, answered) = match outcome.verdict {
            Verdict::Allow(pass) => (true, ask.pending.allow(pass)),
            Verdict::Deny(_) => (false, ask.pending.deny()),
        };
        self.note_answer(&answered);
        self.note_answered(opener, allowed, &answered);
        let file = self.closer.late(answered.file, hold.is_lease());
        if let (Some(complaint), Some(asker)) = (outcome.complaint, asker) {
            let action = match (allowed, repaired) {
                (false, _) => Action::Denied,
                (true, Some(true)) => Action::Repaired,
                (true, _) => Action::Allowed,
            };
            self.complain(complaint, asker, file.as_fd(), &facts, action);
        } else {
            self.counters.allowed += 1;
        }
        match (hold, outcome.evidence) {
            // Seen for the first time: that it was good is remembered, without holding it.
            (Hold::Lease, Some(_)) if good && !recalled && self.can_recall(&key, &look) => {
                self.remember(key, look, file.as_fd());
            }
            (Hold::Lease, Some(digest)) => {
                self.know(key, Known::new(digest, look, file));
                if good && recalled {
                    self.ignore_known(key, &facts);
                }
            }
            (Hold::Remembered, _) if good => self.ignore_known(key, &facts),
            // Without evidence: a new file that has no label yet.
            (Hold::Lease, None) if allowed && good => self.renew(key, Renewing::For(file), false),
            (Hold::Writer, _) if allowed => self.now_written(key, good && vouches, Some(look), Some(file)),
            _ => {}
        }
    }

    /// Whether a good file that is small was seen for the first time, will do for the second memory, and is closed in no
    /// time, because its asker has it open too, or at least because it has a name.
    fn may_let_go(&self, ask: &Ask, outcome: &Outcome, look: &Look) -> bool {
        let first = ask.hold == Hold::Lease && ask.at_once && outcome.evidence.is_some();
        first
            && outcome.complaint.is_none()
            && ask.facts.links > 0
            && self.filesystems.closes_at_once(ask.facts.device)
            && self.can_recall(&ask.key(), look)
    }

    /// Remembers what was found, without holding it, and then answers.
    fn let_go(&mut self, ask: Ask, look: Look, pass: Pass) {
        self.remember_asked(&ask, look);
        self.counters.allowed += 1;
        let answered = ask.pending.close_and_allow(pass);
        self.note_answer(&answered);
        self.note_answered(ask.opener, true, &answered);
    }

    /// Whether a file that this one finds good while somebody has it open for writing was good before that. It was where all
    /// writers are judged, if it is still what was looked at or was good before it had a writer; else this one has to be the
    /// writer. (It may have been given away since he came.) A writer whom nobody knows came before the guard, or while it was
    /// not to judge anybody; of those who came while the file was somebody else's it is known that they are there, or that
    /// they may be.
    ///
    /// While he waits for the journal, the file may be changed: whoever vouched before that still does.
    pub(crate) fn vouches(&mut self, ask: &mut Ask, look: &Look) -> bool {
        let Ok(now) = file::facts(ask.file()) else { return false };
        let stranger = self.inodes.written(&ask.key()).is_some_and(|written| written.stranger);
        if stranger || self.ignoring.is_unsure(ask.file()) {
            return false;
        }
        let writers = self.filesystems.foresee(&self.policy, &now).writers;
        let vouched = || ask.vouched || self.may_write(&ask.pending) != Some(false);
        ask.vouched = match writers {
            Writers::All => ask.before_writers || look.sighting.looks_like(&now) || vouched(),
            Writers::Some => vouched(),
            Writers::None => false,
        };
        ask.vouched
    }

    /// Whether the second memory will do for a file that was found so.
    fn can_recall(&self, key: &Key, look: &Look) -> bool {
        self.ignoring.is_possible() && Recall::takes(key, look) && self.filesystems.shows_changes(key.device())
    }

    /// Puts what was found into the second memory. `file` still holds the lease.
    pub(crate) fn remember(&mut self, key: Key, look: Look, file: BorrowedFd<'_>) {
        match self.ignoring.notices().watch_inode(file) {
            // It may have been given away before there was a mark to tell of it, or before it was looked at.
            Ok(()) => match file::facts(file) {
                Ok(now) if look.sighting.holds(&now) => {
                    let followed = self.follows_all_writers(&now);
                    self.recall.remember(key, look, followed);
                }
                Ok(_) | Err(_) => drop(self.ignoring.notices().unwatch_inode(file)),
            },
            Err(error) => self.cannot_ignore(&error),
        }
    }

    /// The same for what an asker, who holds the lease, has found.
    fn remember_asked(&mut self, ask: &Ask, look: Look) {
        if ask.heard != self.ignoring.heard {
            return self.remember(ask.key(), look, ask.file());
        }
        // Whatever happens to owner, mode or label after they were looked at will be heard of when this is remembered. So
        // would be that it is cut, but not before there is a mark.
        match self.ignoring.notices().watch_inode(ask.file()) {
            Ok(()) if file::size(ask.file()).is_ok_and(|size| size == look.sighting.size()) => {
                let followed = self.follows_all_writers(&ask.facts);
                self.recall.remember(ask.key(), look, followed);
            }
            Ok(()) => drop(self.ignoring.notices().unwatch_inode(ask.file())),
            Err(error) => self.cannot_ignore(&error),
        }
    }

    /// Remembers a digest, as long as its lease is held.
    pub(crate) fn know(&mut self, key: Key, known: Known) {
        self.keep(key, known.file.as_fd());
        while let Some((oldest, surplus)) = self.inodes.take_surplus() {
            self.retire(oldest, surplus);
        }
        self.inodes.know(key, known);
    }

    /// Has a remembered file opened through our own mount, now or when there is room for that.
    fn keep(&mut self, key: Key, file: BorrowedFd<'_>) {
        let Some(mount) = self.filesystems.private(key.device()) else { return };
        if !self.keeper.has_room() {
            self.keeper.postpone(key);
        } else if let Ok(copy) = file.try_clone_to_owned() {
            self.keeper.ask(key, self.closer.late(copy, false), mount);
        }
    }

    /// There may be room again for files that had to wait.
    pub(crate) fn keep_more(&mut self) {
        while let Some(key) = self.keeper.next() {
            let copy = self.inodes.known_mut(&key).and_then(|known| known.file.as_fd().try_clone_to_owned().ok());
            if let Some(copy) = copy {
                self.keep(key, copy.as_fd());
                drop(self.closer.late(copy, false));
            }
        }
    }

    /// A remembered file is open through our own mount as well: the lease moves there.
    pub(crate) fn kept(&mut self, key: Key, mut own: LateFd) {
        if self.inodes.is_known(&key) && matches!(lease::take(own.as_fd(), self.leases.signal()), Ok(Taken::Held)) {
            own.now_leased();
            self.inodes.hold_by(&key, own);
        }
    }

    /// Whether the file was created since the guard began and has neither label nor content: the kernel's
    /// `IMA_NEW_FILE`. A file without a name (`O_TMPFILE`) cannot have come from elsewhere.
    pub(crate) fn newness(&mut self, ask: &Ask) -> Newness {
        if ask.facts.size != 0 {
            return Newness::Old;
        }
        if ask.facts.links == 0 { Newness::New } else { self.created.take(ask.file(), &ask.facts) }
    }

    /// Whether an empty file without a label may turn out to be new.
    fn looks_new(&self, ask: &Ask, outcome: &Outcome) -> bool {
        ask.facts.size == 0 && outcome.judgement.status == Status::NoLabel && self.created.may_come(&ask.facts)
    }
}
