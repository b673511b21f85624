//! Disks that are slow or silent: in which order openers are answered, and who does not wait.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use imara_linux::testing::{self, FsKind};

use crate::daemon::{Daemon, complaints, eventually};
use crate::faulty::{Fault, FaultyDisk};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

/// Writes everything to the disk.
fn sync(directory: &Path) {
    rustix::fs::syncfs(File::open(directory).unwrap()).unwrap();
}

/// A file of this size, of which 16 MiB have been written, that is not what its label says.
fn huge(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("huge");
    files::make(&path, &vec![1; 16 << 20]);
    OpenOptions::new().write(true).open(&path).unwrap().set_len(size).unwrap();
    path
}

/// Somebody who opens a file and is gone when he has been answered.
fn opener(path: &Path) -> Child {
    Command::new("head").args(["-c", "1"]).arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the kernel has asked about the open of this process and there is no answer.
fn waits(opener: &Child) {
    let place = format!("/proc/{}/wchan", opener.id());
    let waits = || fs::read_to_string(&place).is_ok_and(|place| place.contains("fanotify")).then_some(());
    assert!(eventually(waits).is_some(), "nobody asks the guard");
}

#[test]
fn ten_gigabytes_on_a_slow_disk_keep_nobody_waiting() {
    let Some(_) = testing::root() else { return };
    for kind in [FsKind::Ext4, FsKind::Xfs] {
        let (mut disk, other) = (FaultyDisk::new(kind, 1 << 30), ext4());
        let (good, bad) = good_and_bad(other.path());
        let (cached, cold) = (disk.path().join("cached"), disk.path().join("cold"));
        let huge = huge(disk.path(), 10 << 30);
        files::make(&cached, b"in memory");
        files::make(&cold, &vec![2; 300_000]);
        sync(disk.path());
        // A second for each read of its content; at least a minute in all.
        disk.content_becomes(Fault::Slow(1000), &huge);
        disk.cycle();
        let daemon = Daemon::start("enforce", &[disk.path(), other.path()]);
        files::read(&cached).unwrap();
        let mut reader = opener(&huge);
        waits(&reader);
        eventually(|| (daemon.status()["remembered"]["busy"] == 1).then_some(())).unwrap();
        for number in 0..50 {
            for path in [&cached, &good] {
                files::read(path).unwrap();
            }
            assert_eq!(error_of(File::open(&bad)), REFUSED);
            for directory in [disk.path(), other.path()] {
                let new = directory.join(format!("new-{number}"));
                fs::write(&new, b"new").unwrap();
                assert_eq!(files::read(&new).unwrap(), b"new");
            }
        }
        assert_eq!(files::read(&cold).unwrap(), vec![2; 300_000], "what has to be read from the same disk");
        assert_eq!(reader.try_wait().unwrap(), None, "{kind:?}: all of them came before it");
        reader.kill().unwrap();
        reader.wait().unwrap();
        // The reading goes on; the end of the guard does not wait for it.
        let said = complaints(&daemon.stop());
        assert!(said.iter().all(|complaint| complaint.name == bad.to_str().unwrap()), "{kind:?}: {said:?}");
    }
}

#[test]
fn openers_of_one_file_are_answered_in_the_order_in_which_they_came() {
    let Some(_) = testing::root() else { return };
    let mut disk = FaultyDisk::new(FsKind::Ext4, 64 << 20);
    let path = disk.path().join("file");
    files::make(&path, &vec![1; 1 << 20]);
    files::change_last_byte(&path).unwrap();
    sync(disk.path());
    disk.content_becomes(Fault::Silent, &path);
    disk.cycle();
    let daemon = Daemon::start("enforce", &[disk.path()]);
    let mut openers = Vec::new();
    for number in 0..12 {
        let opener = opener(&path);
        waits(&opener);
        // It is in the guard's hand, not only in the kernel's queue.
        let asked = || (daemon.status()["counters"]["asked"].as_u64()? > number).then_some(());
        assert!(eventually(asked).is_some());
        openers.push(opener);
    }
    disk.heals();
    let came: Vec<_> = openers.iter().map(|opener| format!("pid={}", opener.id())).collect();
    for mut opener in openers {
        assert!(!opener.wait().unwrap().success());
    }
    let lines = daemon.stop();
    let answered: Vec<_> =
        lines.iter().filter(|line| line.contains(" cause=")).map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(answered, came);
}

#[test]
fn more_work_than_workers_waits_in_a_queue_and_loses_nobody() {
    let Some(_) = testing::root() else { return };
    let (mut disk, other) = (FaultyDisk::new(FsKind::Ext4, 128 << 20), ext4());
    let medium = other.path().join("medium");
    files::make(&medium, &vec![1; 200_000]);
    let paths: Vec<_> = (0..200).map(|number| disk.path().join(number.to_string())).collect();
    for path in &paths {
        files::make(path, &vec![1; 100_000]);
    }
    sync(disk.path());
    for path in &paths {
        disk.content_becomes(Fault::Silent, path);
    }
    disk.cycle();
    let daemon = Daemon::start("enforce", &[disk.path(), other.path()]);
    let read = AtomicUsize::new(0);
    thread::scope(|scope| {
        for path in &paths {
            let read = &read;
            scope.spawn(move || {
                assert_eq!(files::read(path).unwrap().len(), 100_000);
                read.fetch_add(1, Ordering::Relaxed);
            });
        }
        eventually(|| (daemon.status()["remembered"]["busy"] == paths.len()).then_some(())).unwrap();
        // Not a thread for each of them: there are 128 workers at most, of which this file system has half.
        let threads = fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap().count();
        assert!(threads < 128 + 20, "{threads} threads");
        assert_eq!(files::read(&medium).unwrap().len(), 200_000, "another file system has workers too");
        assert_eq!(read.load(Ordering::Relaxed), 0);
        disk.heals();
    });
    assert_eq!(read.into_inner(), paths.len());
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn a_silent_disk_keeps_nobody_elsewhere_waiting_and_neither_umount_nor_the_end_of_the_guard() {
    let Some(_) = testing::root() else { return };
    let (mut disk, other) = (FaultyDisk::new(FsKind::Xfs, 300 << 20), FaultyDisk::new(FsKind::Ext4, 64 << 20));
    let (good, bad) = good_and_bad(other.path());
    let (silent, medium) = (disk.path().join("silent"), other.path().join("medium"));
    files::make(&silent, &vec![1; 1 << 20]);
    files::make(&medium, &vec![1; 200_000]);
    sync(disk.path());
    disk.content_becomes(Fault::Silent, &silent);
    disk.cycle();
    let mut daemon = Daemon::start("enforce", &[disk.path(), other.path()]);
    let mut reader = opener(&silent);
    waits(&reader);
    eventually(|| (daemon.status()["remembered"]["busy"] == 1).then_some(())).unwrap();
    for _ in 0..20 {
        files::read(&good).unwrap();
        files::read(&medium).unwrap();
        fs::write(other.path().join("new"), b"new").unwrap();
        assert_eq!(error_of(File::open(&bad)), REFUSED);
    }
    assert_eq!(reader.try_wait().unwrap(), None);
    // Unmounted while the other one hangs: nothing of the guard keeps it.
    let point = other.path().to_path_buf();
    assert!(eventually(|| Command::new("umount").arg(&point).status().unwrap().success().then_some(())).is_some());
    daemon.says("has gone and is no longer guarded");
    daemon.signal(rustix::process::Signal::TERM);
    // Let through by the end of the guard, he reads, which is not the guard's affair any more.
    let let_in = eventually(|| {
        let place = fs::read_to_string(format!("/proc/{}/wchan", reader.id())).unwrap();
        (!place.contains("fanotify")).then_some(())
    });
    assert!(let_in.is_some());
    disk.heals();
    assert!(reader.wait().unwrap().success());
    assert_eq!(daemon.wait().and_then(|status| status.code()), Some(0), "{:#?}", daemon.lines());
}
