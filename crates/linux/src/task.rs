//! Facts about the task that asks, from `/proc/TID`.
//!
//! Nothing here takes the task's memory lock, which a hostile program could hold for as long as it likes. Every file
//! is opened and read anew, because a descriptor kept open would go on showing a task that has ended.
//!
//! Source: `proc_pid_status(5)`, `proc_pid_comm(5)`; Linux `fs/proc/array.c`.

use std::os::fd::{AsFd, OwnedFd};

use imara_integrity::event::{Gid, Subject, Uid};
use rustix::fs::{Mode, OFlags};

use crate::error::{CallError, Target};
use crate::file::read_at;
use crate::sys;

/// `CAP_SETGID` of `include/uapi/linux/capability.h`.
const CAP_SETGID: u32 = 6;

/// `CAP_SETUID` of `include/uapi/linux/capability.h`.
const CAP_SETUID: u32 = 7;

/// What `/proc/TID/status` says about a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Its process (thread group).
    pub tgid: i32,
    /// Its credentials, as seen from our user namespace.
    pub subject: Subject,
}

/// The calling thread's own id.
#[must_use]
pub fn own() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// How often the calling thread has had to wait for something since it began: for a disk, a lock, an event. Not how often
/// it was sent away from its processor for others to have it.
#[must_use]
pub fn own_waits() -> i64 {
    sys::voluntary_switches()
}

/// Process and credentials of a task.
///
/// # Errors
/// `ENOENT` or `ESRCH` if the task has gone; `EBADMSG` if the file lacks a line that every kernel writes.
pub fn status(tid: i32) -> Result<Status, CallError> {
    let file = open(tid, "status")?;
    let mut parser = StatusParser::default();
    let (mut chunk, mut offset) = ([0; 2048], 0_u64);
    // In pieces: the line of supplementary groups alone may be 700 KiB long, and what we need is on both sides of it.
    loop {
        let length = read_at(&file, &mut chunk, offset)?;
        let Some(bytes) = chunk.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        if parser.feed(bytes) {
            break;
        }
        offset = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
    }
    parser.finish().ok_or_else(|| CallError::new("read(status)", Target::Task(tid), rustix::io::Errno::BADMSG))
}

/// The credentials of a task: those of [`status`].
///
/// # Errors
/// Those of [`status`].
pub fn credentials(tid: i32) -> Result<Subject, CallError> {
    status(tid).map(|status| status.subject)
}

/// The name of a task, at most 15 bytes (64 for a kernel thread); any bytes, also a line feed.
///
/// # Errors
/// `ENOENT` or `ESRCH` if the task has gone.
pub fn comm(tid: i32) -> Result<Vec<u8>, CallError> {
    let mut buffer = [0; 128];
    let name = read(tid, "comm", &mut buffer)?;
    Ok(name.strip_suffix(b"\n").unwrap_or(name).to_vec())
}

/// The user who logged in (`loginuid`); absent if nobody did, or without audit in the kernel.
///
/// # Errors
/// If the file exists and cannot be read.
pub fn login_uid(tid: i32) -> Result<Option<Uid>, CallError> {
    number(tid, "loginuid").map(|number| number.map(Uid))
}

/// The audit session (`sessionid`); absent if there is none, or without audit in the kernel.
///
/// # Errors
/// If the file exists and cannot be read.
pub fn session_id(tid: i32) -> Result<Option<u32>, CallError> {
    number(tid, "sessionid")
}

/// A number, where the largest one means none.
fn number(tid: i32, name: &'static str) -> Result<Option<u32>, CallError> {
    let mut buffer = [0; 32];
    match read(tid, name, &mut buffer) {
        Ok(text) => {
            Ok(std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).filter(|n| *n != u32::MAX))
        }
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(tid: i32, name: &str) -> Result<OwnedFd, CallError> {
    let path = format!("/proc/{tid}/{name}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| CallError::new("open(/proc/TID/…)", Target::Task(tid), error))
}

/// The first piece of `/proc/TID/NAME`, as much as fits.
pub(crate) fn read<'b>(tid: i32, name: &str, buffer: &'b mut [u8]) -> Result<&'b [u8], CallError> {
    let file = open(tid, name)?;
    let length = read_at(file.as_fd(), buffer, 0)?;
    Ok(buffer.get(..length).unwrap_or_default())
}

/// Lines that are looked at are shorter than this; the rest of a longer one is skipped.
const LINE: usize = 160;

/// Takes `/proc/TID/status` in pieces of any length.
#[derive(Debug)]
struct StatusParser {
    line: [u8; LINE],
    length: usize,
    tgid: Option<i32>,
    uids: Option<[u32; 3]>,
    gids: Option<[u32; 3]>,
    effective: Option<u64>,
}

impl Default for StatusParser {
    fn default() -> Self {
        Self { line: [0; LINE], length: 0, tgid: None, uids: None, gids: None, effective: None }
    }
}

impl StatusParser {
    /// Whether all has been found.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            if *byte == b'\n' {
                self.end_line();
                self.length = 0;
            } else if let Some(place) = self.line.get_mut(self.length) {
                *place = *byte;
                self.length = self.length.saturating_add(1);
            }
        }
        self.effective.is_some()
    }

    fn end_line(&mut self) {
        let line = self.line.get(..self.length).and_then(|line| std::str::from_utf8(line).ok());
        let Some((name, value)) = line.and_then(|line| line.split_once(':')) else { return };
        match name {
            "Tgid" => self.tgid = value.trim().parse().ok(),
            "Uid" => self.uids = ids(value),
            "Gid" => self.gids = ids(value),
            "CapEff" => self.effective = u64::from_str_radix(value.trim(), 16).ok(),
            _ => {}
        }
    }

    fn finish(self) -> Option<Status> {
        let ([uid, euid, suid], [gid, egid, sgid], effective) = (self.uids?, self.gids?, self.effective?);
        let subject = Subject {
            uid: Uid(uid),
            euid: Uid(euid),
            suid: Uid(suid),
            gid: Gid(gid),
            egid: Gid(egid),
            sgid: Gid(sgid),
            cap_setuid: effective & (1 << CAP_SETUID) != 0,
            cap_setgid: effective & (1 << CAP_SETGID) != 0,
        };
        Some(Status { tgid: self.tgid?, subject })
    }
}

/// Real, effective and saved id; the fourth, that of the file system, is not asked for.
fn ids(value: &str) -> Option<[u32; 3]> {
    let mut words = value.split_ascii_whitespace().map(|word| word.parse().ok());
    Some([words.next()??, words.next()??, words.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "Name:\tUid:\\n0\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t41\nNgid:\t0\nPid:\t42\nPPid:\t1\n\
                          TracerPid:\t0\nUid:\t1000\t0\t33\t0\nGid:\t100\t101\t102\t103\nFDSize:\t64\nGroups:\t";
    const AFTER: &str =
        "\nNStgid:\t41\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000080\n";

    fn parse(text: &str, piece: usize) -> Option<Status> {
        let mut parser = StatusParser::default();
        text.as_bytes().chunks(piece).any(|bytes| parser.feed(bytes));
        parser.finish()
    }

    #[test]
    fn only_waiting_counts_as_waiting() {
        let before = own_waits();
        let spun = std::time::Instant::now();
        while spun.elapsed() < std::time::Duration::from_millis(30) {}
        assert_eq!(own_waits(), before, "others may have had the processor, but nothing was waited for");
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(own_waits() > before);
    }

    #[test]
    fn credentials_are_found_however_the_text_is_cut_and_however_many_groups_there_are() {
        let expected = Status {
            tgid: 41,
            subject: Subject {
                uid: Uid(1000),
                euid: Uid(0),
                suid: Uid(33),
                gid: Gid(100),
                egid: Gid(101),
                sgid: Gid(102),
                cap_setuid: true,
                cap_setgid: false,
            },
        };
        for groups in [0, 1, 65536] {
            let text = format!("{BEFORE}{}{AFTER}", "4294967294 ".repeat(groups));
            for piece in [1, 7, 2048] {
                assert_eq!(parse(&text, piece), Some(expected), "{groups} groups in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_status_without_a_needed_line_gives_no_credentials() {
        let whole = format!("{BEFORE}{AFTER}");
        for line in ["Tgid:\t41", "Uid:\t1000\t0\t33\t0", "Gid:\t100", "CapEff:\t0000000000000080"] {
            assert!(whole.contains(line), "{line}");
            assert_eq!(parse(&whole.replace(line, "X:\t1"), 2048), None, "{line}");
        }
        assert_eq!(parse("", 1), None);
    }
}
