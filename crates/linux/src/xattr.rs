//! The two labels of a file: `security.ima` and `security.evm`.
//!
//! Source: `xattr(7)`; Linux `include/uapi/linux/xattr.h`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use imara_integrity::appraise::LabelRead;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::io::Errno;

/// `security.ima`.
pub const IMA: &CStr = c"security.ima";

/// `security.evm`.
pub const EVM: &CStr = c"security.evm";

/// The longest value that the kernel admits, `XATTR_SIZE_MAX`.
pub const MAX_VALUE: usize = 65536;

/// What reading a label gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Found {
    /// `ENODATA`: the file has none.
    Absent,
    /// `EOPNOTSUPP`: the file system has no such attributes.
    Unsupported,
    /// The value is in the first this-many bytes of the buffer.
    Value(usize),
}

/// A label could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XattrReadError {
    /// `ERANGE`: the value is longer than the buffer.
    #[error("fgetxattr {name:?} on descriptor {fd}: longer than the {room} bytes expected")]
    TooLong {
        /// Name of the attribute.
        name: &'static CStr,
        /// The file.
        fd: RawFd,
        /// Length of the buffer.
        room: usize,
    },
    /// The kernel refused otherwise, for example `EIO`.
    #[error("fgetxattr {name:?} on descriptor {fd}: {error}")]
    Call {
        /// Name of the attribute.
        name: &'static CStr,
        /// The file.
        fd: RawFd,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Why a label could not be written or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `ENOSPC` or `EDQUOT`: no room.
    NoSpace,
    /// `EROFS`: mounted read-only.
    ReadOnly,
    /// `EPERM` or `EACCES`: immutable file, missing capability, or a security module.
    NotPermitted,
    /// `EOPNOTSUPP`: the file system has no such attributes.
    Unsupported,
    /// `ENODATA`: there is nothing to remove.
    Absent,
    /// Anything else.
    Other,
}

/// A label could not be written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{call} {name:?} on descriptor {fd}: {error}")]
#[non_exhaustive]
pub struct XattrWriteError {
    /// `fsetxattr` or `fremovexattr`.
    pub call: &'static str,
    /// Name of the attribute.
    pub name: &'static CStr,
    /// The file.
    pub fd: RawFd,
    /// What kind of refusal.
    pub refusal: Refusal,
    /// The kernel's answer.
    pub error: io::Error,
}

/// Reads the attribute `name` into `buffer`.
///
/// # Errors
/// [`XattrReadError`]; an absent attribute is none.
pub fn read(file: BorrowedFd<'_>, name: &'static CStr, buffer: &mut [u8]) -> Result<Found, XattrReadError> {
    let (fd, room) = (file.as_raw_fd(), buffer.len());
    if room == 0 {
        // An empty buffer asks the kernel for the length alone, which would look like a value.
        return Err(XattrReadError::TooLong { name, fd, room });
    }
    match fgetxattr(file, name, buffer) {
        Ok(length) => Ok(Found::Value(length)),
        Err(Errno::NODATA) => Ok(Found::Absent),
        Err(Errno::OPNOTSUPP) => Ok(Found::Unsupported),
        Err(Errno::RANGE) => Err(XattrReadError::TooLong { name, fd, room }),
        Err(error) => Err(XattrReadError::Call { name, fd, error: error.into() }),
    }
}

/// Reads the attribute `name` into `buffer`, which is made longer where needed, up to [`MAX_VALUE`], and holds
/// just the value afterwards (nothing, if there is none).
///
/// # Errors
/// [`XattrReadError`]; an absent attribute is none.
pub fn read_all(file: BorrowedFd<'_>, name: &'static CStr, buffer: &mut Vec<u8>) -> Result<Found, XattrReadError> {
    // Every usual label fits at once; only one that does not costs a second call.
    for room in [buffer.capacity().clamp(1024, MAX_VALUE), MAX_VALUE] {
        buffer.resize(room, 0);
        match read(file, name, buffer) {
            Err(XattrReadError::TooLong { .. }) if room < MAX_VALUE => {}
            found => {
                buffer.truncate(if let Ok(Found::Value(length)) = found { length } else { 0 });
                return found;
            }
        }
    }
    Err(XattrReadError::TooLong { name, fd: file.as_raw_fd(), room: MAX_VALUE })
}

/// The label `name` ([`IMA`] or [`EVM`]), read into `buffer`, in the form that the core takes.
pub fn read_label<'b>(file: BorrowedFd<'_>, name: &'static CStr, buffer: &'b mut Vec<u8>) -> LabelRead<'b> {
    match read_all(file, name, buffer) {
        Ok(Found::Value(_)) => LabelRead::Value(buffer),
        Ok(Found::Absent) => LabelRead::Absent,
        Ok(Found::Unsupported) => LabelRead::Unsupported,
        Err(_) => LabelRead::Failed,
    }
}

/// Writes the attribute `name`, whether it exists or not.
///
/// # Errors
/// [`XattrWriteError`], with the kind of refusal.
pub fn write(file: BorrowedFd<'_>, name: &'static CStr, value: &[u8]) -> Result<(), XattrWriteError> {
    fsetxattr(file, name, value, XattrFlags::empty()).map_err(|error| refused("fsetxattr", file, name, error))
}

/// Removes the attribute `name`.
///
/// # Errors
/// [`XattrWriteError`]; [`Refusal::Absent`] if there was none.
pub fn remove(file: BorrowedFd<'_>, name: &'static CStr) -> Result<(), XattrWriteError> {
    fremovexattr(file, name).map_err(|error| refused("fremovexattr", file, name, error))
}

fn refused(call: &'static str, file: BorrowedFd<'_>, name: &'static CStr, error: Errno) -> XattrWriteError {
    let refusal = match error {
        Errno::NOSPC | Errno::DQUOT => Refusal::NoSpace,
        Errno::ROFS => Refusal::ReadOnly,
        Errno::PERM | Errno::ACCESS => Refusal::NotPermitted,
        Errno::OPNOTSUPP => Refusal::Unsupported,
        Errno::NODATA => Refusal::Absent,
        _ => Refusal::Other,
    };
    XattrWriteError { call, name, fd: file.as_raw_fd(), refusal, error: error.into() }
}
