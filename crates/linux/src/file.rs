//! Facts about an open file, and its bytes.
//!
//! Source: `statx(2)`, `pread(2)`, `proc_pid_fd(5)`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use imara_integrity::event::{Gid, Uid};
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp};

use crate::error::CallError;

/// A point in time as the file system stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of that second.
    pub nanoseconds: u32,
}

/// The clock that file systems take their times from (`CLOCK_REALTIME_COARSE`): what is changed after this call never
/// shows an earlier time, unless somebody sets the clock.
#[must_use]
pub fn clock() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Time { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or(0) }
}

/// What one `statx` says about an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Major and minor number of the file system's device; of the subvolume on btrfs.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
    /// Owner, through the mount's id map.
    pub owner: Uid,
    /// Group, through the mount's id map.
    pub group: Gid,
    /// Type and permission bits.
    pub mode: u16,
    /// Length in bytes.
    pub size: u64,
    /// Number of hard links; 0 if the file has been deleted.
    pub links: u32,
    /// Last change of contents or metadata (ctime).
    pub changed: Time,
    /// Last change of contents (mtime); utimes(2) sets it to anything.
    pub modified: Time,
    /// Birth, where the file system knows it.
    pub born: Option<Time>,
    /// The mount it was opened through, as in `/proc/self/mountinfo`; absent before Linux 5.8.
    pub mount_id: Option<u64>,
}

impl FileFacts {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        u32::from(self.mode) & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        u32::from(self.mode) & libc::S_IFMT == libc::S_IFDIR
    }
}

/// All facts about `file`, in one call.
///
/// # Errors
/// Those of `statx`.
pub fn facts(file: BorrowedFd<'_>) -> Result<FileFacts, CallError> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let facts = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, wanted)
        .map_err(|error| CallError::new("statx", file, error))?;
    Ok(from_statx(&facts))
}

fn from_statx(facts: &Statx) -> FileFacts {
    let known = StatxFlags::from_bits_retain(facts.stx_mask);
    let time = |time: StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
    FileFacts {
        device: (facts.stx_dev_major, facts.stx_dev_minor),
        inode: facts.stx_ino,
        owner: Uid(facts.stx_uid),
        group: Gid(facts.stx_gid),
        mode: facts.stx_mode,
        size: facts.stx_size,
        links: facts.stx_nlink,
        changed: time(facts.stx_ctime),
        modified: time(facts.stx_mtime),
        born: known.contains(StatxFlags::BTIME).then(|| time(facts.stx_btime)),
        mount_id: known.contains(StatxFlags::MNT_ID).then_some(facts.stx_mnt_id),
    }
}

/// The path the file was opened by, as seen now from our root: ends in ` (deleted)` if that name is gone. For messages
/// only, a path is no identity.
///
/// # Errors
/// Those of `readlink`; `ENAMETOOLONG` beyond 4 KiB.
pub fn path_of(file: BorrowedFd<'_>) -> Result<Vec<u8>, CallError> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::readlink(link, Vec::new())
        .map(std::ffi::CString::into_bytes)
        .map_err(|error| CallError::new("readlink", file, error))
}

/// Reads at `offset` into `buffer`, again if interrupted; the number of bytes read, 0 at the end.
///
/// # Errors
/// Those of `pread`, for example `EIO`.
pub fn read_at(file: impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize, CallError> {
    rustix::io::retry_on_intr(|| rustix::io::pread(file.as_fd(), &mut *buffer, offset))
        .map_err(|error| CallError::new("pread", file.as_fd(), error))
}
