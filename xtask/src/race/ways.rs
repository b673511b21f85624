//! The ways of changing a file.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, copy_file_range, fallocate, ioctl_ficlone};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

use super::mapping::Mapping;
use super::place::Kind;

/// As much as an ordinary pipe takes.
const PIPE: usize = 64 << 10;

/// A way of making a file have another content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Stores through a shared mapping, after the descriptor was closed.
    Mapped,
    /// `write(2)` from the beginning.
    Write,
    /// `pwrite(2)` of what is to be another.
    Pwrite,
    /// `ftruncate(2)`, and what is behind it written anew.
    Ftruncate,
    /// `open(2)` with `O_TRUNC`, and all written anew, in two steps.
    Rewrite,
    /// `copy_file_range(2)` from another file.
    Copy,
    /// `splice(2)` from a pipe.
    Splice,
    /// Written through a duplicate, after the original descriptor was closed.
    Dup,
    /// A hole punched, and filled if it is not to stay one.
    Punch,
    /// `FICLONE` from another file.
    Clone,
    /// `truncate(2)`, by the name; what is behind it is written through a descriptor.
    Truncate,
    /// `O_RDWR|O_APPEND`.
    Append,
    /// Another file, renamed over it. (Not a change of the file, so only where labels follow.)
    Rename,
}

impl Way {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 13] = [
        Self::Mapped,
        Self::Write,
        Self::Pwrite,
        Self::Ftruncate,
        Self::Rewrite,
        Self::Copy,
        Self::Splice,
        Self::Dup,
        Self::Punch,
        Self::Clone,
        Self::Truncate,
        Self::Append,
        Self::Rename,
    ];

    /// Its name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Mapped => "mmap",
            Self::Write => "write",
            Self::Pwrite => "pwrite",
            Self::Ftruncate => "ftruncate",
            Self::Rewrite => "O_TRUNC",
            Self::Copy => "copy_file_range",
            Self::Splice => "splice",
            Self::Dup => "dup",
            Self::Punch => "punch",
            Self::Clone => "FICLONE",
            Self::Truncate => "truncate",
            Self::Append => "O_APPEND",
            Self::Rename => "rename",
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub(super) fn number(self) -> usize {
        Self::ALL.iter().position(|way| *way == self).unwrap_or_default()
    }

    /// Whether files of this kind can be changed like that.
    pub(super) const fn is_for(self, kind: Kind) -> bool {
        !matches!(self, Self::Clone) || matches!(kind, Kind::Btrfs | Kind::Xfs)
    }
}

/// One change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) way: Way,
    pub(super) path: &'a Path,
    /// What is in the file; absent if nobody knows.
    pub(super) current: Option<&'a [u8]>,
    /// What is to be in it.
    pub(super) target: &'a [u8],
    /// A file on the same file system that nobody judges, open for both.
    pub(super) donor: &'a File,
    /// Whether the first open has `O_NONBLOCK`, which is refused (`EAGAIN`) if it would have to wait for a lease.
    pub(super) impatient: bool,
}

impl Change<'_> {
    /// Makes it, leaving nothing open or mapped. What an error leaves in the file is not known, unless
    /// [`untouched`] says that it is what was there before.
    pub(super) fn make(&self) -> io::Result<()> {
        let target = self.target;
        let Range { start, end } = self.different();
        let part = target.get(start..end).unwrap_or_default();
        let tail = target.get(start..).unwrap_or_default();
        match self.way {
            Way::Mapped => {
                let file = self.sized(OFlags::RDWR)?;
                if part.is_empty() {
                    return Ok(());
                }
                let mut mapping = Mapping::new(&file, target.len())?;
                drop(file);
                mapping.store(start, part)
            }
            Way::Write => self.sized(OFlags::WRONLY)?.write_all(target),
            Way::Pwrite => self.sized(OFlags::WRONLY)?.write_all_at(part, offset(start)),
            Way::Ftruncate => {
                let file = self.open(OFlags::RDWR)?;
                file.set_len(offset(start))?;
                if is_zero(tail) { file.set_len(offset(target.len())) } else { file.write_all_at(tail, offset(start)) }
            }
            Way::Rewrite => {
                let mut file = self.open(OFlags::WRONLY | OFlags::TRUNC)?;
                let (first, second) = target.split_at(target.len() / 2);
                file.write_all(first)?;
                file.write_all(second)
            }
            Way::Copy => {
                self.fill_donor()?;
                copy(self.donor, &self.sized(OFlags::WRONLY)?, target.len())
            }
            Way::Splice => spliced(&self.sized(OFlags::WRONLY)?, target),
            Way::Dup => {
                let original = self.sized(OFlags::WRONLY)?;
                let other = original.try_clone()?;
                drop(original);
                other.write_all_at(part, offset(start))
            }
            Way::Punch => {
                let file = self.sized(OFlags::RDWR)?;
                if part.is_empty() {
                    return Ok(());
                }
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, flags, offset(start), offset(part.len()))?;
                if is_zero(part) { Ok(()) } else { file.write_all_at(part, offset(start)) }
            }
            Way::Clone => {
                self.fill_donor()?;
                let file = self.sized(OFlags::WRONLY)?;
                Ok(ioctl_ficlone(&file, self.donor)?)
            }
            Way::Truncate => self.truncated(start, tail),
            Way::Append => {
                let mut file = self.open(OFlags::RDWR | OFlags::APPEND)?;
                if self.current.is_none_or(|current| current.len() > start) {
                    file.set_len(offset(start))?;
                }
                file.write_all(tail)
            }
            Way::Rename => {
                let new = self.path.with_extension(format!("{:?}", std::thread::current().id()));
                let mut made = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&new)?;
                made.write_all(target)?;
                drop(made);
                fs::rename(&new, self.path)
            }
        }
    }

    /// What is different in the target, as far as is known: these bytes of it and, where the lengths are different,
    /// everything behind.
    fn different(&self) -> Range<usize> {
        let Some(current) = self.current else { return 0..self.target.len() };
        let same = |(one, other): &(&u8, &u8)| one == other;
        let start = current.iter().zip(self.target).take_while(same).count();
        if current.len() != self.target.len() {
            return start..self.target.len();
        }
        let behind = current.iter().rev().zip(self.target.iter().rev()).take_while(same).count();
        start..self.target.len().saturating_sub(behind).max(start)
    }

    fn open(&self, flags: OFlags) -> io::Result<File> {
        let patience = if self.impatient { OFlags::NONBLOCK } else { OFlags::empty() };
        open(self.path, flags | patience)
    }

    /// Opened, and made as long as the target.
    fn sized(&self, flags: OFlags) -> io::Result<File> {
        let file = self.open(flags)?;
        if self.current.is_none_or(|current| current.len() != self.target.len()) {
            file.set_len(offset(self.target.len()))?;
        }
        Ok(file)
    }

    fn fill_donor(&self) -> io::Result<()> {
        self.donor.set_len(offset(self.target.len()))?;
        self.donor.write_all_at(self.target, 0)
    }

    /// Cut after `start` bytes by the name, then completed with `tail`.
    fn truncated(&self, start: usize, tail: &[u8]) -> io::Result<()> {
        let cut = |length: usize| nix::unistd::truncate(self.path, i64::try_from(length).unwrap_or_default());
        if is_zero(tail) && self.current.is_some_and(|current| current.len() <= start) {
            return Ok(cut(self.target.len())?);
        }
        cut(start)?;
        if tail.is_empty() {
            return Ok(());
        }
        open(self.path, OFlags::WRONLY)?.write_all_at(tail, offset(start))
    }
}

/// Whether a change that failed like this left the file alone: it was not even opened.
pub(super) fn untouched(way: Way, error: &io::Error) -> bool {
    let refused = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ETXTBSY | libc::EPERM | libc::EACCES));
    // This one has two steps.
    refused && way != Way::Truncate
}

/// Opens a file with exactly these flags, and `O_CLOEXEC`.
pub(super) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(File::from(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?))
}

fn copy(from: &File, to: &File, length: usize) -> io::Result<()> {
    let (mut read, mut written, mut left) = (0, 0, length);
    while left > 0 {
        let copied = copy_file_range(from, Some(&mut read), to, Some(&mut written), left)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left = left.saturating_sub(copied);
    }
    Ok(())
}

fn spliced(file: &File, bytes: &[u8]) -> io::Result<()> {
    let (out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut into = File::from(into);
    let mut place = 0;
    for chunk in bytes.chunks(PIPE) {
        into.write_all(chunk)?;
        let mut left = chunk.len();
        while left > 0 {
            let moved = splice(&out, None, file, Some(&mut place), left, SpliceFlags::empty())?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(moved);
        }
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A length or place in memory as one in a file.
pub(super) fn offset(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_way_makes_a_file_what_it_should_be() {
        let directory = std::env::temp_dir().join(format!("imara-race-ways-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("file");
        let options = || fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).to_owned();
        let donor = options().open(directory.join("donor")).unwrap();
        let (long, mut hole) = (vec![7; 200_000], vec![7; 200_000]);
        hole.iter_mut().skip(5000).take(9000).for_each(|byte| *byte = 0);
        let grown = [long.as_slice(), &[0; 100]].concat();
        let contents: [&[u8]; 7] = [b"", b"a", b"ab", b"xb", &long, &hole, &grown];
        for way in Way::ALL.into_iter().filter(|way| way.is_for(Kind::Ext4)) {
            for current in contents {
                for target in contents {
                    for known in [true, false] {
                        fs::write(&path, current).unwrap();
                        let current = known.then_some(current);
                        let change = Change { way, path: &path, current, target, donor: &donor, impatient: false };
                        change.make().unwrap();
                        let found = fs::read(&path).unwrap();
                        assert!(found == target, "{way:?} to {} bytes made {}", target.len(), found.len());
                    }
                }
            }
        }
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn only_what_is_different_is_changed() {
        let donor = File::open("/dev/null").unwrap();
        for (current, target, expected) in [
            ("abc", "abc", 3..3),
            ("abc", "abd", 2..3),
            ("abc", "xbc", 0..1),
            ("abcd", "axyd", 1..3),
            ("abc", "ab", 2..2),
            ("ab", "abc", 2..3),
            ("", "abc", 0..3),
            ("aaa", "aaba", 2..4),
        ] {
            let (current, target) = (Some(current.as_bytes()), target.as_bytes());
            let way = Way::Pwrite;
            let change = Change { way, path: Path::new(""), current, target, donor: &donor, impatient: false };
            assert_eq!(change.different(), expected, "{current:?} {target:?}");
        }
    }
}
