//! What was counted, and what should never have happened.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ways::Way;

/// How many of each sort are described.
const DESCRIBED: u64 = 4;

/// A sort of thing that should never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    /// A file that was not what its label said was opened.
    TamperedRead,
    /// Such a file was executed.
    TamperedExec,
    /// A file that was what its label said could not be opened, or where labels follow: any file.
    SpuriousDenial,
    /// Such a file could not be executed.
    SpuriousExecDenial,
    /// A file that was open to all did not have the content that its last writer gave it.
    OtherContent,
    /// A writer whom nobody should judge, or who should be followed, was refused or failed.
    WriterFailed,
    /// The label of a file followed a change that the policy does not let it follow: what was tampered with is good now,
    /// and what is good is not.
    Blessed,
    /// The label of a file did not follow a change that it should have followed.
    LabelBehind,
}

impl Wrong {
    const ALL: [Self; 8] = [
        Self::TamperedRead,
        Self::TamperedExec,
        Self::SpuriousDenial,
        Self::SpuriousExecDenial,
        Self::OtherContent,
        Self::WriterFailed,
        Self::Blessed,
        Self::LabelBehind,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::TamperedRead => "TAMPERED READ",
            Self::TamperedExec => "TAMPERED EXECUTION",
            Self::SpuriousDenial => "SPURIOUS DENIAL",
            Self::SpuriousExecDenial => "SPURIOUS DENIAL OF EXECUTION",
            Self::OtherContent => "OTHER CONTENT",
            Self::WriterFailed => "WRITER FAILED",
            Self::Blessed => "LABEL FOLLOWED TAMPERING",
            Self::LabelBehind => "LABEL BEHIND",
        }
    }

    fn number(self) -> usize {
        Self::ALL.iter().position(|wrong| *wrong == self).unwrap_or_default()
    }
}

/// A number that all threads count up.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was counted in one scene.
#[derive(Debug)]
pub(super) struct Findings {
    begin: Instant,
    /// Opens for reading, whatever came of them.
    pub(super) opens: Count,
    /// Executions, of programs and others.
    pub(super) execs: Count,
    /// Opens of which nothing can be said, since the file was being changed.
    pub(super) moving: Count,
    /// Denials of opens of bad files.
    pub(super) denied: Count,
    /// Denials of executions of bad files.
    pub(super) denied_execs: Count,
    /// `EAGAIN` for writers with `O_NONBLOCK`.
    pub(super) impatient: Count,
    /// `ETXTBSY` for writers.
    pub(super) executed: Count,
    /// Changes, by way.
    ways: [Count; Way::ALL.len()],
    wrong: [Count; Wrong::ALL.len()],
    again: [Count; Wrong::ALL.len()],
    described: Mutex<Vec<String>>,
    first: Mutex<Option<Duration>>,
    waited: Mutex<Duration>,
}

impl Findings {
    pub(super) fn new() -> Self {
        Self {
            begin: Instant::now(),
            opens: Count::default(),
            execs: Count::default(),
            moving: Count::default(),
            denied: Count::default(),
            denied_execs: Count::default(),
            impatient: Count::default(),
            executed: Count::default(),
            ways: Default::default(),
            wrong: Default::default(),
            again: Default::default(),
            described: Mutex::default(),
            first: Mutex::default(),
            waited: Mutex::default(),
        }
    }

    /// A file was changed.
    pub(super) fn changed(&self, way: Way) {
        if let Some(count) = self.ways.get(way.number()) {
            count.up();
        }
    }

    /// All changes.
    pub(super) fn changes(&self) -> u64 {
        self.ways.iter().map(Count::value).sum()
    }

    /// Something happened that should not.
    pub(super) fn add(&self, wrong: Wrong, describe: impl FnOnce() -> String) {
        let Some(count) = self.wrong.get(wrong.number()) else { return };
        count.up();
        let at = self.begin.elapsed();
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(at);
        if count.value() <= DESCRIBED {
            let line = format!("{} after {:.3} s: {}", wrong.name(), at.as_secs_f64(), describe());
            self.described.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }

    /// The same, to a file with which something was wrong already since it was last changed.
    pub(super) fn again(&self, wrong: Wrong) {
        if let Some(count) = self.again.get(wrong.number()) {
            count.up();
        }
    }

    /// So long it took until a bad file that was taken back was refused.
    pub(super) fn waited(&self, time: Duration) {
        let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        *waited = time.max(*waited);
    }

    /// How much happened that should not.
    pub(super) fn violations(&self) -> u64 {
        self.wrong.iter().map(Count::value).sum()
    }

    /// All of it, in lines.
    pub(super) fn report(&self) -> String {
        let seconds = self.begin.elapsed().as_secs_f64();
        let (opens, execs, moving) = (self.opens.value(), self.execs.value(), self.moving.value());
        let mut text = format!(
            "  {opens} opens, {execs} executions in {seconds:.1} s ({moving} during a change); denied while bad: {} opens, {} \
             executions; writers refused by the kernel: {} EAGAIN, {} ETXTBSY\n  {} changes:",
            self.denied.value(),
            self.denied_execs.value(),
            self.impatient.value(),
            self.executed.value(),
            self.changes(),
        );
        for (way, count) in Way::ALL.iter().zip(&self.ways).filter(|(_, count)| count.value() > 0) {
            let _ = write!(text, " {} {}", way.name(), count.value());
        }
        let waited = *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        if waited > Duration::ZERO {
            let _ = write!(text, "\n  a change of owner counted after {:.1} ms at most", waited.as_secs_f64() * 1000.0);
        }
        for ((wrong, count), again) in Wrong::ALL.iter().zip(&self.wrong).zip(&self.again) {
            if count.value() + again.value() > 0 {
                let (name, count, again) = (wrong.name(), count.value(), again.value());
                let _ = write!(
                    text,
                    "\n  {name}: {count}, and {again} times after something else was wrong with the same file"
                );
            }
        }
        if let Some(first) = *self.first.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = write!(text, "\n  the first of them after {:.3} s", first.as_secs_f64());
        }
        for line in self.described.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = write!(text, "\n    {line}");
        }
        text
    }
}
