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
