//! What tests do with files: label them, use them, change them in every way there is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_linux::testing::install_bytes;
use imara_linux::xattr::{self, Found};
use rustix::mm::{MapFlags, ProtFlags};

use crate::daemon::eventually;

/// What `EPERM`, the answer of a guard, looks like.
pub(crate) const REFUSED: Option<i32> = Some(1);

/// The label that says that a file has this content.
pub(crate) fn label_of(content: &[u8]) -> Vec<u8> {
    [&[4, 4], Digest::of(HashAlgorithm::Sha256, content).as_bytes()].concat()
}

/// Writes a file's label; goes through an open, so only for files that are good or not guarded.
pub(crate) fn set_label(path: &Path, label: &[u8]) {
    rustix::fs::setxattr(path, xattr::IMA, label, rustix::fs::XattrFlags::empty()).unwrap();
}

pub(crate) fn strip_label(path: &Path) {
    rustix::fs::removexattr(path, xattr::IMA).unwrap();
}

/// Reads a file's label without opening the file.
pub(crate) fn read_label(path: &Path) -> Option<Vec<u8>> {
    let mut buffer = vec![0; xattr::MAX_VALUE];
    match rustix::fs::getxattr(path, xattr::IMA, &mut *buffer) {
        Ok(length) => Some(buffer[..length].to_vec()),
        Err(rustix::io::Errno::NODATA) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// Makes a labelled file.
pub(crate) fn make(path: &Path, content: &[u8]) {
    let mut file = File::create(path).unwrap();
    file.write_all(content).unwrap();
    xattr::write(file.as_fd(), xattr::IMA, &label_of(content)).unwrap();
    assert_eq!(xattr::read(file.as_fd(), xattr::IMA, &mut [0; 64]).unwrap(), Found::Value(34));
}

/// Makes a labelled file that can be executed.
pub(crate) fn make_executable(path: &Path, content: &[u8]) {
    install_bytes(content, path).unwrap();
    set_label(path, &label_of(content));
}

/// A program that does nothing, successfully.
pub(crate) fn program() -> Vec<u8> {
    fs::read("/bin/true").unwrap()
}

/// A script that does nothing, successfully, whatever its last byte is.
pub(crate) const SCRIPT: &[u8] = b"#!/bin/sh\nexit 0\n# and a comment\n";

/// Opens a file and reads it to its end.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Executes a file; an error if that did not begin, or did not end well.
///
/// What a test of this process has written itself is busy (`ETXTBSY`) for a moment: other tests fork while the file is
/// open for writing, and their children have it open too until they execute something. Other programs' files are not:
/// see [`install_bytes`].
pub(crate) fn execute(path: &Path) -> io::Result<()> {
    let busy = |result: &io::Result<_>| {
        result.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::ExecutableFileBusy)
    };
    let ended = eventually(|| Some(Command::new(path).status()).filter(|result| !busy(result)));
    let status = ended.unwrap_or_else(|| Err(io::ErrorKind::ExecutableFileBusy.into()))?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

/// Whether the label is that of the content. Opens the file, so this is a guarded open where there is a guard.
pub(crate) fn label_is_right(path: &Path) -> bool {
    let content = read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    match read_label(path).as_deref() {
        Some([4, id, digest @ ..]) => {
            HashAlgorithm::from_id(*id).is_some_and(|algorithm| Digest::of(algorithm, &content).as_bytes() == digest)
        }
        // The form of old kernels, in which `fix` repairs what was labelled in it.
        Some([1, digest @ ..]) => Digest::of(HashAlgorithm::Sha1, &content).as_bytes() == digest,
        _ => false,
    }
}

/// Waits until the label is that of the content, without opening the file while its label may be late.
pub(crate) fn label_becomes(path: &Path, content: &[u8]) {
    let expected = label_of(content);
    let right = eventually(|| (read_label(path).as_deref() == Some(&expected)).then_some(()));
    assert!(right.is_some(), "{}: label {:02x?}, expected {expected:02x?}", path.display(), read_label(path));
}

/// Opens for reading and writing, without creating or truncating.
pub(crate) fn open_to_change(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Changes the last byte by write(2), keeping the size.
pub(crate) fn change_last_byte(path: &Path) -> io::Result<()> {
    let mut file = open_to_change(path)?;
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    file.seek(SeekFrom::End(-1))?;
    file.write_all(&[last[0] ^ 1])
}

/// A shared, writable mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: *mut std::ffi::c_void,
    length: usize,
}

#[allow(unsafe_code, reason = "stores through a mapping are what is tested; there is no safe call for them")]
impl Mapping {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        Ok(Self { start, length })
    }

    /// Stores bytes at the beginning of the file.
    pub(crate) fn store(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.length);
        let start: *mut u8 = self.start.cast();
        for (place, byte) in bytes.iter().enumerate() {
            // SAFETY: the byte is inside the mapping, which lives as long as `self` and is not seen as a reference.
            unsafe { start.add(place).write_volatile(*byte) };
        }
    }

    /// Changes the last byte of the file.
    pub(crate) fn change_last_byte(&mut self) {
        let bytes: *mut u8 = self.start.cast();
        // SAFETY: the byte is inside the mapping, which lives as long as `self` and is not seen as a reference.
        unsafe {
            let last = bytes.add(self.length - 1);
            last.write_volatile(last.read_volatile() ^ 1);
        }
    }
}

#[allow(unsafe_code, reason = "see above")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made; nobody has a reference into it.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}

/// Opens a file for reading and maps a page of it so that it could be executed.
#[allow(unsafe_code, reason = "see above")]
pub(crate) fn map_executable(path: &Path) -> io::Result<()> {
    let (file, length) = (File::open(path)?, 4096);
    let (protection, flags) = (ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists, and nobody looks into it.
    unsafe {
        let start = rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, &file, 0)?;
        Ok(rustix::mm::munmap(start, length)?)
    }
}

/// Changes the last byte through a mapping, after the descriptor was closed.
pub(crate) fn change_last_byte_mapped(path: &Path) -> io::Result<()> {
    let file = open_to_change(path)?;
    let mut mapping = Mapping::new(&file)?;
    drop(file);
    mapping.change_last_byte();
    Ok(())
}

/// Appends by write(2).
pub(crate) fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(bytes)
}

/// A good and a bad file.
pub(crate) fn good_and_bad(directory: &Path) -> (PathBuf, PathBuf) {
    let (good, bad) = (directory.join("good"), directory.join("bad"));
    make(&good, b"content");
    make(&bad, b"content");
    change_last_byte(&bad).unwrap();
    (good, bad)
}

/// 0, or the number of the error.
pub(crate) fn error_of<T>(result: io::Result<T>) -> Option<i32> {
    result.map(drop).map_or_else(|error| error.raw_os_error(), |()| Some(0))
}
