//! Which file systems are mounted where.
//!
//! Source: `proc_pid_mountinfo(5)`; Linux `fs/proc_namespace.c`, `include/uapi/linux/fs.h` (`FS_IOC_GETFSUUID`).

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use imara_integrity::event::FileSystem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use crate::error::CallError;
use crate::{file, sys};

/// The list of mounts of this process.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The list of mounts does not show a mount, for example because it is outside our root directory.
    #[error("{} has no mount {id:?}", MOUNTINFO)]
    Unlisted {
        /// Number of the mount; absent if the kernel did not say it.
        id: Option<u64>,
    },
    /// A line is not what the kernel's documentation says.
    #[error("{} line {line}: expected 'id parent major:minor root point options … - type source options'", MOUNTINFO)]
    Line {
        /// Line number, from 1.
        line: usize,
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount, as in [`file::FileFacts::mount_id`].
    pub id: u64,
    /// Number of the mount that it is on.
    pub parent: u64,
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// The directory of the file system that is its root.
    pub root: PathBuf,
    /// Where it is mounted, from our root directory.
    pub point: PathBuf,
    /// Type of the file system, e.g. `ext4`, `fuse`; without the subtype.
    pub name: String,
    /// Subtype, e.g. `sshfs`.
    pub subtype: Option<String>,
    /// What is mounted, in the file system's own words; a device, if it has one.
    pub source: OsString,
    /// Options of the superblock.
    pub super_options: OsString,
    /// Whether the mount or the file system is read-only.
    pub read_only: bool,
    /// Whether files seem to belong to others through this mount than they do.
    pub id_mapped: bool,
}

/// All mounts of this process's mount namespace below its root directory.
///
/// # Errors
/// If the list cannot be read or understood.
pub fn mounts() -> Result<Vec<Mount>, MountError> {
    let path = Path::new(MOUNTINFO);
    let text = fs::read(path).map_err(|error| CallError::new("read", path, error))?;
    parse(&text)
}

/// The mount that `path` itself is on (a symbolic link is not followed).
///
/// # Errors
/// If the path cannot be reached or its mount is not in the list.
pub fn mount_of(path: &Path) -> Result<Mount, MountError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| CallError::new("open", path, error))?;
    mount_of_file(fd.as_fd())
}

/// The mount that a file was opened through.
///
/// # Errors
/// If its mount is not in the list.
pub fn mount_of_file(file: BorrowedFd<'_>) -> Result<Mount, MountError> {
    let id = file::facts(file)?.mount_id;
    mounts()?.into_iter().find(|mount| Some(mount.id) == id).ok_or(MountError::Unlisted { id })
}

/// How many inodes the file system has in use, if `path` is where a whole one is mounted and it keeps count.
///
/// # Errors
/// If the path cannot be reached, its mount is not in the list, or `statvfs` is refused.
pub fn inodes_in_use(path: &Path) -> Result<Option<u64>, MountError> {
    let mount = mount_of(path)?;
    let is_root = mount.root == Path::new("/") && path.canonicalize().is_ok_and(|path| path == mount.point);
    let counts = rustix::fs::statvfs(path).map_err(|error| CallError::new("statvfs", path, error))?;
    Ok((is_root && counts.f_files > 0).then(|| counts.f_files.saturating_sub(counts.f_ffree)))
}

/// What the policy wants to know of the file system that a file is on.
///
/// Reads the list of mounts: call it once a mount, not once a file.
///
/// # Errors
/// If `fstatfs` is refused or the mount is not in the list.
pub fn filesystem_of(file: BorrowedFd<'_>) -> Result<FileSystem, MountError> {
    let mount = mount_of_file(file)?;
    let facts = rustix::fs::fstatfs(file).map_err(|error| CallError::new("fstatfs", file, error))?;
    // The type of the field differs between architectures; magic numbers have 32 bits.
    let magic = u64::try_from(i128::from(facts.f_type) & 0xffff_ffff).unwrap_or(0);
    Ok(FileSystem { magic, uuid: uuid_of(file, magic, &mount.source), name: mount.name, subtype: mount.subtype })
}

/// A descriptor of the top-level directory of the btrfs file system on the block device `source`, which is mounted already.
///
/// The mount behind it is detached: it has no place in the tree of mounts and goes when the descriptor is closed.
/// Until then the file system counts as in use, even if it is unmounted everywhere else.
///
/// # Errors
/// `ENOSYS` before Linux 5.2, `EPERM` without `CAP_SYS_ADMIN`, `EBUSY` or `EINVAL` if btrfs refuses.
pub fn btrfs_top(source: &OsStr) -> Result<OwnedFd, CallError> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    let refused = |call| move |error| CallError::new(call, Path::new(source), error);
    let context = fsopen(c"btrfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused("fsopen"))?;
    for (key, value) in [(c"source", source), (c"subvolid", OsStr::new("5"))] {
        fsconfig_set_string(context.as_fd(), key, value).map_err(refused("fsconfig"))?;
    }
    fsconfig_create(context.as_fd()).map_err(refused("fsconfig(FSCONFIG_CMD_CREATE)"))?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(refused("fsmount"))?;
    // fsmount gives an O_PATH descriptor, which fanotify_mark(2) does not take.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(mount, c".", flags, Mode::empty()).map_err(refused("openat"))
}

/// `BTRFS_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const BTRFS_MAGIC: u64 = 0x9123_683e;

/// The superblock's UUID; from the kernel (Linux 6.9, but never for btrfs, which has a call of its own), else from udev's links;
/// zeros if nobody knows it.
fn uuid_of(file: BorrowedFd<'_>, magic: u64, source: &OsStr) -> [u8; 16] {
    if let Ok((16, uuid)) = sys::filesystem_uuid(file) {
        return uuid;
    }
    // Asked of btrfs alone: the same number may be another call elsewhere.
    if magic == BTRFS_MAGIC
        && let Ok(uuid) = sys::btrfs_uuid(file)
    {
        return uuid;
    }
    uuid_by_link(Path::new("/dev/disk/by-uuid"), Path::new(source)).unwrap_or_default()
}

/// The link in `directory` that leads to the same block device as `source`.
fn uuid_by_link(directory: &Path, source: &Path) -> Option<[u8; 16]> {
    let device = |path: &Path| fs::metadata(path).ok().filter(|facts| facts.file_type().is_block_device());
    let wanted = device(source)?.rdev();
    let mut links = fs::read_dir(directory).ok()?.flatten();
    links.find_map(|link| {
        let uuid = parse_uuid(link.file_name().as_bytes())?;
        (device(&link.path())?.rdev() == wanted).then_some(uuid)
    })
}

/// 32 hexadecimal digits, with or without dashes.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.iter().filter(|byte| **byte != b'-').copied().collect();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let mut uuid = [0; 16];
    if pairs.len() != uuid.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

/// Tells when the list of mounts has changed.
#[derive(Debug)]
pub struct MountWatch {
    file: File,
}

impl MountWatch {
    /// Begins to watch. Wait on its descriptor with [`crate::epoll::Interest::Changed`] (`EPOLLPRI`); asking the
    /// kernel whether it is ready is what makes it unready.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open() -> Result<Self, CallError> {
        let path = Path::new(MOUNTINFO);
        let file = File::open(path).map_err(|error| CallError::new("open", path, error))?;
        Ok(Self { file })
    }

    /// Whether the list has changed since this was asked, or waited for, the last time.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::PRI)];
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        // In doubt it has.
        ready.is_err() || fds.iter().any(|fd| fd.revents().intersects(PollFlags::PRI | PollFlags::ERR))
    }

    /// The list as it is now.
    ///
    /// # Errors
    /// If the list cannot be read or understood.
    pub fn mounts(&mut self) -> Result<Vec<Mount>, MountError> {
        let refused = |error: io::Error| CallError::new("read", Path::new(MOUNTINFO), error);
        let mut text = Vec::new();
        self.file.rewind().map_err(refused)?;
        self.file.read_to_end(&mut text).map_err(refused)?;
        parse(&text)
    }
}

impl AsFd for MountWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<MountWatch> for OwnedFd {
    fn from(watch: MountWatch) -> Self {
        watch.file.into()
    }
}

fn parse(text: &[u8]) -> Result<Vec<Mount>, MountError> {
    let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(index, line)| parse_line(line).ok_or(MountError::Line { line: index.saturating_add(1) })).collect()
}

/// `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`; the fields before the dash vary in number.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let (id, parent) = (number(words.next()?)?, number(words.next()?)?);
    let device = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
    let (root, point, options) = (unescape(words.next()?), unescape(words.next()?), words.next()?);
    words.find(|word| *word == b"-")?;
    let kind = String::from_utf8_lossy(&unescape(words.next()?)).into_owned();
    let (source, super_options) = (unescape(words.next()?), unescape(words.next()?));
    let (name, subtype) = kind.split_once('.').map_or((kind.as_str(), None), |(name, sub)| (name, Some(sub)));
    let has = |options: &[u8], wanted: &[u8]| options.split(|byte| *byte == b',').any(|option| option == wanted);
    Some(Mount {
        id,
        parent,
        device: (device.0.parse().ok()?, device.1.parse().ok()?),
        root: OsString::from_vec(root).into(),
        point: OsString::from_vec(point).into(),
        name: name.to_owned(),
        subtype: subtype.map(str::to_owned),
        source: OsString::from_vec(source),
        read_only: has(options, b"ro") || has(&super_options, b"ro"),
        id_mapped: has(options, b"idmapped"),
        super_options: OsString::from_vec(super_options),
    })
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo` for space, tab, line feed, backslash and `#`; anything else stays as it is.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            plain.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_whatever_stands_between_options_and_dash() {
        for optional in ["", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "] {
            let line = format!(
                "36 35 98:1 /a\\040b /mnt/x\\011y\\134z\\012 rw,noatime {optional}- fuse.ssh.fs host:/d\\040e ro,a=b\n"
            );
            let expected = Mount {
                id: 36,
                parent: 35,
                device: (98, 1),
                root: "/a b".into(),
                point: "/mnt/x\ty\\z\n".into(),
                name: "fuse".into(),
                subtype: Some("ssh.fs".into()),
                source: "host:/d e".into(),
                super_options: "ro,a=b".into(),
                read_only: true,
                id_mapped: false,
            };
            assert_eq!(parse(line.as_bytes()).unwrap(), [expected], "{line}");
        }
    }

    #[test]
    fn only_the_option_ro_makes_a_mount_read_only() {
        for (options, superblock, expected) in
            [("rw", "rw", false), ("ro", "rw", true), ("rw", "ro", true), ("rw,x=ro", "rw,errors=remount-ro", false)]
        {
            let line = format!("1 2 3:4 / / {options} - ext4 /dev/sda {superblock}");
            assert_eq!(parse(line.as_bytes()).unwrap()[0].read_only, expected, "{line}");
        }
    }

    #[test]
    fn a_mount_that_maps_ids_says_so() {
        for (options, expected) in [("rw,relatime", false), ("rw,relatime,idmapped", true)] {
            let line = format!("1 2 3:4 / / {options} - ext4 /dev/sda rw");
            assert_eq!(parse(line.as_bytes()).unwrap()[0].id_mapped, expected, "{line}");
        }
    }

    #[test]
    fn a_broken_line_is_named_by_its_number() {
        let good = "1 2 3:4 / / rw - ext4 none rw";
        for broken in [
            "x 2 3:4 / / rw - ext4 none rw",
            "1 2 34 / / rw - ext4 none rw",
            "1 2 3:4 / / rw",
            "1 2 3:4 / / rw - ext4 none",
        ] {
            let error = parse(format!("{good}\n{broken}\n").as_bytes()).unwrap_err();
            assert!(matches!(error, MountError::Line { line: 2 }), "{broken}: {error}");
        }
    }

    #[test]
    fn only_three_octal_digits_behind_a_backslash_are_an_escape() {
        for (word, expected) in
            [(r"a\040b", "a b"), (r"\\040", r"\ "), (r"\04", r"\04"), (r"\400", r"\400"), (r"\", r"\")]
        {
            assert_eq!(unescape(word.as_bytes()), expected.as_bytes(), "{word}");
        }
    }

    #[test]
    fn a_uuid_has_thirty_two_hexadecimal_digits() {
        let expected = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 0, 0, 0, 0, 0, 0, 0xff];
        assert_eq!(parse_uuid(b"01234567-89ab-cdef-0000-0000000000ff"), Some(expected));
        for other in ["1234-ABCD", "", "01234567-89ab-cdef-0000-0000000000f", "0123456789abcdef00000000000000+f"] {
            assert_eq!(parse_uuid(other.as_bytes()), None, "{other}");
        }
    }
}
