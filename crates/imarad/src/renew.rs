//! Labels that follow legitimate changes: leases that break, and writers that close.
//!
//! A file that was good when it was opened for writing gets a new label after its last writer has closed. Three things
//! tell us that this may be now: a writer closed, a lease that we gave up for a writer can be had again (truncate(2)
//! closes nothing), or somebody wants to read the file. Whichever comes first takes the lease and renews the label
//! under it; a reader waits for that and is never denied because we were late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use imara_integrity::appraise::FileState;
use imara_integrity::check::{self, Plan};
use imara_integrity::collect::{Collect, Labels};
use imara_integrity::digest::Digest;
use imara_integrity::event::{Hook, Mask};
use imara_integrity::iint::Writable;
use imara_integrity::policy::{Decision, Writers};
use imara_linux::file::{self, FileFacts};
use imara_linux::lease::{self, Taken};
use imara_linux::xattr;

use crate::ask::Ask;
use crate::closer::LateFd;
use crate::failure::Failure;
use crate::inodes::{Busy, Known, Renewing, Task, Written};
use crate::key::Key;
use crate::look::{Label, Look, Sighting, Wanted};
use crate::scribe::Waits;
use crate::serve::Guard;
use crate::worker::Work;

/// How long a lease is tried for after a writer closed or a lease broke. The last `fput` of a writer, during which the
/// file still counts as open for writing, is over long before; a writer that stays will close some day.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whose lease is to be tried for, and when. One that is not the time in [`Written::due`] has been overtaken.
#[derive(Debug, Default)]
pub(crate) struct Retries(BinaryHeap<Reverse<(Instant, u32, Key)>>);

impl Retries {
    /// Another try after 1, 2, 4, … ms; `None` if it has been tried for long enough.
    fn later(&mut self, key: Key, attempt: u32) -> Option<Instant> {
        let delay = Duration::from_millis(1) * 2_u32.saturating_pow(attempt.min(12));
        if delay > PATIENCE {
            return None;
        }
        let due = Instant::now() + delay;
        self.0.push(Reverse((due, attempt + 1, key)));
        Some(due)
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((when, ..))| *when)
    }

    fn due(&mut self, now: Instant) -> Option<(Instant, u32, Key)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(entry)| entry)
    }
}

impl Guard {
    /// Somebody wants to write to a file whose content we know: he waits until the lease is released.
    pub(crate) fn lease_breaks(&mut self, fd: RawFd) {
        self.lease_breaks_since(fd, Instant::now());
    }

    pub(crate) fn lease_breaks_since(&mut self, fd: RawFd, since: Instant) {
        let Some(key) = self.inodes.lease_holder(fd) else { return };
        self.counters.lease_breaks += 1;
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.broken.get_or_insert(since);
            self.pool.hasten(busy.serial);
            return;
        }
        // Dropped, the lease is given back and all is forgotten.
        let Some(mut known) = self.inodes.take_known(&key) else { return };
        // Until it is given back, others may come for whom nobody vouches: they are to be heard of.
        known.file.heed();
        self.heed_unasked(&key, known.file.as_fd());
        let Ok(facts) = file::facts(known.file.as_fd()) else { return };
        if !self.follows_all_writers(&facts) {
            self.ignoring.note_unasked(known.file.as_fd());
            return;
        }
        let decision = self.filesystems.decide(&self.policy, Hook::FileCheck, &[Mask::WRITE], None, &facts);
        if known.sighting.holds(&facts) {
            let look = known.look();
            return self.part(key, known, look, decision);
        }
        // Somebody may have changed the label.
        let wanted = Wanted { decision, settings: self.settings, known: Some(known.digest), anyway: None };
        self.hand_over(key, Some(fd), Task::Part(Box::new(known)), Work::Look(wanted));
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.broken = Some(since);
        }
    }

    /// Notes whether the file is what its label says at this moment, and lets the writer go on.
    pub(crate) fn part(&mut self, key: Key, known: Known, look: Look, decision: Decision) {
        let Plan::Judge(labels) = check::plan(&decision, self.settings) else { return };
        let good = is_good(labels, &look, known.digest);
        let file = if good { self.cover_parting(key, &look, known.file) } else { Some(known.file) };
        let Some(mut file) = file else { return };
        file.release();
        self.now_written(key, good, Some(look), Some(file));
    }

    /// Whether a known file was what its label says when that was last looked at, seen from a writer.
    pub(crate) fn was_good(&mut self, known: &Known) -> bool {
        let Ok(facts) = file::facts(known.file.as_fd()) else { return false };
        if !self.follows_all_writers(&facts) {
            return false;
        }
        let decision = self.filesystems.decide(&self.policy, Hook::FileCheck, &[Mask::WRITE], None, &facts);
        let Plan::Judge(labels) = check::plan(&decision, self.settings) else { return false };
        is_good(labels, &known.look(), known.digest)
    }

    /// Gives a known file's lease back. It stays in the second memory; unless it was cut under our lease by somebody of
    /// whom nobody told us, or has lost its name: then somebody may be on his way in for whom the kernel has answered, and
    /// who is heard of when he closes.
    pub(crate) fn retire(&mut self, key: Key, mut known: Known) {
        known.file.heed();
        let Ok(facts) = file::facts(known.file.as_fd()) else { return };
        if facts.size != known.sighting.size() {
            if self.was_good(&known) {
                self.cover(key, &known.label, Some(known.file.as_fd()), Waits::NobodyAnyMore);
                self.now_written(key, true, None, Some(known.file));
            }
            return;
        }
        let nameless = facts.links == 0;
        if nameless && !self.was_good(&known) || !nameless && !self.filesystems.shows_changes(key.device()) {
            return;
        }
        let look = if known.sighting.holds(&facts) { known.look() } else { self.look_at_label(&known, &facts) };
        if nameless {
            self.now_written(key, true, Some(look), None);
            self.inodes.orphan(key);
        } else {
            self.remember(key, look, known.file.as_fd());
        }
    }

    /// What a known file is like now: somebody may have changed its label, or it was seen too soon after its last change.
    fn look_at_label(&mut self, known: &Known, facts: &FileFacts) -> Look {
        let sighting = Sighting::of(facts, self.filesystems.times(facts.device));
        // It is held open, so its label is in memory.
        let label = Label::from(xattr::read_label(known.file.as_fd(), xattr::IMA, &mut self.label));
        Look { sighting, label, digest: Some(known.digest) }
    }

    /// Somebody has cut a known file under its lease: `open(O_RDONLY|O_TRUNC)` breaks none.
    pub(crate) fn cut(&mut self, key: Key) {
        let Some(known) = self.inodes.known_mut(&key) else { return };
        known.file.heed();
        let size = known.sighting.size();
        if file::facts(known.file.as_fd()).map_or(true, |facts| facts.size == size) {
            return;
        }
        let Some(mut known) = self.inodes.take_known(&key) else { return };
        if self.was_good(&known) {
            self.cover(key, &known.label, Some(known.file.as_fd()), Waits::NobodyAnyMore);
            known.file.release();
            self.now_written(key, true, None, Some(known.file));
            self.try_renewal(key, 0);
        }
    }

    /// Somebody is let in who may write. `file` is kept for a while to see whether he has gone; `before` is what is
    /// in the file as long as he has not written.
    pub(crate) fn now_written(&mut self, key: Key, good: bool, before: Option<Look>, file: Option<LateFd>) {
        self.recall.forget(&key);
        // What is made is mostly written once and read many times; what had something in it will be written again.
        if before.as_ref().is_none_or(|look| look.sighting.size() > 0) {
            self.ignoring.note_writer(&key);
        }
        if let Some(file) = &file {
            self.heed_unasked(&key, file.as_fd());
            // That he writes is expected. That there was no mark, or no memory for its end, does not matter.
            let _ = self.ignoring.notices().unwatch_inode(file.as_fd());
        }
        let file = file.filter(|_| self.inodes.has_room_for_writers());
        let due = file.as_ref().and_then(|_| self.retries.later(key, 0));
        let file = file.filter(|_| due.is_some());
        // A file that was somebody else's before may still be his to change, by name or through a descriptor.
        let was = self.inodes.written(&key).map(|written| (written.attributes, written.stranger));
        let (attributes, stranger) = was.unwrap_or_default();
        let written = Written::new(Writable { good: good && !stranger });
        self.inodes.write(key, Written { before, file, due, attributes, stranger, ..written });
    }

    /// The file is good and its label could not be written: whoever comes next tries again.
    pub(crate) fn still_to_renew(&mut self, key: Key) {
        let written = Written::new(Writable { good: true });
        self.inodes.write(key, Written { complained: true, closed: true, ..written });
        // If nobody comes, nobody tells us of its end either.
        self.inodes.bound(key);
    }

    /// Whether changes of such a file are followed even if it is not known who made them.
    pub(crate) fn follows_all_writers(&mut self, facts: &FileFacts) -> bool {
        self.filesystems.foresee(&self.policy, facts).writers == Writers::All
    }

    /// A file was changed by somebody who did not ask: `truncate(2)`, or `open(O_RDONLY|O_TRUNC)`. Whether it was known to be
    /// good, and is to be found for its label to follow.
    pub(crate) fn modified(&mut self, handle: [u8; 24]) -> bool {
        let Some((key, label)) = self.recall.take_modified(handle) else { return false };
        self.cover(key, &label, None, Waits::NobodyAnyMore);
        // Until it is found, whoever comes first has the label renewed.
        self.now_written(key, true, None, None);
        true
    }

    /// It has not been found: most likely it has lost its name since.
    pub(crate) fn modified_and_gone(&mut self, handle: &[u8; 24]) {
        for key in self.inodes.written_with(handle) {
            // Nobody has come to it since.
            if self.inodes.written(&key).is_some_and(|written| written.file.is_none() && !written.closed) {
                self.inodes.orphan(key);
                self.journal.at_rest(&key);
            }
        }
    }

    /// It has been found. Its handle.
    pub(crate) fn found_modified(&mut self, file: LateFd) -> Option<[u8; 24]> {
        let facts = file::facts(file.as_fd()).ok()?;
        let key = Key::of(file.as_fd(), &facts);
        self.heed_unasked(&key, file.as_fd());
        if let Some(busy) = self.inodes.busy_mut(&key) {
            // Whoever waits for that is answered first.
            busy.closed = Some(file);
        } else if let Some(written) = self.inodes.written_mut(&key)
            && written.file.is_none()
        {
            written.file = Some(file);
            self.try_renewal(key, 0);
        }
        key.handle()
    }

    /// A writer has closed the file; it need not have been the last one.
    pub(crate) fn closed(&mut self, file: LateFd) {
        let Ok(facts) = file::facts(file.as_fd()) else { return };
        let key = Key::of(file.as_fd(), &facts);
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.closed = Some(file);
            return;
        }
        let Some(written) = self.inodes.written_mut(&key) else { return self.slow_down(&key, file.as_fd()) };
        (written.before, written.closed) = (None, true);
        if facts.links == 0 {
            // Nobody will find it by a name. Who has it open, or was just about to, may still open it again: the label
            // is renewed then.
            (written.file, written.due) = (None, None);
            self.inodes.orphan(key);
            self.journal.at_rest(&key);
            return;
        }
        written.file = Some(file);
        self.try_renewal(key, 0);
    }

    /// Tries those whose time has come.
    pub(crate) fn retry(&mut self, now: Instant) {
        while let Some((due, attempt, key)) = self.retries.due(now) {
            if self.inodes.busy_mut(&key).is_none() && self.inodes.written(&key).is_some_and(|w| w.due == Some(due)) {
                self.try_renewal(key, attempt);
            }
        }
    }

    /// If no writer is left: renews the label if he found it good and has changed something, and forgets him.
    fn try_renewal(&mut self, key: Key, attempt: u32) {
        if self.inodes.busy_mut(&key).is_some() {
            return;
        }
        let Some(mut written) = self.inodes.take_written(&key) else { return };
        written.due = None;
        let Some(mut file) = written.file.take() else { return self.inodes.write(key, written) };
        match lease::take(file.as_fd(), self.leases.signal()) {
            Ok(Taken::Held) => {
                file.now_leased();
                let untouched = file::facts(file.as_fd()).is_ok_and(|facts| written.is_untouched(&facts));
                if !untouched {
                    written = self.with_all_heard(key, written);
                }
                if written.depends_on_close() && !self.all_is_heard(&mut written) {
                    file.release();
                    written.due = self.retries.later(key, attempt);
                    written.file = Some(file).filter(|_| written.due.is_some());
                    return self.inodes.write(key, written);
                }
                match written.before {
                    Some(look) if untouched => {
                        self.journal.untouched(&key);
                        if let Some(digest) = look.digest {
                            self.know(key, Known::new(digest, look, file));
                        }
                    }
                    _ if written.is_followed() => self.renew(key, Renewing::For(file), written.complained),
                    // Nobody vouches for whoever changed it.
                    _ if written.writable.good => self.journal.disown(&key),
                    // It was bad and still is: the next one to open it will be told.
                    _ => {}
                }
            }
            Ok(Taken::Writer) => {
                written.due = self.retries.later(key, attempt);
                written.file = Some(file).filter(|_| written.due.is_some());
                self.inodes.write(key, written);
            }
            Err(error) => {
                self.no_lease(file.as_fd(), &error.to_string());
                self.inodes.write(key, written);
            }
        }
    }

    /// The same with all that has happened to the file's attributes, as long as a lease keeps it from being changed.
    pub(crate) fn with_all_heard(&mut self, key: Key, written: Written) -> Written {
        let good = written.writable.good;
        self.inodes.write(key, written);
        self.hear_all_changes();
        let heard = self.inodes.take_written(&key);
        // One of which nothing is known but what it was.
        heard.unwrap_or_else(|| Written { attributes: true, ..Written::new(Writable { good }) })
    }

    /// Whether the notice of a close that came before the lease was taken cannot be in the queue any more. To be asked
    /// again, with a lease that was taken again, until it is so.
    pub(crate) fn all_is_heard(&self, written: &mut Written) -> bool {
        let queued = self.group.queued().unwrap_or(0);
        let mark = *written.quiet.get_or_insert(self.events_read + queued);
        self.events_handled >= mark || (queued == 0 && self.events_handled == self.events_read)
    }

    /// Has the label renewed under the lease that the descriptor holds. `complained`: it failed before, and was logged.
    pub(crate) fn renew(&mut self, key: Key, whose: Renewing, complained: bool) {
        let task = Task::Renew(whose);
        let lease = task.file().as_raw_fd();
        self.hand_over(key, Some(lease), task, Work::Renew(self.settings));
        if let Some(busy) = self.inodes.busy_mut(&key) {
            busy.complained = complained;
        }
    }

    /// The label is right again. Whoever waited for that is judged like anybody else, with the digest at hand.
    pub(crate) fn renewed(&mut self, key: Key, whose: Renewing, look: Look, digest: Digest, wrote: bool) {
        if wrote {
            self.counters.renewed += 1;
            // The notice that we changed the label must not be taken for one that came after this.
            self.hear_all_changes();
        }
        self.journal.at_rest(&key);
        match whose {
            Renewing::For(file) => self.know(key, Known::new(digest, look, file)),
            Renewing::Asked(ask) => self.looked(*ask, look),
        }
    }

    /// The label could not be renewed. The file is good, we know it; whoever waits is let in, and the next one to ask
    /// tries again.
    pub(crate) fn not_renewed(&mut self, key: Key, whose: Renewing, busy: &mut Busy, why: &str) {
        let waiting = busy.waiting.drain(..);
        let mut first = Some(why).filter(|_| !busy.complained);
        let mut asks = Vec::new();
        match whose {
            Renewing::For(file) => {
                if let Some(why) = first.take() {
                    self.note_failure(Failure::LabelNotWritten, file.as_fd(), why);
                }
            }
            Renewing::Asked(ask) => asks.push(*ask),
        }
        asks.extend(waiting);
        for ask in asks {
            match first.take() {
                Some(why) => self.fail(ask, Failure::LabelNotWritten, why),
                None => self.pass_unlabelled(ask),
            }
        }
        self.still_to_renew(key);
    }

    /// Lets somebody in to a good file, as the failure table says, of whose label it has been said already.
    fn pass_unlabelled(&mut self, ask: Ask) {
        if let Some(pass) = Failure::LabelNotWritten.pass(self.settings.mode) {
            self.let_ask_pass(ask, pass);
        }
    }
}

/// Whether the content with this digest is what the label says.
pub(crate) fn is_good(labels: Labels, look: &Look, digest: Digest) -> bool {
    match labels.read(look.label.as_read(), FileState { size: look.sighting.size(), new: false }) {
        Collect::Settled(outcome) => outcome.good(false),
        Collect::Content(stage) => stage.algorithm() == digest.algorithm() && stage.settle(digest).good(false),
    }
}
