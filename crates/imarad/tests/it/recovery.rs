//! Power cuts: what a disk holds when the machine stops in the midst of writing, and what the next guard makes of it.
//!
//! The disk is a file on an XFS. A reflink copy of it is what a disk without a cache of its own would hold at that moment: what the
//! guarded file system has written out, and nothing of what is only in memory. The journal is on the same disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::process::Signal;

use crate::daemon::{Daemon, eventually};
use crate::files::{self, error_of, label_is_right, label_of, make, open_to_change, read, set_label, strip_label};
use crate::patterns::truncated_by_path;

/// A machine that can be stopped by pulling the plug.
struct Machine {
    kind: FsKind,
    host: ScratchMount,
    point: PathBuf,
}

impl Machine {
    fn new(kind: FsKind) -> Self {
        let host = ScratchMount::new(FsKind::Xfs, 4 << 30).unwrap();
        let machine = Self { kind, point: host.path().join("mount"), host };
        fs::create_dir(&machine.point).unwrap();
        File::create(machine.disk("disk")).unwrap().set_len(kind.minimum().max(64 << 20)).unwrap();
        let mut mkfs = Command::new(format!("mkfs.{}", kind.name()));
        mkfs.arg(if kind == FsKind::Ext4 { "-F" } else { "-f" }).arg("-q").arg(machine.disk("disk"));
        done(&mut mkfs);
        machine.mount("disk");
        machine
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.host.path().join(name)
    }

    fn mount(&self, name: &str) {
        if self.kind == FsKind::Btrfs {
            // It remembers the newest copy that it has seen, and would take no older one.
            done(Command::new("btrfs").args(["device", "scan", "--forget"]));
        }
        // ext4 writes out its own journal once a second.
        let options = if self.kind == FsKind::Ext4 { "loop,commit=1" } else { "loop" };
        done(Command::new("mount").args(["-o", options]).arg(self.disk(name)).arg(&self.point));
    }

    fn unmount(&self) {
        let unmounted =
            eventually(|| Command::new("umount").arg(&self.point).output().unwrap().status.success().then_some(()));
        assert!(unmounted.is_some(), "{}", self.point.display());
        // As long as the kernel has not let go of it, neither XFS nor btrfs takes a copy of it for another one.
        assert!(eventually(|| self.is_gone().then_some(())).is_some(), "{}", self.host.path().display());
    }

    /// Whether no loop device has any of the disks.
    fn is_gone(&self) -> bool {
        let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("loop/backing_file"));
        let mut disks = devices.filter_map(|path| fs::read_to_string(path).ok());
        !disks.any(|disk| Path::new(disk.trim_end()).starts_with(self.host.path()))
    }

    /// Pulls the plug: what is on the disk now goes to another one.
    fn cut(&self, name: &str) {
        done(Command::new("cp").arg("--reflink=always").arg(self.disk("disk")).arg(self.disk(name)));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// A guard with its state on the guarded disk.
    fn guard(&self, words: &[&str]) -> Daemon {
        Daemon::with_state("enforce", &self.path("state"), words, &self.point)
    }

    /// All files but the guard's own.
    fn files(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(&self.point).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.is_file()).collect()
    }

    /// Those that are refused; but for files that had been made when the machine stopped, and to which nobody had been let in
    /// yet: they are empty and have no label.
    fn refused(&self) -> Vec<PathBuf> {
        let begun = |path: &PathBuf| fs::metadata(path).unwrap().len() > 0 || files::read_label(path).is_some();
        self.files().into_iter().filter(|path| begun(path) && error_of(read(path)) != Some(0)).collect()
    }

    /// The only journal there is.
    fn journal(&self) -> PathBuf {
        let journals = fs::read_dir(self.path("state/journal")).unwrap().map(|entry| entry.unwrap().path());
        let mut journals: Vec<_> = journals.filter(|path| path.extension().is_none()).collect();
        assert_eq!(journals.len(), 1, "{journals:?}");
        journals.remove(0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.point).output());
    }
}

fn done(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// One legitimate change, all of it on the disk before it ends, if `number` says so.
fn change(directory: &Path, number: usize) -> io::Result<()> {
    let path = directory.join(format!("file-{}", number % 23));
    let content = vec![u8::try_from(number % 251).unwrap(); 100 + 997 * (number % 31)];
    let sync = |file: &File| if number.is_multiple_of(3) { file.sync_all() } else { Ok(()) };
    match number % 30 {
        0..6 => {
            let mut file = File::create(&path)?;
            file.write_all(&content)?;
            sync(&file)
        }
        6..12 => {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.write_all_at(&content, 50)?;
            file.sync_all()
        }
        12..18 => {
            let mut file = OpenOptions::new().append(true).open(&path)?;
            file.write_all(b"more")?;
            sync(&file)
        }
        18..24 => {
            let new = directory.join(format!("new-{number}"));
            let mut file = File::create(&new)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(new, path)
        }
        24..29 => {
            let new = directory.join(format!("made-{}", number % 7));
            fs::write(&new, &content)?;
            files::append(&new, b"and")
        }
        _ => {
            // Known by the second time, and cut under a lease.
            let _ = (read(&path)?, read(&path)?);
            truncated_by_path(&path, u64::try_from(content.len()).unwrap())
        }
    }
}

/// Writes without end in several threads, and pulls the plug again and again.
fn cut_while_writing(machine: &Machine, cuts: usize) -> Vec<String> {
    let (over, changes) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for thread in 0..4 {
            let (over, changes) = (&over, &changes);
            scope.spawn(move || {
                let mut number = thread;
                while !over.load(Ordering::Relaxed) {
                    // Two at once may rename the same file.
                    let _ = change(&machine.point, number);
                    number += 4;
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let names = (0..cuts).map(|cut| {
            let seen = changes.load(Ordering::Relaxed);
            let moved = eventually(|| (changes.load(Ordering::Relaxed) > seen + 60).then_some(()));
            // Whatever comes of it, the others must end.
            if moved.is_none() {
                over.store(true, Ordering::Relaxed);
            }
            thread::sleep(Duration::from_millis(u64::try_from(37 * cut % 200).unwrap()));
            let name = format!("cut-{cut}");
            machine.cut(&name);
            name
        });
        let names = names.collect();
        over.store(true, Ordering::Relaxed);
        names
    })
}

/// Begins with files that are good and on the disk.
fn populated(kind: FsKind) -> Machine {
    let machine = Machine::new(kind);
    (0..23).for_each(|number| make(&machine.path(&format!("file-{number}")), &vec![7; 1000 * (number + 1)]));
    make(&machine.path("idle"), b"nobody writes to this");
    done(Command::new("sync").arg("-f").arg(&machine.point));
    machine
}

fn nothing_is_refused_after_power_cuts_on(kind: FsKind) {
    let Some(_) = testing::root() else { return };
    let machine = populated(kind);
    let guard = machine.guard(&[]);
    let cuts = cut_while_writing(&machine, 6);
    assert_eq!(machine.refused(), Vec::<PathBuf>::new(), "while it runs");
    guard.stop();
    machine.unmount();
    for cut in &cuts {
        machine.mount(cut);
        let guard = machine.guard(&[]);
        assert_eq!(machine.refused(), Vec::<PathBuf>::new(), "{cut}: {:#?}", guard.lines());
        guard.stop();
        // It was not only let in: it has its label again.
        let guard = machine.guard(&["--recover", "deny"]);
        assert_eq!(machine.refused(), Vec::<PathBuf>::new(), "{cut}, afterwards");
        guard.stop();
        machine.unmount();
    }
    machine.mount("disk");
}

#[test]
fn no_file_that_was_being_written_is_refused_after_a_power_cut_on_ext4() {
    nothing_is_refused_after_power_cuts_on(FsKind::Ext4);
}

#[test]
fn no_file_that_was_being_written_is_refused_after_a_power_cut_on_xfs() {
    nothing_is_refused_after_power_cuts_on(FsKind::Xfs);
}

#[test]
fn no_file_that_was_being_written_is_refused_after_a_power_cut_on_btrfs() {
    nothing_is_refused_after_power_cuts_on(FsKind::Btrfs);
}

/// Files that are open for writing, and changed on the disk, at the moment of a power cut.
const OPEN: [&str; 5] = ["file-0", "file-1", "file-2", "file-3", "file-4"];

/// The plug is pulled while [`OPEN`] are open and have been changed. What was on the disk then is mounted, unguarded.
fn cut_while_open(words: &[&str]) -> Machine {
    let machine = populated(FsKind::Ext4);
    let guard = machine.guard(words);
    let open: Vec<File> = OPEN.iter().map(|name| open_to_change(&machine.path(name)).unwrap()).collect();
    for file in &open {
        file.write_all_at(b"half", 3).unwrap();
        file.sync_all().unwrap();
    }
    machine.cut("cut");
    drop(open);
    guard.stop();
    machine.unmount();
    machine.mount("cut");
    machine
}

fn names(paths: Vec<PathBuf>) -> Vec<String> {
    let mut names: Vec<_> = paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn without_the_journal_a_power_cut_does_leave_files_that_are_refused() {
    let Some(_) = testing::root() else { return };
    let machine = cut_while_open(&["--journal", "off"]);
    let guard = machine.guard(&["--journal", "off"]);
    assert_eq!(names(machine.refused()), OPEN);
    guard.stop();
}

#[test]
fn the_administrator_says_what_becomes_of_files_that_were_being_written() {
    let Some(_) = testing::root() else { return };
    let machine = cut_while_open(&[]);
    let guard = machine.guard(&["--recover", "deny"]);
    assert_eq!(names(machine.refused()), OPEN);
    guard.stop();
    // What was found stays in the journal until it has been seen to.
    let guard = machine.guard(&["--recover", "ask"]);
    assert_eq!(names(machine.refused()), OPEN);
    for name in OPEN {
        guard.says(&format!("if it is right: imara label {}", machine.path(name).display()));
    }
    guard.stop();
    let guard = machine.guard(&["--recover", "relabel"]);
    guard.says("5 files may have been open for writing when the last guard stopped: they get new labels");
    assert_eq!(names(machine.refused()), [""; 0]);
    guard.stop();
}

#[test]
fn what_was_tampered_with_after_the_power_cut_is_refused() {
    let Some(_) = testing::root() else { return };
    let machine = cut_while_open(&[]);
    let path = |name: &str| machine.path(name);
    // Not in the journal: content, label, both.
    files::change_last_byte(&path("idle")).unwrap();
    strip_label(&path("file-10"));
    files::change_last_byte(&path("file-11")).unwrap();
    set_label(&path("file-11"), &label_of(b"something else"));
    // In the journal, but with another label than it says, or none.
    set_label(&path("file-0"), &label_of(b"something else"));
    strip_label(&path("file-1"));
    // In the journal, but another file, if with the same name, content and label; and one with its number.
    let label = files::read_label(&path("file-2")).unwrap();
    let content = read(&path("file-2")).unwrap();
    fs::remove_file(path("file-2")).unwrap();
    fs::write(path("file-2"), &content).unwrap();
    set_label(&path("file-2"), &label);
    let guard = machine.guard(&[]);
    let refused = ["file-0", "file-1", "file-10", "file-11", "file-2", "idle"];
    assert_eq!(names(machine.refused()), refused);
    // The others are as they should be.
    for name in ["file-3", "file-4", "file-12"] {
        assert!(label_is_right(&path(name)), "{name}");
    }
    guard.stop();
}

#[test]
fn a_journal_that_was_tampered_with_helps_nobody() {
    let Some(_) = testing::root() else { return };
    type Change = fn(&Machine, Vec<u8>) -> Vec<u8>;
    let tampered: [(&str, Change); 5] = [
        ("a byte of the first record", |_, mut journal| {
            journal[100] ^= 1;
            journal
        }),
        ("cut after its beginning", |_, journal| journal[..68].to_vec()),
        ("cut within its beginning", |_, journal| journal[..40].to_vec()),
        ("empty", |_, _| Vec::new()),
        ("another host key", |machine, journal| {
            fs::remove_file(machine.path("state/host.key")).unwrap();
            journal
        }),
    ];
    for (what, change) in tampered {
        let machine = cut_while_open(&[]);
        let journal = machine.journal();
        let bytes = fs::read(&journal).unwrap();
        fs::write(&journal, change(&machine, bytes)).unwrap();
        let guard = machine.guard(&[]);
        assert_eq!(names(machine.refused()), OPEN, "{what}");
        guard.stop();
    }
}

#[test]
fn an_old_journal_in_place_of_the_present_one_helps_nobody() {
    let Some(_) = testing::root() else { return };
    let machine = populated(FsKind::Ext4);
    let guard = machine.guard(&[]);
    let open = open_to_change(&machine.path("file-0")).unwrap();
    let old = machine.journal();
    machine.cut("cut");
    drop(open);
    guard.stop();
    // As it was while the file was open.
    let present = fs::read(&old).unwrap();
    machine.unmount();
    machine.mount("cut");
    let bytes = fs::read(machine.journal()).unwrap();
    machine.unmount();
    machine.mount("disk");
    let records = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(records(&bytes) > 100 && present.len() == 68, "a clean stop leaves nothing in it");
    files::change_last_byte(&machine.path("file-0")).unwrap();
    let journal = machine.journal();
    for replayed in [bytes, present[..60].to_vec()] {
        fs::write(&journal, replayed).unwrap();
        let guard = machine.guard(&[]);
        guard.says("nothing of it counts");
        assert_eq!(names(machine.refused()), ["file-0"]);
        guard.stop();
    }
}

#[test]
fn a_writer_that_outlives_the_guard_is_followed_by_the_next_one() {
    let Some(_) = testing::root() else { return };
    let machine = populated(FsKind::Ext4);
    for signal in [Signal::KILL, Signal::TERM] {
        let mut guard = machine.guard(&[]);
        let path = machine.path("file-0");
        let open = open_to_change(&path).unwrap();
        guard.signal(signal);
        assert!(guard.wait().is_some());
        open.write_all_at(format!("{signal:?}").as_bytes(), 0).unwrap();
        let guard = machine.guard(&[]);
        read(&path).unwrap();
        open.write_all_at(b"and more", 20).unwrap();
        drop(open);
        files::label_becomes(&path, &read(&path).unwrap());
        guard.stop();
    }
}

#[test]
fn a_journal_that_cannot_be_written_keeps_nobody_from_writing() {
    let Some(_) = testing::root() else { return };
    let machine = populated(FsKind::Ext4);
    let state = ScratchMount::new(FsKind::Tmpfs, 1 << 20).unwrap();
    for mode in ["enforce", "log", "fix"] {
        let guard = Daemon::with_state(mode, state.path(), &[], &machine.point);
        guard.says("journal-not-written");
        let path = machine.path("file-0");
        files::append(&path, b"more").unwrap();
        files::label_becomes(&path, &read(&path).unwrap());
        assert!(guard.status()["failures"]["journal-not-written"].as_u64().unwrap() >= 2, "{mode}");
        guard.stop();
    }
}

#[test]
fn nobody_but_the_writer_waits_for_a_journal_whose_disk_stands_still_and_he_not_for_ever() {
    let Some(_) = testing::root() else { return };
    let (machine, state) = (populated(FsKind::Ext4), crate::image::ext4());
    let guard = Daemon::with_state("enforce", state.path(), &[], &machine.point);
    done(Command::new("fsfreeze").arg("-f").arg(state.path()));
    let (gone_on, path) = (AtomicBool::new(false), machine.path("file-0"));
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            let appended = files::append(&path, b"more");
            gone_on.store(true, Ordering::Relaxed);
            appended.unwrap();
        });
        let waits = eventually(|| (guard.status()["journal"]["writing"] == 1).then_some(()));
        // The same file too.
        let others: Vec<_> = (0..23).map(|number| error_of(read(&machine.path(&format!("file-{number}"))))).collect();
        let waited = !gone_on.load(Ordering::Relaxed);
        guard.says("its disk does not answer");
        (waits, others, waited)
    });
    // Now nobody waits any more.
    files::append(&machine.path("file-1"), b"more").unwrap();
    done(Command::new("fsfreeze").arg("-u").arg(state.path()));
    assert_eq!(seen, (Some(()), vec![Some(0); 23], true));
    let covered = eventually(|| {
        files::append(&machine.path("file-2"), b"more").unwrap();
        let before = guard.status()["failures"]["journal-not-written"].as_u64();
        files::append(&machine.path("file-3"), b"more").unwrap();
        (guard.status()["failures"]["journal-not-written"].as_u64() == before).then_some(())
    });
    assert!(covered.is_some(), "it goes on when its disk does");
    guard.stop();
}
