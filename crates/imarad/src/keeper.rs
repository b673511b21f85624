//! The keeper: a thread that opens remembered files again, through a mount of our own.
//!
//! A remembered file's descriptor holds its lease. The one that came with the kernel's question keeps the mount busy
//! through which somebody opened the file, and umount(8) would fail; one of our own mount does not. Opening asks
//! everybody who guards this file system, us included: our own dispatcher has been told not to be asked for this mount,
//! but another program's may take its time. So it is done here, where nobody waits.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use imara_linux::epoll::Waker;
use imara_linux::private_mount;

use crate::closer::LateFd;
use crate::key::Key;

/// Files that the thread is asked for at once at most; each is one more descriptor through the public mount. The others
/// wait as names only.
const WAITING: usize = 128;

/// A file to be opened again.
#[derive(Debug)]
struct Request {
    key: Key,
    file: LateFd,
    mount: Arc<LateFd>,
}

/// The thread, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Keeper {
    requests: Sender<Request>,
    opened: Receiver<(Key, Option<OwnedFd>)>,
    /// How many it has been asked for that have not come back.
    asked: usize,
    /// Files that nobody could be asked for yet.
    postponed: VecDeque<Key>,
}

impl Keeper {
    /// Starts the thread, which calls `wake` after each file.
    pub(crate) fn start(wake: &Arc<Waker>, started: &Sender<i32>) -> std::io::Result<Self> {
        let (requests, queue) = channel::<Request>();
        let (out, opened) = channel();
        let (wake, started) = (Arc::clone(wake), started.clone());
        std::thread::Builder::new().name("keeper".into()).spawn(move || {
            let _ = started.send(imara_linux::task::own());
            drop(started);
            for Request { key, file, mount } in queue {
                let own = private_mount::reopen(mount.as_fd(), file.as_fd());
                // Both keep something busy; the dispatcher may be waiting for them to go.
                drop((file, mount));
                if out.send((key, own.ok())).is_err() {
                    return;
                }
                let _ = wake.wake();
            }
        })?;
        Ok(Self { requests, opened, asked: 0, postponed: VecDeque::new() })
    }

    /// Whether the thread takes another file now.
    pub(crate) const fn has_room(&self) -> bool {
        self.asked < WAITING
    }

    /// Asks for a file to be opened again. Never waits.
    pub(crate) fn ask(&mut self, key: Key, file: LateFd, mount: Arc<LateFd>) {
        if self.requests.send(Request { key, file, mount }).is_ok() {
            self.asked += 1;
        }
    }

    /// Notes that a file is to be asked for when there is room.
    pub(crate) fn postpone(&mut self, key: Key) {
        self.postponed.push_back(key);
    }

    /// A file that was postponed and can be asked for now, if any.
    pub(crate) fn next(&mut self) -> Option<Key> {
        if self.has_room() { self.postponed.pop_front() } else { None }
    }

    /// A file that the thread has come back with, if any; without a descriptor if it could not be opened.
    pub(crate) fn opened(&mut self) -> Option<(Key, Option<OwnedFd>)> {
        let opened = self.opened.try_recv().ok()?;
        self.asked = self.asked.saturating_sub(1);
        Some(opened)
    }
}
