//! The signals that end the daemon, as a descriptor to wait for.
//!
//! Source: `signalfd(2)`; `proc_pid_status(5)` (`SigIgn`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::error::{CallError, Target};
use crate::sys;

/// What somebody wants from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `SIGTERM`, `SIGINT`, or a `SIGHUP` that [`Hangup::Ends`]: end.
    End,
}

/// What `SIGHUP` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// [`Request::End`].
    Ends,
    /// Nothing: it is kept away.
    Passes,
}

/// Whether whoever started us wants `SIGHUP` to be ignored, as `nohup(1)` does.
///
/// # Errors
/// Those of reading `/proc/self/status`.
pub fn hangup_is_ignored() -> Result<bool, CallError> {
    let path = Path::new("/proc/self/status");
    let text = std::fs::read_to_string(path).map_err(|error| CallError::new("read", path, error))?;
    Ok(ignores_hangup(&text))
}

fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // Bit 0 is signal 1, SIGHUP.
    mask & 1 == 1
}

/// Where `SIGTERM`, `SIGINT` and `SIGHUP` arrive.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks the three signals in the calling thread and opens a signalfd for them. Call it before any other thread is started.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn open(hangup: Hangup) -> Result<Self, CallError> {
        let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        sys::block_signals(&signals).map_err(|error| CallError::new("pthread_sigmask", Target::Process, error))?;
        let heard = match hangup {
            Hangup::Ends => &signals[..],
            Hangup::Passes => &[libc::SIGTERM, libc::SIGINT],
        };
        let fd = sys::signal_fd(heard).map_err(|error| CallError::new("signalfd", Target::Process, error))?;
        Ok(Self { fd })
    }

    /// The next request, without waiting.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn next(&self) -> Result<Option<Request>, CallError> {
        let mut info = [0_u8; 128];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
            Ok(_) => Ok(Some(Request::End)),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(CallError::new("read", self.fd.as_fd(), error)),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bit_of_the_mask_is_sighup() {
        for (status, expected) in [
            ("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n", true),
            ("SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\n", false),
            ("SigIgn:\tffffffffffffffff\n", true),
            ("SigIgn:\t\n", false),
            ("", false),
        ] {
            assert_eq!(ignores_hangup(status), expected, "{status:?}");
        }
    }
}
