//! What the kernel says afterwards: that a name was made, or a file's attributes changed, with the handle of the file.
//!
//! Nobody waits for these notices to be read. The notice of an `open(O_CREAT)` is in the queue before the permission event
//! of the same open is, on file systems that make the file first and open it then: all that are on a disk or in
//! memory. Those with an `atomic_open` of their own (FUSE, NFS) ask for permission first.
//!
//! Source: `fanotify(7)`, `FAN_REPORT_TARGET_FID`.

use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{CallError, Target};
use crate::fanotify::{FanotifyError, listing};
use crate::handle::FileHandle;
use crate::sys::{FanotifyFd, METADATA_LEN, Metadata};

/// `struct fanotify_event_info_header`: 1 type, 1 padding, 2 length.
const INFO_HEADER_LEN: usize = 4;

/// Fixed part of a handle record behind its header: 8 fsid, 4 length, 4 kind.
const INFO_HANDLE_LEN: usize = 16;

/// A fanotify group that hears of changes and answers nothing.
#[derive(Debug)]
pub struct NoticeGroup {
    fd: FanotifyFd,
    mask: u64,
}

impl NoticeGroup {
    /// Opens a non-blocking group with unlimited queue and marks that hears of new names (`FAN_CREATE`).
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.17, `EPERM` without `CAP_SYS_ADMIN`.
    pub fn of_creations() -> Result<Self, FanotifyError> {
        Self::open(libc::FAN_REPORT_DFID_NAME_TARGET, libc::FAN_CREATE)
    }

    /// The same, for changes of owner, group, mode, times, number of links and extended attributes (`FAN_ATTRIB`) of what is
    /// no directory.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.1, `EPERM` without `CAP_SYS_ADMIN`.
    pub fn of_attributes() -> Result<Self, FanotifyError> {
        Self::open(libc::FAN_REPORT_FID, libc::FAN_ATTRIB)
    }

    fn open(report: u32, mask: u64) -> Result<Self, FanotifyError> {
        const BASE: u32 = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_UNLIMITED_QUEUE;
        let fd = FanotifyFd::open(BASE | report, 0)
            .map_err(|error| CallError::new("fanotify_init", Target::Process, error))?;
        Ok(Self { fd, mask })
    }

    /// Asks for the notices of the whole file system that `mount` is on.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the file system makes no handles, `ENODEV` if it has no fsid, `EBADF` for an `O_PATH` descriptor, `EXDEV` if `mount` is inside a
    /// btrfs subvolume: a descriptor of the top-level one is needed, see [`crate::mounts::btrfs_top`].
    pub fn mark_filesystem(&self, mount: BorrowedFd<'_>) -> Result<(), FanotifyError> {
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        self.fd.mark(add, self.mask, mount).map_err(|error| CallError::new("fanotify_mark", mount, error).into())
    }

    /// Takes [`mark_filesystem`](Self::mark_filesystem) back.
    ///
    /// # Errors
    /// `ENOENT` if it is not marked.
    pub fn unmark_filesystem(&self, mount: BorrowedFd<'_>) -> Result<(), FanotifyError> {
        let remove = libc::FAN_MARK_REMOVE | libc::FAN_MARK_FILESYSTEM;
        self.fd.mark(remove, self.mask, mount).map_err(|error| CallError::new("fanotify_mark", mount, error).into())
    }

    /// Asks for the notices that this file's content was changed by a call (`write(2)`, truncation; not by a store through a
    /// mapping), until its inode is dropped from memory.
    ///
    /// Groups that hand over descriptors are not told of truncations.
    ///
    /// Source: Linux `fs/notify/fanotify/fanotify.c`, `fanotify_group_event_mask()`; `include/linux/fsnotify.h`,
    /// `fsnotify_change()`.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.19, `ENOMEM`.
    pub fn watch_inode(&self, file: BorrowedFd<'_>) -> Result<(), FanotifyError> {
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_EVICTABLE;
        self.fd.mark(add, libc::FAN_MODIFY, file).map_err(|error| CallError::new("fanotify_mark", file, error).into())
    }

    /// Asks for them no more. False if there was no such mark: the inode has been dropped from memory since, or was never
    /// watched.
    ///
    /// # Errors
    /// None that is known of.
    pub fn unwatch_inode(&self, file: BorrowedFd<'_>) -> Result<bool, FanotifyError> {
        match self.fd.mark(libc::FAN_MARK_REMOVE, libc::FAN_MODIFY, file) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(CallError::new("fanotify_mark", file, error).into()),
        }
    }

    /// Devices (major, minor) of the file systems that are marked, as the kernel lists them: a mark goes with its file
    /// system, without an event. The list that is read for it has a line for each inode that is marked, too.
    ///
    /// # Errors
    /// If `/proc/self/fdinfo` cannot be read.
    pub fn marked_devices(&self) -> Result<Vec<(u32, u32)>, FanotifyError> {
        Ok(listing::marked_devices(self.fd.as_fd())?)
    }

    /// Reads what is there, without waiting; an empty iterator if nothing is.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<'b>(&self, buffer: &'b mut NoticeBuffer) -> Result<Notices<'b>, FanotifyError> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer.bytes)) {
            Ok(length) => Ok(Notices { bytes: buffer.bytes.get(..length).unwrap_or_default() }),
            Err(rustix::io::Errno::AGAIN) => Ok(Notices { bytes: &[] }),
            Err(error) => Err(CallError::new("read", self.fd.as_fd(), error).into()),
        }
    }
}

impl AsFd for NoticeGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Memory for one read of a [`NoticeGroup`]; make one and use it again.
#[derive(Debug)]
pub struct NoticeBuffer {
    bytes: Box<[u8]>,
}

impl Default for NoticeBuffer {
    /// 16 KiB: at least 26 notices with the longest names and handles, usually 150.
    fn default() -> Self {
        Self { bytes: vec![0; 16 << 10].into_boxed_slice() }
    }
}

/// A notice of a [`NoticeGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A name was made for this file: a new file, node or symbolic link, or one more link (`link(2)`) to an old file.
    ///
    /// It does not say which of these, so it is no proof that the file is new: look at its size and birth as well.
    /// Not for a directory, not by `rename(2)`, and for an `O_TMPFILE` not before it is linked.
    Made(FileHandle),
    /// This file was changed, since the last notice of it was read.
    Changed {
        /// Which one.
        file: FileHandle,
        /// Whether its attributes were.
        attributes: bool,
        /// Whether its content was; only if it is [watched](NoticeGroup::watch_inode).
        content: bool,
    },
    /// The kernel could not say of what.
    Unknown,
    /// The queue was full: notices are missing.
    Overflow,
}

/// The notices of one read.
#[derive(Debug)]
pub struct Notices<'b> {
    bytes: &'b [u8],
}

impl Iterator for Notices<'_> {
    type Item = Result<Notice, FanotifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let event = self.bytes.first_chunk().and_then(Metadata::parse);
        let Some((event, (this, rest))) =
            event.and_then(|event| Some((event, self.bytes.split_at_checked(event.length)?)))
        else {
            let found = self.bytes.get(4).copied().unwrap_or(0);
            self.bytes = &[];
            return Some(Err(FanotifyError::Version { found }));
        };
        self.bytes = rest;
        Some(Ok(if event.mask & libc::FAN_Q_OVERFLOW != 0 {
            Notice::Overflow
        } else {
            this.get(METADATA_LEN..).and_then(target_handle).map_or(Notice::Unknown, |file| told(event.mask, file))
        }))
    }
}

fn told(mask: u64, file: FileHandle) -> Notice {
    if mask & libc::FAN_CREATE != 0 {
        return Notice::Made(file);
    }
    Notice::Changed { file, attributes: mask & libc::FAN_ATTRIB != 0, content: mask & libc::FAN_MODIFY != 0 }
}

/// The first `FAN_EVENT_INFO_TYPE_FID` record: that of the child.
fn target_handle(mut records: &[u8]) -> Option<FileHandle> {
    #[expect(clippy::host_endian_bytes, reason = "the kernel writes the records in the host's byte order")]
    loop {
        let [kind, _, l0, l1] = *records.first_chunk::<INFO_HEADER_LEN>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if length < INFO_HEADER_LEN {
            return None;
        }
        let (record, rest) = records.split_at_checked(length)?;
        records = rest;
        if kind != libc::FAN_EVENT_INFO_TYPE_FID {
            continue;
        }
        let body = record.get(INFO_HEADER_LEN..)?;
        let [a, b, c, d, e, f, g, h, n0, n1, n2, n3, k0, k1, k2, k3] = *body.first_chunk::<INFO_HANDLE_LEN>()?;
        let handle_length = usize::try_from(u32::from_ne_bytes([n0, n1, n2, n3])).ok()?;
        let handle = body.get(INFO_HANDLE_LEN..)?.get(..handle_length)?;
        let fsid = [i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h])];
        return FileHandle::new(fsid, i32::from_ne_bytes([k0, k1, k2, k3]), handle);
    }
}

#[cfg(test)]
#[expect(clippy::host_endian_bytes, reason = "the kernel writes these structures in the host's byte order")]
mod tests {
    use super::*;
    use crate::sys::MAX_HANDLE;

    fn event(version: u8, mask: u64, records: &[u8]) -> Vec<u8> {
        let length = u32::try_from(METADATA_LEN + records.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([version, 0]);
        bytes.extend(24_u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(7_i32.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    fn record(kind: u8, handle: &[u8], behind: &[u8]) -> Vec<u8> {
        let length = u16::try_from(INFO_HEADER_LEN + INFO_HANDLE_LEN + handle.len() + behind.len()).unwrap();
        let mut bytes = vec![kind, 0];
        bytes.extend(length.to_ne_bytes());
        bytes.extend(11_i32.to_ne_bytes());
        bytes.extend(22_i32.to_ne_bytes());
        bytes.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        bytes.extend(0x81_i32.to_ne_bytes());
        bytes.extend(handle);
        bytes.extend(behind);
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<Result<Notice, u8>> {
        let created = Notices { bytes };
        created
            .map(|item| match item {
                Ok(creation) => Ok(creation),
                Err(FanotifyError::Version { found }) => Err(found),
                Err(FanotifyError::Call(_) | FanotifyError::Lost { .. } | FanotifyError::Closed) => Err(u8::MAX),
            })
            .collect()
    }

    #[test]
    fn the_record_of_the_child_is_taken_and_that_of_the_directory_passed_over() {
        let records = [
            record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[9; 8], b"name\0\0\0\0"),
            record(libc::FAN_EVENT_INFO_TYPE_FID, &[1, 2, 3], b"\0"),
        ];
        let expected = FileHandle::new([11, 22], 0x81, &[1, 2, 3]).unwrap();
        let mut two = event(3, libc::FAN_CREATE, &records.concat());
        two.extend(event(3, libc::FAN_Q_OVERFLOW, &[]));
        assert_eq!(read(&two), [Ok(Notice::Made(expected)), Ok(Notice::Overflow)]);
        assert_eq!(expected.bytes(), [1, 2, 3]);
    }

    #[test]
    fn a_notice_without_a_whole_handle_of_the_child_is_unknown() {
        let whole = record(libc::FAN_EVENT_INFO_TYPE_FID, &[1, 2, 3], &[]);
        for length in 0..whole.len() {
            let notice = event(3, libc::FAN_CREATE, &whole[..length]);
            assert_eq!(read(&notice), [Ok(Notice::Unknown)], "{length}");
        }
        let directory = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[9; 8], b"name\0");
        let long = record(libc::FAN_EVENT_INFO_TYPE_FID, &[1; MAX_HANDLE + 1], &[]);
        let looping = [libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        for records in [&directory[..], &long, &looping] {
            assert_eq!(read(&event(3, libc::FAN_CREATE, records)), [Ok(Notice::Unknown)], "{records:?}");
        }
    }

    #[test]
    fn another_version_or_a_cut_event_ends_the_reading() {
        assert_eq!(read(&event(4, libc::FAN_CREATE, &[])), [Err(4)]);
        let whole = event(3, libc::FAN_CREATE, &record(libc::FAN_EVENT_INFO_TYPE_FID, &[1], &[]));
        for length in 5..whole.len() {
            assert_eq!(read(&whole[..length]), [Err(3)], "{length}");
        }
        assert_eq!(read(&[]), []);
    }
}
