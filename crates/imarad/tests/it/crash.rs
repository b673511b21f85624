//! A guard that dies of a fault of its own leaves nobody waiting, and no picture of its memory.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use imara_linux::testing;
use rustix::process::Signal;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, eventually};
use crate::files::{self, error_of, good_and_bad};
use crate::image::ext4;

/// A guard of `mount`, whose working directory that is too, started by a shell that does something before.
fn after(shell: &str, mount: &Path) -> Daemon {
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let whole = daemon::command(run_dir.path(), "enforce", &policy, &[mount]);
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{shell} \"$@\""), "bash"]).arg(whole.get_program()).args(whole.get_args());
    command.current_dir(mount).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Daemon::run(run_dir, command, Log::Read)
}

#[test]
fn a_guard_that_crashes_writes_no_core_dump_and_lets_everybody_pass() {
    let Some(_) = testing::root() else { return };
    for signal in [Signal::SEGV, Signal::ABORT, Signal::BUS] {
        let scratch = ext4();
        let (good, bad) = good_and_bad(scratch.path());
        // A core dump would go to the guarded file system, where nobody answers any more.
        let mut daemon = after("ulimit -c unlimited && exec", scratch.path());
        let (gone, opens) = (AtomicBool::new(false), AtomicU32::new(0));
        let status = thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !gone.load(Ordering::Relaxed) {
                        files::read(&good).unwrap();
                        opens.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let busy = eventually(|| (opens.load(Ordering::Relaxed) > 100).then_some(()));
            let status = daemon.crash(signal);
            let passed = eventually(|| (error_of(files::read(&bad)) == Some(0)).then_some(()));
            gone.store(true, Ordering::Relaxed);
            assert!(busy.is_some() && passed.is_some(), "{signal:?}");
            status.expect("it ends in time")
        });
        assert_eq!((status.signal(), status.core_dumped()), (Some(signal.as_raw()), false), "{signal:?}");
        let cores = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(cores.filter(|name| name.as_encoded_bytes().starts_with(b"core")).count(), 0, "{signal:?}");
    }
}

#[test]
fn a_guard_cannot_be_traced_by_another_process_of_root_that_may_trace_its_equals() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    // Without this capability on either side it is the guard's own word that counts.
    let without = ["--bounding-set", "-sys_ptrace"];
    // What may be traced may be looked up like this.
    let traceable = |pid: u32| {
        let mut readlink = Command::new("setpriv");
        readlink.args(without).args(["readlink", &format!("/proc/{pid}/exe")]);
        readlink.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    let mut other = Command::new("setpriv").args(without).args(["sleep", "600"]).spawn().unwrap();
    let others = eventually(|| traceable(other.id()).then_some(()));
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(others.is_some(), "who says nothing can be traced");
    let daemon = after(&format!("exec setpriv {}", without.join(" ")), scratch.path());
    assert!(!traceable(daemon.id()));
    daemon.stop();
}
