//! Mounts of all kinds: the same file system elsewhere, and others in its place, as the table of coverage says.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imara_linux::private_mount;
use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::coverage::{Found, Table, by_opening};
use crate::daemon::{Daemon, RunDir, eventually};
use crate::files::{self, REFUSED, good_and_bad};
use crate::image::ext4;

pub(crate) const IDS: &[&str] =
    &["bind", "mount-namespace", "chroot", "read-only", "id-mapped", "subvolume", "over", "copy", "loop-image"];

/// Runs a program that must succeed; what it printed.
fn done(program: &str, words: &[&Path]) -> String {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A mount that goes when dropped.
#[derive(Debug)]
pub(crate) struct Mounted {
    point: PathBuf,
    _directory: RunDir,
}

impl Mounted {
    /// What `mount` makes of these words and a new directory.
    pub(crate) fn by(words: &[&str], source: &Path) -> Self {
        let directory = RunDir::new();
        let point = directory.path().join("point");
        fs::create_dir(&point).unwrap();
        let mut mount = Command::new("mount");
        let mounted = mount.args(words).arg(source).arg(&point).output().unwrap();
        assert!(mounted.status.success(), "{mounted:?}");
        Self { point, _directory: directory }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if eventually(|| Command::new("umount").arg(&self.point).output().unwrap().status.success().then_some(()))
            .is_none()
        {
            drop(Command::new("umount").arg("-l").arg(&self.point).output());
        }
    }
}

fn opened(path: &Path) -> io::Result<()> {
    files::read(path).map(drop)
}

/// Whether a shell in other namespaces can read `good` and `bad` in the directory that it finds in `$1`.
fn in_namespaces(unshare: &[&str], script: &str, directory: &Path) -> [io::Result<()>; 2] {
    ["good", "bad"].map(|name| {
        let mut command = Command::new("unshare");
        command.args(unshare).args(["sh", "-c", script, "sh"]).arg(directory).arg(name);
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(()),
            false if said.contains("Operation not permitted") => Err(io::Error::from_raw_os_error(REFUSED.unwrap())),
            false => Err(io::Error::other(said.into_owned())),
        }
    })
}

#[test]
fn other_mounts_of_a_guarded_file_system_are_guarded() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let inside = scratch.path().join("inside");
        fs::create_dir(&inside).unwrap();
        drop(good_and_bad(&inside));
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let table = Table::of(&daemon);
        let check = |id: &str, [good, bad]: [io::Result<()>; 2]| {
            assert_eq!(table.compare(id, &by_opening(&good, &bad), &format!("{kind:?}")), None);
        };
        let both = |directory: &Path| ["good", "bad"].map(|name| opened(&directory.join(name)));
        let bound = Mounted::by(&["--bind"], &inside);
        check("bind", both(bound.path()));
        let detached = private_mount::of(File::open(&inside).unwrap().as_fd()).unwrap();
        check("bind", both(Path::new(&format!("/proc/self/fd/{}", detached.as_raw_fd()))));
        let read_only = Mounted::by(&["-o", "bind,ro"], &inside);
        check("read-only", both(read_only.path()));
        check("mount-namespace", in_namespaces(&["-m"], "cat \"$1/$2\" >/dev/null", &inside));
        let elsewhere = "mount --bind \"$1\" /mnt && cat /mnt/$2 >/dev/null";
        check("mount-namespace", in_namespaces(&["-m"], elsewhere, &inside));
        // A root directory on the guarded file system, in which there is nothing but what is to be read.
        let script = "perl -e 'chroot $ARGV[0] or die; chdir q(/); open F, q(<), $ARGV[1] or die $!' \"$1\" \"$2\"";
        check("chroot", in_namespaces(&["-m"], script, &inside));
        daemon.stop();
    }
}

/// `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A detached mount of the directory with other owners: `0 1000 10` makes the files of users 0 to 9 those of users from 1000 on.
#[allow(unsafe_code, reason = "nothing safe makes such mounts")]
fn id_mapped(directory: &Path, owners: &str) -> OwnedFd {
    let mut child = Command::new("unshare").args(["-U", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
    let space = PathBuf::from(format!("/proc/{}/ns/user", child.id()));
    let ours = fs::read_link("/proc/self/ns/user").unwrap();
    eventually(|| fs::read_link(&space).is_ok_and(|theirs| theirs != ours).then_some(())).unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), owners).unwrap();
    }
    let space = File::open(space).unwrap();
    drop((child.kill(), child.wait()));
    let source = File::open(directory).unwrap();
    let user_namespace = u64::try_from(space.as_raw_fd()).unwrap();
    let attributes = MountAttributes { set: 0x10_0000, clear: 0, propagation: 0, user_namespace };
    // SAFETY: the strings and the structure are there until the calls return; what is opened is nobody else's.
    unsafe {
        let flags = 1 | libc::AT_EMPTY_PATH | libc::O_CLOEXEC;
        let tree = libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags);
        assert!(tree >= 0, "{}", io::Error::last_os_error());
        let tree = OwnedFd::from_raw_fd(i32::try_from(tree).unwrap());
        let (pointer, size) = (&raw const attributes, size_of::<MountAttributes>());
        let set =
            libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, pointer, size);
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        tree
    }
}

#[test]
fn an_id_mapped_mount_is_asked_about_by_the_owners_that_it_shows() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    drop(good_and_bad(scratch.path()));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    let tree = id_mapped(scratch.path(), "0 1000 10");
    let mapped = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
    assert_eq!(opened(&scratch.path().join("bad")).unwrap_err().raw_os_error(), REFUSED);
    // Asked, because the policy asks nothing about files of user 1000, and nothing is refused.
    let asked = || daemon.status()["counters"]["asked"].as_u64().unwrap();
    let before = asked();
    opened(&mapped.join("bad")).unwrap();
    assert_eq!(asked() - before, 1);
    table.says("id-mapped", Found::Partly, "a bad file of root");
    daemon.stop();
}

#[test]
fn subvolumes_and_snapshots_are_guarded_with_their_file_system() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Btrfs, 128 << 20).unwrap();
    let (volume, snapshot) = (scratch.path().join("volume"), scratch.path().join("snapshot"));
    let (create, shot): ([&Path; 3], [&Path; 4]) = (
        ["subvolume".as_ref(), "create".as_ref(), &volume],
        ["subvolume".as_ref(), "snapshot".as_ref(), &volume, &snapshot],
    );
    done("btrfs", &create);
    drop(good_and_bad(&volume));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    done("btrfs", &shot);
    for directory in [&volume, &snapshot] {
        let found = by_opening(&opened(&directory.join("good")), &opened(&directory.join("bad")));
        assert_eq!(table.compare("subvolume", &found, "btrfs"), None);
    }
    daemon.stop();
}

#[test]
fn other_file_systems_are_not_guarded_wherever_they_are_mounted_and_whatever_is_in_them() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 128 << 20).unwrap();
    let point = scratch.path().join("point");
    fs::create_dir(&point).unwrap();
    let image = scratch.path().join("image");
    let made = File::create(&image).unwrap();
    made.set_len(8 << 20).unwrap();
    drop(made);
    done("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image]);
    let daemon_before = Mounted::by(&["-o", "loop"], &image);
    drop(good_and_bad(daemon_before.path()));
    drop(daemon_before);
    let copy = RunDir::new();
    let copied = copy.path().join("image");
    fs::copy(&image, &copied).unwrap();
    files::set_label(&image, &files::label_of(&files::read(&image).unwrap()));
    let bad_image = scratch.path().join("bad-image");
    fs::copy(&copied, &bad_image).unwrap();
    files::set_label(&bad_image, &files::label_of(b"another"));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    let free = |directory: &Path, id: &str| {
        let found = by_opening(&opened(&directory.join("good")), &opened(&directory.join("bad")));
        assert_eq!(found, "not seen", "{id}");
    };
    // Over a directory of the guarded one, from a copy.
    let over = Command::new("mount").args(["-o", "loop"]).args([&copied, &point]).status().unwrap();
    assert!(over.success());
    free(&point, "over");
    let again = Mounted::by(&["-o", "loop,ro"], &image);
    free(again.path(), "loop-image");
    drop(again);
    assert!(eventually(|| Command::new("umount").arg(&point).status().unwrap().success().then_some(())).is_some());
    table.says("over", Found::NotSeen, "ext4");
    table.says("copy", Found::NotSeen, "ext4");
    // The image itself is a file like others: a bad one is not opened, a good one is followed when it is free again.
    let refused = Command::new("losetup").args(["--find", "--show"]).arg(&bad_image).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
    let inside = Mounted::by(&["-o", "loop"], &image);
    fs::write(inside.path().join("new"), b"new").unwrap();
    drop(inside);
    let followed = eventually(|| {
        let content = fs::read(&image).ok()?;
        (files::read_label(&image)? == files::label_of(&content)).then_some(())
    });
    assert!(followed.is_some(), "the image can be read, and its label is right");
    table.says("loop-image", Found::Partly, "ext4");
    daemon.stop();
}

/// Puts a detached mount into the tree, where it goes when dropped.
#[allow(unsafe_code, reason = "nothing safe moves such mounts")]
fn attached(tree: &OwnedFd) -> Mounted {
    // As a mount of its own, so that there is something to unmount in any case.
    let place = Mounted::by(&["-t", "tmpfs"], Path::new("none"));
    let point = std::ffi::CString::new(place.path().to_str().unwrap()).unwrap();
    assert!(Command::new("umount").arg(place.path()).status().unwrap().success());
    // SAFETY: the strings are there until the call returns.
    let moved = unsafe {
        let from_empty_path = 4;
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            point.as_ptr(),
            from_empty_path,
        )
    };
    assert_eq!(moved, 0, "{}", io::Error::last_os_error());
    place
}

#[test]
fn what_the_kernel_answers_for_is_asked_about_again_when_a_mount_with_other_owners_comes() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let foreign = scratch.path().join("foreign");
        files::make(&foreign, b"content");
        files::set_label(&foreign, &files::label_of(b"another"));
        std::os::unix::fs::chown(&foreign, Some(1000), None).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        let ignored = || daemon.status()["counters"]["ignored_unasked"].as_u64().unwrap();
        let left = eventually(|| {
            opened(&foreign).unwrap();
            (ignored() > 0).then_some(())
        });
        assert!(left.is_some(), "{kind:?}: nobody asks about files of user 1000, so the kernel answers");
        let mapped = attached(&id_mapped(scratch.path(), "1000 0 1"));
        let refused = eventually(|| opened(&mapped.path().join("foreign")).err().map(|error| error.raw_os_error()));
        assert_eq!(refused, Some(REFUSED), "{kind:?}: it is a file of root there");
        // As long as that mount is there, nothing is left to the kernel.
        let before = ignored();
        for _ in 0..3 {
            opened(&foreign).unwrap();
            assert_eq!(opened(&mapped.path().join("foreign")).unwrap_err().raw_os_error(), REFUSED, "{kind:?}");
        }
        assert_eq!(ignored(), before, "{kind:?}");
        drop(mapped);
        daemon.stop();
    }
}

#[test]
fn labels_are_written_although_the_reader_came_through_a_read_only_mount() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (cut, bad) = (scratch.path().join("cut"), scratch.path().join("bad"));
        files::make(&bad, b"content");
        files::set_label(&bad, &files::label_of(b"another"));
        let read_only = Mounted::by(&["-o", "bind,ro"], scratch.path());
        // The guard knows the read-only mount only, too.
        for point in [scratch.path(), read_only.path()] {
            let daemon = Daemon::start("enforce", &[point]);
            fs::write(&cut, b"content").unwrap();
            files::label_becomes(&cut, b"content");
            opened(&cut).unwrap();
            // Nobody hears of this as of a writer: the next reader has the label renewed.
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::TRUNC;
            drop(rustix::fs::open(&cut, flags, rustix::fs::Mode::empty()).unwrap());
            opened(&read_only.path().join("cut")).unwrap();
            files::label_becomes(&cut, b"");
            daemon.ask(r#"{"command":"mode","mode":"fix"}"#);
            opened(&read_only.path().join("bad")).unwrap();
            files::label_becomes(&bad, b"content");
            assert_eq!(daemon.status()["failures"]["label-not-written"], 0, "{kind:?}: {:?}", daemon.lines());
            daemon.stop();
            files::set_label(&bad, &files::label_of(b"another"));
        }
    }
}
