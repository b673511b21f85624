//! The `fuzz` stage: every fuzz target is built, replays its seeds, and then looks for more for a few seconds.
//!
//! It takes neither nightly nor cargo-fuzz: libFuzzer's coverage comes from an LLVM pass that any rustc can be asked
//! for. (The address sanitizer would take nightly; the parsers have no `unsafe` for it to look at.)
//!
//! A target is `fuzz/fuzz_targets/NAME.rs`, its seeds are the files in `fuzz/seeds/NAME`; what it finds worth keeping
//! goes to `fuzz/corpus/NAME`, and an input that breaks it to `fuzz/artifacts/NAME-…`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::ci::{cargo_command, finish};
use crate::print::print_line;
use crate::root;

/// How long each target runs, in seconds; all seeds are run even if that takes longer.
const SECONDS: u32 = 5;

/// What `cargo fuzz` passes to rustc, less the sanitizer.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// Builds all targets of `fuzz/` and runs each.
pub(crate) fn smoke() -> Result<()> {
    let fuzz = root().join("fuzz");
    let targets = names(&fuzz.join("fuzz_targets"))?;
    // Naming the target keeps RUSTFLAGS from build scripts and macros, which have no libFuzzer to be linked with.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    finish(
        cargo_command()
            .args([
                "build",
                "--release",
                "--bins",
                "--quiet",
                "--manifest-path",
                "fuzz/Cargo.toml",
                "--target",
                &triple,
            ])
            .env("CARGO_TARGET_DIR", fuzz.join("target"))
            .env("RUSTFLAGS", RUSTFLAGS),
    )?;
    let built = fuzz.join("target").join(triple).join("release");
    let mut failed = Vec::new();
    for target in targets {
        let name = target.trim_end_matches(".rs");
        if let Err(error) = run(&fuzz, &built, name) {
            print_line!("{name}: {error:#}")?;
            failed.push(name.to_owned());
        }
    }
    if !failed.is_empty() {
        bail!("fuzz targets failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs target `name`, and prints in a line what it did or, if it failed, all it said.
fn run(fuzz: &Path, built: &Path, name: &str) -> Result<()> {
    let seeds = fuzz.join("seeds").join(name);
    let count = names(&seeds)?.len();
    let corpus = fuzz.join("corpus").join(name);
    let artifacts = fuzz.join("artifacts");
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut command = Command::new(built.join(name));
    command
        .current_dir(fuzz)
        .stdin(Stdio::null())
        .args([format!("-max_total_time={SECONDS}"), "-timeout=10".to_owned(), "-rss_limit_mb=1024".to_owned()])
        .arg(format!("-artifact_prefix=artifacts/{name}-"))
        .args([&corpus, &seeds]);
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{}\n{said}", output.status);
    }
    // libFuzzer's last line: `Done 123456 runs in 6 second(s)`.
    print_line!("{name}: {count} seeds; {}", said.lines().last().unwrap_or_default())
}

/// The names in `directory`, sorted; that there is none is an error, since nothing would be tried.
fn names(directory: &Path) -> Result<Vec<String>> {
    let missing = || format!("cannot list {}", directory.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(missing)? {
        names.push(entry.with_context(missing)?.file_name().to_string_lossy().into_owned());
    }
    if names.is_empty() {
        bail!("{} is empty (expected at least one file)", directory.display());
    }
    names.sort();
    Ok(names)
}
