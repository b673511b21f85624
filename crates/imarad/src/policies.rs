//! The policy in use, and what of it fanotify cannot see.

use anyhow::{Context as _, bail};
use imara_integrity::event::Hook;
use imara_integrity::policy::{Dialect, Family, Options, Policy, Source, Verb};

/// Loads a policy: a file, or `builtin:NAME`. The error of a broken one shows the places.
pub(crate) fn load(name: &str) -> anyhow::Result<Policy> {
    if let Source::Builtin(which) = Source::parse(name.as_bytes())? {
        return Ok(Policy::builtin(which, Dialect::default()));
    }
    let text = std::fs::read(name).with_context(|| format!("cannot read the policy {name}"))?;
    match Policy::parse(&text, &Options::default()) {
        Ok(policy) => Ok(policy),
        Err(errors) => bail!("{name} is not a policy\n{}", errors.underlined(&text)),
    }
}

/// What fanotify shows: that a file is opened, and that it is executed.
const SHOWN: [Hook; 3] = [Hook::FileCheck, Hook::BprmCheck, Hook::CredsCheck];

/// Whether no rule can ever have a file judged, because all are for hooks that fanotify does not show, or for none.
pub(crate) fn guards_nothing(policy: &Policy) -> bool {
    let mut rules = policy.rules().map(|numbered| numbered.rule);
    !rules.any(|rule| {
        let action = rule.action;
        action.family() == Family::Appraise
            && action.verb() == Verb::Do
            && rule.func.is_none_or(|hook| SHOWN.contains(&hook))
    })
}

/// Warnings about rules that no permission event can answer to.
pub(crate) fn unseen(policy: &Policy) -> Vec<String> {
    if !policy.active().contains(Family::Appraise) {
        return vec!["the policy appraises nothing, so every file is let through".into()];
    }
    policy
        .rules()
        .filter_map(|numbered| {
            let hook = numbered.rule.func.filter(|hook| !SHOWN.contains(hook))?;
            Some(format!(
                "policy line {}: func={hook} is not seen by fanotify, the rule has no effect here (opening such a file \
                 is seen as FILE_CHECK)",
                numbered.line
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_built_in_or_a_file_and_a_broken_one_shows_the_place() {
        assert_eq!(load("builtin:appraise_tcb").unwrap().to_string().lines().last(), Some("appraise fowner=0"));
        let error = |name: &str| format!("{:#}", load(name).unwrap_err());
        assert!(error("builtin:apraise_tcb").contains("\"apraise_tcb\""), "{}", error("builtin:apraise_tcb"));
        assert!(error("/proc/none").starts_with("cannot read the policy /proc/none: "), "{}", error("/proc/none"));
        let path = std::env::temp_dir().join(format!("imarad-policy-{}", std::process::id()));
        std::fs::write(&path, "appraise fwoner=0\n").unwrap();
        let said = error(path.to_str().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(said.starts_with(&format!("{} is not a policy\n", path.display())), "{said}");
        assert!(said.ends_with("1 | appraise fwoner=0\n  |          ^^^^^^^^"), "{said}");
    }

    #[test]
    fn a_policy_that_asks_for_what_is_not_seen_is_warned_about() {
        let warnings = |text: &str| unseen(&Policy::parse(text.as_bytes(), &Options::default()).unwrap());
        assert_eq!(warnings("appraise func=BPRM_CHECK\nappraise fowner=0\n"), [""; 0]);
        assert_eq!(warnings("measure\n"), ["the policy appraises nothing, so every file is let through"]);
        let warned = warnings("appraise\nappraise func=MMAP_CHECK\n");
        assert_eq!(warned.len(), 1);
        assert!(warned[0].starts_with("policy line 2: func=MMAP_CHECK is not seen by fanotify"), "{}", warned[0]);
    }

    #[test]
    fn a_policy_that_has_nothing_judged_is_known_for_it() {
        for (text, expected) in [
            ("", true),
            ("measure", true),
            ("dont_appraise fowner=0", true),
            ("appraise func=MODULE_CHECK", true),
            ("appraise func=MMAP_CHECK\nappraise func=FIRMWARE_CHECK", true),
            ("appraise func=MMAP_CHECK\nappraise func=BPRM_CHECK", false),
            ("appraise func=CREDS_CHECK", false),
            ("appraise func=FILE_CHECK mask=MAY_WRITE", false),
            ("appraise fowner=0", false),
        ] {
            let policy = Policy::parse(text.as_bytes(), &Options::default()).unwrap();
            assert_eq!(guards_nothing(&policy), expected, "{text:?}");
        }
    }
}
