//! The watchman: a thread that takes the signals, and lets everybody go if the dispatcher stands still.
//!
//! The dispatcher waits for nothing but events, as far as we know. If it is wrong about that (a kernel that blocks
//! where it should not, a fault of ours), every opener on every guarded file system waits with it. Then, and only then,
//! the guard's group is closed, as if the guard had died: the kernel lets everybody pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use imara_linux::epoll::{Epoll, Interest, Ready, Waker};
use imara_linux::fanotify::PermissionGroup;
use imara_linux::signals::{Request, Signals};

use crate::log::{Level, Log};

/// How often the dispatcher's heart is listened to.
const LOOK: Duration = Duration::from_secs(1);

/// How many looks in a row may hear nothing. It beats at least once a second. Less than systemd's watchdog waits, which
/// would kill us: a thread that hangs in the kernel would then keep the group open.
const SILENT_LOOKS: u32 = 8;

/// The same, when it has been told to end.
const LAST_LOOKS: u32 = 3;

/// How long a dispatcher whose heart beats may take to end. It waits up to three seconds for labels that are being
/// renewed.
const LAST_WORDS: Duration = Duration::from_secs(15);

/// What dispatcher and watchman know of each other.
#[derive(Debug, Default)]
pub(crate) struct Life {
    beats: AtomicU64,
    ending: AtomicBool,
    given_up: AtomicBool,
    letting_go: AtomicBool,
}

impl Life {
    /// The dispatcher is alive.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it shall end.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// The dispatcher is about to let everybody go: then nobody waits for it any more, however long it takes to tidy up.
    pub(crate) fn lets_go(&self) {
        self.letting_go.store(true, Ordering::Release);
    }

    /// Whether the watchman has let everybody go.
    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// The watchman's things.
#[derive(Debug)]
pub(crate) struct Watchman {
    pub(crate) signals: Signals,
    pub(crate) group: Arc<PermissionGroup>,
    pub(crate) wake: Arc<Waker>,
    pub(crate) log: Log,
    pub(crate) life: Arc<Life>,
}

impl Watchman {
    /// Starts the thread. It ends with the process.
    pub(crate) fn start(self) -> anyhow::Result<()> {
        let epoll = Epoll::new()?;
        epoll.add(&self.signals, 0, Interest::Readable)?;
        std::thread::Builder::new().name("watchman".into()).spawn(move || self.watch(&epoll))?;
        Ok(())
    }

    fn watch(&self, epoll: &Epoll) {
        let mut ready = Ready::default();
        let (mut heard, mut silent) = (0, 0);
        let mut deadline: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if self.life.letting_go.load(Ordering::Acquire) {
                return self.wait_for_the_end();
            }
            let beats = self.life.beats.load(Ordering::Relaxed);
            silent = if beats == heard { silent + 1 } else { 0 };
            heard = beats;
            if silent >= if deadline.is_some() { LAST_LOOKS } else { SILENT_LOOKS } {
                return self.let_all_go("the dispatcher stands still");
            }
            if deadline.is_some_and(|deadline| now > deadline) {
                return self.let_all_go("the dispatcher does not end");
            }
            // In looks and not in time: a machine or a process that was stopped has heard nothing, but missed nothing.
            let next = now + LOOK;
            while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                if epoll.wait(&mut ready, Some(left)).is_err() {
                    std::thread::sleep(left);
                }
                if let Ok(Some(Request::End)) = self.signals.next() {
                    self.life.ending.store(true, Ordering::Relaxed);
                    deadline.get_or_insert_with(|| Instant::now() + LAST_WORDS);
                    let _ = self.wake.wake();
                }
            }
        }
    }

    /// Nobody waits any more, unless the dispatcher was stopped in the middle of it; but what is tidied up may hang.
    fn wait_for_the_end(&self) {
        std::thread::sleep(LOOK * LAST_LOOKS);
        // Else the end of the process closes it.
        let _ = self.group.close_within(LOOK);
        std::thread::sleep(LAST_WORDS);
        self.log.say(Level::Warning, "imarad: not everything could be tidied up in time".into());
        self.log.flush(LOOK);
        std::process::exit(0);
    }

    fn let_all_go(&self, why: &str) {
        self.log
            .say(Level::Warning, format!("imarad: {why}: everybody is let through, and nothing is guarded any more"));
        self.life.given_up.store(true, Ordering::Relaxed);
        // The dispatcher may stand still in a call on the group. Then the end of the process closes it, and must not wait.
        if self.group.close_within(LOOK) {
            self.log.flush(LAST_WORDS);
        }
        // Threads that hang keep the process; all else of it goes.
        std::process::exit(2);
    }
}
