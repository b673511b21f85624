//! Whether the package is what it was meant to be. The checks of what happens when it is installed take a system that
//! runs systemd: `make deb-test`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::binary;
use crate::root;
use crate::run::run;

/// What the package installs, and nothing else: the mode as `tar` shows it, and the path. Directories are not listed.
const EXPECTED: &[&str] = &[
    "-rw-r--r-- etc/imara/imara.toml",
    "-rw-r--r-- lib/systemd/system/imara.service",
    "-rwxr-xr-x usr/bin/imara",
    "-rw-r--r-- usr/lib/tmpfiles.d/imara.conf",
    "-rwxr-xr-x usr/sbin/imarad",
    "-rw-r--r-- usr/share/bash-completion/completions/imara",
    "-rw-r--r-- usr/share/doc/imara/README.md",
    "-rw-r--r-- usr/share/doc/imara/SECURITY.md",
    "-rw-r--r-- usr/share/doc/imara/changelog.gz",
    "-rw-r--r-- usr/share/doc/imara/copyright",
    "-rw-r--r-- usr/share/doc/imara/docs/control.md",
    "-rw-r--r-- usr/share/doc/imara/docs/coverage.md",
    "-rw-r--r-- usr/share/doc/imara/docs/failures.md",
    "-rw-r--r-- usr/share/doc/imara/docs/kernel-differences.md",
    "-rw-r--r-- usr/share/doc/imara/docs/operation.md",
    "-rw-r--r-- usr/share/fish/vendor_completions.d/imara.fish",
    "-rw-r--r-- usr/share/man/man1/imara.1.gz",
    "-rw-r--r-- usr/share/man/man5/imara.toml.5.gz",
    "-rw-r--r-- usr/share/man/man8/imarad.8.gz",
    "-rw-r--r-- usr/share/zsh/vendor-completions/_imara",
];

/// Below this, one page for each verb of the command.
const PAGES: &str = "-rw-r--r-- usr/share/man/man1/imara-";

/// Paths of the files below `directory`, relative to it, in order.
pub(super) fn files(directory: &Path) -> Result<Vec<String>> {
    let said = run(Command::new("find").current_dir(directory).args([".", "-type", "f", "-printf", "%P\\n"]))?;
    let files: BTreeSet<String> = said.lines().map(ToOwned::to_owned).collect();
    Ok(files.into_iter().collect())
}

/// Fails at the first thing that is not as it should be. `tree` is what the package was made from.
pub(super) fn check(package: &Path, tree: &Path) -> Result<()> {
    listed(&run(Command::new("dpkg-deb").arg("--contents").arg(package))?)?;
    for script in ["postinst", "prerm", "postrm"] {
        let path = tree.join("DEBIAN").join(script);
        run(Command::new("sh").arg("-n").arg(&path))?;
    }
    let package = run(Command::new("dpkg-deb").arg("--field").arg(package))?;
    ensure!(package.starts_with("Package: imara\n"), "expected the package imara: {package}");
    options_have_their_place_in_the_manual()?;
    unit(tree)
}

/// The listing of `dpkg-deb --contents`: mode, owner, size, date, time, path.
fn listed(listing: &str) -> Result<()> {
    let mut found = BTreeSet::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [mode, owner, _, _, _, path, ..] = *words.as_slice() else { bail!("cannot read {line:?} of the contents") };
        ensure!(owner == "root/root", "{path} belongs to {owner}, expected root/root");
        let path = path.trim_start_matches("./");
        if mode.starts_with('d') {
            ensure!(mode == "drwxr-xr-x", "the directory {path} has mode {mode}, expected drwxr-xr-x");
            continue;
        }
        found.insert(format!("{mode} {path}"));
    }
    let expected: BTreeSet<String> = EXPECTED.iter().map(|line| (*line).to_owned()).collect();
    let (pages, others): (BTreeSet<_>, BTreeSet<_>) = found.into_iter().partition(|line| line.starts_with(PAGES));
    let (missing, surplus): (Vec<_>, Vec<_>) =
        (expected.difference(&others).collect(), others.difference(&expected).collect());
    ensure!(missing.is_empty() && surplus.is_empty(), "the package lacks {missing:?} and has {surplus:?} too many");
    ensure!(
        pages.iter().any(|page| page.contains("imara-label.1.gz")),
        "no page of the manual for imara label: {pages:?}"
    );
    Ok(())
}

/// The daemon's page is written by hand.
fn options_have_their_place_in_the_manual() -> Result<()> {
    let page = fs::read_to_string(root().join("packaging/imarad.8"))?.replace('\\', "");
    let help = run(Command::new(binary("imarad")).arg("--help"))?;
    let options: BTreeSet<&str> =
        help.split(|c: char| c.is_whitespace() || c == '[' || c == ']').filter(|word| word.starts_with("--")).collect();
    ensure!(options.contains("--config"), "imarad --help shows no --config: {help}");
    for option in options {
        ensure!(page.contains(option), "packaging/imarad.8 does not tell of {option}");
    }
    Ok(())
}

/// What systemd says about the unit, where there is systemd to ask: not a word.
fn unit(tree: &Path) -> Result<()> {
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no", "--root"]).arg(tree).arg("imara.service");
    let Ok(said) = verify.output() else { return Ok(()) };
    let words = String::from_utf8_lossy(&said.stderr);
    let complaint = words.lines().find(|line| line.contains("imara"));
    match complaint {
        Some(complaint) => bail!("systemd-analyze verify: {complaint}"),
        None if said.status.success() => Ok(()),
        None => Err(anyhow::anyhow!("{verify:?}: {}: {words}", said.status)).context("the unit cannot be verified"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn listing(change: impl Fn(&str) -> Option<String>) -> String {
        let mut lines = vec!["drwxr-xr-x root/root 0 2026-01-01 00:00 ./etc/".to_owned()];
        for line in EXPECTED.iter().copied().chain([&*format!("{PAGES}label.1.gz")]) {
            lines.extend(change(line));
        }
        lines.join("\n")
    }

    fn line(mode_and_path: &str) -> String {
        let (mode, path) = mode_and_path.split_once(' ').unwrap();
        format!("{mode} root/root 1 2026-01-01 00:00 ./{path}")
    }

    #[test]
    fn what_is_missing_too_much_or_has_another_mode_or_owner_is_found() {
        listed(&listing(|l| Some(line(l)))).unwrap();
        let without = listing(|l| (!l.ends_with("imarad")).then(|| line(l)));
        assert!(listed(&without).unwrap_err().to_string().contains("usr/sbin/imarad"));
        let more = listing(|l| Some(line(l))) + "\n" + &line("-rw-r--r-- usr/share/surplus");
        assert!(listed(&more).unwrap_err().to_string().contains("usr/share/surplus"));
        let writable = listing(|l| Some(line(l).replace("-rwxr-xr-x", "-rwxrwxr-x")));
        assert!(listed(&writable).is_err());
        let stranger = listing(|l| Some(line(l).replace("root/root", "me/me")));
        assert!(listed(&stranger).unwrap_err().to_string().contains("belongs to me/me"));
    }
}
