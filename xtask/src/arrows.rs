//! The `arrows` stage: which crate may use which, as `docs/architecture.md` draws it.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::ci::cargo_command;

/// A crate of the workspace, and those of the workspace that it may depend on, in whatever way.
const ARROWS: [(&str, &[&str]); 5] = [
    ("imara-integrity", &[]),
    // Itself, for the feature of its tests.
    ("imara-linux", &["imara-integrity", "imara-linux"]),
    ("imarad", &["imara-integrity", "imara-linux"]),
    ("imara", &["imara-integrity", "imara-linux"]),
    ("xtask", &["imara-integrity", "imara-linux"]),
];

/// Crates that bring the machine with them; the core does without.
const MACHINE: [&str; 9] = ["libc", "nix", "rustix", "tokio", "mio", "getrandom", "rand", "walkdir", "tempfile"];

/// Fails if a crate depends on one that it may not know.
pub(crate) fn run() -> Result<()> {
    let mut command = cargo_command();
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    let wrong = wrong(&serde_json::from_slice(&output.stdout)?)?;
    ensure!(wrong.is_empty(), "against docs/architecture.md: {}", wrong.join("; "));
    Ok(())
}

/// What is wrong with the workspace that `cargo metadata` describes.
fn wrong(metadata: &Value) -> Result<Vec<String>> {
    let names = |list: &Value| -> Option<Vec<String>> {
        list.as_array()?.iter().map(|item| Some(item.get("name")?.as_str()?.to_owned())).collect()
    };
    let packages = metadata.get("packages").context("cargo metadata lists no packages")?;
    let members = names(packages).context("cargo metadata lists packages without names")?;
    let mut wrong = Vec::new();
    for (member, package) in members.iter().zip(packages.as_array().into_iter().flatten()) {
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| name == member) else {
            wrong.push(format!("{member} has no place in xtask/src/arrows.rs"));
            continue;
        };
        let used = package.get("dependencies").and_then(names).with_context(|| format!("{member}: no dependencies"))?;
        for used in used {
            let ours = members.contains(&used) && !allowed.contains(&used.as_str());
            let machine = member == "imara-integrity" && MACHINE.contains(&used.as_str());
            if ours || machine {
                wrong.push(format!("{member} must not depend on {used}"));
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, used: &[&str]) -> Value {
        let used: Vec<_> = used.iter().map(|name| json!({ "name": name, "kind": "dev" })).collect();
        json!({ "name": name, "dependencies": used })
    }

    #[test]
    fn an_arrow_that_runs_the_other_way_is_found() {
        let integrity = package("imara-integrity", &["thiserror", "sha2"]);
        for (packages, expected) in [
            (vec![integrity.clone(), package("imara-linux", &["imara-integrity", "imara-linux", "rustix"])], vec![]),
            (vec![integrity.clone(), package("xtask", &["imara-integrity"])], vec![]),
            (
                vec![package("imara-integrity", &["imara-linux"]), package("imara-linux", &[])],
                vec!["imara-integrity must not depend on imara-linux"],
            ),
            (vec![package("imara-integrity", &["rustix"])], vec!["imara-integrity must not depend on rustix"]),
            (
                vec![
                    integrity.clone(),
                    package("imara", &["imarad"]),
                    package("imarad", &["xtask"]),
                    package("xtask", &[]),
                ],
                vec!["imara must not depend on imarad", "imarad must not depend on xtask"],
            ),
            (vec![integrity, package("new", &[])], vec!["new has no place in xtask/src/arrows.rs"]),
        ] {
            assert_eq!(wrong(&json!({ "packages": packages })).unwrap(), expected);
        }
        assert!(wrong(&json!({})).is_err());
    }
}
