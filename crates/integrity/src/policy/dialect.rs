//! Which kernel's language is read, and what that kernel has.

use std::fmt;
use std::str::FromStr;

use super::rule::Algorithms;

/// A version of the rule language. Later ones come later in the order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dialect {
    /// `linux-6.1`
    Linux6_1,
    /// `linux-6.12`
    Linux6_12,
    /// `linux-7.2`
    Linux7_2,
    /// `imara`: the newest kernel's, without what a kernel reads over: text after a NUL byte, letters after a UUID,
    /// an `appraise_flag=` that means nothing.
    #[default]
    Imara,
}

impl Dialect {
    /// Every dialect, oldest first.
    pub const ALL: [Self; 4] = [Self::Linux6_1, Self::Linux6_12, Self::Linux7_2, Self::Imara];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux6_1 => "linux-6.1",
            Self::Linux6_12 => "linux-6.12",
            Self::Linux7_2 => "linux-7.2",
            Self::Imara => "imara",
        }
    }

    pub(super) fn has(self, feature: Feature) -> bool {
        self >= feature.since()
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No dialect has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy dialect (expected linux-6.1, linux-6.12, linux-7.2 or imara)")]
pub struct UnknownDialect;

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Self, UnknownDialect> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == name).ok_or(UnknownDialect)
    }
}

/// What changed from one dialect to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    /// `func=MMAP_CHECK_REQPROT` (Linux 6.3).
    Reqprot,
    /// Every signature rule checks the blacklist; `appraise_flag=` is read over.
    BlacklistAlways,
    /// `dont_audit` (Linux 6.19).
    DontAudit,
    /// `fs_subtype=` (Linux 6.19).
    FsSubtype,
    /// A word that begins with `#` ends the rule (Linux 6.14).
    TrailingComment,
    /// `appraise_type=sigv3` for every kind of digest, in any order with `digest_type=` (Linux 7.1).
    Sigv3Alone,
    /// The built-in `tcb` leaves out tmpfs for `FILE_CHECK` only (Linux 6.14).
    TmpfsExecMeasured,
    /// The built-in `secure_boot` takes modules with an appended signature and checks the blacklist (Linux 6.19).
    ModsigModules,
    /// Nothing is read over.
    Strict,
}

impl Feature {
    const fn since(self) -> Dialect {
        match self {
            Self::Reqprot | Self::BlacklistAlways => Dialect::Linux6_12,
            Self::DontAudit
            | Self::FsSubtype
            | Self::TrailingComment
            | Self::Sigv3Alone
            | Self::TmpfsExecMeasured
            | Self::ModsigModules => Dialect::Linux7_2,
            Self::Strict => Dialect::Imara,
        }
    }
}

/// What a policy is read for.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The language.
    pub dialect: Dialect,
    /// The hash algorithms that are there (`appraise_algos=` may name these only).
    pub algorithms: Algorithms,
    /// Whether appended signatures are supported (`CONFIG_IMA_APPRAISE_MODSIG`).
    pub modsig: bool,
    /// The LSM labels that are there.
    pub lsm: Lsm<'a>,
}

impl Options<'_> {
    /// That dialect, with everything there that a kernel could be built with.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Self { dialect, algorithms: Algorithms::all(), modsig: true, lsm: Lsm::Any }
    }
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self::new(Dialect::default())
    }
}

/// The labels that `subj_…=` and `obj_…=` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lsm<'a> {
    /// Any text.
    Any,
    /// AppArmor with these profiles loaded: it knows `subj_role=PROFILE` and nothing else. Empty: no LSM has labels.
    AppArmor(&'a [&'a str]),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dialect_is_found_by_its_name() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.name().parse(), Ok(dialect));
        }
        assert_eq!("linux-6.2".parse::<Dialect>(), Err(UnknownDialect));
    }
}
