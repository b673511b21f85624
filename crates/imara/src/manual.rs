//! `imara manual`: the manual's pages, for whoever makes a package. Not listed by `imara help`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::Ended;

/// Arguments of `imara manual`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The directory that gets imara.1, and a page for each verb
    directory: PathBuf,
}

/// Writes the pages.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Ended> {
    let command = crate::Arguments::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &arguments.directory)
        .with_context(|| format!("cannot write the manual's pages to {}", arguments.directory.display()))?;
    Ok(Ended::Fine)
}
