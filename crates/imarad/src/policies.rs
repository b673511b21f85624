//! The policy in use, and what of it fanotify cannot see.

use anyhow::{Context as _, bail};
use imara_integrity::event::Hook;
use imara_integrity::policy::{Dialect, Family, Options, Policy, Source};

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

/// Warnings about rules that no permission event can answer to.
pub(crate) fn unseen(policy: &Policy) -> Vec<String> {
    if !policy.active().contains(Family::Appraise) {
        return vec!["the policy appraises nothing, so every file is let through".into()];
    }
    let seen = [Hook::FileCheck, Hook::BprmCheck, Hook::CredsCheck];
    policy
        .rules()
        .filter_map(|numbered| {
            let hook = numbered.rule.func.filter(|hook| !seen.contains(hook))?;
            Some(format!(
                "policy line {}: func={hook} is not seen by fanotify, the rule has no effect here (opening such a file \
                 is seen as FILE_CHECK)",
                numbered.line
            ))
        })
        .collect()
}
