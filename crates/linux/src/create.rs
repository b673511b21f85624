//! Which files are new: the kernel's notice that a name was made, with the handle of the file behind it.
//!
//! Handles are compared, never opened. The notice of an `open(O_CREAT)` is in the queue before the permission event
//! of the same open is, on file systems that make the file first and open it then: all that are on a disk or in
//! memory. Those with an `atomic_open` of their own (FUSE, NFS) ask for permission first.
//!
//! Source: `fanotify(7)`, `FAN_REPORT_TARGET_FID`; `open_by_handle_at(2)`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};

use crate::error::{CallError, Target};
use crate::fanotify::FanotifyError;
use crate::sys::{self, FanotifyFd, MAX_HANDLE, METADATA_LEN, Metadata};

/// Kind and handle of a file in the file system's own form, filled up with zeros; absent if there is none or it is longer
/// than those of ext4 (8 bytes), XFS (12), tmpfs (12) and Btrfs (20).
///
/// Unlike device, inode number and birth together, it is never that of another file later: file systems put a
/// generation in it, and Btrfs the number of the subvolume.
#[must_use]
pub fn short_handle(file: BorrowedFd<'_>) -> Option<[u8; 24]> {
    let handle = sys::handle_of(file, 0).or_else(|_| sys::handle_of(file, AT_HANDLE_FID)).ok()?;
    let (kind, length, bytes) = handle;
    let mut short = [0; 24];
    short.get_mut(..4)?.copy_from_slice(&kind.to_le_bytes());
    short.get_mut(4..length.checked_add(4)?)?.copy_from_slice(bytes.get(..length)?);
    Some(short)
}

/// `AT_HANDLE_FID` (Linux 6.5): a handle that need not be openable.
const AT_HANDLE_FID: i32 = 0x200;

/// `struct fanotify_event_info_header`: 1 type, 1 padding, 2 length.
const INFO_HEADER_LEN: usize = 4;

/// Fixed part of a handle record behind its header: 8 fsid, 4 length, 4 kind.
const INFO_HANDLE_LEN: usize = 16;

/// Who a file is, as long as it exists: file system and the file system's own handle.
///
/// Two files that exist at the same time never have the same one; an inode number used again gets another generation
/// on file systems that have generations.
#[derive(Clone, Copy)]
pub struct FileHandle {
    fsid: [i32; 2],
    kind: i32,
    length: u8,
    bytes: [u8; MAX_HANDLE],
}

impl FileHandle {
    /// Absent if there are more than 128 bytes.
    #[must_use]
    pub fn new(fsid: [i32; 2], kind: i32, handle: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_HANDLE];
        bytes.get_mut(..handle.len())?.copy_from_slice(handle);
        Some(Self { fsid, kind, length: u8::try_from(handle.len()).ok()?, bytes })
    }

    /// The handle itself, at most 128 bytes, in the file system's own form.
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        self.fsid == other.fsid && self.kind == other.kind && self.bytes() == other.bytes()
    }
}

impl Eq for FileHandle {}

impl Hash for FileHandle {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fsid.hash(state);
        self.kind.hash(state);
        self.bytes().hash(state);
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileHandle({:x?} kind {:#x} ", self.fsid, self.kind)?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// The handle of an open file, comparable with those of [`CreateGroup`].
///
/// # Errors
/// `EOPNOTSUPP` if the file system makes no handles.
pub fn file_handle(file: BorrowedFd<'_>) -> Result<FileHandle, CallError> {
    let facts = rustix::fs::fstatfs(file).map_err(|error| CallError::new("fstatfs", file, error))?;
    let mut fsid = sys::fsid(file).map_err(|error| CallError::new("fstatfs", file, error))?;
    let (kind, length, bytes) = sys::handle_of(file, 0)
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => sys::handle_of(file, AT_HANDLE_FID),
            _ => Err(error),
        })
        .map_err(|error| CallError::new("name_to_handle_at", file, error))?;
    if i128::from(facts.f_type) == BTRFS_MAGIC {
        fsid = of_whole_btrfs(fsid, &bytes);
    }
    bytes
        .get(..length)
        .and_then(|handle| FileHandle::new(fsid, kind, handle))
        .ok_or_else(|| CallError::new("name_to_handle_at", file, rustix::io::Errno::OVERFLOW))
}

/// `BTRFS_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const BTRFS_MAGIC: i128 = 0x9123_683e;

/// Number of the top-level subvolume, `BTRFS_FS_TREE_OBJECTID`.
const BTRFS_TOP: i32 = 5;

/// Turns the fsid of a subvolume into that of the top-level one, which is what notices carry: btrfs xors the number of
/// the subvolume into the fsid, high half into the first word, low half into the second.
///
/// The handle still tells the subvolumes apart: it holds that number, in bytes 8 to 15.
///
/// Source: Linux `fs/btrfs/super.c`, `btrfs_statfs()`; `fs/btrfs/export.h`, `struct btrfs_fid`.
#[expect(clippy::host_endian_bytes, reason = "the handle holds numbers of the host")]
fn of_whole_btrfs([first, second]: [i32; 2], handle: &[u8; MAX_HANDLE]) -> [i32; 2] {
    let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = *handle;
    let (one, other) = (i32::from_ne_bytes([a, b, c, d]), i32::from_ne_bytes([e, f, g, h]));
    let (low, high) = if cfg!(target_endian = "little") { (one, other) } else { (other, one) };
    [first ^ high, second ^ low ^ BTRFS_TOP]
}

/// A fanotify group that only hears of new names.
#[derive(Debug)]
pub struct CreateGroup {
    fd: FanotifyFd,
}

impl CreateGroup {
    /// Opens a non-blocking group with unlimited queue and marks that reports the handle of the new file.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.17, `EPERM` without `CAP_SYS_ADMIN`.
    pub fn open() -> Result<Self, FanotifyError> {
        let flags = libc::FAN_CLASS_NOTIF
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_UNLIMITED_MARKS
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_REPORT_DFID_NAME_TARGET;
        let fd = FanotifyFd::open(flags, 0).map_err(|error| CallError::new("fanotify_init", Target::Process, error))?;
        Ok(Self { fd })
    }

    /// Asks for the notices of the whole file system that `mount` is on.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the file system makes no handles, `ENODEV` if it has no fsid, `EBADF` for an `O_PATH` descriptor, `EXDEV` if `mount` is inside a
    /// btrfs subvolume: a descriptor of the top-level one is needed, see [`crate::mounts::btrfs_top`].
    pub fn mark_filesystem(&self, mount: BorrowedFd<'_>) -> Result<(), FanotifyError> {
        let add = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        self.fd.mark(add, libc::FAN_CREATE, mount).map_err(|error| CallError::new("fanotify_mark", mount, error).into())
    }

    /// Reads what is there, without waiting; an empty iterator if nothing is.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read<'b>(&self, buffer: &'b mut CreateBuffer) -> Result<Created<'b>, FanotifyError> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer.bytes)) {
            Ok(length) => Ok(Created { bytes: buffer.bytes.get(..length).unwrap_or_default() }),
            Err(rustix::io::Errno::AGAIN) => Ok(Created { bytes: &[] }),
            Err(error) => Err(CallError::new("read", self.fd.as_fd(), error).into()),
        }
    }
}

impl AsFd for CreateGroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Memory for one read of a [`CreateGroup`]; make one and use it again.
#[derive(Debug)]
pub struct CreateBuffer {
    bytes: Box<[u8]>,
}

impl Default for CreateBuffer {
    /// 16 KiB: at least 26 notices with the longest names and handles, usually 150.
    fn default() -> Self {
        Self { bytes: vec![0; 16 << 10].into_boxed_slice() }
    }
}

/// A notice of a [`CreateGroup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Creation {
    /// A name was made for this file: a new file, node or symbolic link, or one more link (`link(2)`) to an old file.
    ///
    /// It does not say which of these, so it is no proof that the file is new: look at its size and birth as well.
    /// Not for a directory, not by `rename(2)`, and for an `O_TMPFILE` not before it is linked.
    File(FileHandle),
    /// A name was made, but the kernel could not say for what.
    Unknown,
    /// The queue was full: notices are missing.
    Overflow,
}

/// The notices of one read.
#[derive(Debug)]
pub struct Created<'b> {
    bytes: &'b [u8],
}

impl Iterator for Created<'_> {
    type Item = Result<Creation, FanotifyError>;

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
            Creation::Overflow
        } else {
            this.get(METADATA_LEN..).and_then(target_handle).map_or(Creation::Unknown, Creation::File)
        }))
    }
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

    fn read(bytes: &[u8]) -> Vec<Result<Creation, u8>> {
        let created = Created { bytes };
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
        assert_eq!(read(&two), [Ok(Creation::File(expected)), Ok(Creation::Overflow)]);
        assert_eq!(expected.bytes(), [1, 2, 3]);
    }

    #[test]
    fn a_notice_without_a_whole_handle_of_the_child_is_unknown() {
        let whole = record(libc::FAN_EVENT_INFO_TYPE_FID, &[1, 2, 3], &[]);
        for length in 0..whole.len() {
            let notice = event(3, libc::FAN_CREATE, &whole[..length]);
            assert_eq!(read(&notice), [Ok(Creation::Unknown)], "{length}");
        }
        let directory = record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, &[9; 8], b"name\0");
        let long = record(libc::FAN_EVENT_INFO_TYPE_FID, &[1; MAX_HANDLE + 1], &[]);
        let looping = [libc::FAN_EVENT_INFO_TYPE_DFID_NAME, 0, 0, 0];
        for records in [&directory[..], &long, &looping] {
            assert_eq!(read(&event(3, libc::FAN_CREATE, records)), [Ok(Creation::Unknown)], "{records:?}");
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

    #[test]
    fn handles_differ_by_file_system_kind_length_and_bytes() {
        let make = |fsid, kind, bytes: &[u8]| FileHandle::new(fsid, kind, bytes).unwrap();
        let one = make([1, 2], 3, &[4, 0]);
        assert_eq!(one, make([1, 2], 3, &[4, 0]));
        for other in
            [make([2, 1], 3, &[4, 0]), make([1, 2], 4, &[4, 0]), make([1, 2], 3, &[4]), make([1, 2], 3, &[4, 1])]
        {
            assert_ne!(one, other);
        }
        assert!(FileHandle::new([1, 2], 3, &[0; MAX_HANDLE]).is_some());
        assert_eq!(FileHandle::new([1, 2], 3, &[0; MAX_HANDLE + 1]), None);
    }

    #[test]
    fn the_number_of_a_subvolume_is_taken_out_of_its_fsid() {
        let mut handle = [0; MAX_HANDLE];
        for (subvolume, expected) in [(5_u64, [7, 9]), (256, [7, 9 ^ 256 ^ 5]), (3 << 32 | 5, [7 ^ 3, 9])] {
            handle[8..16].copy_from_slice(&subvolume.to_ne_bytes());
            assert_eq!(of_whole_btrfs([7, 9], &handle), expected, "{subvolume}");
        }
    }
}
