//! What the administrator wants guarded, and how: from the command line or from `imara.toml`.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use imara_integrity::check::{Mode, Settings};
use imara_integrity::digest::HashAlgorithm;
use imara_integrity::label;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::log::Sink;
use crate::recover::Recover;
use crate::start::refused;

/// Where the socket and the lock live unless told otherwise.
pub(crate) const RUN_DIR: &str = "/run/imara";

/// Where the host key and the journal live unless told otherwise.
pub(crate) const STATE_DIR: &str = "/var/lib/imara";

/// The policy unless told otherwise: appraise all files owned by root.
pub(crate) const POLICY: &str = imara_integrity::policy::DEFAULT_SOURCE;

/// Everything the guard needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Mode and algorithm of new labels.
    pub(crate) settings: Settings,
    /// A file, or `builtin:NAME`.
    pub(crate) policy: String,
    /// Mount points of the file systems to guard; at least one.
    pub(crate) mounts: Vec<PathBuf>,
    /// Mount points of those that are guarded when they come.
    pub(crate) later: Vec<PathBuf>,
    /// Directory of the control socket and the lock.
    pub(crate) run_dir: PathBuf,
    /// Directory of the host key and the journal.
    pub(crate) state_dir: PathBuf,
    /// What happens to files that were being written when a guard stopped.
    pub(crate) recover: Recover,
    /// Whether there is a journal.
    pub(crate) journal: Keeping,
    /// Where log lines go.
    pub(crate) log: Sink,
}

/// Whether a journal is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It is, and everybody waits who may write to a file, until a note of that is sure to be on the disk before what he
    /// writes is.
    #[default]
    All,
    /// The same, but whoever may write to an old file waits only until the disk has been given the note.
    Unflushed,
    /// As the first, but whoever creates a file does not wait: a power cut within a moment may leave it refused.
    Labelled,
    /// Writers need not wait for the disk, and a power cut may leave files that are refused.
    Off,
}

impl FromStr for Keeping {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "all" => Ok(Self::All),
            "unflushed" => Ok(Self::Unflushed),
            "labelled" => Ok(Self::Labelled),
            "off" => Ok(Self::Off),
            _ => Err(format!("unknown choice {name:?} for the journal (expected all, unflushed, labelled or off)")),
        }
    }
}

/// `imara.toml`. Unknown keys are errors: a misspelt `mode` must not leave a host in another one.
///
/// Values are parsed where they stand, so that errors show the line.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "default_mode", deserialize_with = "parsed")]
    mode: Mode,
    #[serde(default = "default_policy")]
    policy: String,
    #[serde(default, deserialize_with = "some_mounts")]
    mounts: Vec<PathBuf>,
    #[serde(default)]
    mounts_later: Vec<PathBuf>,
    #[serde(default = "default_hash", deserialize_with = "usable_hash")]
    hash: HashAlgorithm,
    #[serde(default = "default_run_dir", deserialize_with = "absolute")]
    run_dir: PathBuf,
    #[serde(default = "default_state_dir", deserialize_with = "absolute")]
    state_dir: PathBuf,
    #[serde(default, deserialize_with = "parsed")]
    recover: Recover,
    #[serde(default, deserialize_with = "parsed")]
    journal: Keeping,
    #[serde(default, deserialize_with = "sink")]
    log: Sink,
}

const fn default_mode() -> Mode {
    Mode::Enforce
}

fn default_policy() -> String {
    POLICY.into()
}

const fn default_hash() -> HashAlgorithm {
    HashAlgorithm::Sha256
}

fn default_run_dir() -> PathBuf {
    RUN_DIR.into()
}

fn default_state_dir() -> PathBuf {
    STATE_DIR.into()
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(value: D) -> Result<T, D::Error> {
    String::deserialize(value)?.parse().map_err(D::Error::custom)
}

fn usable_hash<'de, D: Deserializer<'de>>(value: D) -> Result<HashAlgorithm, D::Error> {
    parsed(value).and_then(|hash| check_hash(hash).map(|()| hash).map_err(D::Error::custom))
}

fn some_mounts<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<PathBuf>, D::Error> {
    let mounts = Vec::deserialize(value)
        .map_err(|error| D::Error::custom(format!("{} of paths, such as [\"/srv\"]", error.to_string().trim_end())))?;
    check_mounts(&mounts).map(|()| mounts).map_err(D::Error::custom)
}

fn absolute<'de, D: Deserializer<'de>>(value: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(value)?;
    if !path.is_absolute() {
        let error = format!("{:?} does not begin with / (fix: name the whole path)", path);
        return Err(D::Error::custom(error));
    }
    Ok(path)
}

fn sink<'de, D: Deserializer<'de>>(value: D) -> Result<Sink, D::Error> {
    match String::deserialize(value)?.as_str() {
        "stderr" => Ok(Sink::Stderr),
        "journald" => Ok(Sink::Journal),
        other => Err(D::Error::custom(format!("unknown log {other:?} (expected \"stderr\" or \"journald\")"))),
    }
}

fn check_hash(hash: HashAlgorithm) -> anyhow::Result<()> {
    label::fit_for_labels(hash)?;
    Ok(())
}

fn check_mounts(mounts: &[PathBuf]) -> anyhow::Result<()> {
    if mounts.is_empty() {
        bail!(
            "no mount point is named, so nothing would be guarded (fix: name at least one, such as mounts = [\"/srv\"])"
        );
    }
    Ok(())
}

impl Config {
    /// Reads `imara.toml`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(refused(format!("cannot read the configuration {shown}"), "name one that can be read"))?;
        Self::parse(&text).with_context(|| format!("{shown} is not a configuration of imarad"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let File { mode, policy, mounts, mounts_later: later, hash, run_dir, state_dir, recover, journal, log } =
            toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.to_string().trim_end()))?;
        let settings = Settings { mode, hash };
        Self { settings, policy, mounts, later, run_dir, state_dir, recover, journal, log }.checked()
    }

    /// Refuses what cannot be meant.
    pub(crate) fn checked(self) -> anyhow::Result<Self> {
        check_hash(self.settings.hash)?;
        if self.later.is_empty() {
            check_mounts(&self.mounts)?;
        }
        if let Some(relative) = self.later.iter().find(|path| !path.is_absolute()) {
            bail!("{relative:?} does not begin with / (fix: name the whole path of a mount point that comes later)");
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_file_gets_the_defaults() {
        let config = Config::parse("mounts = [\"/srv\"]").unwrap();
        let expected = Config {
            settings: Settings { mode: Mode::Enforce, hash: HashAlgorithm::Sha256 },
            policy: POLICY.into(),
            mounts: vec!["/srv".into()],
            later: Vec::new(),
            run_dir: RUN_DIR.into(),
            state_dir: STATE_DIR.into(),
            recover: Recover::Relabel,
            journal: Keeping::All,
            log: Sink::Stderr,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_packaged_file_shows_the_defaults_except_for_the_mode() {
        let packaged = Config::parse(include_str!("../../../packaging/imara.toml")).unwrap();
        let default = Config::parse("mounts = [\"/srv\"]").unwrap();
        let settings = Settings { mode: Mode::Log, ..default.settings };
        assert_eq!(packaged, Config { settings, ..default });
    }

    /// The entries of the manual's page: what stands at the head of each, and its text.
    fn manual() -> Vec<(String, &'static str)> {
        let page = include_str!("../../../packaging/imara.toml.5");
        let keys = page.split(".SH KEYS\n.TP\n").nth(1).unwrap().split(".SH").next().unwrap();
        // Lists of words within an entry are indented, between .RS and .RE.
        let mut entries = vec![String::new()];
        let mut depth = 0;
        for line in keys.lines() {
            depth += match line {
                ".RS" => 1,
                ".RE" => -1,
                _ => 0,
            };
            if line == ".TP" && depth == 0 {
                entries.push(String::new());
            } else {
                entries.last_mut().unwrap().push_str(&format!("{line}\n"));
            }
        }
        let entries = entries.into_iter().map(|entry| {
            let entry: &'static str = entry.leak();
            let (head, text) = entry.split_once('\n').unwrap();
            (head.strip_prefix(".B ").unwrap().replace("\\(dq", "\""), text)
        });
        entries.collect()
    }

    /// What a message says was expected, of the keys or of the words of one.
    fn expected(text: &str) -> std::collections::BTreeSet<String> {
        let error = format!("{:#}", Config::parse(text).unwrap_err());
        let (_, words) = error.rsplit_once("expected ").unwrap();
        let words = words.trim_start_matches("one of ").trim_end_matches(')').replace(" or ", ", ");
        words.split(", ").map(|word| word.trim_matches(['`', '"']).to_owned()).collect()
    }

    #[test]
    fn the_manual_has_every_key_with_its_default_and_every_word_that_it_takes() {
        let entries = manual();
        let keys = entries.iter().map(|(head, _)| head.split(" = ").next().unwrap().to_owned()).collect();
        assert_eq!(expected("mounts = [\"/srv\"]\nno_such_key = 1"), keys);
        let defaults: String =
            entries.iter().filter(|(head, _)| head.contains(" = ")).map(|(head, _)| format!("{head}\n")).collect();
        let short = Config::parse("mounts = [\"/srv\"]").unwrap();
        assert_eq!(Config::parse(&format!("mounts = [\"/srv\"]\n{defaults}")).unwrap(), short);
        assert_eq!(defaults.lines().count(), entries.len() - 2, "but for mounts and mounts_later");
        let lists = entries.iter().filter(|(_, text)| text.contains(".RS"));
        let lists = lists.map(|(head, text)| {
            let key = head.split(" = ").next().unwrap();
            let words = text.split(".TP\n.B ").skip(1).map(|word| word.lines().next().unwrap().to_owned()).collect();
            assert_eq!(expected(&format!("mounts = [\"/srv\"]\n{key} = \"no such word\"")), words, "{key}");
            key
        });
        assert_eq!(lists.collect::<Vec<_>>(), ["mode", "recover", "journal", "log"]);
        let packaged = include_str!("../../../packaging/imara.toml");
        for (head, _) in &entries {
            let key = head.split(" = ").next().unwrap();
            let is_shown = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(packaged.lines().any(is_shown), "{key} is not in the packaged file");
        }
    }

    #[test]
    fn every_key_is_taken() {
        let text = "mode = \"log\"\npolicy = \"/etc/ima/ima-policy\"\nmounts = [\"/\", \"/usr\"]\nhash = \"sha512\"\n\
                    mounts_later = [\"/media\"]\n\
                    run_dir = \"/run/x\"\nstate_dir = \"/x\"\nrecover = \"ask\"\njournal = \"off\"\nlog = \"journald\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.settings, Settings { mode: Mode::Log, hash: HashAlgorithm::Sha512 });
        assert_eq!(config.policy, "/etc/ima/ima-policy");
        assert_eq!(config.mounts, [PathBuf::from("/"), PathBuf::from("/usr")]);
        assert_eq!(config.later, [PathBuf::from("/media")]);
        assert_eq!((config.state_dir, config.recover, config.journal), ("/x".into(), Recover::Ask, Keeping::Off));
        assert_eq!((config.run_dir, config.log), (PathBuf::from("/run/x"), Sink::Journal));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_where_it_stands() {
        let missing = "no mount point is named, so nothing would be guarded (fix: name at least one, such as mounts = [\"/srv\"])";
        let at = |line: u32, column: usize, text: &str, length: usize, what: &str| {
            let (blank, marks) = (" ".repeat(column - 1), "^".repeat(length));
            format!(
                "TOML parse error at line {line}, column {column}\n  |\n{line} | {text}\n  | {blank}{marks}\n{what}"
            )
        };
        for (text, expected) in [
            ("mode = \"log\"", missing.to_owned()),
            ("mounts = []", at(1, 10, "mounts = []", 2, missing)),
            (
                "mounts = \"/\"",
                at(
                    1,
                    10,
                    "mounts = \"/\"",
                    3,
                    "invalid type: string \"/\", expected a sequence of paths, such as [\"/srv\"]",
                ),
            ),
            ("mounts = [\"/\"", at(1, 14, "mounts = [\"/\"", 1, "unclosed array, expected `]`")),
            (
                "mounts = [\"/\"]\nmod = \"log\"",
                at(
                    2,
                    1,
                    "mod = \"log\"",
                    3,
                    "unknown field `mod`, expected one of `mode`, `policy`, `mounts`, `mounts_later`, `hash`, `run_dir`, `state_dir`, `recover`, `journal`, `log`",
                ),
            ),
            (
                "mounts = [\"/\"]\nmode = \"permissive\"",
                at(
                    2,
                    8,
                    "mode = \"permissive\"",
                    12,
                    "unknown mode \"permissive\" (expected enforce, log, fix or off)",
                ),
            ),
            (
                "mounts = [\"/\"]\n\n  hash = \"sha257\" # ?",
                at(3, 10, "  hash = \"sha257\" # ?", 8, "unknown hash algorithm \"sha257\" (did you mean sha256?)"),
            ),
            (
                "mounts = [\"/\"]\nhash = \"md4\"",
                at(
                    2,
                    8,
                    "hash = \"md4\"",
                    5,
                    "hash algorithm md4 cannot be used for labels: they could not be told from md5 labels (fix: use sha256)",
                ),
            ),
            (
                "log = \"syslog\"\nmounts = [\"/\"]",
                at(1, 7, "log = \"syslog\"", 8, "unknown log \"syslog\" (expected \"stderr\" or \"journald\")"),
            ),
            (
                "mounts = [\"/\"]\nrun_dir = \"run\"",
                at(2, 11, "run_dir = \"run\"", 5, "\"run\" does not begin with / (fix: name the whole path)"),
            ),
            (
                "mounts = [\"/\"]\nrecover = \"yes\"",
                at(2, 11, "recover = \"yes\"", 5, "unknown recovery \"yes\" (expected relabel, deny or ask)"),
            ),
            (
                "mounts = [\"/\"]\njournal = \"yes\"",
                at(
                    2,
                    11,
                    "journal = \"yes\"",
                    5,
                    "unknown choice \"yes\" for the journal (expected all, unflushed, labelled or off)",
                ),
            ),
            ("mounts = [\"/\"]\nlog = 1", at(2, 7, "log = 1", 1, "invalid type: integer `1`, expected a string")),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert_eq!(error, expected, "{text}");
        }
    }
}
