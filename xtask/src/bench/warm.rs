//! Files that the kernel answers for, because the guard knows them.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags, openat};

use super::{Bench, Cost};
use crate::guard::Guard;
use crate::run::wait_until;

/// The rule of the kernel's `appraise_tcb` that decides about root's files.
pub(super) const POLICY: &str = "appraise fowner=0\n";

/// How long it may take until a file is known.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a run is made again during which the guard was asked: what is known is looked at anew each minute.
const TRIES: usize = 5;

/// Makes a labelled file of 4 KiB that belongs to us, and the directories above it.
pub(super) fn make(bench: &Bench<'_>, name: &str) -> Result<()> {
    let path = bench.scratch.mount().join(name);
    fs::create_dir_all(path.parent().context("the file is in no directory")?)?;
    fs::write(&path, [0x5a; 4096])?;
    bench.label(&path)
}

/// Starts a guard for the whole file system.
pub(super) fn guard(bench: &Bench<'_>) -> Result<Guard> {
    guard_of(bench, &bench.scratch.mount())
}

/// Starts a guard for another one.
pub(super) fn guard_of(bench: &Bench<'_>, mount: &Path) -> Result<Guard> {
    Guard::start(&bench.binaries.join("imarad"), &bench.scratch.beside("guard"), POLICY, mount)
}

/// How often the kernel has asked the guard so far.
pub(super) fn asked(guard: &Guard) -> Result<u64> {
    let status = guard.status()?;
    let asked = status.pointer("/counters/asked").and_then(serde_json::Value::as_u64);
    asked.context("the guard does not tell how often it was asked")
}

/// Does it again and again until the guard is not asked about it any more.
pub(super) fn until_known(guard: &Guard, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let known = wait_until(PATIENCE, || {
        work()?;
        let before = asked(guard)?;
        work()?;
        Ok((asked(guard)? == before).then_some(()))
    })?;
    known.context("the guard goes on being asked: its kernel does not answer for known files")
}

/// What work costs about which the guard is not asked. If it was, that run says nothing, and another is made.
pub(super) fn unasked(guard: &Guard, mut work: impl FnMut() -> Result<Cost>) -> Result<Cost> {
    for _ in 0..TRIES {
        let before = asked(guard)?;
        let cost = work()?;
        if asked(guard)? == before {
            return Ok(cost);
        }
    }
    bail!("the guard was asked in each of {TRIES} runs, though the files were known: that would be another figure")
}

/// Opens a file for reading and closes it, so many times.
pub(super) fn open_and_close(directory: BorrowedFd<'_>, name: &str, times: usize) -> Result<()> {
    let name = std::ffi::CString::new(name)?;
    for _ in 0..times {
        drop(openat(directory, name.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    }
    Ok(())
}

/// The root directory of the file system, from which names are as long as on a host whose root it is.
pub(super) fn top(bench: &Bench<'_>) -> Result<impl AsFd + Sync + use<>> {
    Ok(fs::File::open::<&Path>(bench.scratch.mount().as_ref())?)
}
