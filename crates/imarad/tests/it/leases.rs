//! Leases: those of others, those that would be in a writer's way, and a kernel that gives none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::OFlags;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, RunDir, complaints, eventually};
use crate::files::{self, REFUSED, error_of, good_and_bad, label_becomes};
use crate::image::ext4;

/// A user who holds a write lease on a file of his own and does not care who waits for it.
#[derive(Debug)]
struct Holder {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Holder {
    /// Takes the lease, as soon as nobody else has the file open.
    fn new(path: &Path) -> Self {
        // F_SETLEASE is 1024, F_WRLCK is 1, F_UNLCK is 2.
        let script = "$SIG{IO} = 'IGNORE'; $| = 1; open(my $f, '<', $ARGV[0]) or die $!; \
                      until (fcntl($f, 1024, 1)) { $!{EAGAIN} or die $!; select(undef, undef, undef, 0.05) } \
                      print \"held\\n\"; <STDIN>; fcntl($f, 1024, 2) or die $!; print \"given up\\n\"; <STDIN>;";
        let mut perl = Command::new("setpriv");
        perl.args(["--reuid=1000", "--regid=1000", "--clear-groups", "perl", "-MErrno", "-e", script]).arg(path);
        let mut child = perl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut holder = Self { out: BufReader::new(child.stdout.take().unwrap()), child };
        holder.says("held\n");
        holder
    }

    fn says(&mut self, word: &str) {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        assert_eq!(line, word);
    }

    /// Gives the lease up; the file stays open.
    fn give_up(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.says("given up\n");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A file system in which everybody may look for a file of his own.
fn with_a_users_file(kind: FsKind) -> (ScratchMount, std::path::PathBuf) {
    let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
    for directory in [scratch.path(), scratch.path().parent().unwrap()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let own = scratch.path().join("own");
    files::make(&own, b"a user's");
    chown(&own, Some(1000), Some(1000)).unwrap();
    (scratch, own)
}

#[test]
fn a_users_write_lease_costs_the_openers_of_his_file_their_open_and_nobody_else_anything() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let (scratch, own) = with_a_users_file(kind);
        let (good, bad) = good_and_bad(scratch.path());
        let large = scratch.path().join("large");
        files::make(&large, &vec![1; 200_000]);
        let mut holder = Holder::new(&own);
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let began = Instant::now();
        for _ in 0..3 {
            // A guard that waited here would be let in by the kernel in the end, and so would the opener.
            assert_eq!(error_of(files::read(&own)), REFUSED, "{kind:?}");
            assert_eq!(error_of(files::open_to_change(&own)), REFUSED, "{kind:?}");
            files::read(&good).unwrap();
            files::read(&large).unwrap();
            files::append(&good, b"more").unwrap();
            fs::write(scratch.path().join("new"), b"new").unwrap();
            assert_eq!(error_of(files::read(&bad)), REFUSED);
        }
        // Not how fast this is: whether anybody waited for the kernel to take the lease away.
        assert!(began.elapsed() < imara_linux::lease::break_time().unwrap(), "{kind:?}");
        let counted = daemon.status()["failures"]["event-unreadable"].as_u64();
        assert_eq!(counted, Some(6), "{kind:?}: {:#?}", daemon.lines());
        holder.give_up();
        files::read(&own).unwrap();
        files::append(&own, b" file").unwrap();
        assert_eq!(files::read(&own).unwrap(), b"a user's file");
        label_becomes(&scratch.path().join("new"), b"new");
        drop(holder);
        daemon.stop();
    }
}

#[test]
fn a_writer_who_does_not_wait_meets_no_lease_of_the_guard_on_a_file_that_was_written_to_lately() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (small, large) = (scratch.path().join("small"), scratch.path().join("large"));
        files::make(&small, b"0");
        files::make(&large, &vec![0; 100_000]);
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let done = AtomicBool::new(false);
        let at_once = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        let again = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        let write = |path: &Path, round: u32| {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).custom_flags(at_once).open(path)?;
            // Some writers change nothing, and the digest stays what it was.
            if round.is_multiple_of(4) { Ok(()) } else { file.write_all(round.to_string().as_bytes()) }
        };
        thread::scope(|scope| {
            for path in [&small, &large, &small] {
                let done = &done;
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        files::read(path).unwrap_or_else(|error| panic!("{kind:?}: reading: {error}"));
                    }
                });
            }
            let writer = scope.spawn(|| -> io::Result<()> {
                // The first one may meet the lease of a file that the kernel answers for: see `fast.rs`.
                for path in [&small, &large] {
                    let written =
                        eventually(|| Some(write(path, 1)).filter(|result| !result.as_ref().is_err_and(again)));
                    written.unwrap()?;
                }
                for round in 0..4000 {
                    write(&small, round)?;
                    if round % 8 == 0 {
                        write(&large, round)?;
                    }
                }
                Ok(())
            });
            let written = writer.join();
            done.store(true, Ordering::Relaxed);
            written.unwrap().unwrap_or_else(|error| panic!("{kind:?}: writing: {error}"));
        });
        for path in [&small, &large] {
            label_becomes(path, &files::read(path).unwrap());
        }
        assert_eq!(complaints(&daemon.stop()), [], "{kind:?}");
    }
}

#[test]
fn without_leases_a_guard_does_not_start_and_says_how_to_get_them() {
    let Some(_) = testing::root() else { return };
    if !Command::new("unshare").args(["-m", "true"]).output().unwrap().status.success() {
        return testing::skipped("namespaces", "a root that is a mount point");
    }
    let scratch = ext4();
    let (_, bad) = good_and_bad(scratch.path());
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let whole = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    for (enabled, starts) in [("0\n", false), ("1\n", true)] {
        let setting = run_dir.path().join("leases-enable");
        fs::write(&setting, enabled).unwrap();
        // The machine's own setting stays as it is: only this process sees the other one.
        let script = "mount --bind \"$0\" /proc/sys/fs/leases-enable && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(&setting).arg(whole.get_program()).args(whole.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if starts {
            let mut daemon = Daemon::run(RunDir::new(), command, daemon::Log::Read);
            assert_eq!(error_of(File::open(&bad)), REFUSED);
            daemon.signal(rustix::process::Signal::TERM);
            assert_eq!(daemon.wait().and_then(|status| status.code()), Some(0));
            continue;
        }
        let output = daemon::refused_start(&mut command);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]), "{said}");
        assert!(said.contains("leases are disabled") && said.contains("fix: sysctl fs.leases-enable=1"), "{said}");
    }
}

#[test]
fn a_file_that_is_cut_by_somebody_who_opens_it_for_reading_is_followed() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
        let [asked, idle] = ["asked", "idle"].map(|name| scratch.path().join(name));
        for path in [&asked, &idle] {
            files::make(path, b"content");
        }
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        for path in [&asked, &idle] {
            files::read(path).unwrap();
            // To the kernel a reader, who breaks no read lease and whose close is not told.
            let flags = OFlags::RDONLY | OFlags::TRUNC;
            drop(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap());
        }
        assert_eq!(files::read(&asked).unwrap(), b"", "{kind:?}");
        for path in [&asked, &idle] {
            label_becomes(path, b"");
            assert_eq!(files::read(path).unwrap(), b"", "{kind:?}");
        }
        assert_eq!(complaints(&daemon.stop()), [], "{kind:?}");
    }
}
