//! A mount that may be guarded, as somebody finds it who has time.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::bail;
use imara_linux::{mount_point, mounts, private_mount};

use crate::filesystems::Guarded;
use crate::start;

/// What is known of it. Descriptors are apart, because they mean something on one side only.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) guarded: Guarded,
    /// Whether there is a lock among the descriptors; else we have it already.
    pub(crate) lock: bool,
    /// Whether there is a mount of our own among the descriptors.
    pub(crate) private: bool,
}

/// Opens the mount with this number at this path, looks at it, and takes its lock, unless it is that of the device that is
/// held. The descriptors: its root directory, the lock if it was taken, that of a mount of our own if there is one, and the top
/// of a btrfs.
pub(crate) fn look(path: &Path, mount: u64, held: Option<(u32, u32)>) -> anyhow::Result<(Candidate, Vec<OwnedFd>)> {
    let (root, found) = mount_point::open(path)?;
    if found.id != mount {
        bail!("it has gone before it could be looked at");
    }
    let guarded = Guarded::look(path, &root)?;
    let ours = held == Some(found.device);
    let lock = if ours { None } else { Some(start::lock_filesystem(path, found.device)?) };
    let private = if found.id_mapped { None } else { private_mount::of(root.as_fd()).ok() };
    let top = if found.name == "btrfs" { Some(mounts::btrfs_top(&found.source)?) } else { None };
    let candidate = Candidate { guarded, lock: lock.is_some(), private: private.is_some() };
    Ok((candidate, [Some(root), lock.map(OwnedFd::from), private, top].into_iter().flatten().collect()))
}
