//! The control socket: one JSON object a line, one answer each; docs/control.md is its description. Who speaks HTTP instead
//! gets the same numbers in the format of Prometheus.
//!
//! Threads of their own talk to clients, so that slow or hostile ones cost the dispatcher nothing, nor each other: it
//! gets finished commands through a short queue and answers into one.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use imara_linux::control::{Connection, Listener};
use imara_linux::epoll::{Epoll, Interest, Ready, Waker};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::coverage;
use crate::http;
use crate::log::{Level, Log};
use crate::metrics;
use crate::obey::Reply;
use crate::serve::{Command, Ordered};

/// How long a client may take for one message, and the dispatcher for one answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long nobody is let in after the kernel could not.
const BREATH: Duration = Duration::from_millis(100);

/// Clients served at once. The next is told so, which costs no thread.
const CLIENTS: usize = 16;

/// What a client may ask.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Status,
    Coverage,
    Mode { mode: String },
    Release,
}

/// Starts the thread that takes connections. It ends with the process.
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
        if let Err(error) = run(&listener, &Orders { commands, wake }) {
            log.say(Level::Warning, format!("imarad: the control socket is closed: {error:#}"));
        }
    })?;
    Ok(())
}

/// The way to the dispatcher.
#[derive(Clone, Debug)]
struct Orders {
    commands: SyncSender<Ordered>,
    wake: Arc<Waker>,
}

/// A client's place among those that are served; given back when dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(served: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |count| (count < CLIENTS).then_some(count + 1);
        served.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(Arc::clone(served)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn run(listener: &Listener, orders: &Orders) -> anyhow::Result<()> {
    let served = Arc::new(AtomicUsize::new(0));
    let epoll = Epoll::new()?;
    epoll.add(listener.as_fd(), 0, Interest::Readable)?;
    let mut ready = Ready::default();
    loop {
        epoll.wait(&mut ready, None)?.for_each(drop);
        loop {
            match listener.accept(PATIENCE) {
                Ok(Some((connection, peer))) if peer.is_root() => admit(connection, orders, &served),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    // Out of descriptors or memory: the client still waits, and so do we.
                    std::thread::sleep(BREATH);
                    break;
                }
            }
        }
    }
}

/// Serves a client in a thread of its own. That opens no file but in `/proc`, so it is none of those whose opens are let
/// through.
fn admit(mut connection: Connection, orders: &Orders, served: &Arc<AtomicUsize>) {
    let Some(place) = Place::take(served) else {
        // Fits into the socket's buffer, so nobody is waited for.
        let _ = connection.send(busy("too many clients are served").to_string().as_bytes());
        return;
    };
    let orders = orders.clone();
    // Where there can be no thread, the connection is closed, and a client that breaks off is its own affair.
    let _ = std::thread::Builder::new().name("client".into()).spawn(move || {
        let _ = converse(&mut connection, &orders);
        drop(place);
    });
}

/// A refusal that is over in a moment.
fn busy(why: &str) -> Value {
    json!({ "ok": false, "busy": true, "error": format!("{why}; ask again") })
}

fn converse(connection: &mut Connection, orders: &Orders) -> anyhow::Result<()> {
    while let Some(line) = connection.receive()? {
        if let Some(request) = http::Request::parse(&line) {
            // One answer, then the connection is closed: such a client has nothing else to say.
            connection.skip_header()?;
            return Ok(connection.send_all(&scraped(&request, orders))?);
        }
        let answer = match parse(&line) {
            Ok(Some(command)) => orders.give(command),
            Ok(None) => Reply::Other(coverage::answer()),
            Err(error) => Reply::Other(json!({ "ok": false, "error": error })),
        };
        connection.send(&serde_json::to_vec(&answer)?)?;
    }
    Ok(())
}

/// The answer to a client that speaks HTTP.
fn scraped(request: &http::Request<'_>, orders: &Orders) -> Vec<u8> {
    if request.path != b"/metrics" {
        return http::response(http::Code::NotFound, http::PLAIN, "there is /metrics and nothing else\n");
    }
    if request.method != b"GET" {
        return http::response(http::Code::MethodNotAllowed, http::PLAIN, "GET is what can be done here\n");
    }
    match orders.give(Command::Status) {
        Reply::Status(status) => http::response(http::Code::Fine, metrics::FORMAT, &metrics::text(&status)),
        Reply::Other(refusal) => http::response(http::Code::Unavailable, http::PLAIN, &format!("{refusal}\n")),
    }
}

/// What the dispatcher is asked; nothing, if the answer takes no dispatcher.
fn parse(line: &[u8]) -> Result<Option<Command>, String> {
    let expected = "expected {\"command\": \"status\"}, {\"command\": \"coverage\"}, {\"command\": \"mode\", \"mode\": …} or \
                    {\"command\": \"release\"}";
    match serde_json::from_slice(line).map_err(|error| format!("{error} ({expected})"))? {
        Request::Status => Ok(Some(Command::Status)),
        Request::Coverage => Ok(None),
        Request::Mode { mode } => {
            mode.parse().map(|mode| Some(Command::Mode(mode))).map_err(|error| format!("{error}"))
        }
        Request::Release => Ok(Some(Command::Release)),
    }
}

impl Orders {
    /// Has the dispatcher obey, and waits for its answer.
    fn give(&self, command: Command) -> Reply {
        let (answer, answered) = sync_channel(1);
        let sent = self.commands.try_send((command, answer));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sent {
            return Reply::Other(busy("the guard has too many commands to obey"));
        }
        let _ = self.wake.wake();
        let late = json!({ "ok": false, "error": "the guard did not answer in time; it may still obey" });
        answered.recv_timeout(PATIENCE).unwrap_or(Reply::Other(late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let served = Arc::default();
        let mut places: Vec<_> = (0..CLIENTS).map_while(|_| Place::take(&served)).collect();
        assert_eq!((places.len(), Place::take(&served).is_some()), (16, false));
        places.pop();
        places.extend(Place::take(&served));
        assert_eq!((places.len(), Place::take(&served).is_some()), (16, false));
        drop(places);
        assert_eq!(served.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn commands_are_understood_and_others_refused_with_what_was_expected() {
        assert!(matches!(parse(br#"{"command":"status"}"#), Ok(Some(Command::Status))));
        assert!(matches!(
            parse(br#"{"command":"mode","mode":"log"}"#),
            Ok(Some(Command::Mode(imara_integrity::check::Mode::Log)))
        ));
        assert!(matches!(parse(br#"{"command":"release"}"#), Ok(Some(Command::Release))));
        assert!(matches!(parse(br#"{"command":"coverage"}"#), Ok(None)));
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
