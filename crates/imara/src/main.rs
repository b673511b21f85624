//! The command: labels files, verifies them, explains them, and starts and steers the guard.
//!
//! One verb, one file: [`label`], [`verify`], [`inspect`]; [`guard`], [`status`], [`mode`], [`release`]. What they share:
//! [`walk`] finds files, [`content`] hashes what cannot change meanwhile, [`rules`] asks the policy, [`screen`] prints.
//!
//! Exit status: 0 fine, 1 something failed its check, 2 could not run.
#![forbid(unsafe_code)]

mod client;
mod completions;
mod content;
mod coverage;
mod guard;
mod inspect;
mod label;
mod manual;
mod mode;
mod release;
mod rules;
mod screen;
mod status;
mod verify;
mod walk;
mod why;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Labels files with what they contain, and sees to it that a file that changed is not opened.
#[derive(Debug, Parser)]
#[command(name = "imara", version, about, propagate_version = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  imara label -x /usr                     label what the policy appraises, on one file system
  imara verify /usr                       which files would not be opened, and why
  imara inspect /usr/bin/passwd           what is known of one file
  imara guard --mode log /srv             ask before each open, refuse nothing yet
  imara mode enforce                      from now on refuse

Exit status: 0 fine, 1 something failed its check, 2 could not run.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write the labels of files: the digest of their content in security.ima
    Label(label::Arguments),
    /// Judge files as a guarded open would, and list those that fail
    Verify(verify::Arguments),
    /// Explain files: labels, the rules that apply, and the verdict
    Inspect(inspect::Arguments),
    /// Guard file systems: run imarad in the foreground
    Guard(guard::Arguments),
    /// Tell what the running guard does
    Status(status::Arguments),
    /// Put the running guard into another mode
    Mode(mode::Arguments),
    /// Have the guard give back all leases, so that a file system can be unmounted
    Release(release::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
    /// Write the manual's pages into a directory
    #[command(hide = true)]
    Manual(manual::Arguments),
}

/// How a run ended that could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Fine,
    Failed,
    /// There was nothing to do it with, which a script should notice.
    Nothing,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Fine => Self::SUCCESS,
            Ended::Failed => Self::from(1),
            Ended::Nothing => Self::from(2),
        }
    }
}

/// Prints what is wrong with the arguments, or the help that they ask for.
fn tell(answer: &clap::Error) -> ExitCode {
    if let Err(error) = screen::printed(answer.print()) {
        screen::give_up(&error);
        return ExitCode::from(2);
    }
    if answer.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(answer) => return tell(&answer),
    };
    let ended = match arguments.verb {
        Verb::Label(arguments) => label::run(arguments),
        Verb::Verify(arguments) => verify::run(arguments),
        Verb::Inspect(arguments) => inspect::run(&arguments),
        Verb::Guard(arguments) => guard::run(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Mode(arguments) => mode::run(&arguments),
        Verb::Release(arguments) => release::run(&arguments),
        Verb::Completions(arguments) => completions::run(&arguments),
        Verb::Manual(arguments) => manual::run(&arguments),
    };
    match ended {
        Ok(ended) => ended.into(),
        Err(error) => {
            screen::give_up(&error);
            ExitCode::from(2)
        }
    }
}
