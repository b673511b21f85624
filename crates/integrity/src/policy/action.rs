//! What rules ask for, or rule out, in four families.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `MEASURE`, `DONT_MEASURE`, ….

use std::fmt;

/// The first word of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// `measure`
    Measure,
    /// `dont_measure`
    DontMeasure,
    /// `appraise`
    Appraise,
    /// `dont_appraise`
    DontAppraise,
    /// `audit`
    Audit,
    /// `dont_audit` (Linux 6.19)
    DontAudit,
    /// `hash`
    Hash,
    /// `dont_hash`
    DontHash,
}

impl Action {
    /// Every action, in the kernel's order.
    pub const ALL: [Self; 8] = [
        Self::Measure,
        Self::DontMeasure,
        Self::Appraise,
        Self::DontAppraise,
        Self::Audit,
        Self::DontAudit,
        Self::Hash,
        Self::DontHash,
    ];

    /// The word in a rule.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measure => "measure",
            Self::DontMeasure => "dont_measure",
            Self::Appraise => "appraise",
            Self::DontAppraise => "dont_appraise",
            Self::Audit => "audit",
            Self::DontAudit => "dont_audit",
            Self::Hash => "hash",
            Self::DontHash => "dont_hash",
        }
    }

    /// What it decides about.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Measure | Self::DontMeasure => Family::Measure,
            Self::Appraise | Self::DontAppraise => Family::Appraise,
            Self::Audit | Self::DontAudit => Family::Audit,
            Self::Hash | Self::DontHash => Family::Hash,
        }
    }

    /// How it decides.
    #[must_use]
    pub const fn verb(self) -> Verb {
        match self {
            Self::Measure | Self::Appraise | Self::Audit | Self::Hash => Verb::Do,
            Self::DontMeasure | Self::DontAppraise | Self::DontAudit | Self::DontHash => Verb::Dont,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What rules decide about; the first matching rule of each family decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Whether the access goes into the measurement list.
    Measure,
    /// Whether the file's label is judged.
    Appraise,
    /// Whether an audit record with the file's hash is made.
    Audit,
    /// Whether the file's hash is stored as a label at its last close.
    Hash,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Measure, Self::Appraise, Self::Audit, Self::Hash];
}

/// Whether a rule asks for its family's action or rules it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Do it.
    Do,
    /// `dont_`: stop looking.
    Dont,
}

/// Some of the four families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Families(u8);

impl Families {
    /// No family.
    pub const NONE: Self = Self(0);
    /// All four.
    pub const ALL: Self = Self(0b1111);

    const fn bit(family: Family) -> u8 {
        match family {
            Family::Measure => 1,
            Family::Appraise => 2,
            Family::Audit => 4,
            Family::Hash => 8,
        }
    }

    /// These and `family`.
    #[must_use]
    pub const fn with(self, family: Family) -> Self {
        Self(self.0 | Self::bit(family))
    }

    /// These except `family`.
    #[must_use]
    pub const fn without(self, family: Family) -> Self {
        Self(self.0 & !Self::bit(family))
    }

    /// Those that are in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether `family` is one of them.
    #[must_use]
    pub const fn contains(self, family: Family) -> bool {
        self.0 & Self::bit(family) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_pairs_with_its_opposite_in_one_family() {
        for pair in Action::ALL.chunks(2) {
            assert_eq!(pair[0].family(), pair[1].family());
            assert_eq!((pair[0].verb(), pair[1].verb()), (Verb::Do, Verb::Dont));
            assert_eq!(format!("dont_{}", pair[0]), pair[1].name());
        }
    }

    #[test]
    fn families_can_be_taken_out_one_by_one() {
        let mut left = Families::ALL;
        for family in Family::ALL {
            assert!(left.contains(family));
            left = left.without(family);
            assert!(!left.contains(family));
        }
        assert!(left.is_empty());
        assert_eq!(Families::NONE.with(Family::Audit).intersection(Families::ALL), Families::NONE.with(Family::Audit));
    }
}
