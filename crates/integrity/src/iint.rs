//! What is remembered of one inode, and what makes it stale.
//!
//! The kernel keeps a bag of flags per inode; we remember two facts only, and judge the rest anew at each open (rules
//! and label are cheap to look at, the content is not):
//!
//! | fact | stale when |
//! |---|---|
//! | [`Iint::Content`]: the digest of the content | the read lease under which it was taken is broken or given up |
//! | [`Iint::Written`]: somebody who opened it while it was good may be changing it | nobody has it open for writing any more |
//!
//! Source: Linux `security/integrity/ima/ima_iint.c`, `ima.h` (`struct ima_iint_cache`).

use crate::digest::{Digest, HashAlgorithm};

/// What is remembered of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iint {
    /// The content's digest. True as long as the read lease is held under which it was taken.
    Content(Digest),
    /// Somebody has, or had a moment ago, the file open for writing.
    Written(Writable),
}

/// What was known of a file when it was opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    /// Whether it was what its label said (or new): only then its label follows the change. A file that did not pass
    /// does not become good by being written to.
    pub good: bool,
}

impl Iint {
    /// The content's digest, if it is known and was taken with this algorithm.
    #[must_use]
    pub fn evidence(&self, algorithm: HashAlgorithm) -> Option<Digest> {
        match self {
            Self::Content(digest) if digest.algorithm() == algorithm => Some(*digest),
            Self::Content(_) | Self::Written(_) => None,
        }
    }
}
