//! Looking at a file: its label, and the digest of its content if the label cannot be judged without.
//!
//! The dispatcher looks itself only where that is very unlikely to wait: the file system is one that keeps all in this
//! machine, the content is in memory, and nothing on that file system has been slow lately. All else a worker does.

use std::time::{Duration, Instant};

use imara_integrity::appraise::{FileState, LabelRead};
use imara_integrity::check::{self, Plan, Settings};
use imara_integrity::collect::Collect;
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label;
use imara_integrity::policy::Decision;
use imara_linux::file::{self, FileFacts, Time, Times};
use imara_linux::{task, xattr};

use crate::ask::Ask;
use crate::serve::Guard;

/// Files up to this size are hashed by the dispatcher, if they are in memory: handing them over would cost more.
const INLINE: u64 = 64 * 1024;

/// A label that is in memory is read in a few microseconds. One that was waited for, and took longer than this, came from a disk.
const SLOW: Duration = Duration::from_millis(1);

/// The kernel's clock for file times may stand still for this long: two changes may bear the same time.
const GRAIN: i128 = 20_000_000;

/// Nanoseconds.
const SECOND: i128 = 1_000_000_000;

/// What a file's time of change and size were when we looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    changed: Time,
    size: u64,
    /// Whether a later change is sure to bear another time.
    settled: bool,
}

impl Sighting {
    /// Must be made of facts that were read *before* what it stands for.
    ///
    /// Where times are fine, that they were read sees to it that the next change bears another one, whenever it comes. (Such
    /// an inode is held in memory, by a descriptor or by luck: see [`crate::recall`].)
    pub(crate) fn of(facts: &FileFacts, times: Times) -> Self {
        if times == Times::Fine {
            return Self { changed: facts.changed, size: facts.size, settled: true };
        }
        let age = nanoseconds(file::clock()) - nanoseconds(facts.changed);
        // A file system that keeps whole seconds shows the one that had begun.
        let grain = if facts.changed.nanoseconds == 0 { SECOND + GRAIN } else { GRAIN };
        Self { changed: facts.changed, size: facts.size, settled: age > grain }
    }

    /// Whether nothing has been changed since, neither content nor label. In doubt: no.
    pub(crate) fn holds(&self, now: &FileFacts) -> bool {
        self.settled && self.looks_like(now)
    }

    /// Whether a later change is sure to show.
    pub(crate) const fn is_settled(&self) -> bool {
        self.settled
    }

    /// Bytes.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Whether no change can be seen, though there may be one.
    pub(crate) fn looks_like(&self, now: &FileFacts) -> bool {
        (self.changed, self.size) == (now.changed, now.size)
    }
}

fn nanoseconds(time: Time) -> i128 {
    i128::from(time.seconds) * SECOND + i128::from(time.nanoseconds)
}

/// A label, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// The value of the attribute.
    Value(Box<[u8]>),
    /// There is none.
    Absent,
    /// The file system keeps none.
    Unsupported,
    /// It could not be read.
    Failed,
}

impl From<LabelRead<'_>> for Label {
    fn from(read: LabelRead<'_>) -> Self {
        match read {
            LabelRead::Value(bytes) => Self::Value(bytes.into()),
            LabelRead::Absent => Self::Absent,
            LabelRead::Unsupported => Self::Unsupported,
            LabelRead::Failed => Self::Failed,
        }
    }
}

impl Label {
    /// As the core takes it.
    pub(crate) fn as_read(&self) -> LabelRead<'_> {
        match self {
            Self::Value(bytes) => LabelRead::Value(bytes),
            Self::Absent => LabelRead::Absent,
            Self::Unsupported => LabelRead::Unsupported,
            Self::Failed => LabelRead::Failed,
        }
    }
}

/// What was found in a file.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// From before the label was read.
    pub(crate) sighting: Sighting,
    pub(crate) label: Label,
    /// Absent if the label can be judged without.
    pub(crate) digest: Option<Digest>,
}

impl Look {
    /// The same file with a new label, whose time of writing is not known.
    pub(crate) fn rewritten(self, digest: &Digest) -> Self {
        let sighting = Sighting { settled: false, ..self.sighting };
        Self { sighting, label: Label::Value(label::encode_digest(digest).into()), digest: Some(*digest) }
    }
}

/// What a worker is to look for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) decision: Decision,
    pub(crate) settings: Settings,
    /// The content's digest, if it is known and cannot have changed.
    pub(crate) known: Option<Digest>,
    /// Hash with this, whatever the label says.
    pub(crate) anyway: Option<HashAlgorithm>,
}

impl Wanted {
    /// The algorithm to hash the content with; absent if the content does not matter.
    pub(crate) fn algorithm(&self, label: LabelRead<'_>, size: u64) -> Option<HashAlgorithm> {
        let Plan::Judge(labels) = check::plan(&self.decision, self.settings) else { return None };
        match labels.read(label, FileState { size, new: false }) {
            Collect::Settled(_) => self.anyway,
            Collect::Content(stage) => Some(stage.algorithm()),
        }
    }

    /// The digest that is known, if it is of that kind.
    pub(crate) fn known(&self, algorithm: HashAlgorithm) -> Option<Digest> {
        self.known.filter(|digest| digest.algorithm() == algorithm)
    }
}

impl Guard {
    /// Looks without waiting; `None` if somebody else should. The facts of `ask` must be fresh.
    pub(crate) fn look_at_once(&mut self, ask: &Ask, known: Option<Digest>) -> Option<Look> {
        let (size, now) = (ask.facts.size, Instant::now());
        if !self.filesystems.is_prompt(ask.facts.device, now) {
            return None;
        }
        // Content in memory is the sign that its label is too. A file that is known is held open, and its label was read
        // a moment ago. An empty one shows nothing, unless it was made just now.
        let loaded = match known {
            Some(_) => None,
            None if size > INLINE || (size == 0 && !self.created.may_come(&ask.facts)) => return None,
            None => Some(self.hasher.load(ask.file(), size)?),
        };
        let sighting = Sighting::of(&ask.facts, self.filesystems.times(ask.facts.device));
        let waits = task::own_waits();
        let label = Label::from(xattr::read_label(ask.file(), xattr::IMA, &mut self.label));
        // On a busy machine time passes while others have the processor.
        if now.elapsed() > SLOW && task::own_waits() != waits {
            self.filesystems.was_slow(ask.facts.device, now);
        }
        let wanted = Wanted { decision: ask.decision, settings: self.settings, known, anyway: None };
        let digest = match wanted.algorithm(label.as_read(), size) {
            None => known,
            Some(algorithm) => match wanted.known(algorithm) {
                Some(digest) => Some(digest),
                None => {
                    self.counters.hashed_bytes += size;
                    Some(loaded?.hash(algorithm))
                }
            },
        };
        self.counters.looked_at_once += 1;
        Some(Look { sighting, label, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_within_the_grain_of_the_clock_is_never_ruled_out() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let mut facts = file::facts(std::os::fd::AsFd::as_fd(&file)).unwrap();
        facts.changed = file::clock();
        let fresh = Sighting::of(&facts, Times::Coarse);
        assert!(!fresh.holds(&facts) && fresh.looks_like(&facts));
        assert!(Sighting::of(&facts, Times::Fine).holds(&facts), "the next change bears another time");
        facts.changed = Time { nanoseconds: 0, ..facts.changed };
        assert!(!Sighting::of(&facts, Times::Coarse).holds(&facts), "whole seconds");
        facts.changed.seconds -= 2;
        let old = Sighting::of(&facts, Times::Coarse);
        assert!(old.holds(&facts));
        let changed = FileFacts { changed: file::clock(), ..facts };
        assert!(!old.holds(&changed) && !old.looks_like(&changed));
        facts.size += 1;
        assert!(!old.holds(&facts));
        facts.changed.seconds += 3600;
        assert!(!Sighting::of(&facts, Times::Coarse).holds(&facts), "from the future");
    }
}
