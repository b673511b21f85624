//! What `imara status` tells: the daemon's own JSON, documented in docs/control.md.

use imara_integrity::appraise::Cause;
use imara_integrity::audit::Action;
use serde::{Serialize, Serializer};

use crate::failure::Failure;
use crate::histogram::{Bucket, Histogram};

/// Events counted since the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    /// Questions of the kernel.
    pub(crate) asked: u64,
    /// Let through without complaint.
    pub(crate) allowed: u64,
    /// Refused.
    pub(crate) denied: u64,
    /// Let through although bad (mode `log`, or a repair failed).
    pub(crate) tolerated: u64,
    /// Labels written in mode `fix`.
    pub(crate) repaired: u64,
    /// Questions of threads of our own.
    pub(crate) own_threads: u64,
    /// Questions in mode `off`.
    pub(crate) mode_off: u64,
    /// Questions about directories, devices, pipes.
    pub(crate) not_regular: u64,
    /// Questions about files of which no rule asks anything.
    pub(crate) unasked: u64,
    /// Questions about files whose digest was known.
    pub(crate) known_hits: u64,
    /// Files that were not read again because they looked as they did when they were good.
    pub(crate) recalled: u64,
    /// Questions about files that somebody writes to who found them good.
    pub(crate) while_written: u64,
    /// Files that the dispatcher looked at itself.
    pub(crate) looked_at_once: u64,
    /// Work that was handed to the workers.
    pub(crate) handed_over: u64,
    /// Bytes that the dispatcher hashed; the workers count their own.
    pub(crate) hashed_bytes: u64,
    /// Labels renewed after a change.
    pub(crate) renewed: u64,
    /// Writers who waited for a lease of ours.
    pub(crate) lease_breaks: u64,
    /// Work that was given up because it did not move.
    pub(crate) stalls: u64,
    /// Answers that the kernel did not take (the opener was killed).
    pub(crate) unanswered: u64,
    /// From a question's arrival to its answer.
    pub(crate) latency: Histogram,
    causes: [[u64; Action::ALL.len()]; Cause::ALL.len()],
    failures: [u64; Failure::ALL.len()],
}

impl Counters {
    /// Counts a failure, and says how often it has happened.
    pub(crate) fn count(&mut self, failure: Failure) -> u64 {
        let place = Failure::ALL.iter().position(|row| *row == failure);
        let Some(count) = place.and_then(|place| self.failures.get_mut(place)) else { return 0 };
        *count += 1;
        *count
    }

    /// Counts an answer about a file that did not pass.
    pub(crate) fn complained(&mut self, cause: Cause, action: Action) {
        match action {
            Action::Denied => self.denied += 1,
            Action::Allowed => self.tolerated += 1,
            Action::Repaired => self.repaired += 1,
        }
        let row = Cause::ALL.iter().position(|one| *one == cause).and_then(|row| self.causes.get_mut(row));
        let column = Action::ALL.iter().position(|one| *one == action);
        if let Some(count) = row.zip(column).and_then(|(row, column)| row.get_mut(column)) {
            *count += 1;
        }
    }

    /// Word and count of each row of the failure table.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Failure::ALL.iter().map(|row| row.row().word).zip(self.failures)
    }

    /// How often what became of questions for each cause, which is a word of the kernel's audit records.
    pub(crate) fn causes(&self) -> impl Iterator<Item = (&'static str, Verdicts)> {
        let verdicts = |[denied, tolerated, repaired]: [u64; 3]| Verdicts { denied, tolerated, repaired };
        Cause::ALL.iter().map(|cause| cause.word()).zip(self.causes.map(verdicts))
    }
}

/// The answer to `status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) version: &'static str,
    pub(crate) pid: u32,
    pub(crate) mode: &'static str,
    pub(crate) policy: String,
    pub(crate) hash: String,
    pub(crate) uptime_seconds: u64,
    pub(crate) mounts: Vec<Mount>,
    /// Mount points where file systems are awaited.
    pub(crate) awaited: Vec<String>,
    #[serde(serialize_with = "as_map")]
    pub(crate) counters: Vec<Count>,
    #[serde(serialize_with = "named")]
    pub(crate) causes: Vec<(&'static str, Verdicts)>,
    #[serde(serialize_with = "named")]
    pub(crate) violations: Vec<(&'static str, u64)>,
    #[serde(serialize_with = "named")]
    pub(crate) failures: Vec<(&'static str, u64)>,
    pub(crate) remembered: Remembered,
    pub(crate) queues: Queues,
    pub(crate) latency: Latency,
    pub(crate) journal: JournalState,
    pub(crate) not_seen: Vec<&'static str>,
}

/// A counter, with its name in JSON and, between `imara_` and `_total`, for Prometheus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) value: u64,
}

fn as_map<S: Serializer>(counts: &[Count], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|count| (count.name, count.value)))
}

fn named<T: Serialize, S: Serializer>(rows: &[(&'static str, T)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(rows.iter().map(|(name, value)| (name, value)))
}

/// What became of questions about files that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Verdicts {
    pub(crate) denied: u64,
    pub(crate) tolerated: u64,
    pub(crate) repaired: u64,
}

/// One guarded file system.
#[derive(Debug, Serialize)]
pub(crate) struct Mount {
    pub(crate) path: String,
    pub(crate) filesystem: String,
    pub(crate) device: String,
    pub(crate) guarded: bool,
}

/// How much is remembered, now.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Remembered {
    /// Files whose content is known, under a lease.
    pub(crate) known: usize,
    /// Of these at most.
    pub(crate) known_capacity: usize,
    /// Known files that the kernel answers for.
    pub(crate) ignored: usize,
    /// Files that somebody may be writing to.
    pub(crate) written: usize,
    /// Files that a worker has in hand.
    pub(crate) busy: usize,
    /// Files in the second memory.
    pub(crate) recall: usize,
    /// Of these at most.
    pub(crate) recall_capacity: usize,
    /// Leases that are held, for what is known or for a worker.
    pub(crate) leases: usize,
}

/// What waits, now.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Queues {
    /// Events in the kernel, at most.
    pub(crate) kernel: u64,
    /// Openers that wait for a worker.
    pub(crate) openers: usize,
    /// Openers that wait for a notice.
    pub(crate) parked: usize,
    /// Work that no worker has begun.
    pub(crate) jobs: usize,
    /// Workers there are, busy or not.
    pub(crate) workers: usize,
}

/// From a question's arrival to its answer.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) sum_microseconds: u64,
    pub(crate) buckets: Vec<Bucket>,
}

impl From<&Histogram> for Latency {
    fn from(histogram: &Histogram) -> Self {
        let sum_microseconds = u64::try_from(histogram.sum().as_micros()).unwrap_or(u64::MAX);
        Self { sum_microseconds, buckets: histogram.buckets() }
    }
}

/// Files in the journal.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct JournalState {
    /// Whether there is one for any file system.
    pub(crate) kept: bool,
    /// Of files that may be open for writing.
    pub(crate) writing: usize,
    /// Of files that need not be on the disk yet.
    pub(crate) at_rest: usize,
}
