//! The daemon that is put to the test.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use imara_linux::control::Connection;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::print::complain;
use crate::run::{apart, wait_until};

/// How long it may take to start, to end or to answer, on a machine that is busy with other things too.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many of its last lines are kept.
const LINES: usize = 12;

/// A daemon in mode `enforce`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
    run_dir: PathBuf,
    lines: Arc<Mutex<VecDeque<String>>>,
}

impl Guard {
    /// Starts it for one mount and waits until it guards. To be called by a thread that outlives it.
    pub(crate) fn start(imarad: &Path, beside: &Path, policy: &str, mount: &Path) -> Result<Self> {
        let (run_dir, file) = (beside.join("run"), beside.join("policy"));
        fs::create_dir_all(&run_dir)?;
        fs::write(&file, policy)?;
        let mut command = Command::new(imarad);
        command.args(["--mode", "enforce", "--policy"]).arg(file).arg("--run-dir").arg(&run_dir);
        command.arg("--state-dir").arg(beside.join("state")).arg(mount);
        apart(&mut command).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {}", imarad.display()))?;
        let (out, errors) = (child.stdout.take(), child.stderr.take());
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let guard = Self { child, run_dir, lines: Arc::clone(&lines) };
        let errors = errors.context("the guard has no standard error")?;
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push_back(line);
                if lines.len() > LINES {
                    lines.pop_front();
                }
            }
        });
        let mut out = BufReader::new(out.context("the guard has no standard output")?);
        let (sender, first) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // An empty line stands for one that cannot be read.
            let _ = out.read_line(&mut line);
            let _ = sender.send(line);
            io::copy(&mut out, &mut io::sink())
        });
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
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Kills it, so that all who wait for it go on.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
    }

    /// Ends it as an administrator would.
    pub(crate) fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let Some(status) = wait_until(PATIENCE, || Ok(self.child.try_wait()?))? else {
            bail!("the guard did not end within {} s of SIGTERM; {}", PATIENCE.as_secs(), self.last_words());
        };
        ensure!(status.success(), "the guard ended with {status}; {}", self.last_words());
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        complain(format_args!("the guard (process {}) is killed, but still there", self.child.id()));
    }
}
