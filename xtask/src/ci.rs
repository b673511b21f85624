//! `xtask ci`: every check there is, one stage after another.
//!
//! A stage that fails does not stop the others: one run shows all that is wrong. A stage is a list of commands, run in
//! the top directory without a standard input; it fails at its first command that fails.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::print::print_line;
use crate::root;

/// A stage's name and its code.
type Stage = (&'static str, fn() -> Result<()>);

const STAGES: &[Stage] = &[
    ("fmt", || cargo(&["fmt", "--all", "--check"])),
    ("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
    ("rustdoc", rustdoc),
    ("arrows", crate::arrows::run),
    ("pure", crate::pure::run),
    ("deny", deny),
    ("test", || cargo(&["test", "--workspace", "--no-fail-fast"])),
    ("race", race),
    ("soak", soak),
    ("fuzz", crate::fuzz::smoke),
    // The binaries that people get: tests run others, which have assertions and are not optimised.
    ("demo", demo),
    ("deb", deb),
];

/// The `cargo-deny` that is used, built where it is missing; it has to build with the workspace's `rust-version`.
const CARGO_DENY: &str = "0.20.2";

/// Runs the stages that `names` lists, all of them if it is empty, and fails if one of them failed.
pub(crate) fn run(names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| STAGES.iter().all(|(known, _)| known != name)) {
        let known: Vec<&str> = STAGES.iter().map(|(name, _)| *name).collect();
        bail!("no stage is called \"{unknown}\" (expected {})", known.join(", "));
    }
    let begin = Instant::now();
    let mut summary = Vec::new();
    let mut failed = Vec::new();
    for (name, stage) in STAGES.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name)) {
        print_line!("━━ {name}")?;
        let begin = Instant::now();
        let outcome = stage();
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        let line = format!("{name:<8} {word:<6} {:>8}", seconds(begin.elapsed()));
        print_line!("━━ {line}")?;
        if let Err(error) = outcome {
            print_line!("   {error:#}")?;
            failed.push(*name);
        }
        summary.push(line);
    }
    print_line!("\n{}\n{:<15} {:>8}", summary.join("\n"), "all", seconds(begin.elapsed()))?;
    if !failed.is_empty() {
        bail!("failed: {} (each on its own: cargo xtask ci STAGE)", failed.join(", "));
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Runs cargo with `arguments`.
fn cargo(arguments: &[&str]) -> Result<()> {
    finish(cargo_command().args(arguments))
}

/// The cargo that runs us, as a command to which arguments can be added.
pub(crate) fn cargo_command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// Runs `command` to its end; an error names the command and how it ended.
pub(crate) fn finish(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

fn rustdoc() -> Result<()> {
    finish(cargo_command().args(["doc", "--no-deps", "--workspace", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))
}

/// All scenes on all file systems, with the binaries that have assertions. `make race` is longer.
fn race() -> Result<()> {
    cargo(&["build", "--package", "imarad", "--package", "xtask", "--quiet"])?;
    if !geteuid().is_root() {
        return print_line!("skipped: the race needs root");
    }
    cargo(&["run", "--package", "xtask", "--quiet", "--", "race", "--seconds", "15"])
}

/// Two minutes of it, with its outage. `make soak` is longer.
fn soak() -> Result<()> {
    cargo(&["build", "--package", "imarad", "--package", "xtask", "--quiet"])?;
    if !geteuid().is_root() {
        return print_line!("skipped: the soak needs root");
    }
    cargo(&["run", "--package", "xtask", "--quiet", "--", "soak", "--seconds", "100", "--busy"])
}

fn demo() -> Result<()> {
    cargo(&["build", "--release", "--workspace", "--quiet"])?;
    if !geteuid().is_root() {
        return print_line!("release binaries are built; skipped: the demo needs root");
    }
    cargo(&["run", "--release", "--package", "xtask", "--quiet", "--", "demo"])
}

/// Makes the package, which checks what is in it.
fn deb() -> Result<()> {
    cargo(&["build", "--release", "--workspace", "--quiet"])?;
    cargo(&["run", "--release", "--package", "xtask", "--quiet", "--", "deb"])
}

fn deny() -> Result<()> {
    finish(Command::new(cargo_deny()?).current_dir(root()).args(["check", "bans", "licenses", "sources"]))
}

/// The path of a `cargo-deny` of the right version: the user's own, or one below `target`, built if need be.
///
/// It is built unoptimised, since its own release profile asks for fat LTO, and still judges in a second.
fn cargo_deny() -> Result<PathBuf> {
    let tools = root().join("target/tools");
    let ours = tools.join("bin/cargo-deny");
    for candidate in [Path::new("cargo-deny"), &ours] {
        let said = Command::new(candidate).arg("--version").stdin(Stdio::null()).output();
        if said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).trim() == format!("cargo-deny {CARGO_DENY}")) {
            return Ok(candidate.to_owned());
        }
    }
    print_line!("building cargo-deny {CARGO_DENY} into {}", tools.display())?;
    let scratch = tools.join("build");
    let install = ["install", "--quiet", "--locked", "--debug", "--force", "cargo-deny", "--version", CARGO_DENY];
    finish(
        cargo_command()
            .args(install)
            .arg("--root")
            .arg(&tools)
            .env("CARGO_TARGET_DIR", &scratch)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "0"),
    )?;
    std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    Ok(ours)
}
