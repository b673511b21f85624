//! Everything that needs a privilege or can fail is done here, before the first question is asked.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use imara_integrity::policy::Policy;
use imara_linux::control::Listener;
use imara_linux::create::CreateGroup;
use imara_linux::epoll::Waker;
use imara_linux::fanotify::{FsMask, PermissionGroup};
use imara_linux::hash::FileHasher;
use imara_linux::lease::{self, LeaseSignal, LeaseSignals};
use imara_linux::lock::Lock;
use imara_linux::mounts::{self, MountWatch};
use imara_linux::notify::{Notifier, State};
use imara_linux::signals::Signals;
use imara_linux::{limits, task};

use crate::closer::Closer;
use crate::config::Config;
use crate::created::Created;
use crate::filesystems::FileSystems;
use crate::inodes::Inodes;
use crate::keeper::Keeper;
use crate::log::Log;
use crate::pool::Pool;
use crate::renew::Retries;
use crate::serve::Guard;
use crate::status::Counters;
use crate::{control, policies};

/// Remembered files at most, each with a descriptor and a lease.
const REMEMBERED: u64 = 16_384;

/// Descriptors that we need for other things: events in hand, pipes, sockets.
const SPARE_DESCRIPTORS: u64 = 1_024;

/// The kernel takes a lease away this long after it began to break it; we do not trust it in the last moments.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// `EXDEV`: the descriptor is inside a btrfs subvolume.
const CROSS_DEVICE: i32 = 18;

/// Where the locks of guarded file systems are, by device number.
const LOCKS: &str = "/run/imara-guarded";

/// Starts the guard and serves until it is told to end.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    limits::never_dump_core()?;
    // Before any thread: all inherit the blocked signals.
    let signals = Signals::open()?;
    let signal = LeaseSignal::realtime(3).context("the kernel has no real-time signal 3")?;
    let leases = LeaseSignals::open(signal)?;
    let break_time = lease_break_time()?;
    let policy = policies::load(&config.policy)?;
    let opened = open_mounts(&config.mounts)?;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.run_dir)
        .with_context(|| format!("cannot make the run directory {}", config.run_dir.display()))?;
    let lock = Lock::take(&config.run_dir.join("lock"))
        .context("another guard is running (end it first, or name its mounts and these together)")?;
    let locks = lock_filesystems(&opened)?;
    let descriptors = limits::raise_open_files()?.unwrap_or(u64::MAX);

    let log = Log::start(config.log)?;
    let wake = Arc::new(Waker::new()?);
    let (started, own_threads) = channel();
    let _ = started.send(task::own());
    let pool = Pool::new(Arc::clone(&wake));
    let keeper = Keeper::start(&wake, &started)?;
    let (orders, commands) = sync_channel(16);
    let listener = Listener::bind(&config.run_dir.join("control"))?;
    control::start(listener, orders, Arc::clone(&wake), log.clone(), &started)?;
    drop(started);

    let group = PermissionGroup::open().context(
        "cannot ask the kernel for permission events (needs root, CAP_SYS_ADMIN, and a kernel with \
         CONFIG_FANOTIFY_ACCESS_PERMISSIONS)",
    )?;
    let created = CreateGroup::open().context("cannot hear of new files (needs Linux 5.17 or later)")?;
    let mut filesystems = FileSystems::default();
    for (path, mount) in &opened {
        filesystems.add(path, mount)?;
    }
    filesystems.make_private(&group, &opened);
    let capacity = descriptors.saturating_sub(SPARE_DESCRIPTORS).min(REMEMBERED);
    warn_about_unseen_hooks(&policy, &log);
    let guard = Guard {
        group,
        created: Created::new(created),
        leases,
        break_time,
        signals,
        mount_watch: MountWatch::open()?,
        wake,
        commands,
        notifier: Notifier::connect(std::env::var_os("NOTIFY_SOCKET").as_deref())?,
        pool,
        keeper,
        closer: Closer::start()?,
        log,
        own_threads: own_threads.iter().collect(),
        policy,
        policy_name: config.policy.clone(),
        settings: config.settings,
        filesystems,
        inodes: Inodes::new(usize::try_from(capacity)?),
        retries: Retries::default(),
        parked: std::collections::VecDeque::new(),
        counters: Counters::default(),
        hasher: FileHasher::default(),
        label: Vec::new(),
        serial: 0,
        started: Instant::now(),
    };
    mark(&guard, &opened)?;
    // The descriptors of the mount points would keep them from being unmounted.
    drop(opened);
    announce(&guard, &config);
    let _ = guard.notifier.send(State::Ready);
    let result = guard.serve();
    drop((lock, locks));
    result
}

/// Marks go last and creations first: no file may be created unheard and then asked about.
fn mark(guard: &Guard, mounts: &[(PathBuf, OwnedFd)]) -> anyhow::Result<()> {
    for (path, mount) in mounts {
        mark_creations(guard.created.group(), mount)
            .with_context(|| format!("{}: this file system cannot tell of new files", path.display()))?;
    }
    for (path, mount) in mounts {
        guard
            .group
            .mark_filesystem(mount.as_fd(), FsMask::GUARD)
            .with_context(|| format!("{}: this file system cannot be guarded", path.display()))?;
    }
    Ok(())
}

/// A btrfs subvolume cannot be marked by itself, only through the top of its file system.
fn mark_creations(group: &CreateGroup, mount: &OwnedFd) -> anyhow::Result<()> {
    let Err(error) = group.mark_filesystem(mount.as_fd()) else { return Ok(()) };
    if error.errno() != Some(CROSS_DEVICE) {
        return Err(error.into());
    }
    let top = mounts::btrfs_top(&mounts::mount_of_file(mount.as_fd())?.source)?;
    Ok(group.mark_filesystem(top.as_fd())?)
}

fn open_mounts(paths: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, OwnedFd)>> {
    let mut mounts = Vec::new();
    for path in paths {
        let directory = File::open(path).with_context(|| format!("cannot open the mount point {}", path.display()))?;
        let mount = OwnedFd::from(directory);
        let facts = imara_linux::file::facts(mount.as_fd())?;
        if !facts.is_directory() {
            bail!("{} is not a directory (expected the mount point of a file system)", path.display());
        }
        let point = mounts::mount_of_file(mount.as_fd())?.point;
        if path.canonicalize()? != point {
            bail!(
                "{} is no mount point (a whole file system is guarded, and this one is mounted on {}; fix: mount what was \
                 to be mounted here, or name that)",
                path.display(),
                point.display()
            );
        }
        mounts.push((path.to_owned(), mount));
    }
    Ok(mounts)
}

/// One guard a file system, whatever its run directory: two would renew the same labels.
fn lock_filesystems(mounts: &[(PathBuf, OwnedFd)]) -> anyhow::Result<Vec<Lock>> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(LOCKS)
        .with_context(|| format!("cannot make the directory {LOCKS}"))?;
    let mut locks = Vec::new();
    for (path, mount) in mounts {
        let (major, minor) = mounts::mount_of_file(mount.as_fd())?.device;
        let lock = Lock::take(&Path::new(LOCKS).join(format!("{major}:{minor}")));
        locks.push(lock.with_context(|| format!("{}: this file system is guarded already", path.display()))?);
    }
    Ok(locks)
}

fn lease_break_time() -> anyhow::Result<Duration> {
    if std::fs::read_to_string("/proc/sys/fs/leases-enable").is_ok_and(|enabled| enabled.trim() == "0") {
        bail!("leases are disabled, and nothing can be judged without them (fix: sysctl fs.leases-enable=1)");
    }
    let whole = lease::break_time()?;
    match whole.checked_sub(LEASE_MARGIN).filter(|rest| !rest.is_zero()) {
        Some(rest) => Ok(rest),
        None => bail!(
            "/proc/sys/fs/lease-break-time is {} s, expected more than {} s: writers would be let in while a file is \
             read (fix: sysctl fs.lease-break-time=45)",
            whole.as_secs(),
            LEASE_MARGIN.as_secs()
        ),
    }
}

/// A rule for something that fanotify does not show would be a promise that nobody keeps.
fn warn_about_unseen_hooks(policy: &Policy, log: &Log) {
    for warning in policies::unseen(policy) {
        log.say(crate::log::Level::Warning, format!("imarad: {warning}"));
    }
}

/// The line that says that every mark is in place.
fn announce(guard: &Guard, config: &Config) {
    let mounts: Vec<String> = config.mounts.iter().map(|path| path.display().to_string()).collect();
    // Whoever started us may not care to read it.
    let line = format!("guarding {} (mode {}, policy {})", mounts.join(" "), guard.settings.mode, guard.policy_name);
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
