//! What the kernel answers itself: ignore masks on inodes, and what takes them back.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use imara_integrity::check::Pass;
use imara_linux::fanotify::{Event, EventBuffer, FsMask, PermissionGroup};
use imara_linux::notice::{Notice, NoticeBuffer, NoticeGroup};
use imara_linux::testing::{FsKind, ScratchMount, on_each};
use imara_linux::{handle, xattr};

const BOTH: FsMask = FsMask::OPEN.union(FsMask::EXEC);

fn guarded(scratch: &ScratchMount) -> PermissionGroup {
    let group = PermissionGroup::open().unwrap();
    group.mark_filesystem(File::open(scratch.path()).unwrap().as_fd(), FsMask::GUARD).unwrap();
    group
}

/// Whether opening `path` with these options asks the group, which allows.
fn asks(group: &PermissionGroup, path: &Path, options: &OpenOptions) -> bool {
    let (path, options) = (path.to_owned(), options.clone());
    let opener = thread::spawn(move || options.open(path).unwrap());
    let (mut buffer, mut asked) = (EventBuffer::default(), false);
    loop {
        let finished = opener.is_finished();
        for event in group.read(&mut buffer).unwrap() {
            if let Event::Permission(pending) = event.unwrap() {
                asked = true;
                pending.allow(Pass::ourselves()).sent.unwrap();
            }
        }
        if finished {
            drop(opener.join().unwrap());
            return asked;
        }
        thread::sleep(Duration::from_micros(50));
    }
}

fn reading() -> OpenOptions {
    OpenOptions::new().read(true).clone()
}

/// What the group's `fdinfo` says of inodes that are marked: mask and ignored mask.
fn inode_marks(group: &PermissionGroup) -> Vec<(u64, u64)> {
    let fd = group.with_fd(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd)).unwrap();
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let field = |line: &str, name: &str| {
        let word = line.split(' ').find_map(|word| word.strip_prefix(name)).unwrap();
        u64::from_str_radix(word, 16).unwrap()
    };
    let inodes = text.lines().filter(|line| line.starts_with("fanotify ino:"));
    inodes.map(|line| (field(line, "mask:"), field(line, "ignored_mask:"))).collect()
}

#[test]
fn an_ignored_inode_is_not_asked_about_until_it_is_heeded_and_its_mark_stays() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let file = File::open(&path).unwrap();
        let group = guarded(scratch);
        assert!(asks(&group, &path, &reading()), "{kind:?}");
        group.ignore_inode(file.as_fd(), BOTH).unwrap();
        assert!(!asks(&group, &path, &reading()), "{kind:?}");
        assert_eq!(inode_marks(&group), [(0x8, 0x5_0000)], "{kind:?}: FAN_CLOSE_WRITE, and both permission events");
        group.heed_inode(file.as_fd()).unwrap();
        assert!(asks(&group, &path, &reading()), "{kind:?}");
        assert_eq!(inode_marks(&group), [(0x8, 0)], "{kind:?}: the mark is not destroyed");
        group.heed_inode(File::open("/proc/self/exe").unwrap().as_fd()).unwrap();
    });
}

#[test]
fn a_change_by_a_call_takes_it_back_in_the_kernel() {
    type Change = fn(&Path);
    const CHANGES: [(&str, Change); 4] = [
        ("write", |path| OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap()),
        ("pwrite", |path| OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"x", 0).unwrap()),
        ("truncate", |path| OpenOptions::new().write(true).open(path).unwrap().set_len(3).unwrap()),
        ("open with O_RDONLY and O_TRUNC", |path| {
            // The standard library refuses to open so.
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC | rustix::fs::OFlags::CLOEXEC;
            drop(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap());
        }),
    ];
    on_each(|scratch| {
        let kind = scratch.kind();
        for (what, change) in CHANGES {
            let path = scratch.path().join("file");
            fs::write(&path, b"contents").unwrap();
            let file = File::open(&path).unwrap();
            let group = guarded(scratch);
            group.ignore_inode(file.as_fd(), BOTH).unwrap();
            assert!(!asks(&group, &path, &reading()), "{kind:?} {what}");
            change(&path);
            assert!(asks(&group, &path, &reading()), "{kind:?} {what}");
        }
    });
}

#[test]
fn a_mark_is_dropped_with_its_inode_which_it_does_not_keep_in_memory() {
    on_each(|scratch| {
        // What is on tmpfs is nowhere but in memory.
        if scratch.kind() == FsKind::Tmpfs {
            return;
        }
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let file = File::open(&path).unwrap();
        let group = guarded(scratch);
        group.ignore_inode(file.as_fd(), BOTH).unwrap();
        // Content in memory, and what fsync(2) leaves to be written, would keep the inode there for longer.
        rustix::fs::syncfs(&file).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        drop(file);
        let dropped = || {
            // An inode that was looked at lately survives the first time.
            (0..5).for_each(|_| fs::write("/proc/sys/vm/drop_caches", "2").unwrap());
            // Looking for its mark is looking at it.
            inode_marks(&group).is_empty()
        };
        assert!((0..20).any(|_| dropped()), "{kind:?}: {:?}", inode_marks(&group));
        assert!(asks(&group, &path, &reading()), "{kind:?}");
    });
}

#[test]
fn a_watched_inode_tells_of_each_way_to_change_it_by_a_call_until_it_is_unwatched_or_dropped() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let file = File::open(&path).unwrap();
        let whole = handle::file_handle(file.as_fd()).unwrap();
        let group = NoticeGroup::of_attributes().unwrap();
        let told = || {
            let mut buffer = NoticeBuffer::default();
            let notices: Vec<_> = group.read(&mut buffer).unwrap().map(Result::unwrap).collect();
            let modified = Notice::Changed { file: whole, attributes: false, content: true };
            assert!(notices.iter().all(|notice| *notice == modified), "{kind:?}: {notices:?}");
            !notices.is_empty()
        };
        let cut = |length: u64| {
            let script = format!("truncate({:?}, {length}) or die $!", path.to_str().unwrap());
            assert!(std::process::Command::new("perl").args(["-e", &script]).status().unwrap().success());
        };
        assert!(!group.unwatch_inode(file.as_fd()).unwrap(), "{kind:?}");
        group.watch_inode(file.as_fd()).unwrap();
        fs::read(&path).unwrap();
        assert!(!told(), "{kind:?}");
        cut(3);
        assert!(told(), "{kind:?}: truncate(2)");
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC | rustix::fs::OFlags::CLOEXEC;
        drop(rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap());
        assert!(told(), "{kind:?}: O_RDONLY and O_TRUNC");
        fs::write(&path, b"more").unwrap();
        assert!(told(), "{kind:?}: write(2)");
        assert!(group.unwatch_inode(file.as_fd()).unwrap(), "{kind:?}");
        cut(2);
        assert!(!told(), "{kind:?}");
        if kind == FsKind::Tmpfs {
            return;
        }
        group.watch_inode(file.as_fd()).unwrap();
        rustix::fs::syncfs(&file).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        drop(file);
        let dropped = || {
            (0..5).for_each(|_| fs::write("/proc/sys/vm/drop_caches", "2").unwrap());
            !group.unwatch_inode(File::open(&path).unwrap().as_fd()).unwrap()
        };
        assert!(dropped(), "{kind:?}");
    });
}

#[test]
fn every_change_of_attributes_is_noticed_with_the_files_handle() {
    type Change = fn(&Path);
    const CHANGES: [(&str, Change); 7] = [
        ("chmod", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap()),
        ("chown", |path| std::os::unix::fs::chown(path, Some(7), None).unwrap()),
        ("chgrp", |path| std::os::unix::fs::chown(path, None, Some(8)).unwrap()),
        ("setxattr", |path| xattr::write(File::open(path).unwrap().as_fd(), xattr::IMA, b"\x01x").unwrap()),
        ("link", |path| fs::hard_link(path, path.with_extension("two")).unwrap()),
        ("unlink", |path| fs::remove_file(path.with_extension("two")).unwrap()),
        ("rename over it", |path| {
            fs::hard_link(path, path.with_extension("two")).unwrap();
            fs::write(path.with_extension("three"), b"").unwrap();
            fs::rename(path.with_extension("three"), path.with_extension("two")).unwrap();
        }),
    ];
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let whole = handle::file_handle(File::open(&path).unwrap().as_fd()).unwrap();
        assert_eq!(whole.short(), handle::short_handle(File::open(&path).unwrap().as_fd()), "{kind:?}");
        let group = NoticeGroup::of_attributes().unwrap();
        group.mark_filesystem(File::open(scratch.path()).unwrap().as_fd()).unwrap();
        let mut buffer = NoticeBuffer::default();
        for (what, change) in CHANGES {
            change(&path);
            let notices: Vec<_> = group.read(&mut buffer).unwrap().map(Result::unwrap).collect();
            let changed = Notice::Changed { file: whole, attributes: true, content: false };
            assert!(notices.contains(&changed), "{kind:?} {what}: {notices:?}");
            assert!(!notices.contains(&Notice::Unknown), "{kind:?} {what}: {notices:?}");
        }
        fs::read(&path).unwrap();
        fs::create_dir(scratch.path().join("directory")).unwrap();
        fs::set_permissions(scratch.path().join("directory"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(group.read(&mut buffer).unwrap().count(), 0, "{kind:?}: reading, and directories");
    });
}
