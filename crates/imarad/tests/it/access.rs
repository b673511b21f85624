//! Who opens a file, by which way, and what is not a regular file.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, complaints, eventually};
use crate::files::{self, REFUSED, SCRIPT, error_of, good_and_bad, label_of, set_label};
use crate::image::ext4;

fn succeeds(program: &str, arguments: &[&str], path: &Path) -> bool {
    Command::new(program).args(arguments).arg(path).output().unwrap().status.success()
}

#[test]
fn no_way_leads_around_the_guard() {
    let Some(_) = testing::root() else { return };
    // Some hosts allow no user namespaces, and a chroot never does: nobody comes in that way there.
    let namespaces = succeeds("unshare", &["-r", "cat"], Path::new("/dev/null"));
    if !namespaces {
        testing::skipped("namespaces", "user namespaces, for one of its ways");
    }
    let mounts = succeeds("unshare", &["-m", "test", "-e"], Path::new("/"));
    if !mounts {
        testing::skipped("namespaces", "a root that is a mount point, for one of its ways");
    }
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
            let ways = [
                ("another user", succeeds("setpriv", &["--reuid=1000", "--clear-groups", "cat"], path)),
                ("another process namespace", succeeds("unshare", &["-p", "-f", "cat"], path)),
                (
                    "another user namespace",
                    if namespaces { succeeds("unshare", &["-r", "cat"], path) } else { expected },
                ),
                (
                    "a mount elsewhere",
                    if mounts {
                        succeeds("unshare", &["-m", "sh", "-c", &bound(path)], Path::new("sh"))
                    } else {
                        expected
                    },
                ),
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

/// A copy of a program of the host whose dynamic loader is `./ld.so`, and the path of the loader that it had.
pub(crate) fn with_loader_of_its_own(program: &Path) -> (Vec<u8>, PathBuf) {
    let mut elf = fs::read(program).unwrap();
    assert_eq!(elf[..6], *b"\x7fELF\x02\x01", "64 bits, least significant byte first");
    let number = |elf: &[u8], at: usize, length: usize| {
        elf[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte))
    };
    // e_phoff, e_phentsize, e_phnum; the segment of type PT_INTERP; its p_offset and p_filesz.
    let (start, size, count) = (number(&elf, 32, 8), number(&elf, 54, 2), number(&elf, 56, 2));
    let mut segments = (0..count).map(|index| start + index * size);
    let segment = segments.find(|segment| number(&elf, *segment, 4) == 3).expect("the program has a dynamic loader");
    let (place, length) = (number(&elf, segment + 8, 8), number(&elf, segment + 32, 8));
    let name = &mut elf[place..place + length];
    let loader = std::str::from_utf8(name).unwrap().trim_end_matches('\0').into();
    name.fill(0);
    name[..7].copy_from_slice(b"./ld.so");
    (elf, loader)
}

/// Runs a command in a directory: the number of the error with which it did not begin, or how it ended and what it said.
fn run_in(directory: &Path, words: &[&str]) -> Result<(Option<i32>, String), Option<i32>> {
    let output = Command::new(words[0]).args(&words[1..]).current_dir(directory).output();
    let output = output.map_err(|error| error.raw_os_error())?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[test]
fn a_bad_dynamic_loader_is_not_executed_and_loads_nothing() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (program, loader) = with_loader_of_its_own(Path::new("/bin/true"));
        let loader = fs::read(loader).unwrap();
        let directories = ["good", "bad"].map(|name| scratch.path().join(name));
        for directory in &directories {
            fs::create_dir(directory).unwrap();
            files::make_executable(&directory.join("program"), &program);
            files::make_executable(&directory.join("ld.so"), &loader);
        }
        // A byte of padding at the end: the loader works as before, but is not what its label says.
        let (good, bad) = (&directories[0], &directories[1]);
        testing::install_bytes(&[&loader[..], b"#"].concat(), &bad.join("new")).unwrap();
        set_label(&bad.join("new"), &label_of(&loader));
        fs::rename(bad.join("new"), bad.join("ld.so")).unwrap();
        for words in [&["./program"][..], &["./ld.so", "./program"]] {
            for directory in &directories {
                assert_eq!(run_in(directory, words), Ok((Some(0), String::new())), "{kind:?}: nobody guards it yet");
            }
        }
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        for words in [&["./program"][..], &["./ld.so", "./program"]] {
            assert_eq!(run_in(good, words), Ok((Some(0), String::new())), "{kind:?}: {words:?}");
            assert_eq!(run_in(bad, words), Err(REFUSED), "{kind:?}: {words:?}");
        }
        let found = complaints(&daemon.stop());
        let names: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.cause.as_str())).collect();
        let expected = bad.join("ld.so");
        assert_eq!(names, vec![(expected.to_str().unwrap(), "invalid-hash"); 2], "{kind:?}");
    }
}

#[test]
fn a_bad_program_that_a_loader_reads_is_refused_by_the_rule_for_reading_and_not_by_that_for_execution() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let (program, loader) = with_loader_of_its_own(Path::new("/bin/true"));
    files::make_executable(&scratch.path().join("ld.so"), &fs::read(loader).unwrap());
    files::make_executable(&scratch.path().join("good"), &program);
    let bad = scratch.path().join("bad");
    testing::install_bytes(&[&program[..], b"#"].concat(), &bad).unwrap();
    set_label(&bad, &label_of(&program));
    for (policy, read) in [(EVERYTHING_OF_ROOT, false), ("appraise func=BPRM_CHECK fowner=0\n", true)] {
        let daemon = Daemon::with(RunDir::new(), "enforce", policy, &[scratch.path()], Log::Read);
        assert_eq!(run_in(scratch.path(), &["./good"]), Ok((Some(0), String::new())), "{policy}");
        assert_eq!(run_in(scratch.path(), &["./bad"]), Err(REFUSED), "{policy}");
        assert_eq!(run_in(scratch.path(), &["./ld.so", "./good"]), Ok((Some(0), String::new())), "{policy}");
        let (status, said) = run_in(scratch.path(), &["./ld.so", "./bad"]).unwrap();
        assert_eq!(status == Some(0), read, "{policy}: {status:?} {said}");
        assert_eq!(said.contains("Operation not permitted"), !read, "{policy}: {said}");
        let found = complaints(&daemon.stop());
        assert!(found.iter().all(|found| Path::new(&found.name) == bad && found.action == "denied"), "{found:?}");
        assert_eq!(found.len(), if read { 1 } else { 2 }, "{policy}: {found:?}");
    }
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
        // The guard hears of it afterwards.
        let refused = eventually(|| files::read(&bad).err().map(|error| error.raw_os_error()));
        assert_eq!(refused, Some(REFUSED), "{kind:?}");
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

#[test]
fn whoever_cannot_be_known_is_refused_if_a_rule_wants_to_know_him() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    // A guard in a pid namespace of its own cannot see who asks from outside.
    let start = |policy: &str| {
        let run_dir = RunDir::new();
        let policy = run_dir.policy(policy);
        let whole = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child"]).arg(whole.get_program()).args(whole.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Daemon::run(run_dir, command, Log::Read)
    };
    let daemon = start("appraise fowner=0\n");
    assert_eq!(error_of(File::open(&good)), Some(0), "no rule asks");
    drop(daemon);
    let daemon = start("dont_appraise uid=12345\nappraise fowner=0\n");
    assert_eq!(error_of(File::open(&good)), REFUSED);
    daemon.says("imarad: asker-unreadable: ");
    daemon.says("op=collect_data cause=failed");
    let status = daemon.status();
    assert_eq!((&status["failures"]["asker-unreadable"], &status["counters"]["denied"]), (&1.into(), &1.into()));
}

#[test]
fn where_the_way_of_opening_cannot_be_known_all_rules_for_it_count() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let policy = "appraise mask=MAY_WRITE appraise_type=imasig\nappraise func=FILE_CHECK\n";
    let daemon = Daemon::with(RunDir::new(), "enforce", policy, &[scratch.path()], Log::Read);
    files::read(&good).unwrap();
    let (flags, mode) = (OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    assert_eq!(rustix::fs::open(&good, flags, mode).unwrap_err().raw_os_error(), REFUSED.unwrap(), "openat");
    let resolve = rustix::fs::ResolveFlags::empty();
    let opened = rustix::fs::openat2(CWD, &good, flags, mode, resolve);
    assert_eq!(opened.unwrap_err().raw_os_error(), REFUSED.unwrap(), "openat2");
    daemon.stop();
}
