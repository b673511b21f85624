//! Limits of this process.
//!
//! Source: `getrlimit(2)`.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::error::{CallError, Target};

/// Keeps the kernel from writing a core dump of this process, whose file, or whose collector's program, a guard would be
/// asked about that cannot answer any more.
///
/// # Errors
/// Those of `prctl`.
pub fn never_dump_core() -> Result<(), CallError> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| CallError::new("prctl(PR_SET_DUMPABLE)", Target::Process, error))
}

/// Descriptors that are wanted at most: the kernel has a table of so many once the highest number is used.
const OPEN_FILES: u64 = 65_536;

/// Raises the soft limit of open descriptors (`RLIMIT_NOFILE`) to the hard one, or to 65,536 if that is less, and returns
/// it. Where it is higher, it is lowered.
///
/// # Errors
/// `EPERM` if the kernel refuses.
pub fn raise_open_files() -> Result<u64, CallError> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum })
        .map_err(|error| CallError::new("setrlimit(RLIMIT_NOFILE)", Target::Process, error))?;
    Ok(current)
}

/// How many descriptors may be open: the highest number is one less.
pub(crate) fn open_files() -> RawFd {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    RawFd::try_from(current).unwrap_or(RawFd::MAX)
}

/// How willing the kernel is to kill this process when memory is short: from -1000 (never) to 1000; 0 as a rule.
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Has the kernel kill (nearly) every other process before this one when memory is short, unless it is even less willing
/// already.
///
/// Source: `proc_pid_oom_score_adj(5)`.
///
/// # Errors
/// `EACCES` without `CAP_SYS_RESOURCE`; if there is no `/proc`.
pub fn be_killed_last() -> Result<(), CallError> {
    const LAST: i32 = -900;
    let path = Path::new(OOM_SCORE);
    let failed = |call| move |error: io::Error| CallError::new(call, path, error);
    let now = std::fs::read_to_string(path).map_err(failed("read"))?;
    if now.trim().parse::<i32>().is_ok_and(|now| now <= LAST) {
        return Ok(());
    }
    std::fs::write(path, LAST.to_string()).map_err(failed("write"))
}

/// Keeps in memory what this process has there now, program and libraries included, and whatever it touches later.
///
/// Only where no limit of locked memory counts: that counts the whole of an area, stacks for example, however little of it
/// is used, and calls would fail later for want of it.
///
/// Source: `mlockall(2)`; Linux `mm/mlock.c`.
///
/// # Errors
/// `EPERM` where the limit counts: without `CAP_IPC_LOCK`, if `RLIMIT_MEMLOCK` is not `unlimited`. `ENOMEM`, `EAGAIN`.
pub fn lock_memory() -> Result<(), CallError> {
    let may = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let lock = |flags| mlockall(flags).map_err(|error| CallError::new("mlockall", Target::Process, error));
    if !may && getrlimit(Resource::Memlock).current.is_some() {
        return Err(CallError::new("mlockall", Target::Process, rustix::io::Errno::PERM));
    }
    lock(MlockAllFlags::CURRENT)?;
    lock(MlockAllFlags::FUTURE.union(MlockAllFlags::ONFAULT))
}
