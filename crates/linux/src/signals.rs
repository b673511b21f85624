//! The signals that end the daemon or make it read its configuration again, as a descriptor to wait for.
//!
//! Source: `signalfd(2)`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{CallError, Target};
use crate::lease::SignalInfo;
use crate::sys;

/// What somebody wants from us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `SIGTERM` or `SIGINT`: end.
    End,
    /// `SIGHUP`: read the configuration again.
    Reload,
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
    pub fn open() -> Result<Self, CallError> {
        let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        sys::block_signals(&signals).map_err(|error| CallError::new("pthread_sigmask", Target::Process, error))?;
        let fd = sys::signal_fd(&signals).map_err(|error| CallError::new("signalfd", Target::Process, error))?;
        Ok(Self { fd })
    }

    /// The next request, without waiting.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn next(&self) -> Result<Option<Request>, CallError> {
        let mut info = [0_u8; 128];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
            Ok(_) => {
                let hup = SignalInfo::parse(&info).signal == libc::SIGHUP;
                Ok(Some(if hup { Request::Reload } else { Request::End }))
            }
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
