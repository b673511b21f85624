//! Writing to files that are known: each gets a new label when its writer has closed it.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags, openat};
use serde_json::Value;

use super::{Bench, Cost, Figure, compared, cost_of, in_turn, process_seconds, warm};
use crate::guard::Guard;
use crate::run::wait_until;

/// Files, each of which is written to once in a run.
const FILES: usize = 300;

const ROUNDS: usize = 9;

const LENGTH: usize = 4096;

/// How long it may take until all labels have followed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures opening, writing 4 KiB and closing; all that is done for it, in CPU time, and what the writer waits for.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let (files, twins) = (PathBuf::from("files"), PathBuf::from("twins"));
    for directory in [&files, &twins] {
        let place = bench.scratch.mount().join(directory);
        fs::create_dir(&place)?;
        for number in 0..FILES {
            fs::write(place.join(number.to_string()), [0; LENGTH])?;
        }
        bench.label(&place)?;
    }
    let (mut one, mut other) = (0, 0);
    let guarded = || {
        one += 1;
        let guard = warm::guard(bench)?;
        read_all(bench, &files)?;
        let (before, renewed) = (process_seconds(guard.id())?, renewed(&guard)?);
        let Cost { cpu, wall } = cost_of(|| write_all(bench, &files, one))?;
        until_renewed(&guard, renewed)?;
        let cpu = cpu + process_seconds(guard.id())? - before;
        guard.end()?;
        Ok(Cost { cpu, wall })
    };
    let unguarded = || {
        other += 1;
        read_all(bench, &twins)?;
        cost_of(|| write_all(bench, &twins, other))
    };
    let pairs = in_turn(ROUNDS, guarded, unguarded)?;
    let ratio = compared(&pairs, ("guarded, with the guard's CPU time", "without a guard"), FILES)?;
    let figure = |kind, value| Figure {
        what: format!("open+write+close of 4 KiB: guarded / without, {kind}"),
        value,
        goal: None,
    };
    Ok(vec![figure("CPU, with that of the new label", ratio.cpu), figure("wall of the writer", ratio.wall)])
}

/// Reads each file once: what was never read under guard is judged when it is opened for writing.
fn read_all(bench: &Bench<'_>, directory: &Path) -> Result<()> {
    let place = bench.scratch.mount().join(directory);
    for number in 0..FILES {
        fs::read(place.join(number.to_string()))?;
    }
    Ok(())
}

/// Writes something else to each file.
fn write_all(bench: &Bench<'_>, directory: &Path, turn: u8) -> Result<()> {
    let place = fs::File::open(bench.scratch.mount().join(directory))?;
    let content = [turn; LENGTH];
    for number in 0..FILES {
        let file = openat(place.as_fd(), number.to_string(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, &content)?;
    }
    Ok(())
}

/// How many labels have been renewed so far.
fn renewed(guard: &Guard) -> Result<u64> {
    let renewed = guard.status()?.pointer("/counters/renewed").and_then(Value::as_u64);
    renewed.context("the guard does not tell how many labels were renewed")
}

fn until_renewed(guard: &Guard, before: u64) -> Result<()> {
    let all = before + u64::try_from(FILES)?;
    let done = wait_until(PATIENCE, || Ok((renewed(guard)? >= all).then_some(())))?;
    done.context("not all labels were renewed after their writers had closed")
}
