//! Waiting for several descriptors at once, and waking such a wait from another thread.
//!
//! Source: `epoll(7)`, `eventfd(2)`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use crate::error::{CallError, Target};

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Something can be read.
    Readable,
    /// An exceptional condition (`EPOLLPRI`), as `/proc/self/mountinfo` signals a change.
    Changed,
}

/// A set of descriptors to wait for; level-triggered.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> Result<Self, CallError> {
        let fd = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|error| CallError::new("epoll_create1", Target::Process, error))?;
        Ok(Self { fd })
    }

    /// Adds `source`; [`wait`](Self::wait) hands out `token` when it is ready.
    ///
    /// # Errors
    /// `EEXIST` if it is in the set already, `EPERM` if it cannot be waited for.
    pub fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> Result<(), CallError> {
        let flags = match interest {
            Interest::Readable => EventFlags::IN,
            Interest::Changed => EventFlags::PRI,
        };
        epoll::add(&self.fd, &source, EventData::new_u64(token), flags)
            .map_err(|error| CallError::new("epoll_ctl(EPOLL_CTL_ADD)", source.as_fd(), error))
    }

    /// Takes `source` out.
    ///
    /// # Errors
    /// `ENOENT` if it is not in the set.
    pub fn remove(&self, source: impl AsFd) -> Result<(), CallError> {
        epoll::delete(&self.fd, &source)
            .map_err(|error| CallError::new("epoll_ctl(EPOLL_CTL_DEL)", source.as_fd(), error))
    }

    /// Waits until something is ready or `timeout` has passed (for ever, if absent), and returns the tokens; empty
    /// after the timeout or an interruption.
    ///
    /// # Errors
    /// Those of `epoll_wait`, except `EINTR`.
    pub fn wait<'b>(&self, ready: &'b mut Ready, timeout: Option<Duration>) -> Result<Tokens<'b>, CallError> {
        let limit = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let count = match epoll::wait(&self.fd, &mut ready.events, limit.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(CallError::new("epoll_wait", self.fd.as_fd(), error)),
        };
        Ok(Tokens { events: ready.events.get(..count).unwrap_or_default().iter() })
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Memory for one [`Epoll::wait`]: up to 64 tokens.
pub struct Ready {
    events: [epoll::Event; 64],
}

impl Default for Ready {
    fn default() -> Self {
        Self { events: [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64] }
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").finish_non_exhaustive()
    }
}

/// The tokens that one wait gave.
pub struct Tokens<'b> {
    events: std::slice::Iter<'b, epoll::Event>,
}

impl std::fmt::Debug for Tokens<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.events.clone().map(|event| event.data.u64())).finish()
    }
}

impl Iterator for Tokens<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.events.next().map(|event| event.data.u64())
    }
}

/// Wakes a thread that waits; any number of wakes before it looks count as one.
#[derive(Debug)]
pub struct Waker {
    fd: OwnedFd,
}

impl Waker {
    /// A waker that nobody has used.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> Result<Self, CallError> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| CallError::new("eventfd", Target::Process, error))?;
        Ok(Self { fd })
    }

    /// Makes the descriptor readable; never waits.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn wake(&self) -> Result<(), CallError> {
        #[expect(clippy::host_endian_bytes, reason = "the kernel reads a number of the host")]
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &1_u64.to_ne_bytes())) {
            // A full counter means that it is readable already.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(CallError::new("write", self.fd.as_fd(), error)),
        }
    }

    /// Makes the descriptor unreadable until the next [`wake`](Self::wake).
    ///
    /// # Errors
    /// Those of `read`.
    pub fn drain(&self) -> Result<(), CallError> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut [0_u8; 8])) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(CallError::new("read", self.fd.as_fd(), error)),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
