//! The guarded file systems: what the policy wants to know of them, and their names in the log.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use imara_integrity::event::{Event, FileSystem, Gid, Hook, Mask, Object, Subject, Uid};
use imara_integrity::policy::{Decision, Foreseen, Policy, Writers};
use imara_linux::fanotify::{FsMask, PermissionGroup};
use imara_linux::file::{FileFacts, Times};
use imara_linux::handle::file_handle;
use imara_linux::lease;
use imara_linux::open_call::OpenCall;
use imara_linux::private_mount;

use crate::closer::{Closer, LateFd};

/// File systems whose labels and contents, once in memory, are read without asking anybody: not a server, nor a program.
const SELF_CONTAINED: [&str; 7] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "f2fs"];

/// File systems on which closing a file that nobody writes to takes no time.
const CLOSED_AT_ONCE: [&str; 4] = ["ext2", "ext3", "ext4", "btrfs"];

/// File systems whose files others can change without this kernel hearing of it: another machine, or a program.
const CHANGED_ELSEWHERE: [&str; 15] = [
    "9p", "afs", "ceph", "cifs", "coda", "fuse", "fuseblk", "gfs2", "lustre", "nfs", "nfs4", "ocfs2", "orangefs",
    "smb3", "virtiofs",
];

/// So many results are kept for another time.
const FORESEEN: usize = 4096;

/// For how long a file system that was slow is left to the workers.
const RECOVERY: Duration = Duration::from_secs(10);

/// One guarded file system.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// Where the administrator said it is mounted.
    pub(crate) path: PathBuf,
    /// What rules ask about it.
    pub(crate) facts: FileSystem,
    /// Its name in audit lines, as the kernel's `s_id`: `loop0`, `vda1`, `tmpfs`.
    pub(crate) name: String,
    /// Its device, as in `/proc/self/mountinfo`. Files may show others: btrfs has one for each subvolume.
    device: (u32, u32),
    /// The device that its root directory shows.
    shown: (u32, u32),
    /// Keeps other guards away from it for as long as its mark is there.
    pub(crate) lock: Option<LateFd>,
    /// Whether its mark is still there.
    pub(crate) marked: bool,
    /// A mount of our own, through which remembered files are held without keeping the public one busy.
    private: Option<Arc<LateFd>>,
    /// Whether that mount was given up, because it was mounted nowhere else.
    bereft: bool,
    /// As notices name it.
    fsid: Option<[i32; 2]>,
    times: Times,
    /// Whether a mount of it shows other owners than files have.
    id_mapped: bool,
    /// When it was last seen to be slow.
    slow: Option<Instant>,
}

/// What is to be done because the list of mounts has changed.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Devices of guarded file systems that are mounted nowhere any more: what is remembered of them keeps them busy.
    pub(crate) unmounted: Vec<(u32, u32)>,
    /// Device, and number in notices, of those that can now be seen with other owners.
    pub(crate) id_mapped: Vec<((u32, u32), [i32; 2])>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct FileSystems {
    guarded: Vec<Guarded>,
    /// Where others are awaited that need not be there at the start.
    later: Vec<PathBuf>,
    devices: BTreeMap<(u32, u32), usize>,
    /// Mounts through which files show their own owners.
    plain: HashSet<u64>,
    /// By file system, owner and group.
    foreseen: BTreeMap<(usize, Uid, Gid), Foresight>,
}

/// What rules can ask of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foresight {
    /// When it is opened without being executed.
    pub(crate) open: Foreseen,
    /// When it is executed.
    pub(crate) exec: Foreseen,
    /// Who is judged that opens it for writing.
    pub(crate) writers: Writers,
}

impl Guarded {
    /// Its device, as in `/proc/self/mountinfo`.
    pub(crate) const fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Takes a mount of our own over, and out of the guard's sight.
    pub(crate) fn keep_private(&mut self, private: Option<LateFd>, group: &PermissionGroup) {
        self.private = private.filter(|root| group.ignore_mount(root.as_fd(), FsMask::IGNORABLE).is_ok()).map(Arc::new);
        self.bereft = false;
    }

    /// Looks at one; `mount` is an open descriptor of its mount point.
    pub(crate) fn look(path: &Path, mount: &OwnedFd) -> anyhow::Result<Self> {
        let facts = imara_linux::file::facts(mount.as_fd())?;
        let found = imara_linux::mounts::filesystem_of(mount.as_fd())?;
        if let Some(why) = unfit(&found.name, lease::are_given_in(mount.as_fd())) {
            bail!("{}: {} cannot be guarded: {why} (fix: guard ext4, xfs, btrfs or tmpfs)", path.display(), found.name);
        }
        let entry = imara_linux::mounts::mount_of_file(mount.as_fd())?;
        let name = device_of(Path::new(&entry.source)).unwrap_or_else(|| found.name.clone());
        Ok(Self {
            path: path.to_owned(),
            facts: found,
            name,
            device: entry.device,
            shown: facts.device,
            lock: None,
            marked: true,
            private: None,
            bereft: false,
            fsid: file_handle(mount.as_fd()).ok().map(|handle| handle.fsid()),
            times: imara_linux::file::times_of(mount.as_fd()),
            id_mapped: false,
            slow: None,
        })
    }
}

impl FileSystems {
    /// None yet; some are awaited.
    pub(crate) fn new(later: Vec<PathBuf>) -> Self {
        Self { later, ..Self::default() }
    }

    /// Adds one, in the place of one that has gone from there, if it has. Its number, if it is another one than that.
    pub(crate) fn insert(&mut self, guarded: Guarded) -> Option<usize> {
        let gone = self.guarded.iter().position(|fs| fs.path == guarded.path && !fs.marked);
        let index = gone.unwrap_or(self.guarded.len());
        self.devices.retain(|_, of| *of != index);
        self.foreseen.retain(|(of, ..), _| *of != index);
        self.devices.insert(guarded.shown, index);
        self.devices.insert(guarded.device, index);
        match self.guarded.get_mut(index) {
            Some(before) => {
                let before = std::mem::replace(before, guarded).facts.uuid;
                self.guarded.get(index).is_some_and(|now| now.facts.uuid != before).then_some(index)
            }
            None => {
                self.guarded.push(guarded);
                Some(index)
            }
        }
    }

    /// The file system that is marked and was mounted here again before it had gone, with its own mount to be made again.
    pub(crate) fn bereft_mut(&mut self, path: &Path, device: (u32, u32)) -> Option<&mut Guarded> {
        self.guarded.iter_mut().find(|fs| fs.marked && fs.bereft && fs.path == path && fs.device == device)
    }

    /// Whether the file system with this device is guarded, and nothing of it is missing.
    pub(crate) fn is_whole(&self, device: (u32, u32)) -> bool {
        self.guarded.iter().any(|fs| fs.marked && !fs.bereft && fs.device == device)
    }

    /// Where file systems are awaited: those that have gone, and those that have not come yet.
    pub(crate) fn awaited(&self) -> Vec<PathBuf> {
        let gone = self.guarded.iter().filter(|fs| !fs.marked || fs.bereft).map(|fs| fs.path.clone());
        let is_there = |path: &PathBuf| self.guarded.iter().any(|fs| fs.path == *path);
        gone.chain(self.later.iter().filter(|path| !is_there(path)).cloned()).collect()
    }

    /// Takes over the lock of each, in their order.
    pub(crate) fn keep(&mut self, locks: impl Iterator<Item = LateFd>) {
        self.guarded.iter_mut().zip(locks).for_each(|(guarded, lock)| guarded.lock = Some(lock));
    }

    pub(crate) fn all(&self) -> &[Guarded] {
        &self.guarded
    }

    /// Makes each file system's mount of our own, where the kernel lets us.
    pub(crate) fn make_private(&mut self, group: &PermissionGroup, closer: &Closer, mounts: &[(PathBuf, OwnedFd)]) {
        for (guarded, (_, mount)) in self.guarded.iter_mut().zip(mounts) {
            // Through a copy of one that maps ids, files would not show their own owners.
            let maps = imara_linux::mounts::mount_of_file(mount.as_fd()).is_ok_and(|mount| mount.id_mapped);
            let private = if maps { None } else { private_mount::of(mount.as_fd()).ok() };
            guarded.keep_private(private.map(|root| closer.late(root, false)), group);
        }
    }

    /// The mount of our own of the file system with this device.
    pub(crate) fn private(&self, device: (u32, u32)) -> Option<Arc<LateFd>> {
        self.by_device(device)?.private.clone()
    }

    /// The same of the one with this number.
    pub(crate) fn private_by_number(&self, number: usize) -> Option<Arc<LateFd>> {
        self.guarded.get(number)?.private.clone()
    }

    /// Those that outlast a power cut, by number, with what identifies them.
    pub(crate) fn lasting(&self) -> Vec<(usize, [u8; 16])> {
        let lasts = |fs: &Guarded| fs.facts.name != "tmpfs" && fs.facts.uuid != [0; 16];
        self.guarded
            .iter()
            .enumerate()
            .filter(|(_, fs)| lasts(fs))
            .map(|(number, fs)| (number, fs.facts.uuid))
            .collect()
    }

    /// The mounts of our own of the file systems that notices name so: one, or several if one is a copy of another.
    pub(crate) fn private_of(&self, fsid: [i32; 2]) -> Vec<Arc<LateFd>> {
        self.guarded.iter().filter(|fs| fs.fsid == Some(fsid)).filter_map(|fs| fs.private.clone()).collect()
    }

    /// Whether the kernel may answer for such a file: it is on a guarded file system itself (not on an overlay over one),
    /// of a kind whose changes are all heard of, and shows its own owner, here and through every mount that we can see:
    /// what the kernel answers, it answers through all of them.
    pub(crate) fn may_ignore(&self, facts: &FileFacts) -> bool {
        let fit =
            |fs: &Guarded| !fs.id_mapped && fs.private.is_some() && SELF_CONTAINED.contains(&fs.facts.name.as_str());
        self.by_device(facts.device).is_some_and(fit) && facts.mount_id.is_some_and(|id| self.plain.contains(&id))
    }

    /// Whether each change of a file's content shows in its time of change, even if made through a mapping.
    pub(crate) fn shows_changes(&self, device: (u32, u32)) -> bool {
        let name = self.by_device(device).map(|fs| fs.facts.name.as_str());
        name.is_some_and(|name| name != "tmpfs" && SELF_CONTAINED.contains(&name))
    }

    /// Whether a file on it that is open elsewhere, has a name and no writer is closed without waiting for anything. (Every
    /// close may begin to write out what is not on the disk yet; here that is done when the last writer closes.)
    ///
    /// Source: Linux `fs/ext4/file.c`, `ext4_release_file()`; `fs/btrfs/file.c`, `btrfs_release_file()`; but `fs/xfs/xfs_file.c`,
    /// `xfs_file_release()`.
    pub(crate) fn closes_at_once(&self, device: (u32, u32)) -> bool {
        self.by_device(device).is_some_and(|fs| CLOSED_AT_ONCE.contains(&fs.facts.name.as_str()))
    }

    /// What the times of change on it are worth.
    pub(crate) fn times(&self, device: (u32, u32)) -> Times {
        self.by_device(device).map_or(Times::Coarse, |fs| fs.times)
    }

    /// What rules can ask of such a file, whoever opens it.
    pub(crate) fn foresee(&mut self, policy: &Policy, facts: &FileFacts) -> Foresight {
        let key = (self.number(facts.device), facts.owner, facts.group);
        if let Some(foreseen) = self.foreseen.get(&key) {
            return *foreseen;
        }
        let object = Object { owner: facts.owner, group: facts.group, fs: self.of(facts) };
        let (open, exec) = (policy.foresee_open(&object), policy.foresee_exec(&object));
        let foreseen = Foresight { open, exec, writers: policy.appraised_writers(&object) };
        if self.foreseen.len() >= FORESEEN {
            self.foreseen.clear();
        }
        self.foreseen.insert(key, foreseen);
        foreseen
    }

    /// The number of the file system with this device; one more than there are, if it is not known.
    pub(crate) fn number(&self, device: (u32, u32)) -> usize {
        self.devices.get(&device).copied().unwrap_or(self.guarded.len())
    }

    fn by_device(&self, device: (u32, u32)) -> Option<&Guarded> {
        self.devices.get(&device).and_then(|index| self.guarded.get(*index))
    }

    /// Whether what is in memory of this file system can be read by somebody who may not wait.
    pub(crate) fn is_prompt(&self, device: (u32, u32), now: Instant) -> bool {
        self.by_device(device).is_some_and(|fs| {
            SELF_CONTAINED.contains(&fs.facts.name.as_str())
                && fs.slow.is_none_or(|since| now.duration_since(since) > RECOVERY)
        })
    }

    /// Something on this file system took long, or does not end.
    pub(crate) fn was_slow(&mut self, device: (u32, u32), now: Instant) {
        let index = self.devices.get(&device).copied();
        if let Some(fs) = index.and_then(|index| self.guarded.get_mut(index)) {
            fs.slow = Some(now);
        }
    }

    /// What the policy asks, over all the ways in which the file may be being opened: the strictest counts.
    pub(crate) fn decide(
        &mut self,
        policy: &Policy,
        hook: Hook,
        masks: &[Mask],
        subject: Option<Subject>,
        facts: &FileFacts,
    ) -> Decision {
        let object = Object { owner: facts.owner, group: facts.group, fs: self.of(facts) };
        let event = |mask| Event::of_file(hook, mask, subject.unwrap_or(Subject::ROOT), object.clone());
        if hook == Hook::BprmCheck {
            return policy.decide_exec(&event(Mask::EXEC));
        }
        let all = masks.iter().map(|mask| policy.decide(&event(*mask)));
        all.reduce(Decision::and).unwrap_or_default()
    }

    /// The name of a device in audit lines.
    pub(crate) fn device_name(&self, device: (u32, u32)) -> String {
        self.by_device(device).map_or_else(|| format!("{}:{}", device.0, device.1), |fs| fs.name.clone())
    }

    /// The file system of a file. A device that was not seen before is that of a btrfs subvolume, whose mount tells, or,
    /// if that is in another mount namespace, the only btrfs there is. What is known of no file system matches no
    /// condition on one, so that exceptions from being appraised do not hold.
    fn of(&mut self, facts: &FileFacts) -> &FileSystem {
        static NONE: FileSystem = FileSystem { magic: 0, name: String::new(), subtype: None, uuid: [0; 16] };
        if !self.devices.contains_key(&facts.device) {
            let mounts = imara_linux::mounts::mounts().unwrap_or_default();
            let mount = mounts.iter().find(|mount| Some(mount.id) == facts.mount_id);
            let mut subvolumes = self.guarded.iter().enumerate().filter(|(_, fs)| fs.facts.name == "btrfs");
            let only = subvolumes.next().filter(|_| subvolumes.next().is_none()).map(|(index, _)| index);
            let index = mount.and_then(|mount| self.devices.get(&mount.device).copied()).or(only);
            let Some(index) = index else { return &NONE };
            self.devices.insert(facts.device, index);
        }
        self.by_device(facts.device).map_or(&NONE, |guarded| &guarded.facts)
    }

    /// The list of mounts has changed.
    pub(crate) fn mounts_changed(&mut self) -> Changes {
        let Ok(mounts) = imara_linux::mounts::mounts() else { return Changes::default() };
        self.plain = mounts.iter().filter(|mount| !mount.id_mapped).map(|mount| mount.id).collect();
        let unmounted = |fs: &Guarded| !mounts.iter().any(|mount| mount.device == fs.device);
        for fs in self.guarded.iter_mut().filter(|fs| unmounted(fs)) {
            fs.bereft |= fs.private.take().is_some();
        }
        let of = |index: &usize| self.guarded.get(*index).is_some_and(unmounted);
        let unmounted = self.devices.iter().filter(|(_, index)| of(index)).map(|(device, _)| *device).collect();
        let mut id_mapped = Vec::new();
        for fs in &mut self.guarded {
            let now = mounts.iter().any(|mount| mount.device == fs.device && mount.id_mapped);
            if now && !std::mem::replace(&mut fs.id_mapped, now) {
                id_mapped.extend(fs.fsid.map(|fsid| (fs.device, fsid)));
            }
            fs.id_mapped = now;
        }
        Changes { unmounted, id_mapped }
    }

    /// File systems that have gone, and their marks with them; each is told once. `marked` is what the kernel lists.
    pub(crate) fn take_gone(&mut self, marked: &[(u32, u32)]) -> Vec<(PathBuf, Vec<(u32, u32)>)> {
        let devices = &self.devices;
        let of = |wanted| devices.iter().filter(move |(_, index)| **index == wanted).map(|(device, _)| *device);
        let gone = |fs: &Guarded| fs.marked && !marked.contains(&fs.device);
        let gone = self.guarded.iter_mut().enumerate().filter(|(_, fs)| gone(fs));
        gone.map(|(index, fs)| {
            fs.marked = false;
            fs.lock = None;
            (fs.path.clone(), of(index).collect())
        })
        .collect()
    }
}

/// Why a file system cannot be guarded, if so. `leases`: whether its files give them, where that could be tried.
fn unfit(name: &str, leases: Option<bool>) -> Option<&'static str> {
    if CHANGED_ELSEWHERE.contains(&name) {
        return Some("its files can be changed from elsewhere without this kernel hearing of it");
    }
    (leases == Some(false)).then_some("its files give no leases, so nobody tells when they change")
}

/// The kernel's name of a block device: `dm-0`, not `mapper/root`.
fn device_of(source: &Path) -> Option<String> {
    if !source.starts_with("/dev") {
        return None;
    }
    source.canonicalize().ok()?.file_name()?.to_str().map(ToOwned::to_owned)
}

/// The access masks of a system call, as the kernel's hook would see them; absent if the call does not tell.
///
/// Source: Linux `security/integrity/ima/ima_main.c`, `ima_file_check()`; `fs/namei.c`, `ACC_MODE`.
pub(crate) fn masks(call: OpenCall) -> Option<&'static [Mask]> {
    const READ_WRITE: Mask = Mask::READ.union(Mask::WRITE);
    const WRITE_APPEND: Mask = Mask::WRITE.union(Mask::APPEND);
    const READ_WRITE_APPEND: Mask = READ_WRITE.union(Mask::APPEND);
    let OpenCall::Flags(flags) = call else {
        return match call {
            OpenCall::Exec => Some(&[Mask::EXEC]),
            OpenCall::Flags(_) | OpenCall::How | OpenCall::NotYet => None,
        };
    };
    let writes = flags.writes() || flags.truncates();
    Some(match (flags.reads(), writes, flags.appends()) {
        (_, false, _) => &[Mask::READ],
        (false, true, false) => &[Mask::WRITE],
        (false, true, true) => &[WRITE_APPEND],
        (true, true, false) => &[READ_WRITE],
        (true, true, true) => &[READ_WRITE_APPEND],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_unheard_is_not_guarded() {
        for (name, leases, fit) in [
            ("ext4", Some(true), true),
            ("xfs", None, true),
            ("tmpfs", Some(false), false),
            ("nfs4", Some(true), false),
            ("fuse", None, false),
        ] {
            assert_eq!(unfit(name, leases).is_none(), fit, "{name} {leases:?}");
        }
    }
}
