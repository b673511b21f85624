//! The guard: a daemon that is asked by the kernel before a file is opened, and answers.
//!
//! Read [`start`] for what it takes, [`serve`] for the loop, [`answer`] for the way of one question, [`renew`] for
//! labels that follow changes, [`cover`] for the journal of what is being written, [`failure`] for what happens when something goes wrong.
#![forbid(unsafe_code)]

mod answer;
mod arrivals;
mod ask;
mod book;
mod candidate;
mod claim;
mod closer;
mod config;
mod consider;
mod control;
mod cover;
mod coverage;
mod created;
mod failure;
mod filesystems;
mod histogram;
mod http;
mod ignore;
mod inodes;
mod jobs;
mod journal;
mod keeper;
mod key;
mod log;
mod look;
mod metrics;
mod obey;
mod onlooker;
mod policies;
mod pool;
mod recall;
mod recover;
mod renew;
mod revisit;
mod scribe;
mod serve;
mod start;
mod status;
mod traces;
mod verdict;
mod violations;
mod watchman;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use imara_integrity::check::{Mode, Settings};
use imara_integrity::digest::HashAlgorithm;
use imara_linux::last_words::MemoryOrEnd;

use crate::config::{Config, Keeping};
use crate::recover::Recover;

#[global_allocator]
static MEMORY: MemoryOrEnd = MemoryOrEnd;

/// Guards file systems: a file that is not what its label says is not opened.
#[derive(Debug, Parser)]
#[command(name = "imarad", version, about)]
struct Arguments {
    /// Take everything from this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["mode", "policy", "hash", "run_dir", "state_dir", "recover", "journal", "later", "mounts"])]
    config: Option<PathBuf>,
    /// What happens to files that do not pass: enforce, log, fix or off
    #[arg(long, default_value = "enforce")]
    mode: Mode,
    /// The rules: a file, or builtin:NAME
    #[arg(long, default_value = config::POLICY)]
    policy: String,
    /// Hash algorithm of new labels
    #[arg(long, default_value = "sha256")]
    hash: HashAlgorithm,
    /// Directory of the control socket
    #[arg(long, default_value = config::RUN_DIR, env = "IMARA_RUN_DIR")]
    run_dir: PathBuf,
    /// Directory of the host key and the journal
    #[arg(long, default_value = config::STATE_DIR, env = "IMARA_STATE_DIR")]
    state_dir: PathBuf,
    /// What happens to files that were being written at a power cut: relabel, deny or ask
    #[arg(long, default_value = "relabel")]
    recover: Recover,
    /// Who waits until it is written down that a file is being written: all, unflushed (for old files not until the disk has
    /// been flushed), labelled (not for new files) or off
    #[arg(long, default_value = "all")]
    journal: Keeping,
    /// Mount point of a file system to guard that need not be there yet; may be repeated
    #[arg(long, value_name = "MOUNT")]
    later: Vec<PathBuf>,
    /// Mount points of the file systems to guard
    #[arg(required_unless_present_any = ["config", "later"])]
    mounts: Vec<PathBuf>,
}

impl Arguments {
    fn config(self) -> anyhow::Result<Config> {
        match self.config {
            Some(path) => Config::read(&path),
            None => Config {
                settings: Settings { mode: self.mode, hash: self.hash },
                policy: self.policy,
                mounts: self.mounts,
                later: self.later,
                run_dir: self.run_dir,
                state_dir: self.state_dir,
                recover: self.recover,
                journal: self.journal,
                log: log::Sink::Stderr,
            }
            .checked(),
        }
    }
}

#[expect(clippy::print_stderr, reason = "the only place to say why the guard did not start")]
fn main() -> ExitCode {
    match Arguments::parse().config().and_then(start::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imarad: {error:#}");
            ExitCode::from(2)
        }
    }
}
