//! Which words may stand together in one rule.
//!
//! Source: Linux `security/integrity/ima/ima_policy.c`, `ima_validate_rule()`.

use super::action::Action;
use super::error::{Expected, Problem};
use super::key::Key;
use super::parse::Reader;
use crate::event::Hook;

/// Reports whatever does not fit in a rule of which each word was taken.
pub(super) fn rule(reader: &mut Reader<'_, '_>) {
    let Some((action, action_word)) = reader.action else { return };
    let func = reader.rule.func;
    let seen = reader.seen.clone();
    for &(key, at) in &seen {
        if let Some(needed) = needed_action(key, reader).filter(|&needed| needed != action) {
            let expected = Expected::Words(vec![needed.name()]);
            reader.fail(at, Problem::NeedsAction(key, needed), expected);
        } else if !key_fits(key, func) {
            reader.fail(at, Problem::NotWithFunc(key, func), Expected::Nothing);
        } else if key == Key::AppraiseType && reader.rule.flags.modsig_allowed && !takes_modsig(func) {
            let expected = Expected::Phrase("func=MODULE_CHECK, KEXEC_KERNEL_CHECK or KEXEC_INITRAMFS_CHECK with it");
            reader.fail(at, Problem::NotWithFunc(key, func), expected);
        }
    }
    if let Some(hook) = func {
        let allowed = allowed_actions(hook);
        if !allowed.contains(&action) {
            let expected = Expected::Words(allowed.iter().map(|action| action.name()).collect());
            reader.fail(action_word, Problem::ActionNotWithFunc(hook), expected);
        }
    }
    let flags = reader.rule.flags;
    let lacking = |key: Key| seen.iter().find(|(seen, _)| *seen == key).map_or(action_word, |&(_, at)| at);
    if func == Some(Hook::SetxattrCheck) && reader.rule.algorithms.is_none() {
        reader.fail(lacking(Key::Func), Problem::Missing(Key::AppraiseAlgos), Expected::Nothing);
    }
    if flags.blacklist && !flags.signature_required {
        reader.fail(lacking(Key::AppraiseFlag), Problem::Missing(Key::AppraiseType), Expected::Nothing);
    }
    // A label cannot hold an fs-verity digest as such, so there must be a signature of one.
    if action == Action::Appraise && flags.verity && !flags.signature_required {
        reader.fail(lacking(Key::DigestType), Problem::Missing(Key::AppraiseType), Expected::Words(vec!["sigv3"]));
    }
}

/// The only action that a key makes sense with, if there is one.
fn needed_action(key: Key, reader: &Reader<'_, '_>) -> Option<Action> {
    if matches!(key, Key::Pcr | Key::Template) {
        Some(Action::Measure)
    } else if matches!(key, Key::AppraiseType | Key::AppraiseAlgos) {
        Some(Action::Appraise)
    } else {
        // Newer kernels read over the flag, so there it does not matter.
        (key == Key::AppraiseFlag && reader.rule.blacklist_flag).then_some(Action::Appraise)
    }
}

fn allowed_actions(hook: Hook) -> &'static [Action] {
    match hook {
        Hook::KexecCmdline | Hook::KeyCheck | Hook::CriticalData => &[Action::Measure, Action::DontMeasure],
        Hook::SetxattrCheck => &[Action::Appraise],
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
        | Hook::PolicyCheck => &Action::ALL,
    }
}

/// Whether signatures appended to the file can be asked for.
const fn takes_modsig(func: Option<Hook>) -> bool {
    matches!(func, Some(Hook::ModuleCheck | Hook::KexecKernelCheck | Hook::KexecInitramfsCheck))
}

fn key_fits(key: Key, func: Option<Hook>) -> bool {
    match func {
        None
        | Some(
            Hook::FileCheck
            | Hook::MmapCheck
            | Hook::MmapCheckReqprot
            | Hook::BprmCheck
            | Hook::CredsCheck
            | Hook::PostSetattr
            | Hook::FirmwareCheck
            | Hook::PolicyCheck,
        ) => !matches!(key, Key::Keyrings | Key::Label),
        Some(Hook::ModuleCheck | Hook::KexecKernelCheck | Hook::KexecInitramfsCheck) => {
            !matches!(key, Key::Keyrings | Key::Label | Key::DigestType)
        }
        Some(Hook::KexecCmdline) => {
            !matches!(key, Key::Keyrings | Key::Label | Key::DigestType | Key::Mask | Key::PermitDirectio)
        }
        Some(Hook::KeyCheck) => key == Key::Keyrings || fits_data(key),
        Some(Hook::CriticalData) => key == Key::Label || fits_data(key),
        Some(Hook::SetxattrCheck) => matches!(key, Key::Func | Key::AppraiseAlgos | Key::AppraiseFlag) || is_lsm(key),
    }
}

/// What may stand beside `KEY_CHECK` and `CRITICAL_DATA`, which know a task but no file.
const fn fits_data(key: Key) -> bool {
    matches!(key, Key::Func | Key::Uid | Key::Gid | Key::Pcr | Key::Template | Key::AppraiseFlag)
}

/// The kernel does not look for these with `SETXATTR_CHECK`, although they have no effect there.
const fn is_lsm(key: Key) -> bool {
    matches!(key, Key::SubjUser | Key::SubjRole | Key::SubjType | Key::ObjUser | Key::ObjRole | Key::ObjType)
}
