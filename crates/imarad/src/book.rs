//! The journal of one file system: its file, and the seal that says that it counts.
//!
//! The file is made whole, of zeros, and then written over: what is added to it needs no new blocks, so that a full disk is
//! no hindrance, and `fdatasync(2)` writes nothing but the added bytes. When it is full it is written anew, with what still
//! counts, under another name, and takes the old one's place. The seal admits both while that goes on, so that there is a
//! journal that counts at any moment.
//!
//! Format: `imara_integrity::journal`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use imara_integrity::host_key::MacKey;
use imara_integrity::journal::{End, HANDLE_LENGTH, Incarnation, Journal, Record, Seal, Sealed, Writer};
use imara_linux::lock::{Lock, LockError};

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
        Record { id, handle: &self.handle, inode: self.inode, label: self.label.as_deref(), path: &self.path }
    }
}

impl From<&Record<'_>> for Note {
    fn from(record: &Record<'_>) -> Self {
        let Record { handle, inode, label, path, .. } = *record;
        Self { handle: *handle, inode, label: label.map(Into::into), path: path.into() }
    }
}

/// The journal of one file system.
#[derive(Debug)]
pub(crate) struct Book {
    key: MacKey,
    filesystem: [u8; 16],
    path: PathBuf,
    /// All that counts, by id.
    notes: BTreeMap<u64, Note>,
    /// Absent if it could not be made, or written to.
    page: Option<Page>,
    seal: Option<Seal>,
    // Keeps other guards away from it.
    _lock: Lock,
}

/// The file that is being written to.
#[derive(Debug)]
struct Page {
    file: File,
    writer: Writer,
    offset: usize,
    size: usize,
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
        filesystem: [u8; 16],
        next: &mut u64,
    ) -> Result<(Self, Option<String>), String> {
        let name: String = filesystem.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = directory.join(name);
        let lock = Lock::take(&path.with_extension("lock")).map_err(|error| match error {
            LockError::Taken { .. } => "another guard has it: one guards a copy of this file system".to_owned(),
            LockError::Call(_) | _ => error.to_string(),
        })?;
        let notes = BTreeMap::new();
        let mut book = Self { key: key.clone(), filesystem, path, notes, page: None, seal: None, _lock: lock };
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

    /// Notes files that are going to be written to, and then strikes out what is at rest. When this returns, the former are
    /// on the disk; if it fails, none of them counts.
    pub(crate) fn add(&mut self, notes: Vec<(u64, Note)>, at_rest: &[u64]) -> io::Result<()> {
        let ids: Vec<u64> = notes.iter().map(|(id, _)| *id).collect();
        let appended = self.append(&notes, at_rest);
        self.notes.extend(notes);
        self.forget(at_rest);
        let result = appended.and_then(|appended| if appended { Ok(()) } else { self.begin_anew() });
        if result.is_err() {
            self.page = None;
            self.forget(&ids);
        }
        result
    }

    /// Strikes out what is at rest, for when the journal is next written anew.
    pub(crate) fn forget(&mut self, at_rest: &[u64]) {
        at_rest.iter().for_each(|id| drop(self.notes.remove(id)));
    }

    /// False if there is no room, or no file.
    fn append(&mut self, notes: &[(u64, Note)], at_rest: &[u64]) -> io::Result<bool> {
        let Some(page) = &mut self.page else { return Ok(false) };
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
        page.file.write_all_at(&bytes, u64::try_from(page.offset).map_err(io::Error::other)?)?;
        if !notes.is_empty() {
            page.file.sync_data()?;
        }
        (page.writer, page.offset) = (writer, page.offset + bytes.len());
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
        Ok((Page { file, writer, offset, size }, sealed))
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
