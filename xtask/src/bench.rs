//! `make bench`: Imara beside other programs and beside its own absence, in one run, as ratios.
//!
//! Both of what is compared take turns, so that a machine that changes its speed changes it for both; the figure is the
//! median of the ratios of neighbouring runs. On a machine that is busy with other things wall time says little: where
//! CPU time tells the same, that is what is judged.

mod build;
mod exec;
mod first;
mod label;
mod memory;
mod minimal;
mod new;
mod open;
mod parallel;
mod warm;
mod write;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use rustix::time::{ClockId, clock_gettime};

use crate::interrupt;
use crate::print::print_line;
use crate::run::run;
use crate::scratch::{Scratch, binaries, own_mounts, root_only};

/// A part's name, what it compares, and its code.
type Part = (&'static str, &'static str, fn(&Bench<'_>) -> Result<Vec<Figure>>);

const PARTS: &[Part] = &[
    ("label", "label a tree, beside evmctl", label::measure),
    ("open", "open and close a file that is known, beside no guard", open::measure),
    ("first", "open a file for the first time, beside a guard that looks at nothing, and sha256sum", first::measure),
    ("exec", "execute a small program, beside no guard", exec::measure),
    ("parallel", "four who open files that are known, beside no guard", parallel::measure),
    ("write", "write to files that are known, so that they get new labels, beside no guard", write::measure),
    ("new", "make new files, and write over old ones, with the journal and without", new::measure),
    ("build", "build a crate in a guarded tree, beside no guard", build::measure),
    ("memory", "the memory of a guard whose million files have been opened", memory::measure),
];

/// What all parts have.
#[derive(Debug)]
struct Bench<'s> {
    /// The release binaries.
    binaries: PathBuf,
    scratch: &'s Scratch,
    processors: usize,
    /// The load average before anything was done.
    load: f64,
}

impl Bench<'_> {
    /// Labels a file or all files of a directory.
    fn label(&self, path: &std::path::Path) -> Result<()> {
        run(Command::new(self.binaries.join("imara")).args(["label", "--hash", "sha256"]).arg(path))?;
        Ok(())
    }
}

/// One run, in seconds; or two, as the ratio of the first to the other.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: f64,
    wall: f64,
}

/// One program's run of a pair.
type Pick = fn(&(Cost, Cost)) -> Cost;

/// Something that was measured.
#[derive(Clone, Debug)]
struct Figure {
    what: String,
    value: f64,
    goal: Option<Goal>,
}

#[derive(Clone, Copy, Debug)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Figure {
    /// Whether the goal is missed; what is no number misses its goal.
    fn is_missed(&self) -> bool {
        match self.goal {
            None => false,
            Some(Goal::AtMost(limit)) => !matches!(self.value.partial_cmp(&limit), Some(ord) if ord.is_le()),
            Some(Goal::AtLeast(limit)) => !matches!(self.value.partial_cmp(&limit), Some(ord) if ord.is_ge()),
        }
    }

    /// What was compared, what came out, and what should have.
    fn line(&self) -> String {
        let Self { what, value, .. } = self;
        let word = if self.is_missed() { "MISSED" } else { "met" };
        match self.goal {
            None => format!("{what:<66} {value:>7.3}"),
            Some(Goal::AtMost(limit)) => format!("{what:<66} {value:>7.3}   at most {limit:.2}: {word}"),
            Some(Goal::AtLeast(limit)) => format!("{what:<66} {value:>7.3}   at least {limit:.2}: {word}"),
        }
    }
}

/// Runs the benchmarks that are named, or all.
pub(crate) fn run_bench(names: &[String]) -> Result<()> {
    if let [word, mount] = names
        && word == minimal::WORD
    {
        return minimal::answer(mount.as_ref());
    }
    if let Some(unknown) = names.iter().find(|name| PARTS.iter().all(|(known, ..)| known != name)) {
        let known: Vec<&str> = PARTS.iter().map(|(name, ..)| *name).collect();
        bail!("no part is called \"{unknown}\" (expected {})", known.join(", "));
    }
    root_only("bench")?;
    let binaries = binaries()?;
    own_mounts()?;
    interrupt::watch()?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut figures = Vec::new();
    for (name, what, part) in PARTS.iter().filter(|(name, ..)| names.is_empty() || names.iter().any(|n| n == name)) {
        let load = load_average(&fs::read_to_string("/proc/loadavg")?)?;
        print_line!("━━ {name}: {what} (load average {load:.2} on {processors} processors)")?;
        let binaries = binaries.clone();
        let found = Scratch::with("bench", 6144, |scratch| part(&Bench { binaries, scratch, processors, load }))
            .with_context(|| format!("part {name}"))?;
        for figure in &found {
            print_line!("{}", figure.line())?;
        }
        figures.extend(found);
    }
    let missed: Vec<String> = figures.iter().filter(|figure| figure.is_missed()).map(Figure::line).collect();
    ensure!(missed.is_empty(), "goals missed:\n{}", missed.join("\n"));
    Ok(())
}

/// Lets two things take turns: once to warm both up, then so many times.
fn in_turn(
    rounds: usize,
    mut one: impl FnMut() -> Result<Cost>,
    mut other: impl FnMut() -> Result<Cost>,
) -> Result<Vec<(Cost, Cost)>> {
    let mut pairs = Vec::new();
    for round in 0..=rounds {
        interrupt::check()?;
        let pair = (one()?, other()?);
        if round > 0 {
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

/// Prints what both cost, in microseconds each time of `times`; returns the medians of the ratios of the pairs.
fn compared(pairs: &[(Cost, Cost)], names: (&str, &str), times: usize) -> Result<Cost> {
    let scale = 1e6 / f64::from(u32::try_from(times)?);
    let both: [(&str, Pick); 2] = [(names.0, |pair| pair.0), (names.1, |pair| pair.1)];
    for (name, pick) in both {
        let (cpu, wall) = (median(pairs, |pair| pick(pair).cpu), median(pairs, |pair| pick(pair).wall));
        print_line!("  {name:<50} {:>10.2} µs CPU {:>10.2} µs wall", cpu * scale, wall * scale)?;
    }
    let ratio = |of: fn(&Cost) -> f64| median(pairs, |(one, other)| of(one) / of(other));
    Ok(Cost { cpu: ratio(|cost| cost.cpu), wall: ratio(|cost| cost.wall) })
}

/// What a program and all its children cost.
fn cost(command: &mut Command) -> Result<Cost> {
    let (before, begin) = (children()?, Instant::now());
    run(command)?;
    let wall = begin.elapsed().as_secs_f64();
    Ok(Cost { cpu: children()? - before, wall })
}

/// CPU seconds of all children that have ended.
fn children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
    Ok(f64::from(i32::try_from(microseconds)?) / 1e6)
}

/// What this thread does costs, without its children.
fn cost_of(work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (cpu, begin) = (thread_seconds(), Instant::now());
    work()?;
    let wall = begin.elapsed().as_secs_f64();
    Ok(Cost { cpu: thread_seconds() - cpu, wall })
}

/// CPU seconds of this thread.
fn thread_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default().as_secs_f64()
}

/// CPU seconds of all threads of a process, those that have ended too.
fn process_seconds(process: u32) -> Result<f64> {
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(i32::try_from(process)?))?;
    let time = nix::time::clock_gettime(clock)?;
    Ok(std::time::Duration::from(time).as_secs_f64())
}

/// The first figure of `/proc/loadavg`: how many tasks wanted to run or waited for a disk, over the last minute.
fn load_average(text: &str) -> Result<f64> {
    let figure = text.split(' ').next().unwrap_or_default();
    figure.parse().with_context(|| format!("/proc/loadavg begins with {figure:?}, expected a number"))
}

fn median<T>(items: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut figures: Vec<f64> = items.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_or_missed() {
        for (value, goal, missed) in [
            (1.15, Some(Goal::AtMost(1.15)), false),
            (1.151, Some(Goal::AtMost(1.15)), true),
            (0.95, Some(Goal::AtLeast(0.95)), false),
            (0.949, Some(Goal::AtLeast(0.95)), true),
            (f64::NAN, Some(Goal::AtMost(1.0)), true),
            (f64::NAN, Some(Goal::AtLeast(1.0)), true),
            (9.0, None, false),
        ] {
            let figure = Figure { what: "it".into(), value, goal };
            assert_eq!(figure.is_missed(), missed, "{}", figure.line());
            assert_eq!(figure.line().contains("MISSED"), missed, "{}", figure.line());
        }
    }

    #[test]
    fn the_load_average_is_the_first_figure() {
        assert!((load_average("11.25 24.06 31.45 3/512 4242\n").unwrap() - 11.25).abs() < 1e-9);
        assert!(load_average("").is_err());
        assert!(load_average("busy 1 2").is_err());
    }

    #[test]
    fn the_ratio_is_that_of_the_middle_pair() {
        let pair = |one, other| (Cost { cpu: one, wall: one }, Cost { cpu: other, wall: other });
        let pairs = [pair(1.0, 2.0), pair(30.0, 10.0), pair(4.0, 4.0)];
        let ratio = compared(&pairs, ("one", "other"), 1).unwrap();
        assert!((ratio.cpu - 1.0).abs() < 1e-9 && (ratio.wall - 1.0).abs() < 1e-9);
    }
}
