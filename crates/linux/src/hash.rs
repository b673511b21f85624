//! The digest of an open file's contents.
//!
//! As in the kernel, the length at the start counts: exactly that many bytes are hashed, and a file that turns out
//! shorter is an error, never a digest of less.
//!
//! Source: Linux `security/integrity/ima/ima_crypto.c`, `ima_calc_file_hash_tfm()`.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use imara_integrity::digest::{Digest, HashAlgorithm, Hasher};

use crate::error::CallError;
use crate::file::{facts, read_at};

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

/// What hashing a file gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// The digest.
    pub digest: Digest,
    /// Bytes that it is made of: the length of the file at the start.
    pub bytes: u64,
}

/// Memory for reading files, 128 KiB; make one a thread and use it again.
#[derive(Debug)]
pub struct HashBuffer(Box<[u8]>);

impl Default for HashBuffer {
    fn default() -> Self {
        Self(vec![0; PIECE].into_boxed_slice())
    }
}

/// Hashes the contents of `file`, which is open for reading.
///
/// After every piece the number of its bytes is added to `progress`, so that somebody else can see whether it goes on.
///
/// # Errors
/// [`HashError::Short`] if the file became shorter meanwhile, or the call that was refused.
pub fn hash_file(
    file: BorrowedFd<'_>,
    algorithm: HashAlgorithm,
    buffer: &mut HashBuffer,
    progress: &AtomicU64,
) -> Result<Hashed, HashError> {
    let expected = facts(file)?.size;
    let (mut hasher, mut read) = (Hasher::new(algorithm), 0);
    while read < expected {
        let left = usize::try_from(expected.saturating_sub(read)).unwrap_or(usize::MAX);
        let room = buffer.0.get_mut(..left.min(PIECE)).unwrap_or_default();
        let length = read_at(file, room, read)?;
        if length == 0 {
            return Err(HashError::Short { fd: file.as_raw_fd(), read, expected });
        }
        hasher.update(room.get(..length).unwrap_or_default());
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        read = read.saturating_add(length);
        progress.fetch_add(length, Ordering::Relaxed);
    }
    Ok(Hashed { digest: hasher.finish(), bytes: read })
}
