//! Waiting until something is on the disk.
//!
//! Source: `syncfs(2)`, `sync(2)`.

use std::os::fd::BorrowedFd;

use crate::error::CallError;

/// Writes out all that has been changed on the file system of this file, and waits for it.
///
/// # Errors
/// Those of `syncfs`, among them errors of earlier writing (Linux 5.8).
pub fn file_system(file: BorrowedFd<'_>) -> Result<(), CallError> {
    rustix::fs::syncfs(file).map_err(|error| CallError::new("syncfs", file, error))
}

/// The same for all file systems that there are. One that hangs keeps this waiting.
pub fn everything() {
    rustix::fs::sync();
}
