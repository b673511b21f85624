//! `xtask race`: whether the guard can be overtaken.
//!
//! Writers change files in all ways there are; readers and execers open them meanwhile, again and again, so that the
//! guard knows them; and everybody says in memory that all share what he is about to do and when he has done it. So each
//! open can be judged from outside: one that began and ended while a file was bad and nobody had it open for writing
//! must have failed, and one of a good file must have shown its bytes. Nothing is known here of how the guard works.
//!
//! Three scenes are played on each file system ([`options::Scene`]). `cargo run -p xtask -- race --seconds 5` plays all of
//! them on all four in about 25 seconds; `--opens 1000000 --fs xfs --scene owners` is an example of more. The exit status
//! is 1 if anything happened that should not have ([`findings::Wrong`] lists it all) and 2 if somebody hung.

mod broken;
mod dice;
mod findings;
mod follow;
mod mapping;
mod options;
mod place;
pub(crate) mod program;
mod stage;
mod subject;
mod tamper;
mod ways;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{error, fmt, process};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use self::dice::Dice;
use self::options::{Length, Options, Scene};
pub(crate) use self::place::{Kind, Place};
use self::program::Runner;
use self::stage::{Beat, Stage};
use crate::guard::Guard;
use crate::interrupt;
use crate::print::{complain, print_line};
use crate::scratch;

/// Whoever does nothing for so long hangs.
const HANGS: Duration = Duration::from_secs(120);

/// How long it may take until all are free when the guard is killed.
const FREED: Duration = Duration::from_secs(20);

/// How often is looked whether all is well.
const LOOK: Duration = Duration::from_millis(100);

/// Races on each file system, and fails if anything has happened that never should.
pub(crate) fn run_race(arguments: &[String]) -> Result<()> {
    if arguments == ["--runner"] {
        return program::serve();
    }
    if let Some((first, rest)) = arguments.split_first()
        && first == "--broken"
    {
        let options = Options::parse(rest)?;
        prepare()?;
        return broken::race_with_each(&options, violations);
    }
    let options = Options::parse(arguments)?;
    prepare()?;
    let imarad = match &options.imarad {
        Some(path) => path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?,
        None => std::env::current_exe()?.with_file_name("imarad"),
    };
    ensure!(imarad.exists(), "{} is not built (run: cargo build --package imarad)", imarad.display());
    let wrong = violations(&options, &imarad)?;
    ensure!(wrong == 0, "{wrong} violations");
    Ok(())
}

fn prepare() -> Result<()> {
    scratch::root_only("race")?;
    scratch::own_mounts()?;
    interrupt::watch()
}

/// Plays all scenes on all file systems; how much went wrong.
fn violations(options: &Options, imarad: &Path) -> Result<u64> {
    let mut wrong = 0;
    for kind in &options.kinds {
        let played = Place::with(*kind, |place| {
            for scene in &options.scenes {
                wrong += play(place, *scene, options, imarad)?;
                if options.until_wrong && wrong > 0 {
                    break;
                }
            }
            Ok(())
        });
        if let Err(error) = &played
            && error.is::<Hang>()
        {
            complain(format_args!("xtask race: {error}"));
            process::exit(2);
        }
        played?;
        if options.until_wrong && wrong > 0 {
            break;
        }
    }
    Ok(wrong)
}

/// Somebody does nothing any more.
#[derive(Debug)]
struct Hang(String);

impl fmt::Display for Hang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} has done nothing for {} s", self.0, HANGS.as_secs())
    }
}

impl error::Error for Hang {}

/// What the guard could not do, by the words of its failure table.
fn failures(status: &Value) -> String {
    let failures = status.get("failures").and_then(Value::as_object);
    let some = failures.into_iter().flatten().filter(|(_, count)| count.as_u64() != Some(0));
    some.map(|(word, count)| format!("{word} {count}")).collect::<Vec<_>>().join(", ")
}

/// Plays a scene; how much went wrong.
fn play(place: &Place, scene: Scene, options: &Options, imarad: &Path) -> Result<u64> {
    let stage = Stage::set(place, scene, options)?;
    // Those who wait for the end of a grace do little.
    let writers = options.writers * if scene == Scene::Owners { 4 } else { 1 };
    let donors = (0..writers).map(|number| stage.donor(place.kind, &place.mount(), number));
    let donors = donors.collect::<Result<Vec<_>>>().context("cannot make a file to copy from")?;
    let runners = if scene == Scene::Follow { 0 } else { options.runners };
    let runners = (0..runners).map(|_| Runner::start()).collect::<Result<Vec<_>>>()?;
    let mut guard = Guard::start(imarad, place.beside(), scene.policy(), &place.mount())?;
    let stage_guard = act(&stage, &mut guard, options, &donors, runners);
    if let Err(error) = &stage_guard {
        print_line!("{} {}: {error:#}\n{}", place.kind.name(), scene.name(), stage.findings.report())?;
    }
    stage_guard?;
    if scene == Scene::Follow {
        follow::settle(&stage);
    }
    print_line!("{} {}:\n{}", place.kind.name(), scene.name(), stage.findings.report())?;
    let status = guard.status()?;
    let section = |name: &str| status.get(name).map(ToString::to_string).unwrap_or_default();
    print_line!("  the guard: {} {} failures {}", section("counters"), section("remembered"), failures(&status))?;
    guard.end()?;
    if scene != Scene::Follow && stage.findings.violations() == 0 {
        ensure!(stage.findings.denied.value() > 0, "no open was denied: this has shown nothing");
    }
    Ok(stage.findings.violations())
}

/// Has all actors act until it is time to end.
fn act(stage: &Stage, guard: &mut Guard, options: &Options, donors: &[File], runners: Vec<Runner>) -> Result<()> {
    let mut dice = Dice::new(options.seed);
    let mut deal = || Dice::new(dice.next());
    let beats: Vec<(String, Beat)> = ["reader", "prober", "writer", "runner"]
        .iter()
        .zip([options.readers, options.probers, donors.len(), runners.len()])
        .flat_map(|(name, count)| (0..count).map(move |number| (format!("{name} {number}"), Beat::default())))
        .collect();
    let mut hearts = beats.iter().map(|(_, beat)| beat);
    let follow = stage.scene == Scene::Follow;
    std::thread::scope(|scope| {
        for (beat, dice) in hearts.by_ref().take(options.readers).zip(std::iter::repeat_with(&mut deal)) {
            scope.spawn(move || if follow { follow::read(stage, beat, dice) } else { tamper::read(stage, beat, dice) });
        }
        for (beat, dice) in hearts.by_ref().take(options.probers).zip(std::iter::repeat_with(&mut deal)) {
            scope.spawn(
                move || if follow { follow::probe(stage, beat, dice) } else { tamper::probe(stage, beat, dice) },
            );
        }
        for (donor, beat) in donors.iter().zip(hearts.by_ref()) {
            let dice = deal();
            scope.spawn(move || {
                if follow { follow::write(stage, beat, dice, donor) } else { tamper::write(stage, beat, dice, donor) }
            });
        }
        for (mut runner, beat) in runners.into_iter().zip(hearts) {
            let dice = deal();
            scope.spawn(move || tamper::run(stage, beat, dice, &mut runner));
        }
        let watched = watch(stage, guard, options, &beats);
        stage.end();
        watched
    })
}

/// Waits until the scene is over. If somebody hangs, says who, has the guard killed, which frees all, and ends.
fn watch(stage: &Stage, guard: &mut Guard, options: &Options, beats: &[(String, Beat)]) -> Result<()> {
    let length = options.part();
    let begin = Instant::now();
    let mut alive: Vec<(u64, Instant)> = beats.iter().map(|(_, beat)| (beat.count(), begin)).collect();
    loop {
        std::thread::sleep(LOOK);
        interrupt::check()?;
        if guard.has_ended()? {
            bail!("the guard has ended by itself; {}", guard.last_words());
        }
        let over = match length {
            Length::For(time) => begin.elapsed() >= time,
            Length::Opens(opens) => stage.findings.opens.value() >= opens,
        };
        if over || options.until_wrong && stage.findings.violations() > 0 {
            return Ok(());
        }
        for ((name, beat), (count, since)) in beats.iter().zip(&mut alive) {
            if beat.count() != *count {
                (*count, *since) = (beat.count(), Instant::now());
            } else if since.elapsed() > HANGS {
                complain(format_args!("{name} hangs; {}\n{}", guard.last_words(), stage.findings.report()));
                if let Ok(status) = guard.status() {
                    complain(format_args!("the guard (process {}): {status}", guard.id()));
                }
                guard.kill();
                // That should free all. If it does not, there is nothing to wait for: the mounts are ours and go with us.
                std::thread::spawn(|| {
                    std::thread::sleep(FREED);
                    process::exit(2);
                });
                bail!(Hang(name.clone()));
            }
        }
    }
}
