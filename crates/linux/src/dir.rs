//! Directories: what is in them, and how its files are opened without following anything.
//!
//! Everything is opened relative to an open directory, so that no name above it can be exchanged meanwhile.
//!
//! Source: `openat(2)`, `getdents(2)`, `statx(2)`.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::error::CallError;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A block or character device.
    Device,
    /// The directory does not say; see [`kind_of`].
    Unknown,
}

impl From<FileType> for Kind {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Link,
            FileType::Fifo => Self::Pipe,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            FileType::Unknown => Self::Unknown,
        }
    }
}

/// The directory that relative paths begin in; for nothing but opening what is in it (`O_PATH`).
///
/// # Errors
/// Those of `openat`.
pub fn working_directory() -> Result<OwnedFd, CallError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, c".", flags, Mode::empty()).map_err(|error| CallError::new("open", Path::new("."), error))
}

/// What `name` in `directory` stands for; a symbolic link stands for itself.
///
/// # Errors
/// Those of `statx`, for example `ENOENT`.
pub fn kind_of(directory: BorrowedFd<'_>, name: &CStr) -> Result<Kind, CallError> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .map(|facts| FileType::from_raw_mode(facts.st_mode).into())
        .map_err(|error| CallError::new("fstatat", directory, error))
}

/// Opens the directory `name`, which may not be a symbolic link.
///
/// # Errors
/// `ENOTDIR` or `ELOOP` if it is none, and the others of `openat`.
pub fn open_directory(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, CallError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
        .map_err(|error| CallError::new("openat", directory, error))
}

/// Opens the file `name` for reading, without waiting for the other end of a pipe and, if it is ours or we may, without
/// leaving a trace in its access time. It may not be a symbolic link; that it is a regular file is not promised.
///
/// # Errors
/// `ELOOP` for a symbolic link, and the others of `openat`.
pub fn open_file(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, CallError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::openat(directory, name, flags, Mode::empty());
    match open(flags | OFlags::NOATIME) {
        // Either the file is somebody else's and CAP_FOWNER is missing, or a guard refuses, who should not be asked twice.
        Err(Errno::PERM) if !is_ours(directory, name) => open(flags),
        result => result,
    }
    .map_err(|error| CallError::new("openat", directory, error))
}

fn is_ours(directory: BorrowedFd<'_>, name: &CStr) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|facts| facts.st_uid == rustix::process::geteuid().as_raw())
}

/// Memory for reading directories; make one a thread and use it again.
#[derive(Debug)]
pub struct DirectoryReader {
    buffer: Box<[MaybeUninit<u8>]>,
}

impl Default for DirectoryReader {
    fn default() -> Self {
        Self { buffer: vec![MaybeUninit::uninit(); 32 << 10].into_boxed_slice() }
    }
}

impl DirectoryReader {
    /// Hands every entry of a directory that was just opened to `each`, without `.` and `..`, in the directory's order.
    ///
    /// # Errors
    /// Those of `getdents64`; what was handed out before stays so.
    pub fn read(&mut self, directory: BorrowedFd<'_>, mut each: impl FnMut(&CStr, Kind)) -> Result<(), CallError> {
        let mut entries = RawDir::new(directory, &mut self.buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| CallError::new("getdents64", directory, error))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                each(name, entry.file_type().into());
            }
        }
        Ok(())
    }
}
