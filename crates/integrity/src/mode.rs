//! What the administrator has set: what happens to files that do not pass, and how new labels are made.

use std::fmt;
use std::str::FromStr;

use crate::digest::HashAlgorithm;

/// What appraisal does about a file that does not pass; the kernel's `ima_appraise=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing is judged.
    Off,
    /// Judged and logged, never denied.
    Log,
    /// Judged, logged, and the label is written anew; never denied.
    Fix,
    /// Judged, logged, denied.
    #[default]
    Enforce,
}

impl Mode {
    /// Every mode, weakest first.
    pub const ALL: [Self; 4] = [Self::Off, Self::Log, Self::Fix, Self::Enforce];

    /// The kernel's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Fix => "fix",
            Self::Enforce => "enforce",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No mode has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {found:?} (expected enforce, log, fix or off)")]
pub struct UnknownMode {
    found: String,
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| UnknownMode { found: name.to_owned() })
    }
}

/// What the administrator has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What happens to files that do not pass.
    pub mode: Mode,
    /// The algorithm of new labels, and of files whose label names none; the kernel's `ima_hash=`.
    pub hash: HashAlgorithm,
}
