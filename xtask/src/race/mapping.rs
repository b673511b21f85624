//! Stores through a shared mapping: the one way of changing a file for which there is no safe call.
//!
//! The only `unsafe` code of the chores. It is here and not in a program of its own so that the stores, the `munmap` and
//! the phase that tells of them come from one thread.
#![allow(unsafe_code, reason = "a shared mapping of a file that others change has no safe form")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared, writable mapping of the beginning of a file.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes, which must not be 0. As long as the mapping is used, nobody may make the file shorter: that
    /// would kill us with `SIGBUS`.
    pub(super) fn new(file: &File, length: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { mmap(ptr::null_mut(), length, access, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start, length })
    }

    /// Stores `bytes` from `place` on.
    pub(super) fn store(&mut self, place: usize, bytes: &[u8]) -> io::Result<()> {
        let Range { end, .. } = place..place.saturating_add(bytes.len());
        if end > self.length {
            return Err(io::Error::other(format!("store up to byte {end} of a mapping of {} bytes", self.length)));
        }
        let start: *mut u8 = self.start.cast();
        // SAFETY: the bytes are inside the mapping, which lives as long as `self`; it is never seen as a reference, and
        // `bytes` is memory of ours that no mapping of a file has.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.add(place), bytes.len()) };
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made; nobody has a reference into it.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
