//! Two guards: of one run directory, of one file system, one after the other.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use imara_linux::testing;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, RunDir, eventually};
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
        assert!(Command::new("mount").args(words).arg(path).status().unwrap().success());
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
    assert!(Command::new("umount").arg(&bound).status().unwrap().success());
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

/// A loop device of one's own, whose number stays the same from mount to mount; detached when dropped.
#[derive(Debug)]
struct Loop {
    device: String,
    point: std::path::PathBuf,
    // Removed last.
    _directory: RunDir,
}

impl Loop {
    fn new() -> Self {
        let directory = RunDir::new();
        let (point, image) = (directory.path().join("mount"), directory.path().join("image"));
        fs::create_dir(&point).unwrap();
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        assert!(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status().unwrap().success());
        let found = Command::new("losetup").args(["-f", "--show"]).arg(&image).output().unwrap();
        assert!(found.status.success(), "{found:?}");
        let device = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        let made = Self { device, point, _directory: directory };
        made.mount();
        made
    }

    fn mount(&self) {
        self.mount_at(&self.point);
    }

    fn mount_at(&self, point: &Path) {
        assert!(Command::new("mount").arg(&self.device).arg(point).status().unwrap().success());
    }

    fn unmount(&self) -> bool {
        Command::new("umount").arg(&self.point).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = eventually(|| self.unmount().then_some(()));
        drop(Command::new("losetup").arg("-d").arg(&self.device).status());
    }
}

#[test]
fn a_file_system_that_has_gone_from_a_guard_may_come_to_another() {
    let Some(_) = testing::root() else { return };
    let (gone, stays) = (Loop::new(), ext4());
    let (_, bad) = good_and_bad(&gone.point);
    let (_, others_bad) = good_and_bad(stays.path());
    let daemon = Daemon::start("enforce", &[&gone.point, stays.path()]);
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    assert!(eventually(|| gone.unmount().then_some(())).is_some());
    daemon.says("has gone and is no longer guarded");
    // Where the first one would look for it, it would guard it again.
    let elsewhere = gone.point.with_extension("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    gone.mount_at(&elsewhere);
    let bad = elsewhere.join(bad.file_name().unwrap());
    assert_eq!(error_of(files::read(&bad)), Some(0), "the first does not guard it again");
    let next = Daemon::start("enforce", &[&elsewhere]);
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    assert_eq!(error_of(files::read(&others_bad)), REFUSED, "the first goes on with the other");
    next.stop();
    daemon.stop();
    let unmounted = || Command::new("umount").arg(&elsewhere).output().unwrap().status.success().then_some(());
    assert!(eventually(unmounted).is_some());
    gone.mount();
}
