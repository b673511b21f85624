//! Each way of changing a file: what becomes of its label, as the table of coverage says.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags};

use crate::coverage::{Found, Table};
use crate::daemon::{Daemon, complaints, eventually};
use crate::files::{self, REFUSED, label_becomes, label_of, read_label, set_label};

/// Changes a file that is known to be good. It gets a directory with a good `file` (8 KiB) and a good `other`, and
/// returns the name and the content of what must be good then.
type Change = (&'static str, fn(&Path) -> io::Result<(&'static str, Vec<u8>)>);

const FOLLOWED: &[Change] = &[
    ("write", |d| {
        let file = files::open_to_change(&d.join("file"))?;
        file.write_all_at(b"pwrite", 100)?;
        (&file).write_all(b"write")?;
        found(d, "file")
    }),
    ("mmap-store", |d| {
        files::change_last_byte_mapped(&d.join("file"))?;
        found(d, "file")
    }),
    ("ftruncate", |d| {
        files::open_to_change(&d.join("file"))?.set_len(100)?;
        found(d, "file")
    }),
    ("rdonly-trunc", |d| {
        rustix::fs::open(d.join("file"), OFlags::RDONLY | OFlags::TRUNC, Mode::empty())?;
        Ok(("file", Vec::new()))
    }),
    ("fallocate", |d| {
        let file = files::open_to_change(&d.join("file"))?;
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096)?;
        found(d, "file")
    }),
    ("copy-range", |d| {
        let (from, to) = (File::open(d.join("other"))?, files::open_to_change(&d.join("file"))?);
        rustix::fs::copy_file_range(&from, Some(&mut 0), &to, Some(&mut 10), 1000)?;
        found(d, "file")
    }),
    ("copy-range", |d| {
        let (from, to) = (File::open(d.join("other"))?, files::open_to_change(&d.join("file"))?);
        rustix::fs::sendfile(&to, &from, Some(&mut 0), 1000)?;
        found(d, "file")
    }),
    ("copy-range", |d| {
        let (from, to) = (File::open(d.join("other"))?, files::open_to_change(&d.join("file"))?);
        let (out, into) = rustix::pipe::pipe()?;
        let flags = rustix::pipe::SpliceFlags::empty();
        rustix::pipe::splice(&from, Some(&mut 0), &into, None, 1000, flags)?;
        rustix::pipe::splice(&out, None, &to, Some(&mut 10), 1000, flags)?;
        found(d, "file")
    }),
    ("passed-writer", |d| {
        let file = OpenOptions::new().append(true).open(d.join("file"))?;
        // It writes when we have closed our own.
        let mut child =
            Command::new("sh").args(["-c", "read line; echo more"]).stdin(Stdio::piped()).stdout(file).spawn()?;
        files::read(&d.join("file"))?;
        drop(child.stdin.take());
        assert!(child.wait()?.success());
        found(d, "file")
    }),
    ("new", |d| {
        fs::write(d.join("new"), b"new")?;
        Ok(("new", b"new".to_vec()))
    }),
    ("new", |d| {
        let path = d.join("node");
        rustix::fs::mknodat(CWD, &path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
        files::append(&path, b"node")?;
        Ok(("node", b"node".to_vec()))
    }),
    ("tmpfile", |d| {
        let file = rustix::fs::open(d, OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o644))?;
        let file = File::from(file);
        (&file).write_all(b"nameless")?;
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, name, CWD, d.join("linked"), AtFlags::SYMLINK_FOLLOW)?;
        Ok(("linked", b"nameless".to_vec()))
    }),
    ("core-dump", dumped),
];

const REFLINKED: Change = ("reflink", |d| {
    let (from, to) = (File::open(d.join("other"))?, files::open_to_change(&d.join("file"))?);
    rustix::fs::ioctl_ficlone(&to, &from)?;
    found(d, "file")
});

pub(crate) const IDS: &[&str] = &[
    "write",
    "mmap-store",
    "ftruncate",
    "rdonly-trunc",
    "fallocate",
    "copy-range",
    "passed-writer",
    "new",
    "tmpfile",
    "core-dump",
    "reflink",
    "truncate",
    "xattr",
    "chown",
    "chmod",
    "unlink",
];

/// What is in the file now. It was closed by its writer, but nobody says that the guard has heard of that.
fn found(directory: &Path, name: &'static str) -> io::Result<(&'static str, Vec<u8>)> {
    Ok((name, files::read(&directory.join(name))?))
}

/// A program that dies in the directory; the kernel writes `core`, or `core.PID`, if the host says that it shall.
fn dumped(directory: &Path) -> io::Result<(&'static str, Vec<u8>)> {
    if fs::read_to_string("/proc/sys/kernel/core_pattern")?.trim() != "core" {
        testing::skipped("core", "a host where a core dump is a file in the current directory");
        return found(directory, "file");
    }
    let mut shell = Command::new("sh");
    let ended = shell.args(["-c", "ulimit -c unlimited; kill -SEGV $$"]).current_dir(directory).status()?;
    assert!(ended.core_dumped(), "{ended:?}");
    let name = fs::read_dir(directory)?
        .flatten()
        .map(|entry| entry.file_name())
        .find(|name| name.to_string_lossy().starts_with("core"));
    fs::rename(directory.join(name.expect("a core dump")), directory.join("dump"))?;
    found(directory, "dump")
}

fn content() -> Vec<u8> {
    (0..8192_u32).map(|number| number.to_le_bytes()[0] ^ 0x5a).collect()
}

fn populate(directory: &Path) {
    fs::create_dir(directory).unwrap();
    files::make(&directory.join("file"), &content());
    files::make(&directory.join("other"), &[b'o'; 8192]);
}

/// Reads it until the kernel answers for it, where it may.
fn know(path: &Path) {
    for _ in 0..4 {
        files::read(path).unwrap();
    }
}

fn changes_are_what_the_table_says(kind: FsKind) {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
    let reflinks = kind == FsKind::Btrfs;
    let changes: Vec<&Change> = FOLLOWED.iter().chain(reflinks.then_some(&REFLINKED)).collect();
    let directories: Vec<_> = (0..changes.len()).map(|n| scratch.path().join(format!("{n}"))).collect();
    directories.iter().for_each(|directory| populate(directory));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    for ((id, change), directory) in changes.iter().zip(&directories) {
        know(&directory.join("file"));
        let (name, expected) = change(directory).unwrap_or_else(|error| panic!("{kind:?}: {id}: {error}"));
        // At once, and when the label is there.
        let path = directory.join(name);
        assert_eq!(files::read(&path).unwrap_or_else(|error| panic!("{kind:?}: {id}: {error}")), expected, "{id}");
        label_becomes(&path, &expected);
        assert_eq!(files::read(&path).unwrap(), expected, "{kind:?}: {id}");
        table.says(id, Found::Followed, &format!("{kind:?}"));
    }
    assert_eq!(complaints(&daemon.stop()), [], "{kind:?}");
}

#[test]
fn ways_of_changing_are_followed_on_ext4() {
    changes_are_what_the_table_says(FsKind::Ext4);
}

#[test]
fn ways_of_changing_are_followed_on_xfs() {
    changes_are_what_the_table_says(FsKind::Xfs);
}

#[test]
fn ways_of_changing_are_followed_on_btrfs() {
    changes_are_what_the_table_says(FsKind::Btrfs);
}

#[test]
fn ways_of_changing_are_followed_on_tmpfs() {
    changes_are_what_the_table_says(FsKind::Tmpfs);
}

#[test]
fn truncate_is_followed_for_files_that_are_remembered_and_for_no_others() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let (known, unknown) = (scratch.path().join("known"), scratch.path().join("unknown"));
    files::make(&known, &content());
    files::make(&unknown, &content());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    know(&known);
    for path in [&known, &unknown] {
        let status = Command::new("perl").args(["-e", "truncate($ARGV[0], 10) or die"]).arg(path).status().unwrap();
        assert!(status.success());
    }
    assert_eq!(files::read(&known).unwrap(), content()[..10]);
    assert_eq!(files::read(&unknown).unwrap_err().raw_os_error(), REFUSED);
    Table::of(&daemon).says("truncate", Found::Partly, "ext4");
    daemon.stop();
}

#[test]
fn changes_of_attributes_are_heard_of_and_names_are_not_judged() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let paths = ["relabelled", "foreign", "mode", "gone"].map(|name| scratch.path().join(name));
        for path in &paths {
            files::make(path, &content());
        }
        let [relabelled, foreign, mode, gone] = &paths;
        set_label(foreign, &label_of(b"other"));
        chown(foreign, Some(1000), None).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let table = Table::of(&daemon);
        let context = format!("{kind:?}");
        paths.iter().for_each(|path| know(path));
        let refused = |path: &Path| {
            let refused = eventually(|| files::read(path).err().map(|error| error.raw_os_error()));
            assert_eq!(refused, Some(REFUSED), "{kind:?}: {}", path.display());
        };
        set_label(relabelled, &label_of(b"other"));
        refused(relabelled);
        table.says("xattr", Found::Seen, &context);
        chown(foreign, Some(0), None).unwrap();
        refused(foreign);
        table.says("chown", Found::Seen, &context);
        fs::set_permissions(mode, fs::Permissions::from_mode(0o4755)).unwrap();
        know(mode);
        assert_eq!(read_label(mode), Some(label_of(&content())));
        table.says("chmod", Found::NotSeen, &context);
        fs::remove_file(gone).unwrap();
        table.says("unlink", Found::NotSeen, &context);
        let (attributes, found) = (fs::metadata(mode).unwrap(), complaints(&daemon.stop()));
        assert_eq!(attributes.permissions().mode() & 0o7777, 0o4755);
        assert!(
            found.iter().all(|found| [relabelled, foreign].iter().any(|path| path.to_str() == Some(&found.name))),
            "{found:?}"
        );
    }
}
