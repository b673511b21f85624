//! `imara label`: makes the label of each file that the policy appraises the digest of its content.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use imara_integrity::appraise::LabelRead;
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::event::{Gid, Uid};
use imara_integrity::label::{ImaLabel, encode_digest, fit_for_labels};
use imara_integrity::policy::RuleId;
use imara_linux::dir::Kind;
use imara_linux::hash::FileHasher;
use imara_linux::mounts::mount_of_file;
use imara_linux::xattr;
use serde::Serialize;

use crate::content::{Leases, Opened};
use crate::rules::{self, Asked, FileSystems, RuledOut, Rules};
use crate::screen::Screen;
use crate::walk::{self, Directory, Entry, Found, Visitor};
use crate::words::{self, JsonPath};
use crate::{Ended, why};

const JSON: &str = "\
With --json, one object a line for each file:
  path      its path; path_hex besides, where it is not UTF-8
  action    labelled, unchanged, skipped or failed
  digest    the digest in the label, such as \"sha256:e3b0…\"; null if skipped or failed
  reason    why it was skipped or failed, else null
and as the last line {\"summary\": {labelled, unchanged, skipped, signatures, failed, bytes, seconds, dry_run}}; skipped
contains signatures. A file system below that the policy leaves out as a whole is one line, with the path of its directory.

Examples:
  imara label -x /usr /etc
  imara label --policy builtin:appraise_tcb --hash sha512 --dry-run /srv
  imara label -- -name-with-a-dash

Files with a signature as their label are never touched. A file whose rule does not list --hash in appraise_algos= fails and
keeps its label. Of failures with the same reason 20 are told on standard error, and the number of the others; --json
tells all. A PATH that is a symbolic link is followed; links below it are not.
A guard in mode enforce keeps files that fail from everybody, so from label too: `imara mode log` first.

Exit status: 0 fine, also where a directory holds no file yet; 1 something failed; 2 could not run, or a PATH is neither a
regular file nor a directory.";

/// Arguments of `imara label`.
#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(crate) struct Arguments {
    /// Hash algorithm of the labels
    #[arg(long, value_name = "ALG", default_value = "sha256")]
    hash: HashAlgorithm,
    /// The policy that says which files are appraised: a file, or builtin:NAME
    #[arg(long, value_name = "P", default_value = rules::DEFAULT)]
    policy: OsString,
    /// Write nothing, tell what would be written
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    walk: walk::Tree,
}

/// Labels files.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<Ended> {
    fit_for_labels(arguments.hash)?;
    let labelling = Labelling {
        rules: Rules::load(&arguments.policy)?,
        leases: Leases::new()?,
        filesystems: FileSystems::default(),
        screen: Screen::new(),
        counts: Counts::default(),
        links: std::array::from_fn(|_| Mutex::default()),
        first_rule: OnceLock::new(),
        hash: arguments.hash,
        dry_run: arguments.dry_run,
        json: arguments.json,
    };
    let walk = arguments.walk.walk()?;
    labelling.screen.expect(&arguments.walk.paths);
    let mut barren = Vec::new();
    labelling.screen.during(|| barren = walk.run(&labelling));
    for barren in &barren {
        labelling.screen.complain(&why::barren(barren, "labelled"));
    }
    labelling.sum_up()?;
    // Where there is no file yet, all of them are labelled.
    let unfit = barren.iter().any(|barren| barren.kind != Kind::Directory);
    Ok(match labelling.counts.failed.load(Ordering::Relaxed) {
        0 if unfit => Ended::Nothing,
        0 => Ended::Fine,
        _ => Ended::Failed,
    })
}

#[derive(Debug)]
struct Labelling {
    rules: Rules,
    leases: Leases,
    filesystems: FileSystems,
    screen: Screen,
    counts: Counts,
    /// Files with more than one name that are done, so that each is labelled once; spread by inode number.
    links: [Mutex<HashMap<Inode, Digest>>; 64],
    /// The first reason of the policy for leaving a file out.
    first_rule: OnceLock<Option<RuleId>>,
    hash: HashAlgorithm,
    dry_run: bool,
    json: bool,
}

#[derive(Debug, Default)]
struct Counts {
    labelled: AtomicU64,
    unchanged: AtomicU64,
    skipped: AtomicU64,
    skipped_by_policy: AtomicU64,
    signatures: AtomicU64,
    failed: AtomicU64,
}

/// What a thread has for itself.
#[derive(Debug, Default)]
struct Worker {
    hasher: FileHasher,
    label: Vec<u8>,
    /// The policy's last answer; neighbours are mostly alike.
    last: Option<(Alike, Asked)>,
    /// A mount, by its number, and whether it is read-only.
    mount: Option<(Option<u64>, bool)>,
    ruled_out: RuledOut,
}

/// Device number and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Inode((u32, u32), u64);

/// What the policy looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alike {
    device: (u32, u32),
    owner: Uid,
    group: Gid,
    executable: bool,
}

/// What became of a file.
#[derive(Debug)]
enum Done {
    Labelled(Digest),
    Unchanged(Digest),
    NotAppraised(Option<RuleId>),
    Signature,
    Skipped(&'static str),
    Failed(String),
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    path: JsonPath,
    action: &'a str,
    digest: Option<String>,
    reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Summary {
    labelled: u64,
    unchanged: u64,
    skipped: u64,
    signatures: u64,
    failed: u64,
    bytes: u64,
    seconds: f64,
    dry_run: bool,
}

impl Visitor for Labelling {
    type Worker = Worker;

    fn worker(&self) -> Worker {
        Worker::default()
    }

    fn enter(&self, worker: &mut Worker, directory: &Directory) -> bool {
        let Some(rule) = worker.ruled_out.by(&self.rules, &self.filesystems, directory) else { return true };
        self.note(directory.path(), &Done::NotAppraised(Some(rule)));
        false
    }

    fn visit(&self, worker: &mut Worker, found: Found<'_>) {
        match found {
            Found::File(entry) => {
                let done = self.file(worker, entry).unwrap_or_else(Done::Failed);
                // The path is put together only where it is told.
                if self.json || matches!(done, Done::Failed(_)) {
                    self.note(&entry.path(), &done);
                } else {
                    self.count(&done);
                }
            }
            Found::Other(entry, kind) => self.note(&entry.path(), &Done::Skipped(why::not_a_file(kind))),
            Found::Failed(path, error) => self.note(path, &Done::Failed(why::not_opened(&error))),
        }
    }
}

impl Labelling {
    fn file(&self, worker: &mut Worker, entry: Entry<'_>) -> Result<Done, String> {
        if let Some(rule) = worker.ruled_out.by(&self.rules, &self.filesystems, entry.directory) {
            return Ok(Done::NotAppraised(Some(rule)));
        }
        let mut opened = match self.leases.open(entry) {
            Ok(opened) => opened,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Done::Skipped("gone meanwhile")),
            Err(error) => return Err(why::not_opened(&error)),
        };
        if !opened.facts.is_regular() {
            return Ok(Done::Skipped("not a regular file"));
        }
        if entry.is_elsewhere(&opened.facts) {
            return Ok(Done::Skipped("on another file system"));
        }
        let refused = match self.appraised(worker, &opened)? {
            Asked::No(rule) => return Ok(Done::NotAppraised(rule)),
            Asked::Yes { refused } => refused,
        };
        if opened.facts.links < 2 {
            return self.appraised_file(worker, &mut opened, refused);
        }
        let inode = Inode(opened.facts.device, opened.facts.inode);
        let place = usize::try_from(inode.1).unwrap_or(0) % self.links.len();
        let Some(links) = self.links.get(place) else {
            return self.appraised_file(worker, &mut opened, refused);
        };
        let mut links = links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = links.get(&inode) {
            return Ok(Done::Unchanged(*digest));
        }
        let done = self.appraised_file(worker, &mut opened, refused)?;
        if let Done::Labelled(digest) | Done::Unchanged(digest) = &done {
            links.insert(inode, *digest);
        }
        Ok(done)
    }

    /// `refused`: the rule that does not allow the algorithm.
    fn appraised_file(
        &self,
        worker: &mut Worker,
        opened: &mut Opened,
        refused: Option<RuleId>,
    ) -> Result<Done, String> {
        let Worker { hasher, label, mount, .. } = worker;
        let label = match opened.label(label) {
            LabelRead::Unsupported => return Err(format!("no label can be read: {}", why::NO_LABELS)),
            LabelRead::Failed => return Err("its label cannot be read (fix: look at the kernel's log)".into()),
            found @ (LabelRead::Value(_) | LabelRead::Absent) => found.bytes(),
        };
        if label.is_some_and(is_signature) {
            return Ok(Done::Signature);
        }
        if refused.is_some() {
            return Err(why::algorithm_refused(self.hash, &self.rules.text(refused)));
        }
        let progress = &self.screen.progress.bytes;
        let digest = opened.digest(hasher, self.hash, progress).map_err(|error| why::not_hashed(&error))?;
        let right = encode_digest(&digest);
        if label == Some(&right) {
            return Ok(Done::Unchanged(digest));
        }
        if !self.dry_run {
            xattr::write(opened.file(), xattr::IMA, &right).map_err(|error| why::not_written(&error))?;
        } else if is_read_only(mount, opened) {
            return Err(why::READ_ONLY.into());
        }
        Ok(Done::Labelled(digest))
    }

    fn appraised(&self, worker: &mut Worker, opened: &Opened) -> Result<Asked, String> {
        let facts = &opened.facts;
        let executable = facts.mode & 0o111 != 0;
        let alike = Alike { device: facts.device, owner: facts.owner, group: facts.group, executable };
        if let Some((last, answer)) = worker.last
            && last == alike
        {
            return Ok(answer);
        }
        let fs = self.filesystems.of(facts.device, opened.file()).map_err(|error| why::no_file_system(&error))?;
        let answer = self.rules.appraised(facts, &fs, self.hash);
        worker.last = Some((alike, answer));
        Ok(answer)
    }

    fn count(&self, done: &Done) {
        let count = match done {
            Done::Labelled(_) => &self.counts.labelled,
            Done::Unchanged(_) => &self.counts.unchanged,
            Done::Skipped(_) => &self.counts.skipped,
            Done::Signature => {
                self.counts.signatures.fetch_add(1, Ordering::Relaxed);
                &self.counts.skipped
            }
            Done::NotAppraised(rule) => {
                self.first_rule.get_or_init(|| *rule);
                self.counts.skipped_by_policy.fetch_add(1, Ordering::Relaxed);
                &self.counts.skipped
            }
            Done::Failed(_) => &self.counts.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.screen.progress.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts it and tells it.
    fn note(&self, path: &Path, done: &Done) {
        self.count(done);
        if let Done::Failed(reason) = done {
            self.screen.complain_of(path, reason);
        }
        if !self.json {
            return;
        }
        let rule_text;
        let (action, digest, reason) = match done {
            Done::Labelled(digest) => ("labelled", Some(digest.to_string()), None),
            Done::Unchanged(digest) => ("unchanged", Some(digest.to_string()), None),
            Done::Skipped(reason) => ("skipped", None, Some(*reason)),
            Done::Signature => ("skipped", None, Some("its label is a signature, which is never replaced")),
            Done::NotAppraised(rule) => {
                rule_text = self.rules.text(*rule);
                ("skipped", None, Some(rule_text.as_str()))
            }
            Done::Failed(reason) => ("failed", None, Some(reason.as_str())),
        };
        self.screen.json(&Line { path: path.into(), action, digest, reason });
    }

    fn sum_up(&self) -> anyhow::Result<()> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let summary = Summary {
            labelled: load(&self.counts.labelled),
            unchanged: load(&self.counts.unchanged),
            skipped: load(&self.counts.skipped),
            signatures: load(&self.counts.signatures),
            failed: load(&self.counts.failed),
            bytes: load(&self.screen.progress.bytes),
            seconds: self.screen.seconds(),
            dry_run: self.dry_run,
        };
        let by_policy = load(&self.counts.skipped_by_policy);
        if by_policy > 0 && summary.labelled + summary.unchanged + summary.failed == 0 {
            self.screen.complain(&format!(
                "nothing is to be labelled: the policy appraises none of {by_policy} files\n  first reason: {}\n  fix: \
                 choose another policy with --policy",
                self.rules.text(self.first_rule.get().copied().flatten())
            ));
        }
        if self.json {
            self.screen.json(&serde_json::json!({ "summary": summary }));
        } else {
            let Summary { labelled, unchanged, skipped, signatures, failed, bytes, seconds, dry_run } = summary;
            let bytes = words::bytes(bytes);
            let mut note = if dry_run { " (dry run: nothing was written)" } else { "" }.to_owned();
            if signatures > 0 {
                note +=
                    &format!("; of those skipped, {signatures} with a signature as their label, which is left alone");
            }
            self.screen.line(&format!(
                "labelled {labelled}, unchanged {unchanged}, skipped {skipped}, failed {failed}; {bytes}; {seconds:.1} s{note}"
            ));
        }
        self.screen.finish()
    }
}

/// Whether the mount that the file was opened through is read-only; looked up once for neighbours.
fn is_read_only(last: &mut Option<(Option<u64>, bool)>, opened: &Opened) -> bool {
    let id = opened.facts.mount_id;
    match *last {
        Some((mount, answer)) if mount == id => answer,
        _ => {
            let answer = mount_of_file(opened.file()).is_ok_and(|mount| mount.read_only);
            *last = Some((id, answer));
            answer
        }
    }
}

/// Whether a label is a signature, which only its owner could make again.
fn is_signature(label: &[u8]) -> bool {
    match ImaLabel::parse(label) {
        Ok(ImaLabel::Signature(_)) => true,
        Ok(ImaLabel::VeritySignature(signature)) => signature.header().is_ok(),
        Ok(ImaLabel::Digest(_) | ImaLabel::Unknown { .. }) | Err(_) => false,
    }
}
