//! What the guard's memory comes to when a million files have been opened.

use std::fs;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::fs::{Mode, OFlags, openat};

use super::{Bench, Figure, Goal, warm};
use crate::interrupt;
use crate::print::print_line;
use crate::run::run;

/// Directories, and files in each.
const DIRECTORIES: usize = 1000;
const FILES: usize = 1000;

/// Who open them, each his share.
const OPENERS: usize = 4;

/// In MiB.
const GOAL: Goal = Goal::AtMost(64.0);

/// Measures the largest resident memory, and that at the end.
pub(super) fn measure(bench: &Bench<'_>) -> Result<Vec<Figure>> {
    let place = bench.scratch.beside("million");
    fs::create_dir(&place)?;
    let image = bench.scratch.beside("million.image");
    fs::File::create_new(&image)?.set_len(2 << 30)?;
    // The content is in the inode, beside the label: a million blocks would fill the memory and measure nothing more.
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-O", "inline_data", "-I", "256", "-N", "1100000"]).arg(&image))?;
    run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(&place))?;
    let measured = fill(bench, &place).and_then(|()| watch(bench, &place));
    let unmounted = run(Command::new("umount").arg(&place));
    let figures = measured?;
    unmounted?;
    fs::remove_file(&image)?;
    Ok(figures)
}

fn fill(bench: &Bench<'_>, place: &std::path::Path) -> Result<()> {
    for directory in 0..DIRECTORIES {
        interrupt::check()?;
        let directory = place.join(directory.to_string());
        fs::create_dir(&directory)?;
        for number in 0..FILES {
            fs::write(directory.join(number.to_string()), number.to_string())?;
        }
    }
    // A directory at a time: none of our programs may take longer than some minutes.
    for directory in 0..DIRECTORIES {
        interrupt::check()?;
        bench.label(&place.join(directory.to_string()))?;
    }
    Ok(())
}

fn watch(bench: &Bench<'_>, place: &std::path::Path) -> Result<Vec<Figure>> {
    let guard = warm::guard_of(bench, place)?;
    let mut figures = Vec::new();
    print_line!("  {:<50} {:>7.1} MiB", "resident at the start", memory(guard.id(), "VmRSS")?)?;
    for turn in ["once", "twice"] {
        open_all(place)?;
        for (field, what, goal) in [("VmRSS", "now", None), ("VmHWM", "at most", Some(GOAL))] {
            let what = format!("MiB resident after a million files were opened {turn}, {what}");
            figures.push(Figure { what, value: memory(guard.id(), field)?, goal });
        }
    }
    let (asked, files) = (warm::asked(&guard)?, u64::try_from(DIRECTORIES * FILES)?);
    ensure!(asked >= files, "the guard was asked {asked} times only");
    let status = guard.status()?;
    let denied = status.pointer("/counters/denied").and_then(serde_json::Value::as_u64);
    ensure!(denied == Some(0), "{denied:?} files were denied; {}", guard.last_words());
    print_line!("  asked {asked} times; remembered: {}", status.pointer("/remembered").unwrap_or_default())?;
    guard.end()?;
    Ok(figures)
}

fn open_all(place: &std::path::Path) -> Result<()> {
    let open = |first: usize| {
        for directory in (first..DIRECTORIES).step_by(OPENERS) {
            interrupt::check()?;
            let directory = fs::File::open(place.join(directory.to_string()))?;
            for number in 0..FILES {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                drop(openat(directory.as_fd(), number.to_string(), flags, Mode::empty())?);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS).map(|first| scope.spawn(move || open(first))).collect();
        openers.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err(anyhow!("an opener has panicked"))))
    })
}

/// A field of `/proc/PID/status`, in MiB.
fn memory(process: u32, field: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kibibytes: Option<u32> = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
    Ok(f64::from(kibibytes.with_context(|| format!("no {field} in the guard's status"))?) / 1024.0)
}
