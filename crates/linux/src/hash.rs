//! The digest of an open file's content.
//!
//! As in the kernel, the length at the start counts: exactly that many bytes are hashed, and a file that turns out
//! shorter is an error, never a digest of less.
//!
//! Source: Linux `security/integrity/ima/ima_crypto.c`, `ima_calc_file_hash_tfm()`.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use imara_integrity::digest::{Digest, HashAlgorithm, Hasher};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::CallError;
use crate::file::read_at;
use crate::sys;

/// Bytes read at once: enough to make the calls cheap, and still inside the second-level cache.
const PIECE: usize = 128 << 10;

/// A file could not be hashed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// A call was refused, for example `EIO` while reading.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The file ended before the length it had at the start (the kernel says `EINVAL`).
    #[error("descriptor {fd} ended after {read} bytes, expected {expected}")]
    Short {
        /// The file.
        fd: RawFd,
        /// Bytes hashed.
        read: u64,
        /// Length at the start.
        expected: u64,
    },
}

/// Hashes files through one buffer of 128 KiB; make one a thread and use it again.
#[derive(Debug)]
pub struct FileHasher {
    buffer: Box<[u8]>,
}

impl Default for FileHasher {
    fn default() -> Self {
        Self { buffer: vec![0; PIECE].into_boxed_slice() }
    }
}

impl FileHasher {
    /// Hashes the first `size` bytes, the length of the file, which is open for reading.
    ///
    /// After every piece the number of its bytes is added to `progress`, so that somebody else can see whether it goes
    /// on. A file that changes meanwhile gives the digest of something it never was: hold a read lease.
    ///
    /// # Errors
    /// [`HashError::Short`] if the file became shorter meanwhile, or the call that was refused.
    pub fn hash(
        &mut self,
        file: BorrowedFd<'_>,
        size: u64,
        algorithm: HashAlgorithm,
        progress: &AtomicU64,
    ) -> Result<Digest, HashError> {
        let (mut hasher, mut done) = (Hasher::new(algorithm), 0_u64);
        while done < size {
            let left = usize::try_from(size.saturating_sub(done)).unwrap_or(usize::MAX);
            let room = self.buffer.get_mut(..left.min(PIECE)).unwrap_or_default();
            let length = read_at(file, room, done)?;
            if length == 0 {
                return Err(HashError::Short { fd: file.as_raw_fd(), read: done, expected: size });
            }
            hasher.update(room.get(..length).unwrap_or_default());
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            progress.fetch_add(length, Ordering::Relaxed);
            done = done.saturating_add(length);
        }
        Ok(hasher.finish())
    }

    /// Reads the first `size` bytes if all of them are in memory. `None` if anything would have to be waited for, if the
    /// file system cannot tell, if the file ended before, or if it is larger than the buffer.
    ///
    /// `RWF_NOWAIT` alone would not do: it waits for nothing, but it starts to read what is not there, and that may have
    /// to look up where it is. Before Linux 6.5, which brought `cachestat(2)`, it has to do all the same.
    ///
    /// Source: Linux `mm/filemap.c`, `filemap_get_pages()`.
    pub fn load(&mut self, file: BorrowedFd<'_>, size: u64) -> Option<Loaded<'_>> {
        let pages = size.div_ceil(u64::try_from(rustix::param::page_size()).ok()?);
        if size > 0 && sys::cached_pages(file, size).is_ok_and(|cached| cached < pages) {
            return None;
        }
        let size = usize::try_from(size).ok()?;
        let buffer = self.buffer.get_mut(..size)?;
        let mut done = 0_usize;
        while let Some(room) = buffer.get_mut(done..).filter(|room| !room.is_empty()) {
            let offset = u64::try_from(done).ok()?;
            match rustix::io::preadv2(file, &mut [IoSliceMut::new(room)], offset, ReadWriteFlags::NOWAIT) {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return None,
                Ok(length) => done = done.saturating_add(length),
            }
        }
        Some(Loaded(buffer))
    }
}

/// The content of a small file, in memory.
#[derive(Debug)]
pub struct Loaded<'b>(&'b [u8]);

impl Loaded<'_> {
    /// Its digest.
    #[must_use]
    pub fn hash(&self, algorithm: HashAlgorithm) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(self.0);
        hasher.finish()
    }
}
