//! Opening files by io_uring, with as little of it as that takes: a ring for one request.
//!
//! Source: `io_uring_setup(2)`, `io_uring_enter(2)`; Linux `include/uapi/linux/io_uring.h`.
#![allow(
    unsafe_code,
    clippy::host_endian_bytes,
    reason = "nothing safe speaks to io_uring, which takes what the host has"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::null_mut;

const OPENAT: u8 = 18;
const OPENAT2: u8 = 28;

/// `struct io_uring_params` as 30 numbers: `features`, `sq_off.tail`, `sq_off.array`, `cq_off.cqes`.
const FEATURES: usize = 5;
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
const CQES: usize = 25;
const SINGLE_MMAP: u32 = 1;
const SQES: libc::off_t = 0x1000_0000;

/// `IORING_OP_OPENAT`, for reading.
pub(crate) fn open_at(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    opened(OPENAT, path.as_ptr().addr(), 0, 0)
}

/// `IORING_OP_OPENAT2`, for reading.
pub(crate) fn open_at2(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // `struct open_how`: flags, mode, resolve.
    let how = [0_u64; 3];
    opened(OPENAT2, path.as_ptr().addr(), 24, how.as_ptr().addr())
}

fn opened(operation: u8, path: usize, length: u32, how: usize) -> io::Result<OwnedFd> {
    let mut request = [0_u8; 64];
    request[0] = operation;
    request[4..8].copy_from_slice(&libc::AT_FDCWD.to_ne_bytes());
    request[8..16].copy_from_slice(&how.to_ne_bytes());
    request[16..24].copy_from_slice(&path.to_ne_bytes());
    request[24..28].copy_from_slice(&length.to_ne_bytes());
    let result = completed(&request)?;
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Has the kernel do one request, and waits for its result. What it points to must live until then.
fn completed(request: &[u8; 64]) -> io::Result<i32> {
    let mut parameters = [0_u32; 30];
    // SAFETY: the kernel fills in the 120 bytes of its structure.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    let ring = i32::try_from(ring).unwrap();
    if ring < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above, a new descriptor.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    assert_eq!(parameters[FEATURES] & SINGLE_MMAP, SINGLE_MMAP, "Linux 5.4");
    let at = |place: usize| usize::try_from(parameters[place]).unwrap();
    let (queues, requests) = (mapped(&ring, 0, 4096)?, mapped(&ring, SQES, 4096)?);
    // SAFETY: the rings of one entry fit into the first page, at the places that the kernel has told; nobody else uses
    // them, and the kernel only looks at them inside the call between.
    unsafe {
        requests.cast::<[u8; 64]>().write(*request);
        queues.byte_add(at(SQ_ARRAY)).cast::<u32>().write_volatile(0);
        queues.byte_add(at(SQ_TAIL)).cast::<u32>().write_volatile(1);
        let (getevents, none) = (1, null_mut::<libc::c_void>());
        let done = libc::syscall(libc::SYS_io_uring_enter, ring.as_raw_fd(), 1, 1, getevents, none, 0);
        let error = io::Error::last_os_error();
        let result = queues.byte_add(at(CQES) + 8).cast::<i32>().read_volatile();
        libc::munmap(queues, 4096);
        libc::munmap(requests, 4096);
        if done == 1 { Ok(result) } else { Err(error) }
    }
}

fn mapped(ring: &OwnedFd, offset: libc::off_t, length: usize) -> io::Result<*mut libc::c_void> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe { libc::mmap(null_mut(), length, protection, flags, ring.as_raw_fd(), offset) };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start) }
}
