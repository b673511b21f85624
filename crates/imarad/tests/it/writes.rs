//! Legitimate changes under guard: never refused afterwards, not even at once, and the label follows.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::FallocateFlags;

use crate::daemon::{Daemon, complaints};
use crate::files::{self, SCRIPT, label_becomes, open_to_change};
use crate::patterns::{
    allocated, copied, copied_by_range, deleted_and_made_again, edited_with_backup, edited_with_link_backup,
    executed_without_a_name, extracted_as_tar_does, extracted_by_tar, given_away_and_back, journalled,
    linked_after_close, linked_later, locked_as_git_does, logged, made_program, moved, new_file_by_mknod,
    new_file_created_for_reading, overwritten_by_tar, read_after_deletion, read_while_mapped, read_while_written,
    renamed_while_open, replaced_by_rename, replaced_while_running, rewritten_script, tool, truncated_by_path,
    two_names, two_writers, unpacked_as_dpkg_does, written, written_through_bind_mount, written_without_waiting,
};

/// One way to change files. It gets a directory in which `old` (data), `large`, `script` and `program` are, all good; it
/// returns the paths that must be readable at once and get the right label.
type Pattern = (&'static str, fn(&Path) -> io::Result<Vec<PathBuf>>);

const PATTERNS: &[Pattern] = &[
    ("a new file", |d| written(&d.join("new"), |path| fs::write(path, b"new"))),
    ("a new empty file", |d| written(&d.join("new"), |path| File::create(path).map(drop))),
    ("a new file created for reading", new_file_created_for_reading),
    ("a new file made by mknod and written later", new_file_by_mknod),
    ("a new large file", |d| written(&d.join("new"), |path| fs::write(path, vec![3; 3 << 20]))),
    ("the same content written again", |d| written(&d.join("old"), |path| fs::write(path, OLD))),
    ("opened for writing and not written to", |d| written(&d.join("old"), |path| open_to_change(path).map(drop))),
    ("rewritten with O_TRUNC", |d| written(&d.join("old"), |path| fs::write(path, b"other"))),
    ("emptied with O_TRUNC", |d| written(&d.join("old"), |path| fs::write(path, b""))),
    ("changed in place", |d| written(&d.join("old"), files::change_last_byte)),
    ("appended to", |d| written(&d.join("old"), |path| files::append(path, b"more"))),
    ("a large file changed in place", |d| written(&d.join("large"), files::change_last_byte)),
    ("changed through a mapping after the close", |d| written(&d.join("old"), files::change_last_byte_mapped)),
    ("a large file changed through a mapping", |d| written(&d.join("large"), files::change_last_byte_mapped)),
    ("read while mapped, then changed through it", read_while_mapped),
    ("shortened by ftruncate", |d| written(&d.join("old"), |path| open_to_change(path)?.set_len(1))),
    ("lengthened by ftruncate", |d| written(&d.join("old"), |path| open_to_change(path)?.set_len(10_000))),
    ("shortened by truncate after it was read", |d| written(&d.join("old"), |path| truncated_by_path(path, 3))),
    ("emptied by truncate after it was read", |d| written(&d.join("old"), |path| truncated_by_path(path, 0))),
    ("a large file shortened by truncate after it was read", |d| {
        written(&d.join("large"), |path| truncated_by_path(path, 100_000))
    }),
    ("copy_file_range", copied_by_range),
    ("sendfile, as std::io::copy of the whole", |d| written(&d.join("old"), |path| copied(&d.join("large"), path))),
    ("fallocate", |d| written(&d.join("old"), |path| allocated(path, FallocateFlags::empty()))),
    ("a hole punched", |d| {
        written(&d.join("large"), |path| allocated(path, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE))
    }),
    ("an editor that writes a temporary file and renames it over", |d| replaced_by_rename(&d.join("old"))),
    ("an editor that renames to a backup and writes anew", edited_with_backup),
    ("an editor that makes a hard link as backup and writes in place", edited_with_link_backup),
    ("sed -i", |d| written(&d.join("script"), |path| tool("sed", &["-i", "s/exit 0/exit 00/"], &[path]))),
    ("dpkg", unpacked_as_dpkg_does),
    ("tar's extraction", extracted_as_tar_does),
    ("tar itself", extracted_by_tar),
    ("cp -a of a labelled file", |d| written(&d.join("copy"), |to| tool("cp", &["-a"], &[&d.join("old"), to]))),
    ("cp over an old file", |d| {
        written(&d.join("old"), |to| tool("cp", &["--no-preserve=all"], &[&d.join("large"), to]))
    }),
    ("cp --reflink=auto", |d| written(&d.join("copy"), |to| tool("cp", &["--reflink=auto"], &[&d.join("large"), to]))),
    ("install", |d| written(&d.join("copy"), |to| tool("install", &["-m", "755"], &[&d.join("program"), to]))),
    ("mv within the file system", |d| moved(&d.join("old"), &d.join("moved"))),
    ("mv over another file", |d| moved(&d.join("old"), &d.join("large"))),
    ("git's lock file", locked_as_git_does),
    ("O_TMPFILE and linkat", linked_later),
    ("two names of one file", two_names),
    ("sqlite's journal", journalled),
    ("two writers of whom one stays", two_writers),
    ("written while it is read", read_while_written),
    ("a log that others read", logged),
    ("a script that is rewritten and executed at once", rewritten_script),
    ("a program that is made and executed at once", made_program),
    ("a program that is replaced while it runs", replaced_while_running),
    ("deleted while it is open, then made again", deleted_and_made_again),
    ("changed, renamed while open, and closed", renamed_while_open),
    ("chmod and chown of an open file", given_away_and_back),
    ("a bind mount of the directory, written through it", written_through_bind_mount),
];

/// Files that have no name when their writer closes them, but are used afterwards.
const NAMELESS: &[Pattern] = &[
    ("O_TMPFILE, linkat after the writer has closed", linked_after_close),
    ("deleted, and read through its descriptor", read_after_deletion),
    ("O_TMPFILE, executed through its descriptor", executed_without_a_name),
];

/// Writers who would rather fail than wait: they must not notice that the guard has looked at the file.
const IMPATIENT: &[Pattern] = &[
    ("opened for writing with O_NONBLOCK after it was read", |d| written(&d.join("old"), written_without_waiting)),
    ("tar --overwrite over files that it has read for the archive", overwritten_by_tar),
];

const OLD: &[u8] = b"what was there before\n";

fn populate(directory: &Path) {
    fs::create_dir(directory).unwrap();
    files::make(&directory.join("old"), OLD);
    files::make(&directory.join("large"), &vec![5; 300_000]);
    files::make_executable(&directory.join("script"), SCRIPT);
    files::make_executable(&directory.join("program"), &files::program());
}

fn changes_are_followed_on(kind: FsKind) {
    these_are_followed_on(PATTERNS, kind);
}

fn these_are_followed_on(patterns: &[Pattern], kind: FsKind) {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
    let directories: Vec<PathBuf> = (0..patterns.len()).map(|n| scratch.path().join(n.to_string())).collect();
    directories.iter().for_each(|directory| populate(directory));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let mut failures = Vec::new();
    let mut kept: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for ((name, pattern), directory) in patterns.iter().zip(&directories) {
        let paths = pattern(directory).unwrap_or_else(|error| {
            failures.push(format!("{name}: {error}"));
            Vec::new()
        });
        for path in paths {
            match files::read(&path) {
                Ok(content) => kept.push((path, content)),
                Err(error) => failures.push(format!("{name}: {} afterwards: {error}", path.display())),
            }
        }
    }
    for (path, content) in &kept {
        label_becomes(path, content);
    }
    let lines = daemon.stop();
    let complained: Vec<_> =
        complaints(&lines).into_iter().map(|complaint| (complaint.name, complaint.cause)).collect();
    assert!(failures.is_empty() && complained.is_empty(), "{failures:#?} {complained:#?}");
    // The next guard, which remembers nothing, sees it the same way.
    if kind != FsKind::Tmpfs {
        crate::image::cycle(&scratch);
    }
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    for (path, content) in &kept {
        let found = files::read(path).unwrap_or_else(|error| panic!("{} after a restart: {error}", path.display()));
        assert!(&found == content, "{} after a restart", path.display());
    }
    daemon.stop();
}

#[test]
fn legitimate_changes_are_followed_on_ext4() {
    changes_are_followed_on(FsKind::Ext4);
}

#[test]
fn legitimate_changes_are_followed_on_xfs() {
    changes_are_followed_on(FsKind::Xfs);
}

#[test]
fn legitimate_changes_are_followed_on_btrfs() {
    changes_are_followed_on(FsKind::Btrfs);
}

#[test]
fn legitimate_changes_are_followed_on_tmpfs() {
    changes_are_followed_on(FsKind::Tmpfs);
}

#[test]
fn a_file_that_has_lost_its_name_can_be_used_like_any_other() {
    these_are_followed_on(NAMELESS, FsKind::Ext4);
    these_are_followed_on(NAMELESS, FsKind::Tmpfs);
}

#[test]
fn a_writer_that_does_not_wait_is_not_turned_away_because_the_guard_holds_a_lease() {
    these_are_followed_on(IMPATIENT, FsKind::Ext4);
    these_are_followed_on(IMPATIENT, FsKind::Tmpfs);
}
