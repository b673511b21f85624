//! What a group tells and asks: events, and questions that are answered exactly once.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imara_integrity::check::Pass;

use super::{FanotifyError, GroupFd};
use crate::error::{CallError, Target};
use crate::sys::RawEvents;

/// Events that [`EventBuffer::default`] has room for.
const EVENTS_PER_READ: usize = 200;

/// Memory for one read of a [`PermissionGroup`](super::PermissionGroup); make one and use it again.
#[derive(Debug)]
pub struct EventBuffer {
    pub(super) raw: RawEvents,
}

impl EventBuffer {
    /// Room for `events` events a read, at least one.
    #[must_use]
    pub fn new(events: usize) -> Self {
        Self { raw: RawEvents::new(events) }
    }
}

impl Default for EventBuffer {
    /// Room for 200 events, about 5 KiB; a read then opens at most 200 descriptors.
    fn default() -> Self {
        Self::new(EVENTS_PER_READ)
    }
}

/// The events of one read.
#[derive(Debug)]
pub struct Events<'b> {
    pub(super) raw: &'b mut RawEvents,
    pub(super) group: Arc<GroupFd>,
    pub(super) read: Instant,
}

impl Iterator for Events<'_> {
    type Item = Result<Event, FanotifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let event = match self.raw.take()? {
            Ok(event) => event,
            Err(bad) => return Some(Err(FanotifyError::Version { found: bad.version })),
        };
        let exec = event.mask & libc::FAN_OPEN_EXEC_PERM != 0;
        let permission = exec || event.mask & libc::FAN_OPEN_PERM != 0;
        let file = match event.file {
            _ if event.mask & libc::FAN_Q_OVERFLOW != 0 => return Some(Ok(Event::Overflow)),
            Ok(file) => file,
            Err(number) => {
                let errno = number.checked_neg().filter(|_| number < libc::FAN_NOFD);
                return Some(Ok(Event::Unopenable { errno, permission, pid: event.pid }));
            }
        };
        Some(Ok(if permission {
            let answer = Answer { group: Arc::clone(&self.group), fd: file.as_raw_fd(), given: false };
            Event::Permission(Pending { answer, file, tid: event.pid, exec, read: self.read })
        } else if event.mask & libc::FAN_CLOSE_WRITE != 0 {
            Event::CloseWrite { file, pid: event.pid, and_read: event.mask & libc::FAN_CLOSE_NOWRITE != 0 }
        } else {
            Event::CloseRead { file, pid: event.pid }
        }))
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // Each item denies and closes itself.
        self.for_each(drop);
    }
}

/// One event of a [`PermissionGroup`](super::PermissionGroup).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Somebody waits for an answer.
    Permission(Pending),
    /// A file that was open for writing was closed.
    CloseWrite {
        /// The file, open for reading.
        file: OwnedFd,
        /// Thread that closed it (process, before Linux 4.20); 0 if outside our pid namespace.
        pid: i32,
        /// Whether the same thread has closed it also where it was not open for writing: until they are read, the kernel
        /// makes one event of all that a thread does with a file, so each may stand for several.
        and_read: bool,
    },
    /// A file that was open, but not for writing, was closed.
    CloseRead {
        /// The file, open for reading.
        file: OwnedFd,
        /// Thread that closed it (process, before Linux 4.20); 0 if outside our pid namespace.
        pid: i32,
    },
    /// The file of an event could not be opened for us; if somebody waited, the kernel has denied already.
    Unopenable {
        /// Why; absent if the kernel did not say (`FAN_NOFD`; `-EPERM` looks the same).
        errno: Option<i32>,
        /// Whether somebody waited.
        permission: bool,
        /// Thread or process behind the event.
        pid: i32,
    },
    /// The queue was full: events are missing (waiters among them were let pass by the kernel).
    Overflow,
}

/// Somebody who waits until [`allow`](Self::allow) or [`deny`](Self::deny) is called; dropping it denies.
#[derive(Debug)]
#[must_use = "dropping it denies"]
pub struct Pending {
    // Declared before `file`: the answer names the file's number, which must not be that of another event when it is sent.
    answer: Answer,
    file: OwnedFd,
    tid: i32,
    exec: bool,
    read: Instant,
}

/// The file of an answered event, unless it has been closed, and how the answer was received.
#[derive(Debug)]
#[must_use = "the answer may have failed"]
pub struct Answered<File = OwnedFd> {
    /// The file, still open, together with any lease taken on it.
    pub file: File,
    /// An error if the answer could not be written; the opener may then be waiting still. Fine after
    /// [`PermissionGroup::close`](super::PermissionGroup::close), which has let everybody pass.
    pub sent: Result<(), FanotifyError>,
    /// From the moment when the event was read until the answer. How long it had waited to be read is not known.
    pub waited: Duration,
}

impl Pending {
    /// The file that is to be opened, open for reading.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The thread that asks (process, before Linux 4.20); 0 if outside our pid namespace.
    #[must_use]
    pub const fn tid(&self) -> i32 {
        self.tid
    }

    /// Whether the file is opened to be executed. The kernel asks twice then, first with this and then without.
    #[must_use]
    pub const fn exec(&self) -> bool {
        self.exec
    }

    /// Lets the opener pass and keeps the file. Takes the core's word that he may.
    pub fn allow(self, pass: Pass) -> Answered {
        drop(pass);
        self.answer(libc::FAN_ALLOW)
    }

    /// Closes the file, which gives any lease back, and then lets the opener pass. Takes the core's word that he may.
    ///
    /// As long as he waits the file is open for him too: so this close ends nothing, unless he is killed just now.
    ///
    /// The kernel finds whoever waits by the descriptor's *number*, which need not be open any more. No other event has it:
    /// it would have to be read first.
    ///
    /// Source: Linux `fs/notify/fanotify/fanotify_user.c`, `process_access_response()`.
    pub fn close_and_allow(self, pass: Pass) -> Answered<()> {
        drop(pass);
        let Self { mut answer, file, read, .. } = self;
        drop(file);
        let sent = answer.send(libc::FAN_ALLOW);
        let sent = sent.map_err(|error| CallError::new("write", Target::Process, error).into());
        Answered { file: (), sent, waited: read.elapsed() }
    }

    /// Refuses the opener, who gets `EPERM`, and keeps the file.
    pub fn deny(self) -> Answered {
        self.answer(libc::FAN_DENY)
    }

    fn answer(self, response: u32) -> Answered {
        let Self { mut answer, file, read, .. } = self;
        let sent = answer.send(response).map_err(|error| CallError::new("write", file.as_fd(), error).into());
        Answered { file, sent, waited: read.elapsed() }
    }
}

/// The duty to answer.
#[derive(Debug)]
struct Answer {
    group: Arc<GroupFd>,
    fd: RawFd,
    given: bool,
}

impl Answer {
    /// Writes `struct fanotify_response`, unless the group is closed.
    #[expect(clippy::host_endian_bytes, reason = "the kernel reads the structure in the host's byte order")]
    fn send(&mut self, response: u32) -> io::Result<()> {
        self.given = true;
        let [a, b, c, d] = self.fd.to_ne_bytes();
        let [e, f, g, h] = response.to_ne_bytes();
        let message = [a, b, c, d, e, f, g, h];
        let written = self.group.with(|group| rustix::io::retry_on_intr(|| rustix::io::write(group, &message)));
        written.transpose()?;
        Ok(())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.given {
            // Nobody is left who could be told of a failure.
            drop(self.send(libc::FAN_DENY));
        }
    }
}
