//! A question that the policy wants judged meets what is remembered of its file.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use imara_integrity::check;
use imara_integrity::digest::Digest;
use imara_integrity::iint::Writable;
use imara_linux::error::CallError;
use imara_linux::file;
use imara_linux::lease::{self, Taken};

use crate::ask::{Ask, Hold};
use crate::failure::Failure;
use crate::inodes::Renewing;
use crate::key::Key;
use crate::look::Look;
use crate::scribe::Waits;
use crate::serve::Guard;

/// How long a question waits for the notice that its file is new, each time.
const PARKED: Duration = Duration::from_millis(2);

impl Guard {
    /// Considers somebody who has waited: his file may have changed since he came.
    pub(crate) fn reconsider(&mut self, mut ask: Ask) {
        match self.refresh(&mut ask) {
            Ok(()) => self.consider(ask),
            Err(why) => self.fail(ask, Failure::FactsUnreadable, &why),
        }
    }

    pub(crate) fn refresh(&self, ask: &mut Ask) -> Result<(), String> {
        ask.facts = file::facts(ask.file()).map_err(|error| error.to_string())?;
        (ask.heard, ask.at_once) = (self.ignoring.heard, false);
        Ok(())
    }

    /// Looks at what is remembered of the inode, then judges.
    pub(crate) fn consider(&mut self, mut ask: Ask) {
        let (key, ahead) = (ask.key(), std::mem::take(&mut ask.ahead));
        if let Some(busy) = self.inodes.busy_mut(&key) {
            if let Some(failure) = busy.stalled {
                return self.fail(ask, failure, "an earlier attempt still hangs");
            }
            ask.release();
            busy.waiting.push_back(ask);
            self.pool.hasten(busy.serial);
            return;
        }
        (ask.recalled, ask.before_writers, ask.vouched) = (false, false, false);
        if !ahead {
            self.take_lease(&mut ask);
        }
        if ask.hold == Hold::Writer && self.inodes.written(&key).is_none() && self.is_unsure(&ask) && ask.patience > 0 {
            ask.patience -= 1;
            return self.park(ask);
        }
        if self.inodes.written(&key).is_some() {
            return self.consider_written(ask, key);
        }
        match self.inodes.known(&key) {
            None if ahead => self.look_now(ask),
            None => self.look(ask),
            Some(known) if known.sighting.size() != ask.facts.size => self.consider_cut(ask, key),
            Some(known) => {
                let digest = known.digest;
                let seen = known.sighting.holds(&ask.facts).then(|| known.look());
                self.consider_known(ask, key, digest, seen);
            }
        }
    }

    /// The file was cut under our lease: `open(O_RDONLY|O_TRUNC)` is a reader to the kernel, which breaks no read lease
    /// for it and tells nobody of its close.
    fn consider_cut(&mut self, ask: Ask, key: Key) {
        let known = self.inodes.take_known(&key);
        let Some(known) = known.filter(|known| self.was_good(known)) else { return self.look(ask) };
        self.cover(key, &known.label, Some(ask.file()), Waits::NobodyAnyMore);
        self.now_written(key, true, None, None);
        self.consider_written(ask, key);
    }

    /// The content's digest is known, and its label too unless it may have been changed.
    fn consider_known(&mut self, mut ask: Ask, key: Key, digest: Digest, seen: Option<Look>) {
        let fresh = seen.is_none();
        let seen = seen.or_else(|| self.look_at_once(&ask, Some(digest)));
        if ask.hold == Hold::Lease {
            self.counters.known_hits += 1;
            let Some(look) = seen else {
                // From here on his lease guards the digest, for whoever else would be told that it breaks.
                self.inodes.forget_known(&key);
                return self.look_elsewhere(ask, Some(digest));
            };
            if fresh {
                self.inodes.relabelled(&key, look.label.clone(), look.sighting);
            }
            ask.hold = Hold::Remembered;
            return self.judge(ask, look);
        }
        if ask.hold == Hold::Writer
            && self.may_write(&ask.pending) == Some(false)
            && let Some(look) = seen
        {
            // Somebody else waits for our lease to break, so the digest is still true. The one to deal with him is who is
            // told of that (see [`Self::lease_breaks`]).
            ask.hold = Hold::Unleased;
            return self.judge(ask, look);
        }
        // A writer is let in at once, without having to break the lease (which would fail with O_NONBLOCK). The digest is
        // still true: he has not written yet.
        self.inodes.forget_known(&key);
        match seen {
            Some(look) => {
                self.counters.known_hits += 1;
                ask.before_writers = true;
                self.judge(ask, look);
            }
            None => self.look(ask),
        }
    }

    /// Somebody has, or had a moment ago, the file open for writing.
    pub(crate) fn consider_written(&mut self, mut ask: Ask, key: Key) {
        let Some(Writable { good }) = self.inodes.written(&key).map(|written| written.writable) else {
            return self.look(ask);
        };
        if ask.hold != Hold::Lease {
            if let Some(written) = self.inodes.written_mut(&key) {
                written.quiet = None;
            }
            let ask = if good { self.cover_another(key, ask) } else { Some(ask) };
            let Some(ask) = ask else { return };
            return match check::while_written(Writable { good }) {
                Some(pass) => {
                    self.counters.while_written += 1;
                    self.let_ask_pass(ask, pass);
                }
                None => self.look(ask),
            };
        }
        // There is no writer any more. He need not have changed anything: his open may have failed after all.
        if let Err(why) = self.refresh(&mut ask) {
            return self.fail(ask, Failure::FactsUnreadable, &why);
        }
        let Some(mut written) = self.inodes.take_written(&key) else { return self.look(ask) };
        let untouched = written.is_untouched(&ask.facts);
        if !untouched {
            written = self.with_all_heard(key, written);
        }
        // The notice of his close may be in the queue behind this question.
        if written.depends_on_close() && !self.all_is_heard(&mut written) {
            self.inodes.write(key, written);
            return self.park(ask);
        }
        match written.before {
            Some(look) if untouched => {
                self.journal.untouched(&key);
                self.judge(ask, look);
            }
            // The label may lag behind, so it is renewed before anybody reads.
            _ if written.is_followed() => self.renew(key, Renewing::Asked(Box::new(ask)), written.complained),
            _ => {
                if good {
                    self.journal.disown(&key);
                }
                self.look(ask);
            }
        }
    }

    /// Tries for a read lease on the asker's descriptor.
    pub(crate) fn take_lease(&mut self, ask: &mut Ask) {
        let taken = lease::take(ask.file(), self.leases.signal());
        self.note_lease(ask, taken);
    }

    /// Notes what came of that.
    pub(crate) fn note_lease(&mut self, ask: &mut Ask, taken: Result<Taken, CallError>) {
        ask.hold = match taken {
            Ok(Taken::Held) => Hold::Lease,
            Ok(Taken::Writer) => Hold::Writer,
            Err(error) => {
                self.no_lease(ask.file(), &error.to_string());
                Hold::Unleased
            }
        };
    }

    /// A file that gives no lease, though nobody is writing to it: judged, never remembered.
    pub(crate) fn no_lease(&mut self, file: BorrowedFd<'_>, why: &str) {
        // Such a file is asked about again and again: the counter tells how often, the log only that it happens.
        let word = Failure::LeaseRefused;
        if self.counters.count(word) == 1 {
            self.say_failure(word, file, why);
        }
    }

    /// Lets somebody wait for a moment, without keeping writers out meanwhile.
    pub(crate) fn park(&mut self, mut ask: Ask) {
        ask.release();
        self.parked.push_back((Instant::now() + PARKED, ask));
    }

    /// Considers those again who have waited long enough.
    pub(crate) fn unpark(&mut self, now: Instant) {
        while self.parked.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, ask)) = self.parked.pop_front() {
                self.reconsider(ask);
            }
        }
    }
}
