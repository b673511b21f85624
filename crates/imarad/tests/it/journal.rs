//! A journal that can be written at first, and then not: what becomes of writers and readers, and of the journal.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{Daemon, eventually};
use crate::faulty::{Fault, FaultyDisk};
use crate::files;
use crate::image::{Image, ext4};

const WORD: &str = "journal-not-written";

/// A writer whom a journal keeps for longer than this is kept by mistake.
const LONG: Duration = Duration::from_secs(20);

fn not_written(guard: &Guard<'_>) -> u64 {
    guard.daemon.status()["failures"][WORD].as_u64().unwrap()
}

/// A guard with its state elsewhere, and files that somebody writes to.
struct Guard<'s> {
    daemon: Daemon,
    mount: &'s ScratchMount,
    next: usize,
}

impl<'s> Guard<'s> {
    fn start(mode: &str, mount: &'s ScratchMount, state: &Path) -> Self {
        Self { daemon: Daemon::with_state(mode, state, &[], mount.path()), mount, next: 0 }
    }

    /// One writes to a file that has a label, and one makes a file. Nobody is kept, both files get their labels, and anybody may
    /// read them.
    fn all_goes_on(&mut self) {
        let begin = Instant::now();
        self.next += 1;
        let (old, new) = (self.path("old"), self.path("new"));
        files::append(&old, b"more").unwrap();
        fs::write(&new, b"content").unwrap();
        for path in [&old, &new] {
            files::label_becomes(path, &files::read(path).unwrap());
        }
        assert!(begin.elapsed() < LONG, "{:?}: {:#?}", begin.elapsed(), self.daemon.lines());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(format!("{name}-{}", self.next % OLD))
    }

    /// Until the journal is written again, and everybody is covered.
    fn is_healed(&mut self) {
        let healed = eventually(|| {
            let before = not_written(self);
            self.all_goes_on();
            (not_written(self) == before).then_some(())
        });
        assert!(healed.is_some(), "{:#?}", self.daemon.lines());
    }

    /// How often the log tells of it.
    fn told(&self) -> usize {
        self.daemon.lines().iter().filter(|line| line.contains(WORD)).count()
    }
}

/// Files that have labels.
const OLD: usize = 50;

fn populated() -> ScratchMount {
    let mount = ext4();
    (0..OLD).for_each(|number| files::make(&mount.path().join(format!("old-{number}")), b"content"));
    mount
}

/// Takes all the room there is.
fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("filler");
    let mut file = File::create(&path).unwrap();
    for piece in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    drop(file.sync_all());
    path
}

/// Files whose records are as long as can be: a few hundred of them fill a journal.
fn deep(mount: &ScratchMount) -> PathBuf {
    let mut path = mount.path().to_owned();
    while path.as_os_str().len() < 3700 {
        path.push("d".repeat(250));
    }
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn the_journal_is_full_and_its_disk_too() {
    let Some(_) = testing::root() else { return };
    for mode in ["enforce", "log", "fix"] {
        let (mount, state) = (populated(), Image::ext4(&[]));
        let deep = deep(&mount);
        (0..20).for_each(|number| files::make(&deep.join(number.to_string()), b"content"));
        let mut guard = Guard::start(mode, &mount, state.path());
        guard.all_goes_on();
        for outage in 1..=2 {
            let filler = fill(state.path());
            let full = eventually(|| {
                (0..20).for_each(|number| files::append(&deep.join(number.to_string()), b"more").unwrap());
                guard.all_goes_on();
                (not_written(&guard) > 0 && guard.told() == outage).then_some(())
            });
            assert!(full.is_some(), "{mode}: {:#?}", guard.daemon.lines());
            assert!(guard.daemon.says(WORD).contains("No space left on device"), "{mode}");
            let before = not_written(&guard);
            guard.all_goes_on();
            assert!(not_written(&guard) > before, "{mode}: each is counted");
            assert_eq!(guard.told(), outage, "{mode}: one is logged");
            fs::remove_file(filler).unwrap();
            guard.is_healed();
        }
        guard.daemon.stop();
    }
}

#[test]
fn whoever_cuts_a_file_as_he_opens_it_for_reading_is_noted_at_once() {
    let Some(_) = testing::root() else { return };
    let (mount, state) = (populated(), ext4());
    let guard = Guard::start("enforce", &mount, state.path());
    let noted = |number: usize| {
        let path = mount.path().join(format!("old-{number}"));
        // The second time he is let in because of what is remembered.
        files::read(&path).unwrap();
        let cut = OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(&path).unwrap();
        let begin = Instant::now();
        files::label_becomes(&path, b"");
        drop(cut);
        begin.elapsed()
    };
    // Somebody else may have the processor once, but not each time.
    let quickest = (0..5).map(noted).min().unwrap();
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
    guard.daemon.stop();
}

#[test]
fn the_file_system_of_the_journal_becomes_read_only() {
    let Some(_) = testing::root() else { return };
    let (mount, state) = (populated(), Image::ext4(&["-e", "remount-ro"]));
    let mut guard = Guard::start("enforce", &mount, state.path());
    guard.all_goes_on();
    let device = Command::new("findmnt").args(["-no", "SOURCE"]).arg(state.path()).output().unwrap().stdout;
    let device = String::from_utf8(device).unwrap();
    let device = device.trim().strip_prefix("/dev/").unwrap();
    fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test").unwrap();
    assert!(File::create(state.path().join("file")).is_err(), "it is read-only");
    (0..3).for_each(|_| guard.all_goes_on());
    assert!(not_written(&guard) >= 3);
    assert_eq!(guard.told(), 1, "{:#?}", guard.daemon.lines());
    assert!(guard.daemon.says(WORD).contains("Read-only file system"), "{:#?}", guard.daemon.lines());
    guard.daemon.stop();
    state.unmounted(|image| drop(Command::new("e2fsck").args(["-f", "-y"]).arg(image).output().unwrap()));
    let mut guard = Guard::start("enforce", &mount, state.path());
    guard.is_healed();
    guard.daemon.stop();
}

#[test]
fn the_disk_of_the_journal_fails() {
    let Some(_) = testing::root() else { return };
    let (mount, mut state) = (populated(), FaultyDisk::new(FsKind::Ext4, 64 << 20));
    let mut guard = Guard::start("enforce", &mount, state.path());
    guard.all_goes_on();
    state.becomes(Fault::Unwritable, 0..u64::MAX);
    (0..3).for_each(|_| guard.all_goes_on());
    assert!(not_written(&guard) >= 3);
    assert_eq!(guard.told(), 1, "{:#?}", guard.daemon.lines());
    state.heals();
    guard.is_healed();
    guard.daemon.stop();
}

#[test]
fn a_broken_place_under_the_journal_is_left_for_another() {
    let Some(_) = testing::root() else { return };
    let (mount, mut state) = (populated(), FaultyDisk::new(FsKind::Ext4, 64 << 20));
    let mut guard = Guard::start("enforce", &mount, state.path());
    guard.all_goes_on();
    let journals = fs::read_dir(state.path().join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let journal = journals.into_iter().find(|path| path.extension().is_none()).unwrap();
    state.content_becomes(Fault::Unwritable, &journal);
    (0..3).for_each(|_| guard.all_goes_on());
    assert_eq!(not_written(&guard), 0, "{:#?}", guard.daemon.lines());
    guard.daemon.stop();
}
