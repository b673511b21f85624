//! Files that are changed by those whom labels follow. Nobody is ever refused, and everybody reads what was last written.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::dice::Dice;
use super::findings::Wrong;
use super::stage::{Beat, Stage, difference, open_to_read, read_all};
use super::subject::{LARGEST, State, Subject, label_of, read_label};
use super::tamper::made;
use super::ways::{Change, Way};

/// How long after the last change a label may be behind. A reader would wait for it; nobody reads here.
const BEHIND: Duration = Duration::from_secs(10);

/// Lengths of contents.
const LENGTHS: [usize; 8] = [4096, 1, 5000, (64 << 10) + 1, 0, 300, 20_000, 1 << 20];

/// What is in a file in this phase: each is another one's content, so that a wrong one is known.
fn content(stage: &Stage, file: &Subject, phase: u64) -> &'static [u8] {
    if phase == 0 {
        // As it was made.
        return stage
            .files
            .iter()
            .position(|other| std::ptr::eq(other, file))
            .map_or(&[], |number| stage.bytes.content(number, file.good.len()));
    }
    let mut dice = Dice::new(phase.wrapping_mul(0x1_0001).wrapping_add(u64::from(file.label[5])));
    // Cold files stay small: there are many.
    let largest = if file.good.len() > 4096 { LARGEST } else { 20_000 };
    let length = dice.one_of(&LENGTHS).copied().unwrap_or_default().min(largest);
    stage.bytes.content(dice.below(usize::MAX), length)
}

/// Opens and reads until the scene is over.
pub(super) fn read(stage: &Stage, beat: &Beat, mut dice: Dice) {
    let mut buffer = vec![0; LARGEST + 1];
    while !stage.is_over() {
        let Some(file) = stage.pick(&mut dice) else { return };
        for _ in 0..1_u32 << dice.below(7) {
            read_one(stage, file, &mut buffer);
            beat.beat();
        }
    }
}

fn read_one(stage: &Stage, file: &Subject, buffer: &mut [u8]) {
    let findings = &stage.findings;
    let before = file.phase();
    findings.opens.up();
    let read = open_to_read(&file.path).and_then(|mut opened| read_all(&mut opened, buffer));
    let stable = before.state() == State::Good && file.phase() == before;
    if !stable {
        findings.moving.up();
    }
    match read {
        Err(error) => {
            findings.add(Wrong::SpuriousDenial, || format!("{}: {error}; {}", file.path.display(), file.history()))
        }
        Ok(found) if stable => {
            let expected = content(stage, file, before.number());
            if found != expected {
                findings.add(Wrong::OtherContent, || {
                    format!("{}: read {}; {}", file.path.display(), difference(expected, found), file.history())
                });
            }
        }
        Ok(_) => {}
    }
}

/// Tries to execute until the scene is over.
pub(super) fn probe(stage: &Stage, beat: &Beat, mut dice: Dice) {
    while !stage.is_over() {
        let Some(file) = stage.pick(&mut dice) else { return };
        let Err(error) = nix::unistd::execve::<&std::ffi::CStr, &std::ffi::CStr>(&file.name, &[&file.name], &[]);
        stage.findings.execs.up();
        if !matches!(error, Errno::ENOEXEC | Errno::ETXTBSY) {
            let describe = || format!("{}: {error}; {}", file.path.display(), file.history());
            stage.findings.add(Wrong::SpuriousExecDenial, describe);
        }
        beat.beat();
        Stage::pause(&mut dice);
    }
}

/// Changes files until the scene is over.
pub(super) fn write(stage: &Stage, beat: &Beat, mut dice: Dice, donor: &File) {
    while !stage.is_over() {
        let Some(file) = stage.pick(&mut dice) else { return };
        beat.beat();
        let Ok(_turn) = file.turn.try_lock() else { continue };
        let Some(way) = dice.one_of(&stage.ways).copied() else { return };
        let current = content(stage, file, file.phase().number());
        let next = file.enter(State::Moving).number() + 1;
        let target = content(stage, file, next);
        let (path, impatient) = (file.path.as_path(), dice.once_in(4));
        // truncate(2) is followed if the file is known or open for writing.
        let known = (way == Way::Truncate).then(|| open_to_read(path));
        if let Some(Err(error)) = &known {
            stage.findings.add(Wrong::SpuriousDenial, || format!("{}: {error}", file.path.display()));
        }
        let change = Change { way, path, current: Some(current), target, donor, impatient };
        match made(stage, file, change) {
            Ok(true) => {
                stage.findings.changed(way);
                file.changed_by(way);
            }
            // As the phases count on, so must the contents.
            Ok(false) => finish(stage, file, change),
            Err(error) => stage.findings.add(Wrong::WriterFailed, || {
                format!("{}: {}: {error}; {}", file.path.display(), way.name(), file.history())
            }),
        }
        file.enter(State::Good);
        Stage::pause(&mut dice);
    }
}

/// Makes a change that was refused for a moment.
fn finish(stage: &Stage, file: &Subject, change: Change<'_>) {
    let patient = Change { impatient: false, ..change };
    while let Ok(false) = made(stage, file, patient) {
        if stage.findings.violations() > 0 && stage.is_over() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// After the last change: each label must become that of the content, and each file must be open to all.
pub(super) fn settle(stage: &Stage) {
    let end = Instant::now() + BEHIND;
    let mut buffer = vec![0; LARGEST + 1];
    for file in &stage.files {
        let expected = label_of(content(stage, file, file.phase().number()));
        let right = || read_label(&file.path).is_ok_and(|label| label == expected);
        while !right() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !right() {
            let found = read_label(&file.path);
            stage.findings.add(Wrong::LabelBehind, || {
                format!("{}: {found:02x?}, expected {expected:02x?}; {}", file.path.display(), file.history())
            });
        }
        read_one(stage, file, &mut buffer);
    }
}
