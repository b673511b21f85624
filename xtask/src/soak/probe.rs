//! How long it takes to open a known file where there is a guard, and where there is none.
//!
//! A busy machine is slow everywhere. So the other probe takes as many turns as an opener and a guard do (it has somebody
//! else answer it), and a stall counts only if that one did not stall at about the same time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Nobody may wait longer than this for a known file.
pub(super) const STALL: Duration = Duration::from_millis(100);

/// What the other probe may take where nothing is wrong with the machine.
const SLUGGISH: Duration = Duration::from_millis(30);

/// So far apart stalls may be that have the same cause.
const NEAR: Duration = Duration::from_secs(2);

/// Pauses between probes.
const PAUSE: Duration = Duration::from_millis(10);

/// Files that are opened in turn.
const FILES: usize = 16;

/// When an open began, and how long it took.
pub(super) type Slow = Vec<(Instant, Duration)>;

/// What both probes found to be slow.
#[derive(Debug)]
pub(super) struct Stalls {
    pub(super) guarded: Slow,
    pub(super) plain: Slow,
}

impl Stalls {
    /// Those that the machine is not to blame for.
    pub(super) fn counted(&self) -> Slow {
        let apart = |one: Instant, other: Instant| one.max(other) - one.min(other);
        let blamed = |(begin, took): &(Instant, Duration)| {
            self.plain.iter().any(|(other, _)| apart(*begin, *other) < NEAR || apart(*begin + *took, *other) < NEAR)
        };
        let long = self.guarded.iter().filter(|(_, took)| *took > STALL);
        long.filter(|stall| !blamed(stall)).copied().collect()
    }

    pub(super) fn report(&self) -> String {
        let most = |slow: &Slow| slow.iter().map(|(_, took)| *took).max().unwrap_or_default().as_millis();
        let long = self.guarded.iter().filter(|(_, took)| *took > STALL).count();
        format!(
            "opening known files: {long} stalls, {} of them not the machine's; at most {} ms, without a guard {} ms",
            self.counted().len(),
            most(&self.guarded),
            most(&self.plain)
        )
    }
}

/// Makes small files.
pub(super) fn files(mount: &Path) -> Result<Vec<PathBuf>> {
    let make = |number: usize| {
        let path = mount.join(format!("probe-{number}"));
        fs::write(&path, format!("probe {number}"))?;
        Ok(path)
    };
    fs::write(mount.join("probe-fresh"), "opened by nobody")?;
    (0..FILES).map(make).collect()
}

/// Opens guarded files until it is over.
pub(super) fn guarded(files: &[PathBuf], over: &AtomicBool) -> Slow {
    probe(files, over, || {})
}

/// Opens files that nobody guards, and has somebody else answer.
pub(super) fn plain(files: &[PathBuf], over: &AtomicBool) -> Slow {
    let (ask, asked) = sync_channel::<()>(0);
    let (answer, answered) = sync_channel::<()>(0);
    std::thread::spawn(move || while asked.recv().is_ok() && answer.send(()).is_ok() {});
    probe(files, over, || {
        if ask.send(()).is_ok() {
            // Without an answer there is nobody to wait for.
            let _ = answered.recv();
        }
    })
}

fn probe(files: &[PathBuf], over: &AtomicBool, with: impl Fn()) -> Slow {
    let mut slow = Vec::new();
    for file in files.iter().cycle() {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        // Whoever is refused is counted by the guard.
        drop(fs::File::open(file));
        with();
        let took = begin.elapsed();
        if took > SLUGGISH {
            slow.push((begin, took));
        }
        std::thread::sleep(PAUSE);
    }
    slow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_unless_the_machine_stalled_too() {
        let begin = Instant::now();
        let at = |seconds: u64, milliseconds: u64| {
            (begin + Duration::from_secs(seconds), Duration::from_millis(milliseconds))
        };
        let guarded = vec![at(10, 99), at(20, 101), at(30, 500), at(60, 9000)];
        let stalls = Stalls { guarded, plain: vec![at(31, 40), at(68, 40)] };
        assert_eq!(stalls.counted(), [at(20, 101)]);
    }
}
