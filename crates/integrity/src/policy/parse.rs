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
        if let Some(rule) = reader.rule(line.text, words) {
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
    /// Whether there was a word that could have been meant for the action.
    unknown: bool,
    line: usize,
    errors: &'o mut PolicyErrors,
    errors_before: usize,
}

impl<'a, 'o> Reader<'a, 'o> {
    fn new(line: usize, options: &'o Options<'o>, errors: &'o mut PolicyErrors) -> Self {
        let errors_before = errors.count();
        // Stands for "no action yet"; a rule without one is never handed out.
        let rule = Rule::new(Action::Measure);
        Self { options, rule, action: None, seen: Vec::new(), unknown: false, line, errors, errors_before }
    }

    fn rule(mut self, text: &'a [u8], words: impl Iterator<Item = Word<'a>>) -> Option<Rule> {
        for word in words {
            if word.bytes.starts_with(b"#") && self.options.dialect.has(Feature::TrailingComment) {
                break;
            }
            self.word(word);
        }
        // An unknown word may well be the action, so it is not reported as missing besides.
        if self.action.is_none() && !self.unknown {
            let text = text.trim_ascii_end();
            let whole = Word { column: 1, bytes: text }.tail(text.trim_ascii_start());
            self.fail(whole, Problem::NoAction, Expected::Words(key::action_words(self.options.dialect)));
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
            self.unknown = true;
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
        self.unknown = true;
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

#[cfg(test)]
mod tests {
    use crate::policy::{Algorithms, Dialect, Lsm, Options, Policy, PolicyErrors};

    /// 6.12 without appended signatures, with sha256 only and no LSM.
    fn bare() -> Options<'static> {
        let algorithms = Algorithms::NONE.with("sha256".parse().unwrap());
        Options { algorithms, modsig: false, lsm: Lsm::AppArmor(&[]), ..Options::new(Dialect::Linux6_12) }
    }

    /// Each rule is refused: at which column, and with which words.
    fn refused(cases: &[(&str, usize, &str)]) {
        for (rule, column, message) in cases {
            let text = format!("# a comment\n{rule}\nmeasure\n");
            let errors = Policy::parse(text.as_bytes(), &bare()).unwrap_err();
            assert_eq!(errors.to_string(), format!("policy line 2, column {column}: {message}"), "{rule}");
        }
    }

    #[test]
    fn a_word_that_is_none_is_named_with_its_place_and_what_was_expected() {
        let funcs = "(expected FILE_CHECK, MMAP_CHECK, MMAP_CHECK_REQPROT, …";
        let keys = "(expected func=, mask=, fsmagic=, …";
        refused(&[
            ("appraise func=FILE_CHEK", 15, &format!("unknown func \"FILE_CHEK\" {funcs}; did you mean FILE_CHECK?)")),
            ("appraise func=XYZ", 15, &format!("unknown func \"XYZ\" {funcs})")),
            (
                "apraise",
                1,
                "unknown word \"apraise\" (expected measure, dont_measure, appraise, …; did you mean appraise?)",
            ),
            ("audit fnc=X", 7, &format!("unknown word \"fnc=X\" {keys}; did you mean func=?)")),
            ("audit FUNC=X", 7, &format!("unknown word \"FUNC=X\" {keys}; did you mean func=?)")),
            ("audit uid!=0", 7, &format!("unknown word \"uid!=0\" {keys}; did you mean uid=?)")),
            ("audit func>X", 7, &format!("unknown word \"func>X\" {keys}; did you mean func=?)")),
            ("audit uid=", 7, "\"uid=\" without a value"),
            (
                "  dont_audit",
                3,
                "\"dont_audit\" is not known to linux-6.12 (expected measure, dont_measure, appraise, …)",
            ),
            ("audit fs_subtype=a", 7, &format!("\"fs_subtype=a\" is not known to linux-6.12 {keys})")),
            ("audit audit", 7, &format!("second action \"audit\" in one rule {keys})")),
            (
                " func=FILE_CHECK ",
                2,
                "no action in the rule \"func=FILE_CHECK\" (expected measure, dont_measure, appraise, …)",
            ),
            (
                "measure func=FILE_CHECK\r",
                14,
                &format!("unknown func \"FILE_CHECK\\r\" {funcs}; did you mean FILE_CHECK?)"),
            ),
        ]);
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_its_place_and_what_was_expected() {
        let ids = "(expected a decimal number from 0 to 4294967294)";
        let masks = "(expected MAY_EXEC, MAY_WRITE, MAY_READ, MAY_APPEND";
        refused(&[
            ("audit mask=may_read", 12, &format!("unknown mask \"may_read\" {masks}; did you mean MAY_READ?)")),
            ("audit mask=^MAY_RED", 12, &format!("unknown mask \"^MAY_RED\" {masks}; did you mean MAY_READ?)")),
            (
                "audit fsmagic=zz",
                15,
                "fsmagic \"zz\" is not a number (expected a hexadecimal number of up to 16 digits)",
            ),
            (
                "audit fsmagic=1ffffffffffffffff",
                15,
                "fsmagic \"1ffffffffffffffff\" is out of range (expected a hexadecimal number of up to 16 digits)",
            ),
            ("audit fsuuid=1", 14, "unknown fsuuid \"1\" (expected a UUID like 11111111-2222-3333-4444-555555555555)"),
            ("audit uid=x", 11, &format!("uid \"x\" is not a number {ids}")),
            ("audit uid=-1", 11, &format!("uid \"-1\" is not a number {ids}")),
            ("audit egid>4294967295", 12, &format!("egid \"4294967295\" is out of range {ids}")),
        ]);
    }

    #[test]
    fn words_that_do_not_go_together_are_named_with_their_place() {
        refused(&[
            ("audit uid=1 uid=2", 17, "second uid \"2\" in one rule"),
            ("audit uid=1 euid=2", 18, "euid \"2\" in a rule that has uid"),
            ("audit egid=1 gid=2", 18, "gid \"2\" in a rule that has egid"),
            ("audit subj_user=u", 17, "subj_user \"u\" is not known to the security module"),
            ("measure pcr=64", 13, "pcr \"64\" is out of range (expected a decimal number from 0 to 63)"),
            ("audit pcr=9", 7, "\"pcr=9\" in a rule whose action is not measure (expected measure)"),
            (
                "template=ima measure",
                1,
                "\"template=ima\" in a rule whose action is not measure (expected the action measure before it)",
            ),
            (
                "measure template=ima-gn",
                18,
                "unknown template \"ima-gn\" (expected ima, ima-ng, ima-sig, …; did you mean ima-ng?)",
            ),
            (
                "measure func=KEY_CHECK keyrings=a||b",
                33,
                "empty item in keyrings \"a||b\" (expected names separated by one |)",
            ),
            ("measure keyrings=a", 9, "\"keyrings=a\" in a rule without func="),
            ("measure label=a func=KEY_CHECK", 9, "\"label=a\" in a rule with func=KEY_CHECK"),
            ("hash func=KEY_CHECK", 1, "\"hash\" in a rule with func=KEY_CHECK (expected measure, dont_measure)"),
        ]);
    }

    #[test]
    fn options_of_appraisal_that_cannot_be_are_named_with_their_place() {
        refused(&[
            ("appraise func=SETXATTR_CHECK", 10, "\"func=SETXATTR_CHECK\" without appraise_algos="),
            ("appraise digest_type=verity", 10, "\"digest_type=verity\" without appraise_type= (expected sigv3)"),
            (
                "appraise digest_type=verity appraise_type=imasig",
                43,
                "appraise_type \"imasig\" contradicts what stands before it (expected sigv3 with digest_type=verity)",
            ),
            (
                "appraise appraise_type=sigv3",
                24,
                "appraise_type \"sigv3\" contradicts what stands before it (expected digest_type=verity before it)",
            ),
            (
                "appraise appraise_type=imasig|modsig",
                24,
                "unknown appraise_type \"imasig|modsig\" (expected imasig, sigv3)",
            ),
            (
                "appraise appraise_algos=sha256,sh256",
                32,
                "unknown appraise_algos \"sh256\" (expected sha256; did you mean sha256?)",
            ),
            ("appraise appraise_algos=sha256,md4", 32, "hash algorithm \"md4\" is not available (expected sha256)"),
        ]);
    }

    #[test]
    fn all_errors_of_a_text_come_in_one_run_and_in_order() {
        let errors = Policy::parse(
            b"measure func=A mask=B uid=C

audit
func=D",
            &bare(),
        )
        .unwrap_err();
        let places: Vec<_> = errors.iter().map(|error| (error.line, error.column, &*error.found)).collect();
        assert_eq!(places, [(1, 14, &b"A"[..]), (1, 21, b"B"), (1, 27, b"C"), (4, 6, b"D"), (4, 1, b"func=D")]);
        assert!(errors.iter().all(|error| error.length == error.found.len()));
    }

    #[test]
    fn a_rule_of_known_words_gets_all_that_do_not_fit_reported() {
        let rule = b"audit func=CRITICAL_DATA pcr=9 fowner=0 appraise_algos=sha256 mask=MAY_READ";
        let errors = Policy::parse(rule, &bare()).unwrap_err();
        let columns: Vec<_> = errors.iter().map(|error| error.column).collect();
        assert_eq!(columns, [26, 32, 41, 63, 1]);
    }

    #[test]
    fn more_errors_than_a_hundred_are_counted_only() {
        let errors = Policy::parse("x\n".repeat(250).as_bytes(), &bare()).unwrap_err();
        assert_eq!((errors.iter().count(), errors.omitted()), (PolicyErrors::MAX, 150));
        assert_eq!(errors.to_string().lines().last(), Some("policy: 150 more errors"));
    }

    #[test]
    fn a_long_word_is_cut_where_it_is_shown() {
        let errors = Policy::parse(&[b'x'; 10_000], &bare()).unwrap_err();
        assert!(errors.to_string().contains(&format!("\"{}…\"", "x".repeat(80))));
        assert_eq!(errors.iter().next().unwrap().length, 10_000);
    }

    #[test]
    fn rules_know_their_lines() {
        let policy = Policy::parse(b"\n# x\n measure\n\taudit uid=0 \n\nhash", &bare()).unwrap();
        let rules: Vec<_> = policy.rules().map(|rule| (rule.id.index(), rule.line, rule.rule.to_string())).collect();
        let expected = [(0, 3, "measure"), (1, 4, "audit uid=0"), (2, 6, "hash")];
        assert_eq!(rules, expected.map(|(index, line, text)| (index, line, text.to_owned())));
        assert_eq!(policy.rule(policy.rules().nth(1).unwrap().id).unwrap().line, 4);
    }

    #[test]
    fn each_dialect_takes_what_its_kernel_takes() {
        for (rule, taken) in [
            ("measure", [true, true, true, true]),
            ("measure func=MMAP_CHECK_REQPROT", [false, true, true, true]),
            ("dont_audit", [false, false, true, true]),
            ("measure fs_subtype=sshfs", [false, false, true, true]),
            ("measure fs_subtype=a fs_subtype=b", [false, false, false, false]),
            ("measure # comment func=NOPE", [false, false, true, true]),
            ("measure #", [false, false, true, true]),
            ("measure func=FILE_CHECK#x", [false, false, false, false]),
            ("appraise appraise_type=sigv3", [false, false, true, true]),
            ("appraise func=MODULE_CHECK appraise_type=sigv3", [false, false, true, true]),
            ("appraise digest_type=verity appraise_type=sigv3", [true, true, true, true]),
            ("appraise digest_type=verity appraise_type=imasig", [false, false, false, false]),
            ("appraise appraise_type=imasig digest_type=verity", [false, false, true, true]),
            ("appraise appraise_type=sigv3 digest_type=verity", [false, false, true, true]),
            ("appraise func=MODULE_CHECK appraise_type=imasig|modsig", [true, true, true, true]),
            ("appraise func=FILE_CHECK appraise_type=imasig|modsig", [false, false, false, false]),
            ("appraise appraise_type=imasig|modsig func=MODULE_CHECK appraise_type=sigv3", [false, false, true, true]),
            ("appraise appraise_flag=check_blacklist", [false, true, true, true]),
            ("appraise appraise_flag=check_blacklist appraise_type=imasig", [true, true, true, true]),
            ("audit appraise_flag=check_blacklist", [false, true, true, true]),
            ("appraise appraise_flag=other", [false, true, true, false]),
            ("measure fsuuid=11111111-2222-3333-4444-555555555555x", [true, true, true, false]),
            ("measure\0junk", [true, true, true, false]),
            ("# comment\0junk", [true, true, true, true]),
            ("\0", [true, true, true, false]),
        ] {
            let parse = |dialect| Policy::parse(rule.as_bytes(), &Options::new(dialect)).is_ok();
            assert_eq!(Dialect::ALL.map(parse), taken, "{rule:?}");
        }
    }

    #[test]
    fn a_trailing_comment_leaves_the_rule_before_it_unless_there_is_none() {
        let policy = Policy::parse(b"audit uid=0 # uid=1", &Options::default()).unwrap();
        assert_eq!(policy.to_string(), "audit uid=0\n");
        assert!(Policy::parse(b"uid=0 # audit", &Options::default()).is_err());
    }

    #[test]
    fn an_empty_text_is_a_policy_without_rules() {
        for text in [&b""[..], b"\n\n", b"# nothing", b" \t\n"] {
            assert!(Policy::parse(text, &Options::default()).unwrap().is_empty());
        }
    }

    #[test]
    fn names_that_are_not_text_are_refused_and_comments_may_be_anything() {
        let errors = Policy::parse(b"# \xff\nmeasure fsname=\xff", &Options::default()).unwrap_err();
        assert_eq!(errors.to_string(), "policy line 2, column 16: \"\\xff\" is not UTF-8 text");
    }
}
