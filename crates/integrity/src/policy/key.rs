//! The words of the rule language.

use std::fmt;

use super::action::Action;
use super::dialect::{Dialect, Feature};
use super::rule::Template;
use crate::event::{Hook, Mask};

/// The name before the sign in `func=FILE_CHECK`, or `permit_directio`, which has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is the word of that name in the rule language")]
pub enum Key {
    Func,
    Mask,
    Fsmagic,
    Fsname,
    FsSubtype,
    Fsuuid,
    Uid,
    Euid,
    Gid,
    Egid,
    Fowner,
    Fgroup,
    SubjUser,
    SubjRole,
    SubjType,
    ObjUser,
    ObjRole,
    ObjType,
    DigestType,
    AppraiseType,
    AppraiseFlag,
    AppraiseAlgos,
    PermitDirectio,
    Pcr,
    Template,
    Keyrings,
    Label,
}

impl Key {
    /// Every key.
    pub const ALL: [Self; 27] = [
        Self::Func,
        Self::Mask,
        Self::Fsmagic,
        Self::Fsname,
        Self::FsSubtype,
        Self::Fsuuid,
        Self::Uid,
        Self::Euid,
        Self::Gid,
        Self::Egid,
        Self::Fowner,
        Self::Fgroup,
        Self::SubjUser,
        Self::SubjRole,
        Self::SubjType,
        Self::ObjUser,
        Self::ObjRole,
        Self::ObjType,
        Self::DigestType,
        Self::AppraiseType,
        Self::AppraiseFlag,
        Self::AppraiseAlgos,
        Self::PermitDirectio,
        Self::Pcr,
        Self::Template,
        Self::Keyrings,
        Self::Label,
    ];

    /// As it stands in a rule, with its `=`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Func => "func=",
            Self::Mask => "mask=",
            Self::Fsmagic => "fsmagic=",
            Self::Fsname => "fsname=",
            Self::FsSubtype => "fs_subtype=",
            Self::Fsuuid => "fsuuid=",
            Self::Uid => "uid=",
            Self::Euid => "euid=",
            Self::Gid => "gid=",
            Self::Egid => "egid=",
            Self::Fowner => "fowner=",
            Self::Fgroup => "fgroup=",
            Self::SubjUser => "subj_user=",
            Self::SubjRole => "subj_role=",
            Self::SubjType => "subj_type=",
            Self::ObjUser => "obj_user=",
            Self::ObjRole => "obj_role=",
            Self::ObjType => "obj_type=",
            Self::DigestType => "digest_type=",
            Self::AppraiseType => "appraise_type=",
            Self::AppraiseFlag => "appraise_flag=",
            Self::AppraiseAlgos => "appraise_algos=",
            Self::PermitDirectio => "permit_directio",
            Self::Pcr => "pcr=",
            Self::Template => "template=",
            Self::Keyrings => "keyrings=",
            Self::Label => "label=",
        }
    }

    /// Without its `=`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.word().trim_end_matches('=')
    }

    /// Whether `>` and `<` can stand in place of `=`.
    #[must_use]
    pub const fn compares(self) -> bool {
        matches!(self, Self::Uid | Self::Euid | Self::Gid | Self::Egid | Self::Fowner | Self::Fgroup)
    }

    pub(super) fn is_in(self, dialect: Dialect) -> bool {
        self != Self::FsSubtype || dialect.has(Feature::FsSubtype)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word of a rule, taken apart.
pub(super) enum Parts<'a> {
    Action(Action),
    Flag,
    Value { key: Key, sign: u8, value: &'a [u8] },
    Unknown,
}

/// Takes a word apart as the newest dialect would.
pub(super) fn take_apart(word: &[u8]) -> Parts<'_> {
    if let Some(action) = Action::ALL.into_iter().find(|action| action.name().as_bytes() == word) {
        return Parts::Action(action);
    }
    if word == Key::PermitDirectio.word().as_bytes() {
        return Parts::Flag;
    }
    let Some((name, sign, value)) = split_at_sign(word) else { return Parts::Unknown };
    let named = |key: &Key| key.name().as_bytes() == name && *key != Key::PermitDirectio;
    match Key::ALL.into_iter().find(named) {
        Some(key) if sign == b'=' || key.compares() => Parts::Value { key, sign, value },
        Some(_) | None => Parts::Unknown,
    }
}

/// Name, sign and value, split at the first `=`, `>` or `<`.
pub(super) fn split_at_sign(word: &[u8]) -> Option<(&[u8], u8, &[u8])> {
    let at = word.iter().position(|byte| matches!(byte, b'=' | b'>' | b'<'))?;
    let (name, rest) = word.split_at_checked(at)?;
    let (&sign, value) = rest.split_first()?;
    Some((name, sign, value))
}

pub(super) fn action_words(dialect: Dialect) -> Vec<&'static str> {
    let known = |action: &Action| *action != Action::DontAudit || dialect.has(Feature::DontAudit);
    Action::ALL.into_iter().filter(known).map(Action::name).collect()
}

pub(super) fn key_words(dialect: Dialect) -> Vec<&'static str> {
    Key::ALL.into_iter().filter(|key| key.is_in(dialect)).map(Key::word).collect()
}

pub(super) fn hook_words(dialect: Dialect) -> Vec<&'static str> {
    let known = |hook: &Hook| *hook != Hook::MmapCheckReqprot || dialect.has(Feature::Reqprot);
    let spelled = |hook: &Hook| *hook != Hook::PostSetattr;
    Hook::ALL.into_iter().filter(known).filter(spelled).map(Hook::name).collect()
}

pub(super) fn template_words() -> Vec<&'static str> {
    Template::ALL.into_iter().map(Template::name).collect()
}

/// The bits that `mask=` can name.
pub(super) const MASKS: [(&str, Mask); 4] =
    [("MAY_EXEC", Mask::EXEC), ("MAY_WRITE", Mask::WRITE), ("MAY_READ", Mask::READ), ("MAY_APPEND", Mask::APPEND)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_take_greater_and_less() {
        for key in Key::ALL {
            let word = format!("{}>5", key.name());
            let taken = matches!(take_apart(word.as_bytes()), Parts::Value { sign: b'>', value: b"5", .. });
            assert_eq!(taken, key.compares(), "{word}");
        }
    }

    #[test]
    fn a_word_splits_at_its_first_sign() {
        assert_eq!(split_at_sign(b"uid<=10"), Some((&b"uid"[..], b'<', &b"=10"[..])));
        assert_eq!(split_at_sign(b"label=a=b"), Some((&b"label"[..], b'=', &b"a=b"[..])));
        assert_eq!(split_at_sign(b"measure"), None);
    }
}
