//! Users who would have the guard wait for them, or work for them without end.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{Daemon, eventually};
use crate::faulty::{CLOSING, Fault, FaultyDisk};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

/// How many threads a process has. (Most of what the kernel tells of others it does not tell of one that becomes another
/// program.)
fn threads(process: &Child) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:"))?.trim().parse().ok()
}

#[test]
fn whoever_asks_and_becomes_another_program_that_hangs_keeps_nobody_waiting() {
    let Some(_) = testing::root() else { return };
    let (mut disk, other) = (FaultyDisk::new(FsKind::Ext4, 1 << 30), ext4());
    let (good, bad) = good_and_bad(other.path());
    let cold = disk.path().join("cold");
    files::make(&cold, &vec![2; 300_000]);
    rustix::fs::syncfs(File::open(disk.path()).unwrap()).unwrap();
    disk.content_becomes(Fault::Slow(1000), &cold);
    disk.cycle();
    disk.becomes(Fault::Silent, CLOSING);
    let mut daemon = Daemon::start("enforce", &[disk.path(), other.path()]);
    // The first thread asks, and while its file is read the second one executes something. It gets the first one's number,
    // and closes a file that a hostile server does not let it close: until it can, the kernel lets nobody see its system call.
    let script = "use threads; use Fcntl; my ($cold, $disk) = @ARGV; \
                  threads->create(sub { sleep(1); open(my $f, '<', $disk); exec('/bin/true') }); \
                  sysopen(my $f, $cold, O_RDWR); sleep(100)";
    let mut hostile = Command::new("perl")
        .args(["-e", script])
        .args([&cold, &disk.file()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for count in [2, 1] {
        eventually(|| (threads(&hostile) == Some(count)).then_some(())).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let asked = Instant::now();
        files::read(&good).unwrap();
        assert_eq!(error_of(File::open(&bad)), REFUSED);
        assert!(asked.elapsed() < Duration::from_secs(2), "others waited for {:?}", asked.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    daemon.says("hid how they open a file");
    assert!(daemon.is_running(), "{:#?}", daemon.lines());
    disk.heals();
    drop(hostile.kill());
    drop(hostile.wait());
    daemon.stop();
}

#[test]
fn files_that_are_cut_and_removed_at_once_are_not_waited_for() {
    const FILES: u64 = 3000;
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 128 << 20).unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let files: Vec<_> = (0..FILES).map(|number| scratch.path().join(number.to_string())).collect();
    for path in &files {
        fs::write(path, b"content").unwrap();
    }
    let settled = eventually(|| (daemon.status()["remembered"]["written"] == 0).then_some(()));
    assert!(settled.is_some(), "{}", daemon.status());
    daemon.ask(r#"{"command":"release"}"#);
    let recalled = daemon.status()["remembered"]["recall"].as_u64().unwrap();
    assert!(recalled > FILES / 2, "{recalled} are in the second memory");
    // Each is looked for, but some are gone when their turn comes.
    let script = "for (@ARGV) { truncate($_, 3) or die; unlink($_) or die }";
    assert!(Command::new("perl").args(["-e", script]).args(&files).status().unwrap().success());
    let forgotten = eventually(|| (daemon.status()["journal"]["writing"] == 0).then_some(()));
    assert!(forgotten.is_some(), "nobody writes any more: {}", daemon.status());
    daemon.stop();
}

#[test]
fn a_label_that_is_too_long_for_the_journal_keeps_no_other_file_out_of_it() {
    let Some(_) = testing::root() else { return };
    // ext4 keeps no such labels.
    let scratch = ScratchMount::new(FsKind::Xfs, 300 << 20).unwrap();
    let (long, other) = (scratch.path().join("long"), scratch.path().join("other"));
    files::make(&long, b"content");
    files::set_label(&long, &[files::label_of(b"content"), vec![0; 5000]].concat());
    files::make(&other, b"content");
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let _open = [files::open_to_change(&long).unwrap(), files::open_to_change(&other).unwrap()];
    let status = daemon.status();
    let noted = (&status["journal"]["writing"], &status["failures"]["journal-not-written"]);
    assert_eq!(noted, (&1.into(), &1.into()), "{status}");
    daemon.stop();
}
