//! The files that are raced for: what is in them, and what is known of that at any moment.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use rustix::fs::XattrFlags;
use sha2::{Digest as _, Sha256};

use super::dice::Dice;
use super::program::MAGIC;
use super::ways::Way;

/// Where the label is kept.
const LABEL: &std::ffi::CStr = c"security.ima";

/// The largest file there is, and what may be appended to it.
pub(super) const LARGEST: usize = (1 << 20) + (8 << 10);

/// What the contents are taken from, and how far apart they begin.
const STEP: usize = 4096;
const STARTS: usize = 509;

/// A label: version 2 of a digest's, the number of SHA-256, the digest.
pub(super) fn label_of(content: &[u8]) -> [u8; 34] {
    let mut label = [4; 34];
    if let Some(digest) = label.get_mut(2..) {
        digest.copy_from_slice(&Sha256::digest(content));
    }
    label
}

/// The label that a file has now. Opens nothing.
pub(super) fn read_label(path: &Path) -> io::Result<Vec<u8>> {
    let mut buffer = [0_u8; 512];
    let length = rustix::fs::getxattr(path, LABEL, &mut buffer)?;
    Ok(buffer.get(..length).unwrap_or_default().to_vec())
}

/// Writes a file's label. Opens nothing.
pub(super) fn write_label(path: &Path, label: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::setxattr(path, LABEL, label, XattrFlags::empty())?)
}

/// Random bytes, of which each content is a part. It lives as long as the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes(&'static [u8]);

impl Bytes {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let mut bytes = vec![0; STEP * STARTS + LARGEST];
        for place in bytes.chunks_mut(8) {
            for (byte, random) in place.iter_mut().zip(dice.next().to_le_bytes()) {
                // No zeros: a hole is another content.
                *byte = random | 1;
            }
        }
        // No content begins like a program or a script.
        bytes.iter_mut().step_by(STEP).for_each(|first| *first = 0xf5);
        Self(Vec::leak(bytes))
    }

    /// Content number `number`, so long. Those of the same length and number modulo 509 are the same.
    pub(super) fn content(self, number: usize, length: usize) -> &'static [u8] {
        let start = number % STARTS * STEP;
        self.0.get(start..start.saturating_add(length)).unwrap_or_default()
    }
}

/// What is certain about a file at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has it open for writing or mapped, and it is what its label says; where labels follow, what the phase
    /// says.
    Good,
    /// Nobody has it open for writing or mapped, and it is not what its label says.
    Bad,
    /// Nothing.
    Moving,
}

/// A phase of a file's life: a number that never comes again, and a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phase(u64);

impl Phase {
    pub(super) const fn state(self) -> State {
        match self.0 & 3 {
            0 => State::Good,
            2 => State::Bad,
            _ => State::Moving,
        }
    }

    /// Its number.
    pub(super) const fn number(self) -> u64 {
        self.0 >> 2
    }

    const fn next(self, state: State) -> Self {
        let bits = match state {
            State::Good => 0,
            State::Moving => 1,
            State::Bad => 2,
        };
        Self(((self.number() + 1) << 2) | bits)
    }
}

/// What only the writer whose turn it is knows.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The content, if the file is bad.
    pub(super) bad: Option<Vec<u8>>,
    /// Whether nobody knows the content, since a change ended half-way.
    pub(super) lost: bool,
}

/// A file.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) path: PathBuf,
    /// The same, for `execve`.
    pub(super) name: CString,
    /// What its label says.
    pub(super) good: Vec<u8>,
    pub(super) label: [u8; 34],
    pub(super) turn: Mutex<Turn>,
    phase: AtomicU64,
    way: AtomicUsize,
    since: Mutex<Instant>,
    told: AtomicU64,
    content: AtomicU64,
}

impl Subject {
    /// Makes the file, with its label. Must not be guarded yet.
    pub(super) fn make(path: PathBuf, good: &[u8]) -> Result<Self> {
        let label = label_of(good);
        // Executable, for whoever tries.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path)?;
        file.write_all(good)?;
        write_label(&path, &label).with_context(|| format!("cannot label {}", path.display()))?;
        let name = CString::new(path.as_os_str().as_bytes())?;
        Ok(Self {
            path,
            name,
            good: good.to_vec(),
            label,
            turn: Mutex::default(),
            phase: AtomicU64::new(0),
            way: AtomicUsize::new(0),
            since: Mutex::new(Instant::now()),
            told: AtomicU64::new(u64::MAX),
            content: AtomicU64::new(0),
        })
    }

    pub(super) fn phase(&self) -> Phase {
        Phase(self.phase.load(Ordering::SeqCst))
    }

    /// A new phase begins; only he whose turn it is may say so.
    pub(super) fn enter(&self, state: State) -> Phase {
        let next = self.phase().next(state);
        if let Ok(mut since) = self.since.lock() {
            *since = Instant::now();
        }
        self.phase.store(next.0, Ordering::SeqCst);
        next
    }

    /// Notes how it is changed.
    pub(super) fn changed_by(&self, way: Way) {
        self.way.store(way.number() + 1, Ordering::Relaxed);
    }

    /// The number of its content, where labels follow; true for a phase in which it stays the same.
    pub(super) fn content(&self) -> u64 {
        self.content.load(Ordering::SeqCst)
    }

    /// Only he whose turn it is may say so.
    pub(super) fn has_content(&self, number: u64) {
        self.content.store(number, Ordering::SeqCst);
    }

    /// Whether something is told of it for the first time in this phase.
    pub(super) fn is_first_in(&self, phase: Phase) -> bool {
        self.told.swap(phase.0, Ordering::Relaxed) != phase.0
    }

    /// Its last change, for a report: how, and how long ago the phase began.
    pub(super) fn history(&self) -> String {
        let number = self.way.load(Ordering::Relaxed).checked_sub(1);
        let way = number.and_then(|number| Way::ALL.get(number)).map_or("nobody", |way| way.name());
        let since = self.since.lock().map_or(0.0, |since| since.elapsed().as_secs_f64() * 1000.0);
        format!("last changed by {way}, phase {} of {since:.3} ms", self.phase().number())
    }

    /// Whether it is a program.
    pub(super) fn is_program(&self) -> bool {
        self.good.starts_with(MAGIC)
    }

    /// Another content than the good one.
    pub(super) fn tampered(&self, dice: &mut Dice, bytes: Bytes) -> Vec<u8> {
        let mut bad = self.good.clone();
        if self.is_program() {
            super::program::tamper(&mut bad, dice);
            return bad;
        }
        let length = bad.len();
        match dice.below(if length == 0 { 1 } else { 6 }) {
            0 => bad.resize(length + 1 + dice.below(5000), 0),
            1 => bad.truncate(dice.below(length)),
            2 => {
                // A hole, in the middle of the pages it is not in.
                let start = dice.below(length);
                let part = bad.iter_mut().skip(start).take(1 + dice.below(20_000));
                part.for_each(|byte| *byte = 0);
            }
            3 => bad = bytes.content(dice.below(STARTS), length).to_vec(),
            4 => bad.last_mut().into_iter().for_each(|byte| *byte ^= 2),
            _ => {
                let place = dice.below(length);
                bad.get_mut(place).into_iter().for_each(|byte| *byte ^= 0x80);
            }
        }
        if bad == self.good {
            bad.push(1);
        }
        bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_never_come_again_and_keep_their_state() {
        let mut phase = Phase(0);
        for (number, state) in (1..).zip([State::Moving, State::Bad, State::Moving, State::Good, State::Good]) {
            phase = phase.next(state);
            assert_eq!((phase.number(), phase.state()), (number, state));
        }
    }

    #[test]
    fn contents_are_as_long_as_asked_and_have_no_zeros() {
        let bytes = Bytes::new(&mut Dice::new(1));
        for (number, length) in [(0, 0), (508, LARGEST), (509, 1), (7, 4097)] {
            let content = bytes.content(number, length);
            assert_eq!(content.len(), length);
            assert!(!content.contains(&0) && content.first().is_none_or(|first| *first == 0xf5));
        }
        assert_ne!(bytes.content(1, 100), bytes.content(2, 100));
    }
}
