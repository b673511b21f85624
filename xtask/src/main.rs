//! The chores of this repository, a file each: `cargo xtask CHORE`.
#![deny(unsafe_code)]

mod arrows;
mod bench;
mod ci;
mod deb;
mod deb_test;
mod demo;
mod fuzz;
mod guard;
mod interrupt;
mod print;
mod process;
mod pure;
mod race;
mod run;
mod scratch;
mod soak;

use std::path::Path;
use std::process::ExitCode;

use crate::print::complain;

/// A chore's name, what it does in one line, and its code. It gets the arguments after its name.
type Chore = (&'static str, &'static str, fn(&[String]) -> anyhow::Result<()>);

const CHORES: &[Chore] = &[
    ("bench", "[PART…]   time this against other programs and against being without it, as ratios", bench::run_bench),
    ("ci", "[STAGE…]  run all stages of continuous integration, or those that are named", ci::run),
    ("deb", "[VERSION] make a Debian package of the release binaries, below target/deb", deb::run_deb),
    (
        "deb-test",
        "        install, restart, upgrade and purge that package in a guest that runs systemd",
        deb_test::run_deb_test,
    ),
    ("demo", "            label, guard and tamper with real files", demo::run_demo),
    (
        "race",
        "[OPTION…] race with the guard: whether a changed file ever gets through, or a good one not",
        race::run_race,
    ),
    ("soak", "[--seconds N] [--busy] real tools in a guarded file system for a long time", soak::run_soak),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let name = arguments.first().map_or("", String::as_str);
    let Some((_, _, chore)) = CHORES.iter().find(|(known, ..)| *known == name) else {
        complain(format_args!("xtask: no chore is called \"{name}\"; there are:"));
        for (known, purpose, _) in CHORES {
            complain(format_args!("  {known} {purpose}"));
        }
        return ExitCode::from(2);
    };
    match chore(arguments.get(1..).unwrap_or_default()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("xtask {name}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The top directory of the repository that this program was built from.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
