//! Files that the kernel answers for, and files that are recalled: whoever changes them all the same is heard of.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{CWD, Mode, OFlags};

use crate::daemon::{Daemon, EVERYTHING_OF_ROOT, Log, RunDir, eventually};
use crate::files::{self, REFUSED, error_of, label_becomes, label_of, read_label};
use crate::image::ext4;
use crate::patterns::tool;

/// Whoever opens a file for writing passes, and labels do not follow him.
const ONLY_READERS: &str = "appraise func=FILE_CHECK mask=MAY_READ fowner=0\n";

/// Much longer than a notice takes, and shorter than a known file is left to the kernel.
const AT_ONCE: Duration = Duration::from_secs(30);

fn counter(daemon: &Daemon, section: &str, name: &str) -> u64 {
    daemon.status()[section][name].as_u64().unwrap()
}

/// Opens a file until the kernel answers for it.
fn left_to_the_kernel(daemon: &Daemon, path: &Path) {
    let before = counter(daemon, "counters", "ignored_known");
    let left = eventually(|| {
        files::read(path).unwrap();
        (counter(daemon, "counters", "ignored_known") > before).then_some(())
    });
    assert!(left.is_some(), "{}", path.display());
}

fn append_without_waiting(path: &Path) -> io::Result<()> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    OpenOptions::new().append(true).custom_flags(flags).open(path)?.write_all(b" and more")
}

/// `truncate(2)`, which opens nothing and closes nothing; to several lengths in turn.
fn cut(path: &Path, lengths: &[u64]) {
    let one = |length: &u64| format!("truncate({:?}, {length}) or die $!;", path.to_str().unwrap());
    let script: String = lengths.iter().map(one).collect();
    tool("perl", &["-e", &script], &[]).unwrap();
}

fn guard(policy: &str, scratch: &ScratchMount) -> Daemon {
    Daemon::with(RunDir::new(), "enforce", policy, &[scratch.path()], Log::Read)
}

#[test]
fn a_writer_that_does_not_wait_is_sent_away_once_where_the_kernel_answers_and_then_let_in() {
    let Some(_) = testing::root() else { return };
    for kind in [FsKind::Ext4, FsKind::Tmpfs] {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let path = scratch.path().join("file");
        files::make(&path, b"content");
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        left_to_the_kernel(&daemon, &path);
        assert_eq!(error_of(append_without_waiting(&path)), Some(libc_again()), "{kind:?}");
        // The guard gives the lease back as soon as it hears of him, and takes no more for a while.
        assert!(eventually(|| append_without_waiting(&path).ok()).is_some(), "{kind:?}");
        label_becomes(&path, b"content and more");
        for _ in 0..3 {
            files::read(&path).unwrap();
        }
        append_without_waiting(&path).unwrap();
        label_becomes(&path, b"content and more and more");
        daemon.stop();
    }
}

fn libc_again() -> i32 {
    rustix::io::Errno::AGAIN.raw_os_error()
}

#[test]
fn a_file_that_was_just_made_is_left_to_the_kernel_and_one_that_is_written_again_is_not() {
    let Some(_) = testing::root() else { return };
    for kind in [FsKind::Ext4, FsKind::Tmpfs] {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let path = scratch.path().join("made");
        std::fs::write(&path, b"content").unwrap();
        left_to_the_kernel(&daemon, &path);
        // He breaks the lease, and is followed.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b" and more").unwrap();
        label_becomes(&path, b"content and more");
        let before = counter(&daemon, "counters", "ignored_known");
        for _ in 0..5 {
            files::read(&path).unwrap();
        }
        assert_eq!(counter(&daemon, "counters", "ignored_known"), before, "{kind:?}");
        daemon.stop();
    }
}

#[test]
fn a_file_that_is_cut_by_a_reader_is_labelled_at_once_where_the_kernel_answers() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, kind_size(kind)).unwrap();
        let path = scratch.path().join("file");
        files::make(&path, &[7; 5000]);
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        left_to_the_kernel(&daemon, &path);
        let flags = OFlags::RDONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        drop(rustix::fs::openat(CWD, &path, flags, Mode::empty()).unwrap());
        let begin = Instant::now();
        label_becomes(&path, b"");
        assert!(begin.elapsed() < AT_ONCE, "{kind:?}: nobody told of it");
        files::read(&path).unwrap();
        daemon.stop();
    }
}

const fn kind_size(kind: FsKind) -> u64 {
    if matches!(kind, FsKind::Xfs) { 320 << 20 } else { 128 << 20 }
}

#[test]
fn whoever_reads_a_file_at_the_moment_in_which_it_is_cut_is_not_refused() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, kind_size(kind)).unwrap();
        let paths: Vec<PathBuf> = (0..120).map(|number| scratch.path().join(number.to_string())).collect();
        paths.iter().for_each(|path| files::make(path, &[9; 20_000]));
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        for (number, path) in paths.iter().enumerate() {
            // Recalled, known, or left to the kernel.
            for _ in 0..number % 3 + 1 {
                files::read(path).unwrap();
            }
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let readers: Vec<_> = (0..2)
                    .map(|_| {
                        scope.spawn(|| {
                            while !over.load(Ordering::Relaxed) {
                                File::open(path)?;
                            }
                            File::open(path).map(drop)
                        })
                    })
                    .collect();
                cut(path, &[12_345, 100, 0]);
                over.store(true, Ordering::Relaxed);
                for reader in readers {
                    reader.join().unwrap().unwrap_or_else(|error| panic!("{kind:?} {}: {error}", path.display()));
                }
            });
        }
        paths.iter().for_each(|path| label_becomes(path, b""));
        daemon.stop();
    }
}

#[test]
fn a_file_whose_label_was_renewed_is_not_forgotten_and_followed_when_it_is_cut() {
    let Some(_) = testing::root() else { return };
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
        let scratch = ScratchMount::new(kind, kind_size(kind)).unwrap();
        let path = scratch.path().join("file");
        files::make(&path, b"content");
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        files::append(&path, b" and more").unwrap();
        label_becomes(&path, b"content and more");
        // It is held for some seconds, and then only remembered.
        let held = || (counter(&daemon, "remembered", "known") == 0).then_some(());
        assert!(eventually(held).is_some(), "{kind:?}");
        assert_eq!(counter(&daemon, "remembered", "recall"), 1, "{kind:?}");
        cut(&path, &[7]);
        label_becomes(&path, b"content");
        files::read(&path).unwrap();
        daemon.stop();
    }
}

#[test]
fn a_writer_whom_nobody_judges_is_not_vouched_for_by_one_who_was() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = scratch.path().join("file");
    files::make(&path, b"content");
    let daemon = guard(EVERYTHING_OF_ROOT, &scratch);
    let judged = files::open_to_change(&path).unwrap();
    chown(&path, Some(65534), None).unwrap();
    files::append(&path, b", tampered with").unwrap();
    chown(&path, Some(0), None).unwrap();
    drop(judged);
    assert!(eventually(|| (error_of(files::read(&path)) == REFUSED).then_some(())).is_some());
    assert_eq!(read_label(&path), Some(label_of(b"content")));
    daemon.stop();
}

#[test]
fn a_reader_does_not_vouch_for_a_writer_whom_nobody_judges() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = scratch.path().join("file");
    files::make(&path, b"content");
    let daemon = guard(ONLY_READERS, &scratch);
    let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
    assert_eq!(files::read(&path).unwrap(), b"content");
    writer.write_all(b", tampered with").unwrap();
    drop(writer);
    assert!(eventually(|| (error_of(files::read(&path)) == REFUSED).then_some(())).is_some());
    assert_eq!(read_label(&path), Some(label_of(b"content")));
    daemon.stop();
}

#[test]
fn how_a_file_is_opened_is_known_of_those_too_who_do_not_sleep_yet_when_they_are_asked_about() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, bad) = files::good_and_bad(scratch.path());
    let daemon = guard(ONLY_READERS, &scratch);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    drop(OpenOptions::new().write(true).open(&bad).unwrap());
                }
            });
        }
    });
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    daemon.stop();
}

#[test]
fn of_a_good_file_that_is_opened_once_nothing_is_held_when_its_opener_is_let_in() {
    let Some(_) = testing::root() else { return };
    for kind in [FsKind::Ext4, FsKind::Btrfs] {
        let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
        let paths: Vec<PathBuf> = (0..50).map(|number| scratch.path().join(number.to_string())).collect();
        paths.iter().for_each(|path| files::make(path, b"content"));
        // What has changed just now is hashed again at the next open, and held.
        std::thread::sleep(Duration::from_millis(50));
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        for path in &paths {
            let _open = File::open(path).unwrap();
            let held = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).unwrap();
            let held = held.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
            assert_eq!(held.filter(|held| held == path).count(), 0, "{kind:?}: {}", path.display());
            // He breaks no lease, so he is not sent away.
            append_without_waiting(path).unwrap();
        }
        assert_eq!(counter(&daemon, "counters", "lease_breaks"), 0, "{kind:?}");
        label_becomes(&paths[0], b"content and more");
        daemon.stop();
    }
}

#[test]
fn however_many_files_are_left_to_the_kernel_the_guard_does_not_go_through_them_each_second() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 128 << 20).unwrap();
    let paths: Vec<PathBuf> = (0..4000).map(|number| scratch.path().join(number.to_string())).collect();
    for path in &paths {
        std::fs::write(path, b"").unwrap();
        chown(path, Some(1), None).unwrap();
    }
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    paths.iter().for_each(|path| drop(File::open(path).unwrap()));
    assert!(counter(&daemon, "counters", "ignored_unasked") >= 4000, "{}", daemon.status());
    let accounts = format!("/proc/{0}/task/{0}/io", daemon.id());
    let read = || {
        let accounts = std::fs::read_to_string(&accounts).ok()?;
        accounts.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok())
    };
    let Some(before) = read() else { return testing::skipped("root", "task I/O accounting") };
    std::thread::sleep(Duration::from_secs(4));
    let bytes = read().unwrap() - before;
    assert!(bytes < 64 << 10, "{bytes} bytes were read in four seconds in which nothing happened");
    daemon.stop();
}
