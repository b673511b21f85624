//! The end of a process that cannot go on: at once, and without waiting for whoever reads what it says.
//!
//! A guard's standard error may be a pipe that is full because its reader waits for the guard's answer. So a fault of our
//! own must not be told before the process has ended; and after that nobody can. It is told if that takes no time.
//!
//! The kernel closes what a dead process had open, and lets everybody pass who waits for an answer.

use std::io::{IoSlice, stderr};
use std::os::fd::AsFd as _;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

pub use crate::sys::MemoryOrEnd;

/// Has each panic, of whichever thread, end the process: `SIGABRT`.
pub fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed").to_owned();
        die(&format!("imarad: a fault of its own: thread {name}: {info}"));
    }));
}

/// Says why, if somebody listens, and ends the process.
pub(crate) fn die(why: &str) -> ! {
    say(why);
    std::process::abort()
}

/// Writes one line to standard error, all, a part or nothing of it. Never waits, and allocates nothing.
fn say(line: &str) {
    let stderr = stderr();
    let text = [IoSlice::new(line.as_bytes()), IoSlice::new(b"\n")];
    // Where the kernel cannot write without waiting (a terminal), it is asked before whether it would have to.
    if pwritev2(stderr.as_fd(), &text, u64::MAX, ReadWriteFlags::NOWAIT) == Err(Errno::OPNOTSUPP) {
        let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut ready, Some(&now)) == Ok(1) {
            let _ = rustix::io::writev(stderr.as_fd(), &text);
        }
    }
}
