//! A mount of a file system that nobody else sees: files opened through it do not keep the public mounts busy.
//!
//! Source: `open_tree(2)`, `open_by_handle_at(2)`.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::CallError;
use crate::handle::FileHandle;
use crate::sys;

/// A detached copy of the mount whose root directory is open in `mount`: the root directory of the copy.
///
/// The copy has no place in the tree of mounts and goes when it is closed; until then the file system counts as in use,
/// even if it is unmounted everywhere else. Closing may therefore be what unmounts the file system, and take its time.
///
/// What makes the other mount read-only is not copied (before Linux 5.12 it is): the file system itself may be.
///
/// # Errors
/// `ENOSYS` before Linux 5.2, `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` if the mount may not be copied.
pub fn of(mount: BorrowedFd<'_>) -> Result<OwnedFd, CallError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(mount, c"", flags).map_err(|error| CallError::new("open_tree", mount, error))?;
    // Where that is refused, labels of files are not written that only such mounts lead to.
    let _ = sys::make_mount_writable(tree.as_fd());
    // open_tree gives an O_PATH descriptor, which fanotify_mark(2) and open_by_handle_at(2) do not take.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&tree, c".", flags, Mode::empty()).map_err(|error| CallError::new("openat", tree.as_fd(), error))
}

/// Opens for reading, through the mount with this root, the file that is open in `file` through another one. Must be
/// called with permission events of that mount ignored, or the caller waits for himself.
///
/// # Errors
/// `EOPNOTSUPP` if the file system makes no handles, `ESTALE` if the file has gone, `EPERM` without
/// `CAP_DAC_READ_SEARCH`.
pub fn reopen(root: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<OwnedFd, CallError> {
    let handle = sys::handle_of(file, 0).map_err(|error| CallError::new("name_to_handle_at", file, error))?;
    sys::open_handle(root, handle, READING).map_err(|error| CallError::new("open_by_handle_at", file, error))
}

/// The same for the file with this handle. It may have to be read from the disk.
///
/// # Errors
/// Those of [`reopen`].
pub fn open(root: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, CallError> {
    sys::open_handle(root, handle.parts(), READING).map_err(|error| CallError::new("open_by_handle_at", root, error))
}

const READING: i32 = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOATIME | libc::O_CLOEXEC;

/// Finds the file with this handle, through the mount with this root, as an `O_PATH` descriptor: nobody is asked. It may
/// have to be read from the disk.
///
/// # Errors
/// `ESTALE` if the file has gone, `EPERM` without `CAP_DAC_READ_SEARCH`.
pub fn find(root: BorrowedFd<'_>, handle: &FileHandle) -> Result<OwnedFd, CallError> {
    sys::open_handle(root, handle.parts(), libc::O_PATH | libc::O_CLOEXEC)
        .map_err(|error| CallError::new("open_by_handle_at", root, error))
}
