//! What a failed call says: its name, what it was made on, and the kernel's error number.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

/// What a call was made on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Nothing in particular: the call makes something new or concerns the whole process.
    Process,
    /// An open descriptor of this process.
    Descriptor(RawFd),
    /// A path.
    Path(PathBuf),
    /// A task, by its thread id.
    Task(i32),
}

impl From<&Path> for Target {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_path_buf())
    }
}

impl From<BorrowedFd<'_>> for Target {
    fn from(fd: BorrowedFd<'_>) -> Self {
        Self::Descriptor(fd.as_raw_fd())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => Ok(()),
            Self::Descriptor(fd) => write!(f, " on descriptor {fd}"),
            Self::Path(path) => write!(f, " on {}", path.display()),
            Self::Task(tid) => write!(f, " of task {tid}"),
        }
    }
}

/// A call that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{call}{target}: {error}")]
#[non_exhaustive]
pub struct CallError {
    /// The call, as its manual page spells it.
    pub call: &'static str,
    /// What it was made on.
    pub target: Target,
    /// The kernel's answer; carries the errno.
    pub error: io::Error,
}

impl CallError {
    /// A refused `call` on `target`.
    pub(crate) fn new(call: &'static str, target: impl Into<Target>, error: impl Into<io::Error>) -> Self {
        Self { call, target: target.into(), error: error.into() }
    }

    /// The errno, if the kernel gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.error.raw_os_error()
    }
}
