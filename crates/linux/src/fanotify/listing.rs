//! What is marked, as the kernel lists it in `/proc/self/fdinfo`: some hundred bytes for each mark.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::PathBuf;

use crate::error::CallError;

/// Devices (major, minor) of the file systems that a group has marked.
///
/// # Errors
/// If `/proc/self/fdinfo` cannot be read.
pub(crate) fn marked_devices(group: BorrowedFd<'_>) -> Result<Vec<(u32, u32)>, CallError> {
    Ok(listed(group)?.lines().filter_map(marked_device).collect())
}

/// Inodes that a group has marked; without those whose file system makes no handles.
///
/// # Errors
/// If `/proc/self/fdinfo` cannot be read.
pub(super) fn marked_inodes(group: BorrowedFd<'_>) -> Result<Vec<Marked>, CallError> {
    Ok(listed(group)?.lines().filter_map(marked_inode).collect())
}

fn listed(group: BorrowedFd<'_>) -> Result<String, CallError> {
    let path = PathBuf::from(format!("/proc/self/fdinfo/{}", group.as_raw_fd()));
    std::fs::read_to_string(&path).map_err(|error| CallError::new("read", path.as_path(), error))
}

/// The device of a line `fanotify sdev:800001 mflags:0 mask:…`; in hexadecimal, 12 bits major and 20 bits minor.
///
/// Source: Linux `fs/notify/fdinfo.c`, `fanotify_fdinfo()`; `include/linux/kdev_t.h`.
fn marked_device(line: &str) -> Option<(u32, u32)> {
    device_number(line.strip_prefix("fanotify sdev:")?.split(' ').next()?)
}

fn device_number(word: &str) -> Option<(u32, u32)> {
    let device = u32::from_str_radix(word, 16).ok()?;
    Some((device >> 20, device & 0xf_ffff))
}

/// An inode that is marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Major and minor number of the file system's device.
    pub device: (u32, u32),
    /// The kind of the handle.
    pub kind: i32,
    /// The handle's bytes.
    pub handle: Vec<u8>,
}

/// What a line says of an inode: `fanotify ino:c sdev:700001 mflags:… fhandle-bytes:8 fhandle-type:1 f_handle:0c00…`.
///
/// Source: Linux `fs/notify/fdinfo.c`, `fanotify_fdinfo()`, `show_mark_fhandle()`.
fn marked_inode(line: &str) -> Option<Marked> {
    let mut words = line.strip_prefix("fanotify ino:")?.split(' ');
    let mut value = |name: &str| words.find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let device = device_number(value("sdev")?)?;
    let kind = i32::from_str_radix(value("fhandle-type")?, 16).ok()?;
    let (pairs, []) = value("f_handle")?.as_bytes().as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    Some(Marked { device, kind, handle: pairs.iter().map(byte).collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_device_is_read_from_the_kernels_line() {
        let cases = [
            ("fanotify sdev:800001 mflags:0 mask:3b ignored_mask:0", Some((8, 1))),
            ("fanotify sdev:1b mflags:0 mask:3b ignored_mask:0", Some((0, 27))),
            ("fanotify flags:10 event-flags:0", None),
            ("fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:40000000", None),
            ("fanotify sdev: mflags:0", None),
        ];
        for (line, expected) in cases {
            assert_eq!(marked_device(line), expected, "{line}");
        }
    }

    #[test]
    fn a_marked_inode_is_read_from_the_kernels_line() {
        let found = Marked { device: (8, 19), kind: 1, handle: vec![0x69, 0xf9, 4, 0] };
        let start = "fanotify ino:4f969 sdev:800013 mflags:240 mask:0 ignored_mask:10000";
        for (rest, expected) in [
            (" fhandle-bytes:4 fhandle-type:1 f_handle:69f90400", Some(found)),
            (" fhandle-bytes:4 fhandle-type:1 f_handle:69f9040", None),
            (" fhandle-bytes:4 fhandle-type:1 f_handle:69f904zz", None),
            ("", None),
        ] {
            assert_eq!(marked_inode(&format!("{start}{rest}")), expected, "{rest}");
        }
        assert_eq!(marked_inode("fanotify sdev:1b mflags:0 mask:3b ignored_mask:0"), None);
    }
}
