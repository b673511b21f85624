//! Which inode is meant, for as long as anything is remembered of it.

use std::os::fd::BorrowedFd;

use imara_linux::file::{FileFacts, Time};
use imara_linux::handle::short_handle;

/// An inode that lives: device, number, and what keeps a number that is used again from being taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    device: (u32, u32),
    inode: u64,
    identity: Identity,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Identity {
    /// The file system's own handle, with a generation; that of another btrfs subvolume on a device number that is used
    /// again differs too.
    Handle([u8; 24]),
    /// The time of its birth, where there are no handles, or longer ones.
    Birth(Option<Time>),
}

impl Key {
    /// That of an open file.
    pub(crate) fn of(file: BorrowedFd<'_>, facts: &FileFacts) -> Self {
        let identity = short_handle(file).map_or(Identity::Birth(facts.born), Identity::Handle);
        Self { device: facts.device, inode: facts.inode, identity }
    }

    /// The file with this handle.
    pub(crate) const fn of_handle(device: (u32, u32), inode: u64, handle: [u8; 24]) -> Self {
        Self { device, inode, identity: Identity::Handle(handle) }
    }

    /// The device, as the file shows it.
    pub(crate) const fn device(&self) -> (u32, u32) {
        self.device
    }

    /// The inode's number.
    pub(crate) const fn inode(&self) -> u64 {
        self.inode
    }

    /// As notices name it.
    pub(crate) const fn handle(&self) -> Option<[u8; 24]> {
        match self.identity {
            Identity::Handle(handle) => Some(handle),
            Identity::Birth(_) => None,
        }
    }

    /// Whether no later inode can be taken for this one.
    pub(crate) const fn is_unique(&self) -> bool {
        matches!(self.identity, Identity::Handle(_) | Identity::Birth(Some(_)))
    }
}
