//! Each row of the failure table, brought about for real: what the opener gets in each mode is what docs/failures.md
//! promises, and it is logged and counted by its word.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use imara_linux::testing::{self, FsKind};
use rustix::process::{Pid, Resource, Rlimit};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, eventually};
use crate::faults::{Faults, Queue};
use crate::faulty::{Fault, FaultyDisk};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

/// Those that look at anything.
const MODES: [&str; 3] = ["enforce", "log", "fix"];

/// The page that administrators read.
const PAGE: &str = include_str!("../../../../docs/failures.md");

/// What the page says that the opener gets, as [`error_of`] an open.
fn promised(word: &str, mode: &str) -> Option<i32> {
    let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{word}` |")));
    let row = row.unwrap_or_else(|| panic!("{word} is not on the page"));
    let answer = row.rsplit(" | ").next().unwrap();
    if answer.starts_with("refused in `enforce`, let through in `log` and `fix`") {
        return if mode == "enforce" { REFUSED } else { Some(0) };
    }
    if answer.starts_with("the kernel has refused the open") {
        return REFUSED;
    }
    let let_through = ["let through: ", "the kernel has let the opener through"];
    assert!(let_through.iter().any(|text| answer.starts_with(text)), "{answer:?} is tested in another way");
    Some(0)
}

/// Waits until a failure has been counted and logged. How often, and the line.
fn told(daemon: &Daemon, word: &str) -> (u64, String) {
    let line = daemon.says(&format!("imarad: {word}: "));
    (daemon.status()["failures"][word].as_u64().unwrap(), line)
}

/// The same for one that costs a judgement: what was made of it follows in the kernel's wording.
fn told_with_record(daemon: &Daemon, word: &str, mode: &str) -> u64 {
    let (count, _) = told(daemon, word);
    let record = daemon.says("op=collect_data cause=failed");
    let action = if promised(word, mode) == REFUSED { "action=denied" } else { "action=allowed" };
    assert!(record.ends_with(action), "{mode}: {record}");
    count
}

fn limit(daemon: &Daemon, resource: Resource, current: Option<u64>) -> Rlimit {
    let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    let hard = rustix::process::getrlimit(resource).maximum;
    rustix::process::prlimit(pid, resource, Rlimit { current, maximum: hard }).unwrap()
}

fn sync(directory: &Path) {
    rustix::fs::syncfs(File::open(directory).unwrap()).unwrap();
}

fn reader(path: &Path) -> Child {
    Command::new("cat").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn every_row_of_the_page_is_brought_about_by_some_test() {
    let sources = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it")).unwrap();
    let sources: Vec<_> = sources.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    let words: Vec<_> = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(words.len() > 10);
    for word in words {
        let quoted = format!("\"{word}\"");
        let is_named = |source: &Vec<u8>| source.windows(quoted.len()).any(|part| part == quoted.as_bytes());
        assert!(sources.iter().any(is_named), "no test names {word}");
    }
}

#[test]
fn the_queue_of_events_overflows() {
    let Some(_) = testing::root() else { return };
    let word = "queue-overflow";
    for mode in MODES {
        let scratch = ext4();
        let (_, bad) = good_and_bad(scratch.path());
        let daemon = Faults::new().daemon_with_queue(mode, scratch.path(), Queue::OfQuestions(8));
        let mut openers = Vec::new();
        daemon.stopped(|| {
            openers = (0..12).map(|_| reader(&bad)).collect();
            let let_through = |opener: &mut Child| opener.try_wait().unwrap().is_some_and(|status| status.success());
            let enough = || {
                (openers.iter_mut().filter_map(|opener| let_through(opener).then_some(())).count() >= 4).then_some(())
            };
            assert_eq!((eventually(enough).is_some(), promised(word, mode)), (true, Some(0)), "{mode}");
        });
        let refused = openers.iter_mut().filter_map(|opener| (!opener.wait().unwrap().success()).then_some(())).count();
        // The others had their places in the queue.
        assert_eq!(refused, if mode == "enforce" { 8 } else { 0 }, "{mode}");
        assert_eq!(told(&daemon, word), (1, format!("imarad: {word}: events are missing")));
        daemon.stop();
    }
}

#[test]
fn an_event_brings_no_descriptor() {
    let Some(_) = testing::root() else { return };
    let word = "event-unreadable";
    for mode in MODES {
        let scratch = ext4();
        let (good, _) = good_and_bad(scratch.path());
        let daemon = Daemon::start(mode, &[scratch.path()]);
        let before = limit(&daemon, Resource::Nofile, Some(3));
        let found = error_of(File::open(&good));
        limit(&daemon, Resource::Nofile, before.current);
        assert_eq!(found, promised(word, mode), "{mode}");
        assert_eq!(told(&daemon, word), (1, format!("imarad: {word}: Too many open files (os error 24)")));
        files::read(&good).unwrap();
        daemon.stop();
    }
}

#[test]
fn neither_facts_nor_content_can_be_read_of_a_file_system_that_has_shut_down() {
    let Some(_) = testing::root() else { return };
    for mode in MODES {
        let mut disk = FaultyDisk::new(FsKind::Xfs, 300 << 20);
        let path = disk.path().join("file");
        files::make(&path, &vec![1; 1 << 20]);
        sync(disk.path());
        disk.content_becomes(Fault::Silent, &path);
        disk.cycle();
        let daemon = Daemon::start(mode, &[disk.path()]);
        thread::scope(|scope| {
            // The first is being judged, the second waits for that: his question has brought a descriptor.
            let mut openers = Vec::new();
            for number in 1..=2 {
                openers.push(scope.spawn(|| error_of(File::open(&path).map(|_| ()))));
                let asked = || (daemon.status()["counters"]["asked"] == number).then_some(());
                assert!(eventually(asked).is_some(), "{mode}");
            }
            let shutdown = Command::new("xfs_io").args(["-x", "-c", "shutdown"]).arg(disk.path()).output().unwrap();
            disk.heals();
            assert!(shutdown.status.success(), "{shutdown:?}");
            for opener in openers {
                let found = opener.join().unwrap();
                // Whoever is let through finds that the file system has shut down.
                let expected = if promised("facts-unreadable", mode) == REFUSED { REFUSED } else { Some(5) };
                assert_eq!(found, expected, "{mode}: {:#?}", daemon.lines());
            }
        });
        assert_eq!(told_with_record(&daemon, "content-unreadable", mode), 1);
        assert_eq!(told_with_record(&daemon, "facts-unreadable", mode), 1);
        daemon.stop();
    }
}

#[test]
fn the_asker_cannot_be_found_out() {
    let Some(_) = testing::root() else { return };
    let word = "asker-unreadable";
    for mode in MODES {
        let scratch = ext4();
        let (good, _) = good_and_bad(scratch.path());
        let run_dir = RunDir::new();
        let policy = run_dir.policy("dont_appraise uid=12345\nappraise fowner=0\n");
        let whole = daemon::command(run_dir.path(), mode, &policy, &[scratch.path()]);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(whole.get_program()).args(whole.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let daemon = Daemon::run(run_dir, command, Log::Read);
        assert_eq!(error_of(File::open(&good)), promised(word, mode), "{mode}");
        assert_eq!(told_with_record(&daemon, word, mode), 1);
    }
}

#[test]
fn the_disk_does_not_give_the_content() {
    let Some(_) = testing::root() else { return };
    let word = "content-unreadable";
    let mut disk = FaultyDisk::new(FsKind::Ext4, 64 << 20);
    for mode in MODES {
        let path = disk.path().join(mode);
        files::make(&path, &vec![1; 300_000]);
        sync(disk.path());
        disk.content_becomes(Fault::Unreadable, &path);
    }
    disk.cycle();
    for mode in MODES {
        let path = disk.path().join(mode);
        let daemon = Daemon::start(mode, &[disk.path()]);
        assert_eq!(error_of(File::open(&path)), promised(word, mode), "{mode}");
        assert_eq!(told_with_record(&daemon, word, mode), 1);
        let line = format!("imarad: {word}: {}: ", path.display());
        assert!(daemon.says(&line).contains("Input/output error"));
        daemon.stop();
    }
}

#[test]
fn there_is_no_memory_to_read_the_content() {
    let Some(_) = testing::root() else { return };
    let word = "content-unreadable";
    for mode in MODES {
        let scratch = ext4();
        let (good, _) = good_and_bad(scratch.path());
        let faults = Faults::new();
        faults.begin("no-memory");
        let daemon = faults.daemon(mode, scratch.path(), Log::Read);
        assert_eq!(error_of(File::open(&good)), promised(word, mode), "{mode}");
        assert_eq!(told_with_record(&daemon, word, mode), 1);
        let line = format!("imarad: {word}: {}: ", good.display());
        assert!(daemon.says(&line).contains("Cannot allocate memory"));
        daemon.stop();
    }
}

/// No row of the table: what cannot be read is judged as the kernel does.
#[test]
fn the_disk_does_not_give_the_label() {
    let Some(_) = testing::root() else { return };
    for mode in MODES {
        // Inodes without room for labels, which then have a block of their own.
        let mut disk = FaultyDisk::with(FsKind::Ext4, 64 << 20, &["-I", "128"], |_| {});
        let path = disk.path().join("file");
        files::make(&path, b"content");
        sync(disk.path());
        let place = disk.place_of_label(&path);
        disk.becomes(Fault::Unreadable, place);
        disk.cycle();
        let daemon = Daemon::start(mode, &[disk.path()]);
        let (expected, action) =
            if mode == "enforce" { (REFUSED, "action=denied") } else { (Some(0), "action=allowed") };
        assert_eq!(error_of(File::open(&path)), expected, "{mode}");
        let told = eventually(|| daemon.lines().into_iter().find(|line| line.contains("cause=unknown")));
        let record = told.unwrap_or_else(|| panic!("{mode}: {} {:#?}", daemon.status(), daemon.lines()));
        assert!(record.ends_with(action), "{mode}: {record}");
        disk.heals();
        assert_eq!(error_of(files::read(&path)), Some(0), "{mode}: it is asked for again");
        daemon.stop();
    }
}

#[test]
fn the_content_changes_each_time_it_is_read() {
    let Some(_) = testing::root() else { return };
    let word = "content-changing";
    // The writer has to come in between whenever it has been read, so it may take more than one attempt.
    let attempt = |mode: &str| {
        let scratch = ext4();
        let path = scratch.path().join("file");
        files::make(&path, &vec![1; 32 << 20]);
        // He came before the guard, so it is not known what the file was then.
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        let daemon = Daemon::start(mode, &[scratch.path()]);
        let (done, writes) = (AtomicBool::new(false), AtomicU32::new(0));
        let found = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    writer.write_all_at(b"x", 0).unwrap();
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            });
            eventually(|| (writes.load(Ordering::Relaxed) > 10).then_some(())).unwrap();
            let found = error_of(File::open(&path));
            done.store(true, Ordering::Relaxed);
            found
        });
        if daemon.status()["failures"][word] == 0 {
            return None;
        }
        assert_eq!(told_with_record(&daemon, word, mode), 1);
        daemon.stop();
        Some(found)
    };
    for mode in MODES {
        assert_eq!(eventually(|| attempt(mode)), Some(promised(word, mode)), "{mode}");
    }
}

#[test]
fn the_disk_gives_no_answer() {
    let Some(_) = testing::root() else { return };
    let word = "hash-stalled";
    let stalls = |mode: &str| {
        let mut disk = FaultyDisk::new(FsKind::Ext4, 64 << 20);
        let path = disk.path().join("file");
        files::make(&path, &vec![1; 300_000]);
        sync(disk.path());
        disk.content_becomes(Fault::Silent, &path);
        disk.cycle();
        let daemon = Daemon::start(mode, &[disk.path()]);
        // The second waits for the same reading.
        thread::scope(|scope| {
            let second = scope.spawn(|| error_of(File::open(&path)));
            assert_eq!(error_of(File::open(&path)), promised(word, mode), "{mode}");
            assert_eq!(second.join().unwrap(), promised(word, mode), "{mode}");
        });
        assert_eq!(told_with_record(&daemon, word, mode), 2);
        disk.heals();
        let read = eventually(|| files::read(&path).ok());
        assert_eq!(read.map(|content| content.len()), Some(300_000), "{mode}: it answers again");
        daemon.stop();
    };
    thread::scope(|scope| MODES.map(|mode| scope.spawn(move || stalls(mode))).map(|stalls| stalls.join().unwrap()));
}

#[test]
fn a_label_cannot_be_written_because_the_disk_takes_nothing() {
    let Some(_) = testing::root() else { return };
    let word = "label-not-written";
    for mode in MODES {
        let mut disk = FaultyDisk::new(FsKind::Ext4, 64 << 20);
        let path = disk.path().join("file");
        files::make(&path, b"content");
        sync(disk.path());
        let daemon = Daemon::start(mode, &[disk.path()]);
        let mut writer = OpenOptions::new().append(true).open(&path).unwrap();
        writer.write_all(b", more of it").unwrap();
        disk.becomes(Fault::Unwritable, 0..u64::MAX);
        // The file system finds out, and takes nothing any more.
        let found_out = |attempt: u32| {
            drop(writer.sync_all());
            fs::create_dir(disk.path().join(attempt.to_string())).err()
        };
        let mut attempts = 0..;
        assert!(eventually(|| found_out(attempts.next()?)).is_some(), "{mode}");
        drop(writer);
        for _ in 0..2 {
            assert_eq!(error_of(files::read(&path)), promised(word, mode), "{mode}");
        }
        // Once, however often it is tried again.
        assert_eq!(told(&daemon, word).0, 1, "{mode}: {:#?}", daemon.lines());
        daemon.stop();
    }
}

#[test]
fn no_lease_is_given() {
    let Some(_) = testing::root() else { return };
    let word = "lease-refused";
    for mode in MODES {
        let scratch = ext4();
        let (good, bad) = good_and_bad(scratch.path());
        for path in [&good, &bad] {
            chown(path, Some(1000), None).unwrap();
        }
        let run_dir = RunDir::new();
        let policy = run_dir.policy("appraise fowner=1000\n");
        let whole = daemon::command(run_dir.path(), mode, &policy, &[scratch.path()]);
        // Of another user's file the kernel gives none without this capability.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-lease"]).arg(whole.get_program()).args(whole.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let daemon = Daemon::run(run_dir, command, Log::Read);
        // Judged all the same, each time; logged once, then counted.
        for _ in 0..3 {
            files::read(&good).unwrap();
        }
        assert_eq!(error_of(File::open(&bad)), if mode == "enforce" { REFUSED } else { Some(0) }, "{mode}");
        let (count, _) = told(&daemon, word);
        assert!(count >= 4, "{mode}: {count}");
        let lines = daemon.stop();
        assert_eq!(lines.iter().filter(|line| line.contains(word)).count(), 1, "{mode}: {lines:#?}");
    }
}

/// Opens a good file until the kernel answers for it.
fn until_ignored(daemon: &Daemon, good: &Path) {
    let mut before = asked(daemon);
    let ignored = || {
        files::read(good).unwrap();
        let now = asked(daemon);
        (std::mem::replace(&mut before, now) == now).then_some(())
    };
    assert!(eventually(ignored).is_some(), "{}", daemon.status());
}

fn asked(daemon: &Daemon) -> u64 {
    daemon.status()["counters"]["asked"].as_u64().unwrap()
}

#[test]
fn the_signal_of_a_lease_is_lost() {
    let Some(_) = testing::root() else { return };
    let word = "lease-signal-lost";
    for mode in MODES {
        let scratch = ext4();
        let (good, _) = good_and_bad(scratch.path());
        let other = scratch.path().join("other");
        files::make(&other, b"content");
        let daemon = Daemon::start(mode, &[scratch.path()]);
        until_ignored(&daemon, &good);
        until_ignored(&daemon, &other);
        let before = limit(&daemon, Resource::Sigpending, Some(0));
        let cut = Command::new("perl").args(["-e", "truncate(shift, 3) or die $!"]).arg(&good).status();
        limit(&daemon, Resource::Sigpending, before.current);
        assert!(cut.unwrap().success());
        assert_eq!(told(&daemon, word), (1, format!("imarad: {word}: every lease is given back")), "{mode}");
        // All that was remembered is judged again.
        let before = asked(&daemon);
        files::read(&other).unwrap();
        assert!(asked(&daemon) > before, "{mode}");
        // The change has been followed.
        assert_eq!(files::read(&good).unwrap(), b"con", "{mode}");
        files::label_becomes(&good, b"con");
        daemon.stop();
    }
}

#[test]
fn a_notice_of_a_change_is_lost() {
    let Some(_) = testing::root() else { return };
    let word = "change-lost";
    for mode in MODES {
        let scratch = ext4();
        let (good, _) = good_and_bad(scratch.path());
        let others: Vec<_> = (0..20).map(|number| scratch.path().join(format!("other-{number}"))).collect();
        others.iter().for_each(|path| files::make(path, b"content"));
        let daemon = Faults::new().daemon_with_queue(mode, scratch.path(), Queue::OfNotices(8));
        until_ignored(&daemon, &good);
        daemon.stopped(|| {
            for path in &others {
                chown(path, None, Some(1)).unwrap();
            }
        });
        let (count, line) = told(&daemon, word);
        assert!(count >= 1 && line == format!("imarad: {word}: a change of owner, mode or label"), "{mode}: {line}");
        // Everything that was judged is asked about again.
        let before = asked(&daemon);
        files::read(&good).unwrap();
        assert!(asked(&daemon) > before, "{mode}");
        daemon.stop();
    }
}

#[test]
fn nothing_of_the_table_happens_where_nothing_goes_wrong() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::with(RunDir::new(), "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], Log::Read);
    files::read(&good).unwrap();
    files::append(&good, b"more").unwrap();
    assert_eq!(error_of(File::open(&bad)), REFUSED);
    let failures = daemon.status()["failures"].clone();
    assert!(failures.as_object().unwrap().values().all(|count| *count == 0), "{failures}");
    daemon.stop();
}
