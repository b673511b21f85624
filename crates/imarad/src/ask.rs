//! A question that waits for its answer, and what is known of it meanwhile.

use std::os::fd::BorrowedFd;

use imara_integrity::audit::Asker;
use imara_integrity::check::Outcome;
use imara_integrity::policy::Decision;
use imara_linux::fanotify::Pending;
use imara_linux::file::FileFacts;
use imara_linux::{lease, task};

use crate::key::Key;
use crate::look::Look;
use crate::violations::Opener;

/// How often a question waits for the notice that its file is new.
const PATIENCE: u8 = 50;

/// A question that the policy wants judged.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) pending: Pending,
    key: Key,
    pub(crate) facts: FileFacts,
    pub(crate) decision: Decision,
    pub(crate) hold: Hold,
    /// As whom he is counted among those who have the file open, if it is watched for violations.
    pub(crate) opener: Option<Opener>,
    /// Whether a lease was tried for before `facts` were read, a moment ago.
    pub(crate) ahead: bool,
    /// Whether the dispatcher itself looked at the file, right after `facts` were read.
    pub(crate) at_once: bool,
    /// How much had been heard of changes when `facts` were read.
    pub(crate) heard: u64,
    /// Whether what is known of the file comes from the second memory.
    pub(crate) recalled: bool,
    /// Whether what was found in the file is from before anybody wrote to it.
    pub(crate) before_writers: bool,
    /// Whether it [vouches](crate::serve::Guard::vouches) for a writer.
    pub(crate) vouched: bool,
    /// Whether the journal has been waited for on its behalf.
    pub(crate) noted: bool,
    /// How often it was hashed in vain, because it changed.
    pub(crate) tries: u8,
    /// How often it may still be parked.
    pub(crate) patience: u8,
}

impl Ask {
    pub(crate) fn new(pending: Pending, facts: FileFacts, decision: Decision, opener: Option<Opener>) -> Self {
        let key = Key::of(pending.file(), &facts);
        Self {
            pending,
            key,
            facts,
            decision,
            hold: Hold::Nothing,
            opener,
            ahead: false,
            at_once: false,
            heard: 0,
            recalled: false,
            before_writers: false,
            vouched: false,
            noted: false,
            tries: 0,
            patience: PATIENCE,
        }
    }

    pub(crate) const fn key(&self) -> Key {
        self.key
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.pending.file()
    }

    /// Who asks. Must be read before the answer: afterwards he may be gone.
    pub(crate) fn asker(&self) -> Asker {
        asker(self.pending.tid())
    }

    /// Gives the lease on its descriptor back, if there is one.
    pub(crate) fn release(&mut self) {
        if std::mem::replace(&mut self.hold, Hold::Nothing).is_lease() {
            let _ = lease::release(self.file());
        }
    }
}

/// Who this thread is.
pub(crate) fn asker(tid: i32) -> Asker {
    Asker {
        pid: tid,
        uid: task::credentials(tid).ok().map(|subject| subject.uid),
        login_uid: task::login_uid(tid).ok().map(|uid| uid.map_or(u32::MAX, |uid| uid.0)),
        session: task::session_id(tid).ok().map(|session| session.unwrap_or(u32::MAX)),
        comm: task::comm(tid).unwrap_or_default(),
    }
}

/// What we know of writers at the moment of judging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Not looked at yet.
    Nothing,
    /// The asker's own descriptor holds a read lease, and so does the one that is remembered.
    Remembered,
    /// The asker's own descriptor holds a read lease.
    Lease,
    /// No lease to be had: somebody, perhaps the asker, has the file open for writing.
    Writer,
    /// No lease to be had for another reason: nothing is known of writers.
    Unleased,
}

impl Hold {
    /// Whether the asker's own descriptor holds a lease.
    pub(crate) const fn is_lease(self) -> bool {
        match self {
            Self::Remembered | Self::Lease => true,
            Self::Nothing | Self::Writer | Self::Unleased => false,
        }
    }
}

/// An opener that waits for its file's label to be repaired.
#[derive(Debug)]
pub(crate) struct Repair {
    pub(crate) ask: Ask,
    pub(crate) outcome: Outcome,
    pub(crate) look: Look,
}
