//! The policy in use, and what of it fanotify cannot see.

use std::path::Path;

use anyhow::Context as _;
use imara_integrity::event::Hook;
use imara_integrity::policy::{Family, Policy};

/// Loads a policy: a file, or `builtin:NAME`.
pub(crate) fn load(name: &str) -> anyhow::Result<Policy> {
    if let Some(builtin) = name.strip_prefix("builtin:") {
        return Ok(Policy::builtin(builtin.parse()?, imara_integrity::policy::Dialect::default()));
    }
    let text = std::fs::read(Path::new(name)).with_context(|| format!("cannot read the policy {name}"))?;
    Policy::parse(&text, &imara_integrity::policy::Options::default())
        .with_context(|| format!("{name} is not a policy"))
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
