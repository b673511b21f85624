//! What a real kernel did, done again under guard: `vectors/appraise/new-files.tsv` and `exec.tsv`.
//!
//! The steps of [`steps`] are those of `vectors/appraise/README.md`. A denial is `EACCES` there and `EPERM` here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imara_linux::testing;
use imara_linux::xattr;

use crate::daemon::{Daemon, Log, RunDir, complaints, eventually};
use crate::files;
use crate::image::ext4;
use crate::steps::{Play, hex, unhex};

const TABLES: [&str; 2] =
    [include_str!("../../../../vectors/appraise/new-files.tsv"), include_str!("../../../../vectors/appraise/exec.tsv")];

const POLICY: &str = include_str!("../../../../vectors/appraise/scenarios/policy");

/// Scenarios that go on in another way from one step on, in every mode, and why; see `docs/kernel-differences.md`.
/// What they do then is tested elsewhere.
type Difference = (&'static [(&'static str, u32)], &'static str);

const DIFFERENCES: &[Difference] = &[
    (
        &[
            ("create-read", 1),
            ("create-read-later-write", 1),
            ("create-setlabel-close", 1),
            ("mknod", 2),
            ("mknod-evict", 3),
        ],
        "a file made without a writer gets its label at its first open, not at its first close by a writer",
    ),
    (&[("create-grow-by-path", 3)], "new means empty: content that no writer has brought makes a file old"),
    (&[("create-truncate", 4), ("good-truncate-read", 2)], "truncate(2) of a file known to be good is followed"),
    (
        &[("create-direct", 1), ("good-write-direct", 1), ("good-read-direct", 1)],
        "the guard reads through a descriptor of its own, so O_DIRECT is no obstacle",
    ),
    (
        &[("create-chown-open", 4), ("good-chown-while-open", 4), ("good-chown-twice-open", 5)],
        "a writer that was let in is followed to his close, whoever owns the file by then",
    ),
    (
        &[("renew-sha512-chmod", 4), ("renew-sha512-utimes-open", 3)],
        "a label that is still right is kept, whatever was done to the inode",
    ),
    (&[("set-refused", 1)], "nobody asks about setxattr(2), so odd labels can be set; they count as bad ones"),
];

/// One row.
#[derive(Debug)]
struct Row {
    step: u32,
    action: Vec<&'static str>,
    result: &'static str,
    cause: &'static str,
    label: &'static str,
}

/// A scenario in one mode.
#[derive(Debug)]
struct Scenario {
    name: &'static str,
    files: &'static str,
    rows: Vec<Row>,
}

fn scenarios(wanted: &str) -> Vec<Scenario> {
    let mut all: Vec<Scenario> = Vec::new();
    for line in TABLES.iter().flat_map(|table| table.lines().skip(1)) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, mode, files, step, action, result, cause, label] = fields[..] else { panic!("{line:?}") };
        if mode != wanted {
            continue;
        }
        if step == "1" {
            all.push(Scenario { name, files, rows: Vec::new() });
        }
        let action = action.split(' ').collect();
        all.last_mut().unwrap().rows.push(Row { step: step.parse().unwrap(), action, result, cause, label });
    }
    all
}

/// Makes the files of a scenario in a directory of its own.
fn prepare(directory: &Path, files: &str) {
    fs::create_dir(directory).unwrap();
    for file in files.split(',').filter(|files| *files != "-") {
        let [name, content, label] = file.split(':').collect::<Vec<_>>()[..] else { panic!("{file:?}") };
        let path = directory.join(name);
        testing::install_bytes(&unhex(content), &path).unwrap();
        if label != "-" {
            files::set_label(&path, &unhex(label));
        }
    }
}

/// A directory that can be made the root, in which a file system is mounted on `scratch`: programs and scripts name
/// their interpreters so.
#[derive(Debug)]
struct Root {
    point: PathBuf,
    // Removed last.
    directory: RunDir,
}

impl Root {
    fn new(mounted: &Path) -> Self {
        let directory = RunDir::new();
        let point = directory.path().join("scratch");
        fs::create_dir(&point).unwrap();
        assert!(Command::new("mount").arg("--bind").arg(mounted).arg(&point).status().unwrap().success());
        Self { point, directory }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.point).status());
    }
}

/// The label as the tables show it.
fn shown_label(path: &Path) -> String {
    let mut buffer = vec![0; xattr::MAX_VALUE];
    match rustix::fs::getxattr(path, xattr::IMA, &mut *buffer) {
        Ok(length) => hex(&buffer[..length]),
        Err(_) => "-".to_owned(),
    }
}

/// What the daemon has complained about since the last time, as the tables show it.
#[derive(Debug)]
struct Ear<'d> {
    daemon: &'d Daemon,
    heard: usize,
    sentinel: PathBuf,
}

impl Ear<'_> {
    fn causes(&mut self) -> Vec<String> {
        // The complaint about it comes after all earlier ones.
        drop(fs::File::open(&self.sentinel));
        let mut new = Vec::new();
        let end = eventually(|| {
            let lines = self.daemon.lines();
            new = complaints(&lines[self.heard..]);
            let place = new.iter().position(|found| Path::new(&found.name) == self.sentinel)?;
            new.truncate(place);
            self.heard = lines.len();
            Some(())
        });
        assert!(end.is_some(), "no complaint about {}", self.sentinel.display());
        let show = |name: &str, cause: &str| match name.rsplit('/').next() {
            Some("f") | None => cause.to_owned(),
            Some(name) => format!("{name}={cause}"),
        };
        new.iter().map(|found| show(&found.name, &found.cause)).collect()
    }
}

/// Causes as they are compared: the kernel's hooks ask more often than a program is opened, so there each counts once.
fn causes_of<'c>(row: &Row, causes: impl Iterator<Item = &'c str>) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for cause in causes {
        if !kept.contains(&cause) || !matches!(row.action[0], "exec" | "mapexec") {
            kept.push(cause);
        }
    }
    if kept.is_empty() { "-".to_owned() } else { kept.join(" ") }
}

/// The label that a row shows.
fn label_of(play: &Play, row: &Row) -> String {
    play.touched(&row.action).map_or_else(|| "-".to_owned(), |path| shown_label(&path))
}

/// The first step that went otherwise, and how.
fn first_difference(
    scenario: &Scenario,
    play: &mut Play,
    ear: &mut Ear<'_>,
    known: Option<u32>,
) -> Option<(u32, String)> {
    for row in &scenario.rows {
        if row.action[0] == "drop" {
            // What the kernel forgets with the inode.
            ear.daemon.ask(r#"{"command":"release"}"#);
            continue;
        }
        let mut result = play.step(&row.action);
        let causes = ear.causes();
        if result == "EPERM" && !causes.is_empty() {
            result = "EACCES".to_owned();
        }
        let causes = causes_of(row, causes.iter().map(String::as_str));
        let expected = (row.result.to_owned(), causes_of(row, row.cause.split(' ')), row.label.to_owned());
        let mut label = label_of(play, row);
        if known != Some(row.step) || (&result, &causes) == (&expected.0, &expected.1) {
            // The kernel has renewed a label when close(2) returns; we do that a moment later.
            eventually(|| {
                label = label_of(play, row);
                ((label == row.label) != (known == Some(row.step))).then_some(())
            });
        }
        let found = (result, causes, label);
        if found != expected {
            return Some((row.step, format!("{:?}: expected {expected:?}, found {found:?}", row.action)));
        }
    }
    None
}

fn known_difference(name: &str) -> Option<u32> {
    let all = DIFFERENCES.iter().flat_map(|(scenarios, _)| *scenarios);
    all.filter(|(known, _)| *known == name).map(|(_, step)| *step).next()
}

fn replay(mode: &str) {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let root = Root::new(scratch.path());
    let all = scenarios(mode);
    assert_eq!(all.len(), 181, "all are there");
    for scenario in &all {
        prepare(&scratch.path().join(scenario.name), scenario.files);
    }
    let sentinel = scratch.path().join("sentinel");
    fs::write(&sentinel, b"always complained about, never repaired").unwrap();
    files::set_label(&sentinel, &unhex("0302040102030400080001020304050607"));
    let daemon = Daemon::with(RunDir::new(), mode, POLICY, &[scratch.path()], Log::Read);
    let mut ear = Ear { daemon: &daemon, heard: 0, sentinel };
    let mut wrong = Vec::new();
    for scenario in &all {
        let known = known_difference(scenario.name);
        let mut play = Play::new(root.directory.path(), scenario.name);
        let found = first_difference(scenario, &mut play, &mut ear, known);
        if found.as_ref().map(|(step, _)| *step) != known {
            wrong.push(format!("{}, expected to differ at step {known:?}: {found:?}", scenario.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    daemon.stop();
    // What came later has changed nothing any more.
    for scenario in all.iter().filter(|scenario| known_difference(scenario.name).is_none()) {
        let play = Play::new(root.directory.path(), scenario.name);
        let last = scenario.rows.iter().rev().find(|row| row.action[0] != "drop").unwrap();
        let Some(path) = play.touched(&last.action) else { continue };
        assert_eq!(shown_label(&path), last.label, "{} at the end", scenario.name);
    }
}

#[test]
fn what_a_kernel_did_in_enforce_is_done_here_too() {
    replay("enforce");
}

#[test]
fn what_a_kernel_did_in_log_is_done_here_too() {
    replay("log");
}

#[test]
fn what_a_kernel_did_in_fix_is_done_here_too() {
    replay("fix");
}
