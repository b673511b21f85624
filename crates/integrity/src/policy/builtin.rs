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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Family, Options, Policy};

    const DONT_MEASURE: &str = "dont_measure fsmagic=0x9fa0
dont_measure fsmagic=0x62656572
dont_measure fsmagic=0x64626720
dont_measure fsmagic=0x1021994
dont_measure fsmagic=0x1cd1
dont_measure fsmagic=0x42494e4d
dont_measure fsmagic=0x73636673
dont_measure fsmagic=0xf97cff8c
dont_measure fsmagic=0x43415d53
dont_measure fsmagic=0x27e0eb
dont_measure fsmagic=0x63677270
dont_measure fsmagic=0x6e736673
dont_measure fsmagic=0xde5e81e4
";

    fn text(names: &str, dialect: Dialect) -> String {
        Policy::builtin(names.parse().unwrap(), dialect).to_string()
    }

    #[test]
    fn each_built_in_policy_has_the_kernels_rules() {
        let appraise_tcb = DONT_MEASURE.replace("dont_measure", "dont_appraise")
            + "dont_appraise fsmagic=0x858458f6\nappraise fowner=0\n";
        let tcb = "measure func=MMAP_CHECK mask=MAY_EXEC
measure func=BPRM_CHECK mask=MAY_EXEC
measure func=FILE_CHECK mask=^MAY_READ euid=0
measure func=FILE_CHECK mask=^MAY_READ uid=0
measure func=MODULE_CHECK
measure func=FIRMWARE_CHECK
measure func=POLICY_CHECK
";
        let ima_tcb = "measure func=MMAP_CHECK mask=MAY_EXEC
measure func=BPRM_CHECK mask=MAY_EXEC
measure func=FILE_CHECK mask=MAY_READ uid=0
measure func=MODULE_CHECK
measure func=FIRMWARE_CHECK
";
        let secure_boot = "appraise func=MODULE_CHECK appraise_type=imasig
appraise func=FIRMWARE_CHECK appraise_type=imasig
appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig
appraise func=POLICY_CHECK appraise_type=imasig
";
        let critical = "measure func=CRITICAL_DATA\n";
        for (names, expected) in [
            ("tcb", [DONT_MEASURE, tcb].concat()),
            ("ima_tcb", [DONT_MEASURE, ima_tcb].concat()),
            ("appraise_tcb", appraise_tcb.clone()),
            ("ima_appraise_tcb", appraise_tcb.clone()),
            ("secure_boot", secure_boot.to_owned()),
            ("critical_data", critical.to_owned()),
            ("fail_securely", String::new()),
            // Assembled in the kernel's order, whatever the order of the names; of the two tcb the first counts.
            (
                "critical_data|appraise_tcb|ima_tcb|secure_boot|tcb",
                [DONT_MEASURE, ima_tcb, secure_boot, &*appraise_tcb, critical].concat(),
            ),
        ] {
            assert_eq!(text(names, Dialect::Linux6_12), expected, "{names}");
        }
    }

    #[test]
    fn newer_kernels_measure_programs_on_tmpfs_and_take_modules_with_appended_signatures() {
        let tcb = text("tcb", Dialect::Linux7_2);
        assert!(tcb.contains("dont_measure func=FILE_CHECK fsmagic=0x1021994\n"), "{tcb}");
        assert_eq!(tcb.matches("func=FILE_CHECK fsmagic").count(), 1);
        let modules = text("secure_boot", Dialect::Linux7_2);
        assert!(modules.starts_with("appraise func=MODULE_CHECK appraise_type=imasig|modsig\n"), "{modules}");
    }

    #[test]
    fn built_in_signature_rules_do_not_look_at_the_blacklist() {
        let blacklist = |dialect| {
            let policy = Policy::builtin(Builtin::SecureBoot.into(), dialect);
            policy.rules().map(|numbered| numbered.rule.flags.blacklist).collect::<Vec<_>>()
        };
        assert_eq!(blacklist(Dialect::Linux6_12), [false; 4]);
        assert_eq!(blacklist(Dialect::Linux7_2), [true, false, false, false]);
    }

    #[test]
    fn the_text_of_a_built_in_policy_is_a_policy_of_the_same_text() {
        for builtin in Builtin::ALL {
            for dialect in Dialect::ALL {
                let policy = Policy::builtin(builtin.into(), dialect);
                let read = Policy::parse(policy.to_string().as_bytes(), &Options::new(dialect)).unwrap();
                assert_eq!(read.to_string(), policy.to_string());
                assert_eq!(read.active(), policy.active());
                let lines = |policy: &Policy| policy.rules().map(|numbered| numbered.line).collect::<Vec<_>>();
                assert_eq!(lines(&read), lines(&policy));
            }
        }
    }

    #[test]
    fn only_fail_securely_fails_what_cannot_be_verified() {
        let plain = Policy::builtin("appraise_tcb".parse().unwrap(), Dialect::Linux6_12);
        let secure = Policy::builtin("appraise_tcb|fail_securely".parse().unwrap(), Dialect::Linux6_12);
        assert_eq!(plain.clone().fail_securely(), secure);
        assert_ne!(plain, secure);
        assert!(secure.active().contains(Family::Appraise));
    }

    #[test]
    fn names_are_joined_by_bars_or_blanks_and_unknown_ones_are_errors() {
        let both = Builtins::NONE.with(Builtin::Tcb).with(Builtin::AppraiseTcb);
        for names in ["tcb|appraise_tcb", "appraise_tcb tcb", "tcb|ima_tcb|appraise_tcb"] {
            assert_eq!(names.parse(), Ok(both), "{names}");
        }
        assert_eq!(both.to_string(), "tcb|appraise_tcb");
        for (names, found) in [("", ""), ("tcb|", ""), ("tcb|appraise-tcb", "appraise-tcb"), ("TCB", "TCB")] {
            assert_eq!(names.parse::<Builtins>(), Err(UnknownBuiltin { found: found.to_owned() }), "{names}");
        }
    }
}
