//! The numbers of `imara status` in the text format of Prometheus.
//!
//! Source: prometheus.io, 'Exposition formats', 'Text-based format', version 0.0.4.

use std::fmt::Write as _;

use imara_integrity::check::Mode;

use crate::status::{JournalState, Latency, Queues, Remembered, Status, Verdicts};

/// `Content-Type` of the format.
pub(crate) const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All of it.
pub(crate) fn text(status: &Status) -> String {
    let mut page = Page(String::new());
    page.guard(status);
    for count in &status.counters {
        let name = format!("{}_total", count.name);
        page.family(&name, Kind::Counter, count.help);
        page.sample(&name, &[], count.value);
    }
    page.causes(&status.causes);
    page.family("violations_total", Kind::Counter, "Files that were measured and written to at the same time.");
    for (cause, count) in &status.violations {
        page.sample("violations_total", &[("cause", cause)], *count);
    }
    page.family("failures_total", Kind::Counter, "Rows of the failure table: could not decide, or could not keep up.");
    for (word, count) in &status.failures {
        page.sample("failures_total", &[("failure", word)], *count);
    }
    page.memory(status.remembered);
    page.queues(status.queues);
    page.latency(&status.latency);
    page.journal(status.journal);
    page.0
}

/// What kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

struct Page(String);

impl Page {
    fn guard(&mut self, status: &Status) {
        self.family("info", Kind::Gauge, "What runs: always 1.");
        let labels = [("version", status.version), ("policy", &status.policy), ("hash", &status.hash)];
        self.sample("info", &labels, 1);
        self.family("mode", Kind::Gauge, "1 for the mode that holds, 0 for the others.");
        for mode in Mode::ALL {
            self.sample("mode", &[("mode", mode.name())], u64::from(mode.name() == status.mode));
        }
        self.gauge("uptime_seconds", "Since the guard began.", status.uptime_seconds);
        self.family("guarded", Kind::Gauge, "1 for a file system that is guarded, 0 for one that has gone.");
        for mount in &status.mounts {
            let labels = [("path", mount.path.as_str()), ("filesystem", &mount.filesystem), ("device", &mount.device)];
            self.sample("guarded", &labels, u64::from(mount.guarded));
        }
        self.family("awaited", Kind::Gauge, "Always 1, for each mount point where something is missing.");
        for path in &status.awaited {
            self.sample("awaited", &[("path", path)], 1);
        }
    }

    fn causes(&mut self, causes: &[(&str, Verdicts)]) {
        let name = "verdicts_total";
        self.family(name, Kind::Counter, "Questions about files that did not pass, by cause and what became of them.");
        for (cause, Verdicts { denied, tolerated, repaired }) in causes {
            for (action, count) in [("denied", denied), ("tolerated", tolerated), ("repaired", repaired)] {
                self.sample(name, &[("cause", cause), ("verdict", action)], *count);
            }
        }
    }

    fn memory(&mut self, remembered: Remembered) {
        let Remembered { known, known_capacity, ignored, written, busy, recall, recall_capacity, leases } = remembered;
        self.family("inodes", Kind::Gauge, "Files that are remembered, by what is known of them.");
        for (state, count) in [("known", known), ("written", written), ("busy", busy), ("recall", recall)] {
            self.sample("inodes", &[("state", state)], count);
        }
        self.family("inodes_capacity", Kind::Gauge, "Files that are remembered at most.");
        for (state, count) in [("known", known_capacity), ("recall", recall_capacity)] {
            self.sample("inodes_capacity", &[("state", state)], count);
        }
        self.gauge("inodes_ignored", "Known files that the kernel answers for.", ignored);
        self.gauge("leases", "Leases that are held.", leases);
    }

    fn queues(&mut self, Queues { kernel, openers, parked, jobs, workers }: Queues) {
        self.gauge("kernel_queue_events", "Events in the kernel's queue, at most.", kernel);
        self.gauge("openers_waiting", "Openers that wait for a worker.", openers);
        self.gauge("openers_parked", "Openers that wait for a notice that their file is new.", parked);
        self.gauge("jobs_waiting", "Work that no worker has begun.", jobs);
        self.gauge("workers", "Workers, busy or not.", workers);
    }

    fn latency(&mut self, latency: &Latency) {
        let name = "answer_duration_seconds";
        self.family(name, Kind::Histogram, "From a question's arrival in the guard to its answer.");
        let mut below = 0;
        for bucket in &latency.buckets {
            below += bucket.count;
            let bound = bucket.bound.map_or_else(|| "+Inf".to_owned(), seconds);
            self.sample(&format!("{name}_bucket"), &[("le", &bound)], below);
        }
        self.sample(&format!("{name}_sum"), &[], seconds(latency.sum_microseconds));
        self.sample(&format!("{name}_count"), &[], below);
    }

    fn journal(&mut self, JournalState { kept, writing, at_rest }: JournalState) {
        self.gauge("journal_kept", "1 if there is a journal for any file system.", u64::from(kept));
        self.family("journal_records", Kind::Gauge, "Records in the journal, by what their files are.");
        for (state, count) in [("writing", writing), ("at_rest", at_rest)] {
            self.sample("journal_records", &[("state", state)], count);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, Kind::Gauge, help);
        self.sample(name, &[], value);
    }

    /// `help` has neither backslash nor line feed.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP imara_{name} {help}\n# TYPE imara_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let _ = write!(self.0, "imara_{name}");
        for (place, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if place == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }
}

/// Exactly.
fn seconds(microseconds: u64) -> String {
    format!("{}.{:06}", microseconds / 1_000_000, microseconds % 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut page = Page(String::new());
        page.sample("guarded", &[("path", "/a \"b\"\\\nc"), ("device", "")], 1);
        assert_eq!(page.0, "imara_guarded{path=\"/a \\\"b\\\"\\\\\\nc\",device=\"\"} 1\n");
    }

    #[test]
    fn microseconds_are_written_as_seconds_without_loss() {
        assert_eq!([16, 1_000_001, 16_777_216].map(seconds), ["0.000016", "1.000001", "16.777216"]);
    }
}
