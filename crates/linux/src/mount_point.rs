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
use crate::mounts::{Mount, MountError, mount_of_file};

/// Why a path does not stand for a whole file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountPointError {
    /// It cannot be opened.
    #[error("{}: {error} (fix: name a mount point that exists)", path.display())]
    Unopenable {
        /// As it was named.
        path: PathBuf,
        /// The kernel's answer.
        error: io::Error,
    },
    /// It is a file, a device, …
    #[error("{}: not a directory (fix: name the mount point of a file system)", path.display())]
    NotADirectory {
        /// As it was named.
        path: PathBuf,
    },
    /// It is a directory of a file system that is mounted elsewhere.
    #[error("{}: no mount point; only whole file systems are guarded, and this directory is {}", path.display(), fix(point))]
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

/// Nobody shall be led to guard `/` by a hint.
fn fix(point: &Path) -> String {
    if point == Path::new("/") {
        return "part of / itself (fix: mount a file system of its own here first, or name another mount point)".into();
    }
    let point = point.display();
    format!(
        "part of the one on {point} (fix: mount what belongs here first, or name {point} if all of that shall be guarded)"
    )
}

/// Opens the root directory of the mount that `path` names, for reading; with what `/proc/self/mountinfo` says of it.
///
/// # Errors
/// If `path` is anything else.
pub fn open(path: &Path) -> Result<(OwnedFd, Mount), MountPointError> {
    let unopenable = |error| MountPointError::Unopenable { path: path.to_owned(), error };
    let directory = OwnedFd::from(File::open(path).map_err(unopenable)?);
    if !file::facts(directory.as_fd())?.is_directory() {
        return Err(MountPointError::NotADirectory { path: path.to_owned() });
    }
    // What is open counts, and not what the path may mean by now.
    let mount = mount_of_file(directory.as_fd())?;
    if file::path_of(directory.as_fd())? != mount.point.as_os_str().as_bytes() {
        return Err(MountPointError::Inside { path: path.to_owned(), point: mount.point });
    }
    Ok((directory, mount))
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
            (
                "/proc/sys/kernel",
                "/proc/sys/kernel: no mount point; only whole file systems are guarded, and this directory is part of the \
                 one on /proc",
            ),
            ("/proc/version", "/proc/version: not a directory (fix: name the mount point of a file system)"),
            ("/proc/none", "/proc/none: No such file or directory (os error 2) (fix: name a mount point that exists)"),
        ] {
            let error = open(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn the_hint_names_the_mount_unless_that_is_the_root() {
        assert!(fix(Path::new("/srv")).ends_with("or name /srv if all of that shall be guarded)"));
        assert!(fix(Path::new("/")).ends_with("or name another mount point)"));
    }
}
