//! What the administrator wants guarded, and how: from the command line or from `imara.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use imara_integrity::check::{Mode, Settings};
use imara_integrity::digest::HashAlgorithm;
use imara_integrity::label;
use serde::Deserialize;

use crate::log::Sink;

/// Where the socket and the lock live unless told otherwise.
pub(crate) const RUN_DIR: &str = "/run/imara";

/// The policy unless told otherwise: appraise all files owned by root.
pub(crate) const POLICY: &str = "builtin:appraise_tcb";

/// Everything the guard needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Mode and algorithm of new labels.
    pub(crate) settings: Settings,
    /// A file, or `builtin:NAME`.
    pub(crate) policy: String,
    /// Mount points of the file systems to guard; at least one.
    pub(crate) mounts: Vec<PathBuf>,
    /// Directory of the control socket and the lock.
    pub(crate) run_dir: PathBuf,
    /// Where log lines go.
    pub(crate) log: Sink,
}

/// `imara.toml`. Unknown keys are errors: a misspelt `mode` must not leave a host in another one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    mode: Option<String>,
    policy: Option<String>,
    mounts: Vec<PathBuf>,
    hash: Option<String>,
    run_dir: Option<PathBuf>,
    log: Option<String>,
}

impl Config {
    /// Reads `imara.toml`.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a configuration of imarad", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text)?;
        let log = match file.log.as_deref() {
            None | Some("stderr") => Sink::Stderr,
            Some("journald") => Sink::Journal,
            Some(other) => bail!("log = {other:?} (expected \"stderr\" or \"journald\")"),
        };
        let mode = file.mode.as_deref().map_or(Ok(Mode::Enforce), str::parse)?;
        let hash = file.hash.as_deref().map_or(Ok(HashAlgorithm::Sha256), str::parse)?;
        Self {
            settings: Settings { mode, hash },
            policy: file.policy.unwrap_or_else(|| POLICY.into()),
            mounts: file.mounts,
            run_dir: file.run_dir.unwrap_or_else(|| RUN_DIR.into()),
            log,
        }
        .checked()
    }

    /// Refuses what cannot be meant.
    pub(crate) fn checked(self) -> anyhow::Result<Self> {
        if !label::can_be_read_back(self.settings.hash) {
            bail!("hash = \"md4\" cannot be used for labels: they could not be told from md5 labels (use sha256)");
        }
        if self.mounts.is_empty() {
            bail!("no mount point is named, so nothing would be guarded (name at least one, e.g. mounts = [\"/usr\"])");
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
            run_dir: RUN_DIR.into(),
            log: Sink::Stderr,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_key_is_taken() {
        let text = "mode = \"log\"\npolicy = \"/etc/ima/ima-policy\"\nmounts = [\"/\", \"/usr\"]\nhash = \"sha512\"\n\
                    run_dir = \"/run/x\"\nlog = \"journald\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.settings, Settings { mode: Mode::Log, hash: HashAlgorithm::Sha512 });
        assert_eq!(config.policy, "/etc/ima/ima-policy");
        assert_eq!(config.mounts, [PathBuf::from("/"), PathBuf::from("/usr")]);
        assert_eq!((config.run_dir, config.log), (PathBuf::from("/run/x"), Sink::Journal));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, word) in [
            ("mounts = []", "no mount point"),
            ("mounts = [\"/\"]\nmod = \"log\"", "mod"),
            ("mounts = [\"/\"]\nmode = \"permissive\"", "permissive"),
            ("mounts = [\"/\"]\nhash = \"sha257\"", "sha257"),
            ("mounts = [\"/\"]\nhash = \"md4\"", "md5"),
            ("mounts = [\"/\"]\nlog = \"syslog\"", "syslog"),
            ("mode = \"log\"", "mounts"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
