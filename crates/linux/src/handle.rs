//! Who a file is: the file system's own handle, which is never that of another file.
//!
//! Source: `open_by_handle_at(2)`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::BorrowedFd;

use crate::error::CallError;
use crate::sys::{self, MAX_HANDLE};

/// Kind and handle of a file in the file system's own form, filled up with zeros; absent if there is none or it is longer
/// than those of ext4 (8 bytes), XFS (12), tmpfs (12) and Btrfs (20).
///
/// Unlike device, inode number and birth together, it is never that of another file later: file systems put a
/// generation in it, and Btrfs the number of the subvolume.
#[must_use]
pub fn short_handle(file: BorrowedFd<'_>) -> Option<[u8; 24]> {
    let handle = sys::handle_of(file, 0).or_else(|_| sys::handle_of(file, AT_HANDLE_FID)).ok()?;
    let (kind, length, bytes) = handle;
    shortened(kind, bytes.get(..length)?)
}

fn shortened(kind: i32, handle: &[u8]) -> Option<[u8; 24]> {
    let mut short = [0; 24];
    short.get_mut(..4)?.copy_from_slice(&kind.to_le_bytes());
    short.get_mut(4..handle.len().checked_add(4)?)?.copy_from_slice(handle);
    Some(short)
}

/// `AT_HANDLE_FID` (Linux 6.5): a handle that need not be openable.
const AT_HANDLE_FID: i32 = 0x200;

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

    /// The file system, as `fstatfs(2)` numbers it; a btrfs as a whole.
    #[must_use]
    pub const fn fsid(&self) -> [i32; 2] {
        self.fsid
    }

    /// The handle of another file of the same file system, of which the [`short_handle`] is known. Handles of one file system
    /// are of one length.
    #[must_use]
    pub fn of_another(&self, short: &[u8; 24]) -> Option<Self> {
        let (kind, bytes) = short.split_first_chunk::<4>()?;
        let (bytes, rest) = bytes.split_at_checked(usize::from(self.length))?;
        if rest.iter().any(|byte| *byte != 0) {
            return None;
        }
        Self::new(self.fsid, i32::from_le_bytes(*kind), bytes)
    }

    pub(crate) fn parts(&self) -> (i32, usize, [u8; MAX_HANDLE]) {
        (self.kind, usize::from(self.length), self.bytes)
    }

    /// The same without the file system, as [`short_handle`] of the file.
    #[must_use]
    pub fn short(&self) -> Option<[u8; 24]> {
        shortened(self.kind, self.bytes())
    }

    /// The handle itself, at most 128 bytes, in the file system's own form.
    pub(crate) fn bytes(&self) -> &[u8] {
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

/// The handle of an open file, comparable with those of [`NoticeGroup`](crate::notice::NoticeGroup).
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

#[cfg(test)]
#[expect(clippy::host_endian_bytes, reason = "the kernel writes these structures in the host's byte order")]
mod tests {
    use super::*;

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
    fn a_short_handle_is_made_whole_again_by_another_of_its_file_system() {
        let root = FileHandle::new([1, 2], 1, &[2, 0, 0, 0]).unwrap();
        let file = FileHandle::new([1, 2], 1, &[9, 8, 0, 0]).unwrap();
        assert_eq!(root.of_another(&file.short().unwrap()), Some(file));
        let longer = FileHandle::new([1, 2], 1, &[9, 8, 0, 0, 1]).unwrap();
        assert_eq!(root.of_another(&longer.short().unwrap()), None);
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
