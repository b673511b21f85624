//! A guard's life: starts that fail, ends of all kinds, unmounts, full and read-only file systems, slow readers.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, complaints, eventually};
use crate::files::{self, REFUSED, error_of, good_and_bad, label_becomes, label_of, read_label};
use crate::image::{Image, ext4};

#[test]
fn what_cannot_be_guarded_ends_with_2_and_the_reason() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let nowhere = scratch.path().join("nowhere");
    let run_dir = RunDir::new();
    let (path, sound) = (run_dir.path(), run_dir.policy(EVERYTHING_OF_ROOT));
    let unsound = path.join("unsound");
    fs::write(&unsound, "appraise func=FILE_CHEK\n").unwrap();
    let open_to_all = RunDir::new();
    fs::set_permissions(open_to_all.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let cases: [(&Path, &str, &Path, &[&Path], &str); 8] = [
        (path, "enforce", &nowhere, &[scratch.path()], "nowhere"),
        (path, "enforce", &unsound, &[scratch.path()], "FILE_CHEK"),
        (path, "enforce", Path::new("builtin:nonsense"), &[scratch.path()], "nonsense"),
        (path, "enforce", &sound, &[&nowhere], "nowhere"),
        (path, "enforce", &sound, &[scratch.path(), &nowhere], "nowhere"),
        (path, "enforce", &sound, &[&good], "not a directory"),
        (path, "permissive", &sound, &[scratch.path()], "permissive"),
        (open_to_all.path(), "enforce", &sound, &[scratch.path()], "777"),
    ];
    for (run_dir, mode, policy, mounts, word) in cases {
        let output = daemon::refused_start(&mut daemon::command(run_dir, mode, policy, mounts));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{word}: {said}");
        assert!(said.contains(word), "{word}: {said}");
        assert_eq!(output.stdout, b"", "{word}: nothing is guarded");
    }
}

#[test]
fn a_guard_that_follows_another_finds_what_it_left() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let new = scratch.path().join("new");
    let mut run_dir = RunDir::new();
    for round in 0..4_u8 {
        let daemon = Daemon::with(run_dir, "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], Log::Read);
        files::append(&good, &[round]).unwrap();
        fs::write(&new, [round]).unwrap();
        assert_eq!(error_of(files::read(&bad)), REFUSED);
        // At once, while labels are still to be renewed.
        let (lines, next) = daemon.stop_for_next();
        assert_eq!(complaints(&lines).len(), 1, "{lines:#?}");
        assert!(files::label_is_right(&good) && files::label_is_right(&new), "round {round}");
        run_dir = next;
    }
}

#[test]
fn labels_of_files_closed_just_before_the_end_are_renewed() {
    let Some(_) = testing::root() else { return };
    for (kind, signal) in [(FsKind::Ext4, Signal::TERM), (FsKind::Tmpfs, Signal::INT)] {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let paths: Vec<_> = (0..300).map(|number| scratch.path().join(number.to_string())).collect();
        let mut daemon = Daemon::start("enforce", &[scratch.path()]);
        for path in &paths {
            fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap();
        }
        daemon.signal(signal);
        assert_eq!(daemon.wait().and_then(|status| status.code()), Some(0));
        let stale = paths.iter().filter(|path| !files::label_is_right(path)).count();
        assert_eq!(stale, 0, "{kind:?}");
    }
}

/// Eight threads open and write without end; the guard is ended in the midst of it; then each of them goes on a while.
fn ended_under_load(kind: FsKind, signal: Signal) {
    let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
    let paths: Vec<_> = (0..40).map(|number| scratch.path().join(number.to_string())).collect();
    for (number, path) in paths.iter().enumerate() {
        files::make(path, &vec![7; if number % 4 == 0 { 200_000 } else { 100 }]);
    }
    let mut daemon = Daemon::start("enforce", &[scratch.path()]);
    let (gone, opens) = (AtomicBool::new(false), AtomicU32::new(0));
    let status = thread::scope(|scope| {
        for number in 0..8 {
            let (paths, gone, opens) = (&paths, &gone, &opens);
            scope.spawn(move || {
                let (mut round, mut after) = (0_usize, 0);
                while after < 50 {
                    round += 1;
                    let path = &paths[(round * (2 * number + 1)) % paths.len()];
                    if round % 3 == 0 {
                        files::change_last_byte(path).unwrap()
                    } else {
                        files::read(path).map(drop).unwrap()
                    }
                    opens.fetch_add(1, Ordering::Relaxed);
                    after += u32::from(gone.load(Ordering::Relaxed));
                }
            });
        }
        eventually(|| (opens.load(Ordering::Relaxed) > 2000).then_some(())).unwrap();
        daemon.signal(signal);
        let status = daemon.wait();
        gone.store(true, Ordering::Relaxed);
        status
    });
    let expected = if signal == Signal::KILL { None } else { Some(0) };
    assert_eq!(status.expect("it ends in time").code(), expected, "{kind:?}");
    assert_eq!(complaints(&daemon.all_lines()), [], "{kind:?}");
}

#[test]
fn nobody_hangs_when_the_guard_is_killed_under_load() {
    let Some(_) = testing::root() else { return };
    FsKind::ALL.into_iter().for_each(|kind| ended_under_load(kind, Signal::KILL));
}

#[test]
fn sigterm_and_sigint_end_the_guard_under_load() {
    let Some(_) = testing::root() else { return };
    ended_under_load(FsKind::Ext4, Signal::TERM);
    ended_under_load(FsKind::Tmpfs, Signal::INT);
}

fn umount(path: &Path) -> bool {
    Command::new("umount").arg(path).output().unwrap().status.success()
}

/// Whether a file system can be unmounted while the guard stands still and gives nothing back.
///
/// This is tried more than once: the children that other tests fork have our files open until they execute something,
/// and the guard moves what it remembers to a mount of its own when it finds the time. `again` is done before each try.
fn umount_at_once(daemon: &Daemon, path: &Path, mut again: impl FnMut()) -> bool {
    let unmounted = eventually(|| {
        again();
        daemon.stopped(|| umount(path)).then_some(())
    });
    unmounted.is_some()
}

fn remembered(daemon: &Daemon) -> u64 {
    daemon.status()["remembered"]["known"].as_u64().unwrap()
}

#[test]
fn a_guarded_file_system_can_be_unmounted_at_once_and_the_others_stay_guarded() {
    let Some(_) = testing::root() else { return };
    let (first, second, third) = (ext4(), ext4(), ScratchMount::new(FsKind::Tmpfs, 8 << 20).unwrap());
    let goods: Vec<_> = [&first, &second, &third].map(|scratch| good_and_bad(scratch.path())).into();
    let daemon = Daemon::start("enforce", &[first.path(), second.path(), third.path()]);
    for (good, _) in &goods {
        files::read(good).unwrap();
    }
    // Read just before, so it is remembered.
    let unmounted = umount_at_once(&daemon, first.path(), || drop(files::read(&goods[0].0).unwrap()));
    assert!(unmounted, "what is remembered keeps nothing busy");
    daemon.says(&format!("{} has gone and is no longer guarded", first.path().display()));
    files::read(&goods[1].0).unwrap();
    assert!(remembered(&daemon) > 0);
    assert_eq!(daemon.ask(r#"{"command":"release"}"#)["ok"], true);
    assert_eq!(remembered(&daemon), 0);
    assert!(umount_at_once(&daemon, second.path(), || ()));
    daemon.says(&format!("{} has gone and is no longer guarded", second.path().display()));
    let guarded: Vec<_> = daemon.status()["mounts"].as_array().unwrap().iter().map(|m| m["guarded"].clone()).collect();
    assert_eq!(guarded, [false, false, true]);
    files::read(&goods[2].0).unwrap();
    assert_eq!(error_of(files::read(&goods[2].1)), REFUSED, "the third is still guarded");
    daemon.stop();
}

#[test]
fn a_guarded_file_system_can_be_unmounted_after_release_although_a_label_was_being_renewed() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = scratch.path().join("large");
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    // Long enough to be seen.
    File::create(&path).unwrap().set_len(2 << 30).unwrap();
    eventually(|| (daemon.status()["remembered"]["busy"] == 1).then_some(())).unwrap();
    daemon.ask(r#"{"command":"release"}"#);
    eventually(|| (daemon.status()["remembered"]["busy"] == 0).then_some(())).unwrap();
    assert!(umount_at_once(&daemon, scratch.path(), || ()), "release has given everything back");
    daemon.stop();
}

#[test]
fn a_file_system_that_is_mounted_anew_while_nobody_looks_is_not_called_guarded() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    daemon.ask(r#"{"command":"release"}"#);
    // What a child of another test closes meanwhile waits in the guard's queue and keeps the mount busy: let it go on.
    let cycled = eventually(|| daemon.stopped(|| scratch.cycle().ok()));
    assert!(cycled.is_some());
    let guarded = error_of(files::read(&bad)) == REFUSED;
    assert_eq!(daemon.status()["mounts"][0]["guarded"], guarded, "what it says is what it does");
    daemon.stop();
}

#[test]
fn a_writer_that_outlives_a_lazy_unmount_is_followed() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let mut writer = files::open_to_change(&good).unwrap();
    // In this process the file system stays reachable through the writer's directory.
    let root = File::open(scratch.path()).unwrap();
    assert!(Command::new("umount").arg("-l").arg(scratch.path()).status().unwrap().success());
    writer.write_all(b"CONTENT").unwrap();
    drop(writer);
    let stale = rustix::fs::openat(&root, "good", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&stale)));
    label_becomes(&path, b"CONTENT");
    drop((stale, root));
    daemon.says("has gone and is no longer guarded");
    daemon.stop();
}

#[test]
fn a_label_that_does_not_fit_on_a_full_file_system_keeps_nobody_from_reading() {
    let Some(_) = testing::root() else { return };
    // Without room in the inode, a label takes a block.
    let image = Image::ext4(&["-I", "128", "-b", "1024", "-m", "0"]);
    let (old, twin, new) = (image.path().join("old"), image.path().join("twin"), image.path().join("new"));
    // Equal labels share their block, so that a change needs a new one.
    files::make(&old, b"same");
    files::make(&twin, b"same");
    let mut ballast = File::create(image.path().join("ballast")).unwrap();
    let daemon = Daemon::start("enforce", &[image.path()]);
    let mut writers = [files::open_to_change(&old).unwrap(), File::create(&new).unwrap()];
    for writer in &mut writers {
        writer.write_all(b"legitimate").unwrap();
        writer.sync_all().unwrap();
    }
    for size in [1 << 20, 1 << 16, 1024] {
        while ballast.write_all(&vec![0x5a; size]).and_then(|()| ballast.sync_all()).is_ok() {}
    }
    drop(writers);
    for _ in 0..3 {
        for path in [&old, &new] {
            assert_eq!(files::read(path).unwrap(), b"legitimate", "{}", path.display());
        }
    }
    assert_eq!(daemon.status()["failures"]["label-not-written"], 2, "{:#?}", daemon.lines());
    assert_eq!(read_label(&old), Some(label_of(b"same")));
    ballast.set_len(0).unwrap();
    ballast.sync_all().unwrap();
    for path in [&old, &new] {
        files::read(path).unwrap();
        label_becomes(path, b"legitimate");
    }
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn a_log_that_may_only_be_appended_to_is_readable_although_its_label_cannot_follow() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(&good).status().unwrap().success();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    assert!(chattr("+a"));
    for _ in 0..3 {
        files::append(&good, b"line\n").unwrap();
        files::read(&good).unwrap();
    }
    assert_eq!(daemon.status()["failures"]["label-not-written"], 1, "{:#?}", daemon.lines());
    assert!(chattr("-a"));
    files::append(&good, b"line\n").unwrap();
    label_becomes(&good, &files::read(&good).unwrap());
    assert_eq!(complaints(&daemon.stop()), []);
}

#[test]
fn on_a_read_only_file_system_good_files_open_and_bad_ones_do_not() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (good, bad) = good_and_bad(scratch.path());
        let unlabelled = scratch.path().join("unlabelled");
        fs::write(&unlabelled, b"old").unwrap();
        scratch.remount("ro").unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        files::read(&good).unwrap();
        assert_eq!(error_of(files::read(&bad)), REFUSED);
        assert_eq!(error_of(files::read(&unlabelled)), REFUSED);
        daemon.stop();
        let daemon = Daemon::start("fix", &[scratch.path()]);
        for path in [&good, &bad, &unlabelled] {
            files::read(path).unwrap();
        }
        daemon.says("label-not-written");
        let lines = daemon.stop();
        let found: Vec<_> = complaints(&lines).into_iter().map(|found| (found.cause, found.action)).collect();
        let allowed = |cause: &str| (cause.to_owned(), "allowed".to_owned());
        assert_eq!(found, [allowed("invalid-hash"), allowed("missing-hash")], "{kind:?}");
        let why = lines.iter().filter(|line| line.contains("label-not-written") && line.contains("ead-only"));
        assert_eq!(why.count(), 2, "{lines:#?}");
        scratch.remount("rw").unwrap();
    }
}

#[test]
fn the_mode_is_changed_at_run_time() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let mode = |name: &str| daemon.ask(&format!(r#"{{"command":"mode","mode":"{name}"}}"#));
    let opened = |expected: Option<i32>, mode: &str| {
        assert_eq!(error_of(files::read(&bad)), expected, "{mode}");
        files::read(&good).unwrap_or_else(|error| panic!("{mode}: {error}"));
    };
    opened(REFUSED, "enforce");
    assert_eq!(mode("log"), serde_json::json!({"ok": true, "before": "enforce", "mode": "log"}));
    opened(Some(0), "log");
    mode("off");
    opened(Some(0), "off");
    mode("enforce");
    opened(REFUSED, "enforce again");
    assert_eq!(mode("permissive")["ok"], false);
    opened(REFUSED, "after a mode that does not exist");
    mode("fix");
    opened(Some(0), "fix");
    mode("enforce");
    opened(Some(0), "enforce after fix");
    let found: Vec<_> = complaints(&daemon.stop()).into_iter().map(|found| found.action).collect();
    assert_eq!(found, ["denied", "allowed", "denied", "denied", "repaired"]);
}

#[test]
fn writers_that_came_in_mode_off_are_nobody_to_vouch_for() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    files::read(&good).unwrap();
    daemon.ask(r#"{"command":"mode","mode":"off"}"#);
    let mut writer = files::open_to_change(&good).unwrap();
    writer.write_all(b"changed").unwrap();
    daemon.ask(r#"{"command":"mode","mode":"enforce"}"#);
    assert_eq!(error_of(files::read(&good)), REFUSED, "written to while nobody looked");
    drop(writer);
    assert_eq!(error_of(files::read(&good)), REFUSED);
    daemon.stop();
    assert_eq!(read_label(&good), Some(label_of(b"content")));
}

#[test]
fn a_log_that_nobody_reads_keeps_nobody_waiting_and_its_lost_lines_are_counted() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::with(RunDir::new(), "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], Log::Unread);
    for _ in 0..12_000 {
        assert_eq!(error_of(File::open(&bad)), REFUSED);
    }
    files::read(&good).unwrap();
    let status = daemon.status();
    assert_eq!(status["counters"]["denied"], 12_000);
    assert!(status["counters"]["log_lines_dropped"].as_u64().unwrap() > 1000, "{status}");
    daemon.stop();
}

#[test]
fn hostile_words_on_the_control_socket_are_answered_and_change_nothing() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    for words in
        ["", "{}", "null", r#"{"command":"stop"}"#, r#"{"command":"mode"}"#, r#"{"command":"mode","mode":"OFF"}"#]
    {
        assert_eq!(daemon.ask(words)["ok"], false, "{words}");
    }
    let socket = daemon.run_dir().join("control");
    let mut silent = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let mut endless = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    drop(endless.write_all(&vec![b'x'; 1 << 20]));
    // While they hold the socket up, and afterwards, files are judged.
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    drop(silent.write_all(b"{\"command\":\"release\""));
    drop((silent, endless));
    assert_eq!(daemon.status()["mode"], "enforce");
    daemon.stop();
}

#[test]
fn clients_that_say_nothing_keep_no_other_from_being_served() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let socket = daemon.run_dir().join("control");
    let connect = || std::os::unix::net::UnixStream::connect(&socket).unwrap();
    // One place is left, and each of the silent clients would keep a queue waiting for two seconds.
    let silent: Vec<_> = (0..15).map(|_| connect()).collect();
    assert_eq!(daemon.status()["mode"], "enforce");
    let refusal = eventually(|| {
        let mut more: Vec<_> = (0..85).map(|_| connect()).collect();
        let mut refusal = String::new();
        std::io::Read::read_to_string(more.last_mut()?, &mut refusal).ok()?;
        Some(refusal).filter(|refusal| !refusal.is_empty())
    });
    let expected = "{\"busy\":true,\"error\":\"too many clients are served; ask again\",\"ok\":false}\n";
    assert_eq!(refusal.as_deref(), Some(expected));
    let status = eventually(|| Some(daemon.status()).filter(|status| status["mode"] == "enforce"));
    assert!(status.is_some(), "the silent ones are cut off");
    drop(silent);
    daemon.stop();
}

#[test]
fn sighup_ends_the_guard_of_a_terminal_and_no_other() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, bad) = good_and_bad(scratch.path());
    let run_dir = RunDir::new();
    let (log, policy) = (run_dir.path().join("log"), run_dir.policy(EVERYTHING_OF_ROOT));
    let plain = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    let words = || std::iter::once(plain.get_program()).chain(plain.get_args());
    let in_background = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut service = Command::new("setsid");
    service.args(words());
    let daemon = Daemon::run(run_dir, in_background(service), Log::Read);
    daemon.signal(Signal::HUP);
    assert_eq!((daemon.status()["mode"].as_str(), error_of(files::read(&bad))), (Some("enforce"), REFUSED));
    let (_, run_dir) = daemon.stop_for_next();

    // The terminal that script(1) makes goes when it is killed.
    let line: Vec<_> = words().map(|word| word.to_str().unwrap()).collect();
    let mut script = Command::new("script");
    // Whoever runs this under nohup(1) has SIGHUP ignored, and the guard would go by that.
    let line = format!("exec env --default-signal=HUP {} 2> {}", line.join(" "), log.display());
    script.args(["-q", "-f", "-e", "-c"]).arg(line).arg("/dev/null");
    let mut terminal = Daemon::run(run_dir, in_background(script), Log::Read);
    let guard = terminal.status()["pid"].as_i64().and_then(|pid| Pid::from_raw(pid.try_into().ok()?)).unwrap();
    assert_eq!(error_of(files::read(&bad)), REFUSED);
    terminal.signal(Signal::KILL);
    terminal.wait();
    let ended = || fs::read_to_string(&log).ok().filter(|log| log.contains("imarad: ended, "));
    if eventually(ended).is_none() {
        let _ = kill_process(guard, Signal::KILL);
        panic!("it is there still, and said: {:?}", fs::read_to_string(&log));
    }
    files::read(&bad).unwrap();
}
