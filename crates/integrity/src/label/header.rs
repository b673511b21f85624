//! Signature labels and their headers: who signed, and with which hash; not whether it is true.

use std::fmt;

use super::{LabelError, PORTABLE_SIGNATURE, SIGNATURE, VERITY_SIGNATURE};
use crate::codec::Reader;
use crate::digest::HashAlgorithm;

/// What a signature label signs; its type byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignatureKind {
    /// `0x03`: the content in `security.ima`, the metadata of this inode in `security.evm`.
    Plain,
    /// `0x05`: metadata that is the same wherever the file is copied to.
    Portable,
    /// `0x06`: the fs-verity digest of the content.
    Verity,
}

impl SignatureKind {
    /// The type byte.
    #[must_use]
    pub const fn id(self) -> u8 {
        match self {
            Self::Plain => SIGNATURE,
            Self::Portable => PORTABLE_SIGNATURE,
            Self::Verity => VERITY_SIGNATURE,
        }
    }
}

/// A label that is a signature by its type, whatever follows the type byte.
///
/// The kernel looks at single bytes of it (the version, the algorithm) before it looks at the header as a whole, and its
/// causes differ accordingly; so the bytes are kept, and [`SignatureLabel::header`] reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureLabel<'a> {
    kind: SignatureKind,
    /// The whole label, type byte included.
    label: &'a [u8],
}

/// The length of a header of version 2 or 3, type byte included.
const HEADER_LENGTH: usize = 9;

impl<'a> SignatureLabel<'a> {
    /// `label` begins with the type byte of `kind`.
    pub(super) const fn new(kind: SignatureKind, label: &'a [u8]) -> Self {
        Self { kind, label }
    }

    /// As [`SignatureLabel::new`], for a label that has at least one byte after the header.
    pub(super) const fn not_empty(kind: SignatureKind, label: &'a [u8]) -> Result<Self, LabelError> {
        if label.len() > HEADER_LENGTH {
            Ok(Self { kind, label })
        } else {
            Err(LabelError::EmptySignature { found: label.len() })
        }
    }

    /// What it signs.
    #[must_use]
    pub const fn kind(&self) -> SignatureKind {
        self.kind
    }

    /// The whole label, type byte included.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.label
    }

    /// The version byte, whether or not that version exists; none if the label ends before it.
    #[must_use]
    pub fn version(&self) -> Option<u8> {
        self.label.get(1).copied()
    }

    /// The header and the signature.
    ///
    /// # Errors
    /// [`LabelError`] if the label ends too early, has another version than 1, 2 or 3, or its size field does not tell
    /// the number of bytes that follow.
    ///
    /// Source: Linux `security/integrity/digsig.c` (`integrity_digsig_verify`), `digsig_asymmetric.c`
    /// (`asymmetric_verify`), `lib/digsig.c` (`digsig_verify`).
    pub fn header(&self) -> Result<SignatureHeader<'a>, LabelError> {
        let mut reader = Reader::new(self.label);
        reader.byte()?;
        match reader.byte()? {
            1 => SignatureV1::read(reader).map(SignatureHeader::V1),
            2 => KeyedSignature::read(reader).map(SignatureHeader::V2),
            3 => KeyedSignature::read(reader).map(SignatureHeader::V3),
            found => Err(LabelError::UnknownVersion { found }),
        }
    }

    /// The algorithm at its place in the header, if the version is one of these and anything follows the header.
    pub(super) fn algorithm_for(&self, versions: &[u8]) -> Option<HashAlgorithm> {
        match self.label {
            [_, version, id, _, _, _, _, _, _, _, ..] if versions.contains(version) => HashAlgorithm::from_id(*id),
            _ => None,
        }
    }
}

impl fmt::Display for SignatureLabel<'_> {
    /// For example `signature v2 sha256 key id 73580a95 256 bytes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SignatureKind::Plain => "signature ",
            SignatureKind::Portable => "portable signature ",
            SignatureKind::Verity => "fs-verity signature ",
        })?;
        match self.header() {
            Ok(header) => header.fmt(f),
            Err(error) => write!(f, "that cannot be read: {error}"),
        }
    }
}

/// A signature and what is said about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureHeader<'a> {
    /// Version 1: obsolete, RSA only, with `user` keys.
    V1(SignatureV1<'a>),
    /// Version 2: signs the digest itself.
    V2(KeyedSignature<'a>),
    /// Version 3: signs the type byte, the algorithm id and the digest, so that no signature can be used for another purpose.
    V3(KeyedSignature<'a>),
}

impl SignatureHeader<'_> {
    /// The bytes of a label of this kind.
    ///
    /// # Errors
    /// [`LabelError::SignatureTooLong`] if the signature does not fit the size field.
    pub fn encode(&self, kind: SignatureKind) -> Result<Vec<u8>, LabelError> {
        match self {
            Self::V1(signature) => Ok(signature.encode(kind)),
            Self::V2(signature) => signature.encode(kind, 2),
            Self::V3(signature) => signature.encode(kind, 3),
        }
    }
}

impl fmt::Display for SignatureHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V1(signature) => {
                f.write_str("v1 key id ")?;
                signature.key_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                write!(f, " {} bytes", signature.mpis.len())
            }
            Self::V2(signature) => write!(f, "v2 {signature}"),
            Self::V3(signature) => write!(f, "v3 {signature}"),
        }
    }
}

/// The last four bytes of a key's subject key identifier; shown as eight lower-case digits, as the kernel looks it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// What follows the version byte in versions 2 and 3: id `u8` | key id `u32` | size `u16` | signature, all big endian.
///
/// Source: Linux `security/integrity/integrity.h`, `struct signature_v2_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedSignature<'a> {
    /// The id of the hash algorithm, which need not be one that exists (the kernel then says `ENOPKG`).
    pub algorithm_id: u8,
    /// Which key to look up.
    pub key_id: KeyId,
    /// The signature in the encoding of the key's kind: PKCS#1 v1.5, DER of r and s, or raw.
    pub signature: &'a [u8],
}

impl<'a> KeyedSignature<'a> {
    fn read(mut reader: Reader<'a>) -> Result<Self, LabelError> {
        let algorithm_id = reader.byte()?;
        let key_id = KeyId(reader.u32_be()?);
        let found = reader.u16_be()?;
        let signature = reader.rest();
        if usize::from(found) == signature.len() {
            Ok(Self { algorithm_id, key_id, signature })
        } else {
            Err(LabelError::SignatureSize { found, expected: signature.len() })
        }
    }

    /// The hash algorithm, if the id is one that exists.
    #[must_use]
    pub fn algorithm(&self) -> Option<HashAlgorithm> {
        HashAlgorithm::from_id(self.algorithm_id)
    }

    fn encode(&self, kind: SignatureKind, version: u8) -> Result<Vec<u8>, LabelError> {
        let size = u16::try_from(self.signature.len())
            .map_err(|_| LabelError::SignatureTooLong { found: self.signature.len() })?;
        let mut label = vec![kind.id(), version, self.algorithm_id];
        label.extend_from_slice(&self.key_id.0.to_be_bytes());
        label.extend_from_slice(&size.to_be_bytes());
        label.extend_from_slice(self.signature);
        Ok(label)
    }
}

impl fmt::Display for KeyedSignature<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.algorithm() {
            Some(algorithm) => write!(f, "{algorithm}")?,
            None => write!(f, "unknown-algorithm-{}", self.algorithm_id)?,
        }
        write!(f, " key id {} {} bytes", self.key_id, self.signature.len())
    }
}

/// What follows the version byte in version 1.
///
/// Source: Linux `include/linux/digsig.h`, `struct signature_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureV1<'a> {
    /// When it was made, in seconds, in the byte order of the host that made it.
    pub timestamp: [u8; 4],
    /// The kind of key; 0 is RSA, and there is no other.
    pub key_algorithm: u8,
    /// The hash: 0 is sha1, 1 is sha256.
    pub hash: u8,
    /// The last eight bytes of the SHA-1 of the key.
    pub key_id: [u8; 8],
    /// How many numbers follow.
    pub mpi_count: u8,
    /// The numbers, each a big-endian `u16` count of bits and as many bytes as these need; at least two bytes.
    pub mpis: &'a [u8],
}

impl<'a> SignatureV1<'a> {
    fn read(mut reader: Reader<'a>) -> Result<Self, LabelError> {
        let timestamp = reader.array()?;
        let key_algorithm = reader.byte()?;
        let hash = reader.byte()?;
        let key_id = reader.array()?;
        let mpi_count = reader.byte()?;
        // The kernel wants room for one number's length before it looks at anything.
        reader.clone().u16_be()?;
        Ok(Self { timestamp, key_algorithm, hash, key_id, mpi_count, mpis: reader.rest() })
    }

    fn encode(&self, kind: SignatureKind) -> Vec<u8> {
        let mut label = vec![kind.id(), 1];
        label.extend_from_slice(&self.timestamp);
        label.extend_from_slice(&[self.key_algorithm, self.hash]);
        label.extend_from_slice(&self.key_id);
        label.push(self.mpi_count);
        label.extend_from_slice(self.mpis);
        label
    }
}
