//! One rule as plain data: what it asks for, on which accesses, with which options.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `struct ima_rule_entry`; `Documentation/ABI/testing/ima_policy`.

use std::fmt;

use super::action::Action;
use crate::digest::HashAlgorithm;
use crate::event::{Hook, LsmLabel, Mask};

/// One rule. Only the parser and the built-in policies put rules into a [`Policy`](super::Policy), so every rule found
/// in one has passed the kernel's validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What to do, or not to do.
    pub action: Action,
    /// `func=`: the hook this rule is for; none matches every hook.
    pub func: Option<Hook>,
    /// `mask=`.
    pub mask: Option<MaskCondition>,
    /// `fsmagic=`: superblock magic.
    pub fsmagic: Option<u64>,
    /// `fsname=`: file-system type.
    pub fsname: Option<Box<str>>,
    /// `fs_subtype=`: file-system subtype (Linux 6.19).
    pub fs_subtype: Option<Box<str>>,
    /// `fsuuid=`: superblock UUID, in the order of its text.
    pub fsuuid: Option<[u8; 16]>,
    /// `uid=` or `euid=`: both share one place.
    pub user: Option<Credential>,
    /// `gid=` or `egid=`: both share one place.
    pub group: Option<Credential>,
    /// `fowner=`: the file's owner.
    pub fowner: Option<Bound>,
    /// `fgroup=`: the file's group.
    pub fgroup: Option<Bound>,
    /// `subj_user=`, `subj_role=`, `subj_type=`.
    pub subject: LsmLabel,
    /// `obj_user=`, `obj_role=`, `obj_type=`.
    pub object: LsmLabel,
    /// `keyrings=`, for `KEY_CHECK`; empty matches every keyring.
    pub keyrings: Vec<Box<str>>,
    /// `label=`, for `CRITICAL_DATA`; empty matches every label.
    pub labels: Vec<Box<str>>,
    /// `appraise_type=`, `digest_type=`, `permit_directio`.
    pub flags: Flags,
    /// Whether `appraise_flag=check_blacklist` was written and meant something (before Linux 6.6 only).
    pub blacklist_flag: bool,
    /// `appraise_algos=`: the hash algorithms that a label may use.
    pub algorithms: Option<Algorithms>,
    /// `pcr=`: where the measurement goes, instead of the default.
    pub pcr: Option<Pcr>,
    /// `template=`: the form of the measurement, instead of the default.
    pub template: Option<Template>,
}

impl Rule {
    /// A rule that matches everything.
    pub(super) const fn new(action: Action) -> Self {
        const ANY: LsmLabel = LsmLabel { user: None, role: None, kind: None };
        Self {
            action,
            func: None,
            mask: None,
            fsmagic: None,
            fsname: None,
            fs_subtype: None,
            fsuuid: None,
            user: None,
            group: None,
            fowner: None,
            fgroup: None,
            subject: ANY,
            object: ANY,
            keyrings: Vec::new(),
            labels: Vec::new(),
            flags: Flags::NONE,
            blacklist_flag: false,
            algorithms: None,
            pcr: None,
            template: None,
        }
    }

    /// Whether the answer can depend on who asks.
    #[must_use]
    pub fn asks_for_subject(&self) -> bool {
        self.user.is_some() || self.group.is_some() || has_label(&self.subject)
    }
}

/// Whether any part of an LSM label is given.
pub(super) fn has_label(label: &LsmLabel) -> bool {
    label.user.is_some() || label.role.is_some() || label.kind.is_some()
}

/// A comparison with a user or group id: `=`, `>` or `<`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// How to compare.
    pub comparison: Comparison,
    /// With what; never 4294967295, which is no id.
    pub id: u32,
}

impl Bound {
    /// Whether `id` satisfies it.
    #[must_use]
    pub const fn holds(self, id: u32) -> bool {
        match self.comparison {
            Comparison::Equal => id == self.id,
            Comparison::Above => id > self.id,
            Comparison::Below => id < self.id,
        }
    }
}

/// The sign between key and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `>`
    Above,
    /// `<`
    Below,
}

/// A condition on a user or group id of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Which of the task's ids.
    pub which: Which,
    /// What it must satisfy.
    pub bound: Bound,
}

/// Which id of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `uid=`, `gid=`: the real one.
    Real,
    /// `euid=`, `egid=`: the effective one; with `CAP_SETUID` (`CAP_SETGID`) any of real, effective and saved.
    Effective,
}

/// `mask=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskCondition {
    /// How to compare.
    pub mode: MaskMode,
    /// One bit.
    pub mask: Mask,
}

/// How `mask=` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskMode {
    /// `mask=MAY_X`: the access is exactly that.
    Exact,
    /// `mask=^MAY_X`: the access includes that.
    Includes,
}

/// Option flags of rules; those of all rules that matched one access are united in a
/// [`Decision`](super::Decision), whatever their families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `appraise_type=`: the label must be a signature.
    pub signature_required: bool,
    /// `appraise_type=sigv3`: the signature must have format version 3.
    pub sigv3: bool,
    /// `appraise_type=imasig|modsig`: an appended signature will do.
    pub modsig_allowed: bool,
    /// `digest_type=verity`: the digest is that of fs-verity.
    pub verity: bool,
    /// The digest is looked up in the `.blacklist` keyring.
    pub blacklist: bool,
    /// `permit_directio`: `O_DIRECT` opens are let through unmeasured and unjudged.
    pub permit_directio: bool,
    /// `fail_securely`: files on file systems that cannot be verified fail. No rule says it, the policy does.
    pub fail_unverifiable: bool,
}

impl Flags {
    /// No flag.
    pub const NONE: Self = Self {
        signature_required: false,
        sigv3: false,
        modsig_allowed: false,
        verity: false,
        blacklist: false,
        permit_directio: false,
        fail_unverifiable: false,
    };

    /// The flags of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self {
            signature_required: self.signature_required || other.signature_required,
            sigv3: self.sigv3 || other.sigv3,
            modsig_allowed: self.modsig_allowed || other.modsig_allowed,
            verity: self.verity || other.verity,
            blacklist: self.blacklist || other.blacklist,
            permit_directio: self.permit_directio || other.permit_directio,
            fail_unverifiable: self.fail_unverifiable || other.fail_unverifiable,
        }
    }
}

/// A set of hash algorithms, as `appraise_algos=` names it; bit n stands for the kernel's id n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithms(u32);

impl Algorithms {
    /// No algorithm.
    pub const NONE: Self = Self(0);

    /// Every algorithm that the kernel has an id for.
    #[must_use]
    pub fn all() -> Self {
        HashAlgorithm::ALL.iter().copied().collect()
    }

    /// These and `algorithm`.
    #[must_use]
    pub fn with(self, algorithm: HashAlgorithm) -> Self {
        Self(self.0 | Self::bit(algorithm))
    }

    /// Whether `algorithm` is one of them.
    #[must_use]
    pub fn contains(self, algorithm: HashAlgorithm) -> bool {
        self.0 & Self::bit(algorithm) != 0
    }

    /// Those that are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Them, in the order of the kernel's ids.
    pub fn iter(self) -> impl Iterator<Item = HashAlgorithm> {
        HashAlgorithm::ALL.iter().copied().filter(move |&algorithm| self.contains(algorithm))
    }

    fn bit(algorithm: HashAlgorithm) -> u32 {
        1 << algorithm.id()
    }
}

impl FromIterator<HashAlgorithm> for Algorithms {
    fn from_iter<I: IntoIterator<Item = HashAlgorithm>>(algorithms: I) -> Self {
        algorithms.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Number of a platform configuration register, 0 to 63.
///
/// The kernel's bound is the width of a word, not what a TPM has (24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pcr(u8);

impl Pcr {
    /// The register of that number, if a rule may name it.
    #[must_use]
    pub const fn new(index: u8) -> Option<Self> {
        if index < 64 { Some(Self(index)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn index(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Pcr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A measurement template that `template=` can name, by its name or by its format string.
///
/// Source: Linux `security/integrity/ima/ima_template.c`, `builtin_templates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Template {
    /// `ima`
    Ima,
    /// `ima-ng`
    ImaNg,
    /// `ima-sig`
    ImaSig,
    /// `ima-ngv2`
    ImaNgv2,
    /// `ima-sigv2`
    ImaSigv2,
    /// `ima-buf`
    ImaBuf,
    /// `ima-modsig`
    ImaModsig,
    /// `evm-sig`
    EvmSig,
}

impl Template {
    /// Every template, in the kernel's order.
    pub const ALL: [Self; 8] = [
        Self::Ima,
        Self::ImaNg,
        Self::ImaSig,
        Self::ImaNgv2,
        Self::ImaSigv2,
        Self::ImaBuf,
        Self::ImaModsig,
        Self::EvmSig,
    ];

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ima => "ima",
            Self::ImaNg => "ima-ng",
            Self::ImaSig => "ima-sig",
            Self::ImaNgv2 => "ima-ngv2",
            Self::ImaSigv2 => "ima-sigv2",
            Self::ImaBuf => "ima-buf",
            Self::ImaModsig => "ima-modsig",
            Self::EvmSig => "evm-sig",
        }
    }

    /// The kernel's format string: field names joined by `|`.
    #[must_use]
    pub const fn format(self) -> &'static str {
        match self {
            Self::Ima => "d|n",
            Self::ImaNg => "d-ng|n-ng",
            Self::ImaSig => "d-ng|n-ng|sig",
            Self::ImaNgv2 => "d-ngv2|n-ng",
            Self::ImaSigv2 => "d-ngv2|n-ng|sig",
            Self::ImaBuf => "d-ng|n-ng|buf",
            Self::ImaModsig => "d-ng|n-ng|sig|d-modsig|modsig",
            Self::EvmSig => "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_excludes_its_own_number_above_and_below() {
        for (comparison, below, same, above) in [
            (Comparison::Equal, false, true, false),
            (Comparison::Above, false, false, true),
            (Comparison::Below, true, false, false),
        ] {
            let bound = Bound { comparison, id: 1000 };
            assert_eq!(
                (bound.holds(999), bound.holds(1000), bound.holds(1001)),
                (below, same, above),
                "{comparison:?}"
            );
        }
    }

    #[test]
    fn a_set_of_algorithms_holds_what_was_put_in_and_nothing_else() {
        let sha256: HashAlgorithm = "sha256".parse().unwrap();
        let sha512: HashAlgorithm = "sha512".parse().unwrap();
        let set = Algorithms::NONE.with(sha512).with(sha256);
        assert_eq!(set.iter().collect::<Vec<_>>(), [sha256, sha512]);
        assert_eq!(Algorithms::all().iter().count(), 23);
        assert!(Algorithms::NONE.is_empty() && !set.is_empty());
    }

    #[test]
    fn the_last_register_is_63() {
        assert_eq!(Pcr::new(63).map(Pcr::index), Some(63));
        assert_eq!(Pcr::new(64), None);
    }
}
