//! `imara mode`: puts the running guard into another mode.

use imara_integrity::check::Mode;
use serde_json::{Value, json};

use crate::client::RunDir;
use crate::{Ended, screen};

/// Arguments of `imara mode`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 the guard is in that mode now; 2 no guard answers, or it refuses.")]
pub(crate) struct Arguments {
    /// What happens to files that do not pass: enforce, log, fix or off
    mode: Mode,
    #[command(flatten)]
    guard: RunDir,
}

/// Switches.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let answer = arguments.guard.ask(&json!({ "command": "mode", "mode": arguments.mode.name() }))?;
    let before = answer.get("before").and_then(Value::as_str).unwrap_or("unknown");
    screen::print(&format!("mode {} (before: {before})\n", arguments.mode))?;
    Ok(Ended::Fine)
}
