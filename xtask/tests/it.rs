//! What the demo leaves behind when it does not come to its end: nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use imara_linux::testing::{Watchdog, root, skipped};

/// When a test is given up.
const LIMIT: Duration = Duration::from_secs(120);

/// How long the kernel may take to clean up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A demo that works in a temporary directory of its own.
struct Demo {
    place: PathBuf,
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Demo {
    /// Absent, and said so, where it cannot be run.
    fn start(name: &str) -> Option<Self> {
        root()?;
        let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
        for program in ["imara", "imarad"] {
            if !xtask.with_file_name(program).exists() {
                skipped("root", &format!("{program} beside {} (cargo build --workspace)", xtask.display()));
                return None;
            }
        }
        let place = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let mut command = Command::new(xtask);
        command.arg("demo").env("TMPDIR", &place).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Some(Self { place, child, out })
    }

    /// Reads lines until one begins a step with this number.
    fn read_to(&mut self, step: u32) {
        let mut line = String::new();
        while !line.trim_start().starts_with(&format!("{step}.")) {
            line.clear();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "the demo ended before step {step}");
        }
    }

    /// Loop devices, mounts of anybody, and programs that know of our directory.
    fn leftovers(&self) -> Vec<String> {
        let place = self.place.to_str().unwrap();
        let devices =
            Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output().unwrap();
        let mut found = lines_with(&devices.stdout, place);
        for process in fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()) {
            let number = process.file_name().unwrap().to_string_lossy().parse::<u32>();
            // A process that has ended meanwhile has nothing.
            if number.is_ok_and(|number| number != self.child.id()) {
                let words = fs::read(process.join("cmdline")).unwrap_or_default();
                found.extend(lines_with(&words, place));
                found.extend(lines_with(&fs::read(process.join("mountinfo")).unwrap_or_default(), place));
            }
        }
        found
    }

    /// The kernel takes mounts and loop devices down a moment after the last process that saw them.
    fn nothing_is_left(&self) {
        let begin = Instant::now();
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.place);
    }
}

fn lines_with(text: &[u8], word: &str) -> Vec<String> {
    String::from_utf8_lossy(text).lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
}

#[test]
fn a_reader_who_goes_away_ends_the_demo_and_nothing_of_it_is_left() {
    let Some(mut demo) = Demo::start("pipe") else { return };
    let _watchdog = Watchdog::start(LIMIT).unwrap();
    demo.read_to(3);
    assert!(!demo.leftovers().is_empty(), "a guard and its mount are there");
    let (nobody, _) = std::io::pipe().unwrap();
    drop(std::mem::replace(&mut demo.out, BufReader::new(ChildStdout::from(std::os::fd::OwnedFd::from(nobody)))));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut demo.child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(demo.child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.starts_with("xtask demo: cannot write to the standard output"), "{said}");
    demo.nothing_is_left();
    assert_eq!(fs::read_dir(&demo.place).unwrap().count(), 0);
}

#[test]
fn a_killed_demo_takes_its_guard_and_its_mount_with_it() {
    let Some(mut demo) = Demo::start("kill") else { return };
    let _watchdog = Watchdog::start(LIMIT).unwrap();
    demo.read_to(3);
    assert!(!demo.leftovers().is_empty(), "a guard and its mount are there");
    demo.child.kill().unwrap();
    demo.child.wait().unwrap();
    demo.nothing_is_left();
}
