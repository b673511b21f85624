//! The policy, and what it asks of a file.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::iter;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{anyhow, bail};
use imara_integrity::digest::HashAlgorithm;
use imara_integrity::event::{Event, FileSystem, Hook, Mask, Object, Subject};
use imara_integrity::policy::{DEFAULT_SOURCE, Decision, Dialect, Family, Options, Policy, Rule, RuleId, Source, Verb};
use imara_linux::file::FileFacts;
use imara_linux::mounts::{MountError, filesystem_of};

use crate::walk::Directory;
use crate::words::shown;

/// The policy unless told otherwise: appraise all files owned by root.
pub(crate) const DEFAULT: &str = DEFAULT_SOURCE;

/// How a file is about to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Opened for reading.
    Read,
    /// Executed.
    Exec,
}

impl Access {
    /// As a word of the output.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Exec => "exec",
        }
    }
}

/// What a policy asks of a file's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing; by which rule, if one says so.
    No(Option<RuleId>),
    /// That there is one.
    Yes {
        /// The rule that does not allow the algorithm that it would have.
        refused: Option<RuleId>,
    },
}

/// A policy and where it came from.
#[derive(Debug)]
pub(crate) struct Rules {
    policy: Policy,
    name: String,
}

impl Rules {
    /// Loads a policy: a file, or `builtin:NAME`. The error of a broken one shows the places.
    pub(crate) fn load(from: &OsStr) -> anyhow::Result<Self> {
        if from.is_empty() {
            bail!("--policy is empty, expected a file or builtin:NAME (fix: name one, or leave the option out)");
        }
        let name = shown(Path::new(from));
        if let Source::Builtin(which) = Source::parse(from.as_bytes())? {
            return Ok(Self { policy: Policy::builtin(which, Dialect::default()), name });
        }
        let text = std::fs::read(from).map_err(|error| {
            anyhow!("cannot read the policy {name}: {error} (fix: name a file that can be read, or builtin:NAME)")
        })?;
        match Policy::parse(&text, &Options::default()) {
            Ok(policy) => Ok(Self { policy, name }),
            Err(errors) => bail!("{name} is not a policy\n{}", errors.underlined(&text)),
        }
    }

    /// A rule with its place: `policy builtin:appraise_tcb, line 4: dont_appraise fsmagic=0x1021994`.
    pub(crate) fn text(&self, rule: Option<RuleId>) -> String {
        match rule.and_then(|rule| self.policy.rule(rule)) {
            Some(found) => format!("policy {}, line {}: {}", self.name, found.line, found.rule),
            None => format!("policy {}: no rule appraises it", self.name),
        }
    }

    /// What a guarded open would ask; who opens is root.
    pub(crate) fn decide(&self, access: Access, facts: &FileFacts, fs: &FileSystem) -> Decision {
        match access {
            Access::Read => self.policy.decide(&event(Mask::READ, facts, fs)),
            Access::Exec => self.policy.decide_exec(&event(Mask::EXEC, facts, fs)),
        }
    }

    /// Whether a file has to have a label, which would be one of `hash`: appraised when read or executed.
    pub(crate) fn appraised(&self, facts: &FileFacts, fs: &FileSystem, hash: HashAlgorithm) -> Asked {
        let read = self.decide(Access::Read, facts, fs);
        let exec = self.decide(Access::Exec, facts, fs);
        let asked = read.appraise.is_some()
            || exec.appraise.is_some()
            || self.policy.decide(&event(Mask::EXEC, facts, fs)).appraise.is_some();
        if !asked {
            return Asked::No(read.decided.by(Family::Appraise).map(|decided| decided.rule));
        }
        // What has no execute bit is not executed, whatever a rule says of that.
        let exec = Some(&exec).filter(|_| facts.mode & 0o111 != 0);
        let mut refusing = iter::once(&read).chain(exec).filter_map(|decision| {
            let rule = decision.appraise.as_ref()?.rule;
            decision.algorithms.is_some_and(|allowed| !allowed.contains(hash)).then_some(rule)
        });
        Asked::Yes { refused: refusing.next() }
    }

    /// The rule that keeps a whole file system out of appraisal, whatever its files, if there is one.
    pub(crate) fn rules_out(&self, fs: &FileSystem) -> Option<RuleId> {
        for numbered in self.policy.rules().filter(|numbered| numbered.rule.action.family() == Family::Appraise) {
            let rule = numbered.rule;
            let unconditional = Rule { fsmagic: None, fsname: None, fs_subtype: None, fsuuid: None, ..rule.clone() };
            let about_fs = rule.fsmagic.is_none_or(|magic| magic == fs.magic)
                && rule.fsname.as_deref().is_none_or(|name| name == fs.name)
                && rule.fs_subtype.as_deref().is_none_or(|subtype| fs.subtype.as_deref() == Some(subtype))
                && rule.fsuuid.is_none_or(|uuid| uuid == fs.uuid);
            if !about_fs {
                continue;
            }
            match rule.action.verb() {
                // Something on this file system may be appraised before any later rule is looked at.
                Verb::Do => return None,
                Verb::Dont if unconditional.to_string() == rule.action.name() => return Some(numbered.id),
                Verb::Dont => {}
            }
        }
        None
    }
}

/// Root opens the file.
fn event<'f>(mask: Mask, facts: &FileFacts, fs: &'f FileSystem) -> Event<'f> {
    let object = Object { owner: facts.owner, group: facts.group, fs };
    Event::of_file(Hook::FileCheck, mask, Subject::ROOT, object)
}

/// The file systems met so far.
#[derive(Debug, Default)]
pub(crate) struct FileSystems(Mutex<HashMap<(u32, u32), Arc<FileSystem>>>);

impl FileSystems {
    /// The file system with this device number, which `file` is on; looked up once.
    pub(crate) fn of(&self, device: (u32, u32), file: BorrowedFd<'_>) -> Result<Arc<FileSystem>, MountError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&device) {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(filesystem_of(file)?);
        known.insert(device, Arc::clone(&found));
        Ok(found)
    }
}

/// Which rule keeps the whole file system out that a directory is on, so that nothing there has to be opened; remembers
/// the last answer, because neighbours are mostly alike.
#[derive(Debug, Default)]
pub(crate) struct RuledOut(Option<((u32, u32), Option<RuleId>)>);

impl RuledOut {
    pub(crate) fn by(&mut self, rules: &Rules, filesystems: &FileSystems, directory: &Directory) -> Option<RuleId> {
        let device = directory.device?;
        match self.0 {
            Some((last, rule)) if last == device => rule,
            _ => {
                let rule = rules.rules_out(&*filesystems.of(device, directory.file()).ok()?);
                self.0 = Some((device, rule));
                rule
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fs(magic: u64) -> FileSystem {
        FileSystem { magic, name: "x".into(), subtype: None, uuid: [0; 16] }
    }

    #[test]
    fn a_rule_keeps_a_whole_file_system_out_only_if_nothing_else_is_asked_first() {
        for (text, magic, expected) in [
            ("dont_appraise fsmagic=1\nappraise", 1, Some(0)),
            ("dont_appraise fsmagic=1\nappraise", 2, None),
            ("appraise fowner=7\ndont_appraise fsmagic=1", 1, None),
            ("dont_appraise fsmagic=1 fowner=0\nappraise", 1, None),
            ("dont_appraise func=FILE_CHECK fsmagic=1\ndont_appraise fsmagic=1\nappraise", 1, Some(1)),
            ("appraise fsmagic=2\ndont_appraise", 1, Some(1)),
            ("dont_measure fsmagic=1\nappraise", 1, None),
        ] {
            let policy = Policy::parse(text.as_bytes(), &Options::default()).unwrap();
            let rules = Rules { policy, name: "p".into() };
            assert_eq!(rules.rules_out(&fs(magic)).map(RuleId::index), expected, "{text:?} {magic}");
        }
    }
}
