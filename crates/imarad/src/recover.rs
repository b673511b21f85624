//! What a guard finds in the journal of one that was not ended, or whose files were still being written when it was.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;

use imara_integrity::check::Mode;
use imara_integrity::journal::HANDLE_LENGTH;
use imara_linux::handle::{FileHandle, file_handle, short_handle};
use imara_linux::{file, private_mount, xattr};

use crate::book::Note;
use crate::failure::Failure;
use crate::key::Key;
use crate::log::Level;
use crate::look::Label;
use crate::scribe::Opened;
use crate::serve::Guard;

/// `ESTALE`: there is no such file any more.
const STALE: i32 = 116;

/// What happens to files that were being written when a guard stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Recover {
    /// They get new labels.
    #[default]
    Relabel,
    /// They are judged like all others.
    Deny,
    /// The same, and each is named in the log.
    Ask,
}

impl Recover {
    const ALL: [Self; 3] = [Self::Relabel, Self::Deny, Self::Ask];

    const fn name(self) -> &'static str {
        match self {
            Self::Relabel => "relabel",
            Self::Deny => "deny",
            Self::Ask => "ask",
        }
    }
}

impl fmt::Display for Recover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Recover {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|recover| recover.name() == name);
        found.ok_or_else(|| format!("unknown recovery {name:?} (expected relabel, deny or ask)"))
    }
}

/// All notes of one file.
#[derive(Debug, Default)]
struct Left {
    ids: Vec<u64>,
    labels: Vec<Option<Box<[u8]>>>,
    path: Box<[u8]>,
}

impl Guard {
    /// Takes over what other guards have left. Nobody is asked yet, so nobody has been told anything about these files.
    pub(crate) fn recover(&mut self, opened: Vec<Opened>, mounts: &[(PathBuf, OwnedFd)], recover: Recover) {
        for Opened { file_system, notes, complaint } in opened {
            let Some((path, mount)) = mounts.get(file_system) else { continue };
            let named = |what: &str| format!("{}: its journal {what}", path.display());
            if let Some(what) = complaint {
                self.note(Failure::JournalNotWritten, &named(&what));
            }
            match notes {
                Ok(notes) => {
                    let count = self.recover_file_system(file_system, mount, notes, recover);
                    if count > 0 {
                        self.say_recovered(&path.display().to_string(), count, recover);
                    }
                }
                Err(why) => self.note(Failure::JournalNotWritten, &named(&format!("cannot be used: {why}"))),
            }
        }
    }

    fn say_recovered(&self, path: &str, count: usize, recover: Recover) {
        let then = match (self.settings.mode, recover) {
            (Mode::Off, _) => "they stay as they are (mode off)",
            (_, Recover::Relabel) => "they get new labels",
            (_, Recover::Deny | Recover::Ask) => "they are judged like all others",
        };
        let text = format!(
            "imarad: {path}: {count} files may have been open for writing when the last guard stopped: {then} (recover = {recover})"
        );
        self.log.say(Level::Warning, text);
    }

    /// How many files there are that may have been changed without their labels having followed.
    fn recover_file_system(
        &mut self,
        file_system: usize,
        mount: &OwnedFd,
        notes: Vec<(u64, Note)>,
        recover: Recover,
    ) -> usize {
        let Ok(root) = file_handle(mount.as_fd()) else { return 0 };
        let mut files = HashMap::<[u8; HANDLE_LENGTH], Left>::new();
        for (id, note) in notes {
            let left = files.entry(note.handle).or_default();
            left.ids.push(id);
            left.labels.push(note.label);
            left.path = note.path;
        }
        let mut count = 0;
        for (handle, left) in files {
            if self.settings.mode == Mode::Off || self.recover_file((file_system, mount), &root, handle, &left, recover)
            {
                count += 1;
            }
        }
        count
    }

    fn recover_file(
        &mut self,
        (file_system, mount): (usize, &OwnedFd),
        root: &FileHandle,
        handle: [u8; HANDLE_LENGTH],
        left: &Left,
        recover: Recover,
    ) -> bool {
        let found = root.of_another(&handle).map(|handle| private_mount::open(mount.as_fd(), &handle));
        let file = match found {
            Some(Ok(file)) if short_handle(file.as_fd()) == Some(handle) => self.closer.late(file, false),
            // Whatever hinders us now may not do so at the next start.
            Some(Err(error)) if error.errno() != Some(STALE) => return true,
            Some(Ok(_) | Err(_)) | None => {
                left.ids.iter().for_each(|id| self.journal.strike_found(file_system, *id));
                return false;
            }
        };
        let label = Label::from(xattr::read_label(file.as_fd(), xattr::IMA, &mut self.label));
        let label = match &label {
            Label::Value(bytes) => Some(bytes.clone()),
            Label::Absent => None,
            Label::Unsupported | Label::Failed => return true,
        };
        let Ok(facts) = file::facts(file.as_fd()) else { return true };
        if !facts.is_regular() || !left.labels.contains(&label) {
            // It was labelled by somebody else, so the journal has nothing to say about it.
            left.ids.iter().for_each(|id| self.journal.strike_found(file_system, *id));
            return false;
        }
        match recover {
            Recover::Relabel => {
                let key = Key::of(file.as_fd(), &facts);
                for (id, label) in left.ids.iter().zip(&left.labels) {
                    self.journal.adopt(*id, (key, file_system), label.as_deref());
                }
                // As if its writer had just closed it.
                self.now_written(key, true, None, Some(file));
            }
            Recover::Ask => {
                let path = String::from_utf8_lossy(&left.path).escape_debug().to_string();
                let text = format!(
                    "imarad: {path} may have been half written when the last guard stopped; if it is right: imara label {path}"
                );
                self.log.say(Level::Warning, text);
            }
            Recover::Deny => {}
        }
        true
    }
}
