//! What is asked of the dispatcher through the control socket.

use imara_integrity::check::Mode;

use crate::coverage;
use crate::log::Level;
use crate::pool::Load;
use crate::recall::Recall;
use crate::serve::{Command, Guard};
use crate::status::{Count, Counters, JournalState, Latency, Mount, Queues, Remembered, Status};

/// The answer to a command. Whoever asked turns it into text, which is not the dispatcher's time.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// Numbers.
    Status(Box<Status>),
    /// Anything else.
    Other(serde_json::Value),
}

impl Guard {
    /// Obeys, and says how that went.
    pub(crate) fn obey(&mut self, command: Command) -> Reply {
        match command {
            Command::Status => Reply::Status(Box::new(self.status())),
            Command::Mode(mode) => {
                let before = std::mem::replace(&mut self.settings.mode, mode);
                if mode == Mode::Off {
                    // Nothing is watched any more, so nothing that was known stays true.
                    self.inodes.forget_everything();
                    self.recall.clear();
                    self.violations.forget();
                    self.journal.forget_writers();
                }
                self.log.say(Level::Warning, format!("imarad: mode {before} → {mode}"));
                Reply::Other(serde_json::json!({ "ok": true, "before": before.name(), "mode": mode.name() }))
            }
            Command::Release => {
                let released = self.inodes.counts().0;
                while let Some((key, known)) = self.inodes.take_oldest() {
                    self.retire(key, known);
                }
                Reply::Other(serde_json::json!({ "ok": true, "released": released }))
            }
        }
    }

    fn status(&self) -> Status {
        let (kept, writing, at_rest) = self.journal.counts();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            mode: self.settings.mode.name(),
            policy: self.policy_name.clone(),
            hash: self.settings.hash.name().into(),
            uptime_seconds: self.started.elapsed().as_secs(),
            awaited: self.filesystems.awaited().iter().map(|path| path.display().to_string()).collect(),
            mounts: self
                .filesystems
                .all()
                .iter()
                .map(|guarded| Mount {
                    path: guarded.path.display().to_string(),
                    filesystem: guarded.facts.name.clone(),
                    device: guarded.name.clone(),
                    guarded: guarded.marked,
                })
                .collect(),
            counters: self.counts(),
            causes: self.counters.causes().collect(),
            violations: self.violations.counts().collect(),
            failures: self.counters.failures().collect(),
            remembered: self.remembered(),
            queues: self.queues(),
            latency: Latency::from(&self.counters.latency),
            journal: JournalState { kept, writing, at_rest },
            not_seen: coverage::not_seen(),
        }
    }

    fn counts(&self) -> Vec<Count> {
        let Counters { asked, allowed, denied, tolerated, repaired, .. } = self.counters;
        let Counters { own_threads, mode_off, not_regular, unasked, .. } = self.counters;
        let Counters { known_hits, recalled, while_written, looked_at_once, handed_over, .. } = self.counters;
        let Counters { hashed_bytes, renewed, lease_breaks, stalls, unanswered, .. } = self.counters;
        let rows = [
            ("asked", asked, "Questions of the kernel."),
            ("allowed", allowed, "Questions answered by letting the opener pass, without complaint."),
            ("denied", denied, "Questions answered by refusing the opener."),
            ("tolerated", tolerated, "Questions about bad files whose opener was let pass."),
            ("repaired", repaired, "Questions about bad files whose label was written anew."),
            ("own_threads", own_threads, "Questions of the guard's own threads."),
            ("mode_off", mode_off, "Questions answered in mode off."),
            ("not_regular", not_regular, "Questions about what is no regular file."),
            ("unasked", unasked, "Questions about files of which no rule asks anything."),
            ("known_hits", known_hits, "Questions about files whose content was known."),
            ("recalled", recalled, "Questions about files that need not be read again."),
            ("while_written", while_written, "Questions about good files that somebody was writing to."),
            ("looked_at_once", looked_at_once, "Looks at files by the dispatcher itself."),
            ("handed_over", handed_over, "Pieces of work that were handed to the workers."),
            ("hashed_bytes", hashed_bytes + self.pool.hashed(), "Bytes hashed."),
            ("renewed", renewed, "Labels written after a legitimate change."),
            ("lease_breaks", lease_breaks, "Leases that somebody had to wait for."),
            ("stalls", stalls, "Pieces of work that were given up because they did not move."),
            ("unanswered", unanswered, "Answers that the kernel did not take, because the opener had been killed."),
            ("creations_lost", self.created.lost(), "Notices of new files that were lost."),
            ("ignored_known", self.ignoring.known, "Known files that were left to the kernel."),
            (
                "ignored_unasked",
                self.ignoring.found_unasked,
                "Files of no rule's concern that were left to the kernel.",
            ),
            ("heeded_again", self.ignoring.heeded, "Files taken back from the kernel because they changed."),
            ("log_lines_dropped", self.log.dropped(), "Log lines lost because their reader was too slow."),
        ];
        rows.map(|(name, value, help)| Count { name, help, value }).into()
    }

    fn remembered(&self) -> Remembered {
        let (known, written, busy) = self.inodes.counts();
        Remembered {
            known,
            known_capacity: self.inodes.capacity(),
            ignored: self.inodes.ignored(),
            written,
            busy,
            recall: self.recall.len(),
            recall_capacity: Recall::CAPACITY,
            leases: self.inodes.leases(),
        }
    }

    fn queues(&self) -> Queues {
        let Load { jobs, workers } = self.pool.load();
        Queues {
            kernel: self.group.queued().unwrap_or(0),
            openers: self.inodes.waiting(),
            parked: self.parked.len() + self.awake.len(),
            jobs,
            workers,
        }
    }
}
