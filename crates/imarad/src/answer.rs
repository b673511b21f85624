//! One question of the kernel, from its arrival to its answer.
//!
//! The order of things here is what keeps hosts alive:
//!
//! 1. nothing on the way to an answer may wait for the guarded file system: what is not in memory goes to a worker;
//! 2. the answer is given before anything is logged;
//! 3. a question that gets lost denies by itself.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use imara_integrity::appraise::{FileState, Status};
use imara_integrity::audit::{Action, Asker};
use imara_integrity::check::{self, Complaint, Outcome, Pass, Plan, Verdict};
use imara_integrity::collect::Collect;
use imara_integrity::digest::Digest;
use imara_integrity::event::{Hook, Mask};
use imara_integrity::iint::Writable;
use imara_integrity::label::ImaLabel;
use imara_integrity::policy::Decision;
use imara_linux::fanotify::Pending;
use imara_linux::file::{self, FileFacts};
use imara_linux::lease::{self, Taken};
use imara_linux::xattr;
use imara_linux::{open_call, task};

use crate::failure::Failure;
use crate::inodes::{Key, Renewing, Task, Written};
use crate::pool::Work;
use crate::serve::Guard;

/// Files up to this size are hashed by the dispatcher, if they are in memory: handing them over would cost more.
const INLINE: u64 = 64 * 1024;

/// How long a question waits for the notice that its file is new, and how often.
const PARKED: Duration = Duration::from_millis(2);
const PATIENCE: u8 = 50;

/// How often a file is hashed again that changes while it is read without a lease.
const TRIES: u8 = 3;

/// A question that the policy wants judged.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) pending: Pending,
    pub(crate) facts: FileFacts,
    pub(crate) decision: Decision,
    tries: u8,
    /// How often it may still be parked.
    patience: u8,
}

impl Ask {
    pub(crate) fn key(&self) -> Key {
        Key::from(&self.facts)
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.pending.file()
    }
}

/// What we know of writers at the moment of judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The digest is remembered, its lease is held elsewhere.
    Remembered,
    /// The asker's own descriptor holds a read lease.
    Lease,
    /// No lease to be had: somebody, perhaps the asker, has the file open for writing.
    Writer,
    /// Not looked at yet.
    Unknown,
}

/// What is known when somebody has been answered.
#[derive(Clone, Copy, Debug)]
struct Held {
    hold: Hold,
    good: bool,
    allowed: bool,
}

/// An opener that waits for its file's label to be repaired.
#[derive(Debug)]
pub(crate) struct Repair {
    pub(crate) ask: Ask,
    pub(crate) outcome: Outcome,
    pub(crate) hold: Hold,
}

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
        let decision = self.decide(&pending, &facts);
        match check::plan(&decision, self.settings) {
            Plan::Allow(pass) => self.let_pass(pending, pass),
            Plan::Judge(_) => self.consider(Ask { pending, facts, decision, tries: 0, patience: PATIENCE }),
        }
    }

    /// What the policy asks of this access.
    ///
    /// Who asks is read only if a rule wants to know. How the file is opened is known to fanotify only as far as
    /// 'executed or not'; if a rule wants to know more, the system call itself is looked at, and if that does not tell,
    /// the strictest answer over all ways of opening is taken.
    fn decide(&mut self, pending: &Pending, facts: &FileFacts) -> Decision {
        let subject = if self.policy.depends_on_subject() { task::credentials(pending.tid()).ok() } else { None };
        let hook = if pending.exec() { Hook::BprmCheck } else { Hook::FileCheck };
        let masks: &[Mask] = if pending.exec() {
            &[Mask::EXEC]
        } else if self.policy.depends_on_mask() {
            self.masks_of(pending.tid())
        } else {
            &[Mask::READ]
        };
        self.filesystems.decide(&self.policy, hook, masks, subject, facts)
    }

    fn masks_of(&self, tid: i32) -> &'static [Mask] {
        const READ_WRITE: Mask = Mask::READ.union(Mask::WRITE);
        const ANY: &[Mask] = &[
            Mask::READ,
            Mask::WRITE,
            READ_WRITE,
            Mask::EXEC,
            Mask::WRITE.union(Mask::APPEND),
            READ_WRITE.union(Mask::APPEND),
        ];
        let Ok(Some(call)) = open_call::open_call(tid) else { return ANY };
        crate::filesystems::masks(call).unwrap_or(ANY)
    }

    /// Looks at what is remembered of the inode, then judges.
    pub(crate) fn consider(&mut self, ask: Ask) {
        let key = ask.key();
        if let Some(busy) = self.inodes.busy_mut(&key) {
            if let Some(failure) = busy.stalled {
                return self.fail(ask, failure, "an earlier attempt still hangs");
            }
            busy.waiting.push_back(ask);
            return;
        }
        if let Some(written) = self.inodes.written(&key) {
            let writable = written.writable;
            if !self.take_lease(ask.file()) {
                return match check::while_written(writable) {
                    Some(pass) => self.let_pass(ask.pending, pass),
                    None => self.judge(ask, Hold::Writer, None),
                };
            }
            let complained = self.inodes.take_written(&key).is_some_and(|written| written.complained);
            if writable.good {
                // The last writer has gone: the label may lag behind, so it is renewed before anybody reads.
                return self.renew(key, Renewing::Asked(Box::new(ask)), complained);
            }
            return self.judge(ask, Hold::Lease, None);
        }
        match self.inodes.known(&key) {
            // A writer is let in at once, without having to break the lease (which would fail with O_NONBLOCK). The
            // digest is still true: he has not written yet.
            Some(digest) if !self.take_lease(ask.file()) => {
                self.inodes.forget_known(&key);
                self.judge(ask, Hold::Writer, Some(digest));
            }
            Some(digest) => self.judge(ask, Hold::Remembered, Some(digest)),
            None => self.judge(ask, Hold::Unknown, None),
        }
    }

    /// Tries for a read lease on a file. Where there is none to be had (a file system without leases) nothing can be
    /// remembered, as if there were a writer.
    pub(crate) fn take_lease(&self, file: BorrowedFd<'_>) -> bool {
        matches!(lease::take(file, self.leases.signal()), Ok(Taken::Held))
    }

    /// Judges, with the content's digest if it is known already.
    pub(crate) fn judge(&mut self, mut ask: Ask, hold: Hold, evidence: Option<Digest>) {
        let labels = match check::plan(&ask.decision, self.settings) {
            Plan::Allow(pass) => return self.let_pass(ask.pending, pass),
            Plan::Judge(labels) => labels,
        };
        let mut buffer = std::mem::take(&mut self.label);
        let label = xattr::read_label(ask.file(), xattr::IMA, &mut buffer);
        // A digest says what the file should be; without one, or before its data came, it counts whether it is new.
        let has_digest = matches!(label.bytes().map(ImaLabel::parse), Some(Ok(ImaLabel::Digest(_))));
        let new = !has_digest && self.is_new(&ask);
        match labels.read(label, FileState { size: ask.facts.size, new }) {
            // Somebody other than its creator may ask before the kernel has told us that the file is new.
            Collect::Settled(outcome) if ask.patience > 0 && !new && self.looks_new(&ask, &outcome) => {
                ask.patience -= 1;
                self.parked.push_back((Instant::now() + PARKED, ask));
            }
            Collect::Settled(outcome) => self.settled(ask, outcome, hold),
            Collect::Content(stage) => {
                let algorithm = stage.algorithm();
                match evidence.filter(|digest| digest.algorithm() == algorithm) {
                    Some(digest) => self.settled(ask, stage.settle(digest), hold),
                    None => {
                        let hold = match hold {
                            Hold::Unknown if self.take_lease(ask.file()) => Hold::Lease,
                            Hold::Unknown => Hold::Writer,
                            Hold::Remembered | Hold::Lease | Hold::Writer => hold,
                        };
                        let small = ask.facts.size <= INLINE;
                        match if small {
                            self.hasher.hash_in_memory(ask.file(), ask.facts.size, algorithm)
                        } else {
                            None
                        } {
                            Some(digest) => self.settled(ask, stage.settle(digest), hold),
                            None => self.hash_elsewhere(ask, hold, Work::Hash(algorithm)),
                        }
                    }
                }
            }
        }
        self.label = buffer;
    }

    fn hash_elsewhere(&mut self, ask: Ask, hold: Hold, work: Work) {
        let lease = (hold == Hold::Lease).then(|| ask.file().as_raw_fd());
        self.hand_over(ask.key(), lease, Task::Judge(Box::new(ask)), work);
    }

    /// The content was hashed by a worker.
    pub(crate) fn hashed(&mut self, mut ask: Ask, leased: bool, digest: Digest) {
        if leased {
            return self.judge(ask, Hold::Lease, Some(digest));
        }
        // Nobody kept writers out. If the file moved meanwhile, the digest may be that of a content it never had.
        let Ok(facts) = file::facts(ask.file()) else {
            return self.fail(ask, Failure::FactsUnreadable, "the file cannot be looked at any more");
        };
        if (facts.changed, facts.size) != (ask.facts.changed, ask.facts.size) {
            ask.facts = facts;
            ask.tries += 1;
            if ask.tries >= TRIES {
                return self.fail(ask, Failure::ContentChanging, "it changed while it was read");
            }
            return self.hash_elsewhere(ask, Hold::Writer, Work::Hash(digest.algorithm()));
        }
        self.judge(ask, Hold::Writer, Some(digest));
    }

    fn settled(&mut self, ask: Ask, outcome: Outcome, hold: Hold) {
        match outcome.repair {
            None => self.finish(ask, outcome, hold, None),
            Some(digest) => {
                let key = ask.key();
                // Of what is remembered the asker's own descriptor holds a lease too.
                let hold = if hold == Hold::Remembered { Hold::Lease } else { hold };
                self.inodes.forget_known(&key);
                let lease = (hold == Hold::Lease).then(|| ask.file().as_raw_fd());
                let task = Task::Repair(Box::new(Repair { ask, outcome, hold }));
                self.hand_over(key, lease, task, Work::Label(digest));
            }
        }
    }

    /// Answers, then logs, then remembers. `repaired`: whether a repair that was due could be made.
    pub(crate) fn finish(&mut self, ask: Ask, outcome: Outcome, hold: Hold, repaired: Option<bool>) {
        let good = outcome.good(repaired == Some(true));
        let asker = outcome.complaint.map(|_| asker_of(ask.pending.tid()));
        let (key, inode) = (ask.key(), ask.facts.inode);
        let device = ask.facts.device;
        let (allowed, answered) = match outcome.verdict {
            Verdict::Allow(pass) => (true, ask.pending.allow(pass)),
            Verdict::Deny(_) => (false, ask.pending.deny()),
        };
        if answered.sent.is_err() {
            self.counters.unanswered += 1;
        }
        if let (Some(complaint), Some(asker)) = (outcome.complaint, asker) {
            let action = match (allowed, repaired) {
                (false, _) => Action::Denied,
                (true, Some(true)) => Action::Repaired,
                (true, _) => Action::Allowed,
            };
            self.complain(complaint, asker, answered.file.as_fd(), device, inode, action);
        } else {
            self.counters.allowed += 1;
        }
        self.remember(key, Held { hold, good, allowed }, outcome.evidence, answered.file);
    }

    fn remember(&mut self, key: Key, held: Held, evidence: Option<Digest>, file: OwnedFd) {
        let Held { hold, good, allowed } = held;
        match (hold, evidence) {
            (Hold::Lease, Some(digest)) => self.know(key, digest, file),
            // Without evidence: a new file that has no label yet, or one that cannot be judged by content.
            (Hold::Unknown, _) if allowed && good => {
                if self.take_lease(file.as_fd()) {
                    self.renew(key, Renewing::For(file), false);
                } else {
                    self.now_written(key, good);
                }
            }
            (Hold::Writer, _) if allowed => self.now_written(key, good),
            _ => {}
        }
    }

    /// Remembers a digest, as long as the lease is held that `file` holds.
    pub(crate) fn know(&mut self, key: Key, digest: Digest, file: OwnedFd) {
        if let (Some(mount), Ok(copy)) = (self.filesystems.private(key.device()), file.try_clone()) {
            self.keeper.ask(key, copy, mount);
        }
        self.inodes.know(key, digest, file);
    }

    /// A remembered file is open through our own mount as well: the lease moves there.
    pub(crate) fn kept(&mut self, key: Key, own: OwnedFd) {
        if self.inodes.is_known(&key) && self.take_lease(own.as_fd()) {
            self.inodes.hold_by(&key, own);
        }
    }

    pub(crate) fn now_written(&mut self, key: Key, good: bool) {
        self.inodes.write(key, Written { writable: Writable { good }, file: None, complained: false });
    }

    /// Whether the file was created since the guard began and has neither label nor content: the kernel's
    /// `IMA_NEW_FILE`. A file without a name (`O_TMPFILE`) cannot have come from elsewhere.
    fn is_new(&mut self, ask: &Ask) -> bool {
        if ask.facts.size != 0 {
            return false;
        }
        ask.facts.links == 0 || self.created.take(ask.file(), &ask.facts)
    }

    /// Whether an empty file without a label may turn out to be new.
    fn looks_new(&self, ask: &Ask, outcome: &Outcome) -> bool {
        ask.facts.size == 0 && outcome.judgement.status == Status::NoLabel && self.created.may_come(&ask.facts)
    }

    /// Considers those again who have waited long enough.
    pub(crate) fn unpark(&mut self, now: Instant) {
        while self.parked.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, ask)) = self.parked.pop_front() {
                self.consider(ask);
            }
        }
    }

    /// Lets somebody pass without having judged.
    pub(crate) fn let_pass(&mut self, pending: Pending, pass: Pass) {
        self.counters.allowed += 1;
        if pending.allow(pass).sent.is_err() {
            self.counters.unanswered += 1;
        }
    }

    /// Answers by the failure table.
    pub(crate) fn fail(&mut self, ask: Ask, failure: Failure, why: &str) {
        self.fail_pending(ask.pending, failure, why);
    }

    fn fail_pending(&mut self, pending: Pending, failure: Failure, why: &str) {
        let answered = match failure.pass(self.settings.mode) {
            Some(pass) => pending.allow(pass),
            None => pending.deny(),
        };
        self.note_failure(failure, answered.file.as_fd(), why);
    }

    fn complain(
        &mut self,
        complaint: Complaint,
        asker: Asker,
        file: BorrowedFd<'_>,
        device: (u32, u32),
        inode: u64,
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
            device: self.filesystems.device_name(device),
            inode,
            action,
        });
    }
}

/// Who asks. Must be read before the answer: afterwards it may be gone.
fn asker_of(tid: i32) -> Asker {
    Asker {
        pid: tid,
        uid: task::credentials(tid).ok().map(|subject| subject.uid),
        login_uid: task::login_uid(tid).ok().map(|uid| uid.map_or(u32::MAX, |uid| uid.0)),
        session: task::session_id(tid).ok().map(|session| session.unwrap_or(u32::MAX)),
        comm: task::comm(tid).unwrap_or_default(),
    }
}
