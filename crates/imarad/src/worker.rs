//! What a worker does with one file: reads and hashes it, and writes its label.
//!
//! All of this may wait for the guarded file system. [`pool`](crate::pool) says who does what when.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use imara_integrity::check::{self, Renewal, Settings};
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label;
use imara_linux::file::{self, Times};
use imara_linux::hash::{FileHasher, HashError};
use imara_linux::xattr::{self, Refusal};

use crate::book::Note;
use crate::look::{Label, Look, Sighting, Wanted};
use crate::scribe::Scribe;

/// How often a file is read that is cut meanwhile.
const TRIES: u8 = 5;

/// What a worker does with a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Read the label, and hash the content if that matters.
    Look(Wanted),
    /// Hash the content and write the label unless it is right.
    Renew(Settings),
    /// Write this digest's label.
    Label(Digest),
}

/// A piece of work, and what has to be known for it.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) work: Work,
    /// What the file system's times are worth.
    pub(crate) times: Times,
    /// Who has it noted that the file is going to have another label.
    pub(crate) cover: Option<Covered>,
}

/// Which file it is in the journal.
#[derive(Clone, Debug)]
pub(crate) struct Covered {
    pub(crate) scribe: Scribe,
    pub(crate) file_system: usize,
    pub(crate) handle: [u8; 24],
    pub(crate) inode: u64,
}

/// The note about the new label: its number, or why there is none; and the label.
pub(crate) type NewNote = (Result<u64, String>, Box<[u8]>);

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    /// What was found.
    Looked(Look),
    /// What is there now, with the content's digest; whether the label had to be written.
    Renewed { look: Look, digest: Digest, wrote: bool },
    /// The label is written.
    Labelled,
    /// The content could not be read.
    Unreadable(String),
    /// The label could not be read or written.
    NotWritten(String),
}

/// Does one piece of work after the other.
pub(crate) struct Worker<'s> {
    hasher: FileHasher,
    label: Vec<u8>,
    /// Of the file system of the present job.
    times: Times,
    hashed: &'s AtomicU64,
    /// Of the present job.
    cover: Option<Covered>,
    noted: Option<NewNote>,
}

/// A file to be worked on.
pub(crate) struct Opened<'a> {
    /// As somebody has opened it.
    pub(crate) file: &'a OwnedFd,
    /// Opens it through the guard's own mount.
    pub(crate) other: &'a dyn Fn() -> Option<OwnedFd>,
}

impl Opened<'_> {
    /// Writes the label; through the guard's own mount, if the file was opened through one that is read-only.
    fn write_label(&self, digest: &Digest) -> Result<(), String> {
        let label = label::encode_digest(digest);
        let write = |file: &OwnedFd| xattr::write(file.as_fd(), xattr::IMA, &label);
        let written = match write(self.file) {
            Err(error) if error.refusal == Refusal::ReadOnly => (self.other)().map_or(Err(error), |file| write(&file)),
            written => written,
        };
        written.map_err(|error| error.to_string())
    }
}

impl<'s> Worker<'s> {
    /// Counts in `hashed` what it hashes.
    pub(crate) fn new(hashed: &'s AtomicU64) -> Self {
        let hasher = FileHasher::default();
        Self { hasher, label: Vec::new(), times: Times::Coarse, hashed, cover: None, noted: None }
    }

    /// Does as ordered, and says what came of it and what was noted in the journal meanwhile. Adds to `progress` whenever
    /// something has been done.
    pub(crate) fn carry_out(
        &mut self,
        Order { work, times, cover }: Order,
        opened: &Opened<'_>,
        progress: &AtomicU64,
    ) -> (Done, Option<NewNote>) {
        (self.times, self.cover) = (times, cover);
        let done = self.work(opened, work, progress);
        (done, self.noted.take())
    }

    /// Has it noted that the file is going to have this label. It may reach the disk before the content does.
    fn cover(&mut self, file: &OwnedFd, digest: &Digest) {
        let Some(Covered { scribe, file_system, handle, inode }) = self.cover.take() else { return };
        let label: Box<[u8]> = label::encode_digest(digest).into();
        let path = file::path_of(file.as_fd()).unwrap_or_default().into();
        let note = Note { handle, inode, label: Some(label.clone()), path };
        self.noted = Some((scribe.note_and_wait(file_system, note), label));
    }

    fn work(&mut self, opened: &Opened<'_>, work: Work, progress: &AtomicU64) -> Done {
        match work {
            Work::Look(wanted) => match self.look(opened.file, wanted, progress) {
                Ok(look) => Done::Looked(look),
                Err(error) => Done::Unreadable(error),
            },
            Work::Renew(settings) => self.renew(opened, settings, progress),
            Work::Label(digest) => match opened.write_label(&digest) {
                Ok(()) => Done::Labelled,
                Err(error) => Done::NotWritten(error),
            },
        }
    }

    /// Reads the label, and the content if need be: anew if it was cut meanwhile.
    fn look(&mut self, file: &OwnedFd, wanted: Wanted, progress: &AtomicU64) -> Result<Look, String> {
        let mut tries = TRIES;
        loop {
            let facts = file::facts(file.as_fd()).map_err(|error| error.to_string())?;
            let sighting = Sighting::of(&facts, self.times);
            let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
            progress.fetch_add(1, Ordering::Relaxed);
            let Some(algorithm) = wanted.algorithm(label.as_read(), facts.size) else {
                return Ok(Look { sighting, label, digest: wanted.known });
            };
            if let Some(known) = wanted.known(algorithm) {
                return Ok(Look { sighting, label, digest: Some(known) });
            }
            // As many bytes as the sighting says: what looks otherwise afterwards is known to have been changed.
            match self.hash_once(file, facts.size, algorithm, progress) {
                Ok(digest) => return Ok(Look { sighting, label, digest: Some(digest) }),
                Err(HashError::Short { .. }) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    fn hash(&mut self, file: &OwnedFd, algorithm: HashAlgorithm, progress: &AtomicU64) -> Result<Digest, String> {
        let mut tries = TRIES;
        loop {
            let size = file::facts(file.as_fd()).map_err(|error| error.to_string())?.size;
            match self.hash_once(file, size, algorithm, progress) {
                Ok(digest) => return Ok(digest),
                Err(HashError::Short { .. }) if tries > 1 => tries -= 1,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Counts what it hashes.
    fn hash_once(
        &mut self,
        file: &OwnedFd,
        size: u64,
        algorithm: HashAlgorithm,
        progress: &AtomicU64,
    ) -> Result<Digest, HashError> {
        let before = progress.load(Ordering::Relaxed);
        let hashed = self.hasher.hash(file.as_fd(), size, algorithm, progress);
        // Nobody else counts there.
        self.hashed.fetch_add(progress.load(Ordering::Relaxed).wrapping_sub(before), Ordering::Relaxed);
        hashed
    }

    /// What is in a file whose label has just been written.
    fn look_again(&mut self, file: &OwnedFd, before: Look, digest: Digest) -> Look {
        // The time of our own change, or of a later one; in that case the label may be another, so it is read once more.
        let sighting = file::facts(file.as_fd()).map(|facts| Sighting::of(&facts, self.times));
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        let written = before.rewritten(&digest);
        match sighting {
            Ok(sighting) if label == written.label => Look { sighting, ..written },
            Ok(_) | Err(_) => written,
        }
    }

    fn renew(&mut self, opened: &Opened<'_>, settings: Settings, progress: &AtomicU64) -> Done {
        let file = opened.file;
        let facts = match file::facts(file.as_fd()) {
            Ok(facts) => facts,
            Err(error) => return Done::Unreadable(error.to_string()),
        };
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        if matches!(label, Label::Failed | Label::Unsupported) {
            return Done::NotWritten("its label cannot be read".into());
        }
        let times = self.times;
        let look = |digest| Look { sighting: Sighting::of(&facts, times), label: label.clone(), digest: Some(digest) };
        let mut algorithm = label::algorithm_asked(label.as_read().bytes(), settings.hash);
        loop {
            let digest = match self.hash(file, algorithm, progress) {
                Ok(digest) => digest,
                Err(error) => return Done::Unreadable(error),
            };
            match check::renew(label.as_read(), &digest, settings) {
                Renewal::Keep => return Done::Renewed { look: look(digest), digest, wrote: false },
                Renewal::Rehash(other) => algorithm = other,
                Renewal::Write(digest) => {
                    self.cover(file, &digest);
                    progress.fetch_add(1, Ordering::Relaxed);
                    return match opened.write_label(&digest) {
                        Ok(()) => {
                            Done::Renewed { look: self.look_again(file, look(digest), digest), digest, wrote: true }
                        }
                        Err(error) => Done::NotWritten(error),
                    };
                }
            }
        }
    }
}
