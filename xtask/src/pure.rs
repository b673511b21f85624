//! The `pure` stage: `crates/integrity/clippy.toml` refuses what it says it refuses.
//!
//! Clippy only warns of a path in that file that leads nowhere, and says nothing of a list that it does not look at. So
//! a package is made of [`REFUSED`], code that does all that the core must not do, and clippy is asked what is wrong
//! with it: it has to name every entry.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::ci::cargo_command;
use crate::root;

/// What must not be in the core.
const REFUSED: &str = include_str!("pure/refused.rs");

const MANIFEST: &str = "[package]\nname = \"refused\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";

/// Fails if an entry does not refuse anything.
pub(crate) fn run() -> Result<()> {
    let config = fs::read_to_string(root().join("crates/integrity/clippy.toml"))?;
    let unproven = unproven(&config, &refusals(&config)?);
    ensure!(
        unproven.is_empty(),
        "crates/integrity/clippy.toml: nothing in xtask/src/pure/refused.rs is refused because of {} (fix: mend the \
         path, or add a line that it refuses)",
        unproven.join(", ")
    );
    Ok(())
}

/// The paths in a `clippy.toml` that are not among `refused`.
fn unproven<'c>(config: &'c str, refused: &BTreeSet<String>) -> Vec<&'c str> {
    let paths = config.split("path = \"").skip(1).filter_map(|rest| rest.split('"').next());
    paths.filter(|path| !refused.contains(*path)).collect()
}

/// The paths that clippy names when it judges [`REFUSED`] with this configuration.
fn refusals(config: &str) -> Result<BTreeSet<String>> {
    let package = root().join("target/pure");
    fs::create_dir_all(package.join("src"))?;
    for (name, text) in [("Cargo.toml", MANIFEST), ("clippy.toml", config), ("src/lib.rs", REFUSED)] {
        fs::write(package.join(name), text).with_context(|| format!("cannot write {name} of a package"))?;
    }
    let mut command = cargo_command();
    command.current_dir(&package).args(["clippy", "--offline", "--quiet", "--message-format=json"]);
    command.env("CARGO_TARGET_DIR", package.join("target")).env("CLIPPY_CONF_DIR", &package).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    // Nothing of it is to be found in a cache: the configuration is no file that cargo knows of.
    fs::remove_dir_all(&package).with_context(|| format!("cannot remove {}", package.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().filter_map(|line| serde_json::from_str(line).ok()).filter_map(|said| refusal(&said)).collect())
}

/// The path in ``use of a disallowed method `std::fs::read` ``.
fn refusal(said: &Value) -> Option<String> {
    let text = said.pointer("/message/message")?.as_str()?;
    let (_, rest) = text.strip_prefix("use of a disallowed ")?.split_once('`')?;
    Some(rest.split_once('`')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_clippy_does_not_name_is_found() {
        let config = "disallowed-types = [{ path = \"std::fs::File\", reason = \"r\" }]\n\
                      disallowed-methods = [\n    { path = \"std::fs::raed\", reason = \"r\" },\n]\n";
        let text = "use of a disallowed type `std::fs::File`";
        let said = serde_json::json!({ "reason": "compiler-message", "message": { "message": text } });
        assert_eq!(refusal(&said).as_deref(), Some("std::fs::File"));
        assert_eq!(unproven(config, &BTreeSet::from(["std::fs::File".to_owned()])), ["std::fs::raed"]);
        assert_eq!(refusal(&serde_json::json!({ "message": { "message": "unused import: `fs`" } })), None);
    }
}
