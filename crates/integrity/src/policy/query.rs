//! What a policy asks for as a whole, so that a host gathers no fact that no rule asks about.

use super::Policy;
use super::action::{Family, Verb};
use super::rule::{Algorithms, Rule};
use crate::event::Hook;

impl Policy {
    /// Whether a decision can depend on who asks (`uid=`, `euid=`, `gid=`, `egid=`, `subj_…=`).
    #[must_use]
    pub fn depends_on_subject(&self) -> bool {
        self.effective().any(Rule::asks_for_subject)
    }

    /// Whether a decision can depend on the kind of access (`mask=`).
    #[must_use]
    pub fn depends_on_mask(&self) -> bool {
        self.effective().any(|rule| rule.mask.is_some())
    }

    /// The hooks at which some rule asks to do something. A rule without `func=` stands for all hooks that see files.
    #[must_use]
    pub fn hooks(&self) -> Hooks {
        Family::ALL.into_iter().fold(Hooks::NONE, |hooks, family| hooks.union(self.hooks_of(family)))
    }

    /// As [`hooks`](Self::hooks), for one family.
    #[must_use]
    pub fn hooks_of(&self, family: Family) -> Hooks {
        let doing = |rule: &&Rule| rule.action.family() == family && rule.action.verb() == Verb::Do;
        let hooks_of = |rule: &Rule| rule.func.map_or(Hooks::FILES, |hook| Hooks::NONE.with(hook));
        self.rules.iter().filter(doing).map(hooks_of).fold(Hooks::NONE, Hooks::union)
    }

    /// The hash algorithms that a label may have that is written by `setxattr`; none means any.
    ///
    /// The first `SETXATTR_CHECK` rule says so; the kernel does not look at later ones.
    #[must_use]
    pub fn setxattr_algorithms(&self) -> Option<Algorithms> {
        self.rules.iter().find(|rule| rule.func == Some(Hook::SetxattrCheck)).and_then(|rule| rule.algorithms)
    }

    /// The rules that can take part in a decision.
    fn effective(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(|rule| self.active.contains(rule.action.family()))
    }
}

/// A set of hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hooks(u16);

impl Hooks {
    /// No hook.
    pub const NONE: Self = Self(0);

    /// The hooks that see a file: all except those for buffers, for changed attributes and for `setxattr`.
    pub const FILES: Self = Self::NONE
        .with(Hook::FileCheck)
        .with(Hook::MmapCheck)
        .with(Hook::MmapCheckReqprot)
        .with(Hook::BprmCheck)
        .with(Hook::CredsCheck)
        .with(Hook::ModuleCheck)
        .with(Hook::FirmwareCheck)
        .with(Hook::KexecKernelCheck)
        .with(Hook::KexecInitramfsCheck)
        .with(Hook::PolicyCheck);

    const fn bit(hook: Hook) -> u16 {
        match hook {
            Hook::FileCheck => 1,
            Hook::MmapCheck => 1 << 1,
            Hook::MmapCheckReqprot => 1 << 2,
            Hook::BprmCheck => 1 << 3,
            Hook::CredsCheck => 1 << 4,
            Hook::PostSetattr => 1 << 5,
            Hook::ModuleCheck => 1 << 6,
            Hook::FirmwareCheck => 1 << 7,
            Hook::KexecKernelCheck => 1 << 8,
            Hook::KexecInitramfsCheck => 1 << 9,
            Hook::PolicyCheck => 1 << 10,
            Hook::KexecCmdline => 1 << 11,
            Hook::KeyCheck => 1 << 12,
            Hook::CriticalData => 1 << 13,
            Hook::SetxattrCheck => 1 << 14,
        }
    }

    /// These and `hook`.
    #[must_use]
    pub const fn with(self, hook: Hook) -> Self {
        Self(self.0 | Self::bit(hook))
    }

    /// Those of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These except those of `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `hook` is one of them.
    #[must_use]
    pub const fn contains(self, hook: Hook) -> bool {
        self.0 & Self::bit(hook) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Them, in the kernel's order.
    pub fn iter(self) -> impl Iterator<Item = Hook> {
        Hook::ALL.into_iter().filter(move |&hook| self.contains(hook))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Options;

    fn policy(text: &str) -> Policy {
        Policy::parse(text.as_bytes(), &Options::default()).unwrap()
    }

    #[test]
    fn a_policy_says_which_facts_it_asks_about() {
        for (rules, subject, mask) in [
            ("appraise fowner=0", false, false),
            ("appraise uid=0", true, false),
            ("appraise egid>5", true, false),
            ("appraise\ndont_appraise subj_role=x", true, false),
            ("appraise obj_type=x", false, false),
            ("appraise mask=MAY_READ", false, true),
            // Nothing is measured, so the rule has no say.
            ("appraise\ndont_measure uid=0 mask=^MAY_READ", false, false),
        ] {
            let policy = policy(rules);
            assert_eq!((policy.depends_on_subject(), policy.depends_on_mask()), (subject, mask), "{rules}");
        }
    }

    #[test]
    fn a_policy_says_at_which_hooks_it_does_something() {
        let measure_exec = policy("dont_measure func=FILE_CHECK\nmeasure func=BPRM_CHECK\naudit func=MMAP_CHECK");
        assert_eq!(measure_exec.hooks().iter().collect::<Vec<_>>(), [Hook::MmapCheck, Hook::BprmCheck]);
        assert_eq!(measure_exec.hooks_of(Family::Measure), Hooks::NONE.with(Hook::BprmCheck));
        assert_eq!(policy("appraise fowner=0").hooks(), Hooks::FILES);
        assert_eq!(policy("measure func=KEY_CHECK\nhash").hooks(), Hooks::FILES.with(Hook::KeyCheck));
        assert!(policy("dont_measure").hooks().is_empty());
    }

    #[test]
    fn file_hooks_leave_out_buffers_attributes_and_labels() {
        let others: Vec<_> = Hook::ALL.into_iter().filter(|&hook| !Hooks::FILES.contains(hook)).collect();
        let expected = [Hook::PostSetattr, Hook::KexecCmdline, Hook::KeyCheck, Hook::CriticalData, Hook::SetxattrCheck];
        assert_eq!(others, expected);
        assert_eq!(Hooks::FILES.without(Hooks::NONE.with(Hook::FileCheck)).iter().count(), 9);
    }

    #[test]
    fn the_first_setxattr_rule_names_the_algorithms() {
        let rule = |names| format!("appraise func=SETXATTR_CHECK appraise_algos={names}\n");
        let first = policy(&(rule("sha256,sha512") + &rule("sha1"))).setxattr_algorithms().unwrap();
        assert_eq!(first.iter().map(|a| a.name()).collect::<Vec<_>>(), ["sha256", "sha512"]);
        assert_eq!(policy("appraise appraise_algos=sha1").setxattr_algorithms(), None);
    }
}
