//! Waiting until something is on the disk.
//!
//! Source: `syncfs(2)`, `sync(2)`, `sync_file_range(2)`.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::error::CallError;
use crate::{mounts, sys};

/// Writes out all that has been changed on the file system of this file, and waits for it.
///
/// # Errors
/// Those of `syncfs`, among them errors of earlier writing (Linux 5.8).
pub fn file_system(file: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::fs::syncfs(file).map_err(|error| CallError::new("syncfs", file, error))
}

/// Writes this part of a file out to its disk, and waits until the disk has taken it: not until it would survive a power cut,
/// which is for the next flush of that disk to see to. Nothing else of the file is written out, so its blocks must be there.
///
/// # Errors
/// Those of `sync_file_range`, among them errors of writing.
pub fn to_disk(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    let number = |number: u64| libc::off64_t::try_from(number).map_err(io::Error::other);
    sys::write_out(file, number(offset)?, number(length)?)
}

/// Whether what has been written [to the disk](to_disk) in this directory survives whenever a later change of names, sizes or
/// attributes on the file system of `file` does: it is on that file system, and of a kind that flushes the disk before each
/// of its transactions counts, whoever wants it, mounted with options that leave it at that.
///
/// Not so btrfs, which writes elsewhere each time, and makes fewer things durable for `fsync(2)`; nor an ext4 without a journal.
/// Where that cannot be told, the answer is no.
///
/// Source: Linux `fs/jbd2/commit.c` and `fs/xfs/xfs_log.c` (`REQ_PREFLUSH`).
#[must_use]
pub fn keeps_order(directory: &Path, file: BorrowedFd<'_>) -> bool {
    let keeps = || {
        let (one, other) = (fs::metadata(directory).ok()?.st_dev(), rustix::fs::fstat(file).ok()?.st_dev);
        let mount = mounts::mount_of_file(file).ok()?;
        let flushes = flushes_before_transactions(&mount.name, mount.super_options.as_bytes());
        Some(one == other && flushes && (mount.name != "ext4" || has_own_journal(mount.device)))
    };
    keeps() == Some(true)
}

/// Whether a file system of this type with these options of its superblock has the disk flushed. Of ext4 that is true only if
/// it [has a journal](has_own_journal) on that disk.
fn flushes_before_transactions(name: &str, options: &[u8]) -> bool {
    let without: &[&[u8]] = match name {
        "ext4" => &[b"nobarrier", b"barrier=0", b"journal_async_commit"],
        // Log or content on another disk.
        "xfs" => &[b"nobarrier", b"logdev=", b"rtdev="],
        _ => return false,
    };
    !options.split(|byte| *byte == b',').any(|option| without.iter().any(|word| option.starts_with(word)))
}

/// Whether the ext4 on this device has a journal in itself, which always is inode 8.
///
/// Source: Linux `fs/jbd2/journal.c` (`jbd2_journal_init_inode`), `fs/ext4/ext4.h` (`EXT4_JOURNAL_INO`).
fn has_own_journal((major, minor): (u32, u32)) -> bool {
    let device = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"));
    let name = device.ok().and_then(|device| Some(device.file_name()?.to_str()?.to_owned()));
    name.is_some_and(|name| Path::new(&format!("/proc/fs/jbd2/{name}-8")).exists())
}

/// The same for all file systems that there are. One that hangs keeps this waiting.
pub fn everything() {
    rustix::fs::sync();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_keep_a_disk_from_being_flushed_are_known() {
        for (name, options, flushes) in [
            ("ext4", "rw", true),
            ("ext4", "rw,errors=remount-ro,commit=1", true),
            ("ext4", "rw,nobarrier", false),
            ("ext4", "rw,journal_async_commit,data=writeback", false),
            ("xfs", "rw,attr2,inode64,logbufs=8,logbsize=32k,noquota", true),
            ("xfs", "rw,attr2,logdev=/dev/sdb", false),
            ("xfs", "rw,attr2,rtdev=/dev/sdb", false),
            ("btrfs", "rw,space_cache=v2", false),
            ("tmpfs", "rw", false),
        ] {
            assert_eq!(flushes_before_transactions(name, options.as_bytes()), flushes, "{name} {options}");
        }
    }
}
