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

use crate::appraise::{LabelRead, Requirement};
use crate::collect::Labels;
use crate::digest::{Digest, HashAlgorithm};
use crate::iint::Writable;
use crate::label::ImaLabel;
pub use crate::mode::{Mode, Settings, UnknownMode};
use crate::policy::Decision;
pub use crate::verdict::{Complaint, Outcome, Pass, Verdict};

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
        return Plan::Allow(Pass::nothing_asked());
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
