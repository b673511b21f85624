//! The process of a guard: heard from its beginning, and gone when nobody needs it any more.

use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::print::complain;
use crate::run::{apart, wait_until};

/// A process that guards, or is about to; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it. What comes on its standard error is for `hear`, line by line, in a thread of its own. Returned with it: what
    /// it says first on standard output, when it does so. To be called by a thread that outlives it.
    pub(crate) fn start(
        command: &mut Command,
        mut hear: impl FnMut(String) + Send + 'static,
    ) -> Result<(Self, Receiver<String>)> {
        apart(command).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let mut process = Self(child);
        let errors = process.0.stderr.take().context("the guard has no standard error")?;
        let out = process.0.stdout.take().context("the guard has no standard output")?;
        std::thread::spawn(move || BufReader::new(errors).lines().map_while(Result::ok).for_each(&mut hear));
        let (sender, first) = channel();
        std::thread::spawn(move || {
            let (mut out, mut line) = (BufReader::new(out), String::new());
            // An empty line stands for one that cannot be read.
            let _ = out.read_line(&mut line);
            let _ = sender.send(line);
            io::copy(&mut out, &mut io::sink())
        });
        Ok((process, first))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Kills it, so that all who wait for it go on.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
    }

    /// Asks it to end, as an administrator would; how it did so, if in time.
    pub(crate) fn end(&mut self, patience: Duration) -> Result<Option<ExitStatus>> {
        kill(Pid::from_raw(i32::try_from(self.id())?), Signal::SIGTERM)?;
        wait_until(patience, || self.ended())
    }
}

impl Drop for Process {
    /// Ctrl-C may be why: that does not shorten the time it has.
    fn drop(&mut self) {
        self.kill();
        for _ in 0..500 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        complain(format_args!("the guard (process {}) is killed, but still there", self.id()));
    }
}
