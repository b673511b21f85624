//! Workers for what may take long: hashing what is large or not in memory, and writing labels.
//!
//! The dispatcher never waits for them: it hands a job over and finds the report later, when the wake-up descriptor is
//! readable. A worker may wait for the guarded file system (a slow disk, a frozen one); openers of *other* files do not.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use imara_integrity::appraise::LabelRead;
use imara_integrity::check::{self, Renewal, Settings};
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label;
use imara_linux::epoll::Waker;
use imara_linux::file;
use imara_linux::hash::FileHasher;
use imara_linux::xattr;

use crate::inodes::Key;

/// What a worker does with a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Hash the content.
    Hash(HashAlgorithm),
    /// Hash the content and write the label unless it is right.
    Renew(Settings),
    /// Write this digest's label.
    Label(Digest),
}

/// One piece of work.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) key: Key,
    pub(crate) serial: u64,
    pub(crate) file: OwnedFd,
    pub(crate) work: Work,
    pub(crate) progress: Arc<AtomicU64>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// The content's digest.
    Hashed(Digest),
    /// The content's digest; whether the label had to be written.
    Renewed { digest: Digest, wrote: bool },
    /// The label is written.
    Labelled,
    /// The content could not be read.
    Unreadable(String),
    /// The label could not be read or written.
    NotWritten(String),
}

/// A report to the dispatcher.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) key: Key,
    pub(crate) serial: u64,
    pub(crate) done: Done,
}

/// The workers, seen from the dispatcher.
#[derive(Debug)]
pub(crate) struct Pool {
    jobs: Sender<Job>,
    reports: Receiver<Report>,
}

impl Pool {
    /// Starts `threads` workers, who call `wake` after each report; their thread ids go to `threads_started`.
    pub(crate) fn start(threads: usize, wake: &Arc<Waker>, started: &Sender<i32>) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (out, reports) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads.max(1) {
            let (queue, out, wake, started) = (Arc::clone(&queue), out.clone(), Arc::clone(wake), started.clone());
            std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let _ = started.send(imara_linux::task::own());
                drop(started);
                let mut worker = Worker { hasher: FileHasher::default(), label: Vec::new() };
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Job { key, serial, file, work, progress }) = next else { return };
                    let done = worker.work(&file, work, &progress);
                    drop(file);
                    if out.send(Report { key, serial, done }).is_err() {
                        return;
                    }
                    let _ = wake.wake();
                }
            })?;
        }
        Ok(Self { jobs, reports })
    }

    /// Queues a job. Never waits.
    pub(crate) fn submit(&self, job: Job) {
        // Workers end only when this sender is dropped.
        let _ = self.jobs.send(job);
    }

    /// A report that has come in, if any.
    pub(crate) fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

struct Worker {
    hasher: FileHasher,
    label: Vec<u8>,
}

impl Worker {
    fn work(&mut self, file: &OwnedFd, work: Work, progress: &AtomicU64) -> Done {
        match work {
            Work::Hash(algorithm) => match self.hash(file, algorithm, progress) {
                Ok(digest) => Done::Hashed(digest),
                Err(error) => Done::Unreadable(error),
            },
            Work::Renew(settings) => self.renew(file, settings, progress),
            Work::Label(digest) => match write_label(file, &digest) {
                Ok(()) => Done::Labelled,
                Err(error) => Done::NotWritten(error),
            },
        }
    }

    fn hash(&mut self, file: &OwnedFd, algorithm: HashAlgorithm, progress: &AtomicU64) -> Result<Digest, String> {
        let size = file::facts(file.as_fd()).map_err(|error| error.to_string())?.size;
        self.hasher.hash(file.as_fd(), size, algorithm, progress).map_err(|error| error.to_string())
    }

    fn renew(&mut self, file: &OwnedFd, settings: Settings, progress: &AtomicU64) -> Done {
        let mut value = std::mem::take(&mut self.label);
        let read = xattr::read_label(file.as_fd(), xattr::IMA, &mut value);
        if matches!(read, LabelRead::Failed | LabelRead::Unsupported) {
            self.label = value;
            return Done::NotWritten("its label cannot be read".into());
        }
        let mut algorithm = label::algorithm_asked(read.bytes(), settings.hash);
        let done = loop {
            let digest = match self.hash(file, algorithm, progress) {
                Ok(digest) => digest,
                Err(error) => break Done::Unreadable(error),
            };
            match check::renew(read, &digest, settings) {
                Renewal::Keep => break Done::Renewed { digest, wrote: false },
                Renewal::Rehash(other) => algorithm = other,
                Renewal::Write(label) => {
                    progress.fetch_add(1, Ordering::Relaxed);
                    match write_label(file, &label) {
                        Ok(()) => break Done::Renewed { digest, wrote: true },
                        Err(error) => break Done::NotWritten(error),
                    }
                }
            }
        };
        self.label = value;
        done
    }
}

fn write_label(file: &OwnedFd, digest: &Digest) -> Result<(), String> {
    xattr::write(file.as_fd(), xattr::IMA, &label::encode_digest(digest)).map_err(|error| error.to_string())
}
