//! Scratch file systems for tests that need root (feature `testing`).
//!
//! ```no_run
//! use imara_linux::testing::{FsKind, ScratchMount};
//!
//! let Some(_) = imara_linux::testing::root() else { return };
//! let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
//! std::fs::write(scratch.path().join("file"), b"contents").unwrap();
//! ```
#![allow(clippy::print_stdout, reason = "a test that could not run says so where the tester looks")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Proof that the test runs as root.
#[derive(Clone, Copy, Debug)]
pub struct Root(());

/// Present if we are root. Else the test should return: it has been said that it was skipped.
///
/// # Panics
/// If the environment's `REQUIRE` names `root` and we are not: then skipping is a failure.
#[must_use]
pub fn root() -> Option<Root> {
    if rustix::process::geteuid().is_root() {
        return Some(Root(()));
    }
    skipped("root", "root");
    None
}

/// Says that a test is skipped for want of `need`.
///
/// # Panics
/// If the environment's `REQUIRE` (a list with commas) names `level`.
pub fn skipped(level: &str, need: &str) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == level), "REQUIRE={required}, but this test needs {need}");
    println!("skipped: needs {need}");
}

/// Copies a program, so that it can be executed at once, with mode 0755.
///
/// Another process does it: whatever a process has open for writing, the children that its other threads fork have open
/// too until they execute something, and until then nobody can execute the file (`ETXTBSY`).
///
/// # Errors
/// If `install` fails; its message is in the error.
pub fn install(from: &Path, to: &Path) -> io::Result<()> {
    run(Command::new("install").args(["-m", "755"]).arg(from).arg(to))
}

/// Makes a program of these bytes, in the same way as [`install`].
///
/// # Errors
/// Those of [`install`].
pub fn install_bytes(content: &[u8], to: &Path) -> io::Result<()> {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(to).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = install.spawn()?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(content));
    succeeded(&install, &child.wait_with_output()?)?;
    written
}

/// A file system that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsKind {
    /// ext4, in an image.
    Ext4,
    /// XFS, in an image.
    Xfs,
    /// Btrfs, in an image.
    Btrfs,
    /// tmpfs, in memory.
    Tmpfs,
}

impl FsKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Tmpfs];

    /// The kernel's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
        }
    }

    /// The smallest size that its `mkfs` takes, in bytes.
    #[must_use]
    pub const fn minimum(self) -> u64 {
        match self {
            Self::Ext4 => 8 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 114 << 20,
            Self::Tmpfs => 1 << 20,
        }
    }

    fn mkfs(self) -> Option<Command> {
        let mut command = Command::new(format!("mkfs.{}", self.name()));
        match self {
            // Small images would get blocks of 1 KiB, and with that less room for attributes than real ones.
            Self::Ext4 => command.args(["-q", "-F", "-b", "4096"]),
            Self::Xfs | Self::Btrfs => command.args(["-q", "-f"]),
            Self::Tmpfs => return None,
        };
        Some(command)
    }
}

/// A file system of one's own, mounted in a directory of its own; gone when dropped.
#[derive(Debug)]
pub struct ScratchMount {
    directory: PathBuf,
    point: PathBuf,
    kind: FsKind,
}

impl ScratchMount {
    /// Makes and mounts a file system of `size` bytes, or of [`FsKind::minimum`] if that is more. The image is sparse.
    ///
    /// # Errors
    /// If a program is missing or fails; its message is in the error.
    pub fn new(kind: FsKind, size: u64) -> io::Result<Self> {
        Self::with_options(kind, size, "")
    }

    /// The same, with options for `mount -o`.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn with_options(kind: FsKind, size: u64, options: &str) -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("imara-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        // From here on `scratch` cleans up, whatever fails.
        fs::create_dir(&directory)?;
        let scratch = Self { point: directory.join("mount"), directory, kind };
        fs::create_dir(&scratch.point)?;
        let size = size.max(kind.minimum());
        if let Some(mut mkfs) = kind.mkfs() {
            let image = scratch.directory.join("image");
            File::create(&image)?.set_len(size)?;
            run(mkfs.arg(&image))?;
            scratch.mount(options)?;
        } else {
            let options = [format!("size={size}").as_str(), options].join(",");
            let mut mount = Command::new("mount");
            mount.args(["-t", kind.name(), "-o", options.trim_end_matches(','), kind.name()]);
            run(mount.arg(&scratch.point))?;
        }
        Ok(scratch)
    }

    /// The directory it is mounted on.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> FsKind {
        self.kind
    }

    /// Mounts it anew with other options, for example `ro`.
    ///
    /// # Errors
    /// If `mount` fails.
    pub fn remount(&self, options: &str) -> io::Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.point))
    }

    /// Unmounts and mounts again: what is only in memory is gone, what is on disk stays. Not for tmpfs.
    ///
    /// # Errors
    /// `EBUSY` in the words of `umount` if it is in use.
    pub fn cycle(&self) -> io::Result<()> {
        self.cycle_with("")
    }

    /// The same, with options for `mount -o`, for example `subvol=NAME`.
    ///
    /// # Errors
    /// Those of [`cycle`](Self::cycle).
    pub fn cycle_with(&self, options: &str) -> io::Result<()> {
        // So that it can be tried again, whichever of the two has failed.
        if self.is_mounted() {
            run(Command::new("umount").arg(&self.point))?;
        }
        self.mount(options)
    }

    fn mount(&self, options: &str) -> io::Result<()> {
        let options = ["loop", options].join(",");
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind.name(), "-o", options.trim_end_matches(',')]);
        run(mount.arg(self.directory.join("image")).arg(&self.point))
    }

    fn is_mounted(&self) -> bool {
        crate::mounts::mounts().is_ok_and(|mounts| mounts.iter().any(|mount| mount.point == self.point))
    }
}

impl Drop for ScratchMount {
    fn drop(&mut self) {
        for attempt in 0..20_u64 {
            if !self.is_mounted() {
                break;
            }
            // A lazy unmount, the last resort, leaves the loop device to whoever still uses the file system.
            let lazy: &[&str] = if attempt == 19 { &["-l"] } else { &[] };
            if run(Command::new("umount").args(lazy).arg(&self.point)).is_err() {
                std::thread::sleep(Duration::from_millis(10 * attempt));
            }
        }
        // Not through the mount: if it is still there, its files are not ours to remove.
        drop(fs::remove_dir(&self.point));
        drop(fs::remove_file(self.directory.join("image")));
        drop(fs::remove_dir(&self.directory));
    }
}

/// How long a test of [`on`] may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs `test` on a fresh file system of each kind, as root, under a watchdog; skipped if we are not root.
///
/// # Panics
/// If `test` does, or if a file system cannot be made.
pub fn on_each(test: impl Fn(&ScratchMount)) {
    for kind in FsKind::ALL {
        on(kind, &test);
    }
}

/// Runs `test` on a fresh file system of this kind, as root, under a watchdog; skipped if we are not root or its
/// `mkfs` is missing.
///
/// # Panics
/// If `test` does, or if the file system cannot be made.
pub fn on(kind: FsKind, test: impl FnOnce(&ScratchMount)) {
    let Some(_) = root() else { return };
    let _watchdog = Watchdog::start(LIMIT).expect("a shell starts");
    let scratch = ScratchMount::new(kind, 0);
    if let Err(error) = &scratch
        && error.kind() == io::ErrorKind::NotFound
    {
        return skipped("root", &error.to_string());
    }
    test(&scratch.expect("the file system is made and mounted"));
}

/// Kills this process after a while, unless dropped before, and removes its [`ScratchMount`]s.
///
/// A test that marks a file system for permission events and then hangs would keep whoever opens a file there waiting;
/// so the killer is a process of its own, which opens nothing there.
#[derive(Debug)]
pub struct Watchdog(Child);

impl Watchdog {
    /// Starts it.
    ///
    /// # Errors
    /// If no shell can be started.
    pub fn start(limit: Duration) -> io::Result<Self> {
        // It ends by itself when its standard input is closed, that is, when we are gone; `read` then gives 1, and more
        // than 128 after the time. What the killed process cannot clean up any more is cleaned up here.
        let script = "read -t $1 line; [ $? -gt 128 ] || exit 0; kill -9 $2; for d in \"$3\"/imara-$2-*; do \
                      umount -l \"$d/mount\"; rm -f \"$d/image\"; rmdir \"$d/mount\" \"$d\"; done";
        let (limit, pid) = (limit.as_secs().to_string(), std::process::id().to_string());
        let mut bash = Command::new("bash");
        bash.args(["-c", script, "watchdog", &limit, &pid]).arg(std::env::temp_dir());
        bash.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        bash.spawn().map(Self)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Runs a program; what it said is the error if it fails.
fn run(command: &mut Command) -> io::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", command.get_program().display())))?;
    succeeded(command, &output)
}

fn succeeded(command: &Command, output: &Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}: {}", output.status, said.trim())))
}
