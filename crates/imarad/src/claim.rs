//! A file system that has come is marked, and guarded from then on.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::bail;
use imara_linux::notice::NoticeGroup;

use crate::candidate::Candidate;
use crate::closer::LateFd;
use crate::serve::Guard;

impl Guard {
    /// Marks it, creations first and opens last, as at the start. What cannot be done as a whole is undone.
    pub(crate) fn claim(&mut self, candidate: Candidate, files: Vec<LateFd>) -> anyhow::Result<()> {
        let Candidate { mut guarded, lock, private } = candidate;
        let mut files = files.into_iter();
        let root = files.next();
        let lock = if lock { files.next() } else { None };
        let Some(root) = root else {
            bail!("its descriptors were lost (fix: raise the limit of open files)");
        };
        let private = if private { files.next() } else { None };
        let top = files.next();
        if lock.is_none() {
            let device = guarded.device();
            let Some(fs) = self.filesystems.bereft_mut(&guarded.path, device) else { bail!("it has gone meanwhile") };
            fs.keep_private(private, &self.group);
            return Ok(());
        }
        guarded.keep_private(private, &self.group);
        guarded.lock = lock;
        let top = top.as_ref().unwrap_or(&root);
        let notices = [self.created.group(), self.ignoring.notices()];
        let marked = notices
            .iter()
            .try_for_each(|group| mark_notices(group, root.as_fd(), top.as_fd()))
            .and_then(|()| Ok(self.group.mark_filesystem(root.as_fd(), self.violations.mask())?));
        if let Err(error) = marked {
            for group in notices {
                // An error says that it was not marked.
                let _ = group.unmark_filesystem(top.as_fd());
            }
            return Err(error);
        }
        if let Some(other) = self.filesystems.insert(guarded) {
            self.journal.has_another(other);
        }
        Ok(())
    }
}

/// A btrfs subvolume cannot be marked by itself, only through the top of its file system.
fn mark_notices(group: &NoticeGroup, root: BorrowedFd<'_>, top: BorrowedFd<'_>) -> anyhow::Result<()> {
    if group.mark_filesystem(root).is_err() {
        group.mark_filesystem(top)?;
    }
    Ok(())
}
