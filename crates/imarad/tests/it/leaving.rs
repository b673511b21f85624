//! A guarded file system is unmounted, or made read-only: at once, whatever was done on it.

use std::fs::{self, File};
use std::process::{Command, Output};

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::coverage::{Found, Table};
use crate::daemon::{Daemon, eventually};
use crate::files::{self, REFUSED, good_and_bad, label_of, read_label};
use crate::image::ext4;

pub(crate) const IDS: &[&str] = &["remount", "unmount", "lazy-unmount"];

#[test]
fn a_file_system_that_is_made_read_only_has_its_labels_before() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = scratch.path().join("file");
    files::make(&path, b"content");
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    files::read(&path).unwrap();
    fs::write(&path, b"changed").unwrap();
    // It is refused for as long as a writer is there, be it the guard.
    assert!(eventually(|| scratch.remount("ro").ok()).is_some());
    assert_eq!(files::read(&path).unwrap(), b"changed");
    assert!(eventually(|| scratch.remount("rw").ok()).is_some());
    files::read(&path).unwrap();
    assert!(eventually(|| (read_label(&path) == Some(label_of(b"changed"))).then_some(())).is_some());
    table.says("remount", Found::Followed, "ext4");
    daemon.stop();
}

#[test]
fn what_was_opened_a_moment_ago_keeps_no_file_system_mounted() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let paths: Vec<_> = (0..600).map(|number| scratch.path().join(format!("{number}"))).collect();
        paths.iter().for_each(|path| files::make(path, b"content"));
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let table = Table::of(&daemon);
        for path in paths.iter().chain(&paths).chain(&paths) {
            files::read(path).unwrap();
        }
        // The children of other tests have our files open for a moment, so this cannot be tried just once.
        let unmount = || -> Output { Command::new("umount").arg(scratch.path()).output().unwrap() };
        let gone = eventually(|| unmount().status.success().then_some(()));
        assert!(gone.is_some(), "{kind:?}: {:?}", unmount());
        daemon.says("has gone and is no longer guarded");
        table.says("unmount", Found::Followed, &format!("{kind:?}"));
        daemon.stop();
    }
}

#[test]
fn who_still_uses_a_file_system_that_was_unmounted_lazily_is_still_asked_about() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    drop(good_and_bad(scratch.path()));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    let inside = File::open(scratch.path()).unwrap();
    assert!(Command::new("umount").arg("-l").arg(scratch.path()).status().unwrap().success());
    let open = |name: &str| rustix::fs::openat(&inside, name, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    for _ in 0..3 {
        open("good").unwrap();
        assert_eq!(Some(open("bad").unwrap_err().raw_os_error()), REFUSED);
    }
    table.says("lazy-unmount", Found::Seen, "ext4");
    drop(inside);
    daemon.says("has gone and is no longer guarded");
    daemon.stop();
}
