//! Talks to the running guard over its control socket.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use clap::builder::TypedValueParser as _;
use imara_linux::control::{Connection, ControlError};
use serde_json::Value;

use crate::words::shown;

/// How long the guard may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries.
const BREATH: Duration = Duration::from_millis(50);

/// Which guard is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct RunDir {
    /// Directory of the guard's control socket
    #[arg(long, value_name = "DIR", default_value = "/run/imara", env = "IMARA_RUN_DIR", value_parser = clap::builder::OsStringValueParser::new().try_map(named))]
    pub(crate) run_dir: PathBuf,
}

impl RunDir {
    /// Sends one request and gives back the answer, if it is not a refusal. While the guard is busy, asks again.
    pub(crate) fn ask(&self, request: &Value) -> anyhow::Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask_once(request)?;
            if answer.get("ok") != Some(&Value::Bool(false)) {
                return Ok(answer);
            }
            if answer.get("busy") != Some(&Value::Bool(true)) || Instant::now() > end {
                let why = answer.get("error").and_then(Value::as_str).unwrap_or("it does not say why");
                bail!("the guard refuses: {why}");
            }
            std::thread::sleep(BREATH);
        }
    }

    fn ask_once(&self, request: &Value) -> anyhow::Result<Value> {
        let socket = self.run_dir.join("control");
        let mut connection = Connection::connect(&socket, PATIENCE).map_err(|error| no_guard(&socket, &error))?;
        let sent = connection.send(request.to_string().as_bytes());
        // A guard that is busy says so and closes, perhaps before we have sent anything.
        let answer = connection.receive();
        let line = if let Ok(Some(_)) = &answer { answer } else { sent.and(answer) }
            .map_err(|error| {
                anyhow!(
                    "the guard does not answer: {error} (fix: ask again; if it stays so, end it, then all opens pass)"
                )
            })?
            .context("the guard closed the connection without an answer (fix: run as root, it talks to nobody else)")?;
        serde_json::from_slice(&line).map_err(|error| {
            anyhow!("what answers is no guard, or another version: {error} (fix: restart the guard after an update)")
        })
    }
}

fn named(directory: OsString) -> Result<PathBuf, &'static str> {
    if directory.is_empty() {
        return Err("--run-dir is empty, or IMARA_RUN_DIR is if that is not given (fix: name a directory, or unset \
                    IMARA_RUN_DIR)");
    }
    Ok(directory.into())
}

fn no_guard(socket: &Path, error: &ControlError) -> anyhow::Error {
    let refused = if let ControlError::Call(call) = error { Some(&call.error) } else { None };
    let reason = refused.map_or_else(|| error.to_string(), ToString::to_string);
    let fix = match refused.map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => "run as root",
        Some(_) => "start one with `imara guard MOUNT`, or name the directory of the one that runs with --run-dir",
        None => "ask again; if it stays so, end the guard, then all opens pass",
    };
    anyhow!("no guard answers at {}: {reason} (fix: {fix})", shown(socket))
}
