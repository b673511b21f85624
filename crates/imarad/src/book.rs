//! The journal of one file system: its file, and the seal that says that it counts.
//!
//! The file is made whole, of zeros, and then written over: what is added to it needs no new blocks, so that a full disk is
//! no hindrance, and `fdatasync(2)` writes nothing but the added bytes. When it is full it is written anew, with what still
//! counts, under another name, and takes the old one's place. The seal admits both while that goes on, so that there is a
//! journal that counts at any moment.
//!
//! A flush of the disk costs milliseconds, and most notes do without. What is to be kept from happening is that a change
//! survives a power cut and the note of it does not. A new file, and a label, come with a transaction of their file system; and
//! ext4 and XFS flush the disk before a transaction counts, which takes along whatever the disk was given before. So if the journal
//! is on that file system, it is enough that the disk [was given](imara_linux::sync::to_disk) the note. Not so for a file that is
//! written over in place: nothing of that need ever be part of a transaction. So a flush follows at once, for which a thread of its own
//! waits, if [he is not to](crate::config::Keeping::Unflushed); else the writer.
//!
//! Format: `imara_integrity::journal`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imara_integrity::host_key::MacKey;
use imara_integrity::journal::{End, HANDLE_LENGTH, Incarnation, Journal, LONGEST_PATH, Record, Seal, Sealed, Writer};
use imara_linux::lock::{Lock, LockError};
use imara_linux::sync;

/// Bytes of a journal's file, at least.
const SMALLEST: usize = 1 << 20;

/// Bytes of a journal's file at most: some 300,000 files that are being written at the same time.
const LARGEST: usize = 64 << 20;

/// A [`Record`] of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) handle: [u8; HANDLE_LENGTH],
    pub(crate) inode: u64,
    pub(crate) label: Option<Box<[u8]>>,
    pub(crate) path: Box<[u8]>,
}

impl Note {
    fn record(&self, id: u64) -> Record<'_> {
        // It is for messages only.
        let path = if self.path.len() > LONGEST_PATH { &[] } else { &*self.path };
        Record { id, handle: &self.handle, inode: self.inode, label: self.label.as_deref(), path }
    }
}

impl From<&Record<'_>> for Note {
    fn from(record: &Record<'_>) -> Self {
        let Record { handle, inode, label, path, .. } = *record;
        Self { handle: *handle, inode, label: label.map(Into::into), path: path.into() }
    }
}

/// How far a note has to come before somebody may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// It survives whenever a later transaction of the noted file's file system does.
    #[default]
    InOrder,
    /// The same, and it is [flushed](Leaf::flush) at once; but nobody waits for that.
    FlushedSoon,
    /// It survives.
    Flushed,
}

/// Which file system a journal is of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    /// Its identifier.
    pub(crate) uuid: [u8; 16],
    /// Whether it [keeps the order](imara_linux::sync::keeps_order) of what is written in the journal's directory.
    pub(crate) keeps_order: bool,
}

/// The journal of one file system.
#[derive(Debug)]
pub(crate) struct Book {
    key: MacKey,
    filesystem: [u8; 16],
    keeps_order: bool,
    path: PathBuf,
    /// All that counts, by id.
    notes: BTreeMap<u64, Note>,
    /// Absent if it could not be made, or written to.
    page: Option<Page>,
    seal: Option<Seal>,
    // Keeps other guards away from it.
    _lock: Lock,
}

/// A journal's file, as long as it is written to.
#[derive(Debug)]
pub(crate) struct Leaf {
    file: File,
    /// Whether what was written to it may be lost.
    lost: AtomicBool,
}

impl Leaf {
    /// Has the disk keep what it has been given.
    pub(crate) fn flush(&self) {
        if self.file.sync_data().is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }
}

/// The file that is being written to, and how far.
#[derive(Debug)]
struct Page {
    leaf: Arc<Leaf>,
    writer: Writer,
    offset: usize,
    size: usize,
    /// As far as the disk has it: an entry counts only with all before it.
    given: usize,
}

impl Page {
    /// Gives the disk what has been written.
    fn give(&mut self, in_order: bool) -> io::Result<()> {
        if in_order {
            let number = |number: usize| u64::try_from(number).map_err(io::Error::other);
            sync::to_disk(self.leaf.file.as_fd(), number(self.given)?, number(self.offset - self.given)?)?;
        } else {
            self.leaf.file.sync_data()?;
        }
        self.given = self.offset;
        Ok(())
    }
}

impl Book {
    /// Opens the journal of the file system with this identifier in a directory, and begins it anew with what counts of it,
    /// numbered from `next` on. Also returned: what is not as it should be, in words.
    ///
    /// # Errors
    /// In words, if it is another guard's, or its directory cannot be used. A journal that cannot be written is no error.
    pub(crate) fn open(
        directory: &Path,
        key: &MacKey,
        Subject { uuid: filesystem, keeps_order }: Subject,
        next: &mut u64,
    ) -> Result<(Self, Option<String>), String> {
        let name: String = filesystem.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = directory.join(name);
        let lock = Lock::take(&path.with_extension("lock")).map_err(|error| match error {
            LockError::Taken { .. } => "another guard has it: one guards a copy of this file system".to_owned(),
            LockError::Call(_) | _ => error.to_string(),
        })?;
        let notes = BTreeMap::new();
        let mut book =
            Self { key: key.clone(), filesystem, keeps_order, path, notes, page: None, seal: None, _lock: lock };
        let complaint = book.read(next);
        Ok((book, complaint))
    }

    /// Reads what is there. What is not admitted is left out.
    fn read(&mut self, next: &mut u64) -> Option<String> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                self.put_aside();
                return Some(format!("cannot be read: {error}"));
            }
        };
        let sealed = fs::read(self.path.with_extension("seal")).unwrap_or_default();
        let seal = Seal::read(&self.key, &self.filesystem, &sealed);
        let journal = Journal::read(&self.key, &bytes);
        if !seal.as_ref().is_some_and(|seal| seal.admits(&self.filesystem, &journal)) {
            self.put_aside();
            return Some("is not the one that was written last, or not whole: nothing of it counts".into());
        }
        for record in &journal.records {
            self.notes.insert(*next, Note::from(record));
            *next += 1;
        }
        self.seal = seal;
        match journal.end {
            End::Whole => None,
            // As after any power cut.
            End::Torn { .. } => None,
            End::Unvouched { at } => Some(format!("was cut off or changed: what follows byte {at} does not count")),
            End::Unknown { at, version } => {
                self.put_aside();
                Some(format!("is of version {version} from byte {at} on: that does not count"))
            }
        }
    }

    /// Keeps what we do not understand, for whoever wants to look into it.
    fn put_aside(&self) {
        let _ = fs::rename(&self.path, self.path.with_extension("refused"));
    }

    /// What counts.
    pub(crate) fn notes(&self) -> impl Iterator<Item = (u64, &Note)> {
        self.notes.iter().map(|(id, note)| (*id, note))
    }

    /// Notes files that are going to be written to, and then strikes out what is at rest. When this returns, the former have
    /// come as far as they have to; if it fails, none of them counts.
    pub(crate) fn add(&mut self, notes: Vec<(u64, Note)>, at_rest: &[u64], reach: Reach) -> io::Result<()> {
        let ids: Vec<u64> = notes.iter().map(|(id, _)| *id).collect();
        let appended = self.append(&notes, at_rest, reach);
        self.notes.extend(notes);
        self.forget(at_rest);
        // Perhaps it is only this place of the disk that cannot be written.
        let result = if appended.is_ok_and(|appended| appended) { Ok(()) } else { self.begin_anew() };
        if result.is_err() {
            self.page = None;
            self.forget(&ids);
        }
        result
    }

    /// What is still to be flushed, if notes have been added that reach as far as this.
    pub(crate) fn to_flush(&self, reach: Reach) -> Option<Arc<Leaf>> {
        let soon = self.keeps_order && reach == Reach::FlushedSoon;
        self.page.as_ref().filter(|_| soon).map(|page| Arc::clone(&page.leaf))
    }

    /// Strikes out what is at rest, for when the journal is next written anew.
    pub(crate) fn forget(&mut self, at_rest: &[u64]) {
        at_rest.iter().for_each(|id| drop(self.notes.remove(id)));
    }

    /// False if there is no room, or no file.
    fn append(&mut self, notes: &[(u64, Note)], at_rest: &[u64], reach: Reach) -> io::Result<bool> {
        let Some(page) = self.page.as_mut().filter(|page| !page.leaf.lost.load(Ordering::Relaxed)) else {
            return Ok(false);
        };
        let (mut writer, mut bytes) = (page.writer.clone(), Vec::new());
        for (id, note) in notes {
            if !writer.writing(&note.record(*id), &mut bytes) {
                return Err(io::Error::other("label or path is too long"));
            }
        }
        writer.at_rest(at_rest, &mut bytes);
        if page.offset + bytes.len() > page.size {
            return Ok(false);
        }
        page.leaf.file.write_all_at(&bytes, u64::try_from(page.offset).map_err(io::Error::other)?)?;
        (page.writer, page.offset) = (writer, page.offset + bytes.len());
        if !notes.is_empty() {
            page.give(self.keeps_order && reach != Reach::Flushed)?;
        }
        Ok(true)
    }

    /// Writes the journal anew.
    pub(crate) fn begin_anew(&mut self) -> io::Result<()> {
        self.page = Some(self.rewrite(SMALLEST)?.0);
        Ok(())
    }

    /// Writes it a last time, so that a cut would show.
    pub(crate) fn end(mut self) -> io::Result<()> {
        let (page, sealed) = self.rewrite(0)?;
        self.write_seal(&Seal::of(Sealed { ended: Some(*page.writer.last()), ..sealed }))
    }

    fn rewrite(&mut self, smallest: usize) -> io::Result<(Page, Sealed)> {
        let incarnation = new_incarnation()?;
        let sealed = Sealed { incarnation, ended: None };
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(self.key.clone(), &self.filesystem, &incarnation, &mut bytes);
        for (id, note) in &self.notes {
            if !writer.writing(&note.record(*id), &mut bytes) {
                return Err(io::Error::other("label or path is too long"));
            }
        }
        let offset = bytes.len();
        if offset > LARGEST / 2 {
            return Err(io::Error::other("the journal is full"));
        }
        let size = if smallest == 0 { offset } else { smallest.max(2 * offset) };
        bytes.resize(size, 0);
        let new = self.path.with_extension("new");
        let file = replaceable(&new, &bytes)?;
        self.write_seal(&self.seal.as_ref().map_or_else(|| Seal::of(sealed), |seal| seal.and(sealed)))?;
        fs::rename(&new, &self.path)?;
        let seal = Seal::of(sealed);
        self.seal = Some(seal.clone());
        sync_directory(&self.path)?;
        self.write_seal(&seal)?;
        let leaf = Arc::new(Leaf { file, lost: AtomicBool::new(false) });
        Ok((Page { leaf, writer, offset, size, given: offset }, sealed))
    }

    fn write_seal(&self, seal: &Seal) -> io::Result<()> {
        let new = self.path.with_extension("new-seal");
        replaceable(&new, &seal.encode(&self.key, &self.filesystem))?;
        fs::rename(&new, self.path.with_extension("seal"))?;
        sync_directory(&self.path)
    }
}

/// A new file with these bytes, on the disk. One that is there is not opened: somebody else's guard may not let us.
fn replaceable(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let _ = fs::remove_file(path);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        // It would keep what little room there is.
        let _ = fs::remove_file(path);
    }
    written.map(|()| file)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

fn new_incarnation() -> io::Result<Incarnation> {
    imara_linux::host_key::random().map_err(|error| error.error)
}
