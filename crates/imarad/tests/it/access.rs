//! Who opens a file, by which way, and what is not a regular file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::daemon::{Daemon, complaints};
use crate::files::{self, REFUSED, SCRIPT, good_and_bad};

fn succeeds(program: &str, arguments: &[&str], path: &Path) -> bool {
    Command::new(program).args(arguments).arg(path).output().unwrap().status.success()
}

#[test]
fn no_way_leads_around_the_guard() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let inside = scratch.path().join("inside");
        fs::create_dir(&inside).unwrap();
        let (good, bad) = good_and_bad(&inside);
        for path in [&good, &bad] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
            symlink(path, path.with_extension("symlink")).unwrap();
        }
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let bound = |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            format!("mount --bind '{0}' /mnt && cat /mnt/{name}", path.parent().unwrap().display())
        };
        for (path, expected) in [(&good, true), (&bad, false)] {
            let namespaces = succeeds("unshare", &["-r", "cat"], Path::new("/dev/null"));
            let ways = [
                ("another user", succeeds("setpriv", &["--reuid=1000", "--clear-groups", "cat"], path)),
                ("another process namespace", succeeds("unshare", &["-p", "-f", "cat"], path)),
                // Some hosts allow no user namespaces, and a chroot never does: nobody comes in that way there.
                (
                    "another user namespace",
                    if namespaces { succeeds("unshare", &["-r", "cat"], path) } else { expected },
                ),
                ("a mount elsewhere", succeeds("unshare", &["-m", "sh", "-c", &bound(path)], Path::new("sh"))),
                ("a symbolic link", succeeds("cat", &[], &path.with_extension("symlink"))),
                ("O_DIRECT", direct(path).is_ok()),
                ("a descriptor of its path", through_descriptor(path).is_ok()),
            ];
            for (way, opened) in ways {
                assert_eq!(opened, expected, "{kind:?}: {} by {way}", path.display());
            }
        }
        daemon.stop();
    }
}

fn direct(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn through_descriptor(path: &Path) -> io::Result<Vec<u8>> {
    let place = rustix::fs::open(path, OFlags::PATH, Mode::empty())?;
    files::read(Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place))))
}

#[test]
fn a_good_script_with_a_bad_interpreter_is_not_executed() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let mut scripts = Vec::new();
    for name in ["good", "bad"] {
        let (interpreter, script) = (scratch.path().join(name), scratch.path().join(format!("{name}-script")));
        files::make_executable(&interpreter, &fs::read("/bin/sh").unwrap());
        let first = format!("#!{}\n", interpreter.display());
        files::make_executable(&script, &[first.as_bytes(), &SCRIPT[10..]].concat());
        scripts.push((interpreter, script));
    }
    files::append(&scripts[1].0, b"#").unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    files::execute(&scripts[0].1).unwrap();
    assert_eq!(files::execute(&scripts[1].1).unwrap_err().raw_os_error(), REFUSED);
    let found: Vec<_> = complaints(&daemon.stop()).into_iter().map(|found| found.name).collect();
    assert_eq!(found, [scripts[1].0.to_str().unwrap()]);
}

#[test]
fn what_the_policy_does_not_ask_about_is_not_judged_until_it_does() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (_, bad) = good_and_bad(scratch.path());
        let foreign = scratch.path().join("foreign");
        chown(&bad, Some(1000), None).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        files::append(&bad, b"more").unwrap();
        files::read(&bad).unwrap();
        File::create(&foreign).unwrap();
        chown(&foreign, Some(1000), None).unwrap();
        fs::write(&foreign, b"unlabelled or not, nobody asks").unwrap();
        files::read(&foreign).unwrap();
        assert_eq!(complaints(&daemon.lines()), [], "{kind:?}");
        chown(&bad, Some(0), None).unwrap();
        assert_eq!(files::read(&bad).unwrap_err().raw_os_error(), REFUSED, "{kind:?}");
        daemon.stop();
    }
}

#[test]
fn what_is_not_a_regular_file_is_nobodys_business() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let (_, bad) = good_and_bad(scratch.path());
    let (fifo, null) = (scratch.path().join("fifo"), scratch.path().join("null"));
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3)).unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 5);
    rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    fs::write(&null, b"nothing").unwrap();
    // Nor are names and attributes, even of a bad file.
    fs::metadata(&bad).unwrap();
    fs::set_permissions(&bad, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&bad, bad.with_extension("moved")).unwrap();
    fs::remove_file(bad.with_extension("moved")).unwrap();
    assert_eq!(complaints(&daemon.stop()), []);
}
