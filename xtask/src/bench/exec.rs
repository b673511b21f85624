//! Executing a small static program that is known.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Bench, Cost, Figure, children, compared, cost_of, in_turn, warm};
use crate::race::program;

/// Executions of a run.
const TIMES: usize = 400;

const ROUNDS: usize = 15;

/// Measures starting the program and waiting for its end.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mount = bench.scratch.mount();
    let (file, twin) = (mount.join("usr/bin/program"), mount.join("usr/bin/twin"));
    fs::create_dir_all(mount.join("usr/bin"))?;
    for path in [&file, &twin] {
        fs::write(path, program::good())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        bench.label(path)?;
    }
    let guarded = || {
        let guard = warm::guard(bench)?;
        warm::until_known(&guard, || execute(&file, 1))?;
        let cost = warm::unasked(&guard, || executed(&file))?;
        guard.end()?;
        Ok(cost)
    };
    let pairs = in_turn(ROUNDS, guarded, || executed(&twin))?;
    let ratio = compared(&pairs, ("guarded", "without a guard"), TIMES)?;
    let figure = |kind, value| Figure {
        what: format!("execve of a known program: guarded / without, {kind}"),
        value,
        goal: None,
    };
    Ok(vec![figure("CPU", ratio.cpu), figure("wall", ratio.wall)])
}

/// The cost of one run: ours, who start the program, and the program's.
fn executed(path: &Path) -> Result<Cost> {
    let before = children()?;
    let Cost { cpu, wall } = cost_of(|| execute(path, TIMES))?;
    Ok(Cost { cpu: cpu + children()? - before, wall })
}

fn execute(path: &Path, times: usize) -> Result<()> {
    for _ in 0..times {
        let status = Command::new(path).status()?;
        ensure!(status.code() == Some(program::GOOD), "{} ended with {status}", path.display());
    }
    Ok(())
}
