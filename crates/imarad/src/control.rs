//! The control socket: one JSON object a line, one answer each; docs/control.md is its description.
//!
//! A thread of its own talks to clients, so that a slow or hostile one costs the dispatcher nothing: it gets finished
//! commands through a short queue and answers into one.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use imara_linux::control::{Connection, Listener};
use imara_linux::epoll::{Epoll, Interest, Ready, Waker};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::log::{Level, Log};
use crate::serve::{Command, Ordered};

/// How long a client may take for one message, and the dispatcher for one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a client may ask.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Status,
    Mode { mode: String },
    Release,
}

/// Starts the thread. It ends with the process.
pub(crate) fn start(
    listener: Listener,
    commands: SyncSender<Ordered>,
    wake: Arc<Waker>,
    log: Log,
    started: &Sender<i32>,
) -> std::io::Result<()> {
    let started = started.clone();
    std::thread::Builder::new().name("control".into()).spawn(move || {
        let _ = started.send(imara_linux::task::own());
        drop(started);
        if let Err(error) = run(&listener, &commands, &wake) {
            log.say(Level::Warning, format!("imarad: the control socket is closed: {error:#}"));
        }
    })?;
    Ok(())
}

fn run(listener: &Listener, commands: &SyncSender<Ordered>, wake: &Waker) -> anyhow::Result<()> {
    let epoll = Epoll::new()?;
    epoll.add(listener.as_fd(), 0, Interest::Readable)?;
    let mut ready = Ready::default();
    loop {
        epoll.wait(&mut ready, None)?.for_each(drop);
        while let Ok(Some((mut connection, peer))) = listener.accept(PATIENCE) {
            if peer.is_root() {
                // A client that breaks off is its own affair.
                let _ = converse(&mut connection, commands, wake);
            }
        }
    }
}

fn converse(connection: &mut Connection, commands: &SyncSender<Ordered>, wake: &Waker) -> anyhow::Result<()> {
    while let Some(line) = connection.receive()? {
        let answer = match parse(&line) {
            Ok(command) => order(command, commands, wake),
            Err(error) => json!({ "ok": false, "error": error }),
        };
        connection.send(answer.to_string().as_bytes())?;
    }
    Ok(())
}

fn parse(line: &[u8]) -> Result<Command, String> {
    let expected =
        "expected {\"command\": \"status\"}, {\"command\": \"mode\", \"mode\": …} or {\"command\": \"release\"}";
    match serde_json::from_slice(line).map_err(|error| format!("{error} ({expected})"))? {
        Request::Status => Ok(Command::Status),
        Request::Mode { mode } => mode.parse().map(Command::Mode).map_err(|error| format!("{error}")),
        Request::Release => Ok(Command::Release),
    }
}

fn order(command: Command, commands: &SyncSender<Ordered>, wake: &Waker) -> Value {
    let (answer, answered) = sync_channel(1);
    let sent = commands.try_send((command, answer));
    if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sent {
        return json!({ "ok": false, "error": "the guard is too busy; ask again" });
    }
    let _ = wake.wake();
    let late = json!({ "ok": false, "error": "the guard did not answer in time" });
    answered.recv_timeout(PATIENCE).unwrap_or(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_understood_and_others_refused_with_what_was_expected() {
        assert!(matches!(parse(br#"{"command":"status"}"#), Ok(Command::Status)));
        assert!(matches!(
            parse(br#"{"command":"mode","mode":"log"}"#),
            Ok(Command::Mode(imara_integrity::check::Mode::Log))
        ));
        assert!(matches!(parse(br#"{"command":"release"}"#), Ok(Command::Release)));
        for (line, word) in [
            (&br#"{"command":"mode","mode":"permissive"}"#[..], "permissive"),
            (br#"{"command":"stop"}"#, "status"),
            (br#"{"command":"mode","mode":"log","path":"/"}"#, "path"),
            (b"status", "expected"),
            (b"\xff", "expected"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
