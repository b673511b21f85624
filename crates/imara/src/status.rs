//! `imara status`: what the running guard does.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::client::RunDir;
use crate::{Ended, coverage, screen};

const EXIT_STATUS: &str = "\
Exit status: 0 all that was named at the start is guarded; 1 a file system has gone and is no longer guarded; 2 no guard
answers.";

/// Arguments of `imara status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub(crate) struct Arguments {
    /// Print the guard's answer as it is: one JSON object
    #[arg(long)]
    json: bool,
    /// Tell which ways to a file are seen on this host, and which are not
    #[arg(long)]
    coverage: bool,
    #[command(flatten)]
    guard: RunDir,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// As the guard gave it.
    Json,
}

/// Asks and prints.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    if arguments.coverage {
        let form = if arguments.json { Form::Json } else { Form::Text };
        return coverage::run(&arguments.guard, form);
    }
    let status = arguments.guard.ask(&json!({ "command": "status" }))?;
    if arguments.json {
        screen::print_json(&status)?;
    } else {
        screen::print(&text(&status))?;
    }
    Ok(if list(&status, "mounts").any(is_gone) { Ended::Failed } else { Ended::Fine })
}

/// Counters by what they tell; those of a newer guard, which are not here, come at the end.
const GROUPS: [(&str, &[&str]); 6] = [
    ("questions", &["asked", "allowed", "denied", "tolerated", "repaired", "unanswered"]),
    ("not judged", &["own_threads", "mode_off", "not_regular", "unasked"]),
    ("judged by", &["known_hits", "recalled", "while_written", "looked_at_once", "handed_over", "hashed_bytes"]),
    ("by kernel", &["ignored_known", "ignored_unasked", "heeded_again"]),
    ("changes", &["renewed", "lease_breaks"]),
    ("lost", &["creations_lost", "log_lines_dropped", "stalls"]),
];

fn text(status: &Value) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    for name in ["mode", "policy", "hash", "version", "pid"] {
        row(name, &word(status.get(name)));
    }
    row("running", &format!("{} s", word(status.get("uptime_seconds"))));
    for mount in list(status, "mounts") {
        let part = |name| word(mount.get(name));
        let what = format!("{} ({} on {})", part("path"), part("filesystem"), part("device"));
        if is_gone(mount) {
            row("not guarded", &format!("{what}: it has gone; it is guarded again when it is mounted again"));
        } else {
            row("guarding", &what);
        }
    }
    for path in list(status, "awaited") {
        let gone = |mount: &Value| mount.get("path") == Some(path);
        if !list(status, "mounts").any(gone) {
            row("awaiting", &format!("{}: nothing to guard is mounted there yet", word(Some(path))));
        }
    }
    let mut counters = status.get("counters").and_then(Value::as_object).cloned().unwrap_or_default();
    for (group, names) in GROUPS {
        let counted = names.iter().filter_map(|name| counters.remove(*name).map(|count| (name, count)));
        row(group, &phrase(counted.map(|(name, count)| (*name, count))));
    }
    if !counters.is_empty() {
        row("besides", &counts(Some(&counters), Zeros::Shown));
    }
    row("causes", &causes(status));
    row("violations", &counts(status.get("violations").and_then(Value::as_object), Zeros::Hidden));
    row("failures", &counts(status.get("failures").and_then(Value::as_object), Zeros::Hidden));
    row("remembered", &counts(status.get("remembered").and_then(Value::as_object), Zeros::Shown));
    row("waiting", &counts(status.get("queues").and_then(Value::as_object), Zeros::Shown));
    row("answers", &latency(status));
    row("journal", &journal(status));
    let unseen = list(status, "not_seen").count();
    row("not seen", &format!("{unseen} ways to files and around them, see: imara status --coverage"));
    out
}

/// What became of files that did not pass, by cause.
fn causes(status: &Value) -> String {
    let all = status.get("causes").and_then(Value::as_object);
    let happened = all.into_iter().flatten().filter_map(|(cause, verdicts)| {
        let verdicts = counts(verdicts.as_object(), Zeros::Hidden);
        (verdicts != NONE).then(|| format!("{cause}: {verdicts}"))
    });
    Some(happened.collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty()).unwrap_or_else(|| NONE.into())
}

/// How soon questions were answered: the bounds within which the half, 99 of 100, and all of them are.
fn latency(status: &Value) -> String {
    let latency = status.get("latency");
    let number = |bucket: &Value, name| bucket.get(name).and_then(Value::as_u64);
    let buckets: Vec<(Option<u64>, u64)> = latency
        .into_iter()
        .flat_map(|latency| list(latency, "buckets"))
        .map(|bucket| (number(bucket, "le_microseconds"), number(bucket, "count").unwrap_or(0)))
        .collect();
    let all: u64 = buckets.iter().map(|(_, count)| count).sum();
    if all == 0 {
        return NONE.into();
    }
    let within = |percent: u64| {
        let wanted = all.saturating_mul(percent).div_ceil(100);
        let mut below = 0_u64;
        let last = buckets.iter().find(|(_, count)| {
            below = below.saturating_add(*count);
            below >= wanted
        });
        last.and_then(|(bound, _)| *bound).map_or_else(|| "more than 16 s".into(), duration)
    };
    let sum = latency.and_then(|latency| number(latency, "sum_microseconds")).unwrap_or(0);
    format!(
        "half within {}, 99 % within {}, all within {}; {} on average",
        within(50),
        within(99),
        within(100),
        duration(sum.checked_div(all).unwrap_or(0))
    )
}

/// Whether there is a journal, and its records.
fn journal(status: &Value) -> String {
    let mut journal = status.get("journal").and_then(Value::as_object).cloned().unwrap_or_default();
    if journal.remove("kept") == Some(Value::Bool(true)) { counts(Some(&journal), Zeros::Shown) } else { NONE.into() }
}

fn duration(microseconds: u64) -> String {
    match microseconds {
        0..10_000 => format!("{microseconds} µs"),
        10_000..10_000_000 => format!("{} ms", microseconds / 1000),
        _ => format!("{} s", microseconds / 1_000_000),
    }
}

/// Whether a mount that was named at the start is not guarded any more.
fn is_gone(mount: &Value) -> bool {
    mount.get("guarded") == Some(&Value::Bool(false))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zeros {
    Shown,
    Hidden,
}

fn list<'a>(status: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    status.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn word(value: Option<&Value>) -> String {
    match value {
        None => "unknown".into(),
        Some(value) => value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned),
    }
}

const NONE: &str = "none";

fn counts(map: Option<&Map<String, Value>>, zeros: Zeros) -> String {
    let all = map.into_iter().flatten().map(|(name, count)| (name.as_str(), count.clone()));
    phrase(all.filter(|(_, count)| zeros == Zeros::Shown || count.as_u64() != Some(0)))
}

fn phrase<'n>(counts: impl Iterator<Item = (&'n str, Value)>) -> String {
    let words: Vec<String> = counts.map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    if words.is_empty() { NONE.into() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mount_and_every_failure_that_happened_gets_told() {
        let status = json!({
            "version": "0.1.0", "pid": 7, "mode": "log", "policy": "builtin:appraise_tcb", "hash": "sha256",
            "uptime_seconds": 3,
            "mounts": [
                { "path": "/a", "filesystem": "ext4", "device": "loop0", "guarded": true },
                { "path": "/b", "filesystem": "tmpfs", "device": "tmpfs", "guarded": false },
            ],
            "counters": { "log_lines_dropped": 0, "asked": 200, "denied": 3, "recalled": 4, "brand_new": 1 },
            "causes": {
                "invalid-hash": { "denied": 2, "tolerated": 1, "repaired": 0 },
                "missing-hash": { "denied": 0, "tolerated": 0, "repaired": 0 },
                "unknown": { "denied": 1, "tolerated": 0, "repaired": 0 },
            },
            "violations": { "ToMToU": 0, "open_writers": 5 },
            "failures": { "queue-overflow": 0, "hash-stalled": 1 },
            "remembered": { "known": 1 },
            "queues": { "kernel": 0, "parked": 2 },
            "latency": {
                "sum_microseconds": 40_000_000,
                "buckets": [
                    { "le_microseconds": 16, "count": 100 },
                    { "le_microseconds": 32_768, "count": 98 },
                    { "le_microseconds": 16_777_216, "count": 1 },
                    { "le_microseconds": null, "count": 1 },
                ],
            },
            "awaited": ["/b", "/c"],
            "journal": { "kept": true, "writing": 2, "at_rest": 0 },
            "not_seen": ["mmap"],
        });
        let expected = "\
mode        log
policy      builtin:appraise_tcb
hash        sha256
version     0.1.0
pid         7
running     3 s
guarding    /a (ext4 on loop0)
not guarded /b (tmpfs on tmpfs): it has gone; it is guarded again when it is mounted again
awaiting    /c: nothing to guard is mounted there yet
questions   asked 200, denied 3
not judged  none
judged by   recalled 4
by kernel   none
changes     none
lost        log lines dropped 0
besides     brand new 1
causes      invalid-hash: denied 2, tolerated 1; unknown: denied 1
violations  open writers 5
failures    hash-stalled 1
remembered  known 1
waiting     kernel 0, parked 2
answers     half within 16 µs, 99 % within 32 ms, all within more than 16 s; 200 ms on average
journal     at rest 0, writing 2
not seen    1 ways to files and around them, see: imara status --coverage
";
        assert_eq!(text(&status), expected);
    }
}
