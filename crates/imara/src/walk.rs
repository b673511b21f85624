//! Finds every file below some paths, with several threads, following no symbolic link but those that are named.
//!
//! Threads share a stack of work: directories to read, and batches of file names where a directory has many. Each is
//! opened relative to its open parent, so that no name above it can be exchanged meanwhile. A thread that finds the
//! stack full does the work itself, which keeps memory bounded.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;

use anyhow::Context as _;
use imara_linux::dir::{self, DirectoryReader, Kind};
use imara_linux::file::{self, FileFacts};

use crate::why;
use crate::words::shown;

/// Batches that may wait.
const STACK: usize = 1024;

/// File names in a batch.
const BATCH: usize = 32;

/// Bytes that have to be left for the threads that are there before one more is started.
const SPARE: usize = 32 << 20;

/// What is walked, and by how many.
#[derive(Debug, clap::Args)]
pub(crate) struct Tree {
    /// Number of threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Stay on the file system of each PATH; its btrfs subvolumes and other mounts of it below are part of it
    #[arg(short = 'x', long)]
    one_file_system: bool,
    /// Files, and directories with everything below
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
}

impl Tree {
    /// The walk that was asked for.
    pub(crate) fn walk(&self) -> anyhow::Result<Walk> {
        Walk::new(&self.paths, self.one_file_system, self.jobs.map(usize::from))
    }
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    file: OwnedFd,
    path: PathBuf,
    /// The device number that its files show; absent for the working directory, below which files are named.
    pub(crate) device: Option<(u32, u32)>,
    /// The mount that it was opened through, if the kernel tells.
    mount: Option<u64>,
    /// The only file system allowed below, if told to stay on one.
    limit: Option<Superblock>,
    /// The place of the path that led here among those that were named; absent for the working directory.
    argument: Option<usize>,
}

impl Directory {
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what has these facts and is in this directory is in bounds. A subvolume of btrfs shows a device number of
    /// its own but lies on the same mount; a mount of the same file system has another number but the same superblock.
    fn allows(&self, facts: &FileFacts) -> bool {
        self.limit.is_none_or(|limit| {
            let neighbours =
                self.device == Some(facts.device) || (self.mount.is_some() && self.mount == facts.mount_id);
            neighbours || Superblock::of(facts) == limit
        })
    }
}

/// A file system, whichever of its mounts or subvolumes is looked at; what a guard guards. By its device number in the
/// list of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Superblock((u32, u32));

impl Superblock {
    /// Reads the list of mounts; if that does not show the mount, the file's device number has to do.
    fn of(facts: &FileFacts) -> Self {
        let mounts = imara_linux::mounts::mounts().unwrap_or_default();
        let mount = mounts.iter().find(|mount| Some(mount.id) == facts.mount_id);
        Self(mount.map_or(facts.device, |mount| mount.device))
    }
}

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) name: &'a CStr,
    /// The symbolic link that was named instead.
    link: Option<&'a Path>,
}

impl Entry<'_> {
    /// The path to show.
    pub(crate) fn path(&self) -> PathBuf {
        let named = || self.directory.path.join(OsStr::from_bytes(self.name.to_bytes()));
        self.link.map_or_else(named, Path::to_owned)
    }

    /// Whether a file with these facts is out of bounds: mounted here from another file system.
    pub(crate) fn is_elsewhere(&self, facts: &FileFacts) -> bool {
        !self.directory.allows(facts)
    }
}

/// What the walk comes across.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// A regular file.
    File(Entry<'a>),
    /// Something else that is no directory.
    Other(Entry<'a>, Kind),
    /// A directory that could not be read.
    Failed(&'a Path, io::Error),
}

/// What is done with it.
pub(crate) trait Visitor: Sync {
    /// What each thread has for itself.
    type Worker;

    /// Makes a thread's own things.
    fn worker(&self) -> Self::Worker;

    /// Whether to go into a directory on another file system than its parent.
    fn enter(&self, worker: &mut Self::Worker, directory: &Directory) -> bool;

    /// Takes in what was found.
    fn visit(&self, worker: &mut Self::Worker, found: Found<'_>);
}

/// Where to begin and how to go.
#[derive(Debug)]
pub(crate) struct Walk {
    roots: Vec<Job>,
    arguments: Vec<Argument>,
    jobs: usize,
}

/// A path that was named.
#[derive(Debug)]
struct Argument {
    path: PathBuf,
    kind: Kind,
    /// Whether it has led to a regular file, or to a failure, which says enough.
    fruitful: AtomicBool,
}

/// A path that was named and has led to no regular file at all.
#[derive(Debug)]
pub(crate) struct Barren {
    pub(crate) path: PathBuf,
    /// What it is; not a link, which is followed.
    pub(crate) kind: Kind,
}

impl Walk {
    /// Looks at every path first: one that is missing is an error before anything is done. A symbolic link is followed,
    /// as `find -H` does.
    fn new(paths: &[PathBuf], one_file_system: bool, jobs: Option<usize>) -> anyhow::Result<Self> {
        // Directories that wait hold their parents open.
        let _ = imara_linux::limits::raise_open_files();
        let here = Directory {
            file: dir::working_directory().map_err(|error| anyhow::anyhow!(".: {}", why::not_opened(&error.error)))?,
            path: PathBuf::new(),
            device: None,
            mount: None,
            limit: None,
            argument: None,
        };
        let (here, mut roots, mut arguments) = (Arc::new(here), Vec::new(), Vec::new());
        for (argument, path) in paths.iter().enumerate() {
            let Named { name, kind, link } = Named::of(&here, path)?;
            arguments.push(Argument { path: path.to_owned(), kind, fruitful: AtomicBool::new(false) });
            let parent = Arc::clone(&here);
            roots.push(match kind {
                Kind::Directory => Job::Directory { parent, name, root: Some(Root { one_file_system, argument }) },
                Kind::File | Kind::Link | Kind::Pipe | Kind::Socket | Kind::Device | Kind::Unknown => {
                    Job::One { parent, name, kind, link, argument }
                }
            });
        }
        let jobs = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1);
        Ok(Self { roots, arguments, jobs })
    }

    /// Goes, and returns when everything has been visited; which of the paths led to nothing.
    pub(crate) fn run<V: Visitor>(self, visitor: &V) -> Vec<Barren> {
        let (stack, arguments) = (Stack::new(self.roots), self.arguments);
        thread::scope(|scope| {
            let own = Thread::new(&stack, &arguments, visitor);
            for _ in 1..self.jobs {
                let (begun, begins) = mpsc::sync_channel(1);
                let (stack, arguments) = (&stack, &arguments);
                let run = move || {
                    let thread = Thread::new(stack, arguments, visitor);
                    let _ = begun.send(());
                    thread.run();
                };
                // Fewer do as well. Each gets what it needs to begin before the next may take the last of the memory.
                let spawned = is_memory_left().then(|| thread::Builder::new().spawn_scoped(scope, run));
                if !matches!(spawned, Some(Ok(_))) || begins.recv().is_err() {
                    break;
                }
            }
            own.run();
        });
        let barren = arguments.into_iter().filter(|argument| !argument.fruitful.load(Ordering::Relaxed));
        barren.map(|Argument { path, kind, .. }| Barren { path, kind }).collect()
    }
}

/// What a path that was named stands for, and under which name that can be opened without following a link.
#[derive(Debug)]
struct Named {
    name: CString,
    kind: Kind,
    link: Option<PathBuf>,
}

impl Named {
    fn of(here: &Directory, path: &Path) -> anyhow::Result<Self> {
        let c_string = |bytes: &[u8]| CString::new(bytes).context("a path cannot hold a NUL byte (fix: leave it out)");
        let missing = |error: &io::Error| anyhow::anyhow!("{}: {}", shown(path), why::not_found(error));
        let dangling = |error: &io::Error| anyhow::anyhow!("{}: {}", shown(path), why::dangling(error));
        let name = c_string(path.as_os_str().as_bytes())?;
        let kind = dir::kind_of(here.file(), &name).map_err(|error| missing(&error.error))?;
        if kind != Kind::Link {
            return Ok(Self { name, kind, link: None });
        }
        let target = path.canonicalize().map_err(|error| dangling(&error))?;
        let target = c_string(target.as_os_str().as_bytes())?;
        let kind = dir::kind_of(here.file(), &target).map_err(|error| dangling(&error.error))?;
        if kind == Kind::Directory {
            // A slash behind a link makes the kernel follow it, and files below keep the name they were asked for by.
            return Ok(Self { name: c_string(&[path.as_os_str().as_bytes(), b"/"].concat())?, kind, link: None });
        }
        Ok(Self { name: target, kind, link: Some(path.to_owned()) })
    }
}

/// A piece of work.
#[derive(Debug)]
enum Job {
    /// A directory to read; `root` is present for one that was named.
    Directory { parent: Arc<Directory>, name: CString, root: Option<Root> },
    /// Files of one directory; each name ends with a NUL byte.
    Files { directory: Arc<Directory>, names: Vec<u8> },
    /// A single thing that was named, through `link` if that is present.
    One { parent: Arc<Directory>, name: CString, kind: Kind, link: Option<PathBuf>, argument: usize },
}

/// How to go on below a directory that was named.
#[derive(Clone, Copy, Debug)]
struct Root {
    one_file_system: bool,
    argument: usize,
}

/// The work that waits, last in first out: deep before wide keeps it short.
#[derive(Debug)]
struct Stack {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    jobs: VecDeque<Job>,
    /// Jobs waiting and in hand.
    open: usize,
}

impl Stack {
    fn new(roots: Vec<Job>) -> Self {
        let open = roots.len();
        // The first named is taken first.
        Self { state: Mutex::new(State { jobs: roots.into_iter().rev().collect(), open }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job, or gives it back if there are too many.
    fn push(&self, job: Job) -> Option<Job> {
        let mut state = self.lock();
        if state.jobs.len() >= STACK && matches!(job, Job::Files { .. }) {
            return Some(job);
        }
        state.jobs.push_back(job);
        state.open += 1;
        drop(state);
        self.changed.notify_one();
        None
    }

    /// The next job; none when all are done.
    fn pop(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_back() {
                return Some(job);
            }
            if state.open == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job that was popped is done.
    fn done(&self) {
        let mut state = self.lock();
        state.open -= 1;
        if state.open == 0 {
            self.changed.notify_all();
        }
    }
}

struct Thread<'w, V: Visitor> {
    stack: &'w Stack,
    arguments: &'w [Argument],
    visitor: &'w V,
    worker: V::Worker,
    reader: DirectoryReader,
}

impl<'w, V: Visitor> Thread<'w, V> {
    fn new(stack: &'w Stack, arguments: &'w [Argument], visitor: &'w V) -> Self {
        Self { stack, arguments, visitor, worker: visitor.worker(), reader: DirectoryReader::default() }
    }

    /// The path with this place has led to something.
    fn bears_fruit(&self, argument: Option<usize>) {
        if let Some(argument) = argument.and_then(|argument| self.arguments.get(argument)) {
            argument.fruitful.store(true, Ordering::Relaxed);
        }
    }

    fn run(mut self) {
        while let Some(job) = self.stack.pop() {
            match job {
                Job::Directory { parent, name, root } => {
                    let path = parent.path.join(OsStr::from_bytes(name.to_bytes()));
                    if let Err(error) = self.directory(&parent, &name, &path, root) {
                        // What was removed since its parent was read is nobody's failure.
                        if root.is_some() || error.kind() != io::ErrorKind::NotFound {
                            self.bears_fruit(root.map_or(parent.argument, |root| Some(root.argument)));
                            self.visitor.visit(&mut self.worker, Found::Failed(&path, error));
                        }
                    }
                }
                Job::Files { directory, names } => self.files(&directory, &names),
                Job::One { parent, name, kind, link, argument } => {
                    if kind == Kind::File {
                        self.bears_fruit(Some(argument));
                    }
                    self.one(Entry { directory: &parent, name: &name, link: link.as_deref() }, kind);
                }
            }
            self.stack.done();
        }
    }

    fn directory(&mut self, parent: &Directory, name: &CStr, path: &Path, root: Option<Root>) -> io::Result<()> {
        let file = dir::open_directory(parent.file(), name).map_err(|error| error.error)?;
        let facts = file::facts(file.as_fd()).map_err(|error| error.error)?;
        if !parent.allows(&facts) {
            return Ok(());
        }
        let limit = root.filter(|root| root.one_file_system).map(|_| Superblock::of(&facts)).or(parent.limit);
        let (path, argument) = (path.to_owned(), root.map_or(parent.argument, |root| Some(root.argument)));
        let (device, mount) = (Some(facts.device), facts.mount_id);
        let directory = Arc::new(Directory { file, path, device, mount, limit, argument });
        if root.is_none() && device != parent.device && !self.visitor.enter(&mut self.worker, &directory) {
            // There may well be files, but none that matters.
            self.bears_fruit(argument);
            return Ok(());
        }
        self.entries(&directory)
    }

    fn entries(&mut self, directory: &Arc<Directory>) -> io::Result<()> {
        let Self { stack, visitor, worker, reader, .. } = self;
        let (mut names, mut count, mut any) = (Vec::new(), 0, false);
        let result = reader.read(directory.file(), |name, kind| {
            let entry = Entry { directory, name, link: None };
            let kind = if kind == Kind::Unknown { dir::kind_of(directory.file(), name).unwrap_or(kind) } else { kind };
            match kind {
                Kind::File | Kind::Unknown => {
                    names.extend_from_slice(name.to_bytes_with_nul());
                    (count, any) = (count + 1, true);
                }
                Kind::Directory => {
                    let job = Job::Directory { parent: Arc::clone(directory), name: name.to_owned(), root: None };
                    stack.push(job);
                }
                Kind::Link | Kind::Pipe | Kind::Socket | Kind::Device => {
                    visitor.visit(worker, Found::Other(entry, kind));
                }
            }
            if count == BATCH {
                let full = std::mem::take(&mut names);
                count = 0;
                if let Some(Job::Files { directory, names }) =
                    stack.push(Job::Files { directory: Arc::clone(directory), names: full })
                {
                    each_name(&names, |name| {
                        visitor.visit(worker, Found::File(Entry { directory: &directory, name, link: None }));
                    });
                }
            }
        });
        if any {
            self.bears_fruit(directory.argument);
        }
        self.files(directory, &names);
        result.map_err(|error| error.error)
    }

    fn files(&mut self, directory: &Directory, names: &[u8]) {
        each_name(names, |name| {
            self.visitor.visit(&mut self.worker, Found::File(Entry { directory, name, link: None }));
        });
    }

    fn one(&mut self, entry: Entry<'_>, kind: Kind) {
        let found = if kind == Kind::File { Found::File(entry) } else { Found::Other(entry, kind) };
        self.visitor.visit(&mut self.worker, found);
    }
}

/// Whether the address space (`ulimit -v`) has room for one more thread; nothing is touched.
fn is_memory_left() -> bool {
    Vec::<u8>::new().try_reserve_exact(SPARE).is_ok()
}

fn each_name(names: &[u8], mut each: impl FnMut(&CStr)) {
    let mut rest = names;
    while let Ok(name) = CStr::from_bytes_until_nul(rest) {
        each(name);
        rest = rest.get(name.count_bytes() + 1..).unwrap_or_default();
    }
}
