//! Talks to the running guard over its control socket.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use imara_linux::control::Connection;
use serde_json::Value;

use crate::words::shown;

/// How long the guard may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which guard is meant.
#[derive(Debug, clap::Args)]
pub(crate) struct RunDir {
    /// Directory of the guard's control socket
    #[arg(long, value_name = "DIR", default_value = "/run/imara", env = "IMARA_RUN_DIR")]
    pub(crate) run_dir: PathBuf,
}

impl RunDir {
    /// Sends one request and gives back the answer, if it is not a refusal.
    pub(crate) fn ask(&self, request: &Value) -> anyhow::Result<Value> {
        let socket = self.run_dir.join("control");
        let mut connection = Connection::connect(&socket, PATIENCE).with_context(|| {
            format!(
                "no guard answers at {} (fix: start one with `imara guard MOUNT`, run as root, or name its directory \
                 with --run-dir)",
                shown(&socket)
            )
        })?;
        let answer = connection.send(request.to_string().as_bytes()).and_then(|()| connection.receive());
        let line = answer
            .context("the guard did not answer")?
            .context("the guard closed the connection without an answer (fix: run as root, it talks to nobody else)")?;
        let answer: Value = serde_json::from_slice(&line).context("the guard's answer is not JSON")?;
        if answer.get("ok") == Some(&Value::Bool(false)) {
            bail!(
                "the guard refuses: {}",
                answer.get("error").and_then(Value::as_str).unwrap_or("it does not say why")
            );
        }
        Ok(answer)
    }
}
