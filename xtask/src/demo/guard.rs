//! A guard that runs beside the demo, and what it says.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::process::Process;
use crate::run::wait_until;

/// How long the guard may take to do something that it will do, on a machine that is busy with other things too.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A guard that runs; it is killed when this is dropped.
pub(super) struct Guard {
    process: Process,
    pub(super) announced: String,
    lines: Receiver<String>,
    seen: Vec<String>,
    patience: Duration,
}

impl Guard {
    /// Starts it, and waits until it says that it guards.
    pub(super) fn start(command: &mut Command, patience: Duration) -> Result<Self> {
        let (sender, lines) = channel();
        // Nobody may listen any more.
        let (process, first) = Process::start(command, move |line| drop(sender.send(line)))?;
        let mut guard = Self { process, announced: String::new(), lines, seen: Vec::new(), patience };
        let Some(line) = wait_until(patience, || Ok(first.try_recv().ok()))? else {
            bail!("the guard did not say that it guards within {} s{}", patience.as_secs_f64(), guard.last_words());
        };
        line.trim_end().clone_into(&mut guard.announced);
        if !guard.announced.starts_with("guarding ") {
            let end = wait_until(Duration::from_secs(1), || guard.process.ended())?;
            let status = end.map_or_else(|| "still runs".to_owned(), |status| status.to_string());
            let words = guard.last_words();
            bail!("the guard did not start ({status}): {:?}{words}", guard.announced);
        }
        Ok(guard)
    }

    /// What is in the log by now and not yet forgotten.
    fn log(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// The end of the log, for an error.
    fn last_words(&mut self) -> String {
        let mut words = String::new();
        for line in self.log().iter().rev().take(3).rev() {
            let _ = write!(words, "\n  it said: {line}");
        }
        if words.is_empty() { "; it said nothing".to_owned() } else { words }
    }

    /// Looks at nothing any more that is in the log by now.
    pub(super) fn forget(&mut self) {
        std::thread::sleep(Duration::from_millis(100));
        self.log();
        self.seen.clear();
    }

    /// Waits for a line of the log about this file.
    pub(super) fn line_about(&mut self, file: &Path) -> Result<String> {
        let name = format!(" name={} ", audit_string(file.as_os_str().as_encoded_bytes()));
        let patience = self.patience;
        let found = wait_until(patience, || Ok(self.log().iter().find(|line| line.contains(&name)).cloned()))?;
        let Some(line) = found else {
            bail!("the guard did not log{name}within {} s{}", patience.as_secs_f64(), self.last_words());
        };
        Ok(line)
    }

    /// Waits until so many different files have been logged with `text`; fails if there are more.
    pub(super) fn files_with(&mut self, count: usize, text: &str) -> Result<()> {
        let patience = self.patience;
        let mut found = 0;
        let enough = wait_until(patience, || {
            let named = |line: &String| Some(line.split_once(" name=")?.1.split(' ').next()?.to_owned());
            let mut names: Vec<_> = self.log().iter().filter(|line| line.contains(text)).filter_map(named).collect();
            names.sort();
            names.dedup();
            found = names.len();
            Ok((found >= count).then_some(()))
        })?;
        let (seconds, words) = (patience.as_secs_f64(), self.last_words());
        ensure!(enough.is_some(), "the guard logged {text} for {found} files within {seconds} s, not {count}{words}");
        ensure!(found == count, "the guard logged {text} for {found} files, expected {count}{words}");
        Ok(())
    }

    /// Ends it as an administrator would.
    pub(super) fn end(mut self) -> Result<()> {
        let Some(status) = self.process.end(self.patience)? else {
            let seconds = self.patience.as_secs_f64();
            bail!("the guard did not end within {seconds} s of SIGTERM{}", self.last_words());
        };
        ensure!(status.success(), "the guard ended with {status}{}", self.last_words());
        Ok(())
    }
}

/// A name as audit lines have it: quoted, or in upper-case hex if it has a space, a quote or what is no plain letter.
///
/// Source: Linux `kernel/audit.c`, `audit_log_untrustedstring()`.
fn audit_string(name: &[u8]) -> String {
    if name.iter().all(|byte| matches!(byte, 0x21 | 0x23..=0x7e)) {
        return format!("\"{}\"", String::from_utf8_lossy(name));
    }
    name.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    fn start(script: &str, patience: Duration) -> Result<Guard> {
        Guard::start(Command::new("sh").args(["-c", script]), patience)
    }

    #[test]
    fn a_guard_that_says_nothing_is_not_waited_for_for_ever() {
        let error = start("exec sleep 600", SHORT).err().unwrap().to_string();
        assert_eq!(error, "the guard did not say that it guards within 0.3 s; it said nothing");
    }

    #[test]
    fn a_guard_that_does_not_start_is_quoted() {
        let error = start("echo 'no such file system' >&2; exec >&-; exit 2", PATIENCE).err().unwrap().to_string();
        assert!(error.starts_with("the guard did not start (exit status: 2): \"\""), "{error}");
    }

    #[test]
    fn a_guard_that_does_not_end_is_told_so_and_what_it_said() {
        let mut guard =
            start("trap '' TERM; echo one >&2; echo guarding m; while :; do sleep 1; done", PATIENCE).unwrap();
        wait_until(PATIENCE, || Ok((!guard.log().is_empty()).then_some(()))).unwrap().unwrap();
        guard.patience = SHORT;
        let error = guard.end().unwrap_err().to_string();
        assert_eq!(error, "the guard did not end within 0.3 s of SIGTERM\n  it said: one");
    }

    #[test]
    fn names_are_found_as_the_audit_lines_have_them() {
        for (name, written) in [("/tmp/it's", "\"/tmp/it's\""), ("/a b", "2F612062"), ("/\"", "2F22"), ("/é", "2FC3A9")]
        {
            assert_eq!(audit_string(name.as_bytes()), written);
        }
        let log =
            "echo 'op=x name=\"/a\" dev=x' >&2; echo 'op=y name=2F612062 dev=x' >&2; echo guarding; exec sleep 600";
        assert!(start(log, PATIENCE).is_err(), "guarding what?");
        let mut guard = start(&log.replace("guarding", "guarding m"), PATIENCE).unwrap();
        assert_eq!(guard.line_about(Path::new("/a b")).unwrap(), "op=y name=2F612062 dev=x");
        assert_eq!(guard.line_about(Path::new("/a")).unwrap(), "op=x name=\"/a\" dev=x");
        guard.files_with(2, "dev=x").unwrap();
        assert!(guard.files_with(1, "dev=x").unwrap_err().to_string().contains("for 2 files, expected 1"));
        guard.patience = SHORT;
        assert!(guard.line_about(Path::new("/b")).is_err());
        assert!(guard.files_with(3, "dev=x").is_err());
    }
}
