//! One daemon at a time: a locked file that holds its process id.
//!
//! Source: `flock(2)`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::CallError;

/// The lock is not ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("{path} is locked by {}", Holder(*pid), path = path.display())]
    Taken {
        /// The lock file.
        path: std::path::PathBuf,
        /// Its process id as it wrote it; absent if it has not yet.
        pid: Option<i32>,
    },
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// How a message names the holder of a lock.
struct Holder(Option<i32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// A lock that is held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    // Held open: closing it is what gives the lock back. The file stays, because removing it would let two processes
    // lock two files of the same name.
    file: File,
}

impl Lock {
    /// Locks `path`, which is made (mode 0600) if it does not exist, and writes our process id into it.
    ///
    /// # Errors
    /// [`LockError::Taken`] if another process holds it.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| CallError::new("open", path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(LockError::Taken { path: path.to_path_buf(), pid: holder(&mut file) });
            }
            Err(error) => return Err(CallError::new("flock", path, error).into()),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| CallError::new("write", path, error))?;
        Ok(Self { file })
    }
}

/// The process id in the file; what cannot be read as one is taken for none.
/// The open file, whose end is the lock's.
impl From<Lock> for OwnedFd {
    fn from(lock: Lock) -> Self {
        lock.file.into()
    }
}

fn holder(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
