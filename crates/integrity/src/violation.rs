//! Measurements that cannot be trusted: a file that is read and written at the same time.
//!
//! Two things can be wrong about a measured file (spelled as in the kernel's audit records):
//!
//! * `ToMToU`, time of measure, time of use: it is opened for writing while somebody has it open who was told that it was
//!   measured. At most one for each time that it was measured.
//! * `open_writers`: it is measured for a reader while somebody has it open for writing. At most one until the last writer
//!   has closed it.
//!
//! Neither refuses anything. An entry of the measurement list says that the state of the host is not known any more.
//!
//! Source: Linux 6.15 `security/integrity/ima/ima_main.c`, `ima_rdwr_violation_check()`, `ima_check_last_writer()`.

use std::fmt;

use crate::audit::{Asker, Fields};

/// What was violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// `ToMToU`: opened for writing while measured for reading.
    ToMToU,
    /// `open_writers`: measured for reading while open for writing.
    OpenWriters,
}

impl Violation {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ToMToU, Self::OpenWriters];

    /// The word of the audit record.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::ToMToU => "ToMToU",
            Self::OpenWriters => "open_writers",
        }
    }
}

/// How a file is opened, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Without writing: the kernel counts only those as readers.
    Read,
    /// For writing, whether or not for reading too.
    Write,
    /// It is not known which.
    Either,
}

/// One opening of a file, at the moment when the kernel's hook would see it: it counts already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// How.
    pub access: Access,
    /// Whether a rule has it measured.
    pub measured: bool,
    /// Whether somebody else has the file open for writing, if the host can tell; else those count that were seen.
    pub written: Option<bool>,
}

/// Who has an inode open, and what has been said about it.
///
/// Numbers are of open descriptions, so a descriptor that is duplicated or inherited is one, and so is a mapping that
/// outlives the descriptor it was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenState {
    readers: u64,
    writers: u64,
    /// Of whom it is not known what they are.
    either: u64,
    /// `IMA_MAY_EMIT_TOMTOU`: it was measured since the last report.
    measured: bool,
    /// `IMA_EMITTED_OPENWRITERS`: reported, and the writers are still there.
    reported: bool,
}

impl OpenState {
    /// Somebody opens the file; what that violates. In doubt, it violates both.
    #[must_use = "it is reported once"]
    pub fn opened(&mut self, opening: Opening) -> Vec<Violation> {
        let Opening { access, measured, written } = opening;
        if written == Some(false) {
            self.last_writer_has_gone();
        }
        let mut found = Vec::new();
        if access != Access::Read && self.readers.saturating_add(self.either) > 0 && self.measured {
            self.measured = false;
            found.push(Violation::ToMToU);
        }
        if access != Access::Write && measured {
            self.measured = true;
            let written = written.unwrap_or(self.writers.saturating_add(self.either) > 0);
            if written && !self.reported {
                self.reported = true;
                found.push(Violation::OpenWriters);
            }
        }
        let count = self.count(access);
        *count = count.saturating_add(1);
        found
    }

    /// Somebody who was counted did not get it open, or has closed it. Nothing is known of those who opened it before
    /// anybody looked: their closing does not count for less than none.
    ///
    /// [`Access::Either`] is for those who never got it open: whoever closes is known.
    pub fn closed(&mut self, access: Access) {
        let count = match access {
            Access::Read if self.readers == 0 => &mut self.either,
            Access::Write if self.writers == 0 => &mut self.either,
            Access::Read | Access::Write | Access::Either => self.count(access),
        };
        *count = count.saturating_sub(1);
        if access == Access::Write && self.writers == 0 {
            self.reported = false;
        }
    }

    /// Whether somebody has it open for writing who was seen.
    #[must_use]
    pub const fn is_written(&self) -> bool {
        self.writers > 0
    }

    /// Whether nobody has it open who was seen.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.readers == 0 && self.writers == 0 && self.either == 0
    }

    /// Whether nothing is known of it that would be missed.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.is_closed() && !self.measured && !self.reported
    }

    fn last_writer_has_gone(&mut self) {
        self.writers = 0;
        // Those of whom it was not known turn out to be readers.
        self.readers = self.readers.saturating_add(std::mem::take(&mut self.either));
        self.reported = false;
    }

    fn count(&mut self, access: Access) -> &mut u64 {
        match access {
            Access::Read => &mut self.readers,
            Access::Write => &mut self.writers,
            Access::Either => &mut self.either,
        }
    }
}

/// A violation, for the log and for the measurement list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which.
    pub violation: Violation,
    /// Who opened the file.
    pub asker: Asker,
    /// Path of the file as bytes; empty if it has none.
    pub path: Vec<u8>,
    /// Device, as the kernel names the superblock (`sb->s_id`), e.g. `loop0`.
    pub device: String,
    /// Inode number.
    pub inode: u64,
}

impl fmt::Display for Record {
    /// `pid=… uid=… auid=… ses=… op=invalid_pcr cause=… comm="…" name="…" dev="…" ino=… res=1 errno=0`: the kernel's
    /// record of type 1804, without `subj=`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = Fields {
            asker: &self.asker,
            operation: "invalid_pcr",
            cause: self.violation.word(),
            path: &self.path,
            device: &self.device,
            inode: self.inode,
            result: 1,
        };
        write!(f, "{fields}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Violation::{OpenWriters, ToMToU};

    /// Plays a row of events: `m` measured read, `r` read that is not measured, `w` write, `e` and `f` either of them,
    /// measured and not; `-r` `-w` `-e` closes. What is known of other writers is taken from the counts.
    fn play(events: &str) -> Vec<(usize, Violation)> {
        let mut state = OpenState::default();
        let mut said = Vec::new();
        for (place, event) in events.split(' ').enumerate() {
            let access = match event.trim_start_matches('-') {
                "m" | "r" => Access::Read,
                "w" => Access::Write,
                "e" | "f" => Access::Either,
                other => panic!("{other}"),
            };
            if event.starts_with('-') {
                state.closed(access);
            } else {
                let opening = Opening { access, measured: matches!(event, "m" | "e"), written: None };
                said.extend(state.opened(opening).into_iter().map(|violation| (place, violation)));
            }
        }
        said
    }

    #[test]
    fn who_reads_and_writes_at_the_same_time_is_reported_as_often_as_the_kernel_does() {
        let table: &[(&str, &[(usize, Violation)])] = &[
            // One after the other.
            ("m -r w -w m -r", &[]),
            // ToMToU needs a reader who is there, and one who was measured, not necessarily the same.
            ("m w", &[(1, ToMToU)]),
            ("r w", &[]),
            ("m -r r w", &[(3, ToMToU)]),
            ("r m -r w", &[(3, ToMToU)]),
            ("m r -r -r w", &[]),
            // Once, until it is measured again.
            ("m w -w w -w w", &[(1, ToMToU)]),
            ("m w -w m w", &[(1, ToMToU), (4, ToMToU)]),
            ("m w -w r w", &[(1, ToMToU)]),
            ("m w m -r -w -r w", &[(1, ToMToU), (2, OpenWriters)]),
            // open_writers, once until the last writer closes.
            ("w m", &[(1, OpenWriters)]),
            ("w r", &[]),
            ("w m -r m m", &[(1, OpenWriters)]),
            ("w m -w m", &[(1, OpenWriters)]),
            ("w m -r -w w m", &[(1, OpenWriters), (5, OpenWriters)]),
            ("w w m -w m -w", &[(2, OpenWriters)]),
            ("w w m -r -w m -r -w w m", &[(2, OpenWriters), (9, OpenWriters)]),
            // Both: the writer comes while a reader is there who was measured beside another writer.
            ("w m w", &[(1, OpenWriters), (2, ToMToU)]),
            // Whoever is not known counts as what would be worse.
            ("m e", &[(1, ToMToU)]),
            ("w e", &[(1, OpenWriters)]),
            ("f m", &[(1, OpenWriters)]),
            ("f -r m -r", &[]),
            ("m -r e w", &[(3, ToMToU)]),
            ("w m e -w", &[(1, OpenWriters), (2, ToMToU)]),
            ("e -w w", &[]),
            // A close of somebody who was not seen.
            ("-r -w m w", &[(3, ToMToU)]),
        ];
        for (events, expected) in table {
            assert_eq!(play(events), *expected, "{events}");
        }
    }

    #[test]
    fn what_the_host_can_tell_of_writers_counts_more_than_what_was_seen() {
        let reader = |written| Opening { access: Access::Read, measured: true, written };
        let mut state = OpenState::default();
        assert_eq!(state.opened(reader(Some(true))), [OpenWriters], "one from before");
        assert_eq!(state.opened(reader(Some(true))), []);
        assert_eq!(state.opened(reader(Some(false))), [], "he has gone");
        assert_eq!(state.opened(reader(Some(true))), [OpenWriters], "another one");
        let writer = Opening { access: Access::Write, measured: false, written: None };
        assert_eq!(state.opened(writer), [ToMToU]);
        assert!(state.is_written());
        assert_eq!(state.opened(reader(Some(false))), [], "he did not get it open");
        assert!(!state.is_written() && !state.is_closed());
        (0..5).for_each(|_| state.closed(Access::Read));
        assert!(state.is_closed() && !state.is_nothing());
        assert!(OpenState::default().is_nothing());
    }
}
