//! Permission events: the kernel asks before a file is opened and waits for the answer.
//!
//! A [`PermissionGroup`] is marked onto file systems; each [`Pending`] it yields is answered exactly once, and
//! answers *deny* by itself when it is dropped. Never fork while a group is open: a child that inherits the descriptor
//! keeps every opener waiting after this process has died.
//!
//! Source: `fanotify(7)`; Linux `fs/notify/fanotify/fanotify_user.c`.

mod event;
pub(crate) mod listing;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::{Arc, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

pub use event::{Answered, Event, EventBuffer, Events, Pending};
pub use listing::Marked;

use crate::error::{CallError, Target};
use crate::file::path_of;
use crate::sys::FanotifyFd;

/// `FAN_REPORT_FD_ERROR` (Linux 6.13): an event whose file could not be opened comes with `-errno`, instead of
/// vanishing when it is not the first of a read.
const FAN_REPORT_FD_ERROR: u32 = 0x2000;

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FanotifyError {
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The first event of a read could not be handed over, because its file could not be opened for us (for example
    /// `EMFILE`, `EPERM`, `ENXIO`); the kernel has answered *deny* if somebody waited. Reading may go on.
    #[error("read on a fanotify group: an event was lost, its file could not be opened: {error}")]
    Lost {
        /// The kernel's answer.
        error: io::Error,
    },
    /// The kernel's event structure is not the one this program was written for; nothing can be read.
    #[error("fanotify event structure has version {found}, expected {}", libc::FANOTIFY_METADATA_VERSION)]
    Version {
        /// Version found.
        found: u8,
    },
    /// The group has been closed.
    #[error("the fanotify group has been closed")]
    Closed,
}

impl FanotifyError {
    /// The kernel's error number, where the kernel said one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Call(error) => error.errno(),
            Self::Lost { error } => error.raw_os_error(),
            Self::Version { .. } | Self::Closed => None,
        }
    }
}

/// Which events a mark asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsMask(u64);

impl FsMask {
    /// `FAN_OPEN_PERM`: before a file is opened, for whatever purpose.
    pub const OPEN: Self = Self(libc::FAN_OPEN_PERM);
    /// `FAN_OPEN_EXEC_PERM`: before a file is opened to be executed (script, program, interpreter).
    pub const EXEC: Self = Self(libc::FAN_OPEN_EXEC_PERM);
    /// `FAN_CLOSE_WRITE`: after a file that was open for writing is closed.
    pub const CLOSE_WRITE: Self = Self(libc::FAN_CLOSE_WRITE);
    /// `FAN_CLOSE_NOWRITE`: after a file that was open, but not for writing, is closed.
    pub const CLOSE_NOWRITE: Self = Self(libc::FAN_CLOSE_NOWRITE);
    /// All but the last one.
    pub const GUARD: Self = Self::OPEN.union(Self::EXEC).union(Self::CLOSE_WRITE);
    /// All but `FAN_CLOSE_WRITE`: what may be ignored of a file or of a mount.
    pub const IGNORABLE: Self = Self::OPEN.union(Self::EXEC).union(Self::CLOSE_NOWRITE);

    /// The events of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The group's descriptor; gone after [`PermissionGroup::close`].
///
/// A lock and not a bare number, because an answer written after the number was reused would go to a stranger.
#[derive(Debug)]
struct GroupFd(RwLock<Option<FanotifyFd>>);

impl GroupFd {
    fn with<R>(&self, call: impl FnOnce(&FanotifyFd) -> R) -> Option<R> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(call)
    }
}

/// A fanotify group that is asked for permission.
///
/// When the last reference is closed (by [`close`](Self::close), by dropping, or by the death of the process) the
/// kernel lets every waiter pass.
#[derive(Debug)]
pub struct PermissionGroup {
    fd: Arc<GroupFd>,
}

impl PermissionGroup {
    /// Opens a group of class `FAN_CLASS_PRE_CONTENT`, or of `FAN_CLASS_CONTENT` where the former is refused.
    ///
    /// Non-blocking, close-on-exec, with unlimited queue and marks. `FAN_REPORT_TID` (Linux 4.20) and
    /// `FAN_REPORT_FD_ERROR` (Linux 6.13) are used where the kernel has them. The files of events are opened with
    /// `O_RDONLY|O_LARGEFILE|O_CLOEXEC|O_NOATIME|O_NONBLOCK`: without the last one, whoever holds a write lease on a file
    /// would keep our read waiting, and everybody with it. Such an event comes as [`Event::Unopenable`].
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` or `ENOSYS` if the kernel has no permission events, `EMFILE` if there are too many groups.
    pub fn open() -> Result<Self, FanotifyError> {
        const BASE: u32 =
            libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_UNLIMITED_MARKS | libc::FAN_UNLIMITED_QUEUE;
        let file_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NOATIME | libc::O_NONBLOCK;
        let file_flags = u32::try_from(file_flags)
            .map_err(|_| CallError::new("fanotify_init", Target::Process, rustix::io::Errno::INVAL))?;
        let mut refusal = io::Error::from(rustix::io::Errno::INVAL);
        for optional in [libc::FAN_REPORT_TID | FAN_REPORT_FD_ERROR, libc::FAN_REPORT_TID, 0] {
            for class in [libc::FAN_CLASS_PRE_CONTENT, libc::FAN_CLASS_CONTENT] {
                let flags = class | BASE | optional;
                match FanotifyFd::open(flags, file_flags) {
                    Ok(fd) => return Ok(Self { fd: Arc::new(GroupFd(RwLock::new(Some(fd)))) }),
                    Err(error) => refusal = error,
                }
                if !matches!(refusal.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) {
                    break;
                }
            }
        }
        Err(CallError::new("fanotify_init", Target::Process, refusal).into())
    }

    /// Gives the descriptor the highest number that there can be, so that the group is the first of our files to end if we
    /// die. To be called before anybody is told of the descriptor, and with the final limit of open descriptors.
    ///
    /// The kernel ends the files of a dead process one after the other, from the highest number down, and ending one may
    /// wait: for the disk, if that file was deleted; and if it is another fanotify group, for whoever waits for an answer
    /// about a file that both have marked.
    ///
    /// Source: Linux `fs/file.c`, `close_files()`; `kernel/task_work.c` (last in, first out); `fs/notify/group.c`,
    /// `fsnotify_destroy_group()`.
    ///
    /// # Errors
    /// `EMFILE` if that number is taken, or closed.
    pub fn move_up(&self) -> Result<(), FanotifyError> {
        let highest = crate::limits::open_files().saturating_sub(1);
        let mut place = self.fd.0.write().unwrap_or_else(PoisonError::into_inner);
        let group = place.as_ref().ok_or(FanotifyError::Closed)?;
        let moved = group.renumbered(highest);
        *place = Some(moved.map_err(|error| CallError::new("fcntl(F_DUPFD_CLOEXEC)", Target::Process, error))?);
        Ok(())
    }

    /// Asks for the events of the whole file system that `mount` is on, through whichever mount they come.
    ///
    /// # Errors
    /// `EPERM`, `ENOSPC`, `EBADF` (an `O_PATH` descriptor), `EINVAL` (the file system does not support it), or closed.
    pub fn mark_filesystem(&self, mount: BorrowedFd<'_>, what: FsMask) -> Result<(), FanotifyError> {
        self.mark(libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM, mount, what)
    }

    /// Asks for no such events of files that are opened through this mount, whatever its file system's mark says.
    ///
    /// # Errors
    /// `EPERM`, or closed.
    pub fn ignore_mount(&self, mount: BorrowedFd<'_>, what: FsMask) -> Result<(), FanotifyError> {
        let ignore = libc::FAN_MARK_ADD
            | libc::FAN_MARK_MOUNT
            | libc::FAN_MARK_IGNORED_MASK
            | libc::FAN_MARK_IGNORED_SURV_MODIFY;
        self.mark(ignore, mount, what)
    }

    /// Lets the kernel answer for this file: of `what` nobody is asked any more, until [`heed_inode`](Self::heed_inode),
    /// until it is changed by a call (`write(2)`, truncation; not by a store through a mapping), or until its inode is
    /// dropped from memory.
    ///
    /// The mark keeps a bit of its own, `FAN_CLOSE_WRITE`, which is never taken away: a mark without any is destroyed. Whoever
    /// has asked about the file before that and waits for his answer keeps it in the list of the inode's marks until he has
    /// it, and so long the kernel finds it there, dead, and lets everybody pass who opens the file, unasked. (Who finds it
    /// there just as it is destroyed passes too, but he came while the lease was held, and could as well have come before.)
    ///
    /// Source: Linux `fs/notify/fanotify/fanotify_user.c`, `fanotify_mark_remove_from_mask()`; `fanotify.c`,
    /// `fanotify_handle_event()`; `fs/notify/mark.c`, `fsnotify_prepare_user_wait()`, `fsnotify_detach_mark()` (6.1 to 6.18).
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.19, `ENOMEM`, or closed.
    pub fn ignore_inode(&self, file: BorrowedFd<'_>, what: FsMask) -> Result<(), FanotifyError> {
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_EVICTABLE;
        self.mark(add, file, FsMask::CLOSE_WRITE)?;
        self.mark(add | libc::FAN_MARK_IGNORED_MASK, file, what)
    }

    /// Asks again about this file, and tells of its closes. When it returns, whoever opens the file asks.
    ///
    /// # Errors
    /// None that is known of, or closed.
    pub fn heed_inode(&self, file: BorrowedFd<'_>) -> Result<(), FanotifyError> {
        match self.mark(libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORED_MASK, file, FsMask::IGNORABLE) {
            // There is no mark.
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// The same for a file that is open with `O_PATH`.
    ///
    /// # Errors
    /// `ENOENT` or `EACCES` if `/proc` is not to be had, or closed.
    pub fn heed_path(&self, found: BorrowedFd<'_>) -> Result<(), FanotifyError> {
        let link = CString::new(format!("/proc/self/fd/{}", found.as_raw_fd())).unwrap_or_default();
        let action = libc::FAN_MARK_REMOVE | libc::FAN_MARK_IGNORED_MASK;
        match self.fd.with(|group| group.mark_path(action, FsMask::IGNORABLE.0, &link)).ok_or(FanotifyError::Closed)? {
            // There is no mark; or no `/proc`.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && path_of(found).is_ok() => Ok(()),
            result => result.map_err(|error| CallError::new("fanotify_mark", found, error).into()),
        }
    }

    fn mark(&self, action: u32, target: BorrowedFd<'_>, what: FsMask) -> Result<(), FanotifyError> {
        self.fd
            .with(|group| group.mark(action, what.0, target))
            .ok_or(FanotifyError::Closed)?
            .map_err(|error| CallError::new("fanotify_mark", target, error).into())
    }

    /// Reads what is there, without waiting; an empty iterator if nothing is.
    ///
    /// Events that are not taken out of the iterator are denied and closed when it is dropped or at the next read.
    ///
    /// # Errors
    /// [`FanotifyError::Lost`]: one event is lost, go on. [`FanotifyError::Call`] and [`FanotifyError::Closed`]: the
    /// group cannot be read any more.
    pub fn read<'b>(&self, buffer: &'b mut EventBuffer) -> Result<Events<'b>, FanotifyError> {
        drop(Events { raw: &mut buffer.raw, group: Arc::clone(&self.fd), read: Instant::now() });
        match self.fd.with(|group| buffer.raw.read(group)).ok_or(FanotifyError::Closed)? {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(source) => return Err(self.read_error(source)),
        }
        Ok(Events { raw: &mut buffer.raw, group: Arc::clone(&self.fd), read: Instant::now() })
    }

    /// `EINVAL`, `EFAULT` and `EBADF` speak of our own call; all else comes from opening an event's file.
    fn read_error(&self, source: io::Error) -> FanotifyError {
        match source.raw_os_error() {
            Some(libc::EINVAL | libc::EFAULT | libc::EBADF) | None => {
                let target = self.fd.with(|fd| Target::from(fd.as_fd())).unwrap_or(Target::Process);
                CallError::new("read", target, source).into()
            }
            Some(_) => FanotifyError::Lost { error: source },
        }
    }

    /// How many events wait to be read at most (`FIONREAD`).
    ///
    /// # Errors
    /// Those of `ioctl`, or closed.
    pub fn queued(&self) -> Result<u64, FanotifyError> {
        let bytes = self.fd.with(|group| rustix::io::ioctl_fionread(group)).ok_or(FanotifyError::Closed)?;
        let bytes = bytes.map_err(|error| CallError::new("ioctl(FIONREAD)", Target::Process, error))?;
        // The shortest event is its metadata alone.
        Ok(bytes.div_ceil(u64::try_from(crate::sys::METADATA_LEN).unwrap_or(u64::MAX)))
    }

    /// Inodes that are marked, as the kernel lists them; without those whose file system makes no handles.
    ///
    /// # Errors
    /// If `/proc/self/fdinfo` cannot be read, or closed.
    pub fn marked_inodes(&self) -> Result<Vec<Marked>, FanotifyError> {
        Ok(self.fd.with(|group| listing::marked_inodes(group.as_fd())).ok_or(FanotifyError::Closed)??)
    }

    /// Calls `f` with the group's descriptor, for example to wait for it; absent if the group is closed.
    pub fn with_fd<R>(&self, f: impl FnOnce(BorrowedFd<'_>) -> R) -> Option<R> {
        self.fd.with(|group| f(group.as_fd()))
    }

    /// Closes the group: the kernel lets every waiter pass, and answers still to come do nothing. Waits for calls that are
    /// being made on it.
    pub fn close(&self) {
        let fd = self.fd.0.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(fd);
    }

    /// The same, but waits no longer than this; false if a call on the group has not come back until then. It is for whoever
    /// ends the process afterwards in any case, which closes the group too.
    #[must_use]
    pub fn close_within(&self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        let fd = loop {
            match self.fd.0.try_write() {
                Ok(mut fd) => break fd.take(),
                Err(TryLockError::Poisoned(fd)) => break fd.into_inner().take(),
                Err(TryLockError::WouldBlock) if Instant::now() >= end => return false,
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        drop(fd);
        true
    }
}
