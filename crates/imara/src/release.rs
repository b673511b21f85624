//! `imara release`: has the guard give back its leases, which keep file systems busy.

use serde_json::{Value, json};

use crate::client::RunDir;
use crate::{Ended, screen};

/// Arguments of `imara release`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 released, also if there was nothing to release; 2 no guard answers, or it refuses."
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    guard: RunDir,
}

/// Asks for it.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let answer = arguments.guard.ask(&json!({ "command": "release" }))?;
    let released = answer.get("released").and_then(Value::as_u64).unwrap_or(0);
    screen::print(&format!(
        "released {released} files; what is unmounted now is no longer busy because of the guard\n"
    ))?;
    Ok(Ended::Fine)
}
