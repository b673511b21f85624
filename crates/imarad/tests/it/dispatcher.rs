//! The dispatcher waits for nothing; and should it stand still all the same, nobody waits with it for ever.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::process::Signal;

use crate::daemon::{Daemon, complaints, eventually};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::{Image, cycle, ext4};
use crate::waiting::Frozen;

/// A process that has something in hand as long as it lives.
pub(crate) struct Holder(Child);

impl Holder {
    /// Runs a Perl script that says `held` when it is so far.
    pub(crate) fn perl(script: &str, argument: &str) -> io::Result<Self> {
        let script = format!("$| = 1; {script}; print \"held\\n\"; sleep 1000;");
        let mut perl = Command::new("perl");
        let mut child = perl.args(["-e", &script, argument]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line)?;
        let holder = Self(child);
        if line == "held\n" { Ok(holder) } else { Err(io::Error::other("it could not be held")) }
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.0.wait().unwrap()
    }

    /// Stops the dispatcher of a daemon, and no other thread of it.
    pub(crate) fn of_dispatcher(daemon: &Daemon) -> io::Result<Self> {
        // ptrace(2) is call 101 on x86-64; PTRACE_SEIZE is 0x4206, PTRACE_INTERRUPT 0x4207. __WALL is 0x40000000.
        let script = "my $t = shift; for my $r (0x4206, 0x4207) { syscall(101, $r, $t + 0, 0, 0) == 0 or die $! } \
                      waitpid($t, 0x40000000)";
        Self::perl(script, &daemon.id().to_string())
    }

    /// Holds a read lease on a file.
    fn of_lease(path: &Path) -> io::Result<Self> {
        // F_SETLEASE is 1024, F_RDLCK is 0.
        let script = "$SIG{IO} = 'IGNORE'; open(my $f, '<', shift) or die $!; fcntl($f, 1024, 0) or die $!";
        Self::perl(script, path.to_str().unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Opens a bad file until it is let in, which happens when nothing is guarded any more.
fn let_in(bad: &Path) -> Option<Duration> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(100) {
        if File::open(bad).is_ok() {
            return Some(begun.elapsed());
        }
    }
    None
}

#[test]
#[cfg(target_arch = "x86_64")]
fn whoever_waits_for_a_dispatcher_that_stands_still_is_let_in() {
    let Some(_) = testing::root() else { return };
    let (with_signal, without) = (ext4(), ext4());
    let stands_still = |scratch: &ScratchMount, signal: Option<Signal>| {
        let (_, bad) = good_and_bad(scratch.path());
        let mut daemon = Daemon::start("enforce", &[scratch.path()]);
        let holder = Holder::of_dispatcher(&daemon).unwrap();
        thread::scope(|scope| {
            let opener = scope.spawn(|| let_in(&bad));
            thread::sleep(Duration::from_millis(500));
            assert!(!opener.is_finished(), "he waits");
            signal.into_iter().for_each(|signal| daemon.signal(signal));
            assert!(opener.join().unwrap().is_some(), "nobody let him in");
        });
        drop(holder);
        assert_eq!(daemon.wait().and_then(|status| status.code()), Some(2));
        daemon.all_lines().into_iter().find(|line| line.contains("nothing is guarded any more"))
    };
    thread::scope(|scope| {
        let silent = scope.spawn(|| stands_still(&without, None));
        assert!(stands_still(&with_signal, Some(Signal::TERM)).unwrap().contains("stands still"));
        assert!(silent.join().unwrap().unwrap().contains("stands still"));
    });
}

#[test]
fn the_end_of_a_deleted_file_on_a_frozen_file_system_keeps_nobody_waiting() {
    let Some(_) = testing::root() else { return };
    let frozen = ScratchMount::new(FsKind::Btrfs, 256 << 20).unwrap();
    let other = ext4();
    let (good, _) = good_and_bad(other.path());
    let (read, written) = (frozen.path().join("read"), frozen.path().join("written"));
    files::make(&read, &[1; 5000]);
    let daemon = Daemon::start("enforce", &[frozen.path(), other.path()]);
    files::read(&read).unwrap();
    fs::remove_file(&read).unwrap();
    let writer = File::create(&written).unwrap();
    fs::remove_file(&written).unwrap();
    let ice = Frozen::new(&frozen);
    // The guard's descriptors are now the last of both, and closing them waits for the thaw.
    drop(writer);
    daemon.ask(r#"{"command":"release"}"#);
    for _ in 0..20 {
        files::read(&good).unwrap();
    }
    assert_eq!(daemon.status()["remembered"]["busy"], 0);
    drop(ice);
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn the_dispatcher_reads_nothing_from_a_disk() {
    let Some(_) = testing::root() else { return };
    // Labels do not fit into inodes of this size: each has a block of its own.
    let image = Image::ext4(&["-I", "128"]);
    let names: Vec<_> = (0..50).map(|number| format!("file-{number}")).collect();
    for name in &names {
        files::make(&image.path().join(name), name.as_bytes());
    }
    // So small inodes keep whole seconds and no births: it must not look new.
    files::make(&image.path().join("empty"), b"");
    assert!(
        Command::new("touch").args(["-d", "@1000000000"]).arg(image.path().join("empty")).status().unwrap().success()
    );
    image.unmounted(|_| {});
    let daemon = Daemon::start("enforce", &[image.path()]);
    let accounts = format!("/proc/{0}/task/{0}/io", daemon.id());
    let Ok(before) = fs::read_to_string(&accounts) else { return testing::skipped("root", "task I/O accounting") };
    for name in &names {
        files::read(&image.path().join(name)).unwrap();
    }
    files::read(&image.path().join("empty")).unwrap();
    let after = fs::read_to_string(&accounts).unwrap();
    let read = |accounts: &str| accounts.lines().find(|line| line.starts_with("read_bytes")).unwrap().to_owned();
    assert_eq!(read(&before), read(&after), "somebody else had to read labels and contents");
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn a_writer_whose_open_fails_after_it_was_allowed_is_not_vouched_for() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
        let path = scratch.path().join("file");
        files::make(&path, b"content");
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let lease = Holder::of_lease(&path).unwrap();
        // Allowed by the guard, then refused by the kernel: it would have to wait for the lease.
        let opened =
            OpenOptions::new().write(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(&path);
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{kind:?}");
        drop(lease);
        let forgotten = eventually(|| (daemon.status()["remembered"]["written"] == 0).then_some(()));
        assert!(forgotten.is_some(), "{kind:?}: {}", daemon.status());
        assert_eq!(daemon.status()["counters"]["renewed"], 0, "{kind:?}");
        files::read(&path).unwrap();
        assert_eq!(complaints(&daemon.stop()), [], "{kind:?}");
    }
}

#[test]
fn what_changes_below_the_file_system_is_not_taken_for_the_work_of_a_writer_who_never_came() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = scratch.path().join("file");
    files::make(&path, &[b'c'; 5000]);
    cycle(&scratch);
    let device = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = device.lines().find(|line| line.contains(scratch.path().to_str().unwrap())).unwrap();
    let device = line.rsplit(' ').nth(1).unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let lease = Holder::of_lease(&path).unwrap();
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().write(true).custom_flags(flags).open(&path).unwrap_err();
    drop(lease);
    let block = Command::new("debugfs").args(["-R", "bmap file 0", device]).output().unwrap();
    let block: u64 = String::from_utf8(block.stdout).unwrap().trim().parse().unwrap();
    let size = rustix::fs::statvfs(scratch.path()).unwrap().f_bsize;
    let disk = OpenOptions::new().write(true).open(device).unwrap();
    std::os::unix::fs::FileExt::write_at(&disk, b"ROT", block * size).unwrap();
    disk.sync_all().unwrap();
    // Nobody holds the file, and nothing of it is in memory.
    let nothing = |status: serde_json::Value| {
        (status["remembered"]["written"] == 0 && status["remembered"]["known"] == 0).then_some(())
    };
    assert!(eventually(|| nothing(daemon.status())).is_some(), "{}", daemon.status());
    rustix::fs::syncfs(File::open(scratch.path()).unwrap()).unwrap();
    (0..8).for_each(|_| fs::write("/proc/sys/vm/drop_caches", "3").unwrap());
    assert_eq!(error_of(File::open(&path)), REFUSED);
    daemon.stop();
}

#[test]
fn a_flood_of_new_names_keeps_nobody_waiting() {
    let Some(_) = testing::root() else { return };
    let (flooded, other) = (ScratchMount::new(FsKind::Tmpfs, 64 << 20).unwrap(), ext4());
    let (good, bad) = good_and_bad(other.path());
    let mut daemon = Daemon::start("enforce", &[flooded.path(), other.path()]);
    let script = "chdir shift; print \"held\\n\"; while (1) { symlink('to', $$); unlink($$) }";
    let flood: Vec<_> = (0..12).map(|_| Holder::perl(script, flooded.path().to_str().unwrap()).unwrap()).collect();
    // Longer than the watchman waits.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(12) {
        files::read(&good).unwrap();
        assert_eq!(error_of(File::open(&bad)), REFUSED);
        fs::write(other.path().join("new"), b"new").unwrap();
        fs::remove_file(other.path().join("new")).unwrap();
    }
    drop(flood);
    assert!(daemon.is_running());
    daemon.stop();
}
