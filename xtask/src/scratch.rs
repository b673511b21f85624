//! An ext4 file system of our own with copies of real files, for the demo and the benchmarks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;

use crate::print::complain;

/// A file larger than this is not copied: one debugger would be the whole tree.
const LARGEST: u64 = 16 << 20;

/// A loop-mounted ext4 image in a directory of its own; all are gone when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    mounted: bool,
}

impl Scratch {
    /// Makes an image (sparse, `megabytes` large) and mounts it.
    pub(crate) fn new(purpose: &str, megabytes: u64) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("imara-{purpose}-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        let mut scratch = Self { directory, mounted: false };
        let image = scratch.directory.join("image");
        fs::File::create_new(&image)?.set_len(megabytes << 20)?;
        fs::create_dir(scratch.mount())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop,noatime"]).arg(&image).arg(scratch.mount()))?;
        scratch.mounted = true;
        // The loop device keeps it; when that goes, its space is free, even if nobody is left to remove a name.
        fs::remove_file(&image)?;
        Ok(scratch)
    }

    /// Where it is mounted.
    pub(crate) fn mount(&self) -> PathBuf {
        self.directory.join("mnt")
    }

    /// A directory beside the mount, for what must not be on it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Scratch {
    /// Tries for a while: something may still have to close a file.
    fn drop(&mut self) {
        for attempt in 0..20 {
            if !self.mounted {
                break;
            }
            let lazy: &[&str] = if attempt == 19 { &["-l"] } else { &[] };
            let ended = Command::new("umount").args(lazy).arg(self.mount()).stderr(Stdio::null()).status();
            self.mounted = !ended.is_ok_and(|status| status.success());
            if self.mounted {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        if self.mounted {
            complain(format_args!("could not unmount {}", self.mount().display()));
        } else if let Err(error) = fs::remove_dir_all(&self.directory) {
            complain(format_args!("could not remove {}: {error}", self.directory.display()));
        }
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

/// Runs a program to its end without a word, and fails with what it said if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
