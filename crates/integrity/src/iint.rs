//! What is remembered of one inode, and what makes it stale.
//!
//! The kernel keeps a bag of flags per inode; we remember two facts only, and judge the rest anew at each open (rules
//! and label are cheap to look at, the content is not):
//!
//! | fact | stale when |
//! |---|---|
//! | the [`Digest`](crate::digest::Digest) of the content | the read lease under which it was taken is broken or given up |
//! | [`Writable`]: somebody who found it good may be changing it | nobody has it open for writing any more |
//!
//! Source: Linux `security/integrity/ima/ima_iint.c`, `ima.h` (`struct ima_iint_cache`).

/// What was known of a file when it was opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writable {
    /// Whether it was what its label said (or new): only then its label follows the change. A file that did not pass
    /// does not become good by being written to.
    pub good: bool,
}
