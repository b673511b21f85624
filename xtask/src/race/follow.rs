//! Files that are changed by those whom labels follow. Nobody is ever refused, and everybody reads what was last written.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::dice::Dice;
use super::findings::Wrong;
use super::stage::{Beat, Stage, difference, open_to_read, read_all, read_until_over};
use super::subject::{LARGEST, Phase, State, Subject, Turn, label_of, read_label};
use super::tamper::made;
use super::ways::{Change, Way};

/// How long after the last change a label may be behind. A reader would wait for it; nobody reads here.
const BEHIND: Duration = Duration::from_secs(60);

/// Lengths of contents.
const LENGTHS: [usize; 8] = [4096, 1, 5000, (64 << 10) + 1, 0, 300, 20_000, 1 << 20];

/// The content with this number of a file: those of other numbers are others, so that a wrong one is known.
fn content(stage: &Stage, file: &Subject, number: u64) -> &'static [u8] {
    if number == 0 {
        // As it was made.
        return stage
            .files
            .iter()
            .position(|other| std::ptr::eq(other, file))
            .map_or(&[], |place| stage.bytes.content(place, file.good.len()));
    }
    let mut dice = Dice::new(number.wrapping_mul(0x1_0001).wrapping_add(u64::from(file.label[5])));
    // Cold files stay small: there are many.
    let largest = if file.good.len() > 4096 { LARGEST } else { 20_000 };
    let length = dice.one_of(&LENGTHS).copied().unwrap_or_default().min(largest);
    stage.bytes.content(dice.below(usize::MAX), length)
}

/// Opens and reads until the scene is over.
pub(super) fn read(stage: &Stage, beat: &Beat, dice: Dice) {
    read_until_over(stage, beat, dice, read_one);
}

fn read_one(stage: &Stage, file: &Subject, buffer: &mut [u8]) {
    let findings = &stage.findings;
    let before = file.phase();
    let expected = content(stage, file, file.content());
    findings.opens.up();
    let read = open_to_read(&file.path).and_then(|mut opened| read_all(&mut opened, buffer));
    let stable = before.state() == State::Good && file.phase() == before;
    if !stable {
        findings.moving.up();
    }
    match read {
        Err(error) => {
            found(stage, file, before, Wrong::SpuriousDenial, || format!("opened while {:?}: {error}", before.state()));
        }
        Ok(read) if stable && read != expected => {
            found(stage, file, before, Wrong::OtherContent, || format!("read {}", difference(expected, read)));
        }
        Ok(_) => {}
    }
}

/// Something that should never happen.
fn found(stage: &Stage, file: &Subject, phase: Phase, wrong: Wrong, what: impl FnOnce() -> String) {
    if file.is_first_in(phase) {
        stage.findings.add(wrong, || format!("{}: {}; {}", file.path.display(), what(), file.history()));
    } else {
        stage.findings.again(wrong);
    }
}

/// Tries to execute until the scene is over.
pub(super) fn probe(stage: &Stage, beat: &Beat, mut dice: Dice) {
    while !stage.is_over() {
        let Some(file) = stage.pick(&mut dice) else { return };
        let Err(error) = nix::unistd::execve::<&std::ffi::CStr, &std::ffi::CStr>(&file.name, &[&file.name], &[]);
        stage.findings.execs.up();
        if !matches!(error, Errno::ENOEXEC | Errno::ETXTBSY) {
            let phase = file.phase();
            found(stage, file, phase, Wrong::SpuriousExecDenial, || {
                format!("executed while {:?}: {error}", phase.state())
            });
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
        let Some(way) = dice.one_of(&stage.ways).copied() else { return };
        if stage.is_shared(file) {
            share(stage, file, way, &mut dice, donor);
            Stage::pause(&mut dice);
            continue;
        }
        let Ok(mut turn) = file.turn.try_lock() else { continue };
        rewrite(stage, file, &mut turn, way, &mut dice, donor);
        Stage::pause(&mut dice);
    }
}

/// Changes a file that nobody else changes.
fn rewrite(stage: &Stage, file: &Subject, turn: &mut Turn, way: Way, dice: &mut Dice, donor: &File) {
    let current = content(stage, file, file.content());
    let moving = file.enter(State::Moving);
    let target = content(stage, file, moving.number());
    let (path, impatient) = (file.path.as_path(), dice.once_in(4));
    // truncate(2) is followed if the file is known or open for writing.
    let known = (way == Way::Truncate).then(|| open_to_read(path));
    if let Some(Err(error)) = &known {
        found(stage, file, moving, Wrong::SpuriousDenial, || format!("opened while {:?}: {error}", moving.state()));
    }
    let change = Change { way, path, current: Some(current).filter(|_| !turn.lost), target, donor, impatient };
    match made(stage, file, change) {
        Ok(true) => {
            stage.findings.changed(way);
            file.changed_by(way);
            file.has_content(moving.number());
            turn.lost = false;
        }
        // It is as it was. That, and what else went wrong, has been told.
        Ok(false) => {}
        Err(_) => turn.lost = true,
    }
    drop(known);
    file.enter(if turn.lost { State::Moving } else { State::Good });
}

/// Changes a file while others may do so too: nobody knows what is in it then, but all must be able to open it.
fn share(stage: &Stage, file: &Subject, way: Way, dice: &mut Dice, donor: &File) {
    // A mapping of what another one cuts would kill us, and cloning wants to know the length.
    if matches!(way, Way::Mapped | Way::Clone) {
        return;
    }
    if file.phase().number() == 0 {
        // For ever.
        file.enter(State::Moving);
    }
    let known = (way == Way::Truncate).then(|| open_to_read(&file.path));
    let target = content(stage, file, dice.next() | 1);
    let impatient = dice.once_in(4);
    let change = Change { way, path: &file.path, current: None, target, donor, impatient };
    if made(stage, file, change).is_ok_and(|made| made) {
        stage.findings.changed(way);
        file.changed_by(way);
    }
    drop(known);
}

/// After the last change: each label must become that of the content, and each file must be open to all.
pub(super) fn settle(stage: &Stage) {
    let end = Instant::now() + BEHIND;
    let mut buffer = vec![0; LARGEST + 1];
    for file in &stage.files {
        // What several have changed at once, or one not to its end, is as it is.
        let shared = file.phase().state() == State::Moving;
        let found = shared
            .then(|| open_to_read(&file.path).and_then(|mut file| Ok(read_all(&mut file, &mut buffer)?.to_vec())));
        let expected = match found {
            Some(Ok(found)) => label_of(&found),
            // It is told below.
            Some(Err(_)) => file.label,
            None => label_of(content(stage, file, file.content())),
        };
        let right = || read_label(&file.path).is_ok_and(|label| label == expected);
        while !right() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !right() {
            let label = hex(&read_label(&file.path).unwrap_or_default());
            let expected = hex(&expected);
            stage.findings.add(Wrong::LabelBehind, || {
                format!("{}: {label}, not {expected}; {}", file.path.display(), file.history())
            });
        }
        read_one(stage, file, &mut buffer);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}
