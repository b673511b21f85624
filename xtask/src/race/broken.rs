//! Whether the race finds what it is there to find: guards that are broken on purpose, each by a small patch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::options::Options;
use crate::ci::{cargo_command, finish};
use crate::print::print_line;
use crate::root;
use crate::run::run;

/// The patches. Each says in its first lines what is wrong with such a guard.
const PATCHES: [&str; 3] = ["hash-before-lease", "mark-without-lease", "mark-destroyed-on-break"];

/// Builds each broken guard and has `race` race with it until something has gone wrong, which says how much did. Fails if
/// nothing did; or if something does with the guard as it is, which is raced with to the end.
pub(super) fn race_with_each(options: &Options, race: impl Fn(&Options, &Path) -> Result<u64>) -> Result<()> {
    let place = root().join("target/race-broken");
    let until_wrong = Options { until_wrong: true, ..options.clone() };
    let mut found = Vec::new();
    for name in PATCHES {
        print_line!("━━ {name}")?;
        let imarad = build(&place, Some(name)).with_context(|| format!("cannot build {name}"))?;
        found.push((name, race(&until_wrong, &imarad)?));
    }
    print_line!("━━ as it is")?;
    let whole = race(options, &build(&place, None).context("cannot build the guard as it is")?)?;
    for (name, violations) in &found {
        print_line!("{name}: {}", if *violations == 0 { "NOT FOUND" } else { "found" })?;
    }
    print_line!("as it is: {whole} violations")?;
    let missed: Vec<_> = found.iter().filter(|(_, violations)| *violations == 0).map(|(name, _)| *name).collect();
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    ensure!(whole == 0, "the guard as it is: {whole} violations");
    Ok(())
}

/// The program of the guard that is broken by this patch, if by any.
fn build(place: &Path, patch: Option<&str>) -> Result<PathBuf> {
    let tree = place.join("tree");
    copy_sources(&tree)?;
    if let Some(name) = patch {
        apply(&tree, name, &[])?;
    }
    let target = place.join("build");
    let build = ["build", "--quiet", "--package", "imarad"];
    finish(cargo_command().current_dir(&tree).args(build).env("CARGO_TARGET_DIR", &target))?;
    Ok(target.join("debug/imarad"))
}

/// Applies a patch to the sources in `tree`.
fn apply(tree: &Path, name: &str, options: &[&str]) -> Result<()> {
    let patch = root().join(format!("xtask/src/race/broken/{name}.patch"));
    let mut git = Command::new("git");
    // The tree may be inside a repository whose index it is not in.
    if let Some(above) = tree.parent() {
        git.env("GIT_CEILING_DIRECTORIES", above);
    }
    run(git.current_dir(tree).arg("apply").args(options).arg(&patch))?;
    Ok(())
}

/// Makes `tree` a copy of our sources. What is so already stays as it is, so that it need not be built again.
fn copy_sources(tree: &Path) -> Result<()> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let files = run(Command::new("git").current_dir(root()).args(list))?;
    for name in files.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root().join(name), tree.join(name));
        // Deleted, and still in the index.
        let Ok(content) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        let Some(directory) = to.parent() else { bail!("{name} is nowhere") };
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_patch_fits_the_sources() {
        let place = std::env::temp_dir().join(format!("imara-race-broken-{}", std::process::id()));
        for name in PATCHES {
            let tree = place.join("tree");
            copy_sources(&tree).unwrap();
            let before = fs::read(tree.join("Cargo.toml")).unwrap();
            apply(&tree, name, &[]).unwrap();
            assert!(apply(&tree, name, &["--check"]).is_err(), "{name} changes nothing");
            assert_eq!(fs::read(tree.join("Cargo.toml")).unwrap(), before);
        }
        fs::remove_dir_all(&place).unwrap();
    }
}
