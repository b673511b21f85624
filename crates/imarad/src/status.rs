//! What `imara status` tells: the daemon's own JSON, documented in docs/control.md.

use serde::Serialize;

use crate::failure::Failure;

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
    /// Labels renewed after a change.
    pub(crate) renewed: u64,
    /// Writers who waited for a lease of ours.
    pub(crate) lease_breaks: u64,
    /// Answers that the kernel did not take (the opener was killed).
    pub(crate) unanswered: u64,
    /// Notices of new files that were lost.
    pub(crate) creations_lost: u64,
    /// Files that were not read again because they looked as they did when they were good.
    pub(crate) recalled: u64,
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

    /// Word and count of each row of the failure table.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Failure::ALL.iter().map(|row| row.row().word).zip(self.failures)
    }
}

/// The answer to `status`.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) version: &'static str,
    pub(crate) pid: u32,
    pub(crate) mode: String,
    pub(crate) policy: String,
    pub(crate) hash: String,
    pub(crate) uptime_seconds: u64,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) counters: serde_json::Map<String, serde_json::Value>,
    pub(crate) failures: serde_json::Map<String, serde_json::Value>,
    pub(crate) remembered: Remembered,
    pub(crate) not_seen: Vec<&'static str>,
}

/// One guarded file system.
#[derive(Debug, Serialize)]
pub(crate) struct Mount {
    pub(crate) path: String,
    pub(crate) filesystem: String,
    pub(crate) device: String,
    pub(crate) guarded: bool,
}

/// How much is remembered.
#[derive(Debug, Serialize)]
pub(crate) struct Remembered {
    pub(crate) known: usize,
    pub(crate) written: usize,
    pub(crate) busy: usize,
    pub(crate) recall: usize,
}
