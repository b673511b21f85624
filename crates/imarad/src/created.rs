//! Which files were created under guard: the kernel's `IMA_NEW_FILE`, from the notices of a second fanotify group.
//!
//! A new file may be opened although it has no label, and gets one when its writer closes. An *old* empty file without
//! a label may not: somebody may have emptied it and stripped its label while nobody looked. The difference cannot be
//! seen in the file, so we remember the handles of files whose creation we heard of, until they are asked for.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use hashlink::LinkedHashMap;
use imara_linux::file::{self, FileFacts, Time};
use imara_linux::handle::{FileHandle, file_handle};
use imara_linux::notice::{Notice, NoticeBuffer, NoticeGroup};

/// Handles remembered at most. Nearly every new file is opened at once by whoever creates it; only those made by
/// mknod(2) and those that no rule covers stay.
const CAPACITY: usize = 65_536;

/// A hard link to an old file gives the same notice as a new file. A file that was born longer than this (in seconds)
/// before its notice was read is an old one.
const FRESH: i64 = 60;

/// A question may come before the notice of the file's creation, if another than the creator asks. It does not come
/// later than this (in seconds).
const RACE: i64 = 1;

/// Reads at once at most; one gives about 150 notices.
const READS: usize = 32;

/// Whether a file was created under guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newness {
    New,
    Old,
    /// There are more notices than could be read at once.
    NotKnownYet,
}

/// The creations we heard of.
#[derive(Debug)]
pub(crate) struct Created {
    group: NoticeGroup,
    buffer: NoticeBuffer,
    /// In the order in which they were heard of.
    heard: LinkedHashMap<FileHandle, Time>,
    began: Time,
    running: Instant,
    /// Notices that were lost since.
    lost: u64,
}

impl Created {
    pub(crate) fn new(group: NoticeGroup) -> Self {
        let (began, running) = (file::clock(), Instant::now());
        Self { group, buffer: NoticeBuffer::default(), heard: LinkedHashMap::new(), began, running, lost: 0 }
    }

    pub(crate) const fn group(&self) -> &NoticeGroup {
        &self.group
    }

    /// Notices that were lost since the guard began.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Reads some of the notices that are there: who makes links faster than we read must not keep us.
    pub(crate) fn listen(&mut self) {
        for _ in 0..READS {
            if !self.hear() {
                break;
            }
        }
    }

    /// Reads once; whether there was anything.
    fn hear(&mut self) -> bool {
        let now = file::clock();
        let Ok(notices) = self.group.read(&mut self.buffer) else { return false };
        let mut any = false;
        for notice in notices {
            any = true;
            match notice {
                Ok(Notice::Made(handle)) => {
                    self.heard.insert(handle, now);
                }
                Ok(_) | Err(_) => self.lost += 1,
            }
        }
        while self.heard.len() > CAPACITY {
            self.heard.pop_front();
        }
        any
    }

    /// Whether this file was created under guard and has not been asked about before. The notice of an `open(O_CREAT)`
    /// is in the queue before its own question is, so what is in the queue now is enough.
    pub(crate) fn take(&mut self, descriptor: BorrowedFd<'_>, facts: &FileFacts) -> Newness {
        let Ok(handle) = file_handle(descriptor) else { return Newness::Old };
        let mut behind = true;
        for _ in 0..READS {
            behind = self.hear();
            if !behind || self.heard.contains_key(&handle) {
                break;
            }
        }
        let Some(heard) = self.heard.remove(&handle) else {
            return if behind { Newness::NotKnownYet } else { Newness::Old };
        };
        let new = match facts.born {
            Some(born) => born_lately(born, self.began(), heard, FRESH),
            // Without a birth, that it has one name and no old contents has to do.
            None => facts.links <= 1 && born_lately(facts.modified, self.began(), heard, FRESH),
        };
        if new { Newness::New } else { Newness::Old }
    }

    /// Whether the notice of this file's creation may still be on its way.
    pub(crate) fn may_come(&self, facts: &FileFacts) -> bool {
        born_lately(facts.born.unwrap_or(facts.modified), self.began(), file::clock(), RACE)
    }

    /// When we began, in the time of the present clock: somebody may have set it since.
    fn began(&self) -> Time {
        let running = i64::try_from(self.running.elapsed().as_secs()).unwrap_or(i64::MAX);
        let by_now = file::clock().seconds.saturating_sub(running);
        // Both are rounded to seconds.
        let set = by_now.abs_diff(self.began.seconds) > 2;
        if set { Time { seconds: by_now.saturating_sub(1), nanoseconds: 0 } } else { self.began }
    }
}

/// Whether a file with this birth was made since the guard began, and not long (in seconds) before it was heard of.
fn born_lately(born: Time, began: Time, heard: Time, long: i64) -> bool {
    // A file system that keeps whole seconds shows the one that had begun.
    let since = if born.nanoseconds == 0 { born.seconds >= began.seconds } else { born >= began };
    let ahead = born.seconds > heard.seconds.saturating_add(1);
    since && !ahead && born.seconds >= heard.seconds.saturating_sub(long)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_born_since_the_guard_began_and_lately_is_new() {
        let time = |milliseconds: i64| Time {
            seconds: milliseconds.div_euclid(1000),
            nanoseconds: u32::try_from(milliseconds.rem_euclid(1000)).unwrap() * 1_000_000,
        };
        for (born, began, heard, expected) in [
            (1_000_004, 1_000_004, 1_000_004, true),
            (1_000_104, 1_000_004, 1_000_106, true),
            (1_000_003, 1_000_004, 1_000_106, false),
            // Whole seconds only.
            (1_000_000, 1_000_004, 1_000_106, true),
            (999_000, 1_000_004, 1_000_106, false),
            // Since the guard began, but long before the notice: a hard link to an old file.
            (1_000_104, 1_000_004, 1_062_106, false),
            // From the future: forged.
            (2_000_001, 1_000_004, 1_000_106, false),
        ] {
            assert_eq!(born_lately(time(born), time(began), time(heard), FRESH), expected, "{born} {began} {heard}");
        }
    }
}
