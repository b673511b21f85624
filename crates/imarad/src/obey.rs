//! What is asked of the dispatcher through the control socket.

use imara_integrity::check::Mode;

use crate::coverage;
use crate::log::Level;
use crate::serve::{Command, Guard};
use crate::status::{Mount, Remembered, Status};

impl Guard {
    /// Obeys, and says how that went.
    pub(crate) fn obey(&mut self, command: Command) -> serde_json::Value {
        match command {
            Command::Status => serde_json::to_value(self.status()).unwrap_or_default(),
            Command::Mode(mode) => {
                let before = std::mem::replace(&mut self.settings.mode, mode);
                if mode == Mode::Off {
                    // Nothing is watched any more, so nothing that was known stays true.
                    self.inodes.forget_everything();
                    self.recall.clear();
                }
                self.log.say(Level::Warning, format!("imarad: mode {before} → {mode}"));
                serde_json::json!({ "ok": true, "before": before.name(), "mode": mode.name() })
            }
            Command::Release => {
                let released = self.inodes.counts().0;
                while let Some((key, known)) = self.inodes.take_oldest() {
                    self.retire(key, known);
                }
                serde_json::json!({ "ok": true, "released": released })
            }
        }
    }

    fn status(&self) -> Status {
        let (known, written, busy) = self.inodes.counts();
        let counters = [
            ("asked", self.counters.asked),
            ("allowed", self.counters.allowed),
            ("denied", self.counters.denied),
            ("tolerated", self.counters.tolerated),
            ("repaired", self.counters.repaired),
            ("renewed", self.counters.renewed),
            ("lease_breaks", self.counters.lease_breaks),
            ("unanswered", self.counters.unanswered),
            ("creations_lost", self.counters.creations_lost),
            ("recalled", self.counters.recalled),
            ("ignored_known", self.ignoring.known),
            ("ignored_unasked", self.ignoring.found_unasked),
            ("heeded_again", self.ignoring.heeded),
            ("log_lines_dropped", self.log.dropped()),
        ];
        let map = |pairs: &mut dyn Iterator<Item = (&'static str, u64)>| {
            pairs.map(|(key, count)| (key.to_owned(), count.into())).collect()
        };
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            mode: self.settings.mode.name().into(),
            policy: self.policy_name.clone(),
            hash: self.settings.hash.name().into(),
            uptime_seconds: self.started.elapsed().as_secs(),
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
            counters: map(&mut counters.into_iter()),
            failures: map(&mut self.counters.failures()),
            remembered: Remembered { known, written, busy, recall: self.recall.len() },
            not_seen: coverage::not_seen(),
        }
    }
}
