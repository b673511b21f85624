//! File systems that come while the guard runs: those that were unmounted and are mounted again, and those that need not be
//! there at the start.
//!
//! Whoever looks at a new mount may have to wait for a disk that does not answer: threads do it that are
//! [apart](imara_linux::apart). What they find goes to the dispatcher, which [claims](crate::claim) it.
//!
//! Between the mount and its mark, files are opened unasked; that is about as long as it takes to read the list of mounts
//! and to open the mount point.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imara_linux::apart::{Apart, Giver, Taker};
use imara_linux::epoll::Waker;
use imara_linux::mounts::{self, Mount};

use crate::candidate::{self, Candidate};
use crate::log::Level;
use crate::serve::Guard;

/// Threads that look. One that hangs leaves the others.
const LOOKERS: usize = 3;

/// After this a mount that could not be had is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// So often in a row a mount is looked at in vain before that is said: the guard of the file system that had its device
/// number before may need a moment to notice that it has gone.
const PATIENCE: u32 = 3;

/// A mount to be looked at.
#[derive(Debug)]
struct Request {
    number: u64,
    path: PathBuf,
    mount: u64,
    /// A device of which we have the lock already.
    held: Option<(u32, u32)>,
}

/// What came of it; the descriptors come by another way.
type Answer = (u64, Result<Candidate, String>);

/// The same with them.
type Found = Result<(Candidate, Vec<OwnedFd>), String>;

/// What has been tried with an awaited path.
#[derive(Debug)]
struct Tried {
    /// Number of the mount.
    mount: u64,
    /// When it may be looked at again; never, as long as somebody looks.
    due: Option<Instant>,
    failed: u32,
}

/// The threads, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Arrivals {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
    handed: Taker,
    descriptors: HashMap<u64, Vec<OwnedFd>>,
    asked: HashMap<u64, (PathBuf, u64)>,
    tried: HashMap<PathBuf, Tried>,
    last: u64,
}

/// What a thread has.
#[derive(Clone, Debug)]
struct Looker {
    queue: Arc<Mutex<Receiver<Request>>>,
    answers: Sender<Answer>,
    giver: Arc<Giver>,
    wake: Arc<Waker>,
}

impl Arrivals {
    /// Starts the threads, which call `wake` after each mount. The channel must be from before parting.
    pub(crate) fn start(apart: &Apart, wake: &Arc<Waker>, started: &Sender<i32>, ends: (Giver, Taker)) -> Self {
        let (requests, queue) = channel();
        let (answers_in, answers) = channel();
        let (giver, handed) = (Arc::new(ends.0), ends.1);
        let looker = Looker { queue: Arc::new(Mutex::new(queue)), answers: answers_in, giver, wake: Arc::clone(wake) };
        for _ in 0..LOOKERS {
            let (looker, started) = (looker.clone(), started.clone());
            apart.start("looker", move || {
                let _ = started.send(imara_linux::task::own());
                drop(started);
                looker.serve();
            });
        }
        let descriptors = HashMap::new();
        Self { requests, answers, handed, descriptors, asked: HashMap::new(), tried: HashMap::new(), last: 0 }
    }

    /// Has a mount looked at, unless somebody does already, or it is too early for another try.
    fn look(&mut self, path: &Path, mount: u64, held: Option<(u32, u32)>, now: Instant) {
        let again = |tried: &Tried| tried.mount != mount || tried.due.is_some_and(|due| due <= now);
        let failed = match self.tried.get(path) {
            Some(tried) if !again(tried) => return,
            Some(tried) if tried.mount == mount => tried.failed,
            Some(_) | None => 0,
        };
        self.last += 1;
        self.asked.insert(self.last, (path.to_owned(), mount));
        self.tried.insert(path.to_owned(), Tried { mount, due: None, failed });
        let _ = self.requests.send(Request { number: self.last, path: path.to_owned(), mount, held });
    }

    /// What has been found of a mount, if anything: path, number of the mount, what it is or why it cannot be had.
    fn found(&mut self) -> Option<(PathBuf, u64, Found)> {
        let (number, answer) = self.answers.try_recv().ok()?;
        let mut files = Vec::new();
        // They have been handed over before the answer.
        while let Ok(number) = self.handed.take_now(&mut files) {
            self.descriptors.insert(number, std::mem::take(&mut files));
        }
        let (path, mount) = self.asked.remove(&number)?;
        let files = self.descriptors.remove(&number).unwrap_or_default();
        Some((path, mount, answer.map(|candidate| (candidate, files))))
    }

    /// Notes that a mount could not be had; whether that is to be said now.
    fn failed(&mut self, path: &Path, mount: u64, now: Instant) -> bool {
        let Some(tried) = self.tried.get_mut(path).filter(|tried| tried.mount == mount) else { return false };
        tried.due = Some(now + AGAIN);
        tried.failed += 1;
        tried.failed == PATIENCE
    }
}

impl Looker {
    fn serve(&self) {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(Request { number, path, mount, held }) = next else { return };
            let answer = candidate::look(&path, mount, held).map(|(candidate, files)| {
                let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                // No room, or no memory: the dispatcher has not come to it yet.
                while !self.giver.give(&files, number).unwrap_or(false) {
                    let _ = self.wake.wake();
                    std::thread::sleep(Duration::from_millis(1));
                }
                candidate
            });
            if self.answers.send((number, answer.map_err(|error| format!("{error:#}")))).is_err() {
                return;
            }
            let _ = self.wake.wake();
        }
    }
}

impl Guard {
    /// Has the mounts looked at that have come where a file system is awaited.
    pub(crate) fn look_for_arrivals(&mut self, now: Instant) {
        let awaited = self.filesystems.awaited();
        if awaited.is_empty() {
            return;
        }
        let mounts = mounts::mounts().unwrap_or_default();
        for path in awaited {
            match topmost(&mounts, &path) {
                // Another mount of what is guarded already.
                Some(mount) if self.filesystems.is_whole(mount.device) => {}
                Some(mount) => {
                    let held = self.filesystems.bereft_mut(&path, mount.device).map(|fs| fs.device());
                    self.arrivals.look(&path, mount.id, held, now);
                }
                None => drop(self.arrivals.tried.remove(&path)),
            }
        }
    }

    /// Claims what has been found.
    pub(crate) fn serve_arrivals(&mut self) {
        while let Some((path, mount, found)) = self.arrivals.found() {
            let claimed = found.and_then(|(candidate, files)| {
                let files = files.into_iter().map(|file| self.closer.late(file, false)).collect();
                let mounts = mounts::mounts().map_err(|error| error.to_string())?;
                if topmost(&mounts, &path).is_none_or(|topmost| topmost.id != mount) {
                    return Err("it has gone before it could be guarded".into());
                }
                self.claim(candidate, files).map_err(|error| format!("{error:#}"))
            });
            match claimed {
                Ok(()) => {
                    self.arrivals.tried.remove(&path);
                    self.log.say(Level::Warning, format!("imarad: {} has come and is guarded", path.display()));
                    self.mounts_changed();
                }
                Err(why) if self.arrivals.failed(&path, mount, Instant::now()) => {
                    let text = format!("imarad: {} has come and is not guarded yet: {why}", path.display());
                    self.log.say(Level::Warning, text);
                }
                Err(_) => {}
            }
        }
    }
}

/// The mount that a path leads to, of those that are mounted there.
fn topmost<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    mounts.iter().rfind(|mount| mount.point == path)
}
