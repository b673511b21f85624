//! Files that have changed, found again by their handles.
//!
//! Of a file that no rule asks about nothing is held, nor of one in the second memory, so when one changes there is only
//! the handle in the notice. Finding the file may have to read the disk, which may take its time or hang: a thread does it
//! that is [apart](imara_linux::apart).

use std::collections::HashMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use imara_linux::apart::{Apart, Giver, Home, Taker};
use imara_linux::epoll::Waker;
use imara_linux::handle::FileHandle;
use imara_linux::private_mount;

use crate::closer::LateFd;

/// Files that wait to be found at most. A thread that hangs leaves them there.
const WAITING: usize = 65_536;

/// What a file is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The kernel is to ask about it again. Comes as an `O_PATH` descriptor, for which nobody is asked.
    Heed,
    /// Its label is to follow. Comes open for reading, through the mount of our own.
    Renew,
}

/// A file to be found.
#[derive(Debug)]
struct Request {
    number: u64,
    purpose: Purpose,
    handle: FileHandle,
    /// The dispatcher's descriptor of a root directory. It stays open until the answer.
    mount: RawFd,
}

/// The thread, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Revisit {
    requests: Sender<Request>,
    found: Taker,
    asked: HashMap<u64, (Purpose, Arc<LateFd>)>,
    last: u64,
}

/// The thread's things.
#[derive(Debug)]
struct Finder {
    queue: Receiver<Request>,
    out: Giver,
    home: Arc<Home>,
    wake: Arc<Waker>,
}

impl Revisit {
    /// Starts the thread, which calls `wake` after each file. The channel must be from before parting.
    pub(crate) fn start(apart: &Apart, home: Arc<Home>, wake: Arc<Waker>, (out, found): (Giver, Taker)) -> Self {
        let (requests, queue) = channel();
        let finder = Finder { queue, out, home, wake };
        apart.start("finder", move || finder.serve());
        Self { requests, found, asked: HashMap::new(), last: 0 }
    }

    /// Has a file found. Never waits: false if too many wait already.
    pub(crate) fn ask(&mut self, handle: FileHandle, mount: Arc<LateFd>, purpose: Purpose) -> bool {
        if self.asked.len() >= WAITING {
            return false;
        }
        self.last += 1;
        let request = Request { number: self.last, purpose, handle, mount: mount.as_raw_fd() };
        self.asked.insert(self.last, (purpose, mount));
        self.requests.send(request).is_ok()
    }

    /// Files that have been found, if any. Those that are gone are left out.
    pub(crate) fn found(&mut self) -> Option<(Purpose, Vec<OwnedFd>)> {
        let mut files = Vec::new();
        let number = self.found.take_now(&mut files).ok()?;
        let (purpose, _) = self.asked.remove(&number)?;
        Some((purpose, files))
    }
}

impl Finder {
    fn serve(&self) {
        for Request { number, purpose, handle, mount } in &self.queue {
            let find = match purpose {
                Purpose::Heed => private_mount::find,
                Purpose::Renew => private_mount::open,
            };
            // An error says that the file is gone, and its mark with it.
            let found = self.home.fetch(mount).and_then(|root| find(root.as_fd(), &handle)).ok();
            let files: Vec<_> = found.iter().map(|file| file.as_fd()).collect();
            // No room, or no memory: the dispatcher has not come to it yet.
            while !self.out.give(&files, number).unwrap_or(false) {
                let _ = self.wake.wake();
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            let _ = self.wake.wake();
        }
    }
}
