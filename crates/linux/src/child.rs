//! Programs that we start.
//!
//! Source: `PR_SET_PDEATHSIG(2const)`.

use std::process::Command;

use crate::sys;

/// Has the program killed (`SIGKILL`) when the thread that starts it ends, however that comes about: also if nobody is
/// left to end it in a better way. Holds across `execve`, not for children of the program, nor for one that gains
/// privileges.
pub fn killed_with_us(command: &mut Command) -> &mut Command {
    sys::killed_with_us(command)
}
