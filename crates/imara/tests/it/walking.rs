//! How trees are gone through: file system bounds, threads, and what cannot be looked at.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::process::Command;

use imara_integrity::digest::HashAlgorithm;
use imara_linux::testing::{FsKind, ScratchMount};

use crate::fixture::{Bound, Ran, Scratch, imara, label_of, right};

#[test]
fn one_file_system_is_the_subvolumes_and_other_mounts_of_it_too_and_nothing_else_that_is_mounted_below() {
    let Some(scratch) = Scratch::new(FsKind::Btrfs) else { return };
    for subvolume in ["sub", "sub/deeper"] {
        let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(scratch.path(subvolume)).status();
        assert!(made.unwrap().success());
    }
    let ours = ["a", "sub/b", "sub/deeper/c"].map(|name| scratch.write(name, b"1"));
    let inner = ScratchMount::new(FsKind::Tmpfs, 1 << 20).unwrap();
    let theirs = inner.path().join("d");
    fs::write(&theirs, b"2").unwrap();
    for directory in ["sub/tmpfs", "again"] {
        fs::create_dir(scratch.path(directory)).unwrap();
    }
    let file = scratch.write("sub/file", b"");
    let _bound = [
        Bound::new(inner.path(), &scratch.path("sub/tmpfs")),
        Bound::new(&scratch.path("sub/deeper"), &scratch.path("again")),
        Bound::new(&theirs, &file),
    ];
    let ran = scratch.run("label", &[&"--jobs", &"1", &"-x", &scratch.mount.path()]);
    // Skipped is the file that another file system's is mounted on; unchanged the one that is seen twice.
    assert_eq!((ran.code, ran.counts()), (Some(0), "labelled 3, unchanged 1, skipped 1, failed 0"), "{}", ran.err);
    for path in &ours {
        assert_eq!(label_of(path), Some(right(HashAlgorithm::Sha256, b"1")), "{path:?}");
    }
    assert_eq!(label_of(&theirs), None);
    let ran = scratch.run("verify", &[&"-x", &scratch.mount.path()]);
    assert_eq!((ran.code, ran.counts()), (Some(0), "passed 4, failed 0, not appraised 0, skipped 1"), "{}", ran.out);
    // A subvolume that is named is left for no other file system either, and the way is not back up.
    let ran = scratch.run("verify", &[&"-x", &scratch.path("sub")]);
    assert_eq!((ran.code, ran.counts()), (Some(0), "passed 2, failed 0, not appraised 0, skipped 1"), "{}", ran.out);
}

#[test]
fn where_there_is_no_memory_for_more_threads_those_that_are_there_do_it() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    for number in 0..200 {
        scratch.write(format!("{number}"), b"x");
    }
    for kilobytes in ["60000", "100000", "300000"] {
        let script = "ulimit -v $0; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, kilobytes, env!("CARGO_BIN_EXE_imara"), "label", "--jobs", "1000", "--policy"]);
        command.arg(scratch.mount.path().with_extension("policy")).arg(scratch.mount.path());
        let ran: Ran = command.output().unwrap().into();
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{kilobytes}");
        assert!(ran.counts().ends_with(", skipped 0, failed 0"), "{}", ran.out);
    }
}

#[test]
fn failures_with_the_same_reason_are_told_twenty_times_and_counted() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    for number in 0..25 {
        scratch.write(format!("{number}"), b"x");
    }
    scratch.mount.remount("ro").unwrap();
    let ran = scratch.run("label", &[&"--json", &scratch.mount.path()]);
    let lines: Vec<_> = ran.err.lines().collect();
    let reason = "its label cannot be written: Read-only file system (os error 30) (fix: mount -o remount,rw)";
    assert_eq!((ran.code, lines.len()), (Some(1), 21), "{}", ran.err);
    assert!(lines[..20].iter().all(|line| line.ends_with(reason)), "{}", ran.err);
    assert_eq!(lines[20], format!("imara: and 5 more: {reason}"));
    assert_eq!(ran.json().iter().filter(|line| line["action"] == "failed").count(), 25);
}

#[test]
fn too_many_open_files_are_told_with_the_limit() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"1");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 4; exec \"$0\" inspect \"$1\"", env!("CARGO_BIN_EXE_imara")]).arg(&file);
    let ran: Ran = command.output().unwrap().into();
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err.contains("Too many open files (os error 24) (fix: raise the limit of open files, `ulimit -n`"),
        "{}",
        ran.err
    );
}

#[test]
fn inspect_tells_what_it_cannot_look_at_and_goes_on() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (first, last) = (scratch.write("a", b"1"), scratch.write("b", b"2"));
    let (fifo, socket, link) = (scratch.path("fifo"), scratch.path("socket"), scratch.path("link"));
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = UnixListener::bind(&socket).unwrap();
    symlink("missing", &link).unwrap();
    let missing = scratch.path("missing");
    let complaints = [
        (
            &missing,
            "No such file or directory (os error 2) (fix: name a file or directory that exists and may be looked at)",
        ),
        (&fifo, "a named pipe, not a regular file (fix: name a regular file, nothing else has labels)"),
        (&socket, "a socket, not a regular file (fix: name a regular file, nothing else has labels)"),
        (
            &link,
            "a symbolic link that cannot be followed: No such file or directory (os error 2) (fix: name a file that \
             exists, or mend the link)",
        ),
    ]
    .map(|(path, text)| format!("imara: {}: {text}\n", path.display()))
    .concat();
    let ran = scratch.run("inspect", &[&"--json", &first, &missing, &fifo, &socket, &link, &last]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), complaints.as_str()));
    let told: Vec<_> = ran.json().iter().map(|line| line["path"].clone()).collect();
    assert_eq!(told, [first.to_str().unwrap(), last.to_str().unwrap()]);
    let ran = scratch.run("inspect", &[&missing, &last]);
    assert_eq!((ran.code, ran.out.lines().next()), (Some(2), last.to_str()));
    for (path, kind) in
        [("/dev/null", "a device, not"), ("/proc", "a directory, not"), ("/proc/self/cwd", "a directory, not")]
    {
        let ran = imara(&[&"inspect", &path]);
        assert!(ran.code == Some(2) && ran.err.starts_with(&format!("imara: {path}: {kind}")), "{ran:?}");
    }
}
