//! The policies that every kernel has, as `ima_policy=` names them.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_init_policy()` and the tables above it.

use std::fmt;
use std::str::FromStr;

use super::action::Action;
use super::dialect::{Dialect, Feature};
use super::rule::{Bound, Comparison, Credential, Flags, MaskCondition, MaskMode, Rule, Which};
use crate::event::{Hook, Mask};

/// One built-in policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Builtin {
    /// `tcb`: measure what root reads, executes and maps, and what the kernel loads.
    Tcb,
    /// `ima_tcb`, the older one: as `tcb`, but only files that root opens for nothing but reading, and no policies.
    ImaTcb,
    /// `appraise_tcb` (as a boot parameter also `ima_appraise_tcb`): appraise all files that root owns.
    AppraiseTcb,
    /// `secure_boot`: what the kernel loads must be signed.
    SecureBoot,
    /// `critical_data`: measure the kernel's critical data.
    CriticalData,
    /// `fail_securely`: no rule; files on file systems that cannot be verified fail.
    FailSecurely,
}

impl Builtin {
    /// Every built-in policy.
    pub const ALL: [Self; 6] =
        [Self::Tcb, Self::ImaTcb, Self::AppraiseTcb, Self::SecureBoot, Self::CriticalData, Self::FailSecurely];

    /// The kernel's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcb => "tcb",
            Self::ImaTcb => "ima_tcb",
            Self::AppraiseTcb => "appraise_tcb",
            Self::SecureBoot => "secure_boot",
            Self::CriticalData => "critical_data",
            Self::FailSecurely => "fail_securely",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Tcb => 1,
            Self::ImaTcb => 1 << 1,
            Self::AppraiseTcb => 1 << 2,
            Self::SecureBoot => 1 << 3,
            Self::CriticalData => 1 << 4,
            Self::FailSecurely => 1 << 5,
        }
    }
}

impl fmt::Display for Builtin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No built-in policy has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown built-in policy \"{found}\" (expected tcb, ima_tcb, appraise_tcb, secure_boot, critical_data or fail_securely)"
)]
pub struct UnknownBuiltin {
    /// The name.
    pub found: String,
}

impl FromStr for Builtin {
    type Err = UnknownBuiltin;

    fn from_str(name: &str) -> Result<Self, UnknownBuiltin> {
        if name == "ima_appraise_tcb" {
            return Ok(Self::AppraiseTcb);
        }
        let found = Self::ALL.into_iter().find(|builtin| builtin.name() == name);
        found.ok_or_else(|| UnknownBuiltin { found: name.to_owned() })
    }
}

/// Some built-in policies together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Builtins(u8);

impl Builtins {
    /// None.
    pub const NONE: Self = Self(0);

    /// These and `builtin`. Of `tcb` and `ima_tcb` the first stays, as on the kernel's command line.
    #[must_use]
    pub const fn with(self, builtin: Builtin) -> Self {
        let tcb_taken = self.contains(Builtin::Tcb) || self.contains(Builtin::ImaTcb);
        if tcb_taken && matches!(builtin, Builtin::Tcb | Builtin::ImaTcb) { self } else { Self(self.0 | builtin.bit()) }
    }

    /// Whether `builtin` is one of them.
    #[must_use]
    pub const fn contains(self, builtin: Builtin) -> bool {
        self.0 & builtin.bit() != 0
    }

    /// Their rules, in the kernel's order of assembly.
    pub(super) fn rules(self, dialect: Dialect) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.contains(Builtin::Tcb) || self.contains(Builtin::ImaTcb) {
            let tmpfs_func = dialect.has(Feature::TmpfsExecMeasured).then_some(Hook::FileCheck);
            rules.extend(PSEUDO_FILE_SYSTEMS.map(|magic| Rule {
                fsmagic: Some(magic),
                func: tmpfs_func.filter(|_| magic == TMPFS),
                ..Rule::new(Action::DontMeasure)
            }));
        }
        if self.contains(Builtin::Tcb) {
            rules.extend(tcb());
        } else if self.contains(Builtin::ImaTcb) {
            rules.extend(ima_tcb());
        }
        if self.contains(Builtin::SecureBoot) {
            rules.extend(secure_boot(dialect));
        }
        if self.contains(Builtin::AppraiseTcb) {
            rules.extend(appraise_tcb());
        }
        if self.contains(Builtin::CriticalData) {
            rules.push(with_func(Action::Measure, Hook::CriticalData));
        }
        rules
    }
}

impl FromIterator<Builtin> for Builtins {
    fn from_iter<I: IntoIterator<Item = Builtin>>(builtins: I) -> Self {
        builtins.into_iter().fold(Self::NONE, Self::with)
    }
}

impl From<Builtin> for Builtins {
    fn from(builtin: Builtin) -> Self {
        Self::NONE.with(builtin)
    }
}

impl FromStr for Builtins {
    type Err = UnknownBuiltin;

    /// Names joined by `|` or blanks, as after `ima_policy=`.
    ///
    /// # Errors
    /// The first name that is none (a kernel would log it and go on); an empty text is one.
    fn from_str(names: &str) -> Result<Self, UnknownBuiltin> {
        names.split(['|', ' ']).map(str::parse).collect()
    }
}

impl fmt::Display for Builtins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Builtin::ALL.into_iter().filter(|&b| self.contains(b)).map(Builtin::name).collect();
        f.write_str(&names.join("|"))
    }
}

const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// File systems whose files have no stable contents: `include/uapi/linux/magic.h`.
const PSEUDO_FILE_SYSTEMS: [u64; 13] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    TMPFS,
    0x1cd1,      // devpts
    0x4249_4e4d, // binfmt_misc
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6e73_6673, // nsfs
    0xde5e_81e4, // efivarfs
];

const ROOT: Bound = Bound { comparison: Comparison::Equal, id: 0 };

fn with_func(action: Action, hook: Hook) -> Rule {
    Rule { func: Some(hook), ..Rule::new(action) }
}

fn measure(hook: Hook, mode: MaskMode, mask: Mask, who: Option<Which>) -> Rule {
    let user = who.map(|which| Credential { which, bound: ROOT });
    Rule { mask: Some(MaskCondition { mode, mask }), user, ..with_func(Action::Measure, hook) }
}

fn tcb() -> [Rule; 7] {
    [
        measure(Hook::MmapCheck, MaskMode::Exact, Mask::EXEC, None),
        measure(Hook::BprmCheck, MaskMode::Exact, Mask::EXEC, None),
        measure(Hook::FileCheck, MaskMode::Includes, Mask::READ, Some(Which::Effective)),
        measure(Hook::FileCheck, MaskMode::Includes, Mask::READ, Some(Which::Real)),
        with_func(Action::Measure, Hook::ModuleCheck),
        with_func(Action::Measure, Hook::FirmwareCheck),
        with_func(Action::Measure, Hook::PolicyCheck),
    ]
}

fn ima_tcb() -> [Rule; 5] {
    [
        measure(Hook::MmapCheck, MaskMode::Exact, Mask::EXEC, None),
        measure(Hook::BprmCheck, MaskMode::Exact, Mask::EXEC, None),
        measure(Hook::FileCheck, MaskMode::Exact, Mask::READ, Some(Which::Real)),
        with_func(Action::Measure, Hook::ModuleCheck),
        with_func(Action::Measure, Hook::FirmwareCheck),
    ]
}

fn secure_boot(dialect: Dialect) -> [Rule; 4] {
    // Unlike written rules, these do not set the blacklist flag, except the newer one for modules.
    let signed = Flags { signature_required: true, ..Flags::NONE };
    let newer = Flags { modsig_allowed: true, blacklist: true, ..signed };
    let modules = if dialect.has(Feature::ModsigModules) { newer } else { signed };
    let rule = |hook, flags| Rule { flags, ..with_func(Action::Appraise, hook) };
    [
        rule(Hook::ModuleCheck, modules),
        rule(Hook::FirmwareCheck, signed),
        rule(Hook::KexecKernelCheck, signed),
        rule(Hook::PolicyCheck, signed),
    ]
}

fn appraise_tcb() -> impl Iterator<Item = Rule> {
    let skipped = PSEUDO_FILE_SYSTEMS.into_iter().chain([RAMFS]);
    let skip = skipped.map(|magic| Rule { fsmagic: Some(magic), ..Rule::new(Action::DontAppraise) });
    skip.chain([Rule { fowner: Some(ROOT), ..Rule::new(Action::Appraise) }])
}
