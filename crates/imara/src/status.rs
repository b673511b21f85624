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
            row("not guarded", &format!("{what}: it has gone; if it is mounted again, restart the guard"));
        } else {
            row("guarding", &what);
        }
    }
    row("counted", &counts(status.get("counters").and_then(Value::as_object), Zeros::Shown));
    row("failures", &counts(status.get("failures").and_then(Value::as_object), Zeros::Hidden));
    row("remembered", &counts(status.get("remembered").and_then(Value::as_object), Zeros::Shown));
    for what in list(status, "not_seen") {
        row("not seen", &word(Some(what)));
    }
    out
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

fn counts(map: Option<&Map<String, Value>>, zeros: Zeros) -> String {
    let words: Vec<String> = map
        .into_iter()
        .flatten()
        .filter(|(_, count)| zeros == Zeros::Shown || count.as_u64() != Some(0))
        .map(|(name, count)| format!("{} {count}", name.replace('_', " ")))
        .collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
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
            "counters": { "asked": 2, "log_lines_dropped": 0 },
            "failures": { "queue-overflow": 0, "hash-stalled": 1 },
            "remembered": { "known": 1 },
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
not guarded /b (tmpfs on tmpfs): it has gone; if it is mounted again, restart the guard
counted     asked 2, log lines dropped 0
failures    hash-stalled 1
remembered  known 1
not seen    mmap
";
        assert_eq!(text(&status), expected);
    }
}
