//! `imara verify`: judges each file as a guarded open in mode `enforce` would, and lists those that fail.

use std::ffi::OsString;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use imara_integrity::appraise::{Cause, FileState, LabelRead};
use imara_integrity::check::{self, Mode, Plan, Settings, Verdict};
use imara_integrity::collect::Collect;
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label::ImaLabel;
use imara_integrity::policy::{Decision, Family, RuleId};
use imara_linux::hash::FileHasher;
use serde::Serialize;

use crate::content::{ContentError, Leases, Opened};
use crate::rules::{self, Access, FileSystems, RuledOut, Rules};
use crate::screen::{self, Screen};
use crate::walk::{self, Directory, Entry, Found, Visitor};
use crate::words::{self, JsonPath, shown};
use crate::{Ended, why};

const JSON: &str = "\
A file is judged as it would be when root opens it for reading, and when root executes it if it has an execute bit.

With --json, one object a line for each file:
  path      its path; path_hex besides, where it is not UTF-8
  verdict   allow or deny
  cause     of a denial, in the kernel's words, such as \"invalid-hash\"; \"imara:unjudged\" if the file could not be read,
            why is told on standard error; else null
  expected  what the label says, such as \"sha256:e3b0…\"; null without a label
  found     the digest of the content; null where it was not needed
What is no regular file has no line, nor has a file system below that the policy leaves out as a whole: it is counted as one
thing that was skipped. Of files that could not be read for the same reason 20 are told on standard error, and the number of
the others; --json tells all.

A guard in mode enforce keeps files that fail from everybody, so from verify too: it can then only say that they cannot be
opened (imara:unjudged). Which cause they have is in the guard's log; or verify while the guard is in mode log or not there.

A PATH that is a symbolic link is followed; links below it are not, but what they lead to is judged where it is.

Examples:
  imara verify /usr
  imara verify --json -x / | jq -r 'select(.verdict == \"deny\") | .path'

Exit status: 0 all would be opened; 1 some would not; 2 could not run, or a PATH has led to no regular file at all.";

/// Arguments of `imara verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Arguments {
    /// The policy that says which files are appraised: a file, or builtin:NAME
    #[arg(long, value_name = "P", default_value = rules::DEFAULT)]
    policy: OsString,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    walk: walk::Tree,
}

/// Verifies files.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<Ended> {
    let verifying = Verifying {
        rules: Rules::load(&arguments.policy)?,
        leases: Leases::new()?,
        filesystems: FileSystems::default(),
        screen: Screen::new(),
        counts: Counts::default(),
        first_rule: OnceLock::new(),
        json: arguments.json,
        colours: screen::colours(),
    };
    let walk = arguments.walk.walk()?;
    verifying.screen.expect(&arguments.walk.paths);
    let mut barren = Vec::new();
    verifying.screen.during(|| barren = walk.run(&verifying));
    for barren in &barren {
        verifying.screen.complain(&why::barren(barren, "verified"));
    }
    verifying.sum_up()?;
    Ok(match verifying.counts.failed.load(Ordering::Relaxed) {
        0 if barren.is_empty() => Ended::Fine,
        0 => Ended::Nothing,
        _ => Ended::Failed,
    })
}

/// What a guarded open would be: `enforce`, and the daemon's default algorithm for labels that name none.
pub(crate) const SETTINGS: Settings = Settings { mode: Mode::Enforce, hash: HashAlgorithm::Sha256 };

#[derive(Debug)]
struct Verifying {
    rules: Rules,
    leases: Leases,
    filesystems: FileSystems,
    screen: Screen,
    counts: Counts,
    first_rule: OnceLock<Option<RuleId>>,
    json: bool,
    colours: bool,
}

#[derive(Debug, Default)]
struct Counts {
    passed: AtomicU64,
    failed: AtomicU64,
    not_appraised: AtomicU64,
    skipped: AtomicU64,
}

#[derive(Debug, Default)]
struct Worker {
    hasher: FileHasher,
    label: Vec<u8>,
    ruled_out: RuledOut,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    path: JsonPath,
    verdict: &'static str,
    cause: Option<&'static str>,
    expected: Option<String>,
    found: Option<String>,
}

/// What was said about one file.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// The first denial, and for what access.
    pub(crate) denied: Option<(Access, Cause)>,
    /// Whether the policy asked for any judgement.
    pub(crate) appraised: bool,
    /// What the label says.
    pub(crate) expected: Option<String>,
    /// The digest of the content.
    pub(crate) found: Option<Digest>,
}

/// Judges a file for each access with the decision of the policy; the content is hashed at most once.
pub(crate) fn judge(
    decisions: &[(Access, Decision)],
    label: LabelRead<'_>,
    opened: &mut Opened,
    mut hash: impl FnMut(&mut Opened, HashAlgorithm) -> Result<Digest, ContentError>,
) -> Result<Judged, ContentError> {
    let mut judged = Judged { expected: label.bytes().map(expected), ..Judged::default() };
    for (access, decision) in decisions {
        let Plan::Judge(labels) = check::plan(decision, SETTINGS) else { continue };
        judged.appraised = true;
        let outcome = match labels.read(label, FileState { size: opened.facts.size, new: false }) {
            Collect::Settled(outcome) => outcome,
            Collect::Content(stage) => {
                // Which algorithm is the label's business alone, so it is the same each time.
                let digest = match judged.found {
                    Some(digest) => digest,
                    None => *judged.found.insert(hash(opened, stage.algorithm())?),
                };
                stage.settle(digest)
            }
        };
        if let Verdict::Deny(cause) = outcome.verdict {
            judged.denied.get_or_insert((*access, cause));
        }
    }
    Ok(judged)
}

/// What a label says: `sha256:…`, or the label described.
fn expected(label: &[u8]) -> String {
    match ImaLabel::parse(label) {
        Ok(ImaLabel::Digest(digest)) => match digest.algorithm() {
            Some(algorithm) => format!("{algorithm}:{}", words::hex(digest.digest())),
            None => digest.to_string(),
        },
        Ok(label) => label.to_string(),
        Err(error) => error.to_string(),
    }
}

impl Visitor for Verifying {
    type Worker = Worker;

    fn worker(&self) -> Worker {
        Worker::default()
    }

    fn enter(&self, worker: &mut Worker, directory: &Directory) -> bool {
        match worker.ruled_out.by(&self.rules, &self.filesystems, directory) {
            Some(rule) => {
                self.first_rule.get_or_init(|| Some(rule));
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
                false
            }
            None => true,
        }
    }

    fn visit(&self, worker: &mut Worker, found: Found<'_>) {
        match found {
            Found::File(entry) => self.file(worker, entry),
            Found::Other(..) => drop(self.counts.skipped.fetch_add(1, Ordering::Relaxed)),
            Found::Failed(path, error) => self.unjudged(path, &why::not_opened(&error)),
        }
        self.screen.progress.files.fetch_add(1, Ordering::Relaxed);
    }
}

impl Verifying {
    fn file(&self, worker: &mut Worker, entry: Entry<'_>) {
        if let Some(rule) = worker.ruled_out.by(&self.rules, &self.filesystems, entry.directory) {
            return self.note(&entry.path(), &Judged::default(), Some(rule));
        }
        match self.leases.open(entry) {
            Ok(opened) if !opened.facts.is_regular() || entry.is_elsewhere(&opened.facts) => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Ok(mut opened) => match self.judge(worker, &mut opened) {
                Ok((judged, rule)) => self.note(&entry.path(), &judged, rule),
                Err(reason) => self.unjudged(&entry.path(), &reason),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.counts.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.unjudged(&entry.path(), &why::not_opened(&error)),
        }
    }

    fn judge(&self, worker: &mut Worker, opened: &mut Opened) -> Result<(Judged, Option<RuleId>), String> {
        let fs =
            self.filesystems.of(opened.facts.device, opened.file()).map_err(|error| why::no_file_system(&error))?;
        let accesses = if opened.facts.mode & 0o111 == 0 { &[Access::Read][..] } else { &[Access::Read, Access::Exec] };
        let decisions: Vec<_> =
            accesses.iter().map(|access| (*access, self.rules.decide(*access, &opened.facts, &fs))).collect();
        let rule = decisions.first().and_then(|(_, read)| read.decided.by(Family::Appraise)).map(|by| by.rule);
        let Worker { hasher, label, .. } = worker;
        let label = opened.label(label);
        let hash = |opened: &mut Opened, algorithm| opened.digest(hasher, algorithm, &self.screen.progress.bytes);
        let judged = judge(&decisions, label, opened, hash).map_err(|error| why::not_hashed(&error))?;
        Ok((judged, rule))
    }

    fn note(&self, path: &Path, judged: &Judged, rule: Option<RuleId>) {
        let count = match (judged.denied, judged.appraised) {
            (Some(_), _) => &self.counts.failed,
            (None, true) => &self.counts.passed,
            (None, false) => {
                self.first_rule.get_or_init(|| rule);
                &self.counts.not_appraised
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        if self.json {
            self.screen.json(&Line {
                path: path.into(),
                verdict: if judged.denied.is_some() { "deny" } else { "allow" },
                cause: judged.denied.map(|(_, cause)| cause.word()),
                expected: judged.expected.clone(),
                found: judged.found.map(|digest| digest.to_string()),
            });
        } else if let Some((access, cause)) = judged.denied {
            let (red, plain) = if self.colours { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
            let detail = match (&judged.expected, judged.found) {
                (None, _) => "expected a label, found none".to_owned(),
                (Some(expected), Some(found)) => format!("expected {expected}, found {found}"),
                (Some(label), None) => format!("its label is {label}"),
            };
            self.screen.line(&format!(
                "{}: {red}{cause}{plain} when opened to {}, {detail}",
                shown(path),
                access.name()
            ));
        }
    }

    /// A file that could not be judged is refused by a guard in mode `enforce`.
    fn unjudged(&self, path: &Path, reason: &str) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        self.screen.complain_of(path, reason);
        if self.json {
            let cause = Some(Cause::Unjudged.word());
            self.screen.json(&Line { path: path.into(), verdict: "deny", cause, expected: None, found: None });
        }
    }

    fn sum_up(&self) -> anyhow::Result<()> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (passed, failed) = (load(&self.counts.passed), load(&self.counts.failed));
        let (not_appraised, skipped) = (load(&self.counts.not_appraised), load(&self.counts.skipped));
        if let Some(first) = self.first_rule.get().filter(|_| passed + failed == 0) {
            let what = if not_appraised > 0 {
                format!("none of {not_appraised} files")
            } else {
                "nothing on the file systems that are mounted there".into()
            };
            self.screen.complain(&format!(
                "nothing was verified: the policy appraises {what}\n  first reason: {}\n  fix: choose another policy \
                 with --policy",
                self.rules.text(*first)
            ));
        }
        if !self.json {
            self.screen.line(&format!(
                "passed {passed}, failed {failed}, not appraised {not_appraised}, skipped {skipped}; {}; {:.1} s",
                words::bytes(load(&self.screen.progress.bytes)),
                self.screen.seconds()
            ));
        }
        self.screen.finish()
    }
}
