//! Everything that needs a privilege or can fail is done here, before the first question is asked.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use imara_integrity::host_key::HostKey;
use imara_integrity::journal::PURPOSE;
use imara_integrity::policy::Policy;
use imara_linux::apart::{Apart, Giver, Home, Taker, handing_over};
use imara_linux::control::Listener;
use imara_linux::epoll::Waker;
use imara_linux::fanotify::PermissionGroup;
use imara_linux::hash::FileHasher;
use imara_linux::host_key::{self, HostKeyError};
use imara_linux::lease::{self, LeaseSignal, LeaseSignals};
use imara_linux::lock::{Lock, LockError};
use imara_linux::mounts::{self, MountWatch};
use imara_linux::notice::NoticeGroup;
use imara_linux::notify::{Notifier, State};
use imara_linux::signals::{self, Hangup, Signals};
use imara_linux::sync::keeps_order;
use imara_linux::{last_words, limits, mount_point, task};

use crate::arrivals::Arrivals;
use crate::book::{Reach, Subject};
use crate::closer::{self, Channels, Closer};
use crate::config::{Config, Keeping};
use crate::created::Created;
use crate::failure::Failure;
use crate::filesystems::{FileSystems, Guarded};
use crate::ignore::Ignoring;
use crate::inodes::Inodes;
use crate::journal::{Beside, Journal};
use crate::keeper::Keeper;
use crate::log::{Level, Log};
use crate::onlooker::Onlooker;
use crate::pool::Pool;
use crate::recall::Recall;
use crate::renew::Retries;
use crate::revisit::{self, Revisit};
use crate::scribe::Scribe;
use crate::serve::{Guard, Ordered};
use crate::status::Counters;
use crate::violations::Violations;
use crate::watchman::{Life, Watchman};
use crate::{control, policies};

/// Remembered files at most, each with a descriptor and a lease; and half of what we may open. The other half is for events
/// in hand, writers, jobs, and what waits to be closed.
const REMEMBERED: u64 = 16_384;

/// The kernel takes a lease away this long after it began to break it; we do not trust it in the last moments.
const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// `EXDEV`: the descriptor is inside a btrfs subvolume.
const CROSS_DEVICE: i32 = 18;

/// Where the locks of guarded file systems are, by device number.
const LOCKS: &str = "/run/imara-guarded";

/// After this a guard has noticed that a file system has gone: it looks once a second.
const NOTICED: Duration = Duration::from_secs(2);

/// What it means that the kernel does not spare the guard when memory is short, and what helps.
const SPARED: [&str; 2] = [
    "the kernel may kill the guard when memory runs out (fix: grant CAP_SYS_RESOURCE, or have systemd set OOMScoreAdjust=)",
    "the guard may have to wait for its own memory to be read from a disk (fix: grant CAP_IPC_LOCK, or set LimitMEMLOCK=infinity)",
];

/// A call that failed, and what helps; for `map_err`.
pub(crate) fn refused<E: Display>(what: impl Display, fix: &str) -> impl FnOnce(E) -> anyhow::Error {
    move |error| anyhow!("{what}: {error} (fix: {fix})")
}

/// Starts the guard and serves until it is told to end.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    limits::never_dump_core()?;
    last_words::end_on_panic();
    // Before there are threads, whose stacks are large and hardly used.
    let spared = [limits::be_killed_last().err(), limits::lock_memory().err()];
    let begun = Begun::new(&config)?;
    let sides = Sides::part()?;
    let mounts = open_mounts(&config.mounts)?;
    make_directory(&config.run_dir)?;
    let key = journal_key(&config)?;
    let lock = take_lock(&config.run_dir.join("lock"), "another guard is running")?;
    let locks = lock_filesystems(&mounts)?;
    let mut guard = guard(&config, begun, sides, &mounts)?;
    guard.filesystems.keep(locks.into_iter().map(|lock| guard.closer.late(lock.into(), false)));
    for (error, fix) in spared.into_iter().zip(SPARED) {
        error.into_iter().for_each(|error| guard.log.say(Level::Warning, format!("imarad: {fix}: {error}")));
    }
    let epoll = guard.ready()?;
    begin_journal(&mut guard, &config, key, &mounts);
    if let Err(error) = mark(&guard, &mounts) {
        // Whoever reads why may be waiting for an answer about a file system that has been marked.
        guard.group.close();
        return Err(error);
    }
    // The descriptors of the mount points would keep them from being unmounted.
    drop(mounts);
    announce(&guard);
    let _ = guard.notifier.send(State::Ready);
    let result = guard.serve(&epoll);
    drop(lock);
    result
}

/// What is looked at and taken before anything is changed, and before any thread: all inherit the blocked signals.
#[derive(Debug)]
struct Begun {
    signals: Signals,
    leases: LeaseSignals,
    break_time: Duration,
    policy: Policy,
}

impl Begun {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let signals = Signals::open(hangup())?;
        let signal = LeaseSignal::realtime(3).context(
            "the kernel has no real-time signal 3, which leases need (fix: use a kernel with 32 of them, as all have)",
        )?;
        let leases = LeaseSignals::open(signal)?;
        let break_time = lease_break_time()?;
        Ok(Self { signals, leases, break_time, policy: policies::load(&config.policy)? })
    }
}

/// The guard of a terminal ends with it, unless nohup(1) says otherwise. A service has none: who sends it SIGHUP means
/// something else by it than that nothing shall be guarded any more.
fn hangup() -> Hangup {
    let has_terminal = File::open("/dev/tty").is_ok();
    if has_terminal && !signals::hangup_is_ignored().unwrap_or(false) { Hangup::Ends } else { Hangup::Passes }
}

/// What both sides know: the dispatcher, and the threads apart, which may hang without keeping our group open.
#[derive(Debug)]
struct Sides {
    wake: Arc<Waker>,
    home: Arc<Home>,
    closing: Channels,
    finding: revisit::Channels,
    arriving: (Giver, Taker),
    apart: Apart,
}

impl Sides {
    fn part() -> anyhow::Result<Self> {
        let (wake, home) = (Arc::new(Waker::new()?), Arc::new(Home::find()?));
        let (closing, finding, arriving) = (closer::channels()?, revisit::channels()?, handing_over()?);
        Ok(Self { wake, home, closing, finding, arriving, apart: Apart::part()? })
    }
}

/// The threads beside the dispatcher, and what it shares with them.
#[derive(Debug)]
struct Threads {
    log: Log,
    wake: Arc<Waker>,
    pool: Pool,
    keeper: Keeper,
    closer: Closer,
    revisit: Revisit,
    arrivals: Arrivals,
    commands: Receiver<Ordered>,
    own: Receiver<i32>,
    beside: Beside,
}

impl Threads {
    fn start(config: &Config, sides: Sides, descriptors: u64) -> anyhow::Result<Self> {
        let Sides { wake, home, closing, finding, arriving, apart } = sides;
        let log = Log::start(config.log, &apart);
        let closer = Closer::new(apart.clone(), closing, descriptors / 8);
        let (started, own) = channel();
        let _ = started.send(task::own());
        let revisit = Revisit::new(apart.clone(), Arc::clone(&home), Arc::clone(&wake), finding);
        let beside = Beside { apart: apart.clone(), home: Arc::clone(&home), wake: Arc::clone(&wake) };
        let arrivals = Arrivals::start(&apart, &wake, &started, arriving);
        let pool = Pool::new(apart, home, Arc::clone(&wake));
        let keeper = Keeper::start(&wake, &started)?;
        let (orders, commands) = sync_channel(16);
        let listener = Listener::bind(&config.run_dir.join("control")).map_err(refused(
            "the control socket cannot be made",
            "have a run directory that is root's own, mode 0700, or name another with --run-dir",
        ))?;
        control::start(listener, orders, Arc::clone(&wake), log.clone(), &started)?;
        Ok(Self { log, wake, pool, keeper, closer, revisit, arrivals, commands, own, beside })
    }
}

/// Puts the guard together; nothing is marked yet.
fn guard(config: &Config, begun: Begun, sides: Sides, mounts: &[(PathBuf, OwnedFd)]) -> anyhow::Result<Guard> {
    let descriptors = limits::raise_open_files()?;
    let threads = Threads::start(config, sides, descriptors)?;
    let group = Arc::new(PermissionGroup::open().map_err(refused(
        "cannot ask the kernel for permission events",
        "run as root, with CAP_SYS_ADMIN, on a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
    ))?);
    group.move_up()?;
    let created = NoticeGroup::of_creations()
        .map_err(refused("cannot hear of new files", "run as root, on Linux 5.17 or later"))?;
    let changed = NoticeGroup::of_attributes()
        .map_err(refused("cannot hear of changed attributes", "run as root, on Linux 5.17 or later"))?;
    let mut filesystems = FileSystems::new(config.later.clone());
    for (path, mount) in mounts {
        filesystems.insert(Guarded::look(path, mount)?);
    }
    filesystems.make_private(&group, &threads.closer, mounts);
    filesystems.mounts_changed();
    let capacity = (descriptors / 2).min(REMEMBERED);
    warn_about_unseen_hooks(&begun.policy, &threads.log);
    let life = watch(begun.signals, &group, &threads)?;
    Ok(Guard {
        group,
        created: Created::new(created),
        leases: begun.leases,
        break_time: begun.break_time,
        life,
        mount_watch: MountWatch::open()?,
        wake: threads.wake,
        commands: threads.commands,
        notifier: Notifier::connect(std::env::var_os("NOTIFY_SOCKET").as_deref())
            .map_err(refused("cannot tell systemd of the start", "outside of systemd, unset NOTIFY_SOCKET"))?,
        pool: threads.pool,
        keeper: threads.keeper,
        closer: threads.closer,
        log: threads.log,
        own_threads: threads.own.iter().collect(),
        violations: Violations::of(&begun.policy),
        policy: begun.policy,
        policy_name: config.policy.clone(),
        settings: config.settings,
        filesystems,
        inodes: Inodes::new(usize::try_from(capacity)?),
        recall: Recall::default(),
        ignoring: Ignoring::new(changed),
        revisit: threads.revisit,
        onlooker: Onlooker::default(),
        arrivals: threads.arrivals,
        retries: Retries::default(),
        journal: Journal::new(threads.beside),
        parked: std::collections::VecDeque::new(),
        awake: std::collections::VecDeque::new(),
        judged: false,
        counters: Counters::default(),
        hasher: FileHasher::default(),
        label: Vec::new(),
        serial: 0,
        events_read: 0,
        events_handled: 0,
        full_reads: 0,
        started: Instant::now(),
    })
}

/// Starts the watchman.
fn watch(signals: Signals, group: &Arc<PermissionGroup>, threads: &Threads) -> anyhow::Result<Arc<Life>> {
    let life = Arc::<Life>::default();
    let watchman = Watchman {
        signals,
        group: Arc::clone(group),
        wake: Arc::clone(&threads.wake),
        log: threads.log.clone(),
        life: Arc::clone(&life),
    };
    watchman.start()?;
    Ok(life)
}

/// What helps where the kernel cannot.
const TRIED: &str = "guard one that can, such as ext4, xfs, btrfs or tmpfs";

/// Marks go last and creations first: no file may be created unheard and then asked about.
fn mark(guard: &Guard, mounts: &[(PathBuf, OwnedFd)]) -> anyhow::Result<()> {
    for (path, mount) in mounts {
        for notices in [guard.created.group(), guard.ignoring.notices()] {
            mark_notices(notices, mount)
                .map_err(refused(format!("{}: this file system cannot tell of changes", path.display()), TRIED))?;
        }
    }
    for (path, mount) in mounts {
        guard
            .group
            .mark_filesystem(mount.as_fd(), guard.violations.mask())
            .map_err(refused(format!("{}: this file system cannot be guarded", path.display()), TRIED))?;
    }
    Ok(())
}

/// A btrfs subvolume cannot be marked by itself, only through the top of its file system.
fn mark_notices(group: &NoticeGroup, mount: &OwnedFd) -> anyhow::Result<()> {
    let Err(error) = group.mark_filesystem(mount.as_fd()) else { return Ok(()) };
    if error.errno() != Some(CROSS_DEVICE) {
        return Err(error.into());
    }
    let top = mounts::btrfs_top(&mounts::mount_of_file(mount.as_fd())?.source)?;
    Ok(group.mark_filesystem(top.as_fd())?)
}

fn open_mounts(paths: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, OwnedFd)>> {
    let mut mounts = Vec::new();
    let mut devices: HashMap<(u32, u32), &Path> = HashMap::new();
    for path in paths {
        let shown = path.display();
        let (mount, found) = mount_point::open(path)?;
        if let Some(before) = devices.insert(found.device, path) {
            let (major, minor) = found.device;
            bail!(
                "{shown}: the same file system as {} (device {major}:{minor}), which is named already (fix: name it once, \
                 it is guarded through every mount)",
                before.display()
            );
        }
        mounts.push((found.point, mount));
    }
    Ok(mounts)
}

/// One guard a file system, whatever its run directory: two would renew the same labels.
fn lock_filesystems(mounts: &[(PathBuf, OwnedFd)]) -> anyhow::Result<Vec<Lock>> {
    let mut locks = Vec::new();
    make_directory(Path::new(LOCKS))?;
    for (path, mount) in mounts {
        let device = mounts::mount_of_file(mount.as_fd())?.device;
        locks.push(patiently(|| lock_filesystem(path, device))?);
    }
    Ok(locks)
}

/// Takes the lock of the file system with this device.
pub(crate) fn lock_filesystem(path: &Path, (major, minor): (u32, u32)) -> anyhow::Result<Lock> {
    let taken = format!("{}: this file system is guarded already, another guard is running", path.display());
    take_lock(&Path::new(LOCKS).join(format!("{major}:{minor}")), &taken)
}

/// Tries again for as long as another guard may take to notice that what it guards has gone: when a file system is
/// unmounted, the next one may get its device number at once.
fn patiently<T>(mut attempt: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let end = Instant::now() + NOTICED;
    loop {
        let result = attempt();
        if result.is_ok() || Instant::now() > end {
            return result;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn make_directory(path: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(refused(format!("cannot make the directory {}", path.display()), "run as root"))
}

/// The host key, made if there is none. A state directory that cannot be used (read-only, full) is no reason not to guard;
/// a key that is no secret is.
fn journal_key(config: &Config) -> anyhow::Result<Result<HostKey, String>> {
    if config.journal == Keeping::Off {
        return Ok(Err(String::new()));
    }
    let made = make_directory(&config.state_dir.join("journal"));
    let path = config.state_dir.join("host.key");
    match made.map(|()| host_key::load_or_make(&path)) {
        Ok(Ok(key)) => Ok(Ok(key)),
        Ok(Err(HostKeyError::Call(error))) => Ok(Err(error.to_string())),
        Ok(Err(error)) => {
            Err(refused("the host key is no secret", "look who could have read it, remove it, start again")(error))
        }
        Err(error) => Ok(Err(format!("{error:#}"))),
    }
}

/// Opens the journals, and takes over what is in them. Without one everything goes on, but power cuts are not covered.
fn begin_journal(guard: &mut Guard, config: &Config, key: Result<HostKey, String>, mounts: &[(PathBuf, OwnedFd)]) {
    let file_systems = guard.filesystems.lasting();
    if config.journal == Keeping::Off || file_systems.is_empty() {
        return;
    }
    let directory = config.state_dir.join("journal");
    let file_systems = file_systems.into_iter().map(|(number, uuid)| {
        let mount = mounts.get(number);
        (number, Subject { uuid, keeps_order: mount.is_some_and(|(_, mount)| keeps_order(&directory, mount.as_fd())) })
    });
    let file_systems = file_systems.collect();
    let (started, own) = channel();
    let beside = guard.journal.beside().clone();
    let scribe = key.and_then(|key| {
        let of_old = if config.journal == Keeping::Unflushed { Reach::FlushedSoon } else { Reach::Flushed };
        let place = (directory, key.derive(PURPOSE), of_old);
        Scribe::start(&beside.apart, &started, beside.wake, place, file_systems)
    });
    drop(started);
    match scribe {
        Ok((scribe, noted, opened)) => {
            guard.own_threads.extend(own.iter());
            let usable = opened.iter().filter(|opened| opened.notes.is_ok()).map(|opened| opened.file_system);
            guard.journal.begin((scribe, noted), usable.collect(), config.journal);
            guard.recover(opened, mounts, config.recover);
        }
        Err(why) => guard.note(Failure::JournalNotWritten, &format!("power cuts are not covered: {why}")),
    }
}

/// `taken` is what it means that somebody else holds it.
fn take_lock(path: &Path, taken: &str) -> anyhow::Result<Lock> {
    Lock::take(path).map_err(|error| match error {
        LockError::Taken { .. } => anyhow!("{taken}: {error} (fix: end it first, or let one guard have all mounts)"),
        LockError::Call(_) | _ => {
            anyhow!("cannot take the lock that keeps a second guard out: {error} (fix: run as root, and see that this can be \
                     a file)")
        }
    })
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
    let warnings =
        policies::unseen(policy).into_iter().chain(policies::guards_nothing(policy).then(|| NOTHING.to_owned()));
    for warning in warnings {
        log.say(Level::Warning, format!("imarad: {warning}"));
    }
}

/// Said where a policy [guards nothing](policies::guards_nothing).
const NOTHING: &str = "nothing is guarded by this policy: no rule of it appraises a file that is opened or executed (fix: \
                       choose another with --policy, such as builtin:appraise_tcb)";

/// The line that says that every mark is in place.
fn announce(guard: &Guard) {
    let mounts: Vec<String> = guard.filesystems.all().iter().map(|fs| fs.path.display().to_string()).collect();
    let (mode, policy) = (guard.settings.mode, &guard.policy_name);
    let mounts = if mounts.is_empty() { vec!["nothing yet".to_owned()] } else { mounts };
    let mut line = format!("guarding {} (mode {mode}, policy {policy})", mounts.join(" "));
    if policies::guards_nothing(&guard.policy) {
        line = format!("{line}, but {NOTHING}");
    }
    // Whoever started us may not care to read it.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
