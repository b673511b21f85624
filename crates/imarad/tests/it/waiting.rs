//! What takes long, a large file or a frozen file system, keeps nobody waiting who wants something else.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::process::Signal;

use crate::daemon::{Daemon, complaints, eventually};
use crate::files::{self, REFUSED, error_of, good_and_bad, label_becomes};
use crate::image::ext4;

#[test]
fn an_opener_that_is_killed_while_it_waits_leaves_no_trace() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let big = sparse(scratch.path(), "big");
    files::make(&scratch.path().join("medium"), b"");
    fs::write(scratch.path().join("medium"), vec![1; 2_000_000]).unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let mut opener = Command::new("cat").arg(&big).spawn().unwrap();
    eventually(|| (daemon.status()["remembered"]["busy"] == 1).then_some(())).unwrap();
    opener.kill().unwrap();
    opener.wait().unwrap();
    assert_eq!(daemon.status()["remembered"]["busy"], 1);
    // Killed at any moment, also just before and just after the answer.
    let medium = scratch.path().join("medium");
    for _ in 0..100 {
        let mut opener = Command::new("cat").arg(&medium).stderr(Stdio::null()).spawn().unwrap();
        opener.kill().unwrap();
        opener.wait().unwrap();
    }
    assert_eq!(error_of(File::open(&medium)), REFUSED, "the next one is answered");
    daemon.stop();
}

/// A file that takes no room and has a wrong label, and is not hashed before any test has ended.
fn sparse(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    files::make(&path, b"");
    OpenOptions::new().write(true).open(&path).unwrap().set_len(64 << 30).unwrap();
    path
}

/// Opens `large` files in threads of their own, and while all of them are being hashed, does something else; whether
/// that came to its end before any of them. Then ends the daemon.
fn done_before(daemon: Daemon, large: &[PathBuf], something: impl FnOnce()) -> bool {
    let answered = AtomicU32::new(0);
    thread::scope(|scope| {
        for path in large {
            let answered = &answered;
            scope.spawn(move || {
                drop(File::open(path));
                answered.fetch_add(1, Ordering::Relaxed);
            });
        }
        eventually(|| (daemon.status()["remembered"]["busy"] == large.len()).then_some(())).unwrap();
        something();
        let before = answered.load(Ordering::Relaxed) == 0;
        daemon.stop();
        before
    })
}

#[test]
fn a_large_file_that_is_being_hashed_keeps_no_small_one_waiting() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let large = [sparse(scratch.path(), "large")];
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let first = done_before(daemon, &large, || {
        for number in 0..50 {
            files::read(&good).unwrap();
            fs::write(scratch.path().join(format!("new-{number}")), b"new").unwrap();
        }
    });
    assert!(first, "100 opens of small files came before the answer about the large one");
}

#[test]
fn more_large_files_than_there_are_workers_keep_no_other_file_waiting() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let medium = scratch.path().join("medium");
    files::make(&medium, &vec![1; 200_000]);
    let workers = thread::available_parallelism().unwrap().get().min(4);
    let large: Vec<_> = (0..2 * workers).map(|number| sparse(scratch.path(), &format!("large-{number}"))).collect();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let first = done_before(daemon, &large, || drop(files::read(&medium).unwrap()));
    assert!(first, "a file of 200 kB waited for files of 64 GiB");
}

/// A frozen file system; thawed when dropped.
pub(crate) struct Frozen<'m>(&'m ScratchMount);

impl<'m> Frozen<'m> {
    pub(crate) fn new(scratch: &'m ScratchMount) -> Self {
        assert!(Command::new("fsfreeze").arg("-f").arg(scratch.path()).status().unwrap().success());
        Self(scratch)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        drop(Command::new("fsfreeze").arg("-u").arg(self.0.path()).status());
    }
}

/// Lets workers wait for a frozen file system, in which labels are to be renewed, and does something; whether that
/// came to its end before the thaw, which comes before a worker is given up, at the latest.
fn done_while_frozen(frozen: &ScratchMount, something: impl FnOnce() + Send) -> bool {
    let paths: Vec<_> = (0..6).map(|number| frozen.path().join(format!("written-{number}"))).collect();
    let mut writers: Vec<_> = paths.iter().map(|path| File::create(path).unwrap()).collect();
    for writer in &mut writers {
        writer.write_all(b"content").unwrap();
        writer.sync_all().unwrap();
    }
    let ice = Frozen::new(frozen);
    drop(writers);
    let thawed = AtomicBool::new(false);
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            something();
            !thawed.load(Ordering::Relaxed)
        });
        let end = Instant::now() + Duration::from_secs(25);
        while !work.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
        }
        thawed.store(true, Ordering::Relaxed);
        drop(ice);
        work.join().unwrap()
    })
}

#[test]
fn a_frozen_file_system_keeps_nobody_on_another_one_waiting() {
    let Some(_) = testing::root() else { return };
    let (frozen, other) = (ext4(), ext4());
    let (good, _) = good_and_bad(other.path());
    let medium = other.path().join("medium");
    files::make(&medium, &vec![1; 200_000]);
    let daemon = Daemon::start("enforce", &[frozen.path(), other.path()]);
    let before = done_while_frozen(&frozen, || {
        files::read(&good).unwrap();
        files::read(&medium).unwrap();
        fs::write(other.path().join("new"), b"new").unwrap();
        files::read(&other.path().join("new")).unwrap();
    });
    assert!(before, "opens on one file system waited for another that was frozen");
    for number in 0..6 {
        label_becomes(&frozen.path().join(format!("written-{number}")), b"content");
    }
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn a_freeze_that_lasts_longer_than_a_worker_may_stand_still_refuses_nobody() {
    let Some(_) = testing::root() else { return };
    let (frozen, other) = (ext4(), ext4());
    let medium = other.path().join("medium");
    files::make(&medium, &vec![1; 200_000]);
    let daemon = Daemon::start("enforce", &[frozen.path(), other.path()]);
    let path = frozen.path().join("written");
    let mut writers: Vec<_> = (0..4).map(|n| File::create(path.with_extension(n.to_string())).unwrap()).collect();
    writers.push(File::create(&path).unwrap());
    for writer in &mut writers {
        writer.write_all(b"content").unwrap();
        writer.sync_all().unwrap();
    }
    let ice = Frozen::new(&frozen);
    drop(writers);
    let found = thread::scope(|scope| {
        let elsewhere = scope.spawn(|| error_of(files::read(&medium)));
        // The first waits until the guard gives the label up; the second finds it given up.
        let here = [error_of(files::read(&path)), error_of(files::read(&path))];
        (elsewhere.join().unwrap(), here)
    });
    drop(ice);
    assert_eq!(found, (Some(0), [Some(0), Some(0)]), "{:#?}", daemon.lines());
    label_becomes(&path, b"content");
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn sigterm_frees_everybody_while_the_guard_waits_for_a_frozen_file_system() {
    let Some(_) = testing::root() else { return };
    let (frozen, other) = (ext4(), ext4());
    let (good, bad) = good_and_bad(other.path());
    let mut daemon = Daemon::start("enforce", &[frozen.path(), other.path()]);
    let before = done_while_frozen(&frozen, || {
        eventually(|| (daemon.status()["remembered"]["busy"] == 6).then_some(())).unwrap();
        daemon.signal(Signal::TERM);
        // Let through as soon as the group is closed.
        assert!(eventually(|| File::open(&bad).ok()).is_some());
        files::read(&good).unwrap();
    });
    assert!(before, "opens waited for a guard that was ended");
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}

#[test]
fn sigkill_frees_everybody_although_threads_of_the_guard_cannot_be_killed() {
    let Some(_) = testing::root() else { return };
    // Workers wait for a label to be written, closers for the end of a file on btrfs.
    let (frozen, closing, other) = (ext4(), ScratchMount::new(FsKind::Btrfs, 256 << 20).unwrap(), ext4());
    let (good, bad) = good_and_bad(other.path());
    let gone = closing.path().join("gone");
    files::make(&gone, b"content");
    let mut daemon = Daemon::start("enforce", &[frozen.path(), closing.path(), other.path()]);
    files::read(&gone).unwrap();
    fs::remove_file(&gone).unwrap();
    let ice = Frozen::new(&closing);
    daemon.ask(r#"{"command":"release"}"#);
    let before = done_while_frozen(&frozen, || {
        eventually(|| (daemon.status()["remembered"]["busy"] == 6).then_some(())).unwrap();
        files::read(&good).unwrap();
        assert_eq!(error_of(File::open(&bad)), REFUSED);
        daemon.signal(Signal::KILL);
        assert!(eventually(|| File::open(&bad).ok()).is_some());
    });
    assert!(before, "opens waited for a guard that was killed");
    drop(ice);
    assert!(daemon.wait().is_some());
}

#[test]
fn sigkill_frees_whoever_waits_for_a_file_that_is_watched_for_changes() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = scratch.path().join("file");
    files::make(&path, b"content");
    let mut daemon = Daemon::start("enforce", &[scratch.path()]);
    // From now on the guard is told of its changes, in a group of notices. While somebody waits for an answer about such a
    // file, the kernel does not end that group: it waits for him. So the one that he waits for has to end before.
    files::read(&path).unwrap();
    eventually(|| (daemon.status()["remembered"]["recall"] == 1).then_some(())).unwrap();
    let mut opener = None;
    daemon.stopped(|| {
        opener = Some(Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().unwrap());
        let id = opener.as_ref().unwrap().id();
        let waits = || {
            let wchan = fs::read_to_string(format!("/proc/{id}/wchan")).unwrap();
            wchan.contains("fanotify").then_some(())
        };
        eventually(waits).expect("he waits for the guard");
        daemon.signal(Signal::KILL);
    });
    let mut opener = opener.unwrap();
    let ended = eventually(|| opener.try_wait().unwrap());
    // If he still waits, the guard cannot go before he has.
    drop(opener.kill());
    drop(opener.wait());
    assert!(daemon.wait().is_some());
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "he was let in");
}

#[test]
fn what_is_being_read_while_the_guard_ends_goes_on() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let large = sparse(scratch.path(), "large");
    let daemon = Daemon::start("log", &[scratch.path()]);
    let content = thread::scope(|scope| {
        let opener = scope.spawn(|| {
            let mut start = [1; 16];
            File::open(&large).and_then(|mut file| file.read_exact(&mut start)).map(|()| start)
        });
        eventually(|| (daemon.status()["remembered"]["busy"] == 1).then_some(())).unwrap();
        daemon.stop();
        opener.join().unwrap()
    });
    assert_eq!(content.unwrap(), [0; 16]);
}
