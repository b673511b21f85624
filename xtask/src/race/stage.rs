//! What all actors of a scene share: the files, what is counted, and the sign that it is over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::OFlags;

use super::dice::Dice;
use super::findings::Findings;
use super::options::{Options, Scene};
use super::place::{Kind, Place};
use super::program;
use super::subject::{Bytes, LARGEST, Subject};
use super::ways::{self, Way};

/// Lengths of the files, in the order in which they are liked. The first one is what most files are like.
const LENGTHS: [usize; 8] = [4096, 1, 4096, (64 << 10) + 1, 0, 300, 20_000, 1 << 20];

/// One of so many choices is a file that is not hot.
const COLD: usize = 20;

/// How long a writer may pause, in microseconds: some files are known for long before a change, some not at all.
const PAUSES: [u64; 10] = [0, 0, 0, 20, 100, 500, 2000, 5000, 15_000, 60_000];

/// The stage of a scene.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) scene: Scene,
    pub(super) bytes: Bytes,
    /// The hot ones come first.
    pub(super) files: Vec<Subject>,
    pub(super) programs: Vec<Subject>,
    pub(super) findings: Findings,
    pub(super) ways: Vec<Way>,
    pub(super) grace: Duration,
    hot: usize,
    over: AtomicBool,
}

impl Stage {
    /// Makes the files, in a directory of their own.
    pub(super) fn set(place: &Place, scene: Scene, options: &Options) -> Result<Self> {
        let directory = place.mount().join(scene.name());
        fs::create_dir(&directory)?;
        let bytes = Bytes::new(&mut Dice::new(options.seed));
        let make = |number: usize| {
            let length = LENGTHS.get(number % LENGTHS.len()).copied().unwrap_or_default();
            // Large ones would fill the memory.
            let length = if number < options.hot { length } else { length.min(LENGTHS[0]) };
            Subject::make(directory.join(format!("file-{number}")), bytes.content(number, length))
        };
        let files: Result<Vec<_>> = (0..options.hot + options.cold).map(make).collect();
        let program = |number| Subject::make(directory.join(format!("program-{number}")), &program::good());
        let programs = if scene == Scene::Follow { 0 } else { 3 };
        let ways = options.ways.iter().copied().filter(|way| way.is_for(place.kind));
        Ok(Self {
            scene,
            bytes,
            files: files.context("cannot make the files")?,
            programs: (0..programs).map(program).collect::<Result<_>>().context("cannot make the programs")?,
            findings: Findings::new(),
            ways: ways.filter(|way| scene == Scene::Follow || *way != Way::Rename).collect(),
            grace: options.grace,
            hot: options.hot,
            over: AtomicBool::new(false),
        })
    }

    /// Whether several writers may change this file at once: some of the hot files where labels follow.
    pub(super) fn is_shared(&self, file: &Subject) -> bool {
        let hot = self.files.get(..self.hot).unwrap_or_default();
        let place = hot.iter().position(|other| std::ptr::eq(other, file));
        self.scene == Scene::Follow && place.is_some_and(|place| place % 3 == 2)
    }

    /// From now on nobody begins anything.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// A file: mostly a hot one, and of these mostly one of the first.
    pub(super) fn pick(&self, dice: &mut Dice) -> Option<&Subject> {
        let (hot, cold) = self.files.split_at_checked(self.hot)?;
        if !cold.is_empty() && dice.once_in(COLD) {
            return dice.one_of(cold);
        }
        let limit = dice.below(hot.len()) + 1;
        hot.get(dice.below(limit))
    }

    /// A pause of a writer.
    pub(super) fn pause(dice: &mut Dice) {
        match dice.one_of(&PAUSES) {
            None | Some(0) => {}
            Some(pause) => std::thread::sleep(Duration::from_micros(*pause)),
        }
    }

    /// A file that nobody judges, for a writer to copy from.
    pub(super) fn donor(&self, kind: Kind, directory: &Path, number: usize) -> Result<File> {
        let path = directory.join(format!("donor-{}-{}-{number}", self.scene.name(), kind.name()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        std::os::unix::fs::fchown(&file, Some(65534), Some(65534))?;
        Ok(file)
    }
}

/// The heart of an actor: whoever does not beat for long hangs ([`HANGS`](super::HANGS)).
#[derive(Debug, Default)]
pub(super) struct Beat(AtomicU64);

impl Beat {
    pub(super) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Reads a whole file, with what is there from the beginning to the end as one open sees it.
pub(super) fn read_all<'b>(file: &mut File, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(buffer.get(..length).unwrap_or_default())
}

/// Reads files with `read_one` until the scene is over, each some times in a row: then the guard knows it.
pub(super) fn read_until_over(
    stage: &Stage,
    beat: &Beat,
    mut dice: Dice,
    read_one: impl Fn(&Stage, &Subject, &mut [u8]),
) {
    let mut buffer = vec![0; LARGEST + 1];
    while !stage.is_over() {
        let Some(file) = stage.pick(&mut dice) else { return };
        for _ in 0..1_u32 << dice.below(7) {
            read_one(stage, file, &mut buffer);
            beat.beat();
        }
    }
}

/// Opens a file for reading.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    ways::open(path, OFlags::RDONLY)
}

/// Whether an error is what a guard answers to whoever it refuses.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

/// How two contents differ, for a report.
pub(super) fn difference(expected: &[u8], found: &[u8]) -> String {
    if expected == found {
        return format!("exactly the {} bytes", found.len());
    }
    let place = expected.iter().zip(found).take_while(|(one, other)| one == other).count();
    let at = |bytes: &[u8]| bytes.get(place).map_or_else(|| "nothing".to_owned(), |byte| format!("{byte:#04x}"));
    let (wanted, got, lengths) = (at(expected), at(found), (expected.len(), found.len()));
    format!("{} bytes, not {}; {got} at {place}, not {wanted}", lengths.1, lengths.0)
}
