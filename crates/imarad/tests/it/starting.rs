//! How a guard is started: policy, algorithm, configuration file, and what it is connected to.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imara_integrity::digest::Digest;
use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::OFlags;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, PATIENCE, RunDir, complaints, eventually};
use crate::files::{self, REFUSED, label_of, read_label};

pub(crate) fn bad_file(directory: &Path) -> PathBuf {
    let bad = directory.join("bad");
    files::make(&bad, b"content");
    files::change_last_byte(&bad).unwrap();
    bad
}

pub(crate) fn is_refused(path: &Path) -> bool {
    match File::open(path) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), REFUSED, "{}", path.display());
            true
        }
    }
}

#[test]
fn the_policy_decides_what_is_judged() {
    let Some(_) = testing::root() else { return };
    let (disk, memory) =
        (ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap(), ScratchMount::new(FsKind::Tmpfs, 8 << 20).unwrap());
    let (on_disk, in_memory) = (bad_file(disk.path()), bad_file(memory.path()));
    let ext4 = "dont_appraise fsmagic=0xef53\nappraise fowner=0\n";
    let executed = "appraise func=BPRM_CHECK fowner=0\n";
    let written = "appraise func=FILE_CHECK mask=MAY_WRITE fowner=0\n";
    let cases =
        [(EVERYTHING_OF_ROOT, true, true), (ext4, false, true), (executed, false, false), (written, false, false)];
    for (policy, disk_refused, memory_refused) in cases {
        let daemon = Daemon::with(RunDir::new(), "enforce", policy, &[disk.path(), memory.path()], Log::Read);
        assert_eq!(is_refused(&on_disk), disk_refused, "{policy}");
        assert_eq!(is_refused(&in_memory), memory_refused, "{policy}");
        daemon.stop();
    }
    // The policy that is used where none is named: all files of root, but not on tmpfs.
    let run_dir = RunDir::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_imarad"));
    command.arg("--run-dir").arg(run_dir.path()).arg("--state-dir").arg(run_dir.path().join("state"));
    command.args([disk.path(), memory.path()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let daemon = Daemon::run(run_dir, command, Log::Read);
    assert!(is_refused(&on_disk) && !is_refused(&in_memory), "builtin:appraise_tcb");
    daemon.stop();
}

#[test]
fn a_rule_for_writers_alone_keeps_them_out_of_bad_files_and_follows_them_in_good_ones() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let (good, bad) = (scratch.path().join("good"), bad_file(scratch.path()));
    files::make(&good, b"content");
    let policy = "appraise func=FILE_CHECK mask=^MAY_WRITE fowner=0\n";
    let daemon = Daemon::with(RunDir::new(), "enforce", policy, &[scratch.path()], Log::Read);
    files::read(&bad).unwrap();
    for options in
        [OpenOptions::new().append(true), OpenOptions::new().read(true).write(true), OpenOptions::new().write(true)]
    {
        let opened = options.open(&bad).map(drop).map_err(|error| error.raw_os_error());
        assert_eq!(opened, Err(REFUSED), "{options:?}");
    }
    // Whether the file is remembered or not.
    for round in 0..3_u8 {
        files::append(&good, &[round]).unwrap();
        files::label_becomes(&good, &files::read(&good).unwrap());
    }
    assert_eq!(complaints(&daemon.stop()).len(), 3);
}

#[test]
fn new_labels_have_the_chosen_algorithm_and_right_ones_stay_as_they_are() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let (kept, changed, new) =
        (scratch.path().join("kept"), scratch.path().join("changed"), scratch.path().join("new"));
    files::make(&kept, b"content");
    files::make(&changed, b"content");
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    command.args(["--hash", "sha512"]);
    let daemon = Daemon::run(run_dir, command, Log::Read);
    drop(files::open_to_change(&kept).unwrap());
    files::append(&changed, b", and more").unwrap();
    fs::write(&new, b"new").unwrap();
    for (path, content) in [(&changed, &b"content, and more"[..]), (&new, b"new")] {
        assert_eq!(files::read(path).unwrap(), content);
        let expected = [&[4, 6], Digest::of("sha512".parse().unwrap(), content).as_bytes()].concat();
        let found = eventually(|| (read_label(path).as_ref() == Some(&expected)).then_some(()));
        assert!(found.is_some(), "{}: {:02x?}", path.display(), read_label(path));
    }
    assert_eq!(complaints(&daemon.stop()), []);
    assert_eq!(read_label(&kept), Some(label_of(b"content")));
}

#[test]
fn a_guard_takes_everything_from_its_configuration_and_tells_systemd_when_it_is_ready() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let bad = bad_file(scratch.path());
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let config = run_dir.path().join("imara.toml");
    let text = format!(
        "mode = \"log\"\npolicy = {policy:?}\nmounts = [{:?}]\nrun_dir = {:?}\nstate_dir = {:?}\n",
        scratch.path(),
        run_dir.path(),
        run_dir.path().join("state")
    );
    fs::write(&config, text).unwrap();
    let socket = run_dir.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_imarad"));
    command.arg("--config").arg(&config).env("NOTIFY_SOCKET", &socket);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let daemon = Daemon::run(run_dir, command, Log::Read);
    let mut heard = vec![0; 1000];
    let mut hear = || {
        let length = systemd.recv(&mut heard).unwrap();
        String::from_utf8_lossy(&heard[..length]).into_owned()
    };
    assert!(hear().lines().any(|line| line == "READY=1"));
    assert!(!is_refused(&bad));
    assert_eq!(daemon.status()["mode"], "log");
    let found: Vec<_> = complaints(&daemon.stop()).into_iter().map(|found| found.action).collect();
    assert_eq!(found, ["allowed"]);
    let mut last = hear();
    while last.lines().all(|line| line == "WATCHDOG=1") {
        last = hear();
    }
    assert!(last.lines().any(|line| line == "STOPPING=1"), "{last}");
}

#[test]
fn a_guard_whose_output_goes_nowhere_guards_all_the_same() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let bad = bad_file(scratch.path());
    let daemon = Daemon::with(RunDir::new(), "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], Log::Gone);
    assert!(is_refused(&bad) && is_refused(&bad), "nobody reads its log");
    daemon.stop();
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    command.stdout(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let mut daemon = Daemon::run(run_dir, command, Log::Read);
    let guards = eventually(|| is_refused(&bad).then_some(()));
    assert!(guards.is_some(), "its standard output is full: {:?} {:?}", daemon.lines(), daemon.wait());
    daemon.stop();
}

#[test]
fn a_lock_that_cannot_be_had_is_told_for_what_it_is() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let (fresh, odd) = (RunDir::new(), RunDir::new());
    let policy = fresh.policy(EVERYTHING_OF_ROOT);
    fs::create_dir(odd.path().join("lock")).unwrap();
    let bound = odd.path().join("bound");
    fs::create_dir(&bound).unwrap();
    assert!(Command::new("mount").arg("--bind").args([scratch.path(), &bound]).status().unwrap().success());
    let refused = |run_dir: &Path, mounts: &[&Path]| {
        let output = daemon::refused_start(&mut daemon::command(run_dir, "enforce", &policy, mounts));
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let no_file = refused(odd.path(), &[scratch.path()]);
    assert!(no_file.starts_with("imarad: cannot take the lock that keeps a second guard out: open on "), "{no_file}");
    let twice =
        [refused(fresh.path(), &[scratch.path(), scratch.path()]), refused(fresh.path(), &[scratch.path(), &bound])];
    assert!(Command::new("umount").arg(&bound).status().unwrap().success());
    for (said, second) in twice.iter().zip([scratch.path(), &bound]) {
        let start =
            format!("imarad: {}: the same file system as {} (device ", second.display(), scratch.path().display());
        assert!(said.starts_with(&start) && said.contains("(fix: name it once"), "{said}");
    }
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let holder = format!(" is locked by process {} (fix: end it first", daemon.status()["pid"]);
    for (run_dir, start) in [
        (daemon.run_dir(), "imarad: another guard is running: ".to_owned()),
        (
            fresh.path(),
            format!(
                "imarad: {}: this file system is guarded already, another guard is running: ",
                scratch.path().display()
            ),
        ),
    ] {
        let said = refused(run_dir, &[scratch.path()]);
        assert!(said.starts_with(&start) && said.contains(&holder), "{said}");
    }
    daemon.stop();
}

#[test]
fn a_policy_under_which_nothing_is_guarded_is_told_with_the_announcement_and_in_the_log() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Tmpfs, 8 << 20).unwrap();
    for (policy, nothing) in [("appraise func=MODULE_CHECK\n", true), (EVERYTHING_OF_ROOT, false)] {
        let run_dir = RunDir::new();
        let (out, policy) = (run_dir.path().join("out"), run_dir.policy(policy));
        let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
        command.stdout(File::create(&out).unwrap());
        let daemon = Daemon::run(run_dir, command, Log::Read);
        let said = eventually(|| fs::read_to_string(&out).ok().filter(|said| said.ends_with('\n'))).unwrap();
        assert!(said.starts_with("guarding "), "{said}");
        let logged = daemon.stop().concat();
        for told in [&said, &logged] {
            assert_eq!(told.contains("nothing is guarded by this policy"), nothing, "{told}");
        }
    }
}

/// Runs a program that must succeed; what it printed.
pub(crate) fn done(program: &str, words: &[&Path]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A loop device, and where to mount it; both free when dropped.
pub(crate) struct Device {
    path: PathBuf,
    pub(crate) point: PathBuf,
    _directory: RunDir,
}

impl Device {
    pub(crate) fn new() -> Self {
        let directory = RunDir::new();
        let (image, point) = (directory.path().join("image"), directory.path().join("mount"));
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&point).unwrap();
        let path = done("losetup", &["--find".as_ref(), "--show".as_ref(), &image]).into();
        Self { path, point, _directory: directory }
    }

    pub(crate) fn make(&self) {
        done("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &self.path]);
    }

    pub(crate) fn mount(&self) {
        done("mount", &[&self.path, &self.point]);
    }

    pub(crate) fn umount(&self) {
        let done = eventually(|| Command::new("umount").arg(&self.point).status().unwrap().success().then_some(()));
        assert!(done.is_some(), "{}", self.point.display());
        // The file system itself ends with the last descriptor in it, a moment later. If it were mounted before, it would
        // be the same one, with all its marks.
        let exclusive =
            || OpenOptions::new().read(true).custom_flags(OFlags::EXCL.bits().cast_signed()).open(&self.path);
        assert!(eventually(|| exclusive().ok()).is_some(), "{}", self.path.display());
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-lq").arg(&self.point).status());
        drop(Command::new("losetup").arg("--detach").arg(&self.path).status());
    }
}

#[test]
fn the_guard_of_a_file_system_that_has_gone_keeps_nobody_from_guarding_what_is_mounted_elsewhere_on_its_device() {
    let Some(_) = testing::root() else { return };
    let device = Device::new();
    device.make();
    device.mount();
    let first = Daemon::start("enforce", &[&device.point]);
    device.umount();
    first.says("has gone and is no longer guarded");
    device.make();
    let elsewhere = device.point.with_extension("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    done("mount", &[&device.path, &elsewhere]);
    let bad = bad_file(&elsewhere);
    let second = Daemon::start("enforce", &[&elsewhere]);
    assert!(is_refused(&bad));
    second.stop();
    first.stop();
    assert!(eventually(|| Command::new("umount").arg(&elsewhere).status().unwrap().success().then_some(())).is_some());
}
