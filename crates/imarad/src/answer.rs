//! One question of the kernel, from its arrival to its answer.
//!
//! The order of things here is what keeps hosts alive:
//!
//! 1. nothing on the way to an answer may wait for the guarded file system: what is not in memory goes to a worker;
//! 2. the answer is given before anything is logged;
//! 3. a question that gets lost denies by itself.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use imara_integrity::appraise::Cause;
use imara_integrity::audit::{Action, Asker, Operation};
use imara_integrity::check::{self, Complaint, Pass, Plan};
use imara_integrity::event::{Hook, Mask};
use imara_integrity::policy::{Decision, Writers};
use imara_linux::fanotify::{Answered, Pending};
use imara_linux::file::{self, FileFacts};
use imara_linux::lease::{self, Taken};
use imara_linux::open_call::OpenCall;
use imara_linux::task;

use crate::ask::Ask;
use crate::closer::LateFd;
use crate::failure::{Answer, Failure};
use crate::key::Key;
use crate::log::Level;
use crate::serve::Guard;
use crate::violations::Opener;

/// All ways of opening a file without executing it: for that the system calls are known.
const ANY: &[Mask] = &[
    Mask::READ,
    Mask::WRITE,
    Mask::READ.union(Mask::WRITE),
    Mask::WRITE.union(Mask::APPEND),
    Mask::READ.union(Mask::WRITE).union(Mask::APPEND),
];

/// How often an asker who does not sleep yet is looked at at once.
const YIELDS: u8 = 4;

/// How long he is left alone then, and how often: in all, longer than he can be kept from a processor.
const SLEEP: Duration = Duration::from_millis(1);
const SLEEPY: u16 = 5000;

impl Guard {
    /// Takes a question in.
    pub(crate) fn asked(&mut self, pending: Pending) {
        self.counters.asked += 1;
        self.ask(pending, SLEEPY);
    }

    /// Takes a question in whose asker may be looked at so many times until he sleeps.
    fn ask(&mut self, pending: Pending, patience: u16) {
        if self.own_threads.contains(&pending.tid()) {
            self.counters.own_threads += 1;
            return self.let_pass(pending, Pass::ourselves());
        }
        if let Some(pass) = Pass::mode_off(self.settings.mode) {
            self.counters.mode_off += 1;
            return self.let_pass(pending, pass);
        }
        let taken = self.expects_to_judge().then(|| lease::take(pending.file(), self.leases.signal()));
        let facts = match file::facts(pending.file()) {
            Ok(facts) => facts,
            Err(error) => return self.fail_pending(pending, Failure::FactsUnreadable, &error.to_string()),
        };
        if !facts.is_regular() {
            self.counters.not_regular += 1;
            return self.let_pass(pending, Pass::not_a_regular_file());
        }
        let masks = match self.masks_of(&pending) {
            Some(masks) => masks,
            None if patience > 0 => return self.awake.push_back((Instant::now() + SLEEP, pending, patience - 1)),
            None => ANY,
        };
        let decision = match self.decide(&pending, masks, &facts) {
            Ok(decision) => decision,
            Err(why) => {
                let opener = self.note_opener(&pending, &facts, None);
                let ask = Ask::new(pending, facts, Decision::default(), opener);
                return self.fail(ask, Failure::AskerUnreadable, &why);
            }
        };
        let opener = self.note_opener(&pending, &facts, Some(&decision));
        let plan = check::plan(&decision, self.settings);
        self.judged = matches!(plan, Plan::Judge(_));
        match plan {
            Plan::Allow(pass) => {
                self.counters.unasked += 1;
                let key = Key::of(pending.file(), &facts);
                if let Some(handle) = key.handle() {
                    // If he writes, nobody vouches for that.
                    self.recall.forget_handle(handle);
                }
                self.writes_unasked(key, &pending, &facts);
                let file = self.passed(pending, pass, opener);
                // Of a file whose writers are followed it must be heard who else writes to it.
                if !self.inodes.is_written_or_busy(&key) && !self.inodes.is_known(&key) {
                    self.ignore_unasked(file.as_fd(), &facts);
                }
            }
            Plan::Judge(_) => {
                let mut ask = Ask::new(pending, facts, decision, opener);
                (ask.ahead, ask.heard) = (taken.is_some(), self.ignoring.heard);
                if let Some(taken) = taken {
                    self.note_lease(&mut ask, taken);
                }
                self.consider(ask);
            }
        }
    }

    /// Whether the next question will have to be judged, by all that is known before its file has been looked at: then the
    /// lease comes first, and one look is enough.
    fn expects_to_judge(&self) -> bool {
        // Whoever is looked at more closely may be told to wait, and shall not keep writers out meanwhile.
        let closely =
            self.policy.depends_on_mask() || self.policy.depends_on_subject() || self.violations.is_watching();
        self.judged && !closely
    }

    /// What the policy asks of this access.
    ///
    /// Who asks is read only if a rule wants to know. How the file is opened is known to fanotify only as far as
    /// 'executed or not'; if a rule wants to know more, the system call itself is looked at, and if that does not tell,
    /// the strictest answer over all ways of opening is taken.
    fn decide(&mut self, pending: &Pending, masks: &[Mask], facts: &FileFacts) -> Result<Decision, String> {
        let subject = if self.policy.depends_on_subject() {
            Some(task::credentials(pending.tid()).map_err(|error| error.to_string())?)
        } else {
            None
        };
        let hook = if pending.exec() { Hook::BprmCheck } else { Hook::FileCheck };
        Ok(self.filesystems.decide(&self.policy, hook, masks, subject, facts))
    }

    /// How the file may be being opened, as far as anybody wants to know; absent if that will be known in a moment.
    fn masks_of(&self, pending: &Pending) -> Option<&'static [Mask]> {
        if pending.exec() {
            return Some(&[Mask::EXEC]);
        }
        if !self.policy.depends_on_mask() && !self.violations.is_watching() {
            return Some(&[Mask::READ]);
        }
        for _ in 0..YIELDS {
            match self.onlooker.open_call(pending.tid()) {
                // He is on another processor, or waits for this one.
                Some(OpenCall::NotYet) => std::thread::yield_now(),
                Some(call) => return Some(crate::filesystems::masks(call).unwrap_or(ANY)),
                None => return Some(ANY),
            }
        }
        None
    }

    /// Looks again at those who were not asleep.
    pub(crate) fn look_who_sleeps(&mut self, now: Instant) {
        while self.awake.front().is_some_and(|(due, ..)| *due <= now) {
            if let Some((_, pending, patience)) = self.awake.pop_front() {
                self.ask(pending, patience);
            }
        }
    }

    /// Says that somebody asked whose system call could not be looked at in time, which is no accident.
    pub(crate) fn say_who_hangs(&self) {
        let hangs = self.onlooker.take_hangs();
        if hangs > 0 {
            let text = format!(
                "imarad: {hangs} openers hid how they open a file (by another thread that executes something and hangs): \
                 for a moment, all count as opening in every way"
            );
            self.log.say(Level::Warning, text);
        }
    }

    /// Somebody whom no rule asks about opens a file of which others find that it is good, and write to it: if he may write
    /// too, they do not vouch for what is in it afterwards.
    fn writes_unasked(&mut self, key: Key, pending: &Pending, facts: &FileFacts) {
        let others = self.inodes.is_written_or_busy(&key)
            || self.filesystems.foresee(&self.policy, facts).writers == Writers::Some;
        if !others || self.may_write(pending) == Some(false) {
            return;
        }
        match lease::take(pending.file(), self.leases.signal()) {
            Ok(Taken::Held) => drop(lease::release(pending.file())),
            Ok(Taken::Writer) | Err(_) => {
                self.stranger_writes(key, None);
            }
        }
    }

    /// Whether somebody who asks may be opening the file for writing, where that can be seen.
    pub(crate) fn may_write(&self, pending: &Pending) -> Option<bool> {
        if pending.exec() {
            return Some(false);
        }
        for _ in 0..YIELDS {
            match self.onlooker.open_call(pending.tid()) {
                Some(OpenCall::NotYet) => std::thread::yield_now(),
                Some(OpenCall::Flags(flags)) => return Some(flags.writes() || flags.truncates()),
                Some(OpenCall::Exec) => return Some(false),
                Some(OpenCall::How) | None => return None,
            }
        }
        None
    }

    /// Lets somebody pass without having judged.
    pub(crate) fn let_pass(&mut self, pending: Pending, pass: Pass) {
        drop(self.passed(pending, pass, None));
    }

    /// The same for somebody who waited to be judged.
    pub(crate) fn let_ask_pass(&mut self, ask: Ask, pass: Pass) {
        drop(self.passed(ask.pending, pass, ask.opener));
    }

    pub(crate) fn passed(&mut self, pending: Pending, pass: Pass, opener: Option<Opener>) -> LateFd {
        self.counters.allowed += 1;
        let answered = pending.allow(pass);
        self.note_answered(opener, true, &answered);
        self.answered(answered)
    }

    /// The file of somebody who has been answered; gives the lease back when dropped, if he had one.
    pub(crate) fn answered(&mut self, answered: Answered) -> LateFd {
        self.note_answer(&answered);
        self.closer.late(answered.file, true)
    }

    pub(crate) fn note_answer<File>(&mut self, answered: &Answered<File>) {
        self.counters.latency.add(answered.waited);
        if answered.sent.is_err() {
            self.counters.unanswered += 1;
        }
    }

    /// Answers by the failure table.
    pub(crate) fn fail(&mut self, ask: Ask, failure: Failure, why: &str) {
        let (asker, facts, opener) = (ask.asker(), ask.facts, ask.opener);
        let (action, answered) = match failure.pass(self.settings.mode) {
            Some(pass) => (Action::Allowed, ask.pending.allow(pass)),
            None => (Action::Denied, ask.pending.deny()),
        };
        self.note_answered(opener, action == Action::Allowed, &answered);
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
        let (action, answered) = match failure.pass(self.settings.mode) {
            Some(pass) => (Action::Allowed, pending.allow(pass)),
            None => (Action::Denied, pending.deny()),
        };
        self.counters.complained(Cause::Failed, action);
        let file = self.answered(answered);
        self.note_failure(failure, file.as_fd(), why);
    }

    pub(crate) fn complain(
        &mut self,
        complaint: Complaint,
        asker: Asker,
        file: BorrowedFd<'_>,
        facts: &FileFacts,
        action: Action,
    ) {
        self.counters.complained(complaint.cause, action);
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
