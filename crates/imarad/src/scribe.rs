//! The scribe: the thread that writes the journals, so that nobody else waits for their disk.
//!
//! Whatever came in while it waited for the disk goes with the next turn (group commit): a hundred writers who come at the
//! same time wait for the disk twice at most, not a hundred times. What nobody waits for (new files, files at rest) is
//! gathered for a moment.
//!
//! The thread is [apart](imara_linux::apart), for it may hang. It opens files, so it must be among those whom the guard
//! lets pass without a look: what it writes may be on a guarded file system itself.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use imara_integrity::host_key::MacKey;
use imara_linux::apart::Apart;
use imara_linux::epoll::Waker;
use imara_linux::task;

use crate::book::{Book, Leaf, Note, Reach, Subject};

/// How long what nobody waits for is gathered.
const GATHER: Duration = Duration::from_millis(50);

/// How long anybody waits for the scribe.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// After a failure nothing is tried for this long: each try may write a whole journal.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the start waits for journals to be read and begun anew.
const OPENING: Duration = Duration::from_secs(30);

/// What came of notes: their numbers, and why they are not on the disk, if so.
pub(crate) type Noted = (Vec<u64>, Option<String>);

/// What was found in a journal at the start, by the number of its file system.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file_system: usize,
    /// What counts, by id; or why there is no journal.
    pub(crate) notes: Result<Vec<(u64, Note)>, String>,
    /// What is not as it should be.
    pub(crate) complaint: Option<String>,
}

#[derive(Debug)]
enum Order {
    Note { file_system: usize, id: u64, note: Note, reach: Reach, asked: Asked },
    AtRest { file_system: usize, id: u64 },
    End(SyncSender<Result<(), String>>),
}

/// Who asked for a note.
#[derive(Debug)]
enum Asked {
    /// The dispatcher, for somebody who waits, or should have.
    AtOnce,
    /// The dispatcher, for nobody who waits.
    InPassing,
    /// A worker, who waits himself.
    ByWorker(SyncSender<Result<(), String>>),
}

/// The scribe, seen from everybody else. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Scribe {
    orders: Arc<Mutex<(u64, Sender<Order>)>>,
    /// Whether somebody has waited for it in vain.
    stuck: Arc<AtomicBool>,
    /// How far notes of files have to come that are there already.
    of_old: Reach,
}

impl Scribe {
    /// Starts it, has it open the journals in `directory` of these file systems, and waits for that.
    ///
    /// # Errors
    /// In words, if that takes too long or it cannot be started.
    pub(crate) fn start(
        apart: &Apart,
        own: &Sender<i32>,
        wake: Arc<Waker>,
        (directory, key, of_old): (PathBuf, MacKey, Reach),
        file_systems: Vec<(usize, Subject)>,
    ) -> Result<(Self, Receiver<Noted>, Vec<Opened>), String> {
        let ((orders, queue), (out, noted)) = (channel(), channel());
        let (own, stuck) = (own.clone(), Arc::new(AtomicBool::new(false)));
        let (say, opened) = sync_channel(1);
        let moves = Arc::clone(&stuck);
        let flushers = (of_old == Reach::FlushedSoon).then(|| apart.clone());
        apart.start("scribe", move || {
            let _ = own.send(task::own());
            drop(own);
            let mut next = 1;
            let mut desk = Desk { books: HashMap::new(), out, wake, moves, queue, flushers };
            let all = file_systems.into_iter().map(|(number, subject)| {
                let opened = Book::open(&directory, &key, subject, &mut next);
                desk.open(number, opened)
            });
            let all: Vec<Opened> = all.collect();
            if say.send((next, all)).is_ok() {
                desk.serve();
            }
        });
        let (next, opened) = opened.recv_timeout(OPENING).map_err(|_| "the journals could not be opened in time")?;
        Ok((Self { orders: Arc::new(Mutex::new((next, orders))), stuck, of_old }, noted, opened))
    }

    /// Has a note made. Never waits; when it is done, its number comes back.
    pub(crate) fn note(&self, file_system: usize, note: Note, somebody_waits: Waits) -> u64 {
        // What is written over an old file's content need not be part of any transaction.
        let reach = if note.label.is_some() { self.of_old } else { Reach::InOrder };
        let asked = match somebody_waits {
            Waits::Opener | Waits::NobodyAnyMore => Asked::AtOnce,
            Waits::Nobody => Asked::InPassing,
        };
        self.order(|id| Order::Note { file_system, id, note, reach, asked })
    }

    /// Has a note made of a label that is going to be written, and waits for it; for workers.
    ///
    /// # Errors
    /// Why it is not on the disk, in words.
    pub(crate) fn note_and_wait(&self, file_system: usize, note: Note) -> Result<u64, String> {
        if self.is_stuck() {
            return Err("the disk of the journal does not answer".into());
        }
        let (done, answer) = sync_channel(1);
        let (reach, asked) = (Reach::InOrder, Asked::ByWorker(done));
        let id = self.order(|id| Order::Note { file_system, id, note, reach, asked });
        match answer.recv_timeout(PATIENCE) {
            Ok(result) => result.map(|()| id),
            Err(RecvTimeoutError::Timeout) => {
                self.now_stuck();
                Err("the disk of the journal does not answer".into())
            }
            Err(RecvTimeoutError::Disconnected) => Err("nobody writes the journal any more".into()),
        }
    }

    /// Strikes a note out, when there is time for that.
    pub(crate) fn at_rest(&self, file_system: usize, id: u64) {
        self.order(|_| Order::AtRest { file_system, id });
    }

    /// Has everything written a last time; what comes of it can be received.
    pub(crate) fn end(&self) -> Receiver<Result<(), String>> {
        let (done, ended) = sync_channel(1);
        self.order(|_| Order::End(done));
        ended
    }

    /// Whether nobody should wait for it for now.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Somebody has waited for it in vain. It says itself when it moves again.
    pub(crate) fn now_stuck(&self) {
        self.stuck.store(true, Ordering::Relaxed);
    }

    /// Numbers rise in the order in which they come in.
    fn order(&self, make: impl FnOnce(u64) -> Order) -> u64 {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let id = orders.0;
        orders.0 += 1;
        // Who has gone does not answer, which whoever waits notices.
        let _ = orders.1.send(make(id));
        id
    }
}

/// Whether somebody waits for a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    Opener,
    Nobody,
    /// The file has been changed already.
    NobodyAnyMore,
}

/// The thread's things.
#[derive(Debug)]
struct Desk {
    books: HashMap<usize, Shelved>,
    queue: Receiver<Order>,
    out: Sender<Noted>,
    wake: Arc<Waker>,
    moves: Arc<AtomicBool>,
    /// Where threads come from that flush, if that is not waited for.
    flushers: Option<Apart>,
}

/// A journal, and when it last could not be written.
#[derive(Debug)]
struct Shelved {
    book: Book,
    failed: Option<(Instant, String)>,
    /// To a thread that flushes what it gets. One at most waits: who comes later is flushed with it.
    flusher: Option<SyncSender<Arc<Leaf>>>,
}

/// What is to be done to one journal in one turn.
#[derive(Debug, Default)]
struct Turn {
    notes: Vec<(u64, Note)>,
    reach: Reach,
    at_rest: Vec<u64>,
    waiting: Vec<u64>,
    workers: Vec<SyncSender<Result<(), String>>>,
}

impl Desk {
    fn open(&mut self, file_system: usize, opened: Result<(Book, Option<String>), String>) -> Opened {
        let (mut book, mut complaint) = match opened {
            Ok(opened) => opened,
            Err(why) => return Opened { file_system, notes: Err(why), complaint: None },
        };
        let mut failed = None;
        if let Err(error) = book.begin_anew() {
            complaint = Some(format!("cannot be written: {error}"));
            failed = Some((Instant::now(), error.to_string()));
        }
        let notes = book.notes().map(|(id, note)| (id, note.clone())).collect();
        let flusher = self.flushers.as_ref().map(|apart| {
            let (flusher, leaves) = sync_channel::<Arc<Leaf>>(1);
            apart.start("flusher", move || leaves.iter().for_each(|leaf| leaf.flush()));
            flusher
        });
        self.books.insert(file_system, Shelved { book, failed, flusher });
        Opened { file_system, notes: Ok(notes), complaint }
    }

    fn serve(mut self) {
        while let Ok(first) = self.queue.recv() {
            let mut batch = Batch::default();
            let gathered = Instant::now() + GATHER;
            batch.take(first);
            while batch.end.is_none() {
                let left = gathered.saturating_duration_since(Instant::now());
                let next = if batch.hurry { self.queue.try_recv().ok() } else { self.queue.recv_timeout(left).ok() };
                let Some(next) = next else { break };
                batch.take(next);
            }
            for (file_system, turn) in batch.turns {
                self.turn(file_system, turn);
            }
            if let Some(end) = batch.end {
                let _ = end.send(self.close());
                return;
            }
        }
    }

    fn turn(&mut self, file_system: usize, turn: Turn) {
        let Turn { notes, reach, at_rest, waiting, workers } = turn;
        let result = match self.books.get_mut(&file_system) {
            Some(shelved) => shelved.add(notes, &at_rest, reach),
            None => Err("there is no journal".to_owned()),
        };
        self.moves.store(false, Ordering::Relaxed);
        for worker in workers {
            // He may not have waited so long.
            let _ = worker.try_send(result.clone());
        }
        if !waiting.is_empty() && self.out.send((waiting, result.err())).is_ok() {
            let _ = self.wake.wake();
        }
    }

    fn close(self) -> Result<(), String> {
        // All of them, whatever becomes of one.
        let ends: Vec<_> = self.books.into_values().map(|shelved| shelved.book.end()).collect();
        ends.into_iter().collect::<Result<(), _>>().map_err(|error| error.to_string())
    }
}

impl Shelved {
    fn add(&mut self, notes: Vec<(u64, Note)>, at_rest: &[u64], reach: Reach) -> Result<(), String> {
        if let Some((since, why)) = &self.failed
            && since.elapsed() < PAUSE
            && !notes.is_empty()
        {
            let why = why.clone();
            // What is at rest makes room when it is tried again.
            self.book.forget(at_rest);
            return Err(why);
        }
        let result = self.book.add(notes, at_rest, reach).map_err(|error| error.to_string());
        self.failed = result.clone().err().map(|why| (Instant::now(), why));
        if let (Some(flusher), Some(leaf)) = (&self.flusher, self.book.to_flush(reach)) {
            // If one waits already, this is flushed with it.
            let _ = flusher.try_send(leaf);
        }
        result
    }
}

/// What is to be done next.
#[derive(Debug, Default)]
struct Batch {
    turns: HashMap<usize, Turn>,
    /// Whether somebody waits.
    hurry: bool,
    /// Nothing follows.
    end: Option<SyncSender<Result<(), String>>>,
}

impl Batch {
    fn take(&mut self, order: Order) {
        match order {
            Order::End(done) => self.end = Some(done),
            Order::AtRest { file_system, id } => self.turns.entry(file_system).or_default().at_rest.push(id),
            Order::Note { file_system, id, note, reach, asked } => {
                let turn = self.turns.entry(file_system).or_default();
                turn.notes.push((id, note));
                turn.reach = turn.reach.max(reach);
                self.hurry |= !matches!(asked, Asked::InPassing);
                match asked {
                    Asked::AtOnce | Asked::InPassing => turn.waiting.push(id),
                    Asked::ByWorker(worker) => turn.workers.push(worker),
                }
            }
        }
    }
}
