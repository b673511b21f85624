//! An open file, and the digest of a content that it really has.
//!
//! While we hold a read lease nobody writes. Where none can be had, the file is looked at before and after; if it moved,
//! it is hashed again.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant, SystemTime};

use imara_integrity::appraise::LabelRead;
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_linux::dir;
use imara_linux::file::{self, FileFacts};
use imara_linux::hash::{FileHasher, HashError};
use imara_linux::lease::{self, LeaseSignal, LeaseSignals, Taken};
use imara_linux::xattr;

use crate::walk::Entry;

/// How often it is tried to hash a file without a lease that changes meanwhile.
const TRIES: u8 = 3;

/// File systems tell times of changes no finer than the kernel's clock tick (at most 10 ms): two changes may bear the
/// same time. So a file is read without a lease only when its last change is longer ago than this.
const TICK: Duration = Duration::from_millis(20);

/// Why there is no digest.
#[derive(Debug)]
pub(crate) enum ContentError {
    /// The kernel refused.
    Call(io::Error),
    /// It was another content each time.
    Changing {
        /// How often it was read.
        reads: u8,
    },
}

/// How writers are kept away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// A read lease since then.
    Lease(Instant),
    /// Somebody has it open for writing.
    Writer,
    /// The file system has no leases, or we may not take one.
    None,
}

/// Takes leases; blocks the signals that come with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leases {
    /// How long a writer waits for us at least.
    patience: Duration,
}

impl Leases {
    /// Call before any other thread is started: they inherit the blocked signals.
    pub(crate) fn new() -> anyhow::Result<Self> {
        if let Some(signal) = LeaseSignal::realtime(3) {
            drop(LeaseSignals::open(signal)?);
        }
        Ok(Self { patience: lease::break_time().unwrap_or_default() })
    }

    /// Opens a file that was found.
    pub(crate) fn open(self, entry: Entry<'_>) -> io::Result<Opened> {
        let file = dir::open_file(entry.directory.file(), entry.name).map_err(|error| error.error)?;
        self.take(file)
    }

    /// Opens a file by its path.
    pub(crate) fn open_path(self, path: &Path) -> io::Result<Opened> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let here = dir::working_directory().map_err(|error| error.error)?;
        let file = dir::open_file(here.as_fd(), &name).map_err(|error| error.error)?;
        self.take(file)
    }

    fn take(self, file: OwnedFd) -> io::Result<Opened> {
        // Before the facts: from here on they are true.
        let hold = match lease::take_briefly(file.as_fd()) {
            Ok(Taken::Held) => Hold::Lease(Instant::now()),
            Ok(Taken::Writer) => Hold::Writer,
            Err(_) => Hold::None,
        };
        let facts = file::facts(file.as_fd()).map_err(|error| error.error)?;
        Ok(Opened { file, facts, hold, patience: self.patience })
    }
}

/// An open file and its facts.
#[derive(Debug)]
pub(crate) struct Opened {
    file: OwnedFd,
    pub(crate) facts: FileFacts,
    hold: Hold,
    patience: Duration,
}

impl Opened {
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The value of `security.ima`, read into `buffer`.
    pub(crate) fn label<'b>(&self, buffer: &'b mut Vec<u8>) -> LabelRead<'b> {
        xattr::read_label(self.file(), xattr::IMA, buffer)
    }

    /// The digest of the content. When this returns, the file has, or has just had, exactly that content.
    pub(crate) fn digest(
        &mut self,
        hasher: &mut FileHasher,
        algorithm: HashAlgorithm,
        progress: &AtomicU64,
    ) -> Result<Digest, ContentError> {
        let mut reads = 0;
        if let Hold::Lease(since) = self.hold {
            reads += 1;
            let digest = whole(hasher.hash(self.file.as_fd(), self.facts.size, algorithm, progress))?;
            // A writer who came meanwhile still waits, unless we were so slow that the kernel let him in.
            let kept = since.elapsed() < self.patience || lease::still_held(self.file.as_fd()).unwrap_or(false);
            match digest {
                Some(digest) if kept => return Ok(digest),
                _ => {
                    let _ = lease::release(self.file.as_fd());
                    self.hold = Hold::Writer;
                }
            }
        }
        for _ in 0..TRIES {
            reads += if self.hold == Hold::Writer { 2 } else { 1 };
            if let Some(digest) = self.digest_watched(hasher, algorithm, progress)? {
                return Ok(digest);
            }
        }
        Err(ContentError::Changing { reads })
    }

    /// Hashes without a lease; nothing if the file moved meanwhile.
    fn digest_watched(
        &mut self,
        hasher: &mut FileHasher,
        algorithm: HashAlgorithm,
        progress: &AtomicU64,
    ) -> Result<Option<Digest>, ContentError> {
        wait_for_tick(self.facts.changed);
        let mut once = || whole(hasher.hash(self.file.as_fd(), self.facts.size, algorithm, progress));
        let first = once()?;
        // Stores through a mapping change no time; but what is torn once is hardly torn the same way twice.
        let second = if self.hold == Hold::Writer { once()? } else { first };
        let after = file::facts(self.file.as_fd()).map_err(|error| ContentError::Call(error.error))?;
        let same = first == second && (after.changed, after.size) == (self.facts.changed, self.facts.size);
        self.facts = after;
        Ok(first.filter(|_| same))
    }
}

/// The digest; nothing of a file that became shorter meanwhile.
fn whole(hashed: Result<Digest, HashError>) -> Result<Option<Digest>, ContentError> {
    match hashed {
        Ok(digest) => Ok(Some(digest)),
        Err(HashError::Call(error)) => Err(ContentError::Call(error.error)),
        Err(_) => Ok(None),
    }
}

/// Waits until the clock has certainly moved on from `changed`.
fn wait_for_tick(changed: file::Time) {
    let seconds = Duration::from_secs(u64::try_from(changed.seconds).unwrap_or(0));
    let changed = SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(u64::from(changed.nanoseconds));
    // An error: the change lies in the future, and waiting for it could take for ever.
    let age = SystemTime::now().duration_since(changed).unwrap_or_default();
    std::thread::sleep(TICK.saturating_sub(age));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write as _;

    /// A file with this content, that nobody else has; gone when dropped.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str, content: &[u8]) -> Self {
            let path = std::env::temp_dir().join(format!("imara-content-{name}-{}", std::process::id()));
            std::fs::write(&path, content).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            drop(std::fs::remove_file(&self.0));
        }
    }

    fn digest(opened: &mut Opened) -> (Digest, u64) {
        let read = AtomicU64::new(0);
        let digest = opened.digest(&mut FileHasher::default(), HashAlgorithm::Sha256, &read).unwrap();
        (digest, read.into_inner())
    }

    fn of(content: &[u8]) -> Digest {
        Digest::of(HashAlgorithm::Sha256, content)
    }

    #[test]
    fn a_file_at_rest_is_leased_and_read_once() {
        let scratch = Scratch::new("rest", &[7; 200_000]);
        let mut opened = Leases::new().unwrap().open_path(&scratch.0).unwrap();
        assert!(matches!(opened.hold, Hold::Lease(_)), "{opened:?}");
        assert_eq!(digest(&mut opened), (of(&[7; 200_000]), 200_000));
    }

    #[test]
    fn a_file_that_somebody_writes_is_read_twice() {
        let scratch = Scratch::new("writer", b"12345");
        let writer = OpenOptions::new().write(true).open(&scratch.0).unwrap();
        let mut opened = Leases::new().unwrap().open_path(&scratch.0).unwrap();
        assert_eq!(opened.hold, Hold::Writer);
        assert_eq!(digest(&mut opened), (of(b"12345"), 10));
        drop(writer);
    }

    #[test]
    fn a_file_that_moved_since_it_was_looked_at_is_read_again() {
        for (before, after) in [(&b"123"[..], &b"12345"[..]), (b"12345", b"1"), (b"", b"x"), (b"x", b"")] {
            let scratch = Scratch::new("moved", before);
            let mut writer = OpenOptions::new().write(true).open(&scratch.0).unwrap();
            let mut opened = Leases::new().unwrap().open_path(&scratch.0).unwrap();
            writer.set_len(0).unwrap();
            writer.write_all(after).unwrap();
            assert_eq!(digest(&mut opened).0, of(after), "{before:?}");
            assert_eq!(opened.facts.size, u64::try_from(after.len()).unwrap());
        }
    }
}
