//! `make bench`: Imara beside other programs, in one run, as ratios.
//!
//! The two programs take turns, so that a machine that changes its speed changes it for both; the figure is the median
//! of the ratios of neighbouring runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::interrupt;
use crate::scratch::{Budget, Scratch, binaries, copy_tree, root_only, run};

/// Files in the tree at least.
const FILES: usize = 20_000;

/// Runs of each program that count.
const ROUNDS: usize = 7;

/// What the figures are to be at most: CPU time, wall time.
const GOAL: (f64, f64) = (1.0, 0.7);

/// One run: seconds.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu: f64,
    wall: f64,
}

/// Runs the benchmarks.
pub(crate) fn run_bench(_: &[String]) -> Result<()> {
    root_only("bench")?;
    interrupt::watch()?;
    let scratch = Scratch::new("bench", 6144)?;
    let tree = scratch.mount().join("tree");
    let (files, bytes) = furnish(&tree)?;
    println!("label a tree: {files} real files, {} MB, ext4, in memory; {ROUNDS} rounds in turn", bytes >> 20);
    let imara = binaries()?.join("imara");
    let mut pairs = Vec::new();
    for round in 0..=ROUNDS {
        interrupt::check()?;
        let ours = labelled(&tree, Command::new(&imara).args(["label", "--hash", "sha256"]))?;
        let theirs = labelled(&tree, Command::new("evmctl").args(["ima_hash", "-r", "-a", "sha256"]))?;
        // The first round warms both up.
        if round > 0 {
            pairs.push((ours, theirs));
        }
    }
    println!("{:<28} {:>8} {:>8}", "median seconds", "CPU", "wall");
    let row = |name: &str, of: &dyn Fn(&(Cost, Cost)) -> Cost| {
        let (cpu, wall) = (median(&pairs, |pair| of(pair).cpu), median(&pairs, |pair| of(pair).wall));
        println!("{name:<28} {cpu:>8.2} {wall:>8.2}");
    };
    row("imara label", &|pair| pair.0);
    row("evmctl ima_hash -r", &|pair| pair.1);
    let cpu = median(&pairs, |(ours, theirs)| ours.cpu / theirs.cpu);
    let wall = median(&pairs, |(ours, theirs)| ours.wall / theirs.wall);
    println!("{:<28} {cpu:>8.2} {wall:>8.2}", "ratio (median of the pairs)");
    let word = |held| if held { "held" } else { "NOT held" };
    println!(
        "{:<28} {:>8.2} {:>8.2}   CPU {}, wall {} ({} processors)",
        "goal, at most",
        GOAL.0,
        GOAL.1,
        word(cpu <= GOAL.0),
        word(wall <= GOAL.1),
        std::thread::available_parallelism().map_or(1, usize::from)
    );
    Ok(())
}

/// Copies real files until there are enough; a small host is copied more than once.
fn furnish(tree: &Path) -> Result<(usize, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for turn in 0.. {
        let before = files;
        for source in ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share"] {
            interrupt::check()?;
            let budget = Budget { files: (FILES + 2000_usize).saturating_sub(files).min(7000), bytes: 500 << 20 };
            let copied = copy_tree(Path::new(source), &tree.join(format!("{turn}{source}")), budget)?;
            files += copied.files;
            bytes += copied.bytes;
        }
        if files >= FILES {
            break;
        }
        ensure!(files > before, "no files could be copied from /usr");
    }
    Ok((files, bytes))
}

/// The cost of labelling the whole tree, which has no labels when it begins and all of them when it ends.
fn labelled(tree: &Path, command: &mut Command) -> Result<Cost> {
    strip(tree)?;
    let cost = cost(command.arg(tree))?;
    let sample = first_file(tree)?;
    run(Command::new("getfattr").args(["-n", "security.ima", "--only-values"]).arg(&sample).stdout(Stdio::null()))
        .with_context(|| format!("{command:?} left {} without a label", sample.display()))?;
    Ok(cost)
}

fn cost(command: &mut Command) -> Result<Cost> {
    let cpu = || -> Result<f64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let microseconds = (usage.user_time() + usage.system_time()).num_microseconds();
        Ok(f64::from(i32::try_from(microseconds)?) / 1e6)
    };
    let (before, begin) = (cpu()?, Instant::now());
    run(command)?;
    let wall = begin.elapsed().as_secs_f64();
    Ok(Cost { cpu: cpu()? - before, wall })
}

/// Removes every label, and waits until the disk is quiet.
fn strip(tree: &Path) -> Result<()> {
    let command = r#"find "$0" -type f -print0 | xargs -0 setfattr -h -x security.ima 2>/dev/null; sync"#;
    run(Command::new("sh").args(["-c", command]).arg(tree))?;
    Ok(())
}

fn first_file(tree: &Path) -> Result<PathBuf> {
    let mut here = tree.to_owned();
    loop {
        let mut entries: Vec<_> = fs::read_dir(&here)?.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        if let Some(file) = entries.iter().find(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            return Ok(file.path());
        }
        let directory = entries.iter().find(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        here = directory.context("the tree has no files")?.path();
    }
}

fn median<T>(items: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut figures: Vec<f64> = items.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
