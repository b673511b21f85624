//! Which notices of creation come, for which files, and when.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use imara_integrity::check::Pass;
use imara_linux::fanotify::{Event, EventBuffer, FanotifyError, FsMask, PermissionGroup};
use imara_linux::handle::{FileHandle, file_handle, short_handle};
use imara_linux::notice::{Notice, NoticeBuffer, NoticeGroup};
use imara_linux::testing::{self, FsKind, ScratchMount, on, on_each};
use imara_linux::{file, mounts};

fn drain(group: &NoticeGroup) -> Vec<Notice> {
    let mut buffer = NoticeBuffer::default();
    let mut all = Vec::new();
    loop {
        let before = all.len();
        all.extend(group.read(&mut buffer).unwrap().map(Result::unwrap));
        if all.len() == before {
            return all;
        }
    }
}

fn marked(path: &Path) -> NoticeGroup {
    let group = NoticeGroup::of_creations().unwrap();
    group.mark_filesystem(File::open(path).unwrap().as_fd()).unwrap();
    group
}

#[test]
fn a_file_system_that_is_marked_is_listed_until_it_has_gone() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 128 << 20).unwrap();
        let root = File::open(scratch.path()).unwrap();
        let device = mounts::mount_of_file(root.as_fd()).unwrap().device;
        drop(root);
        let group = marked(scratch.path());
        assert_eq!(group.marked_devices().unwrap(), [device], "{kind:?}");
        drop(scratch);
        assert_eq!(group.marked_devices().unwrap(), [], "{kind:?}");
    }
}

fn handle(path: &Path) -> FileHandle {
    file_handle(File::open(path).unwrap().as_fd()).unwrap()
}

#[test]
fn the_notice_of_a_new_file_carries_the_handle_that_its_descriptor_has() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let group = marked(scratch.path());
        let old = scratch.path().join("old");
        for name in ["a", "b"] {
            fs::write(scratch.path().join(name), b"x").unwrap();
        }
        fs::write(&old, b"x").unwrap();
        let (a, b, c) = (handle(&scratch.path().join("a")), handle(&scratch.path().join("b")), handle(&old));
        assert_eq!(drain(&group), [Notice::Made(a), Notice::Made(b), Notice::Made(c)], "{kind:?}");
        assert!(a != b && b != c, "{kind:?}: {a:?} {b:?} {c:?}");
        // Opening what exists is no creation, even with O_CREAT.
        OpenOptions::new().write(true).create(true).truncate(true).open(&old).unwrap();
        assert_eq!(drain(&group), [], "{kind:?}");
    });
}

#[test]
fn nodes_and_links_are_noticed_a_temporary_file_when_it_gets_a_name_and_directories_never() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let group = marked(scratch.path());
        let place = |name: &str| scratch.path().join(name);
        let node = rustix::fs::mknodat(
            rustix::fs::CWD,
            place("node"),
            rustix::fs::FileType::RegularFile,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        );
        node.unwrap();
        assert_eq!(drain(&group), [Notice::Made(handle(&place("node")))], "{kind:?}: mknod");

        fs::hard_link(place("node"), place("link")).unwrap();
        assert_eq!(drain(&group), [Notice::Made(handle(&place("node")))], "{kind:?}: link");

        fs::rename(place("link"), place("renamed")).unwrap();
        assert_eq!(drain(&group), [], "{kind:?}: rename");

        let temporary =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(scratch.path()).unwrap();
        assert_eq!(drain(&group), [], "{kind:?}: O_TMPFILE");
        rustix::fs::linkat(&temporary, "", rustix::fs::CWD, place("named"), rustix::fs::AtFlags::EMPTY_PATH).unwrap();
        let named = Notice::Made(file_handle(temporary.as_fd()).unwrap());
        assert_eq!(drain(&group), [named], "{kind:?}: a name for the temporary file");

        fs::create_dir(place("directory")).unwrap();
        assert_eq!(drain(&group), [], "{kind:?}: mkdir");
    });
}

#[test]
fn the_notice_is_readable_when_the_same_open_asks_for_permission() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let created = marked(scratch.path());
        let permission = PermissionGroup::open().unwrap();
        permission.mark_filesystem(File::open(scratch.path()).unwrap().as_fd(), FsMask::OPEN).unwrap();
        let mut buffer = EventBuffer::default();
        for round in 0..200 {
            let path = scratch.path().join(format!("new{round}"));
            let opener = thread::spawn(move || File::create_new(path).map(drop));
            let mut found = None;
            while found.is_none() {
                for event in permission.read(&mut buffer).unwrap() {
                    if let Event::Permission(pending) = event.unwrap() {
                        found = Some((drain(&created), file_handle(pending.file()).unwrap()));
                        pending.allow(Pass::ourselves()).sent.unwrap();
                    }
                }
            }
            opener.join().unwrap().unwrap();
            let (notices, asked) = found.unwrap();
            assert_eq!(notices, [Notice::Made(asked)], "{kind:?} round {round}");
        }
    });
}

#[test]
fn a_reused_inode_number_has_another_handle() {
    for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
        on(kind, |scratch| {
            let mut seen = Vec::new();
            for _ in 0..50 {
                let path = scratch.path().join("again");
                fs::write(&path, b"x").unwrap();
                let handle = handle(&path);
                assert!(!seen.contains(&handle), "{kind:?}: {handle:?} twice");
                seen.push(handle);
                fs::remove_file(&path).unwrap();
            }
        });
    }
}

#[test]
fn an_unnamed_file_asks_for_permission_and_tells_of_its_close_but_not_of_its_creation() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let created = marked(scratch.path());
        let group = PermissionGroup::open().unwrap();
        let what = FsMask::OPEN.union(FsMask::CLOSE_WRITE);
        let directory = scratch.path().to_path_buf();
        group.mark_filesystem(File::open(&directory).unwrap().as_fd(), what).unwrap();
        let opener = thread::spawn(move || {
            OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(directory).map(drop)
        });
        let (mut buffer, mut seen) = (EventBuffer::default(), Vec::new());
        while seen.len() < 2 {
            for event in group.read(&mut buffer).unwrap() {
                let event = event.unwrap();
                if let Event::Permission(pending) = event {
                    seen.push(("open", file::facts(pending.file()).unwrap().links));
                    pending.allow(Pass::ourselves()).sent.unwrap();
                } else {
                    let Event::CloseWrite { file, .. } = event else { panic!("{kind:?}: {event:?}") };
                    seen.push(("close", file::facts(file.as_fd()).unwrap().links));
                }
            }
        }
        opener.join().unwrap().unwrap();
        assert_eq!(seen, [("open", 0), ("close", 0)], "{kind:?}");
        assert_eq!(drain(&created), [], "{kind:?}");
    });
}

#[test]
fn files_of_a_btrfs_subvolume_are_heard_of_through_the_mark_of_the_whole_file_system() {
    on(FsKind::Btrfs, |scratch| {
        let subvolume = scratch.path().join("sub");
        let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&subvolume).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let created = marked(scratch.path());
        let (inside, outside) = (subvolume.join("file"), scratch.path().join("file"));
        fs::write(&inside, b"x").unwrap();
        fs::write(&outside, b"x").unwrap();
        let own = [handle(&inside), handle(&outside)];
        assert_eq!(drain(&created), own.map(Notice::Made));
        // Same inode number, same generation: the subvolume makes the difference.
        assert_ne!(own[0], own[1]);

        let subvolume = File::open(&subvolume).unwrap();
        let refused = NoticeGroup::of_creations().unwrap().mark_filesystem(subvolume.as_fd()).unwrap_err();
        assert!(matches!(&refused, FanotifyError::Call(call) if call.errno() == Some(libc::EXDEV)), "{refused}");
        PermissionGroup::open().unwrap().mark_filesystem(subvolume.as_fd(), FsMask::GUARD).unwrap();
    });
}

#[test]
fn a_btrfs_that_is_only_mounted_by_a_subvolume_is_heard_of_through_its_top() {
    on(FsKind::Btrfs, |scratch| {
        let path = scratch.path();
        let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(path.join("sub")).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        scratch.cycle_with("subvol=sub").unwrap();
        let source = mounts::mount_of(path).unwrap().source;
        let top = mounts::btrfs_top(&source).unwrap();
        let created = NoticeGroup::of_creations().unwrap();
        created.mark_filesystem(top.as_fd()).unwrap();
        drop(top);
        fs::write(path.join("file"), b"x").unwrap();
        assert_eq!(drain(&created), [Notice::Made(handle(&path.join("file")))]);
    });
}

#[test]
fn a_file_and_its_copy_in_a_snapshot_differ_by_handle_and_by_nothing_else() {
    on(FsKind::Btrfs, |scratch| {
        let (one, two) = (scratch.path().join("one"), scratch.path().join("two"));
        let btrfs = |arguments: &[&str], paths: &[&Path]| {
            let ran = Command::new("btrfs").args(arguments).args(paths).output().unwrap();
            assert!(ran.status.success(), "{ran:?}");
        };
        btrfs(&["subvolume", "create"], &[&one]);
        fs::write(one.join("file"), b"content").unwrap();
        btrfs(&["subvolume", "snapshot"], &[&one, &two]);
        let [first, second] = [&one, &two].map(|subvolume| File::open(subvolume.join("file")).unwrap());
        let facts = |file: &File| file::facts(file.as_fd()).unwrap();
        assert_eq!((facts(&first).inode, facts(&first).born), (facts(&second).inode, facts(&second).born));
        assert_ne!(short_handle(first.as_fd()).unwrap(), short_handle(second.as_fd()).unwrap());
    });
}
