//! The keeper: a thread that opens remembered files again, through a mount of our own.
//!
//! A remembered file's descriptor holds its lease. The one that came with the kernel's question keeps the mount busy
//! through which somebody opened the file, and umount(8) would fail; one of our own mount does not. Opening asks
//! everybody who guards this file system, us included: our own dispatcher has been told not to be asked for this mount,
//! but another program's may take its time. So it is done here, where nobody waits.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use imara_linux::epoll::Waker;
use imara_linux::private_mount;

use crate::closer::LateFd;
use crate::key::Key;

/// Files that wait for the thread at most; each is a descriptor.
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
    requests: SyncSender<Request>,
    opened: Receiver<(Key, OwnedFd)>,
}

impl Keeper {
    /// Starts the thread, which calls `wake` after each file.
    pub(crate) fn start(wake: &Arc<Waker>, started: &Sender<i32>) -> std::io::Result<Self> {
        let (requests, queue) = sync_channel::<Request>(WAITING);
        let (out, opened) = channel();
        let (wake, started) = (Arc::clone(wake), started.clone());
        std::thread::Builder::new().name("keeper".into()).spawn(move || {
            let _ = started.send(imara_linux::task::own());
            drop(started);
            for Request { key, file, mount } in queue {
                let own = private_mount::reopen(mount.as_fd(), file.as_fd());
                // Both keep something busy; the dispatcher may be waiting for them to go.
                drop((file, mount));
                if own.is_ok_and(|own| out.send((key, own)).is_err()) {
                    return;
                }
                let _ = wake.wake();
            }
        })?;
        Ok(Self { requests, opened })
    }

    /// Asks for a file to be opened again. Never waits: if too many wait already, the file stays as it is.
    pub(crate) fn ask(&self, key: Key, file: LateFd, mount: Arc<LateFd>) {
        let _ = self.requests.try_send(Request { key, file, mount });
    }

    /// A file that has been opened, if any.
    pub(crate) fn opened(&self) -> Option<(Key, OwnedFd)> {
        self.opened.try_recv().ok()
    }
}
