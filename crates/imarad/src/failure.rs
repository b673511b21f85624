//! Every way in which judging can fail, and what then happens: one table, one row a failure.
//!
//! A denial is not a failure: it is a decision. A failure is 'could not decide' or 'could not keep up', and this table
//! is the only place where that is turned into an answer. `docs/failures.md` shows it to administrators; a test keeps
//! the two alike.

use imara_integrity::check::{Mode, Pass};

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// The kernel dropped events because its queue was full. Openers whose event was dropped were let through by it.
    QueueOverflow,
    /// An event could not be turned into a descriptor by the kernel; it has denied the opener itself.
    EventUnreadable,
    /// Owner, size or device of the file could not be read.
    FactsUnreadable,
    /// A rule wants to know who asks, and that could not be found out (he is outside of our pid namespace).
    AskerUnreadable,
    /// The content could not be read (an I/O error, or memory ran out).
    ContentUnreadable,
    /// The content changed again and again while it was read.
    ContentChanging,
    /// Reading the content made no progress for too long.
    HashStalled,
    /// The label of a file that was changed by a good writer could not be renewed (file system full or read-only, …).
    LabelNotWritten,
    /// A file that is going to be written to could not be noted in the journal (full, read-only, broken, or it hangs).
    JournalNotWritten,
    /// The file gave no read lease, though not because of a writer (leases were switched off, or memory ran out).
    LeaseRefused,
    /// The kernel's signal queue was full: a lease may have been broken without our knowing.
    LeaseSignalLost,
    /// A change of owner, mode or label was not heard of, or a file that changed was not found: the kernel may go on to
    /// let a file through of which no rule asked anything before.
    ChangeLost,
}

/// What the one who waits gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The open fails in mode `enforce`, and goes on in the others.
    DenyIfEnforcing,
    /// The open goes on in every mode: the file is known to be good.
    Allow,
    /// Nobody waits.
    Nobody,
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The word in the log and in `imara status`.
    pub(crate) word: &'static str,
    /// What the opener gets.
    pub(crate) answer: Answer,
}

impl Failure {
    /// Every row.
    pub(crate) const ALL: [Self; 12] = [
        Self::QueueOverflow,
        Self::EventUnreadable,
        Self::FactsUnreadable,
        Self::AskerUnreadable,
        Self::ContentUnreadable,
        Self::ContentChanging,
        Self::HashStalled,
        Self::LabelNotWritten,
        Self::JournalNotWritten,
        Self::LeaseRefused,
        Self::LeaseSignalLost,
        Self::ChangeLost,
    ];

    /// The table.
    pub(crate) const fn row(self) -> Row {
        let (word, answer) = match self {
            Self::QueueOverflow => ("queue-overflow", Answer::Nobody),
            Self::EventUnreadable => ("event-unreadable", Answer::Nobody),
            Self::FactsUnreadable => ("facts-unreadable", Answer::DenyIfEnforcing),
            Self::AskerUnreadable => ("asker-unreadable", Answer::DenyIfEnforcing),
            Self::ContentUnreadable => ("content-unreadable", Answer::DenyIfEnforcing),
            Self::ContentChanging => ("content-changing", Answer::DenyIfEnforcing),
            Self::HashStalled => ("hash-stalled", Answer::DenyIfEnforcing),
            Self::LabelNotWritten => ("label-not-written", Answer::Allow),
            Self::JournalNotWritten => ("journal-not-written", Answer::Allow),
            Self::LeaseRefused => ("lease-refused", Answer::Nobody),
            Self::LeaseSignalLost => ("lease-signal-lost", Answer::Nobody),
            Self::ChangeLost => ("change-lost", Answer::Nobody),
        };
        Row { word, answer }
    }

    /// What the opener gets in this mode; `None` means that the open fails.
    pub(crate) fn pass(self, mode: Mode) -> Option<Pass> {
        match (self.row().answer, mode) {
            // Nobody waits for the latter.
            (Answer::DenyIfEnforcing | Answer::Nobody, Mode::Enforce) => None,
            (Answer::DenyIfEnforcing | Answer::Nobody, Mode::Off | Mode::Log | Mode::Fix) | (Answer::Allow, _) => {
                Some(Pass::dangerous_unjudged())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_judged_is_denied_in_enforce_and_in_no_other_mode() {
        // The file is known to be good; or it is only not covered.
        let good = [Failure::LabelNotWritten, Failure::JournalNotWritten];
        for failure in Failure::ALL {
            for mode in Mode::ALL {
                let denied = mode == Mode::Enforce && !good.contains(&failure);
                assert_eq!(failure.pass(mode).is_none(), denied, "{failure:?} {mode}");
            }
        }
    }

    #[test]
    fn the_table_in_the_documentation_is_this_one() {
        let page = include_str!("../../../docs/failures.md");
        let documented: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let words: Vec<&str> = Failure::ALL.iter().map(|failure| failure.row().word).collect();
        assert_eq!(documented, words);
    }
}
