//! Text to rules: one line is one rule, every word of it is understood or an error.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_parse_rule()`.

use super::action::Action;
use super::dialect::{Feature, Options};
use super::error::{Expected, PolicyError, PolicyErrors, Problem};
use super::key::{self, Key, Parts};
use super::lex::{self, Word};
use super::rule::Rule;
use super::{validate, value};

/// Rules, and the line of each; or everything that is wrong.
pub(super) fn policy(text: &[u8], options: &Options<'_>) -> Result<(Vec<Rule>, Vec<usize>), PolicyErrors> {
    let mut errors = PolicyErrors::new();
    let (mut rules, mut numbers) = (Vec::new(), Vec::new());
    for line in lex::lines(text) {
        let mut words = lex::words(line.text).peekable();
        if words.peek().is_some_and(|word| word.bytes.starts_with(b"#")) {
            continue;
        }
        let mut reader = Reader::new(line.number, options, &mut errors);
        if line.nul && options.dialect.has(Feature::Strict) {
            let before = Word { column: 1, bytes: line.text };
            reader.fail(before, Problem::Nul, Expected::Phrase("text only"));
        }
        if words.peek().is_none() {
            continue;
        }
        if let Some(rule) = reader.rule(words) {
            rules.push(rule);
            numbers.push(line.number);
        }
    }
    if errors.count() == 0 { Ok((rules, numbers)) } else { Err(errors) }
}

/// Reads one rule.
pub(super) struct Reader<'a, 'o> {
    pub(super) options: &'o Options<'o>,
    pub(super) rule: Rule,
    /// The action, once it was seen.
    pub(super) action: Option<(Action, Word<'a>)>,
    /// Each key that was taken, with what to point at.
    pub(super) seen: Vec<(Key, Word<'a>)>,
    line: usize,
    errors: &'o mut PolicyErrors,
    errors_before: usize,
}

impl<'a, 'o> Reader<'a, 'o> {
    fn new(line: usize, options: &'o Options<'o>, errors: &'o mut PolicyErrors) -> Self {
        let errors_before = errors.count();
        // Stands for "no action yet"; a rule without one is never handed out.
        let rule = Rule::new(Action::Measure);
        Self { options, rule, action: None, seen: Vec::new(), line, errors, errors_before }
    }

    fn rule(mut self, words: impl Iterator<Item = Word<'a>>) -> Option<Rule> {
        let mut span: Option<(Word<'a>, usize)> = None;
        for word in words {
            if word.bytes.starts_with(b"#") && self.options.dialect.has(Feature::TrailingComment) {
                break;
            }
            span = Some((span.map_or(word, |(first, _)| first), word.column + word.bytes.len()));
            self.word(word);
        }
        let (first, _) = span?;
        if self.action.is_none() {
            let actions = key::action_words(self.options.dialect);
            // Without this a misspelled action would be reported twice.
            if !self.failed() {
                self.fail(first, Problem::NoAction, Expected::Words(actions));
            }
        }
        if !self.failed() {
            validate::rule(&mut self);
        }
        (!self.failed()).then_some(self.rule)
    }

    fn word(&mut self, word: Word<'a>) {
        match key::take_apart(word.bytes) {
            Parts::Action(action) => self.action(action, word),
            Parts::Flag => {
                self.rule.flags.permit_directio = true;
                self.saw(Key::PermitDirectio, word);
            }
            Parts::Value { key, .. } if !key.is_in(self.options.dialect) => self.not_in_dialect(word, self.words()),
            Parts::Value { key, value: b"", .. } => self.fail(word, Problem::NoValue(key), Expected::Nothing),
            Parts::Value { key, sign, value } => value::take(self, key, sign, word, value),
            Parts::Unknown => self.unknown_word(word),
        }
    }

    fn action(&mut self, action: Action, word: Word<'a>) {
        if action == Action::DontAudit && !self.options.dialect.has(Feature::DontAudit) {
            self.not_in_dialect(word, key::action_words(self.options.dialect));
        } else if self.action.is_some() {
            self.fail(word, Problem::SecondAction, Expected::Words(key::key_words(self.options.dialect)));
        } else {
            self.rule.action = action;
            self.action = Some((action, word));
        }
    }

    /// The words that can stand here.
    fn words(&self) -> Vec<&'static str> {
        let actions = if self.action.is_none() { key::action_words(self.options.dialect) } else { Vec::new() };
        actions.into_iter().chain(key::key_words(self.options.dialect)).collect()
    }

    fn unknown_word(&mut self, word: Word<'a>) {
        let words = self.words();
        let name = key::split_at_sign(word.bytes)
            .map_or(word.bytes, |(name, _, rest)| word.bytes.strip_suffix(rest).unwrap_or(name));
        let nearest = lex::nearest(name, &words);
        self.report(word, Problem::UnknownWord, Expected::Words(words), nearest);
    }

    pub(super) fn not_in_dialect(&mut self, at: Word<'a>, words: Vec<&'static str>) {
        self.report(at, Problem::NotInDialect(self.options.dialect), Expected::Words(words), None);
    }

    pub(super) fn fail(&mut self, at: Word<'a>, problem: Problem, expected: Expected) {
        let nearest = match (&expected, problem) {
            (Expected::Words(words), Problem::UnknownValue(_) | Problem::UnavailableAlgorithm) => {
                lex::nearest(at.bytes, words)
            }
            _ => None,
        };
        self.report(at, problem, expected, nearest);
    }

    fn report(&mut self, at: Word<'a>, problem: Problem, expected: Expected, nearest: Option<&'static str>) {
        let Word { column, bytes } = at;
        let line = self.line;
        self.errors.push(|| PolicyError {
            line,
            column,
            length: bytes.len(),
            found: bytes.into(),
            problem,
            expected,
            nearest,
        });
    }

    fn failed(&self) -> bool {
        self.errors.count() > self.errors_before
    }

    pub(super) fn saw(&mut self, key: Key, at: Word<'a>) {
        self.seen.push((key, at));
    }
}
