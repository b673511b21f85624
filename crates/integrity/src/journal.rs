//! The journal of files that are being written: what it takes to tell them from tampered ones after a power cut.
//!
//! A journal is of one file system. It is entries, one after the other, up to the end of the file or a length of zero:
//!
//! ```text
//! length u16 le, of the body | version u8 = 1 | kind u8 | body | MAC, 32 bytes
//! kind 1, first and only there:  file system uuid, 16 bytes | incarnation, 16 bytes
//! kind 2, a file is written to:  id u64 le | handle, 24 bytes | inode u64 le | label | path
//! kind 3, files are at rest:     ids, u64 le each
//! label: length u16 le, 0xffff for none, bytes        path: length u16 le, bytes
//! ```
//!
//! The MAC is HMAC-SHA256 over the MAC before it (zeros before the first) and all of the entry up to its own, so that
//! entries can be neither changed, left out, nor put elsewhere. What can be done without the key is to cut the end off,
//! or to put an older journal in place of this one. Against the latter there is the [`Seal`] in a file of its own: it names
//! the incarnation that counts, and, after a clean stop, the last MAC of it too.
//!
//! Reading is total: any bytes give what is vouched for at their beginning, and why it ends there.

use crate::codec::Reader;
use crate::host_key::{MAC_LENGTH, MacKey};

/// What the journal's key is derived for.
pub const PURPOSE: &[u8] = b"imara journal 1";

/// Bytes of a label that a record can hold.
pub const LONGEST_LABEL: usize = 4096;

/// Bytes of a path that a record can hold.
pub const LONGEST_PATH: usize = 4096;

/// Ids in one entry at most.
const IDS: usize = 4096;

const VERSION: u8 = 1;
const BEGIN: u8 = 1;
const WRITING: u8 = 2;
const AT_REST: u8 = 3;
const HEAD: usize = 4;
const NO_LABEL: u16 = u16::MAX;

/// The shortest entry of a file that is written to, in bytes.
const SHORTEST: usize = HEAD + 8 + HANDLE_LENGTH + 8 + 2 + 2 + MAC_LENGTH;

/// Bytes of the handle by which a file is known, filled up with zeros.
pub const HANDLE_LENGTH: usize = 24;

/// Who a journal is: random, and another one each time that it is written anew.
pub type Incarnation = [u8; 16];

/// A file that was good when somebody was let in who may write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// By which it is struck out; larger than those before it.
    pub id: u64,
    /// The file system's own handle, with a generation.
    pub handle: &'a [u8; HANDLE_LENGTH],
    /// The number of the inode.
    pub inode: u64,
    /// Its label then; absent if it was new and had none.
    pub label: Option<&'a [u8]>,
    /// Where it was found, for messages; may be empty.
    pub path: &'a [u8],
}

/// Adds entries to a journal.
#[derive(Clone, Debug)]
pub struct Writer {
    key: MacKey,
    last: [u8; MAC_LENGTH],
}

impl Writer {
    /// Begins the journal of a file system: its first entry goes to `out`.
    #[must_use]
    pub fn begin(key: MacKey, filesystem: &[u8; 16], incarnation: &Incarnation, out: &mut Vec<u8>) -> Self {
        let mut writer = Self { key, last: [0; MAC_LENGTH] };
        writer.entry(BEGIN, &[filesystem, incarnation], out);
        writer
    }

    /// A file is going to be written to. False, and nothing is added, if label or path are too long.
    #[must_use]
    pub fn writing(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> bool {
        if record.label.is_some_and(|label| label.len() > LONGEST_LABEL) || record.path.len() > LONGEST_PATH {
            return false;
        }
        let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(NO_LABEL).to_le_bytes();
        let label = record.label.map_or(NO_LABEL.to_le_bytes(), length);
        let (id, inode, path) = (record.id.to_le_bytes(), record.inode.to_le_bytes(), length(record.path));
        let parts = [&id[..], record.handle, &inode, &label, record.label.unwrap_or_default(), &path, record.path];
        self.entry(WRITING, &parts, out);
        true
    }

    /// Files are at rest: these records count no more.
    pub fn at_rest(&mut self, ids: &[u64], out: &mut Vec<u8>) {
        for some in ids.chunks(IDS) {
            let body: Vec<u8> = some.iter().flat_map(|id| id.to_le_bytes()).collect();
            self.entry(AT_REST, &[&body], out);
        }
    }

    /// The MAC of the last entry: that of all.
    #[must_use]
    pub const fn last(&self) -> &[u8; MAC_LENGTH] {
        &self.last
    }

    fn entry(&mut self, kind: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
        let begin = out.len();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        out.extend(
            u16::try_from(length).expect("bodies are bounded: 4096 ids, or a label and a path of 4 KiB").to_le_bytes(),
        );
        out.extend([VERSION, kind]);
        parts.iter().for_each(|part| out.extend_from_slice(part));
        self.last = self.key.mac(&[&self.last, out.get(begin..).unwrap_or_default()]);
        out.extend(self.last);
    }
}

/// Why reading ended. Offsets are in bytes from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing follows.
    Whole,
    /// An entry that was cut off, or not yet written whole when the machine stopped.
    Torn {
        /// Where it begins.
        at: usize,
    },
    /// An entry that the host key does not vouch for at this place: changed, moved, of another machine, or half written.
    Unvouched {
        /// Where it begins.
        at: usize,
    },
    /// An entry that the host key vouches for and that we do not know: a later version wrote it.
    Unknown {
        /// Where it begins.
        at: usize,
        /// Its version.
        version: u8,
    },
}

/// What a journal says, as far as it is vouched for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal<'a> {
    /// Which file system it is of, and who it is. Absent if not even that is vouched for.
    pub identity: Option<([u8; 16], Incarnation)>,
    /// Files that may have been written to when it ended, in order of their ids.
    pub records: Vec<Record<'a>>,
    /// Why it ends.
    pub end: End,
    /// The MAC of the last entry that counts.
    pub last: [u8; MAC_LENGTH],
}

impl<'a> Journal<'a> {
    /// Reads whatever is there. Allocates less than the input's length.
    #[must_use]
    pub fn read(key: &MacKey, bytes: &'a [u8]) -> Self {
        let mut journal = Self { identity: None, records: Vec::new(), end: End::Whole, last: [0; MAC_LENGTH] };
        let mut reader = Reader::new(bytes);
        // Of each record, whether it was struck out since: taking each out at once would move all behind it.
        let (mut struck, mut highest) = (Vec::new(), 0);
        loop {
            let at = reader.offset();
            match Entry::read(key, &journal.last, &mut reader) {
                Err(end) => {
                    journal.end = end;
                    break;
                }
                Ok(None) => break,
                Ok(Some((entry, mac))) => {
                    // Vouched for, so it is ours; but not where it belongs, so we do not know what it means.
                    if !journal.take(entry, bytes.len(), &mut struck, &mut highest) {
                        journal.end = End::Unknown { at, version: VERSION };
                        break;
                    }
                    journal.last = mac;
                }
            }
        }
        let mut struck = struck.into_iter();
        journal.records.retain(|_| struck.next() == Some(false));
        journal
    }

    fn take(&mut self, entry: Entry<'a>, length: usize, struck: &mut Vec<bool>, highest: &mut u64) -> bool {
        match (entry, self.identity) {
            (Entry::Begin(filesystem, incarnation), None) => {
                self.identity = Some((filesystem, incarnation));
                true
            }
            (Entry::Writing(record), Some(_)) if record.id > *highest => {
                *highest = record.id;
                if self.records.is_empty() {
                    self.records.reserve_exact(length / SHORTEST);
                }
                self.records.push(record);
                struck.push(false);
                true
            }
            (Entry::AtRest(ids), Some(_)) => {
                self.strike(ids, struck);
                true
            }
            (Entry::Begin(..), Some(_)) | (Entry::Writing(_), _) | (Entry::AtRest(_), None) => false,
        }
    }

    fn strike(&self, ids: &[u8], struck: &mut [bool]) {
        let (ids, _) = ids.as_chunks::<8>();
        for id in ids.iter().map(|id| u64::from_le_bytes(*id)) {
            let place = self.records.binary_search_by_key(&id, |record| record.id);
            if let Some(struck) = place.ok().and_then(|place| struck.get_mut(place)) {
                *struck = true;
            }
        }
    }
}

enum Entry<'a> {
    Begin([u8; 16], Incarnation),
    Writing(Record<'a>),
    AtRest(&'a [u8]),
}

impl<'a> Entry<'a> {
    /// The next one, with its MAC; `None` if there is none.
    fn read(
        key: &MacKey,
        last: &[u8; MAC_LENGTH],
        reader: &mut Reader<'a>,
    ) -> Result<Option<(Self, [u8; MAC_LENGTH])>, End> {
        let at = reader.offset();
        if reader.remaining() == 0 {
            return Ok(None);
        }
        let torn = |_| End::Torn { at };
        let head: [u8; HEAD] = reader.array().map_err(torn)?;
        let [low, high, version, kind] = head;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length == 0 {
            return Ok(None);
        }
        let body = reader.take(length).map_err(torn)?;
        let mac: [u8; MAC_LENGTH] = reader.array().map_err(torn)?;
        if !key.vouches(&[last, &head, body], &mac) {
            return Err(End::Unvouched { at });
        }
        let entry = if version == VERSION { Self::parse(kind, body) } else { None };
        entry.map(|entry| Some((entry, mac))).ok_or(End::Unknown { at, version })
    }

    fn parse(kind: u8, body: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let entry = match kind {
            BEGIN => Self::Begin(reader.array().ok()?, reader.array().ok()?),
            WRITING => Self::Writing(Record {
                id: reader.array().map(u64::from_le_bytes).ok()?,
                handle: reader.take(HANDLE_LENGTH).ok()?.try_into().ok()?,
                inode: reader.array().map(u64::from_le_bytes).ok()?,
                label: match reader.array().map(u16::from_le_bytes).ok()? {
                    NO_LABEL => None,
                    length => Some(reader.take(usize::from(length)).ok().filter(|label| label.len() <= LONGEST_LABEL)?),
                },
                path: {
                    let length = reader.array().map(u16::from_le_bytes).ok()?;
                    reader.take(usize::from(length)).ok().filter(|path| path.len() <= LONGEST_PATH)?
                },
            }),
            AT_REST if body.len().is_multiple_of(8) && body.len() <= IDS * 8 => Self::AtRest(reader.rest()),
            _ => return None,
        };
        (reader.remaining() == 0).then_some(entry)
    }
}

/// Which incarnation of a journal counts: in a file of its own, so that an older journal is not taken for it.
///
/// While a journal is written anew there are two that count: the one before, and the one after.
///
/// ```text
/// version u8 = 1 | count u8, 1 or 2 | incarnation, 16 bytes | 1 if it has ended, else 0 | last MAC, or zeros | … | MAC
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal(Vec<Sealed>);

/// A journal that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which.
    pub incarnation: Incarnation,
    /// After a clean stop: the MAC of its last entry. Nothing may be missing then.
    pub ended: Option<[u8; MAC_LENGTH]>,
}

impl Seal {
    /// That of one journal.
    #[must_use]
    pub fn of(one: Sealed) -> Self {
        Self(vec![one])
    }

    /// The same, while another journal is going to take its place; only the last one of this seal stays.
    #[must_use]
    pub fn and(&self, next: Sealed) -> Self {
        Self(self.0.last().copied().into_iter().chain([next]).collect())
    }

    /// For the file; bound to the file system.
    #[must_use]
    pub fn encode(&self, key: &MacKey, filesystem: &[u8; 16]) -> Vec<u8> {
        let mut out = vec![VERSION, u8::try_from(self.0.len()).expect("two at most")];
        for Sealed { incarnation, ended } in &self.0 {
            out.extend(incarnation);
            out.push(u8::from(ended.is_some()));
            out.extend(ended.unwrap_or_default());
        }
        out.extend(key.mac(&[filesystem, &out]));
        out
    }

    /// Reads one. `None` if the host key does not vouch for it, or it is not a seal of this version.
    #[must_use]
    pub fn read(key: &MacKey, filesystem: &[u8; 16], bytes: &[u8]) -> Option<Self> {
        let (text, mac) = bytes.split_last_chunk::<MAC_LENGTH>()?;
        let mut reader = Reader::new(text);
        let (version, count) = (reader.byte().ok()?, reader.byte().ok()?);
        if !key.vouches(&[filesystem, text], mac) || version != VERSION || !(1..=2).contains(&count) {
            return None;
        }
        let mut sealed = Vec::with_capacity(2);
        for _ in 0..count {
            let incarnation = reader.array().ok()?;
            let (flag, last) = (reader.byte().ok()?, reader.array::<MAC_LENGTH>().ok()?);
            let ended = match (flag, last == [0; MAC_LENGTH]) {
                (0, true) => None,
                (1, _) => Some(last),
                _ => return None,
            };
            sealed.push(Sealed { incarnation, ended });
        }
        (reader.remaining() == 0).then_some(Self(sealed))
    }

    /// Whether what is said in a journal of this file system counts.
    #[must_use]
    pub fn admits(&self, filesystem: &[u8; 16], journal: &Journal<'_>) -> bool {
        let Some((of, incarnation)) = &journal.identity else { return false };
        let sealed = self.0.iter().find(|sealed| sealed.incarnation == *incarnation);
        of == filesystem && sealed.is_some_and(|sealed| sealed.ended.is_none_or(|last| last == journal.last))
    }
}

#[cfg(test)]
mod tests;
