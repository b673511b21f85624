//! The dispatcher: one thread that takes every event and waits for nothing but events.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use anyhow::bail;
use imara_integrity::check::{Mode, Settings};
use imara_integrity::policy::Policy;
use imara_integrity::violation::Access;
use imara_linux::epoll::{Epoll, Interest, Ready, Waker};
use imara_linux::fanotify::{Event, EventBuffer, FanotifyError, Pending, PermissionGroup};
use imara_linux::file;
use imara_linux::hash::FileHasher;
use imara_linux::lease::{LeaseEvent, LeaseSignals};
use imara_linux::mounts::MountWatch;
use imara_linux::notify::{Notifier, State};

use crate::arrivals::Arrivals;
use crate::ask::Ask;
use crate::closer::Closer;
use crate::created::Created;
use crate::failure::Failure;
use crate::filesystems::{Changes, FileSystems};
use crate::ignore::Ignoring;
use crate::inodes::Inodes;
use crate::journal::Journal;
use crate::keeper::Keeper;
use crate::log::{Level, Log};
use crate::obey::Reply;
use crate::onlooker::Onlooker;
use crate::pool::Pool;
use crate::recall::Recall;
use crate::renew::Retries;
use crate::revisit::Revisit;
use crate::status::Counters;
use crate::violations::Violations;
use crate::watchman::Life;

/// Questions taken in at once before leases and workers are looked at again.
const BATCH: usize = 64;

/// So many reads in a row that find as much as they can take show that events come faster than they are dealt with.
const BEHIND: u32 = 16;

/// Answers of those who find files, and commands, taken at once: however many there are, openers come in between.
const ANSWERS: usize = 8;
const COMMANDS: usize = 4;

/// How often idle memory is dropped, work is watched, and systemd is told that we live.
const TICK: Duration = Duration::from_secs(1);

/// How long a stop waits for labels that are being renewed.
const LAST_RENEWALS: Duration = Duration::from_secs(3);

/// What the control socket asks of the dispatcher.
#[derive(Debug)]
pub(crate) enum Command {
    /// How are you?
    Status,
    /// Judge differently from now on.
    Mode(Mode),
    /// Give back every lease, so that a file system can be unmounted.
    Release,
}

/// A command, and where its answer goes.
pub(crate) type Ordered = (Command, SyncSender<Reply>);

/// Everything the dispatcher has.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) group: Arc<PermissionGroup>,
    pub(crate) created: Created,
    pub(crate) leases: LeaseSignals,
    pub(crate) break_time: Duration,
    pub(crate) life: Arc<Life>,
    pub(crate) mount_watch: MountWatch,
    pub(crate) wake: Arc<Waker>,
    pub(crate) commands: Receiver<Ordered>,
    pub(crate) notifier: Notifier,
    pub(crate) pool: Pool,
    pub(crate) keeper: Keeper,
    pub(crate) closer: Closer,
    pub(crate) log: Log,
    pub(crate) own_threads: Vec<i32>,
    pub(crate) policy: Policy,
    pub(crate) policy_name: String,
    pub(crate) settings: Settings,
    pub(crate) filesystems: FileSystems,
    pub(crate) inodes: Inodes,
    pub(crate) recall: Recall,
    pub(crate) ignoring: Ignoring,
    pub(crate) revisit: Revisit,
    pub(crate) violations: Violations,
    pub(crate) onlooker: Onlooker,
    pub(crate) arrivals: Arrivals,
    pub(crate) retries: Retries,
    pub(crate) journal: Journal,
    pub(crate) parked: VecDeque<(Instant, Ask)>,
    /// Those who ask and do not sleep yet, so that it cannot be seen how they open the file; how often to look again.
    pub(crate) awake: VecDeque<(Instant, Pending, u16)>,
    /// Whether the last file that was asked about had to be judged.
    pub(crate) judged: bool,
    pub(crate) counters: Counters,
    pub(crate) hasher: FileHasher,
    pub(crate) label: Vec<u8>,
    pub(crate) serial: u64,
    /// Events taken out of the kernel's queue, and those of them that have been dealt with.
    pub(crate) events_read: u64,
    pub(crate) events_handled: u64,
    /// Reads in a row that found as many events as they could take.
    pub(crate) full_reads: u32,
    pub(crate) started: Instant,
}

/// Who can wake the dispatcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Leases,
    Wake,
    Questions,
    Mounts,
    Creations,
    Attributes,
}

impl Source {
    const ALL: [Self; 6] = [Self::Leases, Self::Wake, Self::Questions, Self::Mounts, Self::Creations, Self::Attributes];

    /// What epoll knows it by; small enough to be the number of a bit.
    const fn token(self) -> u64 {
        match self {
            Self::Leases => 0,
            Self::Wake => 1,
            Self::Questions => 2,
            Self::Mounts => 3,
            Self::Creations => 4,
            Self::Attributes => 5,
        }
    }
}

impl Guard {
    /// Has the kernel say who wakes the dispatcher. What can fail of it must fail before anything is marked.
    pub(crate) fn ready(&self) -> anyhow::Result<Epoll> {
        let epoll = Epoll::new()?;
        for source in Source::ALL {
            self.watch(&epoll, source)?;
        }
        Ok(epoll)
    }

    /// Serves until SIGTERM or SIGINT, then lets everybody go. `epoll` is from [`ready`](Self::ready).
    pub(crate) fn serve(mut self, epoll: &Epoll) -> anyhow::Result<()> {
        let result = self.serve_until_told(epoll);
        if result.is_ok() {
            self.end();
        } else {
            // Whatever it was, nobody shall wait for us.
            self.group.close();
            self.log.flush(Duration::from_secs(1));
        }
        result
    }

    fn serve_until_told(&mut self, epoll: &Epoll) -> anyhow::Result<()> {
        let mut ready = Ready::default();
        let mut buffer = EventBuffer::new(BATCH);
        let mut next_tick = Instant::now() + TICK;
        let mut ending: Option<Instant> = None;
        loop {
            self.life.beat();
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now);
            }
            self.retry(now);
            self.unpark(now);
            self.look_who_sleeps(now);
            if self.life.is_given_up() {
                bail!("the watchman has let everybody go");
            }
            if ending.is_some_and(|since| self.may_end(since, now)) {
                return Ok(());
            }
            let parked = self.parked.front().map(|(due, _)| *due);
            let awake = self.awake.front().map(|(due, ..)| *due);
            let closing = self.closer.due(now);
            let timers = [self.retries.next(), parked, awake, closing];
            let until = timers.into_iter().flatten().fold(next_tick, Instant::min);
            let timeout = until.saturating_duration_since(now);
            let tokens = epoll.wait(&mut ready, Some(timeout))?;
            let woken = tokens.fold(0_u64, |woken, token| woken | 1 << token);
            let is_ready = |source: Source| woken & 1 << source.token() != 0;
            // Leases first, because a writer waits for each of them; then what we would answer wrongly without.
            if is_ready(Source::Leases) {
                self.serve_leases();
            }
            if is_ready(Source::Attributes) {
                self.hear_of_changes();
            }
            if is_ready(Source::Wake) {
                self.serve_wake();
            }
            if self.life.is_ending() {
                ending.get_or_insert_with(Instant::now);
            }
            if is_ready(Source::Mounts) {
                self.mounts_changed();
            }
            if is_ready(Source::Creations) {
                self.created.listen();
            }
            self.closer.flush_due();
            if self.closer.is_behind() {
                // Each question brings a descriptor. Whoever asks now waits for a moment, instead of being refused by the
                // kernel because there is none left.
                std::thread::sleep(Duration::from_millis(1));
            } else if is_ready(Source::Questions) {
                self.serve_questions(&mut buffer)?;
            }
        }
    }

    fn watch(&self, epoll: &Epoll, source: Source) -> anyhow::Result<()> {
        let token = source.token();
        match source {
            Source::Leases => epoll.add(&self.leases, token, Interest::Readable)?,
            Source::Wake => epoll.add(self.wake.as_ref(), token, Interest::Readable)?,
            Source::Mounts => epoll.add(&self.mount_watch, token, Interest::Changed)?,
            Source::Creations => epoll.add(self.created.group(), token, Interest::Readable)?,
            Source::Attributes => epoll.add(self.ignoring.notices(), token, Interest::Readable)?,
            Source::Questions => {
                self.group.with_fd(|fd| epoll.add(fd, token, Interest::Readable)).transpose()?;
            }
        }
        Ok(())
    }

    fn serve_questions(&mut self, buffer: &mut EventBuffer) -> anyhow::Result<()> {
        let events: Vec<_> = match self.group.read(buffer) {
            Ok(events) => events.collect(),
            Err(FanotifyError::Lost { error }) => {
                self.counters.count(Failure::EventUnreadable);
                self.log.say(Level::Warning, format!("imarad: an event was lost: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.events_read += u64::try_from(events.len()).unwrap_or(u64::MAX);
        self.full_reads = if events.len() < BATCH { 0 } else { self.full_reads.saturating_add(1) };
        for event in events {
            match event? {
                Event::Permission(pending) => self.asked(pending),
                Event::CloseWrite { file, and_read, .. } => {
                    let file = self.closer.late(file, false);
                    self.note_closed(file.as_fd(), Access::Write);
                    if and_read {
                        self.note_closed(file.as_fd(), Access::Read);
                    }
                    self.closed(file);
                }
                Event::CloseRead { file, .. } => {
                    let file = self.closer.late(file, false);
                    self.note_closed(file.as_fd(), Access::Read);
                }
                Event::Overflow => self.note(Failure::QueueOverflow, "events are missing"),
                Event::Unopenable { errno, .. } => {
                    let why = errno.map_or_else(
                        || "no reason given".into(),
                        |errno| std::io::Error::from_raw_os_error(errno).to_string(),
                    );
                    self.note(Failure::EventUnreadable, &why);
                }
                _ => {}
            }
            self.events_handled += 1;
        }
        Ok(())
    }

    /// Whether events come faster than they are dealt with.
    pub(crate) const fn is_behind(&self) -> bool {
        self.full_reads >= BEHIND
    }

    fn serve_leases(&mut self) {
        let mut broken = Vec::new();
        let mut lost = false;
        while self
            .leases
            .read(|event| match event {
                LeaseEvent::Breaking(fd) => broken.push(fd),
                LeaseEvent::Overflow => lost = true,
            })
            .is_ok_and(|signals| signals > 0)
        {}
        broken.into_iter().for_each(|fd| self.lease_breaks(fd));
        if lost {
            self.note(Failure::LeaseSignalLost, "every lease is given back");
            for fd in self.inodes.leased() {
                self.lease_breaks(fd);
            }
        }
    }

    fn serve_wake(&mut self) {
        // An error here means that there is nothing to take out.
        let _ = self.wake.drain();
        let mut more = false;
        while let Some(report) = self.pool.report() {
            self.reported(report);
        }
        self.hear_of_notes();
        while let Some((key, file)) = self.keeper.opened() {
            if let Some(file) = file {
                self.kept(key, self.closer.late(file, false));
            }
        }
        self.keep_more();
        for _ in 0..ANSWERS {
            let Some(found) = self.revisit.found() else { break };
            more = true;
            self.revisited(found);
        }
        self.serve_arrivals();
        for _ in 0..COMMANDS {
            let Ok((command, answer)) = self.commands.try_recv() else { break };
            more = true;
            let releases = matches!(command, Command::Release);
            let reply = self.obey(command);
            let send = move || drop(answer.try_send(reply));
            // Who asked for a release will unmount next.
            if releases { self.closer.afterwards(send) } else { send() }
        }
        if more {
            // There may be more; but whoever waits for an answer comes in between.
            let _ = self.wake.wake();
        }
    }

    fn tick(&mut self, now: Instant) {
        for key in self.inodes.idle(now) {
            if let Some(known) = self.inodes.take_known(&key) {
                self.retire(key, known);
            }
        }
        self.say_who_hangs();
        self.watch_progress(now);
        self.watch_journal(now);
        self.closer.watch(now);
        self.say_what_has_gone();
        self.look_for_arrivals(now);
        let _ = self.notifier.send(State::Watchdog);
    }

    /// A file system that is mounted nowhere any more: what is remembered of it is given back, so that it can go.
    pub(crate) fn mounts_changed(&mut self) {
        let Changes { unmounted, id_mapped } = self.filesystems.mounts_changed();
        if !id_mapped.is_empty() {
            self.heed_marked(&id_mapped);
        }
        self.inodes.forget_known_of(&unmounted);
        self.recall.forget_devices(&unmounted);
        self.say_what_has_gone();
        self.look_for_arrivals(Instant::now());
    }

    /// A mark goes with its file system, which may be a moment after the last mount of it has gone.
    fn say_what_has_gone(&mut self) {
        // The list of this group is short: it marks no files, as the others do.
        let Ok(marked) = self.created.group().marked_devices() else { return };
        for (path, devices) in self.filesystems.take_gone(&marked) {
            self.inodes.forget_devices(&devices);
            self.recall.forget_devices(&devices);
            self.violations.forget_devices(&devices);
            self.journal.file_system_gone(&devices);
            self.log.say(Level::Warning, format!("imarad: {} has gone and is no longer guarded", path.display()));
        }
    }

    pub(crate) fn note(&mut self, failure: Failure, why: &str) {
        self.counters.count(failure);
        self.say(failure, why);
    }

    pub(crate) fn say(&self, failure: Failure, why: &str) {
        self.log.say(Level::Warning, format!("imarad: {}: {why}", failure.row().word));
    }

    /// Counts and logs a failure that concerns one file.
    pub(crate) fn note_failure(&mut self, failure: Failure, file: BorrowedFd<'_>, why: &str) {
        self.counters.count(failure);
        self.say_failure(failure, file, why);
    }

    /// Logs a failure that concerns one file.
    pub(crate) fn say_failure(&self, failure: Failure, file: BorrowedFd<'_>, why: &str) {
        let path = file::path_of(file).unwrap_or_default();
        self.say(failure, &format!("{}: {why}", String::from_utf8_lossy(&path).escape_debug()));
    }

    /// A stop waits a moment for labels that are just being renewed.
    fn may_end(&self, since: Instant, now: Instant) -> bool {
        !self.inodes.has_unfinished(now) || now.duration_since(since) > LAST_RENEWALS
    }

    fn end(mut self) {
        let _ = self.notifier.send(State::Stopping);
        // First of all: everybody who waits is let go.
        self.life.lets_go();
        self.group.close();
        self.inodes.forget_all_known();
        self.end_journal();
        let open = self.inodes.good_writers();
        if open > 0 {
            let text = format!(
                "imarad: {open} files may still be open for writing; what is written to them from now on is not followed \
                 (label them afterwards: imara label PATH)"
            );
            self.log.say(Level::Warning, text);
        }
        self.log.say(Level::Info, format!("imarad: ended, {} questions answered", self.counters.asked));
        self.log.flush(Duration::from_secs(1));
    }
}
