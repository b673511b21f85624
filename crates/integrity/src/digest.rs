//! The hash algorithms that labels name, and the digests they give.
//!
//! [`HashAlgorithm`] is the kernel's list: its ids are what a label stores, its names are what policies, `ima_hash=` and
//! measurement lists spell. A [`Digest`] always has the length of its algorithm. Content is hashed by a [`Hasher`].
//!
//! Source: Linux `include/uapi/linux/hash_info.h`, `crypto/hash_info.c`.

mod algorithm;
mod hasher;

use std::fmt;
use std::str::FromStr;

pub use self::algorithm::{HashAlgorithm, UnknownAlgorithm};
pub use self::hasher::Hasher;
use crate::codec;

/// A digest: an algorithm and exactly as many bytes as it gives.
///
/// Shown and parsed as `sha256:` and lower-case hexadecimal digits, as the kernel's measurement lists write it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: HashAlgorithm,
    /// Zero after the digest's own bytes, so that the derived comparisons are right.
    bytes: [u8; HashAlgorithm::MAX_LENGTH],
}

impl Digest {
    /// The digest that has these bytes.
    ///
    /// # Errors
    /// [`DigestError::Length`] unless there are exactly [`HashAlgorithm::length`] of them.
    pub fn new(algorithm: HashAlgorithm, bytes: &[u8]) -> Result<Self, DigestError> {
        if bytes.len() == algorithm.length() {
            Ok(Self::leading(algorithm, bytes))
        } else {
            Err(DigestError::Length { algorithm, found: bytes.len(), expected: algorithm.length() })
        }
    }

    /// The digest of `content`.
    #[must_use]
    pub fn of(algorithm: HashAlgorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// Which algorithm gave it.
    #[must_use]
    pub const fn algorithm(&self) -> HashAlgorithm {
        self.algorithm
    }

    /// Its bytes; [`HashAlgorithm::length`] of them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        codec::prefix(&self.bytes, self.algorithm.length())
    }

    /// Takes the first bytes of at least as many as the algorithm has: the short Whirlpools and Tigers are truncations.
    fn leading(algorithm: HashAlgorithm, from: &[u8]) -> Self {
        let mut bytes = [0; HashAlgorithm::MAX_LENGTH];
        for (to, from) in bytes.iter_mut().zip(codec::prefix(from, algorithm.length())) {
            *to = *from;
        }
        Self { algorithm, bytes }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm)?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Accepts `ALGORITHM:HEX`; the digits may be of either case.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, digits) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        let algorithm: HashAlgorithm = name.parse()?;
        let wrong_length =
            || DigestError::Length { algorithm, found: digits.len().div_ceil(2), expected: algorithm.length() };
        if let Some((at, found)) = digits.char_indices().find(|(_, digit)| !digit.is_ascii_hexdigit()) {
            return Err(DigestError::NotHex { offset: name.len() + 1 + at, found });
        }
        if digits.len() % 2 == 1 {
            return Err(DigestError::OddDigits { found: digits.len(), expected: 2 * algorithm.length() });
        }
        let mut bytes = [0_u8; HashAlgorithm::MAX_LENGTH];
        let mut count = 0;
        for pair in digits.as_bytes().chunks_exact(2) {
            let to = bytes.get_mut(count).ok_or_else(wrong_length)?;
            *to = pair.iter().fold(0, |value, digit| value << 4 | nibble(*digit));
            count += 1;
        }
        Self::new(algorithm, codec::prefix(&bytes, count))
    }
}

/// The value of a hexadecimal digit; zero for what is none (the caller has looked).
const fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        b'A'..=b'F' => digit - b'A' + 10,
        _ => 0,
    }
}

/// These bytes, or this text, are no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// The length is not that of the algorithm.
    #[error("a {algorithm} digest has {expected} bytes, found {found}")]
    Length {
        /// Whose digest it should be.
        algorithm: HashAlgorithm,
        /// How many bytes there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// The part before the colon is no algorithm.
    #[error(transparent)]
    Algorithm(#[from] UnknownAlgorithm),
    /// There is no colon.
    #[error("no colon found (expected ALGORITHM:HEX, for example sha256:e3b0…)")]
    NoAlgorithm,
    /// A character after the colon is no hexadecimal digit.
    #[error("byte {offset}: found {found:?}, expected a hexadecimal digit")]
    NotHex {
        /// Where, from the start of the text.
        offset: usize,
        /// What is there.
        found: char,
    },
    /// The last byte has only one digit.
    #[error("{found} hexadecimal digits found, expected {expected}")]
    OddDigits {
        /// How many digits there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
}

#[cfg(test)]
mod tests;
