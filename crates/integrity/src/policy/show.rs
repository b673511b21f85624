//! Rules to text: the canonical form, which parses back to the same rules.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_policy_show()`.

use std::fmt::{self, Display, Formatter};

use super::Policy;
use super::key::{Key, MASKS};
use super::rule::{Algorithms, Bound, Comparison, Credential, Flags, MaskMode, Rule, Which};
use crate::digest::HashAlgorithm;

impl Display for Policy {
    /// One rule a line, each line ended.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.rules().try_for_each(|numbered| writeln!(f, "{}", numbered.rule))
    }
}

impl Display for Rule {
    /// Action, conditions, options, always in the same order; aliases become the names they stand for.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.action.name())?;
        write_value(f, Key::Func, self.func)?;
        if let Some(condition) = self.mask {
            let sign = if condition.mode == MaskMode::Includes { "^" } else { "" };
            let name = MASKS.iter().find(|(_, mask)| *mask == condition.mask).map_or("", |(name, _)| name);
            write!(f, " mask={sign}{name}")?;
        }
        if let Some(magic) = self.fsmagic {
            write!(f, " fsmagic=0x{magic:x}")?;
        }
        write_value(f, Key::Fsname, self.fsname.as_ref())?;
        write_value(f, Key::FsSubtype, self.fs_subtype.as_ref())?;
        if let Some(uuid) = self.fsuuid {
            f.write_str(" fsuuid=")?;
            write_uuid(f, uuid)?;
        }
        write_credential(f, self.user, [Key::Uid, Key::Euid])?;
        write_credential(f, self.group, [Key::Gid, Key::Egid])?;
        write_bound(f, Key::Fowner, self.fowner)?;
        write_bound(f, Key::Fgroup, self.fgroup)?;
        write_value(f, Key::SubjUser, self.subject.user.as_ref())?;
        write_value(f, Key::SubjRole, self.subject.role.as_ref())?;
        write_value(f, Key::SubjType, self.subject.kind.as_ref())?;
        write_value(f, Key::ObjUser, self.object.user.as_ref())?;
        write_value(f, Key::ObjRole, self.object.role.as_ref())?;
        write_value(f, Key::ObjType, self.object.kind.as_ref())?;
        write_list(f, Key::Keyrings, &self.keyrings)?;
        write_list(f, Key::Label, &self.labels)?;
        write_signature(f, self.flags)?;
        write_value(f, Key::AppraiseFlag, self.blacklist_flag.then_some("check_blacklist"))?;
        write_algorithms(f, self.algorithms)?;
        write_value(f, Key::Pcr, self.pcr)?;
        write_value(f, Key::Template, self.template)?;
        f.write_str(if self.flags.permit_directio { " permit_directio" } else { "" })
    }
}

fn write_value(f: &mut Formatter<'_>, key: Key, value: Option<impl Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {}{value}", key.word()))
}

fn write_bound(f: &mut Formatter<'_>, key: Key, bound: Option<Bound>) -> fmt::Result {
    let Some(bound) = bound else { return Ok(()) };
    let sign = match bound.comparison {
        Comparison::Equal => '=',
        Comparison::Above => '>',
        Comparison::Below => '<',
    };
    write!(f, " {}{sign}{}", key.name(), bound.id)
}

fn write_credential(f: &mut Formatter<'_>, credential: Option<Credential>, [real, effective]: [Key; 2]) -> fmt::Result {
    let Some(Credential { which, bound }) = credential else { return Ok(()) };
    write_bound(f, if which == Which::Real { real } else { effective }, Some(bound))
}

fn write_list(f: &mut Formatter<'_>, key: Key, names: &[Box<str>]) -> fmt::Result {
    write_value(f, key, (!names.is_empty()).then(|| names.join("|")))
}

fn write_algorithms(f: &mut Formatter<'_>, algorithms: Option<Algorithms>) -> fmt::Result {
    let joined = |set: Algorithms| set.iter().map(HashAlgorithm::name).collect::<Vec<_>>().join(",");
    write_value(f, Key::AppraiseAlgos, algorithms.map(joined))
}

/// `appraise_type=` and `digest_type=`, in the order in which every kernel that has them takes them.
fn write_signature(f: &mut Formatter<'_>, flags: Flags) -> fmt::Result {
    let verity_first = flags.verity && (flags.sigv3 || !flags.signature_required);
    if verity_first {
        f.write_str(" digest_type=verity")?;
    }
    if flags.modsig_allowed {
        f.write_str(" appraise_type=imasig|modsig")?;
    } else if flags.signature_required && !flags.sigv3 {
        f.write_str(" appraise_type=imasig")?;
    }
    if flags.sigv3 {
        f.write_str(" appraise_type=sigv3")?;
    }
    f.write_str(if flags.verity && !verity_first { " digest_type=verity" } else { "" })
}

fn write_uuid(f: &mut Formatter<'_>, uuid: [u8; 16]) -> fmt::Result {
    for (index, byte) in uuid.iter().enumerate() {
        f.write_str(if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" })?;
        write!(f, "{byte:02x}")?;
    }
    Ok(())
}
