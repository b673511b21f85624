//! The values of `security.ima` and `security.evm`, byte for byte.
//!
//! An [`ImaLabel`] or [`EvmLabel`] is what is written, not what is true: as in the kernel, a digest of the wrong length or a
//! signature with a broken header is a label still, and it is for the judge to refuse it with the right cause. What parses,
//! encodes to the same bytes.
//!
//! | byte 0 | `security.ima` | `security.evm` |
//! |---|---|---|
//! | `0x01` | digest, of md5 or sha1 by its length | – |
//! | `0x02` | – | HMAC-SHA1 |
//! | `0x03` | signature of the content | signature of the metadata |
//! | `0x04` | algorithm id, then digest | – |
//! | `0x05` | – | portable signature of the metadata |
//! | `0x06` | signature of the fs-verity digest | – |
//!
//! Source: Linux `security/integrity/integrity.h` (`enum evm_ima_xattr_type`), `security/integrity/ima/ima_appraise.c`.

mod header;

use std::fmt;

pub use self::header::{KeyId, KeyedSignature, SignatureHeader, SignatureKind, SignatureLabel, SignatureV1};
use crate::codec::{Reader, Truncated, prefix};
use crate::digest::{Digest, HashAlgorithm};

const LEGACY_DIGEST: u8 = 0x01;
const HMAC: u8 = 0x02;
const SIGNATURE: u8 = 0x03;
const TAGGED_DIGEST: u8 = 0x04;
const PORTABLE_SIGNATURE: u8 = 0x05;
const VERITY_SIGNATURE: u8 = 0x06;

/// The value of `security.ima`: what the content of a file should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImaLabel<'a> {
    /// `0x01` or `0x04`: a digest of the content.
    Digest(DigestLabel<'a>),
    /// `0x03`: a signature of the content.
    Signature(SignatureLabel<'a>),
    /// `0x06`: a signature of the fs-verity digest of the content.
    VeritySignature(SignatureLabel<'a>),
    /// A type that has no meaning here, `0x02` and `0x05` among them; the kernel calls it `unknown-ima-data`.
    Unknown {
        /// The type byte.
        kind: u8,
        /// Everything after it.
        payload: &'a [u8],
    },
}

impl<'a> ImaLabel<'a> {
    /// Reads a label; every value but the empty one is a label of some kind.
    ///
    /// # Errors
    /// [`LabelError::Empty`]: the kernel takes an empty value for a missing one.
    pub fn parse(label: &'a [u8]) -> Result<Self, LabelError> {
        let mut reader = Reader::new(label);
        let kind = reader.byte().map_err(|_| LabelError::Empty)?;
        Ok(match kind {
            LEGACY_DIGEST => Self::Digest(DigestLabel { form: DigestForm::Legacy, digest: reader.rest() }),
            TAGGED_DIGEST => {
                let form = reader.byte().map_or(DigestForm::CutOff, DigestForm::Tagged);
                Self::Digest(DigestLabel { form, digest: reader.rest() })
            }
            SIGNATURE => Self::Signature(SignatureLabel::new(SignatureKind::Plain, label)),
            VERITY_SIGNATURE => Self::VeritySignature(SignatureLabel::new(SignatureKind::Verity, label)),
            _ => Self::Unknown { kind, payload: reader.rest() },
        })
    }

    /// The bytes of the label.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Digest(label) => label.encode(),
            Self::Signature(label) | Self::VeritySignature(label) => label.as_bytes().to_vec(),
            Self::Unknown { kind, payload } => [&[*kind], *payload].concat(),
        }
    }
}

impl fmt::Display for ImaLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digest(label) => label.fmt(f),
            Self::Signature(label) | Self::VeritySignature(label) => label.fmt(f),
            Self::Unknown { kind, payload } => write!(f, "unknown type {kind:#04x} {} bytes", payload.len()),
        }
    }
}

/// A digest label: two forms of the same thing, of any length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DigestLabel<'a> {
    form: DigestForm,
    digest: &'a [u8],
}

/// How a digest label names its algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DigestForm {
    /// Type `0x01`: not at all.
    Legacy,
    /// Type `0x04`: by this id, which need not be one that exists.
    Tagged(u8),
    /// Type `0x04`, but the label ends where the id should be.
    CutOff,
}

impl<'a> DigestLabel<'a> {
    /// The id that the label gives its algorithm: any byte for type `0x04`, none for type `0x01`.
    #[must_use]
    pub const fn algorithm_id(&self) -> Option<u8> {
        match self.form {
            DigestForm::Tagged(id) => Some(id),
            DigestForm::Legacy | DigestForm::CutOff => None,
        }
    }

    /// The bytes after the type and the algorithm id: as many as there are, not as many as there should be.
    #[must_use]
    pub const fn digest(&self) -> &'a [u8] {
        self.digest
    }

    /// The algorithm that the label was made with, as far as it says so; see [`algorithm_asked`].
    #[must_use]
    pub fn algorithm(&self) -> Option<HashAlgorithm> {
        match self.form {
            DigestForm::Tagged(id) => HashAlgorithm::from_id(id),
            DigestForm::CutOff => None,
            DigestForm::Legacy => match self.digest.len() {
                16 => Some(HashAlgorithm::Md5),
                // Old kernels padded an md5 digest with zeros to the length of a sha1 digest.
                20 if self.digest.ends_with(&[0; 4]) => Some(HashAlgorithm::Md5),
                20 => Some(HashAlgorithm::Sha1),
                _ => None,
            },
        }
    }

    /// Whether the file that gave `computed` is the file of this label.
    ///
    /// As in the kernel, the label may be longer than the digest (md5 digests were once padded to 20 bytes), and the
    /// algorithm id is not compared: `computed` was made with [`algorithm_asked`], which is the default for an id that does
    /// not exist. A label `0x04` without an id matches nothing; there the kernel's unsigned length wraps around and it
    /// compares with what lies behind the label.
    ///
    /// Source: Linux `security/integrity/ima/ima_appraise.c`, `xattr_verify()`.
    #[must_use]
    pub fn matches(&self, computed: &Digest) -> bool {
        self.digest.starts_with(computed.as_bytes())
    }

    /// The bytes of the label.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self.form {
            DigestForm::Legacy => [&[LEGACY_DIGEST], self.digest].concat(),
            DigestForm::Tagged(id) => [&[TAGGED_DIGEST, id], self.digest].concat(),
            DigestForm::CutOff => vec![TAGGED_DIGEST],
        }
    }
}

impl fmt::Display for DigestLabel<'_> {
    /// For example `sha256:ab12… (type 0x04)`; a length that is not the algorithm's is told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.form {
            DigestForm::Legacy => LEGACY_DIGEST,
            DigestForm::CutOff => return write!(f, "no digest (type {TAGGED_DIGEST:#04x}, without algorithm id)"),
            DigestForm::Tagged(_) => TAGGED_DIGEST,
        };
        let found = self.digest.len();
        let expected = self.algorithm().map_or(found, HashAlgorithm::length);
        match (self.algorithm(), self.algorithm_id()) {
            (Some(algorithm), _) => write!(f, "{algorithm}:")?,
            (None, Some(id)) => write!(f, "unknown-algorithm-{id}:")?,
            (None, None) => write!(f, "unknown-algorithm:")?,
        }
        prefix(self.digest, expected).iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, " (type {kind:#04x}")?;
        match found.checked_sub(expected) {
            Some(0) => {}
            Some(more) => write!(f, ", {more} bytes follow")?,
            None => write!(f, ", only {found} of {expected} bytes")?,
        }
        f.write_str(")")
    }
}

/// Labels of this algorithm would not be read back as what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "hash algorithm {algorithm} cannot be used for labels: they could not be told from md5 labels (fix: use sha256)"
)]
pub struct UnfitForLabels {
    algorithm: HashAlgorithm,
}

/// Lets an algorithm through with which labels may be made.
///
/// # Errors
/// md4, see [`encode_digest`].
pub fn fit_for_labels(algorithm: HashAlgorithm) -> Result<HashAlgorithm, UnfitForLabels> {
    if can_be_read_back(algorithm) { Ok(algorithm) } else { Err(UnfitForLabels { algorithm }) }
}

/// Whether a label with a digest of this algorithm is read back as one: md4 is not, see [`encode_digest`].
#[must_use]
pub(crate) fn can_be_read_back(algorithm: HashAlgorithm) -> bool {
    algorithm != HashAlgorithm::Md4
}

/// The label that says that a file has this digest.
///
/// The ids 0 to 2 (md4, md5, sha1) are written in the form `0x01`, which older kernels read too, all others in the form
/// `0x04`. So an md4 digest comes out as a label that will be read as md5; the kernel does the same.
///
/// Source: Linux `security/integrity/ima/ima_appraise.c`, `ima_fix_xattr()`.
#[must_use]
pub fn encode_digest(digest: &Digest) -> Vec<u8> {
    let form = match digest.algorithm().id() {
        0..=2 => DigestForm::Legacy,
        id => DigestForm::Tagged(id),
    };
    DigestLabel { form, digest: digest.as_bytes() }.encode()
}

/// Which algorithm the content must be hashed with to be compared with this label.
///
/// `default` (`ima_hash=`) where there is no label, or it is shorter than two bytes, or names no algorithm that exists, and
/// for signatures of version 1 and types without meaning. Type `0x01` tells by its length: 17 bytes are md5; 21 bytes are
/// md5 if the last four are zero, else sha1. A signature of type `0x03` tells its algorithm if its version is 2 or 3, of type
/// `0x06` if it is 3, and only if any byte follows the header. Linux 7.1 forgot version 3 of type `0x03`, which it was the
/// first to accept, and hashed with the default; that is corrected in 7.2 and here.
///
/// Source: Linux `security/integrity/ima/ima_appraise.c`, `ima_get_hash_algo()`.
#[must_use]
pub fn algorithm_asked(label: Option<&[u8]>, default: HashAlgorithm) -> HashAlgorithm {
    let asked = match label.map(ImaLabel::parse) {
        Some(Ok(ImaLabel::Digest(digest))) => digest.algorithm(),
        Some(Ok(ImaLabel::Signature(signature))) => signature.algorithm_for(&[2, 3]),
        Some(Ok(ImaLabel::VeritySignature(signature))) => signature.algorithm_for(&[3]),
        Some(Ok(ImaLabel::Unknown { .. }) | Err(_)) | None => None,
    };
    asked.unwrap_or(default)
}

/// The value of `security.evm`: what the security metadata of a file should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvmLabel<'a> {
    /// `0x02`: HMAC-SHA1 with the key of this host.
    Hmac([u8; 20]),
    /// `0x03`: a signature that holds for this inode of this file system; replaced by an HMAC once verified.
    Signature(SignatureLabel<'a>),
    /// `0x05`: a signature that can be copied with the file; the metadata is immutable from then on.
    PortableSignature(SignatureLabel<'a>),
}

impl<'a> EvmLabel<'a> {
    /// The length of an HMAC label with its type byte.
    const HMAC_LABEL_LENGTH: usize = 21;

    /// Reads a label. Whatever is refused here has the kernel's status `INTEGRITY_FAIL`, whatever the keys.
    ///
    /// # Errors
    /// [`LabelError`]: an empty value, a type other than `0x02`, `0x03` and `0x05`, an HMAC that is not exactly 20 bytes
    /// long, or a signature without any byte after its 9-byte header.
    ///
    /// Source: Linux `security/integrity/evm/evm_main.c`, `evm_verify_hmac()`.
    pub fn parse(label: &'a [u8]) -> Result<Self, LabelError> {
        let mut reader = Reader::new(label);
        match reader.byte().map_err(|_| LabelError::Empty)? {
            HMAC => match reader.array() {
                Ok(hmac) if reader.remaining() == 0 => Ok(Self::Hmac(hmac)),
                _ => Err(LabelError::HmacLength { found: label.len(), expected: Self::HMAC_LABEL_LENGTH }),
            },
            SIGNATURE => SignatureLabel::not_empty(SignatureKind::Plain, label).map(Self::Signature),
            PORTABLE_SIGNATURE => {
                SignatureLabel::not_empty(SignatureKind::Portable, label).map(Self::PortableSignature)
            }
            found => Err(LabelError::UnknownType { found }),
        }
    }

    /// The bytes of the label.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hmac(hmac) => [&[HMAC], &hmac[..]].concat(),
            Self::Signature(label) | Self::PortableSignature(label) => label.as_bytes().to_vec(),
        }
    }
}

impl fmt::Display for EvmLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hmac(hmac) => {
                f.write_str("hmac-sha1:")?;
                hmac.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, " (type {HMAC:#04x})")
            }
            Self::Signature(label) | Self::PortableSignature(label) => label.fmt(f),
        }
    }
}

/// These bytes are no label, or no signature header. Offsets count from the type byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// There is no type byte.
    #[error("byte 0: the label is empty, expected a type byte")]
    Empty,
    /// A field is missing.
    #[error(transparent)]
    Truncated(#[from] Truncated),
    /// The type has no meaning in `security.evm`.
    #[error("byte 0: found type {found:#04x}, expected 0x02, 0x03 or 0x05")]
    UnknownType {
        /// The type byte.
        found: u8,
    },
    /// An HMAC label has another length.
    #[error("byte 1: found an HMAC label of {found} bytes, expected exactly {expected}")]
    HmacLength {
        /// How long the whole label is.
        found: usize,
        /// How long it should be.
        expected: usize,
    },
    /// A signature has no header, or a header and nothing after it.
    #[error("byte 9: found a signature label of {found} bytes, expected a 9-byte header and at least one byte more")]
    EmptySignature {
        /// How long the whole label is.
        found: usize,
    },
    /// A signature header of another version; the kernel says `EOPNOTSUPP`.
    #[error("byte 1: found signature version {found}, expected 1, 2 or 3")]
    UnknownVersion {
        /// The version byte.
        found: u8,
    },
    /// The size in the header is not the number of bytes after it; the kernel says `EBADMSG`.
    #[error("byte 7: found signature size {found}, expected {expected}, the number of bytes after the header")]
    SignatureSize {
        /// What the header says.
        found: u16,
        /// What is there.
        expected: usize,
    },
    /// A signature is too long for the size field of its header.
    #[error("byte 7: found a signature of {found} bytes, expected at most 65535")]
    SignatureTooLong {
        /// How long it is.
        found: usize,
    },
}

#[cfg(test)]
mod tests;
