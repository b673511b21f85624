//! Where a policy comes from, as people name it.

use super::builtin::{Builtins, UnknownBuiltin};

/// What stands before the names of built-in policies.
const PREFIX: &[u8] = b"builtin:";

/// The name of the policy that programs take unless they are told otherwise: appraise all files owned by root.
pub const DEFAULT_SOURCE: &str = "builtin:appraise_tcb";

/// What a name stands for. To read the file is the caller's work, and [`Policy::parse`](super::Policy::parse) takes its
/// text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'n> {
    /// `builtin:NAME`, also several names: see [`Builtins`].
    Builtin(Builtins),
    /// The path of a file.
    File(&'n [u8]),
}

impl<'n> Source<'n> {
    /// Takes a name apart. A file whose path begins with `builtin:` is named by `./builtin:…`.
    ///
    /// # Errors
    /// If a name after `builtin:` is none of a built-in policy.
    pub fn parse(name: &'n [u8]) -> Result<Self, UnknownBuiltin> {
        match name.strip_prefix(PREFIX) {
            Some(names) => String::from_utf8_lossy(names).parse().map(Self::Builtin),
            None => Ok(Self::File(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Builtin;

    #[test]
    fn a_name_is_a_built_in_policy_or_a_file() {
        let builtin = |names: &str| Ok(Source::Builtin(names.parse().unwrap()));
        for (name, expected) in [
            (&b"builtin:tcb"[..], builtin("tcb")),
            (b"builtin:tcb|appraise_tcb", builtin("tcb|appraise_tcb")),
            (b"/etc/ima/ima-policy", Ok(Source::File(b"/etc/ima/ima-policy"))),
            (b"./builtin:tcb", Ok(Source::File(b"./builtin:tcb"))),
            (b"tcb", Ok(Source::File(b"tcb"))),
            (b"\xff", Ok(Source::File(b"\xff"))),
        ] {
            assert_eq!(Source::parse(name), expected, "{}", name.escape_ascii());
        }
        for (name, found) in [(&b"builtin:"[..], ""), (b"builtin:tbc", "tbc"), (b"builtin:\xff", "\u{fffd}")] {
            let error = Source::parse(name).unwrap_err().to_string();
            assert!(error.contains(&format!("{found:?}")), "{error}");
        }
        assert_eq!(Source::parse(DEFAULT_SOURCE.as_bytes()), Ok(Source::Builtin(Builtin::AppraiseTcb.into())));
    }
}
