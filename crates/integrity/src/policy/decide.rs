//! Which rules an access meets: the first matching rule of each family decides it.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_match_policy()`.

use super::action::{Families, Family, Verb};
use super::decision::{Appraise, Decided, Decision, Measure, SubAction};
use super::rule::Rule;
use super::{Policy, RuleId};
use crate::event::{Event, Hook, Mask};

impl Policy {
    /// What the rules ask for this access.
    #[must_use]
    pub fn decide(&self, event: &Event<'_>) -> Decision {
        self.decide_among(event, Families::ALL)
    }

    /// What the rules ask for when a file is executed, whatever hook and mask `event` has. The kernel asks twice then:
    /// at `BPRM_CHECK` about the file, at `CREDS_CHECK` about the program it becomes. The file has to satisfy both.
    ///
    /// `event.subject` stands for both tasks, the one that executes and the one that the program will be.
    ///
    /// Source: Linux `security/integrity/ima/ima_main.c`, `ima_bprm_check()`.
    #[must_use]
    pub fn decide_exec(&self, event: &Event<'_>) -> Decision {
        let at = |hook| self.decide(&Event { hook, mask: Mask::EXEC, ..event.clone() });
        at(Hook::BprmCheck).and(at(Hook::CredsCheck))
    }

    /// As [`decide`](Self::decide), with only the families in `wanted` (no appraisal in mode off, for one).
    ///
    /// Families that no rule asks to *do* anything in are not looked at, so their `dont_` rules add no flags either;
    /// the same holds for families that are not wanted. This is the kernel's `ima_policy_flag`.
    #[must_use]
    pub fn decide_among(&self, event: &Event<'_>, wanted: Families) -> Decision {
        let mut open = wanted.intersection(self.active);
        let mut decision = Decision::default();
        for (id, rule) in self.numbered() {
            if open.is_empty() {
                break;
            }
            let family = rule.action.family();
            if open.contains(family) && rule.matches(event) {
                self.take(&mut decision, id, rule, event.hook);
                open = open.without(family);
            }
        }
        decision
    }

    pub(super) fn take(&self, decision: &mut Decision, id: RuleId, rule: &Rule, hook: Hook) {
        let (family, verb) = (rule.action.family(), rule.action.verb());
        decision.flags = decision.flags.union(rule.flags);
        decision.decided.set(family, Decided { rule: id, verb });
        if verb == Verb::Dont {
            return;
        }
        match family {
            Family::Measure => decision.measure = Some(Measure { pcr: rule.pcr, template: rule.template, rule: id }),
            Family::Appraise => {
                decision.appraise = Some(Appraise { sub_action: SubAction::of(rule, hook), rule: id });
                decision.hash = None;
                decision.algorithms = rule.algorithms;
                decision.flags.fail_unverifiable |= self.fail_securely;
            }
            Family::Audit => decision.audit = Some(id),
            Family::Hash => decision.hash = Some(id),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::event::{FileSystem, Gid, Object, Subject, Uid};
    use crate::policy::{Algorithms, Flags, Options, Pcr};

    pub(in crate::policy) fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), &Options::default()).unwrap()
    }

    pub(in crate::policy) fn file_system() -> FileSystem {
        FileSystem { magic: 0x6573_5546, name: "fuse".to_owned(), subtype: Some("sshfs".to_owned()), uuid: [0x11; 16] }
    }

    /// Root opens a file of 7:8 for reading.
    pub(in crate::policy) fn open(fs: &FileSystem) -> Event<'_> {
        Event::of_file(Hook::FileCheck, Mask::READ, Subject::ROOT, Object { owner: Uid(7), group: Gid(8), fs })
    }

    pub(in crate::policy) fn decide(rules: &str, change: impl FnOnce(&mut Event<'_>)) -> Decision {
        let fs = file_system();
        let mut event = open(&fs);
        change(&mut event);
        policy(rules).decide(&event)
    }

    fn by(decision: &Decision, family: Family) -> Option<(usize, Verb)> {
        decision.decided.by(family).map(|decided| (decided.rule.index(), decided.verb))
    }

    #[test]
    fn the_first_matching_rule_of_each_family_decides_it() {
        let rules = "measure uid=5 pcr=9\nmeasure pcr=11\nmeasure pcr=12\nappraise\ndont_appraise\n\
                     dont_audit\naudit\nhash uid=5";
        let decision = decide(rules, |_| ());
        assert_eq!(decision.measure.map(|m| (m.pcr.map(Pcr::index), m.rule.index())), Some((Some(11), 1)));
        assert_eq!(decision.appraise.map(|a| a.rule.index()), Some(3));
        assert_eq!((decision.audit, decision.hash), (None, None));
        assert_eq!(by(&decision, Family::Measure), Some((1, Verb::Do)));
        assert_eq!(by(&decision, Family::Appraise), Some((3, Verb::Do)));
        assert_eq!(by(&decision, Family::Audit), Some((5, Verb::Dont)));
        assert_eq!(by(&decision, Family::Hash), None);
    }

    #[test]
    fn flags_of_every_deciding_rule_are_united_across_families() {
        let signed = Flags { signature_required: true, blacklist: true, ..Flags::NONE };
        for (rules, flags) in [
            ("appraise appraise_type=imasig\nmeasure digest_type=verity", Flags { verity: true, ..signed }),
            ("appraise\ndont_measure permit_directio\nmeasure", Flags { permit_directio: true, ..Flags::NONE }),
            // No rule measures, so the kernel does not look at dont_measure either.
            ("dont_measure permit_directio\nappraise", Flags::NONE),
            // The family is decided already.
            ("appraise\nappraise appraise_type=imasig", Flags::NONE),
            ("appraise appraise_type=imasig uid=5\nappraise", Flags::NONE),
            ("appraise appraise_type=sigv3", Flags { sigv3: true, ..signed }),
        ] {
            assert_eq!(decide(rules, |_| ()).flags, flags, "{rules}");
        }
    }

    #[test]
    fn appending_signatures_are_allowed_where_the_rule_says_so() {
        let decision = decide("appraise func=MODULE_CHECK appraise_type=imasig|modsig", |e| e.hook = Hook::ModuleCheck);
        assert!(decision.flags.modsig_allowed && decision.flags.signature_required);
    }

    #[test]
    fn appraisal_clears_hashing_that_was_decided_before_it_only() {
        let decision = decide("hash\nappraise", |_| ());
        assert_eq!((decision.hash, by(&decision, Family::Hash)), (None, Some((0, Verb::Do))));
        assert_eq!(decide("appraise\nhash", |_| ()).hash.map(RuleId::index), Some(1));
        assert_eq!(decide("hash\ndont_appraise\nappraise", |_| ()).hash.map(RuleId::index), Some(0));
    }

    #[test]
    fn a_rule_without_func_is_judged_as_an_open_whatever_the_hook() {
        for (rules, hook, sub_action, runs_as) in [
            ("appraise", Hook::BprmCheck, SubAction::File, Hook::FileCheck),
            ("appraise", Hook::ModuleCheck, SubAction::File, Hook::FileCheck),
            ("appraise func=FILE_CHECK", Hook::FileCheck, SubAction::File, Hook::FileCheck),
            ("appraise func=BPRM_CHECK", Hook::BprmCheck, SubAction::Bprm, Hook::BprmCheck),
            ("appraise func=CREDS_CHECK", Hook::CredsCheck, SubAction::Creds, Hook::CredsCheck),
            ("appraise func=MMAP_CHECK", Hook::MmapCheck, SubAction::Mmap, Hook::MmapCheck),
            ("appraise func=MMAP_CHECK_REQPROT", Hook::MmapCheckReqprot, SubAction::Mmap, Hook::MmapCheckReqprot),
            ("appraise func=FIRMWARE_CHECK", Hook::FirmwareCheck, SubAction::Read, Hook::FirmwareCheck),
            ("appraise func=POLICY_CHECK", Hook::PolicyCheck, SubAction::Read, Hook::PolicyCheck),
        ] {
            let appraise = decide(rules, |event| event.hook = hook).appraise.unwrap();
            assert_eq!((appraise.sub_action, appraise.runs_as(hook)), (sub_action, runs_as), "{rules} {hook}");
        }
    }

    #[test]
    fn who_executes_is_asked_about_the_file_and_about_the_program_and_both_count() {
        let algorithms = |names: &str| names.split(',').map(|name| name.parse().unwrap()).collect::<Algorithms>();
        let signed = Flags { signature_required: true, blacklist: true, ..Flags::NONE };
        for (rules, appraised_by, flags, allowed) in [
            ("appraise func=BPRM_CHECK", Some(0), Flags::NONE, None),
            ("appraise func=CREDS_CHECK", Some(0), Flags::NONE, None),
            ("appraise mask=MAY_EXEC", Some(0), Flags::NONE, None),
            ("appraise func=FILE_CHECK", None, Flags::NONE, None),
            ("appraise mask=MAY_READ", None, Flags::NONE, None),
            // A digest is enough for the file, but not for the program.
            ("appraise func=BPRM_CHECK\nappraise func=CREDS_CHECK appraise_type=imasig", Some(0), signed, None),
            ("appraise func=CREDS_CHECK appraise_type=imasig\nappraise", Some(1), signed, None),
            ("dont_appraise func=BPRM_CHECK permit_directio\nappraise", Some(1), Flags::NONE, None),
            (
                "appraise func=BPRM_CHECK appraise_algos=sha256,sha512\nappraise appraise_algos=sha512,sha1",
                Some(0),
                Flags::NONE,
                Some(algorithms("sha512")),
            ),
            ("appraise func=BPRM_CHECK\nappraise appraise_algos=sha1", Some(0), Flags::NONE, Some(algorithms("sha1"))),
        ] {
            let fs = file_system();
            let decision = policy(rules).decide_exec(&open(&fs));
            let rule = decision.appraise.map(|appraise| appraise.rule.index());
            assert_eq!((rule, decision.flags, decision.algorithms), (appraised_by, flags, allowed), "{rules}");
            assert_eq!(
                by(&decision, Family::Appraise).filter(|(_, verb)| *verb == Verb::Do).map(|(rule, _)| rule),
                rule
            );
        }
        let fs = file_system();
        let twice = policy("measure func=CREDS_CHECK pcr=11\naudit func=BPRM_CHECK").decide_exec(&open(&fs));
        assert_eq!(
            (twice.measure.map(|measure| measure.rule.index()), twice.audit.map(RuleId::index)),
            (Some(0), Some(1))
        );
    }

    #[test]
    fn only_wanted_families_are_decided_and_add_flags() {
        let fs = file_system();
        let policy = policy("appraise appraise_type=imasig\nmeasure digest_type=verity");
        let decision = policy.decide_among(&open(&fs), Families::ALL.without(Family::Appraise));
        assert_eq!((decision.appraise, decision.measure.is_some()), (None, true));
        assert_eq!(decision.flags, Flags { verity: true, ..Flags::NONE });
        assert!(policy.decide_among(&open(&fs), Families::NONE).is_nothing());
    }

    #[test]
    fn failing_securely_is_for_appraised_files_only() {
        let fs = file_system();
        for (rules, fails) in [("appraise", true), ("measure", false), ("dont_appraise uid=0\nappraise", false)] {
            let plain = policy(rules).decide(&open(&fs));
            let secure = policy(rules).fail_securely().decide(&open(&fs));
            assert_eq!((plain.flags.fail_unverifiable, secure.flags.fail_unverifiable), (false, fails), "{rules}");
        }
    }

    #[test]
    fn algorithms_come_from_the_rule_that_appraises() {
        let sha256 = Algorithms::NONE.with("sha256".parse().unwrap());
        assert_eq!(decide("appraise appraise_algos=sha256", |_| ()).algorithms, Some(sha256));
        assert_eq!(decide("appraise\nappraise appraise_algos=sha256", |_| ()).algorithms, None);
        let setxattr = "appraise func=SETXATTR_CHECK appraise_algos=sha256";
        assert_eq!(decide(setxattr, |_| ()), Decision::default());
    }

    #[test]
    fn no_rule_and_no_match_ask_for_nothing() {
        assert!(decide("", |_| ()).is_nothing());
        assert!(decide("measure uid=5\naudit uid=5", |_| ()).is_nothing());
        assert!(!decide("hash", |_| ()).is_nothing());
    }
}
