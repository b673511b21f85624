//! The IMA policy: an ordered list of rules, of which the first that matches decides each family of actions.
//!
//! The rule of this room: **text that parses prints back to the same rules; unknown words are errors, never ignored.**
//! (What a kernel itself reads over, the dialect of that kernel reads over too; [`Dialect::Imara`] does not.)
//!
//! ```
//! use imara_integrity::policy::{Options, Policy};
//!
//! let policy = Policy::parse(b"dont_appraise fsmagic=9fa0\nappraise fowner=0\n", &Options::default())?;
//! assert_eq!(policy.to_string(), "dont_appraise fsmagic=0x9fa0\nappraise fowner=0\n");
//! # Ok::<(), imara_integrity::policy::PolicyErrors>(())
//! ```
//!
//! How an access meets the rules: [`Policy::decide`]. What a policy asks for as a whole: [`Policy::hooks`],
//! [`Policy::depends_on_subject`]. The policies that every kernel has: [`Builtins`].
//!
//! Deliberately as in the kernel: the option flags of every rule that decides a family count for the whole access, so
//! `measure … digest_type=verity` and `appraise … appraise_type=imasig` together ask for a signature of an fs-verity digest.
//! Deliberately not: text that is not UTF-8 is refused (a kernel takes it as the name of a file system, keyring or label;
//! none has such a name), and names of LSM labels that are not known are an error, not a rule that never matches.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`; `Documentation/ABI/testing/ima_policy`.

mod action;
mod builtin;
mod decide;
mod decision;
mod dialect;
mod error;
mod foresee;
mod key;
mod lex;
mod matching;
mod parse;
mod query;
mod rule;
mod show;
mod source;
mod underline;
mod validate;
mod value;

pub use action::{Action, Families, Family, Verb};
pub use builtin::{Builtin, Builtins, UnknownBuiltin};
pub use decision::{Appraise, Decided, DecidedBy, Decision, Measure, SubAction};
pub use dialect::{Dialect, Lsm, Options, UnknownDialect};
pub use error::{Expected, PolicyError, PolicyErrors, Problem};
pub use foresee::{Foreseen, OPEN_MASKS, Writers};
pub use key::Key;
pub use query::Hooks;
pub use rule::{Algorithms, Bound, Comparison, Credential, Flags, MaskCondition, MaskMode, Pcr, Rule, Template, Which};
pub use source::{DEFAULT_SOURCE, Source};

use crate::event::Hook;

/// An ordered list of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    /// The line of each rule.
    lines: Vec<usize>,
    /// Families in which some rule asks to do something.
    active: Families,
    fail_securely: bool,
}

impl Policy {
    /// Reads rules, one a line. A text without rules is a policy that asks for nothing.
    ///
    /// # Errors
    /// Everything that is wrong with the text, in one go; of a rule with words that are not understood, only those words.
    pub fn parse(text: &[u8], options: &Options<'_>) -> Result<Self, PolicyErrors> {
        let (rules, lines) = parse::policy(text, options)?;
        Ok(Self::new(rules, lines))
    }

    /// The union of some built-in policies, in the form of the kernel of that dialect.
    #[must_use]
    pub fn builtin(which: Builtins, dialect: Dialect) -> Self {
        let rules = which.rules(dialect);
        let lines = (1..=rules.len()).collect();
        Self { fail_securely: which.contains(Builtin::FailSecurely), ..Self::new(rules, lines) }
    }

    /// The same, where files on file systems that cannot be verified fail appraisal (`fail_securely`).
    #[must_use]
    pub fn fail_securely(self) -> Self {
        Self { fail_securely: true, ..self }
    }

    fn new(rules: Vec<Rule>, lines: Vec<usize>) -> Self {
        // As in the kernel, a SETXATTR_CHECK rule does not switch appraisal on: it is about labels, not about files.
        let doing = |rule: &&Rule| rule.action.verb() == Verb::Do && rule.func != Some(Hook::SetxattrCheck);
        let active = rules.iter().filter(doing).fold(Families::NONE, |all, rule| all.with(rule.action.family()));
        Self { rules, lines, active, fail_securely: false }
    }

    /// How many rules there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The families in which some rule asks to do something.
    #[must_use]
    pub const fn active(&self) -> Families {
        self.active
    }

    /// The rules in order. The text of one is its `Display`.
    pub fn rules(&self) -> impl Iterator<Item = Numbered<'_>> {
        self.numbered().zip(&self.lines).map(|((id, rule), &line)| Numbered { id, line, rule })
    }

    /// One rule.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<Numbered<'_>> {
        let rule = self.rules.get(id.0)?;
        let line = *self.lines.get(id.0)?;
        Some(Numbered { id, line, rule })
    }

    fn numbered(&self) -> impl Iterator<Item = (RuleId, &Rule)> {
        self.rules.iter().enumerate().map(|(index, rule)| (RuleId(index), rule))
    }
}

/// Which rule of its policy, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(usize);

impl RuleId {
    /// Its place among the rules, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// A rule and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered<'a> {
    /// Which rule of its policy.
    pub id: RuleId,
    /// Its line in the text, from 1; for a built-in policy, in the text that it prints as.
    pub line: usize,
    /// The rule.
    pub rule: &'a Rule,
}
