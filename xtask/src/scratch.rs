//! An ext4 file system of our own with copies of real files, for the demo and the benchmarks.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::interrupt;
use crate::run::run;

/// A file larger than this is not copied: one debugger would be the whole tree.
const LARGEST: u64 = 16 << 20;

/// How often unmounting is tried, a tenth of a second each: something may still have to close a file.
const TRIES: u32 = 50;

/// A loop-mounted ext4 image in a directory of its own.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    /// Makes an image (sparse, `megabytes` large), mounts it, does the work, and removes all of it whatever has come
    /// out. Says "interrupted" if that is why the work failed, and that all has been removed only if it has.
    pub(crate) fn with<T>(purpose: &str, megabytes: u64, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let directory = std::env::temp_dir().join(format!("imara-{purpose}-{}", std::process::id()));
        let made = fs::DirBuilder::new().mode(0o700).create(&directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
        let scratch = Self { directory };
        let outcome = scratch.fill(megabytes).and_then(|()| work(&scratch));
        let interrupted = interrupt::happened();
        conclude(outcome, interrupted, remove(&scratch.directory))
    }

    fn fill(&self, megabytes: u64) -> Result<()> {
        let image = self.directory.join("image");
        fs::File::create_new(&image)?.set_len(megabytes << 20)?;
        fs::create_dir(self.mount())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(self.mount()))?;
        // The loop device keeps it; when that goes, its space is free, even if nobody is left to remove a name.
        Ok(fs::remove_file(&image)?)
    }

    /// Where it is mounted.
    pub(crate) fn mount(&self) -> PathBuf {
        mount_in(&self.directory)
    }

    /// A directory beside the mount, for what must not be on it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Where the file system is mounted that has this directory of its own.
pub(crate) fn mount_in(directory: &Path) -> PathBuf {
    directory.join("mnt")
}

/// Unmounts what is [mounted](mount_in) in a directory and removes it. No other program does it: Ctrl-C would end that one
/// half-way.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let mount = mount_in(directory);
    for attempt in 1..=TRIES {
        let last = attempt == TRIES;
        let flags = if last { MntFlags::MNT_DETACH } else { MntFlags::empty() };
        match umount2(&mount, flags | MntFlags::UMOUNT_NOFOLLOW) {
            // Not mounted, or not even there: it did not come that far.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) if last => bail!("could not unmount {}: {error}", mount.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    fs::remove_dir_all(directory).with_context(|| format!("could not remove {}", directory.display()))
}

/// What is to be said of the work, when it has been tried to remove what was made for it.
fn conclude<T>(outcome: Result<T>, interrupted: bool, removed: Result<()>) -> Result<T> {
    match (outcome, removed) {
        (Ok(done), Ok(())) => Ok(done),
        (Ok(_), Err(left)) => Err(left),
        (Err(_), Ok(())) if interrupted => bail!("interrupted; everything that was made has been removed"),
        (Err(_), Err(left)) if interrupted => bail!("interrupted; {left:#}"),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => bail!("{error:#}; and then: {left:#}"),
    }
}

/// From now on what we mount is seen by us and by what we start alone, and is gone with the last of us, however that
/// ends. Call it before any thread is started.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let nothing = None::<&str>;
    // In a chroot whose root is no mount point this is refused: then the host sees the mount as long as it is there.
    let _ = mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_SLAVE, nothing);
    Ok(())
}

/// How much has been copied.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copied {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

impl Copied {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// When to stop copying.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// Copies the regular files and symbolic links below `from` to `to`, in the order of their names, until the budget is
/// used up. Files keep their mode and belong to us. What cannot be read is left out.
pub(crate) fn copy_tree(from: &Path, to: &Path, budget: Budget) -> Result<Copied> {
    let mut copied = Copied::default();
    let Ok(entries) = fs::read_dir(from) else { return Ok(copied) };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    fs::create_dir_all(to)?;
    for entry in entries {
        let left = Budget {
            files: budget.files.saturating_sub(copied.files),
            bytes: budget.bytes.saturating_sub(copied.bytes),
        };
        if left.files == 0 || left.bytes == 0 {
            break;
        }
        copied.add(copy_one(&entry.path(), &to.join(entry.file_name()), left)?);
    }
    Ok(copied)
}

/// Copies one entry, whatever it is.
pub(crate) fn copy_one(from: &Path, to: &Path, budget: Budget) -> Result<Copied> {
    let Ok(facts) = fs::symlink_metadata(from) else { return Ok(Copied::default()) };
    if facts.is_dir() {
        return copy_tree(from, to, budget);
    }
    if facts.is_symlink() {
        let target = fs::read_link(from)?;
        // A name that is there already comes from another directory of the host that is the same one here.
        let _ = std::os::unix::fs::symlink(target, to);
        return Ok(Copied::default());
    }
    if !facts.is_file() || facts.len() > LARGEST || facts.len() > budget.bytes {
        return Ok(Copied::default());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let bytes = fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(Copied { files: 1, bytes })
}

/// Ends with a sentence that says what to do, unless we are root.
pub(crate) fn root_only(what: &str) -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "it mounts a file system of its own and asks the kernel for permission events, which takes root: sudo make {what}"
    );
    Ok(())
}

/// The release binaries' directory: where we are. To be asked for before [`own_mounts`]: in a chroot, the path of a
/// program from another mount namespace is that of the host.
pub(crate) fn binaries() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("this program is in no directory")?;
    if !directory.join("imara").exists() {
        bail!("{} is not built (run: make build)", directory.join("imara").display());
    }
    Ok(directory.to_owned())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn that_all_has_been_removed_is_said_only_if_it_has() {
        const LEFT: &str = "could not unmount /m";
        for (failed, interrupted, left, said) in [
            (false, false, false, ""),
            (false, true, false, ""),
            (false, false, true, LEFT),
            (true, false, false, "sort could be opened"),
            (true, false, true, "sort could be opened; and then: could not unmount /m"),
            (true, true, false, "interrupted; everything that was made has been removed"),
            (true, true, true, "interrupted; could not unmount /m"),
        ] {
            let outcome = if failed { Err(anyhow!("sort could be opened")) } else { Ok(()) };
            let removed = if left { Err(anyhow!(LEFT)) } else { Ok(()) };
            let error = conclude(outcome, interrupted, removed).err().map(|error| format!("{error:#}"));
            assert_eq!(error.unwrap_or_default(), said, "{failed} {interrupted} {left}");
        }
    }
}
