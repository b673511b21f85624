//! STUB: replaced by the digest room.

use std::fmt;
use std::str::FromStr;

macro_rules! algorithms {
    ($($variant:ident $id:literal $name:literal $length:literal),* $(,)?) => {
        /// One hash algorithm of the kernel's list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "stub")]
        pub enum HashAlgorithm { $($variant),* }

        impl HashAlgorithm {
            /// Every algorithm, in the order of the kernel's ids.
            pub const ALL: [Self; 23] = [$(Self::$variant),*];

            /// The kernel's id.
            #[must_use]
            pub const fn id(self) -> u8 {
                match self { $(Self::$variant => $id),* }
            }

            /// The kernel's name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Digest length in bytes.
            #[must_use]
            pub const fn length(self) -> usize {
                match self { $(Self::$variant => $length),* }
            }
        }
    };
}

algorithms! {
    Md4 0 "md4" 16, Md5 1 "md5" 16, Sha1 2 "sha1" 20, Rmd160 3 "rmd160" 20, Sha256 4 "sha256" 32, Sha384 5 "sha384" 48,
    Sha512 6 "sha512" 64, Sha224 7 "sha224" 28, Rmd128 8 "rmd128" 16, Rmd256 9 "rmd256" 32, Rmd320 10 "rmd320" 40,
    Wp256 11 "wp256" 32, Wp384 12 "wp384" 48, Wp512 13 "wp512" 64, Tgr128 14 "tgr128" 16, Tgr160 15 "tgr160" 20,
    Tgr192 16 "tgr192" 24, Sm3 17 "sm3" 32, Streebog256 18 "streebog256" 32, Streebog512 19 "streebog512" 64,
    Sha3_256 20 "sha3-256" 32, Sha3_384 21 "sha3-384" 48, Sha3_512 22 "sha3-512" 64,
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No algorithm has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown hash algorithm")]
pub struct UnknownAlgorithm;

impl FromStr for HashAlgorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or(UnknownAlgorithm)
    }
}
