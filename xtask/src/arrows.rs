//! The `arrows` stage: which crate may use which, as `docs/architecture.md` draws it, that no two rooms of the core
//! need each other, and that each room of core and daemon has a rule on that page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::ci::cargo_command;
use crate::root;

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
    let mut rooms = Rooms::new();
    read_rooms(&root().join("crates/integrity/src"), None, &mut rooms)?;
    ensure!(rooms.len() > 1, "no rooms found in crates/integrity/src");
    let circle = circle(rooms);
    ensure!(circle.is_empty(), "crates/integrity/src: these rooms need each other: {}", circle.join(", "));
    rules()
}

/// Fails if a room of core or daemon has no row in the table of rooms, or a row is about a room that is not there.
fn rules() -> Result<()> {
    let rows = rows(&fs::read_to_string(root().join("docs/architecture.md"))?);
    ensure!(rows.len() > 10, "docs/architecture.md has no table of rooms");
    let place =
        |row: &String| row.split_once('/').map(|(name, room)| root().join("crates").join(name).join("src").join(room));
    let gone: Vec<_> = rows.iter().filter(|row| !place(row).is_some_and(|path| path.exists())).cloned().collect();
    ensure!(gone.is_empty(), "docs/architecture.md has rules for rooms that are not there: {}", gone.join(", "));
    let mut without = Vec::new();
    for name in ["integrity", "imarad"] {
        let mut rooms = Rooms::new();
        read_rooms(&root().join("crates").join(name).join("src"), None, &mut rooms)?;
        let rooms = rooms.into_keys().filter(|room| room != "main").map(|room| format!("{name}/{room}"));
        without.extend(rooms.filter(|room| ![".rs", "/"].iter().any(|end| rows.contains(&format!("{room}{end}")))));
    }
    ensure!(without.is_empty(), "docs/architecture.md has no rule for {}", without.join(", "));
    Ok(())
}

/// The rooms that rows of the table are about, as `imarad/pool.rs`. The first one of a row names the crate, for all of it.
fn rows(page: &str) -> BTreeSet<String> {
    let cells = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let rooms = cells.flat_map(|cell| {
        let name = cell.split('/').next().unwrap_or_default();
        let rooms = cell.split(", ").map(|room| room.trim_matches('`'));
        rooms.map(move |room| match room.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')) {
            true => room.to_owned(),
            false => format!("{name}/{room}"),
        })
    });
    rooms.filter(|room| ["integrity/", "linux/", "imarad/"].iter().any(|name| room.starts_with(name))).collect()
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

/// A room (module at the top of a crate) and the rooms that it uses.
type Rooms = BTreeMap<String, BTreeSet<String>>;

/// Takes in the files below `directory`, all of which belong to `room`, or are rooms of their own. Tests may use what
/// they like.
fn read_rooms(directory: &Path, room: Option<&str>, rooms: &mut Rooms) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let room = room.unwrap_or(&name);
        if path.is_dir() {
            read_rooms(&path, Some(room), rooms)?;
        } else if name != "tests" && room != "lib" {
            let text = fs::read_to_string(&path)?;
            rooms.entry(room.to_owned()).or_default().extend(used(&text).filter(|used| used != room));
        }
    }
    Ok(())
}

/// The rooms that a file names in its code: what follows `crate::`.
fn used(text: &str) -> impl Iterator<Item = String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines();
    let code = code.filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect())
}

/// The rooms that are left when all have been taken away, again and again, that use none or are used by none of the rest.
fn circle(mut rooms: Rooms) -> Vec<String> {
    loop {
        let before = rooms.len();
        let used: BTreeSet<String> = rooms.values().flatten().cloned().collect();
        let names: BTreeSet<String> = rooms.keys().cloned().collect();
        rooms.retain(|name, uses| used.contains(name) && uses.iter().any(|used| names.contains(used)));
        if rooms.len() == before {
            return rooms.into_keys().collect();
        }
    }
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

    #[test]
    fn a_row_may_be_about_several_rooms_of_a_crate() {
        let page = "| room | its rule |\n| `imarad/pool.rs`, `worker.rs`, `pool/` | They wait. |\n| `linux/sys.rs` | `unsafe`, all of it. |\n\
                    | `ima/ima_main.c` | `integrity/check.rs` |\n`imarad/no.rs`";
        let expected = ["imarad/pool.rs", "imarad/worker.rs", "imarad/pool/", "linux/sys.rs"].map(ToOwned::to_owned);
        assert_eq!(rows(page), BTreeSet::from(expected));
    }

    #[test]
    fn rooms_that_need_each_other_are_found() {
        let rooms = |list: &[(&str, &[&str])]| -> Rooms {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            list.iter().map(|(name, uses)| ((*name).to_owned(), names(uses))).collect()
        };
        assert_eq!(circle(rooms(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[]), ("d", &["a"])])), [""; 0]);
        assert_eq!(circle(rooms(&[("a", &["b"]), ("b", &["c"]), ("c", &["b", "d"]), ("d", &[])])), ["b", "c"]);
        let text = "//! [`crate::no`]\nuse crate::label::{self, X};\nfn f() -> crate::codec::R {}\n#[cfg(test)]\nuse crate::no;";
        assert_eq!(used(text).collect::<Vec<_>>(), ["label", "codec"]);
    }
}
