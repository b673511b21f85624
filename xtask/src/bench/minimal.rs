//! The least that a guard can be: it reads a question, allows, and closes the file. What it costs is what asking costs.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response};

use crate::print::print_line;
use crate::run::apart;

/// What it is called on the command line. It has a process of its own, as a guard has.
pub(super) const WORD: &str = "--answer";

const READY: &str = "answering";

/// Allows whatever is opened on this file system, until it is killed.
pub(super) fn answer(mount: &Path) -> Result<()> {
    let group = Fanotify::init(InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC, EventFFlags::O_RDONLY)?;
    let what = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_OPEN_EXEC_PERM;
    group.mark(MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM, what, nix::fcntl::AT_FDCWD, Some(mount))?;
    print_line!("{READY}")?;
    loop {
        for event in group.read_events()? {
            if let Some(file) = event.fd() {
                group.write_response(FanotifyResponse::new(file, Response::FAN_ALLOW))?;
            }
        }
    }
}

/// A process that does so; killed when dropped, which lets everybody go.
#[derive(Debug)]
pub(super) struct Minimal(Child);

impl Minimal {
    /// Starts it and waits until it answers.
    pub(super) fn start(mount: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        apart(command.args(["bench", WORD]).arg(mount)).stdout(Stdio::piped());
        let mut minimal = Self(command.spawn().context("cannot run ourselves")?);
        let mut line = String::new();
        let out = minimal.0.stdout.take().context("it has no standard output")?;
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line.trim_end() == READY, "the minimal guard did not start: {line:?}");
        Ok(minimal)
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Minimal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
