//! What the rules ask for one access: plain data. To act on it is the business of others.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `get_subaction()`.

use super::RuleId;
use super::action::{Family, Verb};
use super::rule::{Algorithms, Flags, Pcr, Rule, Template};
use crate::event::Hook;

/// What the rules ask for one access.
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

    /// What two questions about one access ask for together: as in the kernel, where the file has to satisfy both, and
    /// the flags of the first are still set at the second. Where both name a rule or a template, the first counts.
    ///
    /// Source: Linux `security/integrity/ima/ima_main.c`, `process_measurement()`: `iint->flags |= action`.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let flags = match (self.is_nothing(), other.is_nothing()) {
            // Who asks for nothing leaves no flags behind.
            (true, false) => other.flags,
            (false, true) => self.flags,
            (true, true) | (false, false) => self.flags.union(other.flags),
        };
        let algorithms = match (self.algorithms, other.algorithms) {
            (Some(ours), Some(theirs)) => Some(ours.intersection(theirs)),
            (ours, theirs) => ours.or(theirs),
        };
        Self {
            measure: self.measure.or(other.measure),
            appraise: self.appraise.or(other.appraise),
            audit: self.audit.or(other.audit),
            hash: self.hash.or(other.hash),
            flags,
            algorithms,
            decided: self.decided.and(other.decided),
        }
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
    pub(super) fn of(rule: &Rule, hook: Hook) -> Self {
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

    /// Of each family the rule that asks to do something, else the first one.
    fn and(self, other: Self) -> Self {
        let doing = |decided: &Decided| decided.verb == Verb::Do;
        let both = |family| {
            let (ours, theirs) = (self.by(family), other.by(family));
            ours.filter(doing).or(theirs.filter(doing)).or(ours).or(theirs)
        };
        Self {
            measure: both(Family::Measure),
            appraise: both(Family::Appraise),
            audit: both(Family::Audit),
            hash: both(Family::Hash),
        }
    }

    pub(super) fn set(&mut self, family: Family, decided: Decided) {
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
