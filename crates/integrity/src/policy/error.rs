//! What is wrong with a policy: all of it in one run, each with its place, what was found and what was expected.

use std::fmt;

use super::action::Action;
use super::dialect::Dialect;
use super::key::Key;
use crate::event::Hook;

/// Everything that is wrong with a policy, in the order of its text; at least one error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    errors: Vec<PolicyError>,
    omitted: usize,
}

impl PolicyErrors {
    /// No more than this many are kept, so that junk cannot make an answer much larger than itself.
    pub const MAX: usize = 100;

    pub(super) const fn new() -> Self {
        Self { errors: Vec::new(), omitted: 0 }
    }

    pub(super) fn push(&mut self, error: impl FnOnce() -> PolicyError) {
        if self.errors.len() < Self::MAX {
            self.errors.push(error());
        } else {
            self.omitted += 1;
        }
    }

    /// How many there are, kept or not.
    pub(super) const fn count(&self) -> usize {
        self.errors.len() + self.omitted
    }

    /// The first [`MAX`](Self::MAX) of them.
    pub fn iter(&self) -> std::slice::Iter<'_, PolicyError> {
        self.errors.iter()
    }

    /// How many more there are.
    #[must_use]
    pub const fn omitted(&self) -> usize {
        self.omitted
    }
}

impl<'a> IntoIterator for &'a PolicyErrors {
    type Item = &'a PolicyError;
    type IntoIter = std::slice::Iter<'a, PolicyError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for PolicyErrors {
    /// One line for each error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\npolicy: {} more errors", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// One thing that is wrong.
///
/// ```
/// use imara_integrity::policy::{Options, Policy};
/// let errors = Policy::parse(b"appraise func=FILE_CHEK", &Options::default()).unwrap_err();
/// assert_eq!(
///     errors.to_string(),
///     "policy line 1, column 15: unknown func \"FILE_CHEK\" \
///      (expected FILE_CHECK, MMAP_CHECK, MMAP_CHECK_REQPROT, …; did you mean FILE_CHECK?)"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// From 1.
    pub line: usize,
    /// Of the first byte of what was found, from 1, in bytes.
    pub column: usize,
    /// Of what was found, in bytes.
    pub length: usize,
    /// What was found.
    pub found: Box<[u8]>,
    /// What is wrong with it.
    pub problem: Problem,
    /// What could have stood there.
    pub expected: Expected,
    /// The expected word that is spelled most like it, if one is near.
    pub nearest: Option<&'static str>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// Not a word of the language.
    UnknownWord,
    /// Not a value of this key.
    UnknownValue(Key),
    /// A word or value of another dialect than this one.
    NotInDialect(Dialect),
    /// A key without a value.
    NoValue(Key),
    /// An empty item in a list.
    EmptyItem(Key),
    /// Not UTF-8. A kernel would take such a name; nothing has one.
    NotText,
    /// A NUL byte. A kernel would not read on.
    Nul,
    /// Not a number.
    NotANumber(Key),
    /// A number that is too large or too small.
    OutOfRange(Key),
    /// A hash algorithm that the kernel knows but does not have.
    UnavailableAlgorithm,
    /// A label that no LSM knows.
    UnknownLabel(Key),
    /// What may stand once stands twice.
    Repeated(Key),
    /// The first key after the second, which uses the same place in a rule.
    SharesPlace(Key, Key),
    /// A second action in one rule.
    SecondAction,
    /// No action.
    NoAction,
    /// A key that is for this action only.
    NeedsAction(Key, Action),
    /// A key that may not stand with this hook; without a hook, one that needs another.
    NotWithFunc(Key, Option<Hook>),
    /// An action that may not stand with this hook.
    ActionNotWithFunc(Hook),
    /// A value that may not stand after what came before.
    Contradiction(Key),
    /// Something that must stand in the rule is not there.
    Missing(Key),
}

/// What could have stood there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing can be said.
    Nothing,
    /// One of these words.
    Words(Vec<&'static str>),
    /// Something of this description.
    Phrase(&'static str),
}

/// How many words of a long list are shown.
const SHOWN_WORDS: usize = 3;

/// How much of what was found is shown.
const SHOWN_BYTES: usize = 80;

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy line {}, column {}: ", self.line, self.column)?;
        self.fmt_problem(f)?;
        match &self.expected {
            Expected::Nothing => return Ok(()),
            Expected::Phrase(phrase) => write!(f, " (expected {phrase}")?,
            Expected::Words(words) => {
                f.write_str(" (expected ")?;
                // A list that is longer by one word only is not worth cutting.
                let shown = if words.len() <= SHOWN_WORDS + 1 { words.len() } else { SHOWN_WORDS };
                for (index, word) in words.iter().take(shown).enumerate() {
                    write!(f, "{}{word}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str(if shown < words.len() { ", …" } else { "" })?;
            }
        }
        if let Some(nearest) = self.nearest {
            write!(f, "; did you mean {nearest}?")?;
        }
        f.write_str(")")
    }
}

impl PolicyError {
    fn fmt_problem(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Quoted(&self.found);
        match self.problem {
            Problem::UnknownWord => write!(f, "unknown word {found}"),
            Problem::UnknownValue(key) => write!(f, "unknown {key} {found}"),
            Problem::NotInDialect(dialect) => write!(f, "{found} is not known to {dialect}"),
            Problem::NoValue(_) => write!(f, "{found} without a value"),
            Problem::EmptyItem(key) => write!(f, "empty item in {key} {found}"),
            Problem::NotText => write!(f, "{found} is not UTF-8 text"),
            Problem::Nul => write!(f, "NUL byte after {found}"),
            Problem::NotANumber(key) => write!(f, "{key} {found} is not a number"),
            Problem::OutOfRange(key) => write!(f, "{key} {found} is out of range"),
            Problem::UnavailableAlgorithm => write!(f, "hash algorithm {found} is not available"),
            Problem::UnknownLabel(key) => write!(f, "{key} {found} is not known to the security module"),
            Problem::Repeated(key) => write!(f, "second {key} {found} in one rule"),
            Problem::SharesPlace(key, other) => write!(f, "{key} {found} in a rule that has {other}"),
            Problem::SecondAction => write!(f, "second action {found} in one rule"),
            Problem::NoAction => write!(f, "no action in the rule {found}"),
            Problem::NeedsAction(_, action) => write!(f, "{found} in a rule whose action is not {action}"),
            Problem::NotWithFunc(_, Some(hook)) => write!(f, "{found} in a rule with func={hook}"),
            Problem::NotWithFunc(_, None) => write!(f, "{found} in a rule without func="),
            Problem::ActionNotWithFunc(hook) => write!(f, "{found} in a rule with func={hook}"),
            Problem::Contradiction(key) => write!(f, "{key} {found} contradicts what stands before it"),
            Problem::Missing(key) => write!(f, "{found} without {}", key.word()),
        }
    }
}

/// Bytes between quotation marks, escaped and cut if long.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_at_checked(SHOWN_BYTES) {
            Some((start, rest)) if !rest.is_empty() => write!(f, "\"{}…\"", start.escape_ascii()),
            Some(_) | None => write!(f, "\"{}\"", self.0.escape_ascii()),
        }
    }
}
