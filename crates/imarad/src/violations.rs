//! Files that are measured and written to at the same time: who has which file open, from the guard's events.
//!
//! Watched are files of which a rule can ask that they be measured when they are opened, and only where the policy has such
//! a rule: then the kernel also tells of each close of a reader, and answers for no such file itself
//! ([`ignore`](crate::ignore)), so that each of its openers is heard of.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::BorrowedFd;

use hashlink::LinkedHashMap;
use imara_integrity::event::Hook;
use imara_integrity::policy::{Decision, Family, Policy, Verb};
use imara_integrity::violation::{Access, OpenState, Opening, Record, Violation};
use imara_linux::fanotify::{Answered, FsMask, Pending};
use imara_linux::file::{self, FileFacts};
use imara_linux::lease::{self, Taken};
use imara_linux::open_call::OpenCall;

use crate::ask::asker;
use crate::key::Key;
use crate::log::Level;
use crate::serve::Guard;

/// Files that nobody has open and of which something is remembered all the same, at most. The kernel too forgets such files,
/// when their inodes leave its memory.
const CLOSED: usize = 16_384;

/// Who has what open.
#[derive(Debug, Default)]
pub(crate) struct Violations {
    watching: bool,
    open: HashMap<Key, OpenState>,
    closed: LinkedHashMap<Key, OpenState>,
    counts: [u64; Violation::ALL.len()],
}

/// Somebody who is counted as having a file open, from his question on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opener {
    key: Key,
    access: Access,
}

impl Violations {
    /// Watches if a rule of the policy has files measured that are opened.
    pub(crate) fn of(policy: &Policy) -> Self {
        let measures = policy.rules().map(|numbered| numbered.rule).any(|rule| {
            let opens = rule.func.is_none_or(|hook| hook == Hook::FileCheck);
            rule.action.family() == Family::Measure && rule.action.verb() == Verb::Do && opens
        });
        Self { watching: measures, ..Self::default() }
    }

    /// Whether there is such a rule.
    pub(crate) const fn is_watching(&self) -> bool {
        self.watching
    }

    /// What the kernel is to tell of a file system.
    pub(crate) const fn mask(&self) -> FsMask {
        if self.watching { FsMask::GUARD.union(FsMask::CLOSE_NOWRITE) } else { FsMask::GUARD }
    }

    /// Counted since the start.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Violation::ALL.iter().map(|violation| violation.word()).zip(self.counts)
    }

    /// Forgets who has what open: from now on it is not heard of.
    pub(crate) fn forget(&mut self) {
        self.open.clear();
        self.closed.clear();
    }

    /// Forgets all about these devices' files.
    pub(crate) fn forget_devices(&mut self, devices: &[(u32, u32)]) {
        self.open.retain(|key, _| !devices.contains(&key.device()));
        self.closed.retain(|key, _| !devices.contains(&key.device()));
    }

    fn opened(&mut self, key: Key, opening: Opening) -> Vec<Violation> {
        let state = self.open.entry(key).or_insert_with(|| self.closed.remove(&key).unwrap_or_default());
        state.opened(opening)
    }

    fn closed(&mut self, key: Key, access: Access) {
        let Entry::Occupied(mut entry) = self.open.entry(key) else { return };
        entry.get_mut().closed(access);
        if !entry.get().is_closed() {
            return;
        }
        let state = entry.remove();
        if !state.is_nothing() {
            self.closed.insert(key, state);
            if self.closed.len() > CLOSED {
                self.closed.pop_front();
            }
        }
    }

    /// Whether somebody was seen to open it for writing, and not to close it.
    fn is_written(&self, key: &Key) -> bool {
        self.open.get(key).is_some_and(OpenState::is_written)
    }
}

impl Guard {
    /// Counts somebody who opens a file, from before he is answered, as the kernel does. `decision` is absent if it is not
    /// known what the rules ask of him.
    pub(crate) fn note_opener(
        &mut self,
        pending: &Pending,
        facts: &FileFacts,
        decision: Option<&Decision>,
    ) -> Option<Opener> {
        // Of an execution the kernel asks twice; the second question is that of any open.
        if pending.exec() || !self.can_be_measured(facts) {
            return None;
        }
        let key = Key::of(pending.file(), facts);
        let measured = decision.is_none_or(|decision| decision.measure.is_some());
        let called = self.called(pending.tid());
        let written = (called != Access::Write && (measured || called == Access::Either))
            .then(|| self.is_open_for_writing(pending.file()))
            .flatten();
        let (access, written) = match (called, written) {
            // No writer at all, so he is none.
            (Access::Either, Some(false)) => (Access::Read, Some(false)),
            // There is one, and no other was seen.
            (Access::Either, Some(true)) if !self.violations.is_written(&key) => (Access::Write, None),
            (Access::Either, _) => (Access::Either, None),
            (Access::Read | Access::Write, written) => (called, written),
        };
        for violation in self.violations.opened(key, Opening { access, measured, written }) {
            let path = file::path_of(pending.file()).unwrap_or_default();
            // The kernel names a file without saying that the name is gone.
            let name = if facts.links == 0 { path.strip_suffix(b" (deleted)").unwrap_or(&path) } else { &path };
            self.violated(Record {
                violation,
                asker: asker(pending.tid()),
                path: name.to_vec(),
                device: self.filesystems.device_name(facts.device),
                inode: facts.inode,
            });
        }
        Some(Opener { key, access })
    }

    /// A violation, before whoever is behind it is answered: the place where the measurement list takes it.
    fn violated(&mut self, record: Record) {
        let place = Violation::ALL.iter().position(|one| *one == record.violation);
        if let Some(count) = place.and_then(|place| self.violations.counts.get_mut(place)) {
            *count += 1;
        }
        self.log.say(Level::Warning, record.to_string());
    }

    /// He has been answered. Who was refused, or was killed before, has not got the file open, and will not be heard of
    /// again.
    pub(crate) fn note_answered<File>(&mut self, opener: Option<Opener>, allowed: bool, answered: &Answered<File>) {
        if let Some(Opener { key, access }) = opener
            && (!allowed || answered.sent.is_err())
        {
            self.violations.closed(key, access);
        }
    }

    /// Somebody has closed a file.
    pub(crate) fn note_closed(&mut self, file: BorrowedFd<'_>, access: Access) {
        if !self.violations.watching || self.violations.open.is_empty() {
            return;
        }
        if let Ok(facts) = file::facts(file) {
            self.violations.closed(Key::of(file, &facts), access);
        }
    }

    /// Whether a rule can have such a file measured when it is opened.
    pub(crate) fn can_be_measured(&mut self, facts: &FileFacts) -> bool {
        self.violations.watching && self.filesystems.foresee(&self.policy, facts).open.strictest.measure.is_some()
    }

    /// How the waiting task opens the file, as far as its system call tells.
    fn called(&self, tid: i32) -> Access {
        match self.onlooker.open_call(tid) {
            Some(OpenCall::Flags(flags)) if flags.writes() && !flags.is_for_neither() => Access::Write,
            Some(OpenCall::Flags(_) | OpenCall::Exec) => Access::Read,
            Some(OpenCall::How | OpenCall::NotYet) | None => Access::Either,
        }
    }

    /// Whether anybody has the file open for writing, the one who asks included; absent if that cannot be told.
    fn is_open_for_writing(&self, file: BorrowedFd<'_>) -> Option<bool> {
        match lease::take(file, self.leases.signal()) {
            Ok(Taken::Held) => {
                // Nobody who asks before he breaks it can have noticed it.
                let _ = lease::release(file);
                Some(false)
            }
            Ok(Taken::Writer) => Some(true),
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use imara_integrity::policy::Options;

    use super::*;

    #[test]
    fn files_are_watched_if_a_rule_has_opened_ones_measured() {
        for (text, expected) in [
            ("appraise", false),
            ("dont_measure\nappraise", false),
            ("measure func=BPRM_CHECK\nmeasure func=MMAP_CHECK mask=MAY_EXEC", false),
            ("measure func=FILE_CHECK mask=MAY_READ uid=0", true),
            ("appraise\nmeasure fowner=0", true),
        ] {
            let policy = Policy::parse(text.as_bytes(), &Options::default()).unwrap();
            let violations = Violations::of(&policy);
            assert_eq!(violations.watching, expected, "{text}");
            assert_eq!(violations.mask() == FsMask::GUARD, !expected, "{text}");
        }
    }

    #[test]
    fn what_is_closed_is_forgotten_in_turn_and_what_is_open_is_not() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let device = file::facts(null.as_fd()).unwrap().device;
        let key = |number: u64| Key::of_handle(device, number, [7; 24]);
        let read = Opening { access: Access::Read, measured: true, written: None };
        let write = Opening { access: Access::Write, measured: false, written: None };
        let mut violations = Violations::default();
        let many = u64::try_from(CLOSED).unwrap();
        assert_eq!(violations.opened(key(0), read), []);
        for number in 1..=many + 1 {
            assert_eq!(violations.opened(key(number), read), []);
            violations.closed(key(number), Access::Read);
        }
        assert_eq!((violations.open.len(), violations.closed.len()), (1, CLOSED));
        assert_eq!(violations.opened(key(0), write), [Violation::ToMToU]);
        // That the second one was measured is known, that the first one was is not.
        for (number, expected) in [(1, &[][..]), (2, &[Violation::ToMToU])] {
            assert_eq!(violations.opened(key(number), Opening { measured: false, ..read }), []);
            assert_eq!(violations.opened(key(number), write), expected, "{number}");
        }
        violations.forget_devices(&[device]);
        assert_eq!((violations.open.len(), violations.closed.len()), (0, 0));
    }
}
