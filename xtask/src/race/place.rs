//! A file system of our own, of any kind.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::run::run;
use crate::scratch;

/// How large one is, in bytes. An image is sparse.
const SIZE: u64 = 2 << 30;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Tmpfs];

    /// The kernel's name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
        }
    }

    const fn mkfs(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Self::Ext4 => Some(("mkfs.ext4", &["-q", "-F", "-b", "4096"])),
            Self::Xfs => Some(("mkfs.xfs", &["-q", "-f"])),
            Self::Btrfs => Some(("mkfs.btrfs", &["-q", "-f"])),
            Self::Tmpfs => None,
        }
    }

    /// Linux 6.18 deadlocks by itself when a file of btrfs that is kept inline is cloned while it is read.
    const fn mount_options(self) -> &'static str {
        match self {
            Self::Btrfs => "loop,noatime,max_inline=0",
            Self::Ext4 | Self::Xfs | Self::Tmpfs => "loop,noatime",
        }
    }
}

/// A mounted file system in a directory of its own.
#[derive(Debug)]
pub(crate) struct Place {
    directory: PathBuf,
    pub(super) kind: Kind,
}

impl Place {
    /// Makes and mounts one, does the work, and removes all of it whatever has come out.
    pub(crate) fn with<T>(kind: Kind, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (kind_name, number) = (kind.name(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(format!("imara-race-{kind_name}-{}-{number}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
        let place = Self { directory, kind };
        let outcome = place.fill().and_then(|()| work(&place));
        match (outcome, scratch::remove(&place.directory)) {
            (Ok(done), removed) => removed.map(|()| done),
            (Err(error), Ok(())) => Err(error),
            (Err(error), Err(left)) => bail!("{error:#}; and then: {left:#}"),
        }
    }

    fn fill(&self) -> Result<()> {
        fs::create_dir(self.mount())?;
        let Some((mkfs, arguments)) = self.kind.mkfs() else {
            let size = format!("size={SIZE}");
            run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(self.mount()))?;
            return Ok(());
        };
        let image = self.directory.join("image");
        fs::File::create_new(&image)?.set_len(SIZE)?;
        run(Command::new(mkfs).args(arguments).arg(&image))?;
        run(Command::new("mount").args(["-o", self.kind.mount_options()]).arg(&image).arg(self.mount()))?;
        // The loop device keeps it; when that goes, its space is free, even if nobody is left to remove a name.
        Ok(fs::remove_file(&image)?)
    }

    /// Where it is mounted.
    pub(crate) fn mount(&self) -> PathBuf {
        scratch::mount_in(&self.directory)
    }

    /// A directory beside the mount, for what must not be on it.
    pub(crate) fn beside(&self) -> &Path {
        &self.directory
    }
}
