//! Many at once: no refusal of what is good, no pass for what is bad, at any moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, complaints};
use crate::files::{self, REFUSED, label_becomes};

const THREADS: usize = 8;

/// Changes a file in one of several ways.
fn change(path: &Path, how: usize, mark: &str) -> io::Result<()> {
    match how % 5 {
        0 => fs::write(path, mark),
        1 => files::append(path, mark.as_bytes()),
        2 => {
            let temporary = path.with_extension(mark);
            fs::write(&temporary, mark)?;
            fs::rename(&temporary, path)
        }
        3 => {
            let mut file = files::open_to_change(path)?;
            file.write_all(mark.as_bytes())?;
            file.sync_all()
        }
        _ => files::open_to_change(path)?.set_len(u64::try_from(how).unwrap() % 64 + 1),
    }
}

/// Eight threads change and read `files`, each at its own pace through all of them.
fn change_and_read(files: &[PathBuf], rounds: usize) -> Vec<String> {
    let refusals = Mutex::new(Vec::new());
    let note = |what: &str, path: &Path, error: &io::Error| {
        // Others may be renaming over it or have just made it shorter; only refusals count.
        if error.raw_os_error() == REFUSED {
            refusals.lock().unwrap().push(format!("{what} {}: {error}", path.display()));
        }
    };
    thread::scope(|scope| {
        for number in 0..THREADS {
            let note = &note;
            scope.spawn(move || {
                for round in 0..rounds {
                    let path = &files[(round * (number * 2 + 1) + number * 31) % files.len()];
                    if let Err(error) = change(path, round + number, &format!("{number}-{round}")) {
                        note("changing", path, &error);
                    }
                    for path in [path, &files[(round * 7 + number) % files.len()]] {
                        if let Err(error) = files::read(path) {
                            note("reading", path, &error);
                        }
                    }
                }
            });
        }
    });
    refusals.into_inner().unwrap()
}

fn labelled_files(directory: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|number| {
            let path = directory.join(format!("file-{number}"));
            files::make(&path, format!("content {number}").as_bytes());
            path
        })
        .collect()
}

fn eight_threads_on(kind: FsKind) {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
    let files = labelled_files(scratch.path(), 200);
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    assert_eq!(change_and_read(&files, 300), Vec::<String>::new());
    for path in &files {
        label_becomes(path, &files::read(path).unwrap());
    }
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn nobody_is_refused_while_eight_threads_change_two_hundred_files_on_ext4() {
    eight_threads_on(FsKind::Ext4);
}

#[test]
fn nobody_is_refused_while_eight_threads_change_two_hundred_files_on_xfs() {
    eight_threads_on(FsKind::Xfs);
}

#[test]
fn nobody_is_refused_while_eight_threads_change_two_hundred_files_on_btrfs() {
    eight_threads_on(FsKind::Btrfs);
}

#[test]
fn nobody_is_refused_while_eight_threads_change_two_hundred_files_on_tmpfs() {
    eight_threads_on(FsKind::Tmpfs);
}

#[test]
fn nobody_is_refused_if_eight_threads_change_the_same_three_files() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let files = labelled_files(scratch.path(), 3);
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        assert_eq!(change_and_read(&files, 100), Vec::<String>::new(), "{kind:?}");
        for path in &files {
            label_becomes(path, &files::read(path).unwrap());
        }
        assert_eq!(complaints(&daemon.stop()), [], "{kind:?}");
    }
}

#[test]
fn readers_of_a_file_that_is_rewritten_all_the_time_are_never_refused_and_those_of_a_bad_one_always() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (small, large) = (scratch.path().join("small"), scratch.path().join("large"));
        let bad = scratch.path().join("bad");
        files::make(&small, &[0; 5000]);
        files::make(&large, &[0; 200_000]);
        files::make(&bad, b"good");
        files::change_last_byte(&bad).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let (done, reads) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            for path in [&small, &large, &small, &large] {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        files::read(path).unwrap_or_else(|error| panic!("{kind:?}: {}: {error}", path.display()));
                        assert_eq!(files::read(&bad).unwrap_err().raw_os_error(), REFUSED, "{kind:?}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let rewritten = thread::Builder::new().spawn_scoped(scope, || {
                for round in 0..200_u8 {
                    for path in [&small, &large] {
                        let length = if path == &small { 5000 } else { 200_000 };
                        match round % 4 {
                            0 => fs::write(path, vec![round; length])?,
                            1 => files::change_last_byte(path)?,
                            2 => files::change_last_byte_mapped(path)?,
                            _ => {
                                let new = path.with_extension("new");
                                fs::write(&new, vec![round; length])?;
                                fs::rename(&new, path)?;
                            }
                        }
                    }
                }
                io::Result::Ok(())
            });
            let rewritten = rewritten.unwrap().join();
            done.store(true, Ordering::Relaxed);
            rewritten.unwrap().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        });
        assert!(reads.load(Ordering::Relaxed) > 0);
        let wrong: Vec<_> = complaints(&daemon.stop())
            .into_iter()
            .filter(|c| Path::new(&c.name) != bad || c.action != "denied")
            .collect();
        assert_eq!(wrong, [], "{kind:?}");
    }
}

#[test]
fn nobody_is_refused_when_many_create_the_same_file_at_once() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let refusals = AtomicU32::new(0);
        let together = Barrier::new(THREADS);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (refusals, together, directory) = (&refusals, &together, scratch.path());
                scope.spawn(move || {
                    for round in 0..2000 {
                        let path = directory.join(round.to_string());
                        together.wait();
                        // Lock files are opened like this, and watched by those who only read.
                        let opened = match number % 4 {
                            0 => File::open(&path),
                            1 => OpenOptions::new().read(true).write(true).open(&path),
                            _ => OpenOptions::new().read(true).append(true).create(true).open(&path),
                        };
                        let done =
                            opened.and_then(|mut file| if number == 3 { file.write_all(b"mine") } else { Ok(()) });
                        if done.is_err_and(|error| error.raw_os_error() == REFUSED) {
                            refusals.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(refusals.load(Ordering::Relaxed), 0, "{kind:?}");
        assert_eq!(complaints(&daemon.stop()), [], "{kind:?}");
    }
}

/// A guard that enforces, started by a shell that has set a limit before.
fn limited(limit: &str, mount: &Path) -> Daemon {
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let whole = daemon::command(run_dir.path(), "enforce", &policy, &[mount]);
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(format!("{limit} && exec \"$@\""))
        .arg("bash")
        .arg(whole.get_program())
        .args(whole.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Daemon::run(run_dir, command, Log::Read)
}

#[test]
fn writers_do_not_wait_for_leases_whose_signals_are_lost() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let files = labelled_files(scratch.path(), 40);
    // No signal with a descriptor in it can be queued for such a process.
    let daemon = limited("ulimit -i 0", scratch.path());
    // What is read for the second time is held by a lease.
    for path in files.iter().chain(&files) {
        files::read(path).unwrap();
    }
    assert_eq!(daemon.status()["remembered"]["known"], 40);
    // truncate(2) asks nobody and waits for each lease.
    let script = "truncate($_, 3) or die $! for @ARGV";
    assert!(Command::new("perl").args(["-e", script]).args(&files).status().unwrap().success());
    for path in &files {
        label_becomes(path, b"con");
    }
    assert_eq!(change_and_read(&files, 40), Vec::<String>::new());
    for path in &files {
        label_becomes(path, &files::read(path).unwrap());
    }
    assert!(daemon.status()["failures"]["lease-signal-lost"].as_u64().unwrap() > 0);
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn a_guard_with_few_descriptors_forgets_more_but_refuses_nobody() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let files = labelled_files(scratch.path(), 400);
    let daemon = limited("ulimit -n 300", scratch.path());
    assert_eq!(change_and_read(&files, 100), Vec::<String>::new());
    for path in &files {
        files::read(path).unwrap();
    }
    let known = daemon.status()["remembered"]["known"].as_u64().unwrap();
    assert!((1..=150).contains(&known), "{known} remembered");
    assert_eq!(complaints(&daemon.stop()), []);
}
