//! What is printed: results to standard output, complaints and progress to standard error.
//!
//! A reader that has gone (`imara verify … | head`) is no reason to fail or to stop: the rest is not printed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::words;

/// Nothing moves on the terminal before this.
const PATIENCE: Duration = Duration::from_secs(1);

/// Complaints with the same reason that are told.
const TOLD: u64 = 20;

/// Time between two pictures.
const PICTURE: Duration = Duration::from_millis(200);

/// Prints one complaint, for when there is no [`Screen`].
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "imara: {line}");
}

/// Prints why the program could not run, each cause once.
pub(crate) fn give_up(error: &anyhow::Error) {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // The errors of calls tell their cause themselves.
        if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    complain(&line);
}

/// Prints text to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints one line of JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string(value)? + "\n"))
}

/// What became of printing: a reader that went away does not matter, a full disk does.
pub(crate) fn printed(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error)
            .context("cannot print to standard output, so the result is not complete (fix: make room where it goes)"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether colours are welcome on standard output.
pub(crate) fn colours() -> bool {
    moves(io::stdout().is_terminal(), std::env::var_os("TERM").as_deref())
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether what is printed goes to a terminal that understands more than plain lines.
fn moves(terminal: bool, kind: Option<&OsStr>) -> bool {
    terminal && kind != Some(OsStr::new("dumb"))
}

/// What the moving line tells; counted by the workers.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Files done.
    pub(crate) files: AtomicU64,
    /// Bytes hashed.
    pub(crate) bytes: AtomicU64,
    /// Files that there will be, if that can be guessed, else 0.
    pub(crate) expected: AtomicU64,
}

/// Both streams of a run with many files.
#[derive(Debug)]
pub(crate) struct Screen {
    out: Mutex<Out>,
    moving: Mutex<Moving>,
    stop: Condvar,
    /// How often each reason was complained of.
    reasons: Mutex<BTreeMap<String, u64>>,
    terminal: bool,
    started: Instant,
    pub(crate) progress: Progress,
}

#[derive(Debug)]
struct Out {
    stream: io::BufWriter<io::Stdout>,
    /// The first failure; nothing is printed after it.
    gone: Option<io::Error>,
}

/// The state of the moving line.
#[derive(Debug, Default)]
struct Moving {
    shown: bool,
    over: bool,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self {
            out: Mutex::new(Out { stream: io::BufWriter::with_capacity(64 << 10, io::stdout()), gone: None }),
            moving: Mutex::default(),
            stop: Condvar::new(),
            reasons: Mutex::default(),
            terminal: moves(io::stderr().is_terminal(), std::env::var_os("TERM").as_deref()),
            started: Instant::now(),
            progress: Progress::default(),
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// A line of the result.
    pub(crate) fn line(&self, text: &str) {
        self.write(|out| writeln!(out, "{text}"));
    }

    /// A line of JSON.
    pub(crate) fn json(&self, value: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(value) {
            line.push(b'\n');
            self.write(|out| out.write_all(&line));
        }
    }

    fn write(&self, write: impl FnOnce(&mut io::BufWriter<io::Stdout>) -> io::Result<()>) {
        let moving = self.hide();
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if out.gone.is_none() {
            // On a terminal lines and complaints should appear in their order.
            let written = write(&mut out.stream).and_then(|()| if self.terminal { out.stream.flush() } else { Ok(()) });
            out.gone = written.err();
        }
        drop(moving);
    }

    /// A complaint about one thing, or a remark.
    pub(crate) fn complain(&self, line: &str) {
        let moving = self.hide();
        complain(line);
        drop(moving);
    }

    /// A complaint about one file; with the same reason so many are told, and the others counted.
    pub(crate) fn complain_of(&self, path: &Path, reason: &str) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        let count = reasons.entry(reason.to_owned()).or_default();
        *count += 1;
        let told = *count <= TOLD;
        drop(reasons);
        if told {
            self.complain(&format!("{}: {reason}", words::shown(path)));
        }
    }

    /// Tells how many complaints were not told.
    fn complain_of_others(&self) {
        let reasons = std::mem::take(&mut *self.reasons.lock().unwrap_or_else(PoisonError::into_inner));
        for (reason, count) in reasons {
            if let Some(others @ 1..) = count.checked_sub(TOLD) {
                self.complain(&format!("and {others} more: {reason}"));
            }
        }
    }

    /// Takes the moving line away for as long as the result lives.
    fn hide(&self) -> Option<MutexGuard<'_, Moving>> {
        if !self.terminal {
            return None;
        }
        let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut moving.shown) {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
        Some(moving)
    }

    /// Runs `work` with a moving line beside it, if there is a terminal and it takes longer than a second.
    pub(crate) fn during(&self, work: impl FnOnce()) {
        thread::scope(|scope| {
            if self.terminal {
                // Without the line the work can be done all the same.
                drop(thread::Builder::new().spawn_scoped(scope, || self.move_on()));
            }
            work();
            self.moving.lock().unwrap_or_else(PoisonError::into_inner).over = true;
            self.stop.notify_all();
        });
        drop(self.hide());
        self.complain_of_others();
    }

    /// Sends out what was printed, and tells whether all of it could be. To be called at the end.
    pub(crate) fn finish(&self) -> anyhow::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = out.gone.take();
        printed(failed.map_or_else(|| out.stream.flush(), Err))
    }

    /// Guesses the number of files to come: known if every path is a whole file system that counts its inodes.
    pub(crate) fn expect(&self, paths: &[PathBuf]) {
        let counts = paths.iter().map(|path| imara_linux::mounts::inodes_in_use(path).ok().flatten());
        if let Some(count) = counts.sum() {
            self.progress.expected.store(count, Ordering::Relaxed);
        }
    }

    fn move_on(&self) {
        let mut wait = PATIENCE;
        let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let waited = self.stop.wait_timeout_while(moving, wait, |moving| !moving.over);
            (moving, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if moving.over {
                return;
            }
            wait = PICTURE;
            let line = self.picture();
            // Without wrapping (DECAWM) the terminal cuts the line at its own width, whatever that is just now.
            let _ = io::stderr().write_all(format!("\r\x1b[K\x1b[?7l{line}\x1b[?7h").as_bytes());
            moving.shown = true;
        }
    }

    fn picture(&self) -> String {
        let files = self.progress.files.load(Ordering::Relaxed);
        let bytes = self.progress.bytes.load(Ordering::Relaxed);
        let expected = self.progress.expected.load(Ordering::Relaxed);
        picture(files, bytes, expected, self.started.elapsed())
    }
}

/// The moving line: `[####------] 12345 files 1.2 GB, 8000 files/s 700.0 MB/s, 34 s left`; short enough for 80 columns.
fn picture(files: u64, bytes: u64, expected: u64, elapsed: Duration) -> String {
    const CELLS: u64 = 10;
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = |count: u64| u64::try_from(u128::from(count) * 1000 / u128::from(millis)).unwrap_or(u64::MAX);
    let mut line =
        format!("{files} files {}, {} files/s {}/s", words::bytes(bytes), rate(files), words::bytes(rate(bytes)));
    let Some(left) = expected.checked_sub(files).filter(|_| expected > 0) else { return line };
    let full = usize::try_from(u128::from(files) * u128::from(CELLS) / u128::from(expected)).unwrap_or(0);
    line = format!("[{:-<10}] {line}", "#".repeat(full));
    if rate(files) > 0 {
        line += &format!(", {} s left", left.div_ceil(rate(files)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_moves_on_a_dumb_terminal_nor_where_there_is_none() {
        for (terminal, kind, expected) in [
            (true, Some("xterm"), true),
            (true, None, true),
            (true, Some("dumb"), false),
            (false, Some("xterm"), false),
        ] {
            assert_eq!(moves(terminal, kind.map(OsStr::new)), expected, "{terminal} {kind:?}");
        }
    }

    #[test]
    fn the_moving_line_tells_rates_and_what_is_left_where_that_is_known() {
        let second = Duration::from_secs(2);
        for (files, bytes, expected, line) in [
            (100, 4_000_000, 0, "100 files 4.0 MB, 50 files/s 2.0 MB/s"),
            (100, 0, 300, "[###-------] 100 files 0 B, 50 files/s 0 B/s, 4 s left"),
            (300, 0, 300, "[##########] 300 files 0 B, 150 files/s 0 B/s, 0 s left"),
            (301, 0, 300, "301 files 0 B, 150 files/s 0 B/s"),
            (0, 0, 300, "[----------] 0 files 0 B, 0 files/s 0 B/s"),
        ] {
            assert_eq!(picture(files, bytes, expected, second), line);
        }
    }
}
