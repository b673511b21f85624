//! Daemons to whom the C library does what it never does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir};

/// Where the faults of a daemon are switched on; gone when dropped.
#[derive(Debug)]
pub(crate) struct Faults {
    directory: RunDir,
    library: PathBuf,
}

impl Faults {
    /// Builds the library of faults, none of which is on.
    pub(crate) fn new() -> Self {
        let directory = RunDir::new();
        let (source, library) = (directory.path().join("faults.c"), directory.path().join("faults.so"));
        fs::write(&source, include_str!("faults.c")).unwrap();
        // Whatever links Rust programs can do that.
        let mut cc = Command::new("cc");
        let built = cc.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]).args([&library, &source]).output().unwrap();
        assert!(built.status.success(), "{built:?}");
        Self { directory, library }
    }

    /// Switches a fault on.
    pub(crate) fn begin(&self, fault: &str) {
        fs::write(self.directory.path().join(fault), "").unwrap();
    }

    /// A daemon to whom this happens.
    pub(crate) fn daemon(&self, mode: &str, mount: &Path, log: Log) -> Daemon {
        let run_dir = RunDir::new();
        let policy = run_dir.policy(EVERYTHING_OF_ROOT);
        let mut command = daemon::command(run_dir.path(), mode, &policy, &[mount]);
        command.env("LD_PRELOAD", &self.library).env("IMARA_FAULTS", self.directory.path());
        Daemon::run(run_dir, command, log)
    }
}
