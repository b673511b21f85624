//! Opening and closing a file that the guard knows: the kernel answers for it.
//!
//! Its twin, with which it is compared, was never opened under guard: an inode that once had a lease is a little slower for
//! the rest of its life.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::chown;

use anyhow::Result;

use super::warm::{self, open_and_close};
use super::{Bench, Figure, Goal, compared, cost_of, in_turn};

/// Opens of a run.
const TIMES: usize = 20_000;

const ROUNDS: usize = 15;

const GOAL: Goal = Goal::AtMost(1.15);

/// Whose files no rule asks about.
const STRANGER: u32 = 65534;

/// What is opened, and whether a rule asks about it. Half of all files that Debian packages install are seven names deep
/// or deeper.
const FILES: [(&str, &str, bool); 3] = [
    ("known, 7 names deep", "usr/lib/x86_64-linux-gnu/perl/5.36/auto/file", true),
    ("known, in the root directory", "file", true),
    ("unasked, 7 names deep", "usr/lib/x86_64-linux-gnu/perl/5.36/auto/unasked", false),
];

/// Measures all files.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (what, name, known) in FILES {
        let twin = format!("{name}-twin");
        for name in [name, &twin] {
            warm::make(bench, name)?;
            if !known {
                chown(bench.scratch.mount().join(name), Some(STRANGER), Some(STRANGER))?;
            }
        }
        let top = warm::top(bench)?;
        let open = |name: &str, times| open_and_close(top.as_fd(), name, times);
        let guarded = || {
            let guard = warm::guard(bench)?;
            warm::until_known(&guard, || open(name, 1))?;
            let cost = warm::unasked(&guard, || cost_of(|| open(name, TIMES)))?;
            guard.end()?;
            Ok(cost)
        };
        let pairs = in_turn(ROUNDS, guarded, || cost_of(|| open(&twin, TIMES)))?;
        let ratio = compared(&pairs, (&format!("{what}, guarded"), "without a guard"), TIMES)?;
        let figure =
            |kind, value, goal| Figure { what: format!("open+close, {what}: guarded / without, {kind}"), value, goal };
        figures.push(figure("CPU", ratio.cpu, known.then_some(GOAL)));
        figures.push(figure("wall", ratio.wall, None));
        for name in [name, &twin] {
            fs::remove_file(bench.scratch.mount().join(name))?;
        }
    }
    Ok(figures)
}
