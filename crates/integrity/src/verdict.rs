//! What comes out of judging a file, and the right to open it.

use crate::appraise::{Cause, Judgement, Status};
use crate::audit::Operation;
use crate::digest::Digest;
use crate::mode::Mode;

/// The right to let one opener through. Made in this crate only, consumed by answering.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an opener waits for this"]
pub struct Pass(Why);

/// Why an opener may go on. Told, never asked: no decision is made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NothingAsked,
    ModeOff,
    Judged,
    NotEnforced(Cause),
    WrittenByGoodWriter,
    NotAFile,
    Ourselves,
    Unjudged,
}

impl Pass {
    /// For what appraisal does not look at: directories, devices, pipes.
    pub const fn not_a_regular_file() -> Self {
        Self(Why::NotAFile)
    }

    /// For the guard's own threads, who would wait for themselves.
    pub const fn ourselves() -> Self {
        Self(Why::Ourselves)
    }

    /// Mode `off`, before anything else is looked at. `None` in every other mode.
    pub const fn mode_off(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Off => Some(Self(Why::ModeOff)),
            Mode::Log | Mode::Fix | Mode::Enforce => None,
        }
    }

    /// Lets somebody through although nothing could be decided. For the failure table of the daemon alone.
    pub const fn dangerous_unjudged() -> Self {
        Self(Why::Unjudged)
    }

    /// For what the policy does not ask about.
    pub(crate) const fn nothing_asked() -> Self {
        Self(Why::NothingAsked)
    }

    /// For what was judged good.
    pub(crate) const fn judged() -> Self {
        Self(Why::Judged)
    }

    /// For what was judged bad where nothing is denied.
    pub(crate) const fn not_enforced(cause: Cause) -> Self {
        Self(Why::NotEnforced(cause))
    }

    /// For readers of a file that somebody writes who opened it while it was good: as in the kernel, the old result
    /// counts until the last writer closes.
    pub(crate) const fn written_by_good_writer() -> Self {
        Self(Why::WrittenByGoodWriter)
    }
}

/// Decided: open or not.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The open goes on.
    Allow(Pass),
    /// The open fails.
    Deny(Cause),
}

/// What has to be said in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// `op=`.
    pub operation: Operation,
    /// `cause=`.
    pub cause: Cause,
}

/// Everything that follows from one access.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "somebody waits for the verdict"]
pub struct Outcome {
    /// What the opener gets.
    pub verdict: Verdict,
    /// What appraisal found, before the mode was considered.
    pub judgement: Judgement,
    /// What the log gets; absent if the file passed.
    pub complaint: Option<Complaint>,
    /// Mode `fix`: the digest that the label shall get. The verdict does not depend on whether that works.
    pub repair: Option<Digest>,
    /// The content's digest, if it was taken. True as long as the content cannot change.
    pub evidence: Option<Digest>,
}

impl Outcome {
    /// Whether the file is what its label says, now or, if `repaired`, after the label was written.
    #[must_use]
    pub fn good(&self, repaired: bool) -> bool {
        self.judgement.status == Status::Pass || (repaired && self.repair.is_some())
    }
}
