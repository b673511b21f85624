//! What this host has, of what rows need.

use std::fs;
use std::path::Path;

use super::table::{Needs, Row, Status};

/// What rows ask of a host.
#[derive(Debug)]
pub(crate) struct Host {
    release: String,
    filesystems: String,
    io_uring: bool,
}

impl Host {
    /// Looks around; what cannot be read counts as absent.
    pub(crate) fn find() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            release: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystems: read("/proc/filesystems"),
            // The file came with Linux 6.6; 2 stands for 'nobody may'.
            io_uring: read("/proc/sys/kernel/io_uring_disabled").trim() != "2",
        }
    }

    /// The kernel's release, e.g. `6.12.1-amd64`.
    pub(crate) fn kernel(&self) -> &str {
        &self.release
    }

    /// The status that a row has here; nothing if nobody can come that way here.
    pub(crate) fn status_of(&self, row: &Row) -> Option<Status> {
        match row.needs {
            Needs::Nothing => Some(row.status),
            Needs::FileSystem(name) => self.has(name).then_some(row.status),
            Needs::OverlaySince { release, before } if self.has("overlay") => {
                Some(if version(&self.release) >= release { row.status } else { before })
            }
            Needs::OverlaySince { .. } => None,
            Needs::Path(path) => Path::new(path).exists().then_some(row.status),
            Needs::IoUring => self.io_uring.then_some(row.status),
        }
    }

    /// Whether the kernel knows this kind of file system (one in a module that is not loaded is not listed).
    fn has(&self, name: &str) -> bool {
        self.filesystems.split_whitespace().any(|word| word == name)
    }
}

/// The first two numbers of a release: `6.12.1-amd64` is (6, 12).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::table::ROWS;
    use super::*;

    #[test]
    fn a_release_is_read_up_to_its_second_number() {
        for (release, expected) in
            [("6.12.1-amd64", (6, 12)), ("6.5", (6, 5)), ("10.0-rc1", (10, 0)), ("6-x", (6, 0)), ("", (0, 0))]
        {
            assert_eq!(version(release), expected, "{release}");
        }
    }

    #[test]
    fn an_older_kernel_and_one_without_a_part_make_other_rows() {
        let row = |id: &str| ROWS.iter().find(|row| row.id == id).unwrap();
        let host = |release: &str, filesystems: &str, io_uring| Host {
            release: release.into(),
            filesystems: filesystems.into(),
            io_uring,
        };
        let (new, old) = (host("6.12.1", "nodev\toverlay\n\text4\n", true), host("6.1.0", "nodev\toverlay\n", true));
        let bare = host("6.12.1", "\text4\n", false);
        assert_eq!(new.status_of(row("overlay-lower")), Some(Status::Seen));
        assert_eq!(old.status_of(row("overlay-lower")), Some(Status::NotSeen));
        assert_eq!(bare.status_of(row("overlay-lower")), None);
        assert_eq!(new.status_of(row("io-uring")), Some(Status::Seen));
        assert_eq!(bare.status_of(row("io-uring")), None);
        assert_eq!(old.status_of(row("open")), Some(Status::Seen));
    }
}
