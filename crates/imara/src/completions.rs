//! `imara completions`: completion scripts.

use clap::CommandFactory as _;

use crate::{Ended, screen};

/// Arguments of `imara completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell
    shell: clap_complete::Shell,
}

/// Prints the script.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::Arguments::command(), "imara", &mut script);
    screen::print(&String::from_utf8_lossy(&script))?;
    Ok(Ended::Fine)
}
