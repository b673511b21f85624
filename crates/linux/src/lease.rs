//! Read leases: nobody writes to a file while we hold one, and we are told before somebody does.
//!
//! A lease belongs to the open file description; closing the last descriptor gives it back. While a lease is being
//! broken, the writer waits until it is released, at most [`break_time`] seconds.
//!
//! Source: `fcntl(2)`, 'Leases'; Linux `fs/locks.c`.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::error::{CallError, Target};
use crate::sys;

/// `struct signalfd_siginfo`.
const SIGNAL_INFO_LEN: usize = 128;

/// Signals taken out by one read of [`LeaseSignals`].
const SIGNALS_PER_READ: usize = 32;

/// What came of asking for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Taken {
    /// The lease is held: no writer exists, and none comes in before it is released.
    Held,
    /// `EAGAIN`: somebody has the file open for writing, or mapped shared and writable.
    Writer,
}

/// The real-time signal that says that a lease is being broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseSignal(i32);

impl LeaseSignal {
    /// `SIGRTMIN + offset`; absent beyond `SIGRTMAX`.
    #[must_use]
    pub fn realtime(offset: u8) -> Option<Self> {
        sys::realtime_signal(i32::from(offset)).map(Self)
    }
}

/// Takes a read lease (`F_SETSIG`, then `F_SETLEASE` with `F_RDLCK`) on a file that is open for reading only.
///
/// # Errors
/// `EINVAL` if the file system has no leases or the file is not regular, `EACCES` if the file belongs to somebody
/// else and `CAP_LEASE` is missing, `ENOLCK`, `ENOMEM`.
pub fn take(file: BorrowedFd<'_>, signal: LeaseSignal) -> Result<Taken, CallError> {
    sys::set_signal(file, signal.0).map_err(|error| CallError::new("fcntl(F_SETSIG)", file, error))?;
    take_briefly(file)
}

/// As [`take`], for somebody who holds the lease so briefly that no message about a writer is wanted.
///
/// The kernel sends `SIGIO` all the same: it must be blocked, which [`LeaseSignals::open`] does.
///
/// # Errors
/// Those of [`take`].
pub fn take_briefly(file: BorrowedFd<'_>) -> Result<Taken, CallError> {
    match sys::set_lease(file, libc::F_RDLCK) {
        Ok(()) => Ok(Taken::Held),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(Taken::Writer),
        Err(error) => Err(CallError::new("fcntl(F_SETLEASE, F_RDLCK)", file, error)),
    }
}

/// Gives the lease back (`F_SETLEASE` with `F_UNLCK`); a waiting writer goes on.
///
/// # Errors
/// `EAGAIN` if no lease is held (the kernel took it away after [`break_time`]).
pub fn release(file: BorrowedFd<'_>) -> Result<(), CallError> {
    sys::set_lease(file, libc::F_UNLCK).map_err(|error| CallError::new("fcntl(F_SETLEASE, F_UNLCK)", file, error))
}

/// Whether the lease is held and nobody is waiting to break it (`F_GETLEASE`).
///
/// # Errors
/// Those of `fcntl`.
pub fn still_held(file: BorrowedFd<'_>) -> Result<bool, CallError> {
    let kind = sys::get_lease(file).map_err(|error| CallError::new("fcntl(F_GETLEASE)", file, error))?;
    Ok(kind == libc::F_RDLCK)
}

/// Whether files of the file system of this directory give leases, tried on a nameless file; `None` if none can be made
/// there (read-only, full, or without `O_TMPFILE`).
#[must_use]
pub fn are_given_in(directory: BorrowedFd<'_>) -> Option<bool> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let writable = rustix::fs::openat(directory, c".", flags, Mode::RUSR).ok()?;
    let link = format!("/proc/thread-self/fd/{}", writable.as_raw_fd());
    let readable = rustix::fs::open(link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    drop(writable);
    match take_briefly(readable.as_fd()) {
        Ok(Taken::Held) => Some(true),
        // Whoever forked just now may still have it open.
        Ok(Taken::Writer) => None,
        Err(_) => Some(false),
    }
}

/// How long the kernel lets a writer wait for us before it takes the lease away; `/proc/sys/fs/lease-break-time`.
///
/// # Errors
/// If the file cannot be read or does not hold a number of seconds.
pub fn break_time() -> Result<Duration, CallError> {
    let path = std::path::Path::new("/proc/sys/fs/lease-break-time");
    let text = std::fs::read_to_string(path).map_err(|error| CallError::new("read", path, error))?;
    let seconds = text.trim().parse().map_err(|error| CallError::new("read", path, io::Error::other(error)))?;
    Ok(Duration::from_secs(seconds))
}

/// One message about leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// Somebody waits until the lease on this descriptor is released. It may have been closed, and its number reused, since.
    Breaking(RawFd),
    /// The signal queue (`RLIMIT_SIGPENDING`) was full and the kernel sent `SIGIO`: some lease is being broken, all
    /// must be asked with [`still_held`].
    Overflow,
}

/// Where the signals about broken leases arrive.
#[derive(Debug)]
pub struct LeaseSignals {
    fd: OwnedFd,
    signal: LeaseSignal,
}

impl LeaseSignals {
    /// Blocks `signal` and `SIGIO` in the calling thread and opens a signalfd for them.
    ///
    /// Call this before any other thread is started, so that all of them inherit the mask: a thread without it is
    /// killed by the first signal.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn open(signal: LeaseSignal) -> Result<Self, CallError> {
        let both = [signal.0, libc::SIGIO];
        sys::block_signals(&both).map_err(|error| CallError::new("pthread_sigmask", Target::Process, error))?;
        let fd = sys::signal_fd(&both).map_err(|error| CallError::new("signalfd", Target::Process, error))?;
        Ok(Self { fd, signal })
    }

    /// The signal to give to [`take`].
    #[must_use]
    pub const fn signal(&self) -> LeaseSignal {
        self.signal
    }

    /// Hands what is there to `each`, without waiting; returns the number of signals read, 0 if there are none left.
    ///
    /// Reads at most 32 a call; signals that another process sent are left out.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read(&self, mut each: impl FnMut(LeaseEvent)) -> Result<usize, CallError> {
        let mut bytes = [0_u8; SIGNAL_INFO_LEN * SIGNALS_PER_READ];
        let length = match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut bytes)) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            Err(error) => return Err(CallError::new("read", self.fd.as_fd(), error)),
        };
        let (signals, _) = bytes.get(..length).unwrap_or_default().as_chunks::<SIGNAL_INFO_LEN>();
        signals.iter().filter_map(|info| self.decode(info)).for_each(&mut each);
        Ok(signals.len())
    }

    fn decode(&self, info: &[u8; SIGNAL_INFO_LEN]) -> Option<LeaseEvent> {
        let info = SignalInfo::parse(info);
        // A code of 0 or less means that a process sent it: its descriptor number is not to be believed.
        if info.signal == libc::SIGIO {
            Some(LeaseEvent::Overflow)
        } else if info.signal == self.signal.0 && info.code > 0 {
            Some(LeaseEvent::Breaking(info.fd))
        } else {
            None
        }
    }
}

impl AsFd for LeaseSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The fields of `struct signalfd_siginfo` that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalInfo {
    pub(crate) signal: i32,
    pub(crate) code: i32,
    pub(crate) fd: RawFd,
}

impl SignalInfo {
    /// Signal at 0, code at 8, descriptor at 20; in the host's byte order.
    #[expect(clippy::host_endian_bytes, reason = "the kernel writes the structure in the host's byte order")]
    pub(crate) const fn parse(info: &[u8; SIGNAL_INFO_LEN]) -> Self {
        let [s0, s1, s2, s3, _, _, _, _, c0, c1, c2, c3, _, _, _, _, _, _, _, _, f0, f1, f2, f3, ..] = *info;
        Self {
            signal: i32::from_ne_bytes([s0, s1, s2, s3]),
            code: i32::from_ne_bytes([c0, c1, c2, c3]),
            fd: i32::from_ne_bytes([f0, f1, f2, f3]),
        }
    }
}
