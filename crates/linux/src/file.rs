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

/// What a file system's times of change (ctime) are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// A change after one whose time was read by [`facts`] bears another time, however soon it comes ('multigrain': ext4,
    /// xfs, btrfs and tmpfs since Linux 6.13).
    ///
    /// Source: Linux `Documentation/filesystems/multigrain-ts.rst`; `fs/inode.c`, `inode_set_ctime_current()`; `fs/stat.c`,
    /// `fill_mg_cmtime()`.
    Fine,
    /// Two changes may bear the same time, if they are close to each other.
    Coarse,
}

/// So many changes in a row that bear different times, some microseconds apart, are no chance.
const CHANGES: u32 = 64;

/// Finds out what the times of the file system are worth that `directory` is on, with a nameless file that is changed
/// there. Where that is not possible they are taken for coarse.
#[must_use]
pub fn times_of(directory: BorrowedFd<'_>) -> Times {
    use rustix::fs::{Mode, OFlags};
    let nameless = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(directory, c".", nameless, Mode::empty()) else { return Times::Coarse };
    let mut last = None;
    for number in 0..CHANGES {
        let mode = if number % 2 == 0 { Mode::RUSR } else { Mode::WUSR };
        let changed = rustix::fs::fchmod(&file, mode).ok().and_then(|()| facts(file.as_fd()).ok());
        let Some(changed) = changed.map(|facts| facts.changed).filter(|changed| Some(*changed) != last) else {
            return Times::Coarse;
        };
        last = Some(changed);
    }
    Times::Fine
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

/// Length in bytes of a file that is open for reading (`lseek` to its end): the cheapest of all questions.
///
/// # Errors
/// Those of `lseek`.
pub fn size(file: BorrowedFd<'_>) -> Result<u64, CallError> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::End(0)).map_err(|error| CallError::new("lseek", file, error))
}

/// The path the file was opened by, as seen now from our root: ends in ` (deleted)` if that name is gone. For messages
/// only, a path is no identity.
///
/// # Errors
/// Those of `readlink`; `ENAMETOOLONG` beyond 4 KiB.
pub fn path_of(file: BorrowedFd<'_>) -> Result<Vec<u8>, CallError> {
    // Threads apart have descriptors of their own.
    let link = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
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
