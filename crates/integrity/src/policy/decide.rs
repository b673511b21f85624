//! Which rules an access meets: the first matching rule of each family decides it.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_match_policy()`, `ima_match_rules()`, `get_subaction()`.

use super::action::{Families, Family, Verb};
use super::rule::{Algorithms, Credential, Flags, MaskMode, Pcr, Rule, Template, Which};
use super::{Policy, RuleId};
use crate::event::{Event, Hook, LsmLabel};

/// What the rules ask for one access. Plain data: to act on it is the business of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Add it to the measurement list.
    pub measure: Option<Measure>,
    /// Judge the file's label.
    pub appraise: Option<Appraise>,
    /// Make an audit record with the file's hash; which rule asks so.
    pub audit: Option<RuleId>,
    /// Store the hash as label at the file's last close; which rule asks so.
    /// A rule that asks for appraisal clears this, one that asks for hashing after it sets it again.
    pub hash: Option<RuleId>,
    /// The flags of every rule that decided a family, of `dont_` rules and of other families too, as in the kernel.
    pub flags: Flags,
    /// The hash algorithms that the label may use; none means any.
    pub algorithms: Option<Algorithms>,
    /// For explanations: which rule decided each family.
    pub decided: DecidedBy,
}

impl Decision {
    /// Whether no family asks for anything.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.measure.is_none() && self.appraise.is_none() && self.audit.is_none() && self.hash.is_none()
    }
}

/// A measurement that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// The register to extend, if the rule names one.
    pub pcr: Option<Pcr>,
    /// The template, if the rule names one.
    pub template: Option<Template>,
    /// The rule that asks for it.
    pub rule: RuleId,
}

/// An appraisal that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appraise {
    /// Under which heading the result is remembered.
    pub sub_action: SubAction,
    /// The rule that asks for it.
    pub rule: RuleId,
}

impl Appraise {
    /// The hook to go on as, when `hook` has asked: the appraisal of a rule without `func=` runs as `FILE_CHECK`.
    #[must_use]
    pub const fn runs_as(self, hook: Hook) -> Hook {
        match self.sub_action {
            SubAction::File => Hook::FileCheck,
            SubAction::Mmap | SubAction::Bprm | SubAction::Creds | SubAction::Read => hook,
        }
    }
}

/// The headings under which appraisal results are remembered for an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubAction {
    /// `FILE_CHECK`, and every rule without `func=`.
    File,
    /// `MMAP_CHECK`, `MMAP_CHECK_REQPROT`.
    Mmap,
    /// `BPRM_CHECK`.
    Bprm,
    /// `CREDS_CHECK`.
    Creds,
    /// Files that the kernel reads: modules, firmware, kexec images, policies.
    Read,
}

impl SubAction {
    fn of(rule: &Rule, hook: Hook) -> Self {
        if rule.func.is_none() {
            return Self::File;
        }
        match hook {
            Hook::MmapCheck | Hook::MmapCheckReqprot => Self::Mmap,
            Hook::BprmCheck => Self::Bprm,
            Hook::CredsCheck => Self::Creds,
            Hook::FileCheck | Hook::PostSetattr => Self::File,
            Hook::ModuleCheck
            | Hook::FirmwareCheck
            | Hook::KexecKernelCheck
            | Hook::KexecInitramfsCheck
            | Hook::PolicyCheck
            | Hook::KexecCmdline
            | Hook::KeyCheck
            | Hook::CriticalData
            | Hook::SetxattrCheck => Self::Read,
        }
    }
}

/// Which rule decided each family; none means that no rule of the family matched, or that the family was not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecidedBy {
    measure: Option<Decided>,
    appraise: Option<Decided>,
    audit: Option<Decided>,
    hash: Option<Decided>,
}

impl DecidedBy {
    /// The rule that decided `family`.
    #[must_use]
    pub const fn by(self, family: Family) -> Option<Decided> {
        match family {
            Family::Measure => self.measure,
            Family::Appraise => self.appraise,
            Family::Audit => self.audit,
            Family::Hash => self.hash,
        }
    }

    fn set(&mut self, family: Family, decided: Decided) {
        let place = match family {
            Family::Measure => &mut self.measure,
            Family::Appraise => &mut self.appraise,
            Family::Audit => &mut self.audit,
            Family::Hash => &mut self.hash,
        };
        *place = Some(decided);
    }
}

/// A family's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// By which rule.
    pub rule: RuleId,
    /// To do it or not to do it.
    pub verb: Verb,
}

impl Policy {
    /// What the rules ask for this access.
    #[must_use]
    pub fn decide(&self, event: &Event<'_>) -> Decision {
        self.decide_among(event, Families::ALL)
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

    fn take(&self, decision: &mut Decision, id: RuleId, rule: &Rule, hook: Hook) {
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

impl Rule {
    /// Whether this rule is about that access.
    #[must_use]
    pub fn matches(&self, event: &Event<'_>) -> bool {
        // The kernel asks after a change of owner or mode whether any rule at all would still appraise the file.
        let any_access = event.hook == Hook::PostSetattr;
        if !any_access && self.func.is_some_and(|func| func != event.hook) {
            return false;
        }
        match event.hook {
            Hook::KeyCheck => return self.func.is_some() && self.matches_data(&self.keyrings, event),
            Hook::CriticalData => return self.func.is_some() && self.matches_data(&self.labels, event),
            Hook::FileCheck
            | Hook::MmapCheck
            | Hook::MmapCheckReqprot
            | Hook::BprmCheck
            | Hook::CredsCheck
            | Hook::PostSetattr
            | Hook::ModuleCheck
            | Hook::FirmwareCheck
            | Hook::KexecKernelCheck
            | Hook::KexecInitramfsCheck
            | Hook::PolicyCheck
            | Hook::KexecCmdline
            | Hook::SetxattrCheck => {}
        }
        (any_access || self.matches_mask(event))
            && self.matches_file_system(event)
            && self.matches_ids(event)
            && label_matches(&self.subject, event.subject_label)
            && label_matches(&self.object, event.object_label)
    }

    fn matches_data(&self, names: &[Box<str>], event: &Event<'_>) -> bool {
        // Of the ids only uid= counts here: the kernel accepts gid= with these hooks but never looks at it.
        let user = self.user.is_none_or(|user| user.bound.holds(event.subject.uid.0));
        user && (names.is_empty() || event.data.is_some_and(|data| names.iter().any(|name| **name == *data)))
    }

    fn matches_mask(&self, event: &Event<'_>) -> bool {
        self.mask.is_none_or(|condition| match condition.mode {
            MaskMode::Exact => event.mask == condition.mask,
            MaskMode::Includes => event.mask.contains(condition.mask),
        })
    }

    fn matches_file_system(&self, event: &Event<'_>) -> bool {
        let fs = event.object.fs;
        self.fsmagic.is_none_or(|magic| magic == fs.magic)
            && self.fsname.as_deref().is_none_or(|name| name == fs.name)
            && self.fs_subtype.as_deref().is_none_or(|subtype| fs.subtype.as_deref() == Some(subtype))
            && self.fsuuid.is_none_or(|uuid| uuid == fs.uuid)
    }

    fn matches_ids(&self, event: &Event<'_>) -> bool {
        let who = &event.subject;
        let user = |c| credential_holds(c, [who.uid.0, who.euid.0, who.suid.0], who.cap_setuid);
        let group = |c| credential_holds(c, [who.gid.0, who.egid.0, who.sgid.0], who.cap_setgid);
        self.user.is_none_or(user)
            && self.group.is_none_or(group)
            && self.fowner.is_none_or(|owner| owner.holds(event.object.owner.0))
            && self.fgroup.is_none_or(|group| group.holds(event.object.group.0))
    }
}

/// Whether ids of a task satisfy a condition; `ids` are real, effective, saved.
fn credential_holds(condition: Credential, ids: [u32; 3], capable: bool) -> bool {
    let [real, effective, _] = ids;
    match condition.which {
        Which::Real => condition.bound.holds(real),
        // Whoever can change its ids could take any of them on, so each of them counts.
        Which::Effective if capable => ids.into_iter().any(|id| condition.bound.holds(id)),
        Which::Effective => condition.bound.holds(effective),
    }
}

/// Whether each part that the rule names is the same in `actual`; an unknown label matches no condition.
fn label_matches(wanted: &LsmLabel, actual: Option<&LsmLabel>) -> bool {
    let same = |wanted: &Option<String>, part: fn(&LsmLabel) -> &Option<String>| {
        wanted.is_none() || actual.is_some_and(|label| part(label) == wanted)
    };
    same(&wanted.user, |label| &label.user)
        && same(&wanted.role, |label| &label.role)
        && same(&wanted.kind, |label| &label.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FileSystem, Gid, Mask, Object, Subject, Uid};
    use crate::policy::Options;

    fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), &Options::default()).unwrap()
    }

    fn file_system() -> FileSystem {
        FileSystem { magic: 0x6573_5546, name: "fuse".to_owned(), subtype: Some("sshfs".to_owned()), uuid: [0x11; 16] }
    }

    /// Root opens a file of 7:8 for reading.
    fn open(fs: &FileSystem) -> Event<'_> {
        Event {
            hook: Hook::FileCheck,
            mask: Mask::READ,
            subject: Subject::ROOT,
            object: Object { owner: Uid(7), group: Gid(8), fs },
            subject_label: None,
            object_label: None,
            data: None,
        }
    }

    fn decide(rules: &str, change: impl FnOnce(&mut Event<'_>)) -> Decision {
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
    fn a_rule_with_func_is_for_that_hook_alone() {
        for func in Hook::ALL.into_iter().filter(|&h| h <= Hook::PolicyCheck && h != Hook::PostSetattr) {
            for hook in Hook::ALL.into_iter().filter(|&h| h <= Hook::PolicyCheck && h != Hook::PostSetattr) {
                let measured = decide(&format!("measure func={func}"), |event| event.hook = hook).measure.is_some();
                assert_eq!(measured, func == hook, "{func} {hook}");
            }
        }
    }

    #[test]
    fn a_change_of_attributes_is_matched_without_func_and_mask_but_with_all_else() {
        let matched = |rules: &str| decide(rules, |event| event.hook = Hook::PostSetattr).appraise;
        let appraise = matched("appraise func=BPRM_CHECK mask=MAY_EXEC").unwrap();
        assert_eq!(appraise.sub_action, SubAction::File);
        assert_eq!(matched("appraise func=BPRM_CHECK fowner=9"), None);
    }

    #[test]
    fn mask_compares_the_whole_mask_or_one_bit() {
        let both = Mask::READ.union(Mask::WRITE);
        for (mask, asked, matches) in [
            ("MAY_READ", Mask::READ, true),
            ("MAY_READ", both, false),
            ("^MAY_READ", both, true),
            ("^MAY_EXEC", both, false),
            ("MAY_READ", Mask::NONE, false),
            ("^MAY_READ", Mask::NONE, false),
        ] {
            let decision = decide(&format!("measure mask={mask}"), |event| event.mask = asked);
            assert_eq!(decision.measure.is_some(), matches, "{mask} {asked:?}");
        }
    }

    #[test]
    fn conditions_on_the_file_and_its_file_system() {
        for (condition, matches) in [
            ("fowner=7", true),
            ("fowner>7", false),
            ("fowner<8", true),
            ("fgroup=8", true),
            ("fgroup>7", true),
            ("fgroup<8", false),
            ("fsmagic=0x65735546", true),
            ("fsmagic=0x65735547", false),
            ("fsname=fuse", true),
            ("fsname=fuse.sshfs", false),
            ("fs_subtype=sshfs", true),
            ("fs_subtype=ssh", false),
            ("fsuuid=11111111-1111-1111-1111-111111111111", true),
            ("fsuuid=11111111-1111-1111-1111-111111111112", false),
            ("fowner=7 fgroup=9", false),
        ] {
            assert_eq!(decide(&format!("audit {condition}"), |_| ()).audit.is_some(), matches, "{condition}");
        }
        let without = |event: &mut Event<'_>| {
            event.object.fs = const { &FileSystem { magic: 0, name: String::new(), subtype: None, uuid: [0; 16] } }
        };
        assert_eq!(decide("audit fs_subtype=sshfs", without).audit, None);
    }

    #[test]
    fn effective_ids_of_a_capable_task_are_any_of_its_three() {
        let task = |capable| Subject {
            uid: Uid(1),
            euid: Uid(2),
            suid: Uid(3),
            gid: Gid(4),
            egid: Gid(5),
            sgid: Gid(6),
            cap_setuid: capable,
            cap_setgid: capable,
        };
        for (condition, plain, capable) in [
            ("uid=1", true, true),
            ("uid=2", false, false),
            ("euid=1", false, true),
            ("euid=2", true, true),
            ("euid=3", false, true),
            ("euid>3", false, false),
            ("gid=4", true, true),
            ("gid=5", false, false),
            ("egid=4", false, true),
            ("egid=5", true, true),
            ("egid>5", false, true),
            ("egid<4", false, false),
        ] {
            let matches = |capable| decide(&format!("audit {condition}"), |event| event.subject = task(capable)).audit;
            assert_eq!((matches(false).is_some(), matches(true).is_some()), (plain, capable), "{condition}");
        }
    }

    #[test]
    fn buffers_are_matched_by_func_name_and_uid_alone() {
        for (rules, hook, data, matches) in [
            ("measure func=KEY_CHECK", Hook::KeyCheck, Some(".ima"), true),
            ("measure func=KEY_CHECK", Hook::KeyCheck, None, true),
            ("measure func=KEY_CHECK keyrings=.evm|.ima", Hook::KeyCheck, Some(".ima"), true),
            ("measure func=KEY_CHECK keyrings=.evm|.ima", Hook::KeyCheck, Some(".im"), false),
            ("measure func=KEY_CHECK keyrings=.ima", Hook::KeyCheck, None, false),
            ("measure func=KEY_CHECK uid=5", Hook::KeyCheck, Some(".ima"), false),
            ("measure func=KEY_CHECK gid=5", Hook::KeyCheck, Some(".ima"), true),
            ("measure func=CRITICAL_DATA label=a|b", Hook::CriticalData, Some("b"), true),
            ("measure func=CRITICAL_DATA label=a|b", Hook::CriticalData, Some("c"), false),
            ("measure", Hook::KeyCheck, Some(".ima"), false),
            ("measure", Hook::CriticalData, Some("a"), false),
            ("measure", Hook::KexecCmdline, None, true),
            ("measure func=KEXEC_CMDLINE", Hook::KexecCmdline, None, true),
        ] {
            let fs = file_system();
            let event = Event { hook, data, mask: Mask::NONE, ..open(&fs) };
            assert_eq!(policy(rules).decide(&event).measure.is_some(), matches, "{rules} {hook} {data:?}");
        }
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
