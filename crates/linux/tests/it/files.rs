//! Facts, labels and mounts of real files.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::event::{Gid, Uid};
use imara_linux::epoll::{Epoll, Interest, Ready};
use imara_linux::hash::{FileHasher, HashError};
use imara_linux::mounts::{self, MountWatch};
use imara_linux::testing::{FsKind, ScratchMount, on, on_each};
use imara_linux::xattr::{self, Found, Refusal};
use imara_linux::{file, lease, limits, sync};

#[test]
fn order_is_kept_where_the_disk_is_flushed_before_transactions() {
    on_each(|scratch| {
        let keeps = || sync::keeps_order(scratch.path(), File::open(scratch.path()).unwrap().as_fd());
        let kind = scratch.kind();
        assert_eq!(keeps(), matches!(kind, FsKind::Ext4 | FsKind::Xfs), "{kind:?}");
        assert!(!sync::keeps_order(Path::new("/proc"), File::open(scratch.path()).unwrap().as_fd()), "{kind:?}");
        if kind == FsKind::Ext4 {
            for options in ["nobarrier", "journal_async_commit,data=writeback"] {
                scratch.cycle_with(options).unwrap();
                assert!(!keeps(), "{options}");
            }
            assert!(Command::new("umount").arg(scratch.path()).status().unwrap().success());
            let image = scratch.path().with_file_name("image");
            assert!(Command::new("tune2fs").args(["-O", "^has_journal"]).arg(image).output().unwrap().status.success());
            scratch.cycle().unwrap();
            assert!(!keeps(), "without a journal");
        }
    });
}

#[test]
fn the_facts_are_those_of_the_standard_library() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
        std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
        let open = File::open(&path).unwrap();
        let (facts, expected) = (file::facts(open.as_fd()).unwrap(), open.metadata().unwrap());
        assert_eq!((facts.owner, facts.group), (Uid(12), Gid(34)), "{kind:?}");
        assert_eq!((facts.inode, facts.size, facts.links), (expected.ino(), 8, 1), "{kind:?}");
        assert_eq!(u32::from(facts.mode), expected.mode(), "{kind:?}");
        assert_eq!(libc::makedev(facts.device.0, facts.device.1), expected.dev(), "{kind:?}");
        let changed = (facts.changed.seconds, i64::from(facts.changed.nanoseconds));
        assert_eq!(changed, (expected.ctime(), expected.ctime_nsec()), "{kind:?}");
        assert!(facts.is_regular() && !facts.is_directory() && facts.born.is_some(), "{kind:?}");
        fs::remove_file(&path).unwrap();
        assert_eq!(file::facts(open.as_fd()).unwrap().links, 0, "{kind:?}");
        assert!(file::path_of(open.as_fd()).unwrap().ends_with(b"/file (deleted)"), "{kind:?}");
    });
}

#[test]
fn a_label_is_absent_then_written_then_read_then_removed() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let file = File::create(scratch.path().join("file")).unwrap();
        let (fd, mut small, mut any) = (file.as_fd(), [0; 16], Vec::new());
        assert_eq!(xattr::read(fd, xattr::IMA, &mut small).unwrap(), Found::Absent, "{kind:?}");
        assert_eq!(xattr::read_all(fd, xattr::IMA, &mut any).unwrap(), Found::Absent, "{kind:?}");
        assert_eq!(any, [], "{kind:?}");
        let refused = xattr::remove(fd, xattr::IMA).unwrap_err();
        assert_eq!(refused.refusal, Refusal::Absent, "{kind:?}: {refused}");

        for value in [&[1; 5][..], &[2; 16], &[]] {
            xattr::write(fd, xattr::IMA, value).unwrap();
            assert_eq!(xattr::read(fd, xattr::IMA, &mut small).unwrap(), Found::Value(value.len()), "{kind:?}");
            assert_eq!(&small[..value.len()], value, "{kind:?}");
        }
        let long = [3; 2000];
        xattr::write(fd, xattr::EVM, &long).unwrap();
        assert!(xattr::read(fd, xattr::EVM, &mut small).is_err(), "{kind:?}");
        assert!(xattr::read(fd, xattr::EVM, &mut []).is_err(), "{kind:?}");
        assert_eq!(xattr::read_all(fd, xattr::EVM, &mut any).unwrap(), Found::Value(2000), "{kind:?}");
        assert_eq!(any, long, "{kind:?}");
        xattr::remove(fd, xattr::EVM).unwrap();
        assert_eq!(xattr::read(fd, xattr::EVM, &mut small).unwrap(), Found::Absent, "{kind:?}");
    });
}

#[test]
fn writing_a_label_on_a_read_only_mount_and_on_proc_says_why_not() {
    on(FsKind::Ext4, |scratch| {
        let path = scratch.path().join("file");
        fs::write(&path, b"x").unwrap();
        scratch.remount("ro").unwrap();
        let refused = xattr::write(File::open(&path).unwrap().as_fd(), xattr::IMA, b"x").unwrap_err();
        assert_eq!(refused.refusal, Refusal::ReadOnly, "{refused}");
    });
    let proc = File::open("/proc/self/status").unwrap();
    assert_eq!(xattr::read(proc.as_fd(), xattr::IMA, &mut [0; 16]).unwrap(), Found::Unsupported);
}

#[test]
fn a_label_that_does_not_fit_says_that_there_is_no_room() {
    on(FsKind::Ext4, |scratch| {
        let file = File::create(scratch.path().join("file")).unwrap();
        // A block of ext4 is the most that all attributes of a file may need.
        let refused = xattr::write(file.as_fd(), xattr::IMA, &[0; 60000]).unwrap_err();
        assert_eq!(refused.refusal, Refusal::NoSpace, "{refused}");
    });
}

#[test]
fn a_file_system_is_known_by_magic_name_and_uuid() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let found = mounts::filesystem_of(File::open(scratch.path()).unwrap().as_fd()).unwrap();
        let magic = match kind {
            FsKind::Ext4 => 0xef53,
            FsKind::Xfs => 0x5846_5342,
            FsKind::Btrfs => 0x9123_683e,
            FsKind::Tmpfs => 0x0102_1994,
        };
        assert_eq!((found.magic, found.name.as_str(), found.subtype.as_deref()), (magic, kind.name(), None));
        let image = scratch.path().with_file_name("image");
        if image.exists() {
            let blkid = Command::new("blkid").args(["-o", "value", "-s", "UUID"]).arg(image).output();
            let expected = String::from_utf8(blkid.unwrap().stdout).unwrap().trim().replace('-', "");
            let uuid: String = found.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(uuid, expected, "{kind:?}");
        }
    });
}

#[test]
fn a_mount_is_found_by_path_and_its_end_is_noticed() {
    let Some(_) = imara_linux::testing::root() else { return };
    let mut watch = MountWatch::open().unwrap();
    let epoll = Epoll::new().unwrap();
    epoll.add(&watch, 1, Interest::Changed).unwrap();
    let mut ready = Ready::default();
    let scratch = ScratchMount::new(FsKind::Tmpfs, 0).unwrap();
    assert_eq!(epoll.wait(&mut ready, Some(Duration::from_secs(60))).unwrap().collect::<Vec<_>>(), [1]);
    let mount = mounts::mount_of(scratch.path()).unwrap();
    assert_eq!((mount.point.as_path(), mount.name.as_str(), mount.read_only), (scratch.path(), "tmpfs", false));
    assert!(watch.mounts().unwrap().contains(&mount));
    scratch.remount("ro").unwrap();
    assert!(mounts::mount_of(scratch.path()).unwrap().read_only);
    let point = scratch.path().to_path_buf();
    drop(scratch);
    assert!(watch.has_changed());
    while watch.has_changed() {} // Other tests mount and unmount too, but not all the time.
    assert!(!watch.mounts().unwrap().iter().any(|mount| mount.point == point));
    assert!(!point.exists());
}

#[test]
fn the_limit_of_open_files_is_raised_to_the_hard_one() {
    let hard = limits::raise_open_files().unwrap();
    assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Nofile).current, Some(hard));
}

#[test]
fn reading_at_an_offset_ends_where_the_file_does() {
    let path = std::env::temp_dir().join(format!("imara-read-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    fs::write(&path, b"0123456789").unwrap();
    fs::remove_file(&path).unwrap();
    let mut buffer = [0; 4];
    for (offset, length, expected) in [(0, 4, &b"0123"[..]), (8, 2, b"89"), (10, 0, b""), (1 << 40, 0, b"")] {
        assert_eq!(file::read_at(&file, &mut buffer, offset).unwrap(), length, "{offset}");
        assert_eq!(&buffer[..length], expected, "{offset}");
    }
}

#[test]
fn the_digest_is_that_of_all_bytes_and_progress_counts_them() {
    on(FsKind::Tmpfs, |scratch| {
        let (path, mut hasher) = (scratch.path().join("file"), FileHasher::default());
        for length in [0, 1, 128 << 10, (128 << 10) + 1, 300_000_u32] {
            let contents: Vec<u8> = (0..length).map(|place| u8::try_from(place % 251).unwrap()).collect();
            fs::write(&path, &contents).unwrap();
            let (file, progress) = (File::open(&path).unwrap(), AtomicU64::new(5));
            let size = u64::from(length);
            let digest = hasher.hash(file.as_fd(), size, HashAlgorithm::Sha256, &progress).unwrap();
            assert_eq!(digest, Digest::of(HashAlgorithm::Sha256, &contents), "{length}");
            assert_eq!(progress.into_inner(), size + 5, "{length}");
        }
    });
}

#[test]
fn what_has_just_been_written_is_in_memory_and_hashed_without_waiting() {
    on(FsKind::Ext4, |scratch| {
        let (path, contents) = (scratch.path().join("file"), vec![7; 30_000]);
        fs::write(&path, &contents).unwrap();
        let file = File::open(&path).unwrap();
        let mut hasher = FileHasher::default();
        let digest = hasher.load(file.as_fd(), 30_000).unwrap().hash(HashAlgorithm::Sha256);
        assert_eq!(digest, Digest::of(HashAlgorithm::Sha256, &contents));
        // Shorter than it is said to be: no digest of less. Larger than the buffer: not at all.
        assert!(hasher.load(file.as_fd(), 30_001).is_none());
        assert!(hasher.load(file.as_fd(), (128 << 10) + 1).is_none());
        assert_eq!(
            hasher.load(file.as_fd(), 0).unwrap().hash(HashAlgorithm::Sha1),
            Digest::of(HashAlgorithm::Sha1, b"")
        );
    });
}

#[test]
fn a_file_that_is_shorter_than_it_says_has_no_digest() {
    // Files of sysfs say that they have a page, and end earlier.
    let file = File::open("/sys/kernel/mm/transparent_hugepage/enabled")
        .or_else(|_| File::open("/sys/kernel/fscaps"))
        .unwrap();
    let size = file::facts(file.as_fd()).unwrap().size;
    let result = FileHasher::default().hash(file.as_fd(), size, HashAlgorithm::Sha1, &AtomicU64::new(0));
    let Err(HashError::Short { read, expected, .. }) = result else { panic!("{result:?}") };
    assert!(read < expected, "{read} {expected}");
}

#[test]
fn leases_are_given_by_file_systems_of_this_machine_and_not_known_where_nothing_can_be_made() {
    on_each(|scratch| {
        let open = || File::open(scratch.path()).unwrap();
        // Whoever forks in this process just then has the file open too.
        let given = (0..100).find_map(|_| lease::are_given_in(open().as_fd()));
        assert_eq!(given, Some(true), "{:?}", scratch.kind());
        scratch.remount("ro").unwrap();
        assert_eq!(lease::are_given_in(open().as_fd()), None, "{:?}", scratch.kind());
    });
    assert_eq!(lease::are_given_in(File::open("/proc").unwrap().as_fd()), None);
}
