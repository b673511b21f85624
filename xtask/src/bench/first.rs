//! The first open of a file whose content is in memory, and which the guard has never seen.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use rustix::fs::{Mode, OFlags, openat};

use super::minimal::Minimal;
use super::{Bench, Cost, Figure, Goal, compared, cost, cost_of, median, process_seconds, thread_seconds, warm};
use crate::guard::Guard;
use crate::interrupt;

const ROUNDS: usize = 11;

/// Sizes: what they are called, bytes, files, and whether asking is what the goal is about, or hashing.
const SIZES: [Size; 4] = [
    Size { name: "4 KiB", bytes: 4 << 10, files: 1000, goal: Some(Goal::AtMost(1.5)), hashing: false },
    Size { name: "64 KiB", bytes: 64 << 10, files: 200, goal: None, hashing: false },
    Size { name: "1 MiB", bytes: 1 << 20, files: 32, goal: None, hashing: true },
    Size { name: "100 MiB", bytes: 100 << 20, files: 1, goal: None, hashing: true },
];

#[derive(Clone, Copy, Debug)]
struct Size {
    name: &'static str,
    bytes: usize,
    files: usize,
    goal: Option<Goal>,
    hashing: bool,
}

/// One way of opening all files of a size: the whole cost, and the median of the single ones in wall time.
#[derive(Clone, Copy, Debug)]
struct Opened {
    cost: Cost,
    middle: f64,
}

/// Measures all sizes.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for size in SIZES {
        let directory = PathBuf::from(size.name.replace(' ', "-"));
        furnish(bench, &directory, size)?;
        let mut rounds = Vec::new();
        for round in 0..=ROUNDS {
            interrupt::check()?;
            let guard = warm::guard(bench)?;
            let ours = watched(guard.id(), || open_all(bench, &directory, size))?;
            ensure_asked(&guard, size)?;
            guard.end()?;
            let minimal = Minimal::start(&bench.scratch.mount())?;
            let least = watched(minimal.id(), || open_all(bench, &directory, size))?;
            drop(minimal);
            let summed = if size.hashing { Some(summed(bench, &directory)?) } else { None };
            if round > 0 {
                rounds.push((ours, least, summed));
            }
        }
        let pairs: Vec<_> = rounds.iter().map(|(ours, least, _)| (ours.cost, least.cost)).collect();
        let ratio = compared(&pairs, (&format!("{}, guarded", size.name), "by a minimal guard"), size.files)?;
        let middle = median(&rounds, |(ours, least, _)| ours.middle / least.middle);
        let figure = |than: &str, kind, value, goal| Figure {
            what: format!("first open of {}: guarded / {than}, {kind}", size.name),
            value,
            goal,
        };
        figures.push(figure("minimal", "CPU", ratio.cpu, size.goal));
        figures.push(figure("minimal", "wall of the middle one", middle, None));
        let pairs: Vec<_> = rounds.iter().filter_map(|(ours, _, summed)| Some((ours.cost, (*summed)?))).collect();
        if !pairs.is_empty() {
            let ratio = compared(&pairs, (&format!("{}, guarded", size.name), "sha256sum"), size.files)?;
            figures.push(figure("sha256sum", "CPU", ratio.cpu, None));
            figures.push(figure("sha256sum", "wall", ratio.wall, None));
        }
        fs::remove_dir_all(bench.scratch.mount().join(&directory))?;
    }
    Ok(figures)
}

/// Makes the files of one size, in memory and on the disk.
fn furnish(bench: &Bench<'_>, directory: &Path, size: Size) -> Result<()> {
    let place = bench.scratch.mount().join(directory);
    fs::create_dir_all(&place)?;
    let mut content = vec![0x5a; size.bytes];
    for number in 0..size.files {
        if let Some(start) = content.first_chunk_mut() {
            *start = number.to_le_bytes();
        }
        fs::write(place.join(number.to_string()), &content)?;
    }
    bench.label(&place)?;
    rustix::fs::syncfs(fs::File::open(&place)?)?;
    Ok(())
}

/// Opens each file once.
fn open_all(bench: &Bench<'_>, directory: &Path, size: Size) -> Result<Opened> {
    let place = fs::File::open(bench.scratch.mount().join(directory))?;
    let mut times = Vec::with_capacity(size.files);
    let cost = cost_of(|| {
        for number in 0..size.files {
            let name = std::ffi::CString::new(number.to_string())?;
            let begin = Instant::now();
            drop(openat(place.as_fd(), name.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
            times.push(begin.elapsed().as_secs_f64());
        }
        Ok(())
    })?;
    Ok(Opened { cost, middle: median(&times, |time| *time) })
}

/// The same, with the CPU time of the process that is asked.
fn watched(process: u32, work: impl FnOnce() -> Result<Opened>) -> Result<Opened> {
    let (before, own) = (process_seconds(process)?, thread_seconds());
    let Opened { cost, middle } = work()?;
    let own = thread_seconds() - own;
    let cpu = own + process_seconds(process)? - before;
    Ok(Opened { cost: Cost { cpu, wall: cost.wall }, middle })
}

/// Each file was asked about, once.
fn ensure_asked(guard: &Guard, size: Size) -> Result<()> {
    let (asked, files) = (warm::asked(guard)?, u64::try_from(size.files)?);
    // The directory is a question too.
    ensure!((files..=files + 2).contains(&asked), "the guard was asked {asked} times about {files} files");
    Ok(())
}

/// What `sha256sum` takes for the same files.
fn summed(bench: &Bench<'_>, directory: &Path) -> Result<Cost> {
    let place = bench.scratch.mount().join(directory);
    let files = fs::read_dir(&place)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    cost(Command::new("sha256sum").args(files))
}
