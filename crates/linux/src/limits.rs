//! Limits of this process.
//!
//! Source: `getrlimit(2)`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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

/// Raises the soft limit of open descriptors (`RLIMIT_NOFILE`) to the hard one and returns it; absent if unlimited.
///
/// # Errors
/// `EPERM` if the kernel refuses.
pub fn raise_open_files() -> Result<Option<u64>, CallError> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .map_err(|error| CallError::new("setrlimit(RLIMIT_NOFILE)", Target::Process, error))?;
    Ok(maximum)
}
