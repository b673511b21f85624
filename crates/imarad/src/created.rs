//! Which files were created under guard: the kernel's `IMA_NEW_FILE`, from the notices of a second fanotify group.
//!
//! A new file may be opened although it has no label, and gets one when its writer closes. An *old* empty file without
//! a label may not: somebody may have emptied it and stripped its label while nobody looked. The difference cannot be
//! seen in the file, so we remember the handles of files whose creation we heard of, until they are asked for.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use imara_linux::create::{CreateBuffer, CreateGroup, Creation, FileHandle, file_handle};
use imara_linux::file::Time;

/// Handles remembered at most. Nearly every new file is opened at once by whoever creates it; only those made by
/// mknod(2) and those that no rule covers stay.
const CAPACITY: usize = 65_536;

/// A hard link to an old file gives the same notice as a new file. An old file is one that was born longer than this
/// (seconds) before or after its notice was read.
const FRESH: i64 = 60;

/// The creations we heard of.
#[derive(Debug)]
pub(crate) struct Created {
    group: CreateGroup,
    buffer: CreateBuffer,
    heard: HashSet<FileHandle>,
    order: VecDeque<FileHandle>,
    read_at: i64,
}

impl Created {
    pub(crate) fn new(group: CreateGroup) -> Self {
        Self { group, buffer: CreateBuffer::default(), heard: HashSet::new(), order: VecDeque::new(), read_at: 0 }
    }

    pub(crate) const fn group(&self) -> &CreateGroup {
        &self.group
    }

    /// Reads the notices that are there. Returns how many were lost.
    pub(crate) fn listen(&mut self) -> u64 {
        let mut lost = 0;
        loop {
            let Ok(notices) = self.group.read(&mut self.buffer) else { return lost };
            let mut any = false;
            for notice in notices {
                any = true;
                match notice {
                    Ok(Creation::File(handle)) => {
                        if self.heard.insert(handle) {
                            self.order.push_back(handle);
                        }
                    }
                    Ok(_) | Err(_) => lost += 1,
                }
            }
            if !any {
                break;
            }
            self.read_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs().cast_signed());
        }
        while self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.heard.remove(&oldest);
            }
        }
        lost
    }

    /// Whether this file was created under guard and has not been asked about before. The notice of an `open(O_CREAT)`
    /// is in the queue before its question is, so reading the queue now is enough.
    pub(crate) fn take(&mut self, file: BorrowedFd<'_>, born: Option<Time>) -> bool {
        self.listen();
        let Ok(handle) = file_handle(file) else { return false };
        let fresh = born.is_none_or(|born| born.seconds.abs_diff(self.read_at) <= FRESH.unsigned_abs());
        self.heard.remove(&handle) && fresh
    }
}
