//! What has to be read before a file can be judged: first its label, which names the algorithm, then its content.
//!
//! Source: Linux `security/integrity/ima/ima_api.c`, `ima_collect_measurement()`; `ima_main.c`, `process_measurement()`.

use crate::appraise::{self, Cause, FileState, Judgement, LabelRead, Need, Requirement, Status};
use crate::audit::Operation;
use crate::digest::{Digest, HashAlgorithm};
use crate::label::{self, ImaLabel};
use crate::mode::{Mode, Settings};
use crate::policy::Algorithms;
use crate::verdict::{Complaint, Outcome, Pass, Verdict};

/// Second stage: waits for the value of `security.ima`.
#[derive(Debug)]
pub struct Labels {
    settings: Settings,
    requirement: Requirement,
    algorithms: Option<Algorithms>,
}

/// What reading the label led to.
#[derive(Debug)]
pub enum Collect<'l> {
    /// The content has to be read.
    Content(Content<'l>),
    /// It is decided already.
    Settled(Outcome),
}

impl Labels {
    pub(crate) const fn new(settings: Settings, requirement: Requirement, algorithms: Option<Algorithms>) -> Self {
        Self { settings, requirement, algorithms }
    }

    /// Looks at the label and says whether the content is needed, and hashed with which algorithm.
    #[must_use]
    pub fn read<'l>(self, label: LabelRead<'l>, file: FileState) -> Collect<'l> {
        let default = self.settings.hash;
        let (algorithm, early) = match appraise::need(label, self.requirement, file, default) {
            Need::Digest(algorithm) => (algorithm, None),
            Need::Nothing(judgement) => (label::algorithm_asked(label.bytes(), default), Some(judgement)),
        };
        let stage = Content { labels: self, label, algorithm, early };
        match early {
            Some(judgement) if !stage.repairable(judgement) => Collect::Settled(stage.finish(None)),
            Some(_) | None => Collect::Content(stage),
        }
    }
}

/// Third stage: waits for the digest of the content.
#[derive(Debug)]
pub struct Content<'l> {
    labels: Labels,
    label: LabelRead<'l>,
    algorithm: HashAlgorithm,
    /// The judgement, where the label alone was enough for one and the content is only wanted for the repair.
    early: Option<Judgement>,
}

impl Content<'_> {
    /// The algorithm to hash the whole content with.
    #[must_use]
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Judges the content. `digest` is that of the whole content, taken with [`Content::algorithm`]; one that was taken
    /// with another algorithm counts as none, and nothing passes.
    pub fn settle(self, digest: Digest) -> Outcome {
        let asked = digest.algorithm() == self.algorithm;
        self.finish(asked.then_some(digest))
    }

    fn finish(self, digest: Option<Digest>) -> Outcome {
        let judgement = match (self.early, &digest, self.label.bytes()) {
            (Some(judgement), ..) => judgement,
            (None, Some(digest), Some(value)) => appraise::compare(value, digest),
            (None, ..) => Judgement { status: Status::Unknown, cause: Some(Cause::Unknown) },
        };
        let (judgement, operation) = self.allowed_algorithm(judgement);
        let complaint = judgement.cause.map(|cause| Complaint { operation, cause });
        let repair = if self.repairable(judgement) { digest } else { None };
        let verdict = match judgement.cause {
            None => Verdict::Allow(Pass::judged()),
            Some(cause) if self.labels.settings.mode == Mode::Enforce => Verdict::Deny(cause),
            Some(cause) => Verdict::Allow(Pass::not_enforced(cause)),
        };
        Outcome { verdict, judgement, complaint, repair, evidence: digest }
    }

    /// `appraise_algos=`: a file that passed with an algorithm that the rule does not list is denied all the same; also a
    /// new one without a label, which would get one of the default algorithm.
    ///
    /// Source: Linux `ima_appraise.c`, `ima_check_hash_algorithm` part of `process_measurement()`.
    fn allowed_algorithm(&self, judgement: Judgement) -> (Judgement, Operation) {
        let denied = judgement.status == Status::Pass
            && self.labels.algorithms.is_some_and(|allowed| !allowed.contains(self.algorithm));
        if denied {
            let judgement = Judgement { status: Status::Fail, cause: Some(Cause::DeniedHashAlgorithm) };
            return (judgement, Operation::CollectData);
        }
        (judgement, Operation::AppraiseData)
    }

    /// Mode `fix` replaces what did not pass, but never a signature: it could not make one.
    fn repairable(&self, judgement: Judgement) -> bool {
        let cause_is_curable = !matches!(
            judgement.cause,
            None | Some(
                Cause::NoXattrSupport | Cause::DeniedHashAlgorithm | Cause::Unknown | Cause::Failed | Cause::Unjudged
            )
        );
        let signed = match self.label.bytes().map(ImaLabel::parse) {
            Some(Ok(ImaLabel::Signature(_))) => true,
            // The kernel replaces these; a vendor's signature is not ours to throw away, so only a broken one goes.
            Some(Ok(ImaLabel::VeritySignature(signature))) => signature.header().is_ok(),
            Some(Ok(ImaLabel::Digest(_) | ImaLabel::Unknown { .. }) | Err(_)) | None => false,
        };
        self.labels.settings.mode == Mode::Fix && cause_is_curable && !signed
    }
}
