//! The daemon that is put to the test.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use imara_linux::control::Connection;
use serde_json::Value;

use crate::process::Process;
use crate::run::wait_until;

/// How long it may take to start, to end or to answer, on a machine that is busy with other things too.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many of its last lines are kept.
const LINES: usize = 12;

/// A daemon in mode `enforce`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    process: Process,
    run_dir: PathBuf,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Guard {
    /// Starts it for one mount and waits until it guards. To be called by a thread that outlives it.
    pub(crate) fn start(imarad: &Path, beside: &Path, policy: &str, mount: &Path) -> Result<Self> {
        Self::start_with(imarad, beside, policy, mount, (&beside.join("state"), "all"))
    }

    /// The same with a directory for its state, and the name of what it keeps a journal of.
    pub(crate) fn start_with(
        imarad: &Path,
        beside: &Path,
        policy: &str,
        mount: &Path,
        (state, journal): (&Path, &str),
    ) -> Result<Self> {
        let (run_dir, file) = (beside.join("run"), beside.join("policy"));
        fs::create_dir_all(&run_dir)?;
        fs::write(&file, policy)?;
        let mut command = Command::new(imarad);
        command.args(["--mode", "enforce", "--policy"]).arg(file).arg("--run-dir").arg(&run_dir);
        command.arg("--state-dir").arg(state).args(["--journal", journal]).arg(mount);
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let heard = Arc::clone(&lines);
        let (process, first) = Process::start(&mut command, move |line| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push_back(line);
            if heard.len() > LINES {
                heard.pop_front();
            }
        })?;
        let guard = Self { process, run_dir, lines };
        let announced = wait_until(PATIENCE, || Ok(first.try_recv().ok()))?.unwrap_or_default();
        if !announced.starts_with("guarding ") {
            bail!("the guard did not start: {announced:?}; {}", guard.last_words());
        }
        Ok(guard)
    }

    /// The end of its log.
    pub(crate) fn last_words(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().fold("it said:".to_owned(), |text, line| text + "\n    " + line)
    }

    /// What it tells of itself.
    pub(crate) fn status(&self) -> Result<Value> {
        let mut connection = Connection::connect(&self.run_dir.join("control"), PATIENCE)?;
        connection.send(br#"{"command":"status"}"#)?;
        let answer = connection.receive()?.context("the guard does not answer")?;
        Ok(serde_json::from_slice(&answer)?)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.process.ended()?.is_some())
    }

    /// Kills it, so that all who wait for it go on.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends it as an administrator would.
    pub(crate) fn end(mut self) -> Result<()> {
        let Some(status) = self.process.end(PATIENCE)? else {
            bail!("the guard did not end within {} s of SIGTERM; {}", PATIENCE.as_secs(), self.last_words());
        };
        ensure!(status.success(), "the guard ended with {status}; {}", self.last_words());
        Ok(())
    }
}
