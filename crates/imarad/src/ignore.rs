//! The fast path: files that the kernel answers for itself, without asking us (ignore marks).
//!
//! Two kinds of files are ignored, and only where the answer is the same whoever opens the file, and how:
//!
//! * **known** ones, which are what their label says, under our lease. A writer has to break the lease, and before it is
//!   given back the kernel asks again ([`release`](crate::closer::LateFd::release) sees to the order);
//! * **unasked** ones, of which no rule asks anything. Nothing of theirs is held.
//!
//! What does not break a lease (a change of owner, mode, label or number of links) we hear of afterwards, from a group of
//! notices. From the change until then the file is let through as before it; docs/operation.md says how long that is.
//!
//! A file is ignored when it is opened for the second time: what is opened once costs less without.

use std::collections::HashSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use imara_integrity::check::{self, Plan};
use imara_integrity::collect::Labels;
use imara_integrity::policy::{Foreseen, Writers};
use imara_linux::fanotify::{FanotifyError, FsMask, Marked};
use imara_linux::file::{self, FileFacts};
use imara_linux::handle::{FileHandle, file_handle};
use imara_linux::lease::{self, Taken};
use imara_linux::notice::{Notice, NoticeBuffer, NoticeGroup};

use crate::ask::Ask;
use crate::closer::LateFd;
use crate::failure::Failure;
use crate::filesystems::Foresight;
use crate::key::Key;
use crate::log::Level;
use crate::renew::is_good;
use crate::revisit::{Found, Purpose};
use crate::serve::Guard;
use crate::traces::Traces;

/// A file with something in it that was opened for writing is not ignored for at least this long, and at most twice as long.
const LATELY: Duration = Duration::from_secs(300);

/// Files that are remembered to have been found at most.
const FOUND: usize = 65_536;

/// Reads at once at most; one gives some 300 notices.
const READS: usize = 8;

/// The same, where all must be heard.
const ALL_READS: usize = 256;

/// What we hear of, and what may have to be taken back for it.
#[derive(Debug)]
pub(crate) struct Ignoring {
    notices: NoticeGroup,
    buffer: NoticeBuffer,
    unasked: Traces,
    /// Those of them that have been found after a change, and that the kernel has not been left since. Whoever changes
    /// such a file again and again costs nothing more.
    found: HashSet<FileHandle>,
    /// Files that no rule asked anything about, and that have changed since: somebody may have them open for writing whom
    /// nobody knows, until that has been looked at.
    unsure: HashSet<FileHandle>,
    /// Files with something in them that were opened for writing lately, and before that: who writes to them again may do
    /// so with `O_NONBLOCK`, and would be sent away by the lease of a file that is ignored.
    written: [Traces; 2],
    turned: Instant,
    /// Whether the kernel can do it (Linux 5.19).
    possible: bool,
    /// How often notices were read.
    pub(crate) heard: u64,
    /// How often a file was left to the kernel: known ones, and unasked ones.
    pub(crate) known: u64,
    pub(crate) found_unasked: u64,
    /// How often that was taken back because attributes changed.
    pub(crate) heeded: u64,
}

impl Ignoring {
    pub(crate) fn new(notices: NoticeGroup) -> Self {
        Self {
            notices,
            buffer: NoticeBuffer::default(),
            unasked: Traces::default(),
            found: HashSet::new(),
            unsure: HashSet::new(),
            written: <[Traces; 2]>::default(),
            turned: Instant::now(),
            possible: true,
            heard: 0,
            known: 0,
            found_unasked: 0,
            heeded: 0,
        }
    }

    pub(crate) const fn notices(&self) -> &NoticeGroup {
        &self.notices
    }

    /// Whether the kernel can ignore files at all.
    pub(crate) const fn is_possible(&self) -> bool {
        self.possible
    }

    /// Somebody may be writing to this file, which had something in it before.
    pub(crate) fn note_writer(&mut self, key: &Key) {
        let now = Instant::now();
        let [lately, before] = &mut self.written;
        if now.duration_since(self.turned) > LATELY {
            std::mem::swap(lately, before);
            lately.clear();
            self.turned = now;
        }
        if let Some(handle) = key.handle() {
            lately.insert(handle);
        }
    }

    /// This file is being looked for.
    fn note_found(&mut self, file: FileHandle) {
        if self.found.len() >= FOUND {
            // They are only looked for once more.
            self.found.clear();
        }
        self.found.insert(file);
        if self.unsure.len() >= FOUND {
            self.unsure.clear();
        }
        self.unsure.insert(file);
    }

    /// Somebody opens this file whom no rule asks about. Returns its handle if the file can be found again by that.
    pub(crate) fn note_unasked(&mut self, file: BorrowedFd<'_>) -> Option<FileHandle> {
        let handle = file_handle(file).ok()?;
        self.unasked.insert(handle.short()?);
        self.found.remove(&handle);
        Some(handle)
    }

    /// Whether this file may have writers whom nobody knows, which is being looked at.
    pub(crate) fn is_unsure(&self, file: BorrowedFd<'_>) -> bool {
        !self.unsure.is_empty() && file_handle(file).is_ok_and(|handle| self.unsure.contains(&handle))
    }

    fn was_written_lately(&self, key: &Key) -> bool {
        key.handle().is_none_or(|handle| self.is_among_written(handle))
    }

    fn is_among_written(&self, handle: [u8; 24]) -> bool {
        self.written.iter().any(|traces| traces.may_contain(handle))
    }
}

impl Guard {
    /// Leaves a file to the kernel that is known and was found good when it looked so.
    pub(crate) fn ignore_known(&mut self, key: Key, facts: &FileFacts) {
        self.see_mounts();
        if !self.filesystems.may_ignore(facts) || !self.ignoring.possible {
            return;
        }
        let Some(known) = self.inodes.known_mut(&key) else { return };
        if known.file.is_ignored() || !known.sighting.holds(facts) || self.ignoring.was_written_lately(&key) {
            return;
        }
        let (look, digest) = (known.look(), known.digest);
        let Some(what) = self.ignorable(facts, |labels| is_good(labels, &look, digest)) else { return };
        let Some(known) = self.inodes.known_mut(&key) else { return };
        let ignored = self.group.ignore_inode(known.file.as_fd(), what);
        // In case of an error it may have been done by half.
        known.file.now_ignored(&self.group);
        if let Err(error) = ignored {
            known.file.heed();
            return self.cannot_ignore(&error);
        }
        // Whoever cuts it by open(O_RDONLY|O_TRUNC) breaks no lease and asks nobody, but this is told.
        if let Err(error) = self.ignoring.notices.watch_inode(known.file.as_fd()) {
            known.file.heed();
            return self.cannot_ignore(&error);
        }
        self.ignoring.known += 1;
        // A change from before the mark was there is not noticed, or too early.
        if !file::facts(known.file.as_fd()).is_ok_and(|now| known.sighting.holds(&now)) {
            known.file.heed();
            // Whoever has just been let in may have done it himself.
            self.cut(key);
        }
    }

    /// Leaves a file to the kernel of which no rule asks anything.
    pub(crate) fn ignore_unasked(&mut self, file: BorrowedFd<'_>, facts: &FileFacts) {
        self.see_mounts();
        // Without a handle nobody could find it again.
        let Some(handle) = self.ignoring.note_unasked(file) else { return };
        if facts.links == 0 || !self.filesystems.may_ignore(facts) || !self.ignoring.possible {
            return;
        }
        let Some(what) = self.ignorable(facts, |_| false) else { return };
        if handle.short().is_none_or(|short| self.ignoring.is_among_written(short)) {
            return;
        }
        if let Err(error) = self.group.ignore_inode(file, what) {
            let _ = self.group.heed_inode(file);
            return self.cannot_ignore(&error);
        }
        self.ignoring.found_unasked += 1;
        // A change from before the mark was there is not noticed, or too early.
        if !file::facts(file).is_ok_and(|now| (now.owner, now.group) == (facts.owner, facts.group)) {
            let _ = self.group.heed_inode(file);
        }
    }

    /// The number of a mount that has gone may be that of another one by now, of which this would be the first file. The
    /// kernel says that the list has changed before it gives the number to anybody.
    fn see_mounts(&mut self) {
        if self.mount_watch.has_changed() {
            self.mounts_changed();
        }
    }

    /// Files of these file systems can be seen with other owners now, for whom other rules may hold: the kernel asks about
    /// all of them again.
    pub(crate) fn heed_marked(&mut self, filesystems: &[((u32, u32), [i32; 2])]) {
        self.inodes.heed_all();
        let Ok(marked) = self.group.marked_inodes() else { return self.lost_a_change() };
        for Marked { device, kind, handle } in marked {
            let fsid = filesystems.iter().find(|(guarded, _)| *guarded == device).map(|(_, fsid)| *fsid);
            if let Some(handle) = fsid.and_then(|fsid| FileHandle::new(fsid, kind, &handle)) {
                self.revisit(handle, Purpose::Heed);
            }
        }
    }

    /// What need not be asked about such a file, if it is good in the sense of each decision that there can be.
    fn ignorable(&mut self, facts: &FileFacts, good: impl Fn(Labels) -> bool) -> Option<FsMask> {
        let Foresight { open, exec, writers } = self.filesystems.foresee(&self.policy, facts);
        if writers == Writers::Some {
            // Of a writer who does not ask it is not known whether his changes are to be followed.
            return None;
        }
        // Whoever opens what is measured may violate that, or have it violated.
        let unwatched = !self.can_be_measured(facts);
        let passes = |foreseen: &Foreseen| {
            let passes = match check::plan(&foreseen.strictest, self.settings) {
                Plan::Allow(_) => true,
                Plan::Judge(labels) => good(labels),
            };
            passes && !foreseen.effects_vary
        };
        let opened = FsMask::OPEN.union(FsMask::CLOSE_NOWRITE);
        match (passes(&open) && unwatched, passes(&exec)) {
            (true, true) => Some(opened.union(FsMask::EXEC)),
            (true, false) => Some(opened),
            (false, true) => Some(FsMask::EXEC),
            (false, false) => None,
        }
    }

    pub(crate) fn cannot_ignore(&mut self, error: &FanotifyError) {
        /// The kernel does not know such marks.
        const INVALID: i32 = 22;
        if error.errno() == Some(INVALID) {
            self.ignoring.possible = false;
            let text = format!("imarad: every open is asked about, because the kernel cannot ignore files: {error}");
            self.log.say(Level::Warning, text);
        }
    }

    /// Hears which files have changed, and has the kernel ask about them again.
    pub(crate) fn hear_of_changes(&mut self) {
        self.hear(READS);
    }

    /// Hears all notices that are in the queue, unless they come faster than they can be heard.
    pub(crate) fn hear_all_changes(&mut self) {
        self.hear(ALL_READS);
    }

    fn hear(&mut self, reads: usize) {
        for _ in 0..reads {
            let Ok(notices) = self.ignoring.notices.read(&mut self.ignoring.buffer) else { return };
            let notices: Vec<_> = notices.collect();
            if notices.is_empty() {
                return;
            }
            self.ignoring.heard += 1;
            for notice in notices {
                match notice {
                    Ok(Notice::Changed { file, attributes, content }) => {
                        // Whoever changes both may have become the owner before he changed the content.
                        if content && !attributes {
                            self.content_changed(&file);
                        }
                        if attributes && let Some(short) = file.short() {
                            self.inodes.note_attributes(&short);
                        }
                        self.changed(&file);
                    }
                    Ok(_) | Err(_) => self.lost_a_change(),
                }
            }
        }
    }

    fn content_changed(&mut self, file: &FileHandle) {
        let Some(short) = file.short() else { return };
        if self.modified(short) {
            self.revisit(*file, Purpose::Renew);
        }
        self.inodes.known_by_handle(&short).into_iter().for_each(|key| self.cut(key));
    }

    fn changed(&mut self, handle: &FileHandle) {
        let Some(short) = handle.short() else { return };
        self.recall.forget_handle(short);
        for key in self.inodes.known_by_handle(&short) {
            let Some(known) = self.inodes.known_mut(&key) else { continue };
            if known.file.is_ignored() {
                known.file.heed();
                self.ignoring.heeded += 1;
            }
            // Deleted: as long as it is held, its blocks stay allocated.
            if file::facts(known.file.as_fd()).is_ok_and(|facts| facts.links == 0)
                && let Some(known) = self.inodes.take_known(&key)
            {
                self.retire(key, known);
            }
        }
        if self.ignoring.unasked.may_contain(short) && !self.ignoring.found.contains(handle) {
            self.ignoring.note_found(*handle);
            self.revisit(*handle, Purpose::Heed);
            // Whoever comes from then on asks.
            self.revisit(*handle, Purpose::Strangers);
        }
    }

    /// Has the kernel ask about a file at once that was left to it while no rule asked anything about it: whoever writes to
    /// it now must not do so unheard of.
    pub(crate) fn heed_unasked(&mut self, key: &Key, file: BorrowedFd<'_>) {
        if key.handle().is_some_and(|handle| self.ignoring.unasked.may_contain(handle)) {
            // An error says that the group is closed.
            let _ = self.group.heed_inode(file);
        }
    }

    /// Somebody has closed a file of which no rule asks anything. The kernel tells of each such close, and of the open before it
    /// asks nobody: who is faster with that than we are would have others wait behind more and more of his closes. For the
    /// next minutes he has to ask, and to wait for his answer as they do.
    pub(crate) fn slow_down(&mut self, key: &Key, file: BorrowedFd<'_>) {
        if self.is_behind() {
            self.heed_unasked(key, file);
            self.ignoring.note_writer(key);
        }
    }

    fn revisit(&mut self, handle: FileHandle, purpose: Purpose) {
        for mount in self.filesystems.private_of(handle.fsid()) {
            if !self.revisit.ask(handle, mount, purpose) {
                self.ignoring.found.remove(&handle);
                self.lost_a_change();
            }
        }
    }

    /// Files of which only the handles were known have been found, or not.
    pub(crate) fn revisited(&mut self, Found { purpose, mut sought, files }: Found) {
        for file in files {
            let file = self.closer.late(file, false);
            match purpose {
                Purpose::Renew => {
                    let found = self.found_modified(file);
                    sought.retain(|handle| handle.short() != found);
                }
                Purpose::Strangers => self.look_for_strangers(file),
                Purpose::Heed => {
                    self.ignoring.heeded += 1;
                    if let Err(error) = self.group.heed_path(file.as_fd()) {
                        if let Ok(handle) = file_handle(file.as_fd()) {
                            self.ignoring.found.remove(&handle);
                        }
                        self.note_failure(Failure::ChangeLost, file.as_fd(), &error.to_string());
                    }
                }
            }
        }
        if purpose == Purpose::Renew {
            sought.iter().filter_map(FileHandle::short).for_each(|handle| self.modified_and_gone(&handle));
        }
    }

    /// Whether a file of which no rule asked anything for a while has writers, of whom nobody knows. If a rule may ask by now,
    /// nobody vouches for them. (One who has asked meanwhile counts as one of them: they cannot be told apart.)
    fn look_for_strangers(&mut self, mut file: LateFd) {
        let (Ok(facts), Ok(handle)) = (file::facts(file.as_fd()), file_handle(file.as_fd())) else { return };
        self.ignoring.unsure.remove(&handle);
        match lease::take(file.as_fd(), self.leases.signal()) {
            Ok(Taken::Held) => file.now_leased(),
            Ok(Taken::Writer) if self.filesystems.foresee(&self.policy, &facts).writers == Writers::None => {
                // He may still have it when a rule does.
                self.ignoring.found.remove(&handle);
            }
            Ok(Taken::Writer) => self.stranger_writes(Key::of(file.as_fd(), &facts), Some(file)),
            // It is no regular file, or gives no leases.
            Err(_) => {}
        }
    }

    /// Somebody has a file open for writing whom no rule asked about.
    pub(crate) fn stranger_writes(&mut self, key: Key, file: Option<LateFd>) {
        if !self.inodes.is_written_or_busy(&key) {
            self.now_written(key, false, None, file);
        }
        self.inodes.disown(&key);
        self.journal.disown(&key);
    }

    /// Whether it is just being looked at whether the file has writers whom nobody knows.
    pub(crate) fn is_unsure(&mut self, ask: &Ask) -> bool {
        self.hear_all_changes();
        let unsure = self.ignoring.is_unsure(ask.file());
        if unsure && let Ok(handle) = file_handle(ask.file()) {
            // Unless that is under way: it could not be opened the last time.
            self.revisit(handle, Purpose::Strangers);
        }
        unsure
    }

    /// What is known is asked about again. Files of which no rule asked anything stay as they are, because nobody knows
    /// which they are.
    fn lost_a_change(&mut self) {
        self.note(Failure::ChangeLost, "a change of owner, mode or label");
        self.inodes.heed_all();
    }
}
