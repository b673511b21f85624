//! The onlooker: a thread that looks at the system calls of those who ask.
//!
//! The kernel shows no system call of a process that is becoming another program, and keeps whoever wants to see it waiting
//! until it has become that. A hostile process takes its time: what it closes meanwhile may be a file of a file system that
//! a program of its own serves. He who asked is not such a process: he waits for his answer. But another thread of his
//! process may execute something, which ends him, and then has his number. So it is not the dispatcher who looks.
//!
//! Source: Linux `fs/proc/base.c`, `lock_trace()`; `fs/exec.c`, `exec_mmap()`, `begin_new_exec()`.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use imara_linux::open_call::{self, OpenCall};

/// How long the dispatcher waits for what takes microseconds, unless the machine is busy with other things.
const PATIENCE: Duration = Duration::from_millis(500);

/// The same, while somebody is known to have waited in vain lately.
const LITTLE_PATIENCE: Duration = Duration::from_millis(10);

/// After somebody waited in vain nobody is looked at for this long, so that most of the dispatcher's time is left for others.
const PAUSE: Duration = Duration::from_millis(200);

/// For this long after that there is little patience.
const LATELY: Duration = Duration::from_secs(60);

/// Threads that hang, at most: while there are so many, nobody is looked at.
const HANGING: usize = 8;

/// The thread, seen from the dispatcher.
#[derive(Debug, Default)]
pub(crate) struct Onlooker {
    ends: RefCell<Option<Ends>>,
    /// Held by each thread there is.
    threads: Arc<()>,
    /// When it last hung.
    hung: Cell<Option<Instant>>,
    hangs: Cell<u64>,
}

#[derive(Debug)]
struct Ends {
    tids: Sender<i32>,
    calls: Receiver<Option<OpenCall>>,
}

impl Onlooker {
    /// The system call that this task is in, if it is one that opens files and that can be seen.
    pub(crate) fn open_call(&self, tid: i32) -> Option<OpenCall> {
        self.look(tid, |tid| open_call::open_call(tid).ok().flatten())
    }

    /// How often one of its threads has hung since this was last asked.
    pub(crate) fn take_hangs(&self) -> u64 {
        self.hangs.take()
    }

    fn look(&self, tid: i32, how: fn(i32) -> Option<OpenCall>) -> Option<OpenCall> {
        let ago = self.hung.get().map(|hung| hung.elapsed());
        if ago.is_some_and(|ago| ago < PAUSE) {
            return None;
        }
        let patience = if ago.is_some_and(|ago| ago < LATELY) { LITTLE_PATIENCE } else { PATIENCE };
        let mut ends = self.ends.borrow_mut();
        if ends.is_none() {
            *ends = self.start(how);
        }
        let answer = ends.as_ref().map(|Ends { tids, calls }| {
            tids.send(tid).ok()?;
            calls.recv_timeout(patience).ok()
        });
        if let Some(None) = answer {
            // It ends by itself some day, and finds that nobody wants to know any more.
            *ends = None;
            self.hung.set(Some(Instant::now()));
            self.hangs.set(self.hangs.get() + 1);
        }
        answer.flatten().flatten()
    }

    fn start(&self, how: fn(i32) -> Option<OpenCall>) -> Option<Ends> {
        if Arc::strong_count(&self.threads) > HANGING {
            return None;
        }
        let ((tids, queue), (out, calls)) = (channel(), channel());
        let place = Arc::clone(&self.threads);
        let started = std::thread::Builder::new().name("onlooker".into()).spawn(move || {
            for tid in queue {
                if out.send(how(tid)).is_err() {
                    break;
                }
            }
            drop(place);
        });
        started.is_ok().then_some(Ends { tids, calls })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use imara_linux::task;

    use super::*;

    #[test]
    fn a_call_that_opens_nothing_is_none() {
        let onlooker = Onlooker::default();
        assert_eq!(onlooker.open_call(task::own()), None);
        assert_eq!(onlooker.open_call(0), None, "nobody");
        assert_eq!((onlooker.take_hangs(), Arc::strong_count(&onlooker.threads)), (0, 2));
    }

    #[test]
    fn who_hangs_is_left_alone_and_takes_little_of_the_dispatchers_time() {
        static DOOR: Mutex<()> = Mutex::new(());
        let closed = DOOR.lock().unwrap();
        let how = |tid| match tid {
            0 => Some(OpenCall::How),
            _ => DOOR.lock().ok().and(Some(OpenCall::Exec)),
        };
        let onlooker = Onlooker::default();
        assert_eq!(onlooker.look(0, how), Some(OpenCall::How));
        assert_eq!(onlooker.look(1, how), None);
        let pause = Instant::now();
        (0..100).for_each(|_| assert_eq!(onlooker.look(1, how), None));
        assert!(pause.elapsed() < PAUSE, "nobody is waited for during the pause");
        assert_eq!(onlooker.take_hangs(), 1);
        for _ in 0..HANGING {
            std::thread::sleep(PAUSE);
            assert_eq!(onlooker.look(1, how), None);
        }
        assert_eq!(Arc::strong_count(&onlooker.threads), 1 + HANGING);
        std::thread::sleep(PAUSE);
        assert_eq!(onlooker.look(0, how), None, "too many hang");
        drop(closed);
        while Arc::strong_count(&onlooker.threads) > 1 {
            std::thread::yield_now();
        }
        assert_eq!(onlooker.look(0, how), Some(OpenCall::How));
    }
}
