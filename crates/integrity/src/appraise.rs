//! Label and evidence in, judgement out: is this file what its label says?
//!
//! The only place where a label earns a good status. Each [`Cause`] is a word of the kernel's audit records, or marked
//! as ours by the prefix `imara:`.
//!
//! Keys come with a later change; until then a signature is judged as by a kernel whose `.ima` keyring is empty.
//!
//! Source: Linux `security/integrity/ima/ima_appraise.c`, `ima_appraise_measurement()`, `xattr_verify()`.

use std::fmt;

use crate::digest::{Digest, HashAlgorithm};
use crate::label::{self, ImaLabel};

/// What appraisal found.
///
/// Source: Linux `include/linux/integrity.h`, `enum integrity_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// The label matches.
    Pass,
    /// The label does not match.
    Fail,
    /// There is no label.
    NoLabel,
    /// It cannot be known.
    Unknown,
}

/// Why a file did not pass. `Display` gives the word of the audit record.
///
/// Source: Linux `security/integrity/ima/ima_appraise.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No label, and a digest would do.
    MissingHash,
    /// The label's digest is not the file's.
    InvalidHash,
    /// The rule asks for a signature and the label is none.
    ImaSignatureRequired,
    /// The rule asks for a signature of the fs-verity digest and the label is none.
    VeritySignatureRequired,
    /// The signature does not verify, or its key is not trusted.
    InvalidSignature,
    /// The signature of the fs-verity digest does not verify, or its key is not trusted.
    InvalidVeritySignature,
    /// A signature format of a version that does not belong here.
    InvalidSignatureVersion,
    /// The label's type is none that `security.ima` knows.
    UnknownImaData,
    /// The rule does not allow this hash algorithm.
    DeniedHashAlgorithm,
    /// The rule asks for an fs-verity digest and the file has none.
    NoVerityDigest,
    /// The label could not be read.
    Unknown,
    /// The content or something else that is needed for judging could not be read.
    Failed,
    /// Ours: the file system has no extended attributes. The kernel denies such a file without a word.
    NoXattrSupport,
    /// Ours: the file could not be opened, so nothing is known of it.
    Unjudged,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 14] = [
        Self::MissingHash,
        Self::InvalidHash,
        Self::ImaSignatureRequired,
        Self::VeritySignatureRequired,
        Self::InvalidSignature,
        Self::InvalidVeritySignature,
        Self::InvalidSignatureVersion,
        Self::UnknownImaData,
        Self::DeniedHashAlgorithm,
        Self::NoVerityDigest,
        Self::Unknown,
        Self::Failed,
        Self::NoXattrSupport,
        Self::Unjudged,
    ];

    /// The word of the audit record.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::MissingHash => "missing-hash",
            Self::InvalidHash => "invalid-hash",
            Self::ImaSignatureRequired => "IMA-signature-required",
            Self::VeritySignatureRequired => "verity-signature-required",
            Self::InvalidSignature => "invalid-signature",
            Self::InvalidVeritySignature => "invalid-verity-signature",
            Self::InvalidSignatureVersion => "invalid-signature-version",
            Self::UnknownImaData => "unknown-ima-data",
            Self::DeniedHashAlgorithm => "denied-hash-algorithm",
            Self::NoVerityDigest => "no-verity-digest",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
            Self::NoXattrSupport => "imara:no-xattr-support",
            Self::Unjudged => "imara:unjudged",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What reading `security.ima` gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelRead<'a> {
    /// The value; an empty one counts as absent, as in the kernel.
    Value(&'a [u8]),
    /// The file has none (`ENODATA`).
    Absent,
    /// The file system keeps none (`EOPNOTSUPP`).
    Unsupported,
    /// Reading failed for another reason.
    Failed,
}

impl<'a> LabelRead<'a> {
    /// The bytes of a label that is there.
    #[must_use]
    pub const fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Value([]) | Self::Absent | Self::Unsupported | Self::Failed => None,
            Self::Value(bytes) => Some(bytes),
        }
    }
}

/// What the matching rule asks of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requirement {
    /// `appraise_type=imasig` or stronger: a digest is not enough.
    pub signature: bool,
    /// `digest_type=verity`.
    pub verity: bool,
}

/// Facts about the file that change what a missing label means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileState {
    /// Size in bytes.
    pub size: u64,
    /// Whether it was created under guard and never been labelled or closed by a writer (the kernel's `IMA_NEW_FILE`).
    pub new: bool,
}

/// What appraisal says: a status, and the cause unless the status is [`Status::Pass`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What was found.
    pub status: Status,
    /// Why, unless it passed.
    pub cause: Option<Cause>,
}

impl Judgement {
    const PASS: Self = Self { status: Status::Pass, cause: None };

    const fn not(status: Status, cause: Cause) -> Self {
        Self { status, cause: Some(cause) }
    }
}

/// Whether the content has to be read before the label can be judged, and if not, the judgement.
pub(crate) enum Need {
    Digest(HashAlgorithm),
    Nothing(Judgement),
}

/// First half: everything that can be said without the content.
///
/// `default` is the algorithm that hashes the file where the label names none.
pub(crate) fn need(label: LabelRead<'_>, requirement: Requirement, file: FileState, default: HashAlgorithm) -> Need {
    let value = match label {
        LabelRead::Unsupported => return Need::Nothing(Judgement::not(Status::Unknown, Cause::NoXattrSupport)),
        LabelRead::Failed => return Need::Nothing(Judgement::not(Status::Unknown, Cause::Unknown)),
        LabelRead::Absent | LabelRead::Value([]) => return Need::Nothing(judge_unlabelled(requirement, file)),
        LabelRead::Value(value) => value,
    };
    match ImaLabel::parse(value) {
        Ok(ImaLabel::Digest(_)) => {
            if requirement.signature {
                let cause =
                    if requirement.verity { Cause::VeritySignatureRequired } else { Cause::ImaSignatureRequired };
                return Need::Nothing(Judgement::not(Status::Fail, cause));
            }
            if requirement.verity {
                // fs-verity digests come with the signature change; a file without one is judged like this.
                return Need::Nothing(Judgement::not(Status::Fail, Cause::NoVerityDigest));
            }
            Need::Digest(label::algorithm_asked(Some(value), default))
        }
        Ok(other) => Need::Nothing(judge_without_keys(&other, requirement, file)),
        Err(_) => Need::Nothing(Judgement::not(Status::Unknown, Cause::UnknownImaData)),
    }
}

/// Second half: the digest label against the digest of the content.
pub(crate) fn compare(value: &[u8], computed: &Digest) -> Judgement {
    match ImaLabel::parse(value) {
        Ok(ImaLabel::Digest(digest)) if digest.matches(computed) => Judgement::PASS,
        _ => Judgement::not(Status::Fail, Cause::InvalidHash),
    }
}

fn judge_unlabelled(requirement: Requirement, file: FileState) -> Judgement {
    if file.new && (!requirement.signature || file.size == 0) {
        return Judgement::PASS;
    }
    let cause = match (requirement.signature, requirement.verity) {
        (true, true) => Cause::VeritySignatureRequired,
        (true, false) => Cause::ImaSignatureRequired,
        (false, _) => Cause::MissingHash,
    };
    Judgement::not(Status::NoLabel, cause)
}

/// A label that needs keys, while there are none: every key is unknown (`ENOKEY`).
fn judge_without_keys(label: &ImaLabel<'_>, requirement: Requirement, file: FileState) -> Judgement {
    match label {
        ImaLabel::Signature(_) if file.new && file.size == 0 => Judgement::PASS,
        ImaLabel::Signature(_) if requirement.signature && requirement.verity => {
            Judgement::not(Status::Fail, Cause::VeritySignatureRequired)
        }
        ImaLabel::Signature(bytes) => match bytes.version() {
            Some(0) => Judgement::not(Status::Unknown, Cause::Unknown),
            Some(1 | 2) | None => Judgement::not(Status::Fail, Cause::InvalidSignature),
            Some(_) => Judgement::not(Status::Fail, Cause::InvalidSignatureVersion),
        },
        ImaLabel::VeritySignature(_) if requirement.signature && !requirement.verity => {
            Judgement::not(Status::Fail, Cause::ImaSignatureRequired)
        }
        ImaLabel::VeritySignature(bytes) => match bytes.version() {
            Some(3) => Judgement::not(Status::Fail, Cause::InvalidVeritySignature),
            _ => Judgement::not(Status::Fail, Cause::InvalidSignatureVersion),
        },
        ImaLabel::Digest(_) | ImaLabel::Unknown { .. } => Judgement::not(Status::Unknown, Cause::UnknownImaData),
    }
}
