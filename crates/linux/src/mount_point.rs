//! The mount point of a file system, as somebody has named it.
//!
//! Source: `open(2)`, `proc_pid_mountinfo(5)`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::error::CallError;
use crate::file;
use crate::mounts::{MountError, mount_of_file};

/// Why a path does not stand for a whole file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountPointError {
    /// It cannot be opened.
    #[error("{}: {error} (expected a mount point that exists)", path.display())]
    Unopenable {
        /// As it was named.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// It is a file, a device, …
    #[error("{}: not a directory (expected the mount point of a file system)", path.display())]
    NotADirectory {
        /// As it was named.
        path: PathBuf,
    },
    /// It is a directory of a file system that is mounted elsewhere.
    #[error(
        "{}: no mount point; a whole file system is guarded, and this one is mounted on {} (fix: mount what was to be \
         mounted here, or name {})",
        path.display(), point.display(), point.display()
    )]
    Inside {
        /// As it was named.
        path: PathBuf,
        /// Where its file system is mounted.
        point: PathBuf,
    },
    /// A fact about it cannot be had.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its mount cannot be found.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Opens the root directory of the mount that `path` names, for reading.
///
/// # Errors
/// If `path` is anything else.
pub fn open(path: &Path) -> Result<OwnedFd, MountPointError> {
    let unopenable = |error| MountPointError::Unopenable { path: path.to_owned(), error };
    let directory = OwnedFd::from(File::open(path).map_err(unopenable)?);
    if !file::facts(directory.as_fd())?.is_directory() {
        return Err(MountPointError::NotADirectory { path: path.to_owned() });
    }
    // What is open counts, and not what the path may mean by now.
    let point = mount_of_file(directory.as_fd())?.point;
    if file::path_of(directory.as_fd())? != point.as_os_str().as_bytes() {
        return Err(MountPointError::Inside { path: path.to_owned(), point });
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_of_a_mount_is_opened() {
        for good in ["/proc", "/proc/", "/proc/self/../../proc"] {
            assert!(open(Path::new(good)).is_ok(), "{good}");
        }
        for (path, said) in [
            ("/proc/sys/kernel", "/proc/sys/kernel: no mount point; a whole file system is guarded, and this one"),
            ("/proc/version", "/proc/version: not a directory (expected the mount point of a file system)"),
            ("/proc/none", "/proc/none: No such file or directory (os error 2) (expected a mount point that exists)"),
        ] {
            let error = open(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
