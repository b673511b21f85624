//! Files that have changed, found again by their handles.
//!
//! Of a file that no rule asks about nothing is held, nor of one in the second memory, so when one changes there is only
//! the handle in the notice. Finding the file may have to read the disk, which may take its time or hang: threads do it
//! that are [apart](imara_linux::apart).

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use imara_linux::apart::{AT_ONCE, Apart, Giver, Home, Taker, handing_over};
use imara_linux::epoll::Waker;
use imara_linux::error::CallError;
use imara_linux::handle::FileHandle;
use imara_linux::private_mount;

use crate::closer::LateFd;

/// Files of a lane that wait to be found at most. A thread that hangs leaves them there.
const WAITING: usize = 262_144;

/// Lanes, each with a thread of its own. A file system that hangs keeps only those waiting that share its lane, which no
/// two do before there are more of them.
const LANES: usize = 16;

/// Channels to the threads, one for each lane.
pub(crate) type Channels = Vec<(Giver, Taker)>;

/// Makes them; must be done before parting.
pub(crate) fn channels() -> Result<Channels, CallError> {
    (0..LANES).map(|_| handing_over()).collect()
}

/// What a file is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// The kernel is to ask about it again. Comes as an `O_PATH` descriptor, for which nobody is asked.
    Heed,
    /// It may have writers whom no rule asked about. Comes open for reading, through the mount of our own.
    Strangers,
    /// Its label is to follow. Comes open for reading, through the mount of our own.
    Renew,
}

/// An answer to several questions.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) purpose: Purpose,
    pub(crate) sought: Vec<FileHandle>,
    /// Those of them that are not gone.
    pub(crate) files: Vec<OwnedFd>,
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

/// The threads, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Revisit {
    apart: Apart,
    home: Arc<Home>,
    wake: Arc<Waker>,
    unused: Channels,
    lanes: Vec<Lane>,
    /// The lane of each file system.
    assigned: HashMap<[i32; 2], usize>,
}

/// One thread, and what it has been asked.
#[derive(Debug)]
struct Lane {
    requests: Sender<Request>,
    found: Taker,
    asked: VecDeque<Asked>,
    /// The same. Whoever changes a file again and again has it found once: the answer is acted upon after all changes.
    pending: HashSet<Sought>,
    last: u64,
}

/// A file through a mount, and what for.
type Sought = (Purpose, RawFd, FileHandle);

/// A request that has not been answered.
#[derive(Debug)]
struct Asked {
    number: u64,
    sought: Sought,
    _mount: Arc<LateFd>,
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
    /// No threads yet; they come with the file systems, and call `wake` after each answer.
    pub(crate) fn new(apart: Apart, home: Arc<Home>, wake: Arc<Waker>, unused: Channels) -> Self {
        Self { apart, home, wake, unused, lanes: Vec::new(), assigned: HashMap::new() }
    }

    /// Has a file found, unless it is being looked for. Never waits: false if too many wait already.
    pub(crate) fn ask(&mut self, handle: FileHandle, mount: Arc<LateFd>, purpose: Purpose) -> bool {
        let Some(lane) = self.lane(handle.fsid()) else { return false };
        let sought = (purpose, mount.as_raw_fd(), handle);
        if lane.pending.contains(&sought) {
            return true;
        }
        if lane.asked.len() >= WAITING {
            return false;
        }
        lane.last += 1;
        let number = lane.last;
        lane.pending.insert(sought);
        lane.asked.push_back(Asked { number, sought, _mount: mount });
        lane.requests.send(Request { number, purpose, handle, mount: sought.1 }).is_ok()
    }

    fn lane(&mut self, fsid: [i32; 2]) -> Option<&mut Lane> {
        let next = self.assigned.len() % LANES;
        let number = *self.assigned.entry(fsid).or_insert(next);
        if number >= self.lanes.len() {
            let (out, found) = self.unused.pop()?;
            let (requests, queue) = channel();
            let finder = Finder { queue, out, home: Arc::clone(&self.home), wake: Arc::clone(&self.wake) };
            self.apart.start("finder", move || finder.serve());
            let (asked, pending) = (VecDeque::new(), HashSet::new());
            self.lanes.push(Lane { requests, found, asked, pending, last: 0 });
        }
        self.lanes.get_mut(number)
    }

    /// What has been found, if anything, for one purpose.
    pub(crate) fn found(&mut self) -> Option<Found> {
        self.lanes.iter_mut().find_map(Lane::found)
    }
}

impl Lane {
    fn found(&mut self) -> Option<Found> {
        let (mut files, mut handles, mut purpose) = (Vec::new(), Vec::new(), None);
        // The answer to all requests up to this one.
        let number = self.found.take_now(&mut files).ok()?;
        while let Some(Asked { sought, .. }) = self.asked.pop_front_if(|asked| asked.number <= number) {
            self.pending.remove(&sought);
            purpose = Some(sought.0);
            handles.push(sought.2);
        }
        Some(Found { purpose: purpose?, sought: handles, files })
    }
}

impl Finder {
    fn serve(&self) {
        let mut next = None;
        while let Some(request) = next.take().or_else(|| self.queue.recv().ok()) {
            next = self.answer(request);
        }
    }

    /// Finds what this request asks for, and what others do that wait behind it and have the same purpose; the first one
    /// that has another.
    fn answer(&self, first: Request) -> Option<Request> {
        let (purpose, mut number) = (first.purpose, first.number);
        let mut roots: HashMap<RawFd, OwnedFd> = HashMap::new();
        let (mut files, mut next) = (Vec::new(), Some(first));
        while let Some(request) = next.take_if(|request| request.purpose == purpose && files.len() < AT_ONCE) {
            number = request.number;
            files.extend(self.find(&request, &mut roots));
            next = self.queue.try_recv().ok();
        }
        let found: Vec<BorrowedFd<'_>> = files.iter().map(OwnedFd::as_fd).collect();
        // No room: the dispatcher has not come to it yet. No memory: perhaps the next time.
        while !self.out.give(&found, number).unwrap_or(false) {
            let _ = self.wake.wake();
            self.out.wait_for_room();
        }
        let _ = self.wake.wake();
        next
    }

    /// `roots` holds what has been fetched of the mounts: they stay open at home until the answer.
    fn find(&self, request: &Request, roots: &mut HashMap<RawFd, OwnedFd>) -> Option<OwnedFd> {
        let find = match request.purpose {
            Purpose::Heed => private_mount::find,
            Purpose::Strangers | Purpose::Renew => private_mount::open,
        };
        let root = match roots.entry(request.mount) {
            Entry::Occupied(root) => root.into_mut(),
            Entry::Vacant(place) => place.insert(self.home.fetch(request.mount).ok()?),
        };
        // An error says that the file is gone, and its mark with it.
        find(root.as_fd(), &request.handle).ok()
    }
}
