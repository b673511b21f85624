//! Threads apart: they share our memory, but not our descriptors.
//!
//! Descriptors are shared by all threads of a process, and are closed when the last of these threads has gone. One that
//! hangs in the kernel, where not even `SIGKILL` ends it, keeps them all open; for a guard that means that its fanotify
//! group stays, and with it everybody who waits for an answer. So whoever may hang belongs apart.
//!
//! **A descriptor means something on its own side only.** What was open when the sides parted is open on both, under the
//! same number; what is opened later has to be [fetched](Home::fetch) or [handed over](handing_over). Nothing else that
//! holds a descriptor may go from one side to the other.
//!
//! Source: `unshare(2)`, `CLONE_FILES`; `pidfd_getfd(2)`; `unix(7)`, `SCM_RIGHTS`.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{Sender, channel};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::error::{CallError, Target};
use crate::sys;

/// Descriptors handed over at once at most; the kernel's limit is 253.
pub const AT_ONCE: usize = 64;

type Start = (&'static str, Box<dyn FnOnce() + Send>);

/// Starts threads that are apart. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Apart {
    starts: Sender<Start>,
}

impl Apart {
    /// Parts: from now on the calling thread, which must be the first of the process, and the threads that it starts
    /// share descriptors with each other, and those that are started by [`start`](Self::start) with each other.
    ///
    /// # Errors
    /// `ENOMEM`, `EMFILE`, or if no thread can be started.
    pub fn part() -> Result<Self, CallError> {
        let (starts, queue) = channel::<Start>();
        let starter = move || {
            for (name, run) in queue {
                // What cannot be started is dropped, which is for `run` to notice.
                drop(std::thread::Builder::new().name(name.into()).spawn(run));
            }
        };
        let started = std::thread::Builder::new().name("starter".into()).spawn(starter);
        started.map_err(|error| CallError::new("clone", Target::Process, error))?;
        sys::own_descriptors().map_err(|error| CallError::new("unshare(CLONE_FILES)", Target::Process, error))?;
        Ok(Self { starts })
    }

    /// Has a thread started. Never waits. `run` is dropped if that cannot be done.
    pub fn start(&self, name: &'static str, run: impl FnOnce() + Send + 'static) {
        drop(self.starts.send((name, Box::new(run))));
    }
}

/// The first thread's descriptors, seen from apart. To be made before parting.
#[derive(Debug)]
pub struct Home(OwnedFd);

impl Home {
    /// Finds it.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn find() -> Result<Self, CallError> {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty());
        pidfd.map(Self).map_err(|error| CallError::new("pidfd_open", Target::Process, error))
    }

    /// The same file, as a descriptor of the calling thread's side. `number` must stay open at home until this returns.
    ///
    /// # Errors
    /// `EBADF` if it is not open, `EMFILE`.
    pub fn fetch(&self, number: RawFd) -> Result<OwnedFd, CallError> {
        pidfd_getfd(&self.0, number, PidfdGetfdFlags::empty())
            .map_err(|error| CallError::new("pidfd_getfd", self.0.as_fd(), error))
    }
}

/// The near end of a channel for descriptors.
#[derive(Debug)]
pub struct Giver(OwnedFd);

/// The far end.
#[derive(Debug)]
pub struct Taker(OwnedFd);

/// A channel on which descriptors go from one side to the other. To be made before parting.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn handing_over() -> Result<(Giver, Taker), CallError> {
    let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (near, far) = ends.map_err(|error| CallError::new("socketpair", Target::Process, error))?;
    Ok((Giver(near), Taker(far)))
}

impl Giver {
    /// Hands [`AT_ONCE`] files over at most, or none, with a number. From then on the other side holds them too, even before it
    /// has taken them. Never waits: false if there is no room.
    ///
    /// # Errors
    /// Those of `sendmsg`, except `EAGAIN`.
    pub fn give(&self, files: &[BorrowedFd<'_>], number: u64) -> Result<bool, CallError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(files));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&self.0, &[IoSlice::new(&number.to_le_bytes())], &mut control, flags) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(error) => Err(CallError::new("sendmsg", self.0.as_fd(), error)),
        }
    }
}

impl Giver {
    /// Waits for room, as long as it takes, though not longer than a second.
    pub fn wait_for_room(&self) {
        let mut ready = [PollFd::new(&self.0, PollFlags::OUT)];
        let second = rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 };
        // There is room, or memory is short, for which a moment may help.
        if poll(&mut ready, Some(&second)) != Ok(0) {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    }
}

impl Taker {
    /// Waits for files and takes them, with their number.
    ///
    /// # Errors
    /// Those of `recvmsg`; `ENODATA` if the other side has gone.
    pub fn take(&self, files: &mut Vec<OwnedFd>) -> Result<u64, CallError> {
        self.receive(files, RecvFlags::CMSG_CLOEXEC)
    }

    /// The same without waiting: `EAGAIN` if there are none.
    ///
    /// # Errors
    /// Those of [`take`](Self::take).
    pub fn take_now(&self, files: &mut Vec<OwnedFd>) -> Result<u64, CallError> {
        self.receive(files, RecvFlags::CMSG_CLOEXEC.union(RecvFlags::DONTWAIT))
    }

    fn receive(&self, files: &mut Vec<OwnedFd>, flags: RecvFlags) -> Result<u64, CallError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut number = [0; 8];
        let received =
            rustix::io::retry_on_intr(|| recvmsg(&self.0, &mut [IoSliceMut::new(&mut number)], &mut control, flags));
        let received = received.map_err(|error| CallError::new("recvmsg", self.0.as_fd(), error))?;
        if received.bytes == 0 {
            return Err(CallError::new("recvmsg", self.0.as_fd(), rustix::io::Errno::NODATA));
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(taken) = message {
                files.extend(taken);
            }
        }
        Ok(u64::from_le_bytes(number))
    }
}
