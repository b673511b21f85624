//! Daemons to whom the C library does what it never does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir};

/// A queue of the kernel's that has so many places.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Queue {
    /// Of those whose opens are judged.
    OfQuestions(u32),
    /// Of changes and of new names.
    OfNotices(u32),
}

/// The limit of queues; read when a group is opened, by groups that want one.
const LIMIT: &str = "/proc/sys/fs/fanotify/max_queued_events";

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

    /// A daemon with a queue that is bounded.
    pub(crate) fn daemon_with_queue(&self, mode: &str, mount: &Path, queue: Queue) -> Daemon {
        /// Only one test at a time has a limit of its own. Others want none.
        static LIMITED: Mutex<()> = Mutex::new(());
        let (fault, limit) = match queue {
            Queue::OfQuestions(limit) => ("bounded", limit),
            Queue::OfNotices(limit) => ("bounded-notices", limit),
        };
        self.begin(fault);
        let _limited = LIMITED.lock().unwrap_or_else(PoisonError::into_inner);
        let before = fs::read_to_string(LIMIT).unwrap();
        fs::write(LIMIT, limit.to_string()).unwrap();
        let daemon = self.daemon(mode, mount, Log::Read);
        fs::write(LIMIT, before).unwrap();
        daemon
    }
}
