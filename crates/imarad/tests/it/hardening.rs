//! Whatever becomes of the guard, nobody waits for it: a fault of its own, want of memory, an end that takes its time.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, capabilities};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, PATIENCE, RunDir, eventually};
use crate::dispatcher::Holder;
use crate::faults::Faults;
use crate::files::{REFUSED, error_of, good_and_bad};
use crate::image::ext4;

/// Opens a bad file until the pipe is full into which the guard tells of it, and that nobody reads.
fn fill_the_log(daemon: &Daemon, bad: &Path) {
    let full = eventually(|| {
        for _ in 0..100 {
            assert_eq!(error_of(File::open(bad)), REFUSED);
        }
        let names = fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap();
        let waits = |task: io::Result<fs::DirEntry>| {
            fs::read_to_string(task.unwrap().path().join("wchan")).is_ok_and(|place| place.contains("pipe_write"))
        };
        names.into_iter().any(waits).then_some(())
    });
    assert!(full.is_some(), "the log thread waits for its reader");
}

#[test]
fn a_fault_of_the_dispatcher_ends_the_guard_at_once_whoever_reads_its_log() {
    let Some(_) = testing::root() else { return };
    for log in [Log::Unread, Log::Read] {
        let scratch = ext4();
        let (_, bad) = good_and_bad(scratch.path());
        let faults = Faults::new();
        let mut daemon = faults.daemon("enforce", scratch.path(), log);
        if log == Log::Unread {
            fill_the_log(&daemon, &bad);
        }
        faults.begin("clock");
        // It is let in only when the guard has gone: not by the guard's watchman, whose end is another.
        assert!(eventually(|| File::open(&bad).ok()).is_some(), "{log:?}");
        assert_eq!(daemon.wait().and_then(|status| status.signal()), Some(Signal::ABORT.as_raw()), "{log:?}");
        if log == Log::Read {
            daemon.says("imarad: a fault of its own: thread main: panicked at");
        }
    }
}

/// From now on the daemon gets no memory.
fn starve(daemon: &Daemon) {
    let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    let nothing = Rlimit { current: Some(1), maximum: None };
    rustix::process::prlimit(pid, Resource::As, nothing).unwrap();
}

#[test]
fn a_guard_that_gets_no_memory_lets_everybody_go_whoever_reads_its_log() {
    let Some(_) = testing::root() else { return };
    let (scratch, unread) = (ScratchMount::new(FsKind::Tmpfs, 64 << 20).unwrap(), ext4());
    let mut daemon = Daemon::start("enforce", &[scratch.path()]);
    let (_, bad) = good_and_bad(unread.path());
    let mut other = Daemon::with(RunDir::new(), "enforce", EVERYTHING_OF_ROOT, &[unread.path()], Log::Unread);
    fill_the_log(&other, &bad);
    starve(&daemon);
    starve(&other);
    // The names of new files that nobody has opened, and lines that nobody reads, are kept.
    for number in 0..30_000 {
        let path = scratch.path().join(number.to_string());
        rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::RUSR, 0).unwrap();
    }
    assert!(eventually(|| File::open(&bad).ok()).is_some());
    for daemon in [&mut daemon, &mut other] {
        assert_eq!(daemon.wait().and_then(|status| status.signal()), Some(Signal::ABORT.as_raw()));
    }
    daemon.says("imarad: memory ran out: everybody is let through, and nothing is guarded any more");
}

#[test]
fn the_dispatcher_itself_feeds_the_watchdog() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let socket = run_dir.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    command.env("NOTIFY_SOCKET", &socket);
    let mut daemon = Daemon::run(run_dir, command, Log::Read);
    let hear = || {
        let mut heard = vec![0; 1000];
        systemd.recv(&mut heard).map(|length| String::from_utf8_lossy(&heard[..length]).into_owned())
    };
    assert_eq!(hear().unwrap(), "READY=1");
    for _ in 0..3 {
        assert_eq!(hear().unwrap(), "WATCHDOG=1");
    }
    let holder = Holder::of_dispatcher(&daemon).unwrap();
    // What it said before it was stopped.
    systemd.set_nonblocking(true).unwrap();
    while hear().is_ok() {}
    // The watchman, who lives, lets everybody go after a while; he does not feed the watchdog.
    assert!(eventually(|| File::open(&good).ok()).is_some());
    assert_eq!(hear().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody else may say that it lives");
    drop(holder);
    assert_eq!(daemon.wait().and_then(|status| status.code()), Some(2));
}

#[test]
fn the_guard_is_killed_last_and_its_memory_stays_in_memory() {
    let Some(_) = testing::root() else { return };
    let of = |daemon: &Daemon, file: &str| fs::read_to_string(format!("/proc/{}/{file}", daemon.id())).unwrap();
    let scratch = ext4();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    // Some containers do not give it even to root.
    if capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE) {
        assert!(of(&daemon, "oom_score_adj").trim().parse::<i32>().unwrap() <= -900);
    }
    let status = of(&daemon, "status");
    let kib = |field: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    // Areas that are locked (all but a few of the kernel's own), of which little is used.
    assert!(kib("VmLck:") > kib("VmSize:") / 2, "{status}");
    assert!(kib("VmRSS:") < 64 << 10, "{status}");
    daemon.stop();
    // Without the capabilities it says so, and guards all the same.
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let whole = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    let mut command = Command::new("sh");
    let script = "ulimit -l 64 && echo 0 > /proc/self/oom_score_adj && exec setpriv --bounding-set -ipc_lock,-sys_resource \"$@\"";
    command.args(["-c", script, "sh"]).arg(whole.get_program()).args(whole.get_args());
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let (_, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::run(run_dir, command, Log::Read);
    daemon.says("the kernel may kill the guard when memory runs out (fix: ");
    daemon.says("the guard may have to wait for its own memory to be read from a disk (fix: ");
    assert_eq!(error_of(File::open(&bad)), REFUSED);
    daemon.stop();
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_guard_that_has_let_everybody_go_may_take_its_time_to_tidy_up() {
    let Some(_) = testing::root() else { return };
    // Stops the dispatcher in the second in which it waits for the log to be read, when everybody has been let go, and for
    // longer than it may stand still before that.
    let script = "my ($t, $bad) = split(/ /, shift); print \"held\\n\"; my $f; \
                  until (open($f, '<', $bad)) { select(undef, undef, undef, 0.01) } \
                  for my $r (0x4206, 0x4207) { syscall(101, $r, $t + 0, 0, 0) == 0 or exit 1 } \
                  waitpid($t, 0x40000000) > 0 or exit 1; open(my $s, '<', \"/proc/$t/task/$t/stat\") or exit 1; <$s> =~ /\\) t / or exit 1; sleep 7; exit 0";
    let stopped = eventually(|| {
        let scratch = ext4();
        let (_, bad) = good_and_bad(scratch.path());
        let mut daemon = Daemon::with(RunDir::new(), "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], Log::Unread);
        fill_the_log(&daemon, &bad);
        let mut holder = Holder::perl(script, &format!("{} {}", daemon.id(), bad.display())).unwrap();
        daemon.signal(Signal::TERM);
        let state = || {
            let stat = fs::read_to_string(format!("/proc/{0}/task/{0}/stat", daemon.id()));
            let state = stat.ok()?.rsplit(") ").next()?.chars().next();
            state.filter(|state| ['t', 'Z'].contains(state))
        };
        eventually(state).unwrap();
        // So that the watchman has nobody to wait for who reads his last words.
        daemon.leave_log();
        let stopped = holder.wait().success();
        assert_eq!(daemon.wait().and_then(|status| status.code()), Some(0), "it was tidying up, stopped: {stopped}");
        stopped.then_some(())
    });
    assert!(stopped.is_some(), "it could not be stopped at the right moment");
}
