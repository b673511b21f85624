//! Waiting until something is on the disk.
//!
//! Source: `syncfs(2)`, `sync(2)`, `sync_file_range(2)`.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::fs::MetadataExt as _;
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
/// of its transactions counts, whoever wants it.
///
/// Not so btrfs, which writes elsewhere each time, and makes fewer things durable for `fsync(2)`.
///
/// Source: Linux `fs/jbd2/commit.c` and `fs/xfs/xfs_log.c` (`REQ_PREFLUSH`).
#[must_use]
pub fn keeps_order(directory: &Path, file: BorrowedFd<'_>) -> bool {
    let same = || {
        let (one, other) = (fs::metadata(directory).ok()?.st_dev(), rustix::fs::fstat(file).ok()?.st_dev);
        let name = mounts::filesystem_of(file).ok()?.name;
        Some(one == other && ["ext4", "xfs"].contains(&&*name))
    };
    same() == Some(true)
}

/// The same for all file systems that there are. One that hangs keeps this waiting.
pub fn everything() {
    rustix::fs::sync();
}
