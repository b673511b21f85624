//! What the journal costs whoever makes new files, or writes over old ones: one who does so, and eight at the same time.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{Mode, OFlags, openat};
use serde_json::Value;

use super::{Bench, Figure, median, warm};
use crate::guard::Guard;
use crate::interrupt;
use crate::print::print_line;
use crate::run::wait_until;

/// Files of a run.
const FILES: usize = 800;

const ROUNDS: usize = 5;

const LENGTH: usize = 4096;

/// How long it may take until all labels have followed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What there is beside the writers: no guard, or one with this journal.
const GUARDS: [Option<&str>; 4] = [None, Some("off"), Some("labelled"), Some("all")];

/// Seconds that the writers took, in the order of [`GUARDS`].
type Round = [f64; 4];

/// Whether files are made or written over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    New,
    Old,
}

/// Measures what the writers wait for.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (what, files, writers) in [
        ("one makes new files", Files::New, 1),
        ("eight make new files", Files::New, 8),
        ("one writes over old files", Files::Old, 1),
        ("eight write over old files", Files::Old, 8),
    ] {
        let rounds = (0..=ROUNDS).map(|round| one_round(bench, files, writers, u8::try_from(round)?));
        // The first one warms up.
        let rounds: Vec<Round> = rounds.collect::<Result<Vec<_>>>()?.split_off(1);
        let scale = 1e6 / f64::from(u32::try_from(FILES)?);
        let each = |of: fn(&Round) -> f64| median(&rounds, of) * scale;
        let [none, off, labelled, all] = [each(|r| r[0]), each(|r| r[1]), each(|r| r[2]), each(|r| r[3])];
        print_line!(
            "  {what}, µs each: no guard {none:.0}; journal off {off:.0}, labelled {labelled:.0}, all {all:.0}"
        )?;
        let ratio = |of: fn(&Round) -> f64, words: &str| Figure {
            what: format!("{what}: {words}, wall"),
            value: median(&rounds, of),
            goal: None,
        };
        figures.push(ratio(|r| r[1] / r[0], "journal off / no guard"));
        figures.push(ratio(|r| r[2] / r[1], "journal labelled / off"));
        figures.push(ratio(|r| r[3] / r[1], "journal all / off"));
    }
    Ok(figures)
}

fn one_round(bench: &Bench<'_>, files: Files, writers: usize, turn: u8) -> Result<Round> {
    let mut round = [0.0; 4];
    for (seconds, guard) in round.iter_mut().zip(GUARDS) {
        interrupt::check()?;
        let place = bench.scratch.mount().join("files");
        // An inode that had a lease is slower for the rest of its life, so they are others each time.
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => fs::create_dir(&place)?,
        }
        if files == Files::Old {
            (0..FILES).try_for_each(|number| fs::write(place.join(number.to_string()), [0xff; LENGTH]))?;
            bench.label(&place)?;
        }
        rustix::fs::syncfs(fs::File::open(&place)?)?;
        *seconds = match guard {
            None => written(&place, writers, turn)?,
            Some(journal) => guarded(bench, journal, || written(&place, writers, turn))?,
        };
    }
    Ok(round)
}

/// With a guard, whose state is on the file system that it guards, as on a host with one.
fn guarded(bench: &Bench<'_>, journal: &str, work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let (mount, beside) = (bench.scratch.mount(), bench.scratch.beside("guard"));
    let state: PathBuf = mount.join("state");
    let guard = Guard::start_with(&bench.binaries.join("imarad"), &beside, warm::POLICY, &mount, (&state, journal))?;
    let seconds = work()?;
    let all = || Ok((renewed(&guard)? >= u64::try_from(FILES)?).then_some(()));
    wait_until(PATIENCE, all)?.context("not all files got labels after their writers had closed")?;
    guard.end()?;
    Ok(seconds)
}

/// How long it takes so many who each write some of the files.
fn written(place: &Path, writers: usize, turn: u8) -> Result<f64> {
    let begin = std::time::Instant::now();
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..writers).map(|writer| scope.spawn(move || write_some(place, writer, writers, turn))).collect();
        all.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a writer panicked"))?)
    })?;
    Ok(begin.elapsed().as_secs_f64())
}

fn write_some(place: &Path, first: usize, step: usize, turn: u8) -> Result<()> {
    let place = fs::File::open(place)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    for number in (first..FILES).step_by(step) {
        let file = openat(place.as_fd(), number.to_string(), flags, Mode::RUSR | Mode::WUSR)?;
        rustix::io::write(&file, &[turn; LENGTH])?;
    }
    Ok(())
}

/// How many labels have been written so far.
fn renewed(guard: &Guard) -> Result<u64> {
    let renewed = guard.status()?.pointer("/counters/renewed").and_then(Value::as_u64);
    renewed.context("the guard does not tell how many labels were renewed")
}
