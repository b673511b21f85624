//! A file is opened: the whole story, one stage after the other.
//!
//! | step | call | what is known then |
//! |---|---|---|
//! | rules | [`Policy::decide`](crate::policy::Policy::decide) | what the policy asks |
//! | plan | [`plan`] | whether the label has to be read |
//! | label | [`Labels::read`](crate::collect::Labels::read) | whether the content has to be read, and with which algorithm |
//! | content | [`Content::settle`](crate::collect::Content::settle) | the [`Outcome`]: verdict, complaint, repair |
//!
//! Each stage consumes the one before it, so none can be skipped. Nothing here reads a file: the host (the daemon, or
//! `imara verify`) fetches what a stage asks for and hands it to the next. Allowing takes a [`Pass`], which only this
//! crate makes.
//!
//! Source: Linux `security/integrity/ima/ima_main.c`, `process_measurement()`.

use std::fmt;
use std::str::FromStr;

use crate::appraise::{Cause, Judgement, LabelRead, Requirement, Status};
use crate::audit::Operation;
use crate::collect::Labels;
use crate::digest::{Digest, HashAlgorithm};
use crate::iint::Writable;
use crate::label::ImaLabel;
use crate::policy::Decision;

/// What appraisal does about a file that does not pass; the kernel's `ima_appraise=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing is judged.
    Off,
    /// Judged and logged, never denied.
    Log,
    /// Judged, logged, and the label is written anew; never denied.
    Fix,
    /// Judged, logged, denied.
    #[default]
    Enforce,
}

impl Mode {
    /// Every mode, weakest first.
    pub const ALL: [Self; 4] = [Self::Off, Self::Log, Self::Fix, Self::Enforce];

    /// The kernel's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Log => "log",
            Self::Fix => "fix",
            Self::Enforce => "enforce",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No mode has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mode {found:?} (expected enforce, log, fix or off)")]
pub struct UnknownMode {
    found: String,
}

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| UnknownMode { found: name.to_owned() })
    }
}

/// What the administrator has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What happens to files that do not pass.
    pub mode: Mode,
    /// The algorithm of new labels, and of files whose label names none; the kernel's `ima_hash=`.
    pub hash: HashAlgorithm,
}

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

/// First stage: what the policy's decision means in this mode.
#[derive(Debug)]
pub enum Plan {
    /// Nothing is asked of this file.
    Allow(Pass),
    /// The label has to be read.
    Judge(Labels),
}

/// Turns a decision into a plan.
#[must_use]
pub fn plan(decision: &Decision, settings: Settings) -> Plan {
    if let Some(pass) = Pass::mode_off(settings.mode) {
        return Plan::Allow(pass);
    }
    if decision.appraise.is_none() {
        return Plan::Allow(Pass(Why::NothingAsked));
    }
    let requirement = Requirement { signature: decision.flags.signature_required, verity: decision.flags.verity };
    Plan::Judge(Labels::new(settings, requirement, decision.algorithms))
}

/// What a last writer's close leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The label is right as it is.
    Keep,
    /// The label is to be replaced by this digest's.
    Write(Digest),
    /// The content has to be hashed once more, with this algorithm: the old label's is not the one of new labels.
    Rehash(HashAlgorithm),
}

/// The label of a file whose last writer has closed, given its content's digest.
///
/// Hash first with the algorithm that the present label asks for: a file that was opened for writing and not changed
/// keeps its label. A changed one gets a label of the default algorithm, as in the kernel. Signatures are never
/// replaced.
///
/// Source: Linux `ima_main.c`, `ima_check_last_writer()`; `ima_appraise.c`, `ima_update_xattr()`.
#[must_use]
pub fn renew(label: LabelRead<'_>, content: &Digest, settings: Settings) -> Renewal {
    match label.bytes().map(ImaLabel::parse) {
        Some(Ok(ImaLabel::Digest(label))) if label.matches(content) => Renewal::Keep,
        Some(Ok(ImaLabel::Signature(_) | ImaLabel::VeritySignature(_))) => Renewal::Keep,
        _ if content.algorithm() == settings.hash => Renewal::Write(*content),
        _ => Renewal::Rehash(settings.hash),
    }
}

/// Answers a reader of a file that is open for writing, from what was known when it was opened for that.
///
/// `None`: the file was not good then, so it has to be judged like any other.
#[must_use]
pub fn while_written(writable: Writable) -> Option<Pass> {
    writable.good.then(Pass::written_by_good_writer)
}

#[cfg(test)]
mod tests;
