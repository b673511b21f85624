//! Four who open known files at once, each his own, in one directory.

use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Result, anyhow};

use super::warm::{self, open_and_close};
use super::{Bench, Cost, Figure, Goal, compared, in_turn, thread_seconds};

const OPENERS: usize = 4;

/// Opens of each, in a run.
const TIMES: usize = 20_000;

const ROUNDS: usize = 15;

const GOAL: Goal = Goal::AtLeast(0.95);

const DIRECTORY: &str = "usr/lib/x86_64-linux-gnu/perl/5.36/auto";

/// Measures throughput: opens a second of CPU time, and of wall time.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let names =
        |kind: &str| -> Vec<String> { (0..OPENERS).map(|number| format!("{DIRECTORY}/{kind}-{number}")).collect() };
    let (files, twins) = (names("file"), names("twin"));
    files.iter().chain(&twins).try_for_each(|name| warm::make(bench, name))?;
    let top = warm::top(bench)?;
    let open = |names: &[String], times| together(names, |name| open_and_close(top.as_fd(), name, times));
    let guarded = || {
        let guard = warm::guard(bench)?;
        warm::until_known(&guard, || files.iter().try_for_each(|name| open_and_close(top.as_fd(), name, 1)))?;
        let cost = warm::unasked(&guard, || open(&files, TIMES))?;
        guard.end()?;
        Ok(cost)
    };
    let pairs = in_turn(ROUNDS, guarded, || open(&twins, TIMES))?;
    let ratio = compared(&pairs, ("guarded", "without a guard"), TIMES * OPENERS)?;
    let figure = |kind, value: f64, goal| Figure {
        what: format!("throughput of {OPENERS} openers, guarded / without, by {kind} time"),
        value: 1.0 / value,
        goal,
    };
    Ok(vec![figure("CPU", ratio.cpu, Some(GOAL)), figure("wall", ratio.wall, None)])
}

/// What it costs if each name has a thread of its own.
fn together(names: &[String], work: impl Fn(&str) -> Result<()> + Sync) -> Result<Cost> {
    let begin = Instant::now();
    let costs = std::thread::scope(|scope| {
        let one = |name| {
            let work = &work;
            scope.spawn(move || {
                let before = thread_seconds();
                work(name).map(|()| thread_seconds() - before)
            })
        };
        let threads: Vec<_> = names.iter().map(|name| one(name.as_str())).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("an opener has panicked"))))
            .sum::<Result<f64>>()
    });
    Ok(Cost { cpu: costs?, wall: begin.elapsed().as_secs_f64() })
}
