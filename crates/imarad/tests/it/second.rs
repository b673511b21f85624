//! Two guards: of one run directory, of one file system, one after the other.

use std::fs;
use std::path::Path;

use imara_linux::testing;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, RunDir};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

#[test]
fn a_second_guard_refuses_to_start_and_the_first_goes_on() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let policy = daemon.run_dir().join("policy");
    let output = daemon::refused_start(&mut daemon::command(daemon.run_dir(), "enforce", &policy, &[scratch.path()]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("another guard is running"), "{said}");
    files::read(&good).unwrap();
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    assert_eq!(daemon.status()["mode"], "enforce", "the socket is still the first one's");
    daemon.stop();
}

#[test]
fn a_second_guard_of_the_same_file_system_refuses_to_start_whatever_its_run_directory() {
    let Some(_) = testing::root() else { return };
    let (scratch, other) = (ext4(), ext4());
    let (good, bad) = good_and_bad(scratch.path());
    let (_, others_bad) = good_and_bad(other.path());
    let again = RunDir::new();
    let bound = again.path().join("bound");
    fs::create_dir(&bound).unwrap();
    let mount = |words: &[&str], path: &Path| {
        assert!(std::process::Command::new("mount").args(words).arg(path).status().unwrap().success());
    };
    mount(&["--bind", scratch.path().to_str().unwrap()], &bound);
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    for mounts in [&[scratch.path()][..], &[other.path(), scratch.path()], &[&bound]] {
        let output = daemon::refused_start(&mut daemon::command(run_dir.path(), "log", &policy, mounts));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]), "{mounts:?}: {said}");
        let expected = format!("is locked by process {}", daemon.id());
        assert!(said.contains("this file system is guarded already") && said.contains(&expected), "{mounts:?}: {said}");
        files::read(&good).unwrap();
        assert_eq!(error_of(files::read(&bad)), REFUSED);
        assert_eq!(error_of(files::read(&others_bad)), Some(0), "what it could have guarded it does not either");
    }
    assert!(std::process::Command::new("umount").arg(&bound).status().unwrap().success());
    files::append(&good, b" and more").unwrap();
    files::label_becomes(&good, b"content and more");
    let beside = Daemon::start("enforce", &[other.path()]);
    assert_eq!(error_of(files::read(&others_bad)), REFUSED, "two file systems may have a guard each");
    beside.stop();
    daemon.stop();
    let next = Daemon::with(run_dir, "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], daemon::Log::Read);
    assert_eq!(error_of(files::read(&bad)), REFUSED, "when the first has ended another may follow");
    next.stop();
}
