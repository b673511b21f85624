//! Whether a rule is about an access.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_match_rules()`, `ima_match_rule_data()`.

use super::rule::{Credential, MaskMode, Rule, Which};
use crate::event::{Event, Hook, LsmLabel};

impl Rule {
    /// Whether this rule is about that access.
    #[must_use]
    pub fn matches(&self, event: &Event<'_>) -> bool {
        // The kernel asks after a change of owner or mode whether any rule at all would still appraise the file.
        let any_access = event.hook == Hook::PostSetattr;
        if !any_access && self.func.is_some_and(|func| func != event.hook) {
            return false;
        }
        match event.hook {
            Hook::KeyCheck => return self.func.is_some() && self.matches_data(&self.keyrings, event),
            Hook::CriticalData => return self.func.is_some() && self.matches_data(&self.labels, event),
            Hook::FileCheck
            | Hook::MmapCheck
            | Hook::MmapCheckReqprot
            | Hook::BprmCheck
            | Hook::CredsCheck
            | Hook::PostSetattr
            | Hook::ModuleCheck
            | Hook::FirmwareCheck
            | Hook::KexecKernelCheck
            | Hook::KexecInitramfsCheck
            | Hook::PolicyCheck
            | Hook::KexecCmdline
            | Hook::SetxattrCheck => {}
        }
        (any_access || self.matches_mask(event)) && self.matches_object(event) && self.matches_subject(event)
    }

    /// Whether this rule is about that access to a file if the right one asks, whatever `event` says of the subject. Not
    /// for [`Hook::PostSetattr`], nor for what is no file.
    pub(super) fn may_match(&self, event: &Event<'_>) -> bool {
        self.func.is_none_or(|func| func == event.hook) && self.matches_mask(event) && self.matches_object(event)
    }

    fn matches_data(&self, names: &[Box<str>], event: &Event<'_>) -> bool {
        // Of the ids only uid= counts here: the kernel accepts gid= with these hooks but never looks at it.
        let user = self.user.is_none_or(|user| user.bound.holds(event.subject.uid.0));
        user && (names.is_empty() || event.data.is_some_and(|data| names.iter().any(|name| **name == *data)))
    }

    fn matches_mask(&self, event: &Event<'_>) -> bool {
        self.mask.is_none_or(|condition| match condition.mode {
            MaskMode::Exact => event.mask == condition.mask,
            MaskMode::Includes => event.mask.contains(condition.mask),
        })
    }

    fn matches_file_system(&self, event: &Event<'_>) -> bool {
        let fs = event.object.fs;
        self.fsmagic.is_none_or(|magic| magic == fs.magic)
            && self.fsname.as_deref().is_none_or(|name| name == fs.name)
            && self.fs_subtype.as_deref().is_none_or(|subtype| fs.subtype.as_deref() == Some(subtype))
            && self.fsuuid.is_none_or(|uuid| uuid == fs.uuid)
    }

    fn matches_object(&self, event: &Event<'_>) -> bool {
        self.matches_file_system(event)
            && self.fowner.is_none_or(|owner| owner.holds(event.object.owner.0))
            && self.fgroup.is_none_or(|group| group.holds(event.object.group.0))
            && label_matches(&self.object, event.object_label)
    }

    fn matches_subject(&self, event: &Event<'_>) -> bool {
        let who = &event.subject;
        let user = |c| credential_holds(c, [who.uid.0, who.euid.0, who.suid.0], who.cap_setuid);
        let group = |c| credential_holds(c, [who.gid.0, who.egid.0, who.sgid.0], who.cap_setgid);
        self.user.is_none_or(user) && self.group.is_none_or(group) && label_matches(&self.subject, event.subject_label)
    }
}

/// Whether ids of a task satisfy a condition; `ids` are real, effective, saved.
fn credential_holds(condition: Credential, ids: [u32; 3], capable: bool) -> bool {
    let [real, effective, _] = ids;
    match condition.which {
        Which::Real => condition.bound.holds(real),
        // Whoever can change its ids could take any of them on, so each of them counts.
        Which::Effective if capable => ids.into_iter().any(|id| condition.bound.holds(id)),
        Which::Effective => condition.bound.holds(effective),
    }
}

/// Whether each part that the rule names is the same in `actual`; an unknown label matches no condition.
fn label_matches(wanted: &LsmLabel, actual: Option<&LsmLabel>) -> bool {
    let same = |wanted: &Option<String>, part: fn(&LsmLabel) -> &Option<String>| {
        wanted.is_none() || actual.is_some_and(|label| part(label) == wanted)
    };
    same(&wanted.user, |label| &label.user)
        && same(&wanted.role, |label| &label.role)
        && same(&wanted.kind, |label| &label.kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{FileSystem, Gid, Mask, Subject, Uid};
    use crate::policy::SubAction;
    use crate::policy::decide::tests::{decide, file_system, open, policy};

    #[test]
    fn a_rule_with_func_is_for_that_hook_alone() {
        for func in Hook::ALL.into_iter().filter(|&h| h <= Hook::PolicyCheck && h != Hook::PostSetattr) {
            for hook in Hook::ALL.into_iter().filter(|&h| h <= Hook::PolicyCheck && h != Hook::PostSetattr) {
                let measured = decide(&format!("measure func={func}"), |event| event.hook = hook).measure.is_some();
                assert_eq!(measured, func == hook, "{func} {hook}");
            }
        }
    }

    #[test]
    fn a_change_of_attributes_is_matched_without_func_and_mask_but_with_all_else() {
        let matched = |rules: &str| decide(rules, |event| event.hook = Hook::PostSetattr).appraise;
        let appraise = matched("appraise func=BPRM_CHECK mask=MAY_EXEC").unwrap();
        assert_eq!(appraise.sub_action, SubAction::File);
        assert_eq!(matched("appraise func=BPRM_CHECK fowner=9"), None);
    }

    #[test]
    fn mask_compares_the_whole_mask_or_one_bit() {
        let both = Mask::READ.union(Mask::WRITE);
        for (mask, asked, matches) in [
            ("MAY_READ", Mask::READ, true),
            ("MAY_READ", both, false),
            ("^MAY_READ", both, true),
            ("^MAY_EXEC", both, false),
            ("MAY_READ", Mask::NONE, false),
            ("^MAY_READ", Mask::NONE, false),
        ] {
            let decision = decide(&format!("measure mask={mask}"), |event| event.mask = asked);
            assert_eq!(decision.measure.is_some(), matches, "{mask} {asked:?}");
        }
    }

    #[test]
    fn conditions_on_the_file_and_its_file_system() {
        for (condition, matches) in [
            ("fowner=7", true),
            ("fowner>7", false),
            ("fowner<8", true),
            ("fgroup=8", true),
            ("fgroup>7", true),
            ("fgroup<8", false),
            ("fsmagic=0x65735546", true),
            ("fsmagic=0x65735547", false),
            ("fsname=fuse", true),
            ("fsname=fuse.sshfs", false),
            ("fs_subtype=sshfs", true),
            ("fs_subtype=ssh", false),
            ("fsuuid=11111111-1111-1111-1111-111111111111", true),
            ("fsuuid=11111111-1111-1111-1111-111111111112", false),
            ("fowner=7 fgroup=9", false),
        ] {
            assert_eq!(decide(&format!("audit {condition}"), |_| ()).audit.is_some(), matches, "{condition}");
        }
        let without = |event: &mut Event<'_>| {
            event.object.fs = const { &FileSystem { magic: 0, name: String::new(), subtype: None, uuid: [0; 16] } }
        };
        assert_eq!(decide("audit fs_subtype=sshfs", without).audit, None);
    }

    #[test]
    fn effective_ids_of_a_capable_task_are_any_of_its_three() {
        let task = |capable| Subject {
            uid: Uid(1),
            euid: Uid(2),
            suid: Uid(3),
            gid: Gid(4),
            egid: Gid(5),
            sgid: Gid(6),
            cap_setuid: capable,
            cap_setgid: capable,
        };
        for (condition, plain, capable) in [
            ("uid=1", true, true),
            ("uid=2", false, false),
            ("euid=1", false, true),
            ("euid=2", true, true),
            ("euid=3", false, true),
            ("euid>3", false, false),
            ("gid=4", true, true),
            ("gid=5", false, false),
            ("egid=4", false, true),
            ("egid=5", true, true),
            ("egid>5", false, true),
            ("egid<4", false, false),
        ] {
            let matches = |capable| decide(&format!("audit {condition}"), |event| event.subject = task(capable)).audit;
            assert_eq!((matches(false).is_some(), matches(true).is_some()), (plain, capable), "{condition}");
        }
    }

    #[test]
    fn buffers_are_matched_by_func_name_and_uid_alone() {
        for (rules, hook, data, matches) in [
            ("measure func=KEY_CHECK", Hook::KeyCheck, Some(".ima"), true),
            ("measure func=KEY_CHECK", Hook::KeyCheck, None, true),
            ("measure func=KEY_CHECK keyrings=.evm|.ima", Hook::KeyCheck, Some(".ima"), true),
            ("measure func=KEY_CHECK keyrings=.evm|.ima", Hook::KeyCheck, Some(".im"), false),
            ("measure func=KEY_CHECK keyrings=.ima", Hook::KeyCheck, None, false),
            ("measure func=KEY_CHECK uid=5", Hook::KeyCheck, Some(".ima"), false),
            ("measure func=KEY_CHECK gid=5", Hook::KeyCheck, Some(".ima"), true),
            ("measure func=CRITICAL_DATA label=a|b", Hook::CriticalData, Some("b"), true),
            ("measure func=CRITICAL_DATA label=a|b", Hook::CriticalData, Some("c"), false),
            ("measure", Hook::KeyCheck, Some(".ima"), false),
            ("measure", Hook::CriticalData, Some("a"), false),
            ("measure", Hook::KexecCmdline, None, true),
            ("measure func=KEXEC_CMDLINE", Hook::KexecCmdline, None, true),
        ] {
            let fs = file_system();
            let event = Event { hook, data, mask: Mask::NONE, ..open(&fs) };
            assert_eq!(policy(rules).decide(&event).measure.is_some(), matches, "{rules} {hook} {data:?}");
        }
    }
}
