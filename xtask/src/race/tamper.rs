//! Files that are good, then bad, then good again, while everybody tries to open and to execute them.
//!
//! Their labels stay as they are, since the guard has no reason to let them follow. So whoever opens a bad file must
//! be refused, and whoever opens a good one must not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::dice::Dice;
use super::findings::Wrong;
use super::options::Scene;
use super::program::{GOOD, Ran, Runner};
use super::stage::{Beat, Stage, difference, is_refusal, open_to_read, read_all, read_until_over};
use super::subject::{Phase, State, Subject, Turn, read_label, write_label};
use super::ways::{Change, Way, untouched};

/// How often a change is tried that has been begun: a program that is being executed keeps writers out for a moment.
const TRIES: usize = 3000;

/// One of so many times a bad file is not made good, but replaced by a good one.
const REPLACED: usize = 3;

/// Opens and reads until the scene is over.
pub(super) fn read(stage: &Stage, beat: &Beat, dice: Dice) {
    read_until_over(stage, beat, dice, read_one);
}

fn read_one(stage: &Stage, file: &Subject, buffer: &mut [u8]) {
    let findings = &stage.findings;
    let before = file.phase();
    let opened = open_to_read(&file.path);
    findings.opens.up();
    // A label that is not its own is written back when the file begins to move: it must be looked at before.
    let strange = before.state() != State::Moving && opened.is_ok() != (before.state() == State::Good);
    let label = strange.then(|| read_label(&file.path));
    let content = opened.and_then(|mut opened| read_all(&mut opened, buffer));
    if before.state() == State::Moving || file.phase() != before {
        return findings.moving.up();
    }
    let own = label.is_none_or(|label| label.is_ok_and(|label| label == file.label));
    match (before.state(), content) {
        (State::Moving, _) => {}
        (State::Good, Ok(content)) if content == file.good => {}
        (State::Good, Ok(content)) => findings.add(Wrong::OtherContent, || {
            format!("{}: read {}; {}", file.path.display(), difference(&file.good, content), file.history())
        }),
        (State::Bad, Err(error)) if is_refusal(&error) => findings.denied.up(),
        (State::Bad, Ok(content)) => found(stage, file, before, own, Wrong::TamperedRead, || {
            format!("opened while bad and read {}", difference(&file.good, content))
        }),
        (state, Err(error)) => {
            found(stage, file, before, own, Wrong::SpuriousDenial, || format!("opened while {state:?}: {error}"));
        }
    }
}

/// Something that should never happen, or something that has to be so since the label is not the file's `own` any more.
fn found(stage: &Stage, file: &Subject, phase: Phase, own: bool, wrong: Wrong, what: impl FnOnce() -> String) {
    let wrong = if own { wrong } else { Wrong::Blessed };
    if file.is_first_in(phase) {
        stage.findings.add(wrong, || told(file, &what()));
    } else if own {
        stage.findings.again(wrong);
    }
}

/// What happened to a file, with all that is known of it.
fn told(file: &Subject, what: &str) -> String {
    let label = match read_label(&file.path) {
        Ok(label) if label == file.label => "its own",
        Ok(_) => "another",
        Err(_) => "unreadable",
    };
    format!("{}: {what}; {}; its label is {label}", file.path.display(), file.history())
}

/// Tries to execute files that are no programs, until the scene is over. That costs no process: it fails with `ENOEXEC`
/// if it is allowed.
pub(super) fn probe(stage: &Stage, beat: &Beat, mut dice: Dice) {
    while !stage.is_over() {
        let Some(file) = stage.pick(&mut dice) else { return };
        for _ in 0..1_u32 << dice.below(5) {
            let before = file.phase();
            let Err(error) = nix::unistd::execve::<&std::ffi::CStr, &std::ffi::CStr>(&file.name, &[&file.name], &[]);
            let begun = if error == Errno::ENOEXEC { Ok(()) } else { Err(error) };
            let begun = Some(begun).filter(|_| error != Errno::ETXTBSY);
            executed(stage, file, before, begun);
            beat.beat();
        }
        Stage::pause(&mut dice);
    }
}

/// Has programs executed until the scene is over.
pub(super) fn run(stage: &Stage, beat: &Beat, mut dice: Dice, runner: &mut Runner) {
    while !stage.is_over() {
        let Some(program) = dice.one_of(&stage.programs) else { return };
        for _ in 0..1_u32 << dice.below(5) {
            let before = program.phase();
            let begun = match runner.run(&program.path) {
                Ok(Ran::Ended(GOOD)) => Some(Ok(())),
                Ok(Ran::Ended(other)) => {
                    if before.state() == State::Good && program.phase() == before {
                        let describe = || told(program, &format!("executed while good, it ended with {other}"));
                        stage.findings.add(Wrong::OtherContent, describe);
                    }
                    Some(Ok(()))
                }
                Ok(Ran::Refused(libc::ETXTBSY)) => None,
                Ok(Ran::Refused(error)) => Some(Err(Errno::from_raw(error))),
                Err(_) => return,
            };
            executed(stage, program, before, begun);
            beat.beat();
        }
    }
}

/// Judges an execution: whether it began, or with which error not; absent if somebody was writing to the file.
fn executed(stage: &Stage, file: &Subject, before: Phase, begun: Option<Result<(), Errno>>) {
    let findings = &stage.findings;
    findings.execs.up();
    let own = read_label(&file.path).is_ok_and(|label| label == file.label);
    let (Some(begun), true) = (begun, before.state() != State::Moving && file.phase() == before) else {
        return findings.moving.up();
    };
    let denied = matches!(begun, Err(Errno::EPERM | Errno::EACCES));
    match before.state() {
        State::Bad if denied => findings.denied_execs.up(),
        State::Bad => {
            found(stage, file, before, own, Wrong::TamperedExec, || format!("executed while bad: {begun:?}"));
        }
        State::Good if begun.is_err() => {
            found(stage, file, before, own, Wrong::SpuriousExecDenial, || format!("executed while good: {begun:?}"));
        }
        State::Good | State::Moving => {}
    }
}

/// Makes files bad and good until the scene is over.
pub(super) fn write(stage: &Stage, beat: &Beat, mut dice: Dice, donor: &File) {
    while !stage.is_over() {
        let program = if dice.once_in(4) { dice.one_of(&stage.programs) } else { None };
        let Some(file) = program.or_else(|| stage.pick(&mut dice)) else { return };
        beat.beat();
        // Mostly bad files do not stay bad for long: what the guard knows is what it can be wrong about.
        for _ in 0..1 + dice.below(3) {
            let Ok(turn) = file.turn.try_lock() else { break };
            toggle(stage, file, turn, &mut dice, donor);
            Stage::pause(&mut dice);
        }
    }
}

/// Makes a good file bad, or a bad one good.
fn toggle(stage: &Stage, file: &Subject, mut turn: MutexGuard<'_, Turn>, dice: &mut Dice, donor: &File) {
    let Some(way) = dice.one_of(&stage.ways).copied() else { return };
    let was = match (&turn.bad, turn.lost) {
        (_, true) => State::Moving,
        (Some(_), false) => State::Bad,
        (None, false) => State::Good,
    };
    let target = if was == State::Good { file.tampered(dice, stage.bytes) } else { file.good.clone() };
    let current = turn.bad.as_deref().unwrap_or(&file.good);
    let (path, impatient) = (file.path.as_path(), dice.once_in(4));
    let before = file.phase();
    file.enter(State::Moving);
    restore_label(stage, file, before);
    if was == State::Bad && dice.once_in(REPLACED) {
        return replace(stage, file, &mut turn);
    }
    let change = Change { way, path, current: Some(current).filter(|_| !turn.lost), target: &target, donor, impatient };
    let changed = match stage.scene {
        Scene::Owners => given_away(&file.path, || made(stage, file, change)),
        Scene::Reads | Scene::Follow => made(stage, file, change),
    };
    if stage.scene == Scene::Owners && matches!((&changed, was), (Ok(true), State::Good) | (Ok(false), State::Bad)) {
        heard_of(file, stage);
    }
    match changed {
        Ok(true) => {
            file.changed_by(way);
            stage.findings.changed(way);
            let state = if was == State::Good { State::Bad } else { State::Good };
            *turn = Turn { bad: (state == State::Bad).then_some(target), lost: false };
            file.enter(state);
        }
        Ok(false) => {
            file.enter(was);
        }
        // What went wrong has been told.
        Err(_) => turn.lost = true,
    }
}

/// Puts another file in the place of a bad one: one that is good, and that was not written to since it is judged. Only such
/// files are left to the kernel.
fn replace(stage: &Stage, file: &Subject, turn: &mut Turn) {
    let new = file.path.with_extension("new");
    let made = make(&new, file, stage.scene).and_then(|()| fs::rename(&new, &file.path));
    if let Err(error) = made {
        stage.findings.add(Wrong::WriterFailed, || told(file, &format!("replaced: {error}")));
        turn.lost = true;
        return;
    }
    *turn = Turn::default();
    file.changed_by(Way::Rename);
    stage.findings.changed(Way::Rename);
    file.enter(State::Good);
}

/// Makes a file with the good content and its label. Where writers are judged it is somebody else's as long as it is being
/// written, so that nobody follows him.
fn make(path: &Path, model: &Subject, scene: Scene) -> io::Result<()> {
    mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o755), 0)?;
    let fill = || {
        fs::write(path, &model.good)?;
        write_label(path, &model.label)?;
        Ok(true)
    };
    match scene {
        Scene::Owners => given_away(path, fill),
        Scene::Reads | Scene::Follow => fill(),
    }
    .map(drop)
}

/// The label of a file may have followed what it should not have followed, which would be found again and again.
fn restore_label(stage: &Stage, file: &Subject, phase: Phase) {
    if read_label(&file.path).is_ok_and(|label| label == file.label) {
        return;
    }
    found(stage, file, phase, false, Wrong::Blessed, || "found so before a change".to_owned());
    if let Err(error) = write_label(&file.path, &file.label) {
        stage.findings.add(Wrong::WriterFailed, || told(file, &format!("label: {error}")));
    }
}

/// Gives a file to somebody whose files nobody judges, has it changed, and takes it back.
fn given_away(path: &Path, change: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
    chown(path, Some(65534), None)?;
    let changed = change();
    chown(path, Some(0), None)?;
    changed
}

/// The kernel lets everybody in to a file that was given away until the guard has heard that it is root's again. Waits for
/// the end of that; should it not come, the readers will tell.
fn heard_of(file: &Subject, stage: &Stage) {
    let begin = Instant::now();
    while begin.elapsed() < stage.grace {
        if open_to_read(&file.path).is_err() {
            return stage.findings.waited(begin.elapsed());
        }
        if read_label(&file.path).is_ok_and(|label| label != file.label) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes a change, if need be in another way: what has been begun must come to its end. False if it was not begun.
pub(super) fn made(stage: &Stage, file: &Subject, change: Change<'_>) -> io::Result<bool> {
    let findings = &stage.findings;
    let Err(mut error) = change.make() else { return Ok(true) };
    let note = |error: &io::Error| match error.raw_os_error() {
        Some(libc::EAGAIN) => findings.impatient.up(),
        Some(libc::ETXTBSY) => findings.executed.up(),
        _ if file.is_first_in(file.phase()) => {
            findings.add(Wrong::WriterFailed, || told(file, &format!("{}: {error}", change.way.name())));
        }
        _ => findings.again(Wrong::WriterFailed),
    };
    note(&error);
    if untouched(change.way, &error) {
        return Ok(false);
    }
    for _ in 0..TRIES {
        let again = Change { way: Way::Write, current: None, impatient: false, ..change };
        match again.make() {
            Ok(()) => return Ok(true),
            Err(other) => error = other,
        }
        if error.raw_os_error() != Some(libc::ETXTBSY) {
            note(&error);
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err(error)
}
