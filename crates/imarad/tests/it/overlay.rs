//! Overlayfs over a guarded file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::coverage::{Found, Table, by_opening};
use crate::daemon::{Daemon, RunDir, complaints, eventually};
use crate::files::{self, good_and_bad, label_becomes, read_label};

pub(crate) const IDS: &[&str] = &["overlay-lower", "overlay-upper"];

/// An overlay; gone when dropped.
struct Overlay {
    merged: PathBuf,
    _directory: RunDir,
}

impl Overlay {
    fn new(lower: &Path, upper: &Path, work: &Path) -> Self {
        let directory = RunDir::new();
        let merged = directory.path().join("merged");
        fs::create_dir(&merged).unwrap();
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let mounted = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).output();
        assert!(mounted.as_ref().is_ok_and(|output| output.status.success()), "{mounted:?}");
        Self { merged, _directory: directory }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = eventually(|| Command::new("umount").arg(&self.merged).status().unwrap().success().then_some(()));
    }
}

#[test]
fn opens_below_an_overlay_are_asked_about_and_changes_in_its_upper_directory_followed() {
    let Some(_) = testing::root() else { return };
    // btrfs has device numbers of its own, tmpfs no handles for overlays before Linux 6.6: all the same to the guard.
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| scratch.path().join(name));
        for directory in [&lower, &upper, &work] {
            fs::create_dir(directory).unwrap();
        }
        drop(good_and_bad(&lower));
        files::make(&lower.join("changed"), b"content");
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let table = Table::of(&daemon);
        if !table.has("overlay-lower") {
            return testing::skipped("overlay", "overlayfs");
        }
        let overlay = Overlay::new(&lower, &upper, &work);
        let context = format!("{kind:?}");
        let open = |name: &str| files::read(&overlay.merged.join(name)).map(drop);
        // More than once: nothing that the kernel answers for itself may let a bad one through.
        for _ in 0..3 {
            let found = by_opening(&open("good"), &open("bad"));
            assert_eq!(table.compare("overlay-lower", &found, &context), None);
        }
        // Copied up, changed, and made anew.
        files::append(&overlay.merged.join("changed"), b", and more").unwrap();
        fs::write(overlay.merged.join("new"), b"new").unwrap();
        for (name, content) in [("changed", &b"content, and more"[..]), ("new", b"new")] {
            for _ in 0..3 {
                assert_eq!(files::read(&overlay.merged.join(name)).unwrap(), content, "{kind:?}: {name}");
            }
            label_becomes(&upper.join(name), content);
            assert_eq!(files::read(&upper.join(name)).unwrap(), content, "{kind:?}: {name}, from below");
        }
        files::append(&overlay.merged.join("new"), b", and more").unwrap();
        label_becomes(&upper.join("new"), b"new, and more");
        assert_eq!(files::read(&overlay.merged.join("new")).unwrap(), b"new, and more", "{kind:?}");
        assert_eq!(read_label(&lower.join("changed")), Some(files::label_of(b"content")));
        table.says("overlay-upper", Found::Followed, &context);
        drop(overlay);
        let found = complaints(&daemon.stop());
        assert!(found.len() == 3 && found.iter().all(|found| found.name.ends_with("/bad")), "{kind:?}: {found:#?}");
    }
}
