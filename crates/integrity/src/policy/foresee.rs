//! What the rules can ask of a file at all, whoever opens it and how: for a host that wants to answer once and for all.
//!
//! A host that lets the kernel answer for a file is not told who opens it, nor whether he reads or writes. That is safe
//! if the file satisfies the strictest of all decisions, and if what is to be done besides (measure, audit, hash) is the
//! same for all. Facts about the file itself (owner, group, file system) are taken as they are now: the host has to
//! hear of their changes.

use super::Policy;
use super::action::{Families, Family, Verb};
use super::decision::Decision;
use crate::event::{Event, Hook, Mask, Object, Subject};

/// How a file can be opened, as the kernel's hooks at `open(2)` see it.
///
/// Source: Linux `security/integrity/ima/ima_main.c`, `ima_file_check()`.
pub const OPEN_MASKS: [Mask; 5] = {
    const READ_WRITE: Mask = Mask::READ.union(Mask::WRITE);
    [Mask::READ, Mask::WRITE, READ_WRITE, Mask::WRITE.union(Mask::APPEND), READ_WRITE.union(Mask::APPEND)]
};

/// What rules can ask of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// No decision about this file asks for more than this one.
    pub strictest: Decision,
    /// Whether it depends on who asks, or how, what is measured, audited or hashed.
    pub effects_vary: bool,
}

impl Foreseen {
    fn and(self, other: Self) -> Self {
        // Rules that ask for nothing have flags that may count too.
        let flags = self.strictest.flags.union(other.strictest.flags);
        let strictest = Decision { flags, ..self.strictest.and(other.strictest) };
        Self { strictest, effects_vary: self.effects_vary || other.effects_vary }
    }
}

/// Whose opening of a file for writing is appraised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// Everybody's, however he opens it.
    All,
    /// It depends on who it is, or how he opens it.
    Some,
    /// Nobody's.
    None,
}

impl Policy {
    /// Whose opening of the file for writing is appraised: whether a host that hears of a change may take it for one by
    /// somebody who was judged.
    #[must_use]
    pub fn appraised_writers(&self, object: &Object<'_>) -> Writers {
        let [_, writing @ ..] = OPEN_MASKS;
        let each = writing.map(|mask| {
            let event = Event::of_file(Hook::FileCheck, mask, Subject::ROOT, object.clone());
            self.appraised_askers(&event)
        });
        if each == [Writers::All; 4] {
            Writers::All
        } else if each == [Writers::None; 4] {
            Writers::None
        } else {
            Writers::Some
        }
    }

    /// The same for one way of opening.
    fn appraised_askers(&self, event: &Event<'_>) -> Writers {
        let (mut some, mut not_all) = (false, false);
        for (_, rule) in self.numbered() {
            if rule.action.family() != Family::Appraise || !rule.may_match(event) {
                continue;
            }
            let appraises = rule.action.verb() == Verb::Do;
            some |= appraises;
            not_all |= !appraises;
            if !rule.asks_for_subject() {
                return match (some, not_all) {
                    (true, false) => Writers::All,
                    (true, true) => Writers::Some,
                    (false, _) => Writers::None,
                };
            }
        }
        if some { Writers::Some } else { Writers::None }
    }

    /// What rules can ask when the file is opened without being executed.
    #[must_use]
    pub fn foresee_open(&self, object: &Object<'_>) -> Foreseen {
        let [first, others @ ..] = OPEN_MASKS.map(|mask| self.foresee(Hook::FileCheck, mask, object));
        let effects = |one: &Foreseen| (one.strictest.measure, one.strictest.audit, one.strictest.hash);
        let vary = others.iter().any(|other| effects(other) != effects(&first));
        let all = others.into_iter().fold(first, Foreseen::and);
        Foreseen { effects_vary: all.effects_vary || vary, ..all }
    }

    /// What rules can ask when the file is executed, as in [`decide_exec`](Self::decide_exec).
    #[must_use]
    pub fn foresee_exec(&self, object: &Object<'_>) -> Foreseen {
        let at = |hook| self.foresee(hook, Mask::EXEC, object);
        at(Hook::BprmCheck).and(at(Hook::CredsCheck))
    }

    fn foresee(&self, hook: Hook, mask: Mask, object: &Object<'_>) -> Foreseen {
        let event = Event::of_file(hook, mask, Subject::ROOT, object.clone());
        let mut open = Families::ALL.intersection(self.active);
        let mut foreseen = Foreseen { strictest: Decision::default(), effects_vary: false };
        for (id, rule) in self.numbered() {
            let family = rule.action.family();
            if !open.contains(family) || !rule.may_match(&event) {
                continue;
            }
            let mut asked = Decision::default();
            self.take(&mut asked, id, rule, hook);
            // If it asks for somebody, it may match or not: the next ones count as well.
            let certain = !rule.asks_for_subject();
            foreseen =
                foreseen.and(Foreseen { strictest: asked, effects_vary: !certain && family != Family::Appraise });
            if certain {
                open = open.without(family);
            }
        }
        foreseen
    }
}

#[cfg(test)]
mod tests {
    use super::super::decide::tests::{file_system, policy};
    use super::*;
    use crate::event::{Gid, Uid};

    /// Subjects that differ in all that the rules below ask about.
    fn subjects() -> impl Iterator<Item = Subject> {
        [0, 5].into_iter().flat_map(|user| {
            [0, 6].map(|group| Subject {
                uid: Uid(user),
                euid: Uid(user),
                gid: Gid(group),
                egid: Gid(group),
                ..Subject::ROOT
            })
        })
    }

    /// Asserts that no decision asks for more than was foreseen, and that effects that do not vary are as foreseen.
    fn holds(rules: &str) -> bool {
        let (policy, fs) = (policy(rules), file_system());
        let object = Object { owner: Uid(7), group: Gid(8), fs: &fs };
        let mut varies = false;
        let writers = policy.appraised_writers(&object);
        let mut appraised = Vec::new();
        for subject in subjects() {
            let event = |mask| Event::of_file(Hook::FileCheck, mask, subject, object.clone());
            appraised.extend(OPEN_MASKS[1..].iter().map(|mask| policy.decide(&event(*mask)).appraise.is_some()));
            let opened = OPEN_MASKS.map(|mask| (policy.decide(&event(mask)), policy.foresee_open(&object)));
            let executed = (policy.decide_exec(&event(Mask::EXEC)), policy.foresee_exec(&object));
            for (decision, foreseen) in opened.into_iter().chain([executed]) {
                let strictest = foreseen.strictest;
                assert!(decision.appraise.is_none() || strictest.appraise.is_some(), "{rules}");
                assert_eq!(strictest.flags.union(decision.flags), strictest.flags, "{rules}");
                let algorithms = decision.appraise.and(decision.algorithms);
                let narrowed = algorithms.map(|allowed| strictest.algorithms.map(|all| all.intersection(allowed)));
                assert!(narrowed.is_none_or(|narrowed| narrowed == strictest.algorithms), "{rules}");
                let effects = |one: &Decision| (one.measure, one.audit, one.hash);
                assert!(foreseen.effects_vary || effects(&decision) == effects(&strictest), "{rules}");
                varies |= foreseen.effects_vary;
            }
        }
        let seen = (appraised.contains(&true), appraised.contains(&false));
        match writers {
            Writers::All => assert_eq!(seen, (true, false), "{rules}"),
            Writers::None => assert_eq!(seen, (false, true), "{rules}"),
            // Not all subjects there are were tried.
            Writers::Some => {}
        }
        varies
    }

    #[test]
    fn no_decision_asks_for_more_than_was_foreseen() {
        const RULES: [&str; 16] = [
            "appraise",
            "appraise appraise_type=imasig uid=5",
            "appraise appraise_algos=sha256 gid=6",
            "appraise appraise_algos=sha512 mask=MAY_WRITE",
            "dont_appraise uid=0",
            "dont_appraise fowner=7",
            "dont_appraise fowner=9",
            "dont_appraise mask=^MAY_APPEND",
            "appraise func=BPRM_CHECK",
            "appraise func=CREDS_CHECK appraise_type=imasig",
            "measure uid=5",
            "measure mask=MAY_READ",
            "measure pcr=11",
            "dont_measure gid=6 permit_directio",
            "audit fowner=7",
            "hash euid>3",
        ];
        let mut varying = 0;
        for one in RULES {
            for two in RULES {
                for three in RULES {
                    varying += usize::from(holds(&format!("{one}\n{two}\n{three}")));
                }
            }
        }
        assert!((1..RULES.len().pow(3)).contains(&varying), "{varying}");
    }

    #[test]
    fn it_is_known_whose_writing_is_appraised() {
        let fs = file_system();
        let object = Object { owner: Uid(7), group: Gid(8), fs: &fs };
        for (rules, expected) in [
            ("", Writers::None),
            ("appraise", Writers::All),
            ("appraise fowner=8", Writers::None),
            ("appraise mask=MAY_READ", Writers::None),
            ("appraise mask=MAY_WRITE", Writers::Some),
            ("appraise mask=^MAY_WRITE", Writers::All),
            ("appraise mask=^MAY_READ", Writers::Some),
            ("appraise func=BPRM_CHECK", Writers::None),
            ("appraise uid=0", Writers::Some),
            ("appraise uid=0\nappraise", Writers::All),
            ("dont_appraise uid=0\nappraise", Writers::Some),
            ("dont_appraise uid=0\ndont_appraise\nappraise", Writers::None),
            ("appraise uid=0\ndont_appraise", Writers::Some),
            ("measure\nappraise", Writers::All),
        ] {
            assert_eq!(policy(rules).appraised_writers(&object), expected, "{rules}");
        }
    }

    #[test]
    fn what_all_agree_on_is_foreseen_exactly() {
        let fs = file_system();
        let object = Object { owner: Uid(7), group: Gid(8), fs: &fs };
        for (rules, opened, executed) in [
            ("appraise fowner=7", true, true),
            ("appraise fowner=8", false, false),
            ("appraise mask=MAY_WRITE", true, false),
            ("appraise func=BPRM_CHECK uid=5", false, true),
            ("dont_appraise fsname=fuse\nappraise", false, false),
            ("dont_appraise uid=0\nappraise", true, true),
            ("dont_appraise subj_type=x\nappraise", true, true),
            ("appraise obj_type=x", false, false),
        ] {
            let asks = |foreseen: Foreseen| (foreseen.strictest.appraise.is_some(), foreseen.effects_vary);
            let policy = policy(rules);
            assert_eq!(asks(policy.foresee_open(&object)), (opened, false), "{rules}");
            assert_eq!(asks(policy.foresee_exec(&object)), (executed, false), "{rules}");
        }
    }
}
