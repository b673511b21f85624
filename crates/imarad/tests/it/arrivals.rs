//! File systems that go and come while the guard runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imara_linux::testing;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, eventually};
use crate::files::{self, label_becomes};
use crate::starting::{Device, bad_file, done, is_refused};
use crate::violations::{MEASURED, Opener, READ, WRITE, counted};

/// A file system that is mounted, and a file on it that is bad.
fn mounted() -> (Device, PathBuf) {
    let device = Device::new();
    device.make();
    device.mount();
    let bad = bad_file(&device.point);
    (device, bad)
}

/// A guard that awaits a file system, which need not be there.
fn awaiting(point: &Path, policy: &str) -> Daemon {
    let run_dir = RunDir::new();
    let policy = run_dir.policy(policy);
    let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[]);
    command.arg("--later").arg(point).stdin(Stdio::null());
    Daemon::run(run_dir, command, Log::Read)
}

/// Waits until this many mounts have come and are guarded.
fn has_come(daemon: &Daemon, times: usize) {
    let told = || daemon.lines().iter().filter(|line| line.contains("has come and is guarded")).count();
    assert!(eventually(|| (told() >= times).then_some(())).is_some(), "{:#?}", daemon.lines());
}

fn awaited(daemon: &Daemon) -> usize {
    daemon.status()["awaited"].as_array().unwrap().len()
}

#[test]
fn what_is_mounted_again_is_guarded_again_and_so_is_another_file_system_in_its_place() {
    let Some(_) = testing::root() else { return };
    let (device, bad) = mounted();
    let daemon = Daemon::start("enforce", &[&device.point]);
    assert!(is_refused(&bad));
    device.umount();
    assert!(eventually(|| (awaited(&daemon) == 1).then_some(())).is_some());
    device.mount();
    has_come(&daemon, 1);
    assert_eq!((awaited(&daemon), is_refused(&bad)), (0, true));
    // All of it works there: new files, changes, and files that the kernel answers for.
    let new = device.point.join("new");
    fs::write(&new, b"new").unwrap();
    label_becomes(&new, b"new");
    (0..4).for_each(|_| assert_eq!(files::read(&new).unwrap(), b"new"));
    files::append(&new, b", and more").unwrap();
    label_becomes(&new, b"new, and more");
    device.umount();
    device.make();
    device.mount();
    has_come(&daemon, 2);
    let old = device.point.join("old");
    files::make(&old, b"content");
    // Its maker may have been followed, so that its label is renewed once more.
    let refused = eventually(|| {
        files::set_label(&old, &files::label_of(b"another"));
        is_refused(&old).then_some(())
    });
    assert!(refused.is_some());
    let mounts = daemon.status()["mounts"].clone();
    assert_eq!((mounts.as_array().unwrap().len(), &mounts[0]["guarded"]), (1, &true.into()), "{mounts}");
    daemon.stop();
}

#[test]
fn what_need_not_be_there_at_the_start_is_guarded_when_it_comes() {
    let Some(_) = testing::root() else { return };
    let (device, bad) = mounted();
    device.umount();
    let daemon = awaiting(&device.point, EVERYTHING_OF_ROOT);
    assert_eq!(awaited(&daemon), 1);
    device.mount();
    has_come(&daemon, 1);
    assert_eq!((awaited(&daemon), is_refused(&bad)), (0, true));
    daemon.stop();
    // Nor does it matter if it is there already.
    let daemon = awaiting(&device.point, EVERYTHING_OF_ROOT);
    has_come(&daemon, 1);
    assert!(is_refused(&bad));
    device.umount();
    daemon.stop();
}

#[test]
fn mounts_that_come_and_go_quickly_and_bind_mounts_leave_the_guard_as_it_is() {
    let Some(_) = testing::root() else { return };
    let (device, bad) = mounted();
    let daemon = Daemon::start("enforce", &[&device.point]);
    for _ in 0..20 {
        let done = eventually(|| Command::new("umount").arg(&device.point).status().unwrap().success().then_some(()));
        assert!(done.is_some());
        device.mount();
    }
    // Whether it was the same file system all the time, or came each time.
    assert!(eventually(|| (awaited(&daemon) == 0).then_some(())).is_some(), "{:#?}", daemon.lines());
    assert!(is_refused(&bad));
    let said = daemon.lines().iter().filter(|line| line.contains("has come")).count();
    let bound = RunDir::new();
    for _ in 0..3 {
        done("mount", &["--bind".as_ref(), &device.point, bound.path()]);
        assert!(is_refused(&bound.path().join("bad")));
        let umount = || Command::new("umount").arg(bound.path()).status().unwrap().success().then_some(());
        assert!(eventually(umount).is_some());
    }
    assert_eq!(daemon.lines().iter().filter(|line| line.contains("has come")).count(), said);
    device.umount();
    assert!(eventually(|| (awaited(&daemon) == 1).then_some(())).is_some());
    device.mount();
    assert!(eventually(|| is_refused(&bad).then_some(())).is_some());
    daemon.stop();
}

#[test]
fn what_another_guard_has_is_taken_when_that_has_ended() {
    let Some(_) = testing::root() else { return };
    let (device, bad) = mounted();
    let first = Daemon::start("enforce", &[&device.point]);
    let second = awaiting(&device.point, EVERYTHING_OF_ROOT);
    second.says("has come and is not guarded yet: ");
    first.stop();
    has_come(&second, 1);
    assert!(is_refused(&bad));
    second.stop();
}

#[test]
fn who_reads_and_writes_at_the_same_time_is_heard_of_on_what_has_come_too() {
    let Some(_) = testing::root() else { return };
    let (device, _) = mounted();
    let path = device.point.join("file");
    files::make(&path, b"content");
    let daemon = awaiting(&device.point, MEASURED);
    has_come(&daemon, 1);
    let mut opener = Opener::shell(&path);
    opener.does("exec 3<$f");
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 0]);
    opener.does("exec 3<&-");
    opener.does(READ);
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 0], "the close of a reader is heard of");
    opener.ends();
    device.umount();
    daemon.stop();
}

#[test]
fn what_comes_in_the_place_of_another_is_not_noted_in_the_journal_of_that() {
    let Some(_) = testing::root() else { return };
    let (device, _) = mounted();
    let path = device.point.join("file");
    files::make(&path, b"content");
    let daemon = Daemon::start("enforce", &[&device.point]);
    let noted = || {
        let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
        let journal = daemon.status()["journal"].clone();
        drop(writer);
        (journal["kept"].as_bool().unwrap(), journal["writing"].as_u64().unwrap())
    };
    assert_eq!(noted(), (true, 1));
    device.umount();
    daemon.says("has gone and is no longer guarded");
    device.mount();
    has_come(&daemon, 1);
    assert_eq!(noted(), (true, 1), "it is the same");
    device.umount();
    assert!(eventually(|| (awaited(&daemon) == 1).then_some(())).is_some());
    device.make();
    device.mount();
    has_come(&daemon, 2);
    fs::write(&path, b"content").unwrap();
    label_becomes(&path, b"content");
    assert_eq!(noted(), (false, 0));
    device.umount();
    daemon.stop();
}
