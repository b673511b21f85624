//! One question of the kernel, from its arrival to its answer.
//!
//! The order of things here is what keeps hosts alive:
//!
//! 1. nothing on the way to an answer may wait for the guarded file system: what is not in memory goes to a worker;
//! 2. the answer is given before anything is logged;
//! 3. a question that gets lost denies by itself.

use std::os::fd::{AsFd as _, BorrowedFd};

use imara_integrity::appraise::Cause;
use imara_integrity::audit::{Action, Asker, Operation};
use imara_integrity::check::{self, Complaint, Pass, Plan};
use imara_integrity::event::{Hook, Mask};
use imara_integrity::policy::Decision;
use imara_linux::fanotify::{Answered, Pending};
use imara_linux::file::{self, FileFacts};
use imara_linux::handle::short_handle;
use imara_linux::{open_call, task};

use crate::ask::Ask;
use crate::closer::LateFd;
use crate::failure::{Answer, Failure};
use crate::serve::Guard;

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

    /// Lets somebody pass without having judged.
    pub(crate) fn let_pass(&mut self, pending: Pending, pass: Pass) {
        drop(self.passed(pending, pass));
    }

    pub(crate) fn passed(&mut self, pending: Pending, pass: Pass) -> LateFd {
        self.counters.allowed += 1;
        self.answered(pending.allow(pass))
    }

    /// The file of somebody who has been answered; gives the lease back when dropped, if he had one.
    pub(crate) fn answered(&mut self, answered: Answered) -> LateFd {
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

    pub(crate) fn complain(
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
