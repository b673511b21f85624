//! The log: one line an event, through a bounded queue that drops and counts, so that nobody ever waits for a reader.
//!
//! The thread behind the queue is the only one that writes. It may block as long as it likes (a full pipe, a journal
//! that is being rotated and whose files we guard): openers are answered before a line is queued, and a full queue
//! loses lines, not time. If it blocks in the kernel for ever, it keeps nothing open: it is [apart](imara_linux::apart).

use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use imara_integrity::audit::Record;
use imara_linux::apart::Apart;

/// Lines that wait for the writer at most. At about 200 bytes a line this is under 2 MiB.
const CAPACITY: usize = 8192;

/// Where journald takes datagrams.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Standard error, one line each.
    #[default]
    Stderr,
    /// journald's native socket; standard error where that cannot be reached.
    Journal,
}

/// How bad it is, as in syslog(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// `LOG_WARNING`.
    Warning,
    /// `LOG_INFO`.
    Info,
}

impl Level {
    const fn priority(self) -> u8 {
        match self {
            Self::Warning => 4,
            Self::Info => 6,
        }
    }
}

#[derive(Debug)]
enum Line {
    Record(Box<Record>),
    Text(Level, String),
    Flush(SyncSender<()>),
}

/// The queue's near end. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    queue: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// Starts the writing thread.
    pub(crate) fn start(sink: Sink, apart: &Apart) -> Self {
        let (queue, lines) = sync_channel(CAPACITY);
        let dropped = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&dropped);
        apart.start("log", move || {
            let writer = Writer::new(sink);
            run(&lines, &seen, |level, text| writer.write(level, text));
        });
        Self { queue, dropped }
    }

    /// Queues the audit line of a file that did not pass. Never waits.
    pub(crate) fn record(&self, record: Record) {
        self.put(Line::Record(Box::new(record)));
    }

    /// Queues a line of our own. Never waits.
    pub(crate) fn say(&self, level: Level, text: String) {
        self.put(Line::Text(level, text));
    }

    /// Lines lost so far because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything queued so far is written, but not longer than `patience`.
    pub(crate) fn flush(&self, patience: std::time::Duration) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Line::Flush(done)).is_ok() {
            let _ = written.recv_timeout(patience);
        }
    }

    fn put(&self, line: Line) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.queue.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what is queued until nobody is left who could queue more.
fn run(lines: &Receiver<Line>, dropped: &AtomicU64, mut write: impl FnMut(Level, &str)) {
    let mut told = 0;
    for line in lines {
        match line {
            Line::Record(record) => write(Level::Warning, &record.to_string()),
            Line::Text(level, text) => write(level, &text),
            Line::Flush(done) => {
                let _ = done.send(());
            }
        }
        let lost = dropped.load(Ordering::Relaxed);
        if lost > told {
            write(Level::Warning, &format!("imarad: {} log lines lost: whoever reads them is too slow", lost - told));
            told = lost;
        }
    }
}

struct Writer {
    journal: Option<UnixDatagram>,
}

impl Writer {
    fn new(sink: Sink) -> Self {
        let connect = || {
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect(JOURNAL).ok()?;
            Some(socket)
        };
        Self { journal: if sink == Sink::Journal { connect() } else { None } }
    }

    /// A line that cannot be written is lost: there is nobody left to tell.
    fn write(&self, level: Level, text: &str) {
        if let Some(journal) = &self.journal {
            let field = text.replace('\n', " ");
            let message = format!("PRIORITY={}\nSYSLOG_IDENTIFIER=imarad\nMESSAGE={field}\n", level.priority());
            if journal.send(message.as_bytes()).is_ok() {
                return;
            }
        }
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_nobody_reads_drops_and_counts_and_never_waits() {
        let (queue, _unread) = sync_channel(2);
        let log = Log { queue, dropped: Arc::default() };
        for number in 0..10 {
            log.say(Level::Info, number.to_string());
        }
        assert_eq!(log.dropped(), 8);
    }

    #[test]
    fn lost_lines_are_told_once_and_as_everything_else_about_the_guard_itself() {
        let (queue, lines) = sync_channel(2);
        let log = Log { queue, dropped: Arc::default() };
        for number in 0..5 {
            log.say(Level::Info, format!("imarad: {number}"));
        }
        let dropped = Arc::clone(&log.dropped);
        drop(log);
        let mut written = Vec::new();
        run(&lines, &dropped, |level, text| written.push((level, text.to_owned())));
        let expected = [
            (Level::Info, "imarad: 0"),
            (Level::Warning, "imarad: 3 log lines lost: whoever reads them is too slow"),
            (Level::Info, "imarad: 1"),
        ];
        assert_eq!(written, expected.map(|(level, text)| (level, text.to_owned())));
    }
}
