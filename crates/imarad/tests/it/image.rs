//! File systems that need `mkfs` options of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use imara_linux::testing::{FsKind, ScratchMount};

use crate::daemon::{RunDir, eventually};

/// A file system in an image, made with options; gone when dropped.
#[derive(Debug)]
pub(crate) struct Image {
    point: PathBuf,
    image: PathBuf,
    // Removed last.
    _directory: RunDir,
}

impl Image {
    /// ext4 of 16 MiB.
    pub(crate) fn ext4(options: &[&str]) -> Self {
        let directory = RunDir::new();
        let (point, image) = (directory.path().join("mount"), directory.path().join("image"));
        fs::create_dir(&point).unwrap();
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).args(options).arg(&image).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let image = Self { point, image, _directory: directory };
        image.mount("loop");
        image
    }

    pub(crate) fn path(&self) -> &Path {
        &self.point
    }

    fn mount(&self, options: &str) {
        let mounted = Command::new("mount").args(["-o", options]).arg(&self.image).arg(&self.point).output().unwrap();
        assert!(mounted.status.success(), "{mounted:?}");
    }

    fn unmount(&self) -> bool {
        Command::new("umount").arg(&self.point).output().is_ok_and(|output| output.status.success())
    }

    /// Unmounts it, does something with the image, mounts it again.
    pub(crate) fn unmounted(&self, work: impl FnOnce(&Path)) {
        assert!(eventually(|| self.unmount().then_some(())).is_some());
        work(&self.image);
        self.mount("loop");
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if eventually(|| self.unmount().then_some(())).is_none() {
            drop(Command::new("umount").arg("-l").arg(&self.point).output());
        }
    }
}

/// Unmounts and mounts again, as soon as the children that other tests fork have closed our files.
pub(crate) fn cycle(scratch: &ScratchMount) {
    let mut last = None;
    let cycled = eventually(|| scratch.cycle().map_err(|error| last = Some(error)).ok());
    assert!(cycled.is_some(), "{last:?}");
}

/// The file system of tests for which one is enough.
pub(crate) fn ext4() -> ScratchMount {
    ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap()
}
