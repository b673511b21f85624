//! The digest of a file's content.
//!
//! Source: Linux `security/integrity/ima/ima_crypto.c`, `ima_calc_file_hash_tfm()`.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use imara_integrity::digest::{Digest, HashAlgorithm, Hasher};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::CallError;
use crate::file::read_at;

/// Bytes read at once. Larger reads fall out of the processor's cache before they are hashed.
const CHUNK: usize = 128 << 10;

/// Hashes files through one buffer; make one a thread and use it again.
#[derive(Debug)]
pub struct FileHasher {
    buffer: Box<[u8]>,
}

impl Default for FileHasher {
    fn default() -> Self {
        Self { buffer: vec![0; CHUNK].into_boxed_slice() }
    }
}

impl FileHasher {
    /// Hashes the whole content, to the end as it is found. `progress` counts the bytes as they are hashed.
    ///
    /// A file that changes meanwhile gives the digest of something it never was: hold a read lease.
    ///
    /// # Errors
    /// Those of `pread`, for example `EIO`.
    pub fn hash(
        &mut self,
        file: BorrowedFd<'_>,
        algorithm: HashAlgorithm,
        progress: &AtomicU64,
    ) -> Result<Digest, CallError> {
        let mut hasher = Hasher::new(algorithm);
        let mut offset = 0_u64;
        loop {
            let length = read_at(file, &mut self.buffer, offset)?;
            let Some(bytes) = self.buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            offset = offset.saturating_add(length);
            progress.fetch_add(length, Ordering::Relaxed);
        }
        Ok(hasher.finish())
    }

    /// Hashes exactly the first `size` bytes, sparing the read that finds nothing at the end; `None` if there are fewer.
    ///
    /// # Errors
    /// Those of `pread`, for example `EIO`.
    pub fn hash_sized(
        &mut self,
        file: BorrowedFd<'_>,
        algorithm: HashAlgorithm,
        size: u64,
        progress: &AtomicU64,
    ) -> Result<Option<Digest>, CallError> {
        let mut hasher = Hasher::new(algorithm);
        let mut offset = 0_u64;
        while offset < size {
            let wanted = usize::try_from(size.saturating_sub(offset)).unwrap_or(CHUNK).min(CHUNK);
            let room = self.buffer.get_mut(..wanted).unwrap_or_default();
            let length = read_at(file, room, offset)?;
            let Some(bytes) = room.get(..length).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
            hasher.update(bytes);
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            offset = offset.saturating_add(length);
            progress.fetch_add(length, Ordering::Relaxed);
        }
        Ok(Some(hasher.finish()))
    }

    /// Hashes the content if all of it is in memory (`RWF_NOWAIT`); `None` if anything would have to be waited for, or
    /// if the file system cannot tell.
    pub fn hash_in_memory(&mut self, file: BorrowedFd<'_>, algorithm: HashAlgorithm) -> Option<Digest> {
        let mut hasher = Hasher::new(algorithm);
        let mut offset = 0_u64;
        loop {
            let length = self.read_now(file, offset).ok()?;
            let Some(bytes) = self.buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            offset = offset.saturating_add(u64::try_from(length).ok()?);
        }
        Some(hasher.finish())
    }

    fn read_now(&mut self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let mut parts = [io::IoSliceMut::new(&mut self.buffer)];
        loop {
            match rustix::io::preadv2(file.as_fd(), &mut parts, offset, ReadWriteFlags::NOWAIT) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}
