//! What has frozen machines that other programs of this kind guarded: each once, against this one.
//!
//! Logging that waits for a rotation which waits for the guard (fapolicyd#427, #342); the update of a package, whose tools
//! the guard itself would have to ask (#259, #267); a slow disk, for which the guard is killed by its own watchdog (#237); and
//! mounts that come and go meanwhile.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, eventually};
use crate::faulty::{Fault, FaultyDisk};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

#[test]
fn the_log_is_written_to_the_guarded_file_system_and_rotated_by_whoever_reads_it() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    // Whoever reads it is slower than it is written, so the pipe between them is full and the guard's log waits for him.
    let (mut reading, writing) = std::io::pipe().unwrap();
    command.stderr(writing);
    let daemon = Daemon::run(run_dir, command, Log::Elsewhere);
    let log = scratch.path().join("log");
    let rotated = AtomicBool::new(false);
    let mut logger = |done: &AtomicBool| {
        let (mut count, mut piece) = (0, [0; 512]);
        while let Ok(length @ 1..) = reading.read(&mut piece) {
            // Each is an open that the guard is asked about, while its own log waits for this.
            let mut file = File::options().create(true).append(true).open(&log).unwrap();
            file.write_all(&piece[..length]).unwrap();
            drop(file);
            count += 1;
            if count % 8 == 0 {
                fs::rename(&log, log.with_extension("1")).unwrap();
                fs::copy(log.with_extension("1"), log.with_extension("2")).unwrap();
                rotated.store(true, Ordering::Relaxed);
            }
            if done.load(Ordering::Relaxed) {
                break;
            }
        }
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = &done;
        scope.spawn(move || logger(done));
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    assert_eq!(error_of(File::open(&bad)), REFUSED);
                    files::read(&good).unwrap();
                }
            });
        }
        let seen = eventually(|| rotated.load(Ordering::Relaxed).then_some(()));
        assert!(seen.is_some(), "the log was never rotated");
        assert_eq!(daemon.status()["mode"], "enforce");
        // The next line that is read is the last.
        done.store(true, Ordering::Relaxed);
        eventually(|| {
            assert_eq!(error_of(File::open(&bad)), REFUSED);
            (daemon.status()["counters"]["denied"].as_u64()? > 2000).then_some(())
        })
        .unwrap();
    });
    daemon.stop();
}

#[test]
fn programs_and_libraries_are_replaced_while_they_are_in_use() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let programs: Vec<_> = (0..4).map(|number| scratch.path().join(format!("program-{number}"))).collect();
    for path in &programs {
        files::make_executable(path, &files::program());
    }
    let mut daemon = Daemon::start("enforce", &[scratch.path()]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let users: Vec<_> = programs
            .iter()
            .map(|path| {
                scope.spawn(|| {
                    let mut runs = 0;
                    while !done.load(Ordering::Relaxed) {
                        files::execute(path).unwrap();
                        runs += 1;
                    }
                    runs
                })
            })
            .collect();
        // As dpkg does: the new file beside the old one, synced, renamed over it; and the tools run from there too.
        for round in 0..15 {
            for path in &programs {
                let new = path.with_extension("dpkg-new");
                testing::install_bytes(&files::program(), &new).unwrap();
                File::open(&new).unwrap().sync_all().unwrap();
                fs::rename(&new, path).unwrap();
                assert!(files::execute(path).is_ok(), "round {round}");
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(users.into_iter().all(|user| user.join().unwrap() > 0));
    });
    assert!(daemon.is_running());
    assert_eq!(daemon::complaints(&daemon.stop()), []);
}

#[test]
fn a_disk_that_takes_longer_than_the_watchdog_waits_does_not_end_the_guard() {
    let Some(_) = testing::root() else { return };
    let mut disk = FaultyDisk::new(FsKind::Ext4, 64 << 20);
    let path = disk.path().join("file");
    files::make(&path, &vec![1; 200_000]);
    rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
    // Eleven seconds for each read: more than the watchman (8 s) and systemd's watchdog (10 s) wait for the dispatcher.
    disk.content_becomes(Fault::Slow(11_000), &path);
    disk.cycle();
    let mut daemon = Daemon::start("enforce", &[disk.path()]);
    assert_eq!(files::read(&path).unwrap().len(), 200_000);
    assert!(daemon.is_running());
    assert_eq!(daemon::complaints(&daemon.stop()), []);
}

#[test]
fn mounts_come_and_go_while_files_are_opened_through_them() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Xfs, 300 << 20).unwrap();
    let (good, bad) = good_and_bad(scratch.path());
    let run_dir = RunDir::new();
    let point = run_dir.path().join("again");
    fs::create_dir(&point).unwrap();
    let mut daemon = Daemon::start("enforce", &[scratch.path()]);
    let done = AtomicBool::new(false);
    let quietly = |program: &str, arguments: &[&Path]| {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    files::read(&good).unwrap();
                    assert_eq!(error_of(File::open(&bad)), REFUSED);
                    // There or not; never the bad one.
                    assert_ne!(error_of(File::open(point.join("bad"))), Some(0));
                    drop(File::open(point.join("good")));
                }
            });
        }
        for _ in 0..30 {
            assert!(quietly("mount", &[Path::new("--bind"), scratch.path(), &point]));
            assert!(eventually(|| quietly("umount", &[&point]).then_some(())).is_some());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(daemon.is_running());
    // The last one goes as well, at once.
    assert!(eventually(|| quietly("umount", &[scratch.path()]).then_some(())).is_some());
    daemon.stop();
}
