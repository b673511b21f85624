//! Building a crate, which reads and writes thousands of files, in a guarded tree.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use super::{Bench, Cost, Figure, Goal, compared, cost, in_turn, process_seconds, warm};
use crate::root;
use crate::scratch::{Budget, copy_one};

/// What is built, with all that it depends on.
const CRATE: &str = "imara-integrity";

const ROUNDS: usize = 3;

const GOAL: Goal = Goal::AtMost(1.05);

/// What of this repository is needed.
const SOURCES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "crates", "xtask", "scripts"];

/// Measures the whole: CPU time with that of the guard, and wall time.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let (tree, twin) = (bench.scratch.mount().join("tree"), bench.scratch.mount().join("twin"));
    for place in [&tree, &twin] {
        for source in SOURCES {
            let copied =
                copy_one(&root().join(source), &place.join(source), Budget { files: 100_000, bytes: 1 << 30 })?;
            ensure!(copied.files > 0, "{} could not be copied", root().join(source).display());
        }
        bench.label(place)?;
    }
    let guarded = || {
        clean(&tree)?;
        let guard = warm::guard(bench)?;
        let before = process_seconds(guard.id())?;
        let Cost { cpu, wall } = built(&tree)?;
        let cpu = cpu + process_seconds(guard.id())? - before;
        let denied = guard.status()?.pointer("/counters/denied").and_then(serde_json::Value::as_u64);
        ensure!(denied == Some(0), "{denied:?} files were denied; {}", guard.last_words());
        guard.end()?;
        Ok(Cost { cpu, wall })
    };
    let unguarded = || {
        clean(&twin)?;
        built(&twin)
    };
    let pairs = in_turn(ROUNDS, guarded, unguarded)?;
    let ratio = compared(&pairs, ("guarded, with the guard's CPU time", "without a guard"), 1)?;
    let figure =
        |kind, value, goal| Figure { what: format!("cargo build of a crate: guarded / without, {kind}"), value, goal };
    Ok(vec![figure("CPU", ratio.cpu, Some(GOAL)), figure("wall", ratio.wall, None)])
}

/// Builds as if nothing had been built before.
fn built(tree: &Path) -> Result<Cost> {
    let mut command = Command::new(tree.join("scripts/cargo"));
    command.args(["build", "--quiet", "--offline", "--package", CRATE, "--target-dir"]).arg(target(tree));
    // As who builds by hand: not as the cargo does that runs this.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_") && name != "CARGO_HOME") {
            command.env_remove(name);
        }
    }
    cost(command.current_dir(tree)).context("the crate could not be built")
}

fn clean(tree: &Path) -> Result<()> {
    match fs::remove_dir_all(target(tree)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn target(tree: &Path) -> PathBuf {
    tree.join("target")
}
