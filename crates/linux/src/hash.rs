//! The digest of an open file's content.
//!
//! As in the kernel, the length at the start counts: exactly that many bytes are hashed, and a file that turns out
//! shorter is an error, never a digest of less.
//!
//! Source: Linux `security/integrity/ima/ima_crypto.c`, `ima_calc_file_hash_tfm()`.

use std::io::IoSliceMut;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use imara_integrity::digest::{Digest, HashAlgorithm, Hasher};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::CallError;
use crate::file::read_at;

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
        self.pieces(file, size, algorithm, |file, room, offset| {
            let length = read_at(file, room, offset)?;
            progress.fetch_add(u64::try_from(length).unwrap_or(u64::MAX), Ordering::Relaxed);
            Ok(length)
        })
    }

    /// The same if all of it is in memory (`RWF_NOWAIT`); `None` if anything would have to be waited for, or if the
    /// file system cannot tell.
    pub fn hash_in_memory(&mut self, file: BorrowedFd<'_>, size: u64, algorithm: HashAlgorithm) -> Option<Digest> {
        self.pieces(file, size, algorithm, |file, room, offset| {
            loop {
                match rustix::io::preadv2(file, &mut [IoSliceMut::new(room)], offset, ReadWriteFlags::NOWAIT) {
                    Err(Errno::INTR) => {}
                    result => return result.map_err(|error| CallError::new("preadv2", file, error)),
                }
            }
        })
        .ok()
    }

    fn pieces(
        &mut self,
        file: BorrowedFd<'_>,
        size: u64,
        algorithm: HashAlgorithm,
        mut read: impl FnMut(BorrowedFd<'_>, &mut [u8], u64) -> Result<usize, CallError>,
    ) -> Result<Digest, HashError> {
        let (mut hasher, mut done) = (Hasher::new(algorithm), 0_u64);
        while done < size {
            let left = usize::try_from(size.saturating_sub(done)).unwrap_or(usize::MAX);
            let room = self.buffer.get_mut(..left.min(PIECE)).unwrap_or_default();
            let length = read(file.as_fd(), room, done)?;
            if length == 0 {
                return Err(HashError::Short { fd: file.as_raw_fd(), read: done, expected: size });
            }
            hasher.update(room.get(..length).unwrap_or_default());
            done = done.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
        Ok(hasher.finish())
    }
}
