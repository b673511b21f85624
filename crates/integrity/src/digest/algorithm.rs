//! Names, ids and lengths of the kernel's hash algorithms.

use std::fmt;
use std::str::FromStr;

/// A hash algorithm of the kernel's list.
///
/// Source: Linux `include/uapi/linux/hash_info.h` (`enum hash_algo`, the ids), `crypto/hash_info.c`
/// (`hash_algo_name`, `hash_digest_size`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// `md4`: RFC 1320; 16 bytes, broken.
    Md4,
    /// `md5`: RFC 1321; 16 bytes, broken.
    Md5,
    /// `sha1`: FIPS 180-4; 20 bytes, collisions are known.
    Sha1,
    /// `rmd160`: RIPEMD-160; 20 bytes.
    Rmd160,
    /// `sha256`: FIPS 180-4; 32 bytes. The usual one.
    Sha256,
    /// `sha384`: FIPS 180-4; 48 bytes.
    Sha384,
    /// `sha512`: FIPS 180-4; 64 bytes.
    Sha512,
    /// `sha224`: FIPS 180-4; 28 bytes.
    Sha224,
    /// `rmd128`: RIPEMD-128; 16 bytes.
    Rmd128,
    /// `rmd256`: RIPEMD-256; 32 bytes.
    Rmd256,
    /// `rmd320`: RIPEMD-320; 40 bytes.
    Rmd320,
    /// `wp256`: the first 32 bytes of Whirlpool.
    Wp256,
    /// `wp384`: the first 48 bytes of Whirlpool.
    Wp384,
    /// `wp512`: Whirlpool, ISO/IEC 10118-3; 64 bytes.
    Wp512,
    /// `tgr128`: the first 16 bytes of Tiger, in the kernel's byte order.
    Tgr128,
    /// `tgr160`: the first 20 bytes of Tiger, in the kernel's byte order.
    Tgr160,
    /// `tgr192`: Tiger, in the kernel's byte order (see [`Hasher`](super::Hasher)); 24 bytes.
    Tgr192,
    /// `sm3`: GB/T 32905-2016; 32 bytes.
    Sm3,
    /// `streebog256`: GOST R 34.11-2012; 32 bytes.
    Streebog256,
    /// `streebog512`: GOST R 34.11-2012; 64 bytes.
    Streebog512,
    /// `sha3-256`: FIPS 202; 32 bytes.
    Sha3_256,
    /// `sha3-384`: FIPS 202; 48 bytes.
    Sha3_384,
    /// `sha3-512`: FIPS 202; 64 bytes.
    Sha3_512,
}

impl HashAlgorithm {
    /// Every algorithm; the index is the id.
    pub const ALL: [Self; 23] = [
        Self::Md4,
        Self::Md5,
        Self::Sha1,
        Self::Rmd160,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Sha224,
        Self::Rmd128,
        Self::Rmd256,
        Self::Rmd320,
        Self::Wp256,
        Self::Wp384,
        Self::Wp512,
        Self::Tgr128,
        Self::Tgr160,
        Self::Tgr192,
        Self::Sm3,
        Self::Streebog256,
        Self::Streebog512,
        Self::Sha3_256,
        Self::Sha3_384,
        Self::Sha3_512,
    ];

    /// The length of the longest digest, in bytes.
    pub const MAX_LENGTH: usize = 64;

    /// The id that labels and signature headers store.
    #[must_use]
    pub const fn id(self) -> u8 {
        self.row().0
    }

    /// The kernel's name, exactly as policies and measurement lists spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// The length of a digest, in bytes.
    #[must_use]
    pub const fn length(self) -> usize {
        self.row().2
    }

    /// The algorithm of an id; none for 23 and above.
    #[must_use]
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// The kernel's two tables as one: id, name, length.
    const fn row(self) -> (u8, &'static str, usize) {
        match self {
            Self::Md4 => (0, "md4", 16),
            Self::Md5 => (1, "md5", 16),
            Self::Sha1 => (2, "sha1", 20),
            Self::Rmd160 => (3, "rmd160", 20),
            Self::Sha256 => (4, "sha256", 32),
            Self::Sha384 => (5, "sha384", 48),
            Self::Sha512 => (6, "sha512", 64),
            Self::Sha224 => (7, "sha224", 28),
            Self::Rmd128 => (8, "rmd128", 16),
            Self::Rmd256 => (9, "rmd256", 32),
            Self::Rmd320 => (10, "rmd320", 40),
            Self::Wp256 => (11, "wp256", 32),
            Self::Wp384 => (12, "wp384", 48),
            Self::Wp512 => (13, "wp512", 64),
            Self::Tgr128 => (14, "tgr128", 16),
            Self::Tgr160 => (15, "tgr160", 20),
            Self::Tgr192 => (16, "tgr192", 24),
            Self::Sm3 => (17, "sm3", 32),
            Self::Streebog256 => (18, "streebog256", 32),
            Self::Streebog512 => (19, "streebog512", 64),
            Self::Sha3_256 => (20, "sha3-256", 32),
            Self::Sha3_384 => (21, "sha3-384", 48),
            Self::Sha3_512 => (22, "sha3-512", 64),
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = UnknownAlgorithm;

    /// Accepts the kernel's names and nothing else: a near miss is an error that names what was probably meant.
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| UnknownAlgorithm { found: name.into(), nearest: nearest(name) })
    }
}

/// The kernel has no algorithm of this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownAlgorithm {
    /// The word that was found.
    pub found: Box<str>,
    /// What was probably meant, if anything is close.
    pub nearest: Option<HashAlgorithm>,
}

impl fmt::Display for UnknownAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown hash algorithm {:?} (", self.found)?;
        if let Some(nearest) = self.nearest {
            return write!(f, "did you mean {nearest}?)");
        }
        f.write_str("expected one of ")?;
        for (index, algorithm) in HashAlgorithm::ALL.into_iter().enumerate() {
            write!(f, "{}{algorithm}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for UnknownAlgorithm {}

/// What other tools call the algorithms whose kernel name is not a respelling.
const ELSEWHERE: [(&str, HashAlgorithm); 10] = [
    ("ripemd", HashAlgorithm::Rmd160),
    ("ripemd128", HashAlgorithm::Rmd128),
    ("ripemd160", HashAlgorithm::Rmd160),
    ("ripemd256", HashAlgorithm::Rmd256),
    ("ripemd320", HashAlgorithm::Rmd320),
    ("whirlpool", HashAlgorithm::Wp512),
    ("tiger", HashAlgorithm::Tgr192),
    ("sm3256", HashAlgorithm::Sm3),
    ("gost12256", HashAlgorithm::Streebog256),
    ("gost12512", HashAlgorithm::Streebog512),
];

/// The algorithm of the same name in another spelling, or one that is a single letter away, if only one is.
fn nearest(word: &str) -> Option<HashAlgorithm> {
    // No name is anywhere near this long, and the word may come from a stranger.
    if word.len() > 24 {
        return None;
    }
    let word = plain(word);
    let elsewhere = ELSEWHERE.into_iter().find(|(name, _)| *name == word).map(|(_, algorithm)| algorithm);
    let respelt = HashAlgorithm::ALL.into_iter().find(|algorithm| plain(algorithm.name()) == word);
    let mut close = HashAlgorithm::ALL.into_iter().filter(|algorithm| differs_by_one(&plain(algorithm.name()), &word));
    let only_close = close.next().filter(|_| close.next().is_none());
    respelt.or(elsewhere).or(only_close)
}

/// Lower case, letters and digits only.
fn plain(word: &str) -> String {
    word.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// Whether one letter was left out, put in or changed.
fn differs_by_one(left: &str, right: &str) -> bool {
    let same_start = left.bytes().zip(right.bytes()).take_while(|(l, r)| l == r).count();
    let same_end = left.bytes().rev().zip(right.bytes().rev()).take_while(|(l, r)| l == r).count();
    left != right && left.len().abs_diff(right.len()) <= 1 && same_start + same_end + 1 >= left.len().max(right.len())
}
