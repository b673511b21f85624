//! With which flags a waiting task opens a file: permission events do not say, its system call does.
//!
//! Source: `proc_pid_syscall(5)`, `open(2)`; Linux `arch/x86/entry/syscalls/syscall_64.tbl`,
//! `include/uapi/asm-generic/unistd.h`.

use crate::error::CallError;
use crate::task;

/// The flags of an open, `O_*` of this architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags(pub u64);

impl OpenFlags {
    fn has(self, flag: i32) -> bool {
        u64::try_from(flag).is_ok_and(|flag| self.0 & flag == flag)
    }

    /// Whether contents can be read: `O_RDONLY`, `O_RDWR`.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self.0 & 3, 0 | 2)
    }

    /// Whether contents can be changed: `O_WRONLY`, `O_RDWR`; also `3`, which is neither but asks for both permissions.
    #[must_use]
    pub fn writes(self) -> bool {
        self.0 & 3 != 0
    }

    /// Access mode 3: for `ioctl` alone, neither for reading nor for writing, though both permissions are asked for.
    #[must_use]
    pub fn is_for_neither(self) -> bool {
        self.0 & 3 == 3
    }

    /// `O_TRUNC`.
    #[must_use]
    pub fn truncates(self) -> bool {
        self.has(libc::O_TRUNC)
    }

    /// `O_APPEND`.
    #[must_use]
    pub fn appends(self) -> bool {
        self.has(libc::O_APPEND)
    }
}

/// What the system call of a task says about the file it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenCall {
    /// `open`, `openat`, `creat`, `open_by_handle_at`.
    Flags(OpenFlags),
    /// `openat2`: the flags are in the memory of the task. They are not looked at: another thread may have changed them
    /// since the kernel read them, and memory that a stranger provides (userfaultfd, FUSE) would keep us waiting.
    How,
    /// `execve`, `execveat`.
    Exec,
    /// Not known yet. The kernel queues a question before the task that asks it goes to sleep, and tells nothing of a task
    /// that runs: it will sleep in a moment.
    ///
    /// Source: Linux `lib/syscall.c`, `task_current_syscall()`.
    NotYet,
}

/// The system call that the waiting task `tid` is in, if it is one that opens files.
///
/// Absent for any other call: io_uring, `uselib`, a kernel thread (nfsd), or a 32-bit program.
///
/// This waits for as long as the task is becoming another program, which a hostile one can draw out. A task that asks
/// is not; but its number may be another one's by now.
///
/// # Errors
/// If `/proc/TID/syscall` cannot be read (`ESRCH` or `ENOENT` if the task has gone).
pub fn open_call(tid: i32) -> Result<Option<OpenCall>, CallError> {
    let mut buffer = [0; 256];
    let line = task::read(tid, "syscall", &mut buffer)?;
    Ok(std::str::from_utf8(line).ok().and_then(decode))
}

/// A line of `/proc/TID/syscall`: number, six arguments in hexadecimal, stack pointer, program counter.
fn decode(line: &str) -> Option<OpenCall> {
    if line.trim_ascii() == "running" {
        return Some(OpenCall::NotYet);
    }
    let mut words = line.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let mut arguments = words.map(|word| word.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()));
    // The kernel takes an `int` here and ignores the upper half of the register.
    let flags = |argument: Option<Option<u64>>| Some(OpenCall::Flags(OpenFlags(argument?? & 0xffff_ffff)));
    match number {
        numbers::OPEN => flags(arguments.nth(1)),
        numbers::OPENAT | numbers::OPEN_BY_HANDLE_AT => flags(arguments.nth(2)),
        numbers::CREAT => u64::try_from(libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC)
            .ok()
            .map(|flags| OpenCall::Flags(OpenFlags(flags))),
        numbers::OPENAT2 => Some(OpenCall::How),
        numbers::EXECVE | numbers::EXECVEAT => Some(OpenCall::Exec),
        _ => None,
    }
}

/// System call numbers.
///
/// Those of 32-bit programs on x86-64 differ; none that opens a file there has a number that opens one here, except
/// `openat2`, which is the same.
#[cfg(target_arch = "x86_64")]
mod numbers {
    pub(super) const OPEN: i64 = 2;
    pub(super) const EXECVE: i64 = 59;
    pub(super) const CREAT: i64 = 85;
    pub(super) const OPENAT: i64 = 257;
    pub(super) const OPEN_BY_HANDLE_AT: i64 = 304;
    pub(super) const EXECVEAT: i64 = 322;
    pub(super) const OPENAT2: i64 = 437;
}

/// System call numbers of the generic table.
#[cfg(not(target_arch = "x86_64"))]
mod numbers {
    // Calls that this table lacks; -1 stands for 'in no system call', so they need numbers no call has.
    pub(super) const OPEN: i64 = -1001;
    pub(super) const CREAT: i64 = -1002;
    pub(super) const OPENAT: i64 = 56;
    pub(super) const EXECVE: i64 = 221;
    pub(super) const OPEN_BY_HANDLE_AT: i64 = 265;
    pub(super) const EXECVEAT: i64 = 281;
    pub(super) const OPENAT2: i64 = 437;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_flags_are_found_in_the_arguments_of_every_call_that_opens() {
        let tail = "0x7ffd 0x7f12\n";
        for (call, expected) in [
            ("257 0xffffff9c 0x7f00 0x80241 0x1b6 0x0 0x0", Some(OpenCall::Flags(OpenFlags(0x80241)))),
            ("2 0x7f00 0x1 0x0 0x0 0x0 0x0", Some(OpenCall::Flags(OpenFlags(1)))),
            ("2 0x7f00 0xffffffff00000001 0x0 0x0 0x0 0x0", Some(OpenCall::Flags(OpenFlags(1)))),
            ("85 0x7f00 0x1ff 0x0 0x0 0x0 0x0", Some(OpenCall::Flags(OpenFlags(0o1101)))),
            ("304 0x3 0x7f00 0x2 0x0 0x0 0x0", Some(OpenCall::Flags(OpenFlags(2)))),
            ("437 0xffffff9c 0x7f00 0xabc0 0x18 0x0 0x0", Some(OpenCall::How)),
            ("59 0x1 0x2 0x3 0x0 0x0 0x0", Some(OpenCall::Exec)),
            ("322 0x1 0x2 0x3 0x0 0x0 0x0", Some(OpenCall::Exec)),
            ("426 0x1 0x2 0x3 0x0 0x0 0x0", None),
            ("0 0x1 0x2 0x3 0x0 0x0 0x0", None),
        ] {
            assert_eq!(decode(&format!("{call} {tail}")), expected, "{call}");
        }
        assert_eq!(decode("running\n"), Some(OpenCall::NotYet));
        for broken in ["", "-1 0x7ffd 0x7f12\n", "257", "257 0x1 0x2", "257 0x1 0x2 zz", "x 0x1"] {
            assert_eq!(decode(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn access_mode_three_counts_as_writing() {
        let table = [(0, true, false), (1, false, true), (2, true, true), (3, false, true)];
        for (flags, reads, writes) in table {
            assert_eq!((OpenFlags(flags).reads(), OpenFlags(flags).writes()), (reads, writes), "{flags}");
        }
    }
}
