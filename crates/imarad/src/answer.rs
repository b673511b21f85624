//! One question of the kernel, from its arrival to its answer.
//!
//! The order of things here is what keeps hosts alive:
//!
//! 1. nothing on the way to an answer may wait for the guarded file system: what is not in memory goes to a worker;
//! 2. the answer is given before anything is logged;
//! 3. a question that gets lost denies by itself.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use imara_integrity::appraise::{Cause, FileState, Status};
use imara_integrity::audit::{Action, Asker, Operation};
use imara_integrity::check::{self, Complaint, Outcome, Pass, Plan, Verdict};
use imara_integrity::collect::Collect;
use imara_integrity::digest::Digest;
use imara_integrity::event::{Hook, Mask};
use imara_integrity::iint::Writable;
use imara_integrity::label::ImaLabel;
use imara_integrity::policy::Decision;
use imara_linux::fanotify::{Answered, Pending};
use imara_linux::file::{self, FileFacts};
use imara_linux::handle::short_handle;
use imara_linux::lease::{self, Taken};
use imara_linux::{open_call, task};

use crate::ask::{Ask, Hold, Repair};
use crate::closer::LateFd;
use crate::created::Newness;
use crate::failure::{Answer, Failure};
use crate::inodes::{Known, Renewing, Task};
use crate::key::Key;
use crate::look::{Look, Wanted};
use crate::pool::Work;
use crate::recall::Recall;
use crate::serve::Guard;

/// How long a question waits for the notice that its file is new, each time.
const PARKED: Duration = Duration::from_millis(2);

/// How often a file is hashed again that changes while it is read without a lease.
const TRIES: u8 = 3;

impl Guard {
    /// Takes a question in.
    pub(crate) fn asked(&mut self, pending: Pending) {
        self.counters.asked += 1;
        if self.own_threads.contains(&pending.tid()) {
            return self.let_pass(pending, Pass::ourselves());
        }
        if let Some(pass) = Pass::mode_off(self.settings.mode) {
            return self.let_pass(pending, pass);
        }
        let facts = match file::facts(pending.file()) {
            Ok(facts) => facts,
            Err(error) => return self.fail_pending(pending, Failure::FactsUnreadable, &error.to_string()),
        };
        if !facts.is_regular() {
            return self.let_pass(pending, Pass::not_a_regular_file());
        }
        let decision = match self.decide(&pending, &facts) {
            Ok(decision) => decision,
            Err(why) => {
                let ask = Ask::new(pending, facts, Decision::default());
                return self.fail(ask, Failure::AskerUnreadable, &why);
            }
        };
        match check::plan(&decision, self.settings) {
            Plan::Allow(pass) => {
                if let Some(handle) = short_handle(pending.file()) {
                    // If he writes, nobody vouches for that.
                    self.recall.forget_handle(handle);
                }
                let file = self.passed(pending, pass);
                self.ignore_unasked(file.as_fd(), &facts);
            }
            Plan::Judge(_) => self.consider(Ask::new(pending, facts, decision)),
        }
    }

    /// What the policy asks of this access.
    ///
    /// Who asks is read only if a rule wants to know. How the file is opened is known to fanotify only as far as
    /// 'executed or not'; if a rule wants to know more, the system call itself is looked at, and if that does not tell,
    /// the strictest answer over all ways of opening is taken.
    fn decide(&mut self, pending: &Pending, facts: &FileFacts) -> Result<Decision, String> {
        let subject = if self.policy.depends_on_subject() {
            Some(task::credentials(pending.tid()).map_err(|error| error.to_string())?)
        } else {
            None
        };
        let hook = if pending.exec() { Hook::BprmCheck } else { Hook::FileCheck };
        let masks: &[Mask] = if pending.exec() {
            &[Mask::EXEC]
        } else if self.policy.depends_on_mask() {
            self.masks_of(pending.tid())
        } else {
            &[Mask::READ]
        };
        Ok(self.filesystems.decide(&self.policy, hook, masks, subject, facts))
    }

    fn masks_of(&self, tid: i32) -> &'static [Mask] {
        const READ_WRITE: Mask = Mask::READ.union(Mask::WRITE);
        const ANY: &[Mask] =
            &[Mask::READ, Mask::WRITE, READ_WRITE, Mask::WRITE.union(Mask::APPEND), READ_WRITE.union(Mask::APPEND)];
        // Not to execute it: the system calls for that are known.
        let Ok(Some(call)) = open_call::open_call(tid) else { return ANY };
        crate::filesystems::masks(call).unwrap_or(ANY)
    }

    /// Considers somebody who has waited: his file may have changed since he came.
    pub(crate) fn reconsider(&mut self, mut ask: Ask) {
        match self.refresh(&mut ask) {
            Ok(()) => self.consider(ask),
            Err(why) => self.fail(ask, Failure::FactsUnreadable, &why),
        }
    }

    fn refresh(&self, ask: &mut Ask) -> Result<(), String> {
        ask.facts = file::facts(ask.file()).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Looks at what is remembered of the inode, then judges.
    pub(crate) fn consider(&mut self, mut ask: Ask) {
        let key = ask.key();
        if let Some(busy) = self.inodes.busy_mut(&key) {
            if let Some(failure) = busy.stalled {
                return self.fail(ask, failure, "an earlier attempt still hangs");
            }
            busy.waiting.push_back(ask);
            return;
        }
        self.take_lease(&mut ask);
        if self.inodes.written(&key).is_some() {
            return self.consider_written(ask, key);
        }
        match self.inodes.known(&key) {
            None => self.look(ask),
            Some(known) if known.sighting.size() != ask.facts.size => self.consider_cut(ask, key),
            Some(known) => {
                let digest = known.digest;
                let seen = known.sighting.holds(&ask.facts).then(|| known.look());
                self.consider_known(ask, key, digest, seen);
            }
        }
    }

    /// The file was cut under our lease: `open(O_RDONLY|O_TRUNC)` is a reader to the kernel, which breaks no read lease
    /// for it and tells nobody of its close.
    fn consider_cut(&mut self, ask: Ask, key: Key) {
        let good = self.inodes.take_known(&key).is_some_and(|known| self.was_good(&known));
        if !good {
            return self.look(ask);
        }
        self.now_written(key, true, None, None);
        self.consider_written(ask, key);
    }

    /// The content's digest is known, and its label too unless it may have been changed.
    fn consider_known(&mut self, mut ask: Ask, key: Key, digest: Digest, seen: Option<Look>) {
        let fresh = seen.is_none();
        let seen = seen.or_else(|| self.look_at_once(&ask, Some(digest)));
        if ask.hold == Hold::Lease {
            let Some(look) = seen else {
                // From here on his lease guards the digest, for whoever else would be told that it breaks.
                self.inodes.forget_known(&key);
                return self.look_elsewhere(ask, Some(digest));
            };
            if fresh {
                self.inodes.relabelled(&key, look.label.clone(), look.sighting);
            }
            ask.hold = Hold::Remembered;
            return self.judge(ask, look);
        }
        // A writer is let in at once, without having to break the lease (which would fail with O_NONBLOCK). The digest is
        // still true: he has not written yet.
        self.inodes.forget_known(&key);
        match seen {
            Some(look) => self.judge(ask, look),
            None => self.look(ask),
        }
    }

    /// Somebody has, or had a moment ago, the file open for writing.
    fn consider_written(&mut self, mut ask: Ask, key: Key) {
        let Some(Writable { good }) = self.inodes.written(&key).map(|written| written.writable) else {
            return self.look(ask);
        };
        if ask.hold != Hold::Lease {
            if let Some(written) = self.inodes.written_mut(&key) {
                written.quiet = None;
            }
            return match check::while_written(Writable { good }) {
                Some(pass) => self.let_pass(ask.pending, pass),
                None => self.look(ask),
            };
        }
        // There is no writer any more. He need not have changed anything: his open may have failed after all.
        if let Err(why) = self.refresh(&mut ask) {
            return self.fail(ask, Failure::FactsUnreadable, &why);
        }
        let Some(mut written) = self.inodes.take_written(&key) else { return self.look(ask) };
        let untouched = written.is_untouched(&ask.facts);
        let heard = !untouched || self.all_is_heard(&mut written);
        match written.before {
            // The notice of his close may be in the queue behind this question.
            Some(_) if untouched && !heard => {
                self.inodes.write(key, written);
                self.park(ask);
            }
            Some(look) if untouched => self.judge(ask, look),
            // The label may lag behind, so it is renewed before anybody reads.
            _ if good => self.renew(key, Renewing::Asked(Box::new(ask)), written.complained),
            _ => self.look(ask),
        }
    }

    /// Tries for a read lease on the asker's descriptor.
    fn take_lease(&mut self, ask: &mut Ask) {
        ask.hold = match lease::take(ask.file(), self.leases.signal()) {
            Ok(Taken::Held) => Hold::Lease,
            Ok(Taken::Writer) => Hold::Writer,
            Err(error) => {
                self.no_lease(ask.file(), &error.to_string());
                Hold::Unleased
            }
        };
    }

    /// A file that gives no lease, though nobody is writing to it: judged, never remembered.
    pub(crate) fn no_lease(&mut self, file: BorrowedFd<'_>, why: &str) {
        // Such a file is asked about again and again: the counter tells how often, the log only that it happens.
        let word = Failure::LeaseRefused;
        if self.counters.count(word) == 1 {
            self.say_failure(word, file, why);
        }
    }

    /// Looks at label and content.
    fn look(&mut self, mut ask: Ask) {
        // They must be from after the lease was taken.
        if let Err(why) = self.refresh(&mut ask) {
            return self.fail(ask, Failure::FactsUnreadable, &why);
        }
        if ask.hold == Hold::Lease
            && let Some(look) = self.recall.take(&ask.key(), &ask.facts)
            // Without its mark, the inode has not been in memory all the time.
            && self.ignoring.notices().unwatch_inode(ask.file()).unwrap_or(false)
        {
            ask.recalled = true;
            self.counters.recalled += 1;
            return self.judge(ask, look);
        }
        match self.look_at_once(&ask, None) {
            Some(look) => self.looked(ask, look),
            None => self.look_elsewhere(ask, None),
        }
    }

    fn look_elsewhere(&mut self, ask: Ask, known: Option<Digest>) {
        let wanted = Wanted { decision: ask.decision, settings: self.settings, known, anyway: None };
        self.hand_over_ask(ask, wanted);
    }

    fn hand_over_ask(&mut self, ask: Ask, wanted: Wanted) {
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
                return self.look_elsewhere(ask, None);
            }
        }
        self.judge(ask, look);
    }

    /// Judges what was found.
    fn judge(&mut self, mut ask: Ask, look: Look) {
        let labels = match check::plan(&ask.decision, self.settings) {
            Plan::Allow(pass) => return self.let_pass(ask.pending, pass),
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
        let Some(digest) = outcome.repair else { return self.finish(ask, outcome, look, None) };
        let key = ask.key();
        if ask.hold == Hold::Remembered {
            // Of what is remembered the asker's own descriptor holds a lease too.
            ask.hold = Hold::Lease;
            self.inodes.forget_known(&key);
        }
        let lease = ask.hold.is_lease().then(|| ask.file().as_raw_fd());
        let task = Task::Repair(Box::new(Repair { ask, outcome, look }));
        self.hand_over(key, lease, task, Work::Label(digest));
    }

    /// Answers, then logs, then remembers. `repaired`: whether a repair that was due could be made.
    pub(crate) fn finish(&mut self, ask: Ask, outcome: Outcome, look: Look, repaired: Option<bool>) {
        let good = outcome.good(repaired == Some(true));
        let asker = outcome.complaint.map(|_| ask.asker());
        let (key, hold, facts, recalled) = (ask.key(), ask.hold, ask.facts, ask.recalled);
        let (allowed, answered) = match outcome.verdict {
            Verdict::Allow(pass) => (true, ask.pending.allow(pass)),
            Verdict::Deny(_) => (false, ask.pending.deny()),
        };
        let file = self.closer.late(answered.file, hold.is_lease());
        if answered.sent.is_err() {
            self.counters.unanswered += 1;
        }
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
                self.remember(key, look, file.as_fd(), &facts);
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
            (Hold::Writer, _) if allowed => self.now_written(key, good, Some(look), Some(file)),
            _ => {}
        }
    }

    /// Whether the second memory will do for a file that was found so.
    fn can_recall(&self, key: &Key, look: &Look) -> bool {
        self.ignoring.is_possible() && Recall::takes(key, look) && self.filesystems.shows_changes(key.device())
    }

    /// Puts what was found into the second memory. `file` still holds the lease.
    pub(crate) fn remember(&mut self, key: Key, look: Look, file: BorrowedFd<'_>, facts: &FileFacts) {
        let followed = self.follows_all_writers(facts);
        match self.ignoring.notices().watch_inode(file) {
            Ok(()) => self.recall.remember(key, look, followed),
            Err(error) => self.cannot_ignore(&error),
        }
    }

    /// Remembers a digest, as long as its lease is held.
    pub(crate) fn know(&mut self, key: Key, known: Known) {
        if let (Some(mount), Ok(copy)) =
            (self.filesystems.private(key.device()), known.file.as_fd().try_clone_to_owned())
        {
            self.keeper.ask(key, self.closer.late(copy, false), mount);
        }
        while let Some((oldest, surplus)) = self.inodes.take_surplus() {
            self.retire(oldest, surplus);
        }
        self.inodes.know(key, known);
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
    fn newness(&mut self, ask: &Ask) -> Newness {
        if ask.facts.size != 0 {
            return Newness::Old;
        }
        if ask.facts.links == 0 { Newness::New } else { self.created.take(ask.file(), &ask.facts) }
    }

    /// Whether an empty file without a label may turn out to be new.
    fn looks_new(&self, ask: &Ask, outcome: &Outcome) -> bool {
        ask.facts.size == 0 && outcome.judgement.status == Status::NoLabel && self.created.may_come(&ask.facts)
    }

    /// Lets somebody wait for a moment, without keeping writers out meanwhile.
    fn park(&mut self, mut ask: Ask) {
        ask.release();
        self.parked.push_back((Instant::now() + PARKED, ask));
    }

    /// Considers those again who have waited long enough.
    pub(crate) fn unpark(&mut self, now: Instant) {
        while self.parked.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, ask)) = self.parked.pop_front() {
                self.reconsider(ask);
            }
        }
    }

    /// Lets somebody pass without having judged.
    pub(crate) fn let_pass(&mut self, pending: Pending, pass: Pass) {
        drop(self.passed(pending, pass));
    }

    fn passed(&mut self, pending: Pending, pass: Pass) -> LateFd {
        self.counters.allowed += 1;
        self.answered(pending.allow(pass))
    }

    /// The file of somebody who has been answered; gives the lease back when dropped, if he had one.
    fn answered(&mut self, answered: Answered) -> LateFd {
        if answered.sent.is_err() {
            self.counters.unanswered += 1;
        }
        self.closer.late(answered.file, true)
    }

    /// Answers by the failure table.
    pub(crate) fn fail(&mut self, ask: Ask, failure: Failure, why: &str) {
        let (asker, facts) = (ask.asker(), ask.facts);
        let (action, answered) = match failure.pass(self.settings.mode) {
            Some(pass) => (Action::Allowed, ask.pending.allow(pass)),
            None => (Action::Denied, ask.pending.deny()),
        };
        let file = self.answered(answered);
        self.note_failure(failure, file.as_fd(), why);
        if failure.row().answer == Answer::DenyIfEnforcing {
            let complaint = Complaint { operation: Operation::CollectData, cause: Cause::Failed };
            self.complain(complaint, asker, file.as_fd(), &facts, action);
        } else {
            self.counters.allowed += 1;
        }
    }

    /// The same, for somebody of whose file nothing is known.
    fn fail_pending(&mut self, pending: Pending, failure: Failure, why: &str) {
        let answered = match failure.pass(self.settings.mode) {
            Some(pass) => pending.allow(pass),
            None => pending.deny(),
        };
        let file = self.answered(answered);
        self.note_failure(failure, file.as_fd(), why);
    }

    fn complain(
        &mut self,
        complaint: Complaint,
        asker: Asker,
        file: BorrowedFd<'_>,
        facts: &FileFacts,
        action: Action,
    ) {
        match action {
            Action::Denied => self.counters.denied += 1,
            Action::Allowed => self.counters.tolerated += 1,
            Action::Repaired => self.counters.repaired += 1,
        }
        self.log.record(imara_integrity::audit::Record {
            operation: complaint.operation,
            cause: complaint.cause,
            asker,
            path: file::path_of(file).unwrap_or_default(),
            device: self.filesystems.device_name(facts.device),
            inode: facts.inode,
            action,
        });
    }
}
