//! `imara guard`: becomes `imarad`, which guards in the foreground.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};
use imara_integrity::check::Mode;
use imara_integrity::digest::HashAlgorithm;

use imara_linux::mount_point;

use crate::Ended;
use crate::client::RunDir;
use crate::rules::{self, Rules};
use crate::words::shown;

const EXAMPLES: &str = "\
Label first (imara label -x MOUNT), look (imara verify -x MOUNT), and begin with --mode log.

Prints one line that begins with 'guarding' when every mark is in place. SIGTERM, SIGINT and the end of its terminal end it.
From then on its log is on standard error; --mode log refuses nothing and tells what would be refused.

Examples:
  imara guard --mode log /srv
  imara guard --mode enforce --policy /etc/ima/ima-policy /usr /srv

Exit status: 0 it was ended by a signal that asks for it; 2 it could not begin, or gave up, and says why.";

/// Arguments of `imara guard`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// What happens to files that do not pass: enforce, log, fix or off
    #[arg(long, default_value = "enforce")]
    mode: Mode,
    /// The policy: a file, or builtin:NAME
    #[arg(long, value_name = "P", default_value = rules::DEFAULT)]
    policy: OsString,
    /// Hash algorithm of new labels
    #[arg(long, value_name = "ALG", default_value = "sha256")]
    hash: HashAlgorithm,
    #[command(flatten)]
    run: RunDir,
    /// Directory of the host key and the journal
    #[arg(long, value_name = "DIR", default_value = "/var/lib/imara", env = "IMARA_STATE_DIR")]
    state_dir: PathBuf,
    /// What happens to files that were being written at a power cut: relabel, deny or ask
    #[arg(long, value_name = "WHAT", default_value = "relabel", value_parser = ["relabel", "deny", "ask"])]
    recover: String,
    /// Who waits until it is written down that a file is being written: all, unflushed (for old files not until the disk has
    /// been flushed), labelled (not for new files) or off
    #[arg(long, value_name = "WHO", default_value = "all", value_parser = ["all", "unflushed", "labelled", "off"])]
    journal: String,
    /// Mount points of the file systems to guard
    #[arg(required = true, value_name = "MOUNT")]
    mounts: Vec<PathBuf>,
}

/// Checks everything that can be checked now, and becomes the daemon.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    Rules::load(&arguments.policy)?;
    for mount in &arguments.mounts {
        // Before the daemon is looked for: what was asked for is wrong, and not the installation.
        drop(mount_point::open(mount)?);
    }
    let daemon = find()?;
    // Joined, because a value may begin with a dash.
    let joined = |option: &str, value: &OsStr| {
        let mut word = OsString::from(option);
        word.push(value);
        word
    };
    let error = Command::new(&daemon)
        .args(["--mode", arguments.mode.name(), "--hash", arguments.hash.name()])
        .arg(joined("--policy=", &arguments.policy))
        .arg(joined("--run-dir=", arguments.run.run_dir.as_os_str()))
        .arg(joined("--state-dir=", arguments.state_dir.as_os_str()))
        .args(["--recover", &arguments.recover, "--journal", &arguments.journal])
        .arg("--")
        .args(&arguments.mounts)
        .exec();
    bail!("cannot run {}: {error} (fix: install it anew, executable, in the version of this program)", shown(&daemon))
}

/// The daemon: beside this program, else on the search path, else where packages put it.
fn find() -> anyhow::Result<PathBuf> {
    const ELSEWHERE: [&str; 2] = ["/usr/sbin", "/usr/libexec"];
    let own = std::env::current_exe()
        .map_err(|error| anyhow!("cannot tell where this program is: {error} (fix: see that /proc is mounted)"))?;
    let beside = own.parent().map(Path::to_owned);
    let search = std::env::var_os("PATH").unwrap_or_default();
    let places = beside.into_iter().chain(std::env::split_paths(&search)).chain(ELSEWHERE.map(PathBuf::from));
    let mut candidates = places.filter(|place| place.is_absolute()).map(|place| place.join("imarad"));
    candidates.find(|candidate| candidate.is_file()).with_context(|| {
        format!(
            "imarad is not beside {}, nor on PATH, nor in {} (fix: install it there)",
            shown(&own),
            ELSEWHERE.join(", ")
        )
    })
}
