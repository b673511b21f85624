//! The only `unsafe` code outside BPF: calls for which neither `std` nor `rustix` has a safe door.
//!
//! Every function here is safe to call with any arguments its types admit.
#![allow(unsafe_code, reason = "the one room where system calls without a safe wrapper are made")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use libc::{c_int, c_uint};

/// `Ok(value)` unless the call returned a negative number.
fn checked(value: c_int) -> io::Result<c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A fanotify group: what is read from it was written by the kernel. Made by [`FanotifyFd::open`] alone.
#[derive(Debug)]
pub(crate) struct FanotifyFd(OwnedFd);

impl FanotifyFd {
    /// `fanotify_init(2)`.
    pub(crate) fn open(flags: c_uint, event_flags: c_uint) -> io::Result<Self> {
        // NEEDED: no safe wrapper in std or rustix.
        // SAFETY: plain integers in; a non-negative result is a new descriptor that nobody else owns.
        let fd = unsafe { checked(libc::fanotify_init(flags, event_flags)).map(|fd| OwnedFd::from_raw_fd(fd))? };
        Ok(Self(fd))
    }

    /// The same group under the lowest free number from `minimum` on.
    pub(crate) fn renumbered(&self, minimum: RawFd) -> io::Result<Self> {
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(&self.0, minimum)?))
    }

    /// `fanotify_mark(2)` on the object that `target` itself refers to.
    pub(crate) fn mark(&self, flags: c_uint, mask: u64, target: BorrowedFd<'_>) -> io::Result<()> {
        // NEEDED: no safe wrapper in std or rustix.
        // SAFETY: both descriptors are open for the call; a null path makes the kernel use `target` itself.
        let result = unsafe { libc::fanotify_mark(self.0.as_raw_fd(), flags, mask, target.as_raw_fd(), ptr::null()) };
        checked(result).map(drop)
    }

    /// The same on the object at `path`; symbolic links are followed.
    pub(crate) fn mark_path(&self, flags: c_uint, mask: u64, path: &CStr) -> io::Result<()> {
        // NEEDED: no safe wrapper in std or rustix.
        // SAFETY: the descriptor is open and the path a terminated string for the call.
        let result = unsafe { libc::fanotify_mark(self.0.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) };
        checked(result).map(drop)
    }
}

impl AsFd for FanotifyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What one fanotify event without file handles says; its descriptor is ours.
#[derive(Debug)]
pub(crate) struct RawEvent {
    /// `FAN_*` bits.
    pub(crate) mask: u64,
    /// The file, or the negative number that stands in its place (`FAN_NOFD` or `-errno`).
    pub(crate) file: Result<OwnedFd, i32>,
    /// Thread or process id, 0 if it is outside our pid namespace.
    pub(crate) pid: i32,
}

/// The kernel speaks another version of the event structure than we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadMetadata {
    /// Version found.
    pub(crate) version: u8,
}

/// Memory for one read of a fanotify group and the place up to which it has been taken out.
///
/// Every event is taken out exactly once, because each may own a descriptor.
#[derive(Debug)]
pub(crate) struct RawEvents {
    bytes: Box<[u8]>,
    taken: usize,
    filled: usize,
}

/// `struct fanotify_event_metadata`: 4 length, 1 version, 1 reserved, 2 metadata length, 8 mask, 4 descriptor, 4 pid.
pub(crate) const METADATA_LEN: usize = 24;

impl RawEvents {
    /// Room for `events` events.
    pub(crate) fn new(events: usize) -> Self {
        Self {
            bytes: vec![0; events.saturating_mul(METADATA_LEN).max(METADATA_LEN)].into_boxed_slice(),
            taken: 0,
            filled: 0,
        }
    }

    /// Reads from the group; whatever had not been taken out must have been drained before.
    pub(crate) fn read(&mut self, group: &FanotifyFd) -> io::Result<usize> {
        debug_assert_eq!(self.taken, self.filled, "events left in the buffer would leak their descriptors");
        (self.taken, self.filled) = (0, 0);
        let length = rustix::io::retry_on_intr(|| rustix::io::read(group, &mut *self.bytes))?;
        self.filled = length;
        Ok(length)
    }

    /// Takes the next event out of the buffer.
    pub(crate) fn take(&mut self) -> Option<Result<RawEvent, BadMetadata>> {
        let event = self.bytes.get(self.taken..self.filled)?;
        if event.is_empty() {
            return None;
        }
        let Some(header) = event.first_chunk::<METADATA_LEN>().and_then(Metadata::parse) else {
            self.taken = self.filled;
            return Some(Err(BadMetadata { version: event.get(4).copied().unwrap_or(0) }));
        };
        self.taken = self.taken.saturating_add(header.length).min(self.filled);
        let file = if header.fd < 0 {
            Err(header.fd)
        } else {
            // NEEDED: the kernel hands over descriptors as numbers inside the bytes of an event.
            // SAFETY: `bytes[..filled]` was written by read(2) on a `FanotifyFd` and by nothing else, so the kernel wrote
            // it and installed this descriptor for us; `taken` has moved past it, so it gets this one owner. (A group
            // that reports file handles instead has no descriptor here, but `FAN_NOFD`, which is negative.)
            Ok(unsafe { OwnedFd::from_raw_fd(header.fd) })
        };
        Some(Ok(RawEvent { mask: header.mask, file, pid: header.pid }))
    }
}

/// The fixed part of every fanotify event, in the host's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Length of the whole event.
    pub(crate) length: usize,
    /// `FAN_*` bits.
    pub(crate) mask: u64,
    /// Descriptor or a negative number.
    pub(crate) fd: RawFd,
    /// Thread or process id.
    pub(crate) pid: i32,
}

impl Metadata {
    /// Absent if the version is not [`libc::FANOTIFY_METADATA_VERSION`] or a length cannot be.
    #[expect(clippy::host_endian_bytes, reason = "the kernel writes the structure in the host's byte order")]
    pub(crate) fn parse(bytes: &[u8; METADATA_LEN]) -> Option<Self> {
        let [l0, l1, l2, l3, version, _, h0, h1, m0, m1, m2, m3, m4, m5, m6, m7, f0, f1, f2, f3, p0, p1, p2, p3] =
            *bytes;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let header = usize::from(u16::from_ne_bytes([h0, h1]));
        if version != libc::FANOTIFY_METADATA_VERSION || header != METADATA_LEN || length < METADATA_LEN {
            return None;
        }
        Some(Self {
            length,
            mask: u64::from_ne_bytes([m0, m1, m2, m3, m4, m5, m6, m7]),
            fd: i32::from_ne_bytes([f0, f1, f2, f3]),
            pid: i32::from_ne_bytes([p0, p1, p2, p3]),
        })
    }
}

/// `fcntl(2)` with a command whose third argument is an integer.
fn fcntl(fd: BorrowedFd<'_>, command: c_int, argument: c_int) -> io::Result<c_int> {
    // NEEDED: rustix has neither leases nor F_SETSIG.
    // SAFETY: private, and every caller passes a command that takes an integer, so the kernel touches no memory of ours.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) })
}

/// `F_SETSIG` of `asm-generic/fcntl.h`, which the libc crate lacks.
const F_SETSIG: c_int = 10;

/// `fcntl(F_SETSIG)`.
pub(crate) fn set_signal(fd: BorrowedFd<'_>, signal: c_int) -> io::Result<()> {
    fcntl(fd, F_SETSIG, signal).map(drop)
}

/// `fcntl(F_SETLEASE)`.
pub(crate) fn set_lease(fd: BorrowedFd<'_>, kind: c_int) -> io::Result<()> {
    fcntl(fd, libc::F_SETLEASE, kind).map(drop)
}

/// `fcntl(F_GETLEASE)`.
pub(crate) fn get_lease(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    fcntl(fd, libc::F_GETLEASE, 0)
}

/// `struct cachestat_range`, in bytes.
#[repr(C)]
struct CacheRange {
    offset: u64,
    length: u64,
}

/// `struct cachestat`, in pages.
#[repr(C)]
#[derive(Default)]
struct CacheStatistics {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// `cachestat(2)`: how many pages of the first `length` bytes are in memory. Starts no I/O.
pub(crate) fn cached_pages(fd: BorrowedFd<'_>, length: u64) -> io::Result<u64> {
    // The same number on every architecture.
    const CACHESTAT: libc::c_long = 451;
    let range = CacheRange { offset: 0, length };
    let mut found = CacheStatistics::default();
    // NEEDED: neither std nor rustix has cachestat.
    // SAFETY: both structures are the kernel's, alive during the call, and the kernel writes to the second only.
    let result = unsafe { libc::syscall(CACHESTAT, fd.as_raw_fd(), &raw const range, &raw mut found, 0_u32) };
    if result == 0 { Ok(found.cached) } else { Err(io::Error::last_os_error()) }
}

/// The longest file handle that the kernel makes, `MAX_HANDLE_SZ`.
pub(crate) const MAX_HANDLE: usize = 128;

/// What `name_to_handle_at(2)` writes; the kernel's `struct file_handle` with room for the longest handle.
#[repr(C)]
struct HandleBuffer {
    bytes: c_uint,
    kind: c_int,
    handle: [u8; MAX_HANDLE],
}

/// `name_to_handle_at(fd, "", AT_EMPTY_PATH | flags)`: kind, length and bytes of the handle.
pub(crate) fn handle_of(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<(i32, usize, [u8; MAX_HANDLE])> {
    let mut buffer = HandleBuffer { bytes: 0, kind: 0, handle: [0; MAX_HANDLE] };
    buffer.bytes = c_uint::try_from(MAX_HANDLE).map_err(io::Error::other)?;
    // An int, but with AT_HANDLE_MNT_ID_UNIQUE among the flags (Linux 6.12) a number of 64 bits.
    let mut mount: u64 = 0;
    // NEEDED: no safe wrapper in std or rustix.
    // SAFETY: `buffer` has the layout of `struct file_handle` with `bytes` bytes of room behind it, the path is a
    // terminated string and `mount` is a place for whichever number the flags ask for; all outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            fd.as_raw_fd(),
            c"".as_ptr(),
            ptr::from_mut(&mut buffer).cast(),
            (&raw mut mount).cast(),
            libc::AT_EMPTY_PATH | flags,
        )
    };
    checked(result)?;
    let length = usize::try_from(buffer.bytes).map_err(io::Error::other)?.min(MAX_HANDLE);
    Ok((buffer.kind, length, buffer.handle))
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `mount_setattr(mount, "", AT_EMPTY_PATH, …)` (Linux 5.12), without `MOUNT_ATTR_RDONLY` from then on.
pub(crate) fn make_mount_writable(mount: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attributes = MountAttributes { set: 0, clear: MOUNT_ATTR_RDONLY, propagation: 0, user_namespace: 0 };
    let (fd, empty, flags, size) = (mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, size_of::<MountAttributes>());
    // NEEDED: no safe wrapper in std or rustix.
    // SAFETY: the structure is that of the kernel, of the size that is told, and outlives the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, fd, empty, flags, &raw const attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `open_by_handle_at(mount, handle, flags)`; the handle is what [`handle_of`] gave.
pub(crate) fn open_handle(
    mount: BorrowedFd<'_>,
    (kind, length, handle): (i32, usize, [u8; MAX_HANDLE]),
    flags: c_int,
) -> io::Result<OwnedFd> {
    let mut buffer = HandleBuffer { bytes: 0, kind, handle };
    buffer.bytes = c_uint::try_from(length.min(MAX_HANDLE)).map_err(io::Error::other)?;
    // NEEDED: no safe wrapper in std or rustix.
    // SAFETY: `buffer` has the layout of `struct file_handle` with at least `bytes` bytes behind it, and outlives the call.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), ptr::from_mut(&mut buffer).cast(), flags) };
    checked(fd)?;
    // NEEDED: the descriptor is to be closed by its owner.
    // SAFETY: the call has just made it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `fsid` of `fstatfs(2)`, as two integers.
pub(crate) fn fsid(fd: BorrowedFd<'_>) -> io::Result<[i32; 2]> {
    let mut facts = MaybeUninit::<libc::statfs>::zeroed();
    // NEEDED: the two halves of `fsid_t` are private in libc and rustix.
    // SAFETY: `facts` is a place for a `struct statfs`, which fstatfs(2) fills; `fsid_t` is two ints in every Linux ABI,
    // checked below; all bit patterns are ints.
    unsafe {
        checked(libc::fstatfs(fd.as_raw_fd(), facts.as_mut_ptr()))?;
        const { assert!(size_of::<libc::fsid_t>() == size_of::<[i32; 2]>()) };
        Ok(ptr::addr_of!((*facts.as_ptr()).f_fsid).cast::<[i32; 2]>().read_unaligned())
    }
}

/// `_IOR(0x15, 0, struct fsuuid2)`, 17 bytes.
const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500;

/// `ioctl(FS_IOC_GETFSUUID)` (Linux 6.9): length and bytes of the superblock's UUID.
pub(crate) fn filesystem_uuid(fd: BorrowedFd<'_>) -> io::Result<(u8, [u8; 16])> {
    let mut value = [0_u8; 17];
    // NEEDED: no safe wrapper in std or rustix.
    // SAFETY: the number encodes a structure of 17 bytes, which `value` has; whoever answers it writes no more.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, value.as_mut_ptr()) })?;
    let [length, uuid @ ..] = value;
    Ok((length, uuid))
}

/// `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`, 1024 bytes.
const BTRFS_IOC_FS_INFO: libc::Ioctl = 0x8400_941f;

/// `ioctl(BTRFS_IOC_FS_INFO)`: the `fsid`, 16 bytes after two numbers of 8 bytes.
pub(crate) fn btrfs_uuid(fd: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut value = [0_u8; 1024];
    // NEEDED: no safe wrapper in std or rustix.
    // SAFETY: the number encodes a structure of 1024 bytes, which `value` has; whoever answers it writes no more.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, value.as_mut_ptr()) })?;
    let (_, [uuid, ..]) = value.as_chunks::<16>().0.split_at(1) else { return Ok([0; 16]) };
    Ok(*uuid)
}

/// The set that holds just these signals.
fn signal_set(signals: &[c_int]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // NEEDED: neither std nor rustix has signal sets.
    // SAFETY: sigemptyset initialises the whole set before sigaddset and assume_init look at it.
    unsafe {
        checked(libc::sigemptyset(set.as_mut_ptr()))?;
        for signal in signals {
            checked(libc::sigaddset(set.as_mut_ptr(), *signal))?;
        }
        Ok(set.assume_init())
    }
}

/// Blocks the signals in the calling thread; threads started later inherit that.
pub(crate) fn block_signals(signals: &[c_int]) -> io::Result<()> {
    let set = signal_set(signals)?;
    // NEEDED: neither std nor rustix has signal masks.
    // SAFETY: `set` is an initialised signal set; the old set is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// `signalfd(2)`, close-on-exec and non-blocking.
pub(crate) fn signal_fd(signals: &[c_int]) -> io::Result<OwnedFd> {
    let set = signal_set(signals)?;
    // NEEDED: neither std nor rustix has signalfd.
    // SAFETY: `set` is an initialised signal set; a non-negative result is a new descriptor that nobody else owns.
    unsafe {
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        checked(fd).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// The first real-time signal that the C library leaves to programs, plus `offset`.
pub(crate) fn realtime_signal(offset: c_int) -> Option<c_int> {
    let signal = libc::SIGRTMIN().checked_add(offset)?;
    (offset >= 0 && signal <= libc::SIGRTMAX()).then_some(signal)
}

/// `getrusage(RUSAGE_THREAD)`: how often the calling thread has given up its processor because it had to wait.
pub(crate) fn voluntary_switches() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // NEEDED: neither std nor rustix has the call.
    // SAFETY: the kernel writes one `rusage`, for which all bit patterns are valid, zeros too.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_nvcsw
    }
}

/// `getsockopt(SO_PEERCRED)`: process id (0 if outside our pid namespace), user and group of the other end.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // NEEDED: std has no stable call, and the one of rustix cannot represent the process id 0.
    // SAFETY: the kernel writes at most `length` bytes, which `peer` has; all bit patterns are integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut peer).cast(),
            &raw mut length,
        )
    };
    checked(result).map(|_| peer)
}

/// `sync_file_range(2)` that starts writing and waits for it.
pub(crate) fn write_out(file: BorrowedFd<'_>, offset: libc::off64_t, length: libc::off64_t) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // NEEDED: no safe wrapper in std or rustix.
    // SAFETY: plain integers in, and a descriptor that is open.
    checked(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, flags) }).map(drop)
}

/// `unshare(CLONE_FILES)`: the calling thread's descriptors are its own from now on, and those of threads it starts.
pub(crate) fn own_descriptors() -> io::Result<()> {
    // NEEDED: the safe call of rustix is deprecated in favour of this one.
    // SAFETY: nothing in memory changes. What is open now is open on both sides, under the same number. That numbers of
    // descriptors that are opened later are not used on the other side is what `apart` is about, whose users are told.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES) }.map_err(io::Error::from)
}

/// `prctl(PR_SET_PDEATHSIG, SIGKILL)` in the program before it begins; it does not begin if we have gone already.
pub(crate) fn killed_with_us(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    let in_child = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // Who died between fork and here sends no signal any more.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // NEEDED: the setting belongs to one process and is lost at fork, so the child has to make it.
    // SAFETY: between fork and exec the closure makes two system calls and builds an error from a number; it allocates
    // nothing, takes no lock, and touches no memory but a copied integer.
    unsafe { command.pre_exec(in_child) }
}

/// Memory as the C library gives it, but whoever gets none ends the process at once, and says so only if nobody has to be
/// waited for.
///
/// Rust's own way is to say so in any case, and the one who reads it may be waiting for this process.
#[derive(Debug)]
pub struct MemoryOrEnd;

fn given(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        crate::last_words::die("imarad: memory ran out: everybody is let through, and nothing is guarded any more");
    }
    memory
}

// NEEDED: there is no stable way to be told that memory ran out.
// SAFETY: each call goes to the allocator of the standard library as it came, and what that gives is given on.
unsafe impl GlobalAlloc for MemoryOrEnd {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        given(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { System.dealloc(memory, layout) }
    }
}
