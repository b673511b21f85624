//! Changes under guard that must not be followed, and files that only look new.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{Daemon, complaints, eventually};
use crate::files::{self, REFUSED, label_becomes, label_of, read_label, set_label, strip_label};
use crate::image::Image;

fn refused(path: &Path) {
    assert_eq!(files::read(path).map_err(|error| error.raw_os_error()), Err(REFUSED), "{}", path.display());
}

fn readable(path: &Path) {
    files::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Where the kernel answers for a file, a change of its label counts when the guard has heard of it.
fn becomes_refused(path: &Path) {
    assert!(eventually(|| files::read(path).is_err().then_some(())).is_some(), "{}", path.display());
    refused(path);
}

/// A guarded answer, before which everything that happened earlier has been heard of.
fn after_all_is_heard(scratch: &ScratchMount) {
    drop(File::open(scratch.path().join("anchor")));
}

#[test]
fn in_log_a_bad_file_that_is_written_to_keeps_its_label_and_is_refused_later() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (bad, unlabelled, open) =
            (scratch.path().join("bad"), scratch.path().join("unlabelled"), scratch.path().join("open"));
        for path in [&bad, &open] {
            files::make(path, b"good");
            files::change_last_byte(path).unwrap();
        }
        fs::write(&unlabelled, b"old").unwrap();
        let daemon = Daemon::start("log", &[scratch.path()]);
        files::append(&bad, b"more").unwrap();
        readable(&bad);
        fs::write(&bad, b"all new").unwrap();
        files::change_last_byte_mapped(&bad).unwrap();
        files::append(&unlabelled, b"more").unwrap();
        fs::write(&unlabelled, b"all new").unwrap();
        let mut writer = OpenOptions::new().write(true).open(&open).unwrap();
        readable(&open);
        daemon.ask(r#"{"command":"mode","mode":"enforce"}"#);
        for path in [&bad, &unlabelled, &open] {
            refused(path);
        }
        // Whoever has it open may go on, but nobody vouches for what he writes.
        writer.write_all(b"bad!").unwrap();
        drop(writer);
        after_all_is_heard(&scratch);
        for path in [&bad, &unlabelled, &open] {
            refused(path);
        }
        daemon.stop();
        assert_eq!(read_label(&bad), Some(label_of(b"good")), "{kind:?}");
        assert_eq!(read_label(&open), Some(label_of(b"good")), "{kind:?}");
        assert_eq!(read_label(&unlabelled), None, "{kind:?}");
    }
}

#[test]
fn a_label_that_is_changed_under_guard_counts_as_soon_as_that_is_heard_of() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (small, large) = (scratch.path().join("small"), scratch.path().join("large"));
        for (path, content) in [(&small, vec![1; 100]), (&large, vec![2; 200_000])] {
            files::make(path, &content);
        }
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        for (path, content) in [(&small, vec![1; 100]), (&large, vec![2; 200_000])] {
            for _ in 0..2 {
                readable(path);
                set_label(path, &label_of(b"another"));
                becomes_refused(path);
                let change = OpenOptions::new().append(true).open(path).map(drop).map_err(|error| error.raw_os_error());
                assert_eq!(change, Err(REFUSED), "{kind:?}");
                set_label(path, &label_of(&content));
                readable(path);
                strip_label(path);
                becomes_refused(path);
                set_label(path, &label_of(&content));
                readable(path);
                // The same content under another algorithm's label is the same content.
                let sha512 = imara_integrity::digest::Digest::of("sha512".parse().unwrap(), &content);
                set_label(path, &[&[4, 6], sha512.as_bytes()].concat());
                readable(path);
                set_label(path, &label_of(&content));
            }
        }
        let causes: Vec<_> = complaints(&daemon.stop()).into_iter().map(|complaint| complaint.cause).collect();
        let expected = ["invalid-hash", "invalid-hash", "invalid-hash", "missing-hash", "missing-hash"].repeat(4);
        assert_eq!(causes, expected, "{kind:?}");
    }
}

#[test]
fn a_bad_file_stays_bad_under_another_name_and_when_it_is_shortened() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (bad, linked, moved) =
            (scratch.path().join("bad"), scratch.path().join("linked"), scratch.path().join("moved"));
        files::make(&bad, b"good content");
        files::change_last_byte(&bad).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        refused(&bad);
        fs::hard_link(&bad, &linked).unwrap();
        fs::rename(&bad, &moved).unwrap();
        for path in [&linked, &moved] {
            refused(path);
        }
        for length in [3, 0] {
            let script = format!("truncate({:?}, {length}) or die $!", moved.to_str().unwrap());
            assert!(Command::new("perl").args(["-e", &script]).status().unwrap().success());
            refused(&linked);
            refused(&moved);
        }
        daemon.stop();
        assert_eq!(read_label(&moved), Some(label_of(b"good content")), "{kind:?}");
    }
}

#[test]
fn a_bad_file_whose_content_is_right_again_is_opened_again() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Ext4, 64 << 20).unwrap();
    let path = scratch.path().join("file");
    files::make(&path, b"good content");
    files::append(&path, b"?").unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    refused(&path);
    let script = format!("truncate({:?}, 12) or die $!", path.to_str().unwrap());
    assert!(Command::new("perl").args(["-e", &script]).status().unwrap().success());
    readable(&path);
    daemon.stop();
}

#[test]
fn in_fix_a_writer_whose_open_repairs_a_label_is_followed_like_any_other() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (remembered, fresh) = (scratch.path().join("remembered"), scratch.path().join("fresh"));
        for path in [&remembered, &fresh] {
            files::make(path, b"content");
        }
        let daemon = Daemon::start("fix", &[scratch.path()]);
        readable(&remembered);
        for path in [&remembered, &fresh] {
            set_label(path, &label_of(b"another"));
            files::append(path, b", and more").unwrap();
            readable(path);
            label_becomes(path, b"content, and more");
        }
        let found: Vec<_> = complaints(&daemon.stop()).into_iter().map(|complaint| complaint.action).collect();
        assert_eq!(found, ["repaired", "repaired"], "{kind:?}: one complaint a file");
    }
}

#[test]
fn an_old_empty_file_without_a_label_is_refused_and_a_new_one_is_not() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let old = scratch.path().join("old");
        File::create(&old).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        refused(&old);
        for options in [OpenOptions::new().write(true), OpenOptions::new().append(true).create(true)] {
            let opened = options.open(&old).map(drop).map_err(|error| error.raw_os_error());
            assert_eq!(opened, Err(REFUSED), "{kind:?}");
        }
        let (renamed, new) = (scratch.path().join("renamed"), scratch.path().join("new"));
        fs::rename(&old, &renamed).unwrap();
        refused(&renamed);
        File::create(&new).unwrap();
        readable(&new);
        label_becomes(&new, b"");
        // A new file is new once: without its label it is as bad as any other.
        strip_label(&new);
        becomes_refused(&new);
        let causes: Vec<_> = complaints(&daemon.stop()).into_iter().map(|complaint| complaint.cause).collect();
        assert_eq!(causes, vec!["missing-hash"; 6], "{kind:?}");
        assert_eq!(read_label(&renamed), None, "{kind:?}");
    }
}

#[test]
fn a_hard_link_does_not_make_a_file_new_that_is_older_than_the_guard() {
    let Some(_) = testing::root() else { return };
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let (old, link) = (scratch.path().join("old"), scratch.path().join("link"));
        File::create(&old).unwrap();
        // Births are told by a clock that ticks every few milliseconds: within one tick nobody is older than another.
        let born = imara_linux::file::facts(File::open(&old).unwrap().as_fd()).unwrap().born.unwrap();
        eventually(|| (imara_linux::file::clock() > born).then_some(())).unwrap();
        let daemon = Daemon::start("enforce", &[scratch.path()]);
        fs::hard_link(&old, &link).unwrap();
        refused(&link);
        refused(&old);
        daemon.stop();
        assert_eq!(read_label(&old), None, "{kind:?}");
    }
}

#[test]
fn a_hard_link_does_not_make_a_file_new_that_was_born_long_ago() {
    let Some(_) = testing::root() else { return };
    let image = Image::ext4(&[]);
    File::create(image.path().join("old")).unwrap();
    image.unmounted(|device| {
        let born = "set_inode_field /old crtime 20200101000000";
        assert!(Command::new("debugfs").args(["-w", "-R", born]).arg(device).output().unwrap().status.success());
    });
    let (old, link) = (image.path().join("old"), image.path().join("link"));
    let age = fs::metadata(&old).unwrap().created().unwrap().elapsed().unwrap();
    assert!(age.as_secs() > 365 * 86_400, "{age:?} old");
    let daemon = Daemon::start("enforce", &[image.path()]);
    fs::hard_link(&old, &link).unwrap();
    refused(&link);
    refused(&old);
    daemon.stop();
}

#[test]
fn a_hard_link_does_not_make_an_old_file_new_where_births_are_not_recorded() {
    let Some(_) = testing::root() else { return };
    let image = Image::ext4(&["-I", "128"]);
    let (old, link) = (image.path().join("old"), image.path().join("link"));
    File::create(&old).unwrap();
    image.unmounted(|_| {});
    let daemon = Daemon::start("enforce", &[image.path()]);
    fs::hard_link(&old, &link).unwrap();
    refused(&link);
    refused(&old);
    daemon.stop();
}

#[test]
fn files_are_new_in_a_btrfs_subvolume_too() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Btrfs, 128 << 20).unwrap();
    let subvolume = scratch.path().join("subvolume");
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&subvolume).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let (good, bad) = (subvolume.join("good"), subvolume.join("bad"));
    files::make(&good, b"good");
    files::make(&bad, b"good");
    files::change_last_byte(&bad).unwrap();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    readable(&good);
    refused(&bad);
    files::append(&good, b" still").unwrap();
    let new = subvolume.join("new");
    fs::write(&new, b"new").unwrap();
    readable(&new);
    label_becomes(&new, b"new");
    label_becomes(&good, b"good still");
    daemon.stop();
}

#[test]
fn a_btrfs_that_is_mounted_by_a_subvolume_is_guarded() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Btrfs, 128 << 20).unwrap();
    let subvolume = scratch.path().join("root");
    let made = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(&subvolume).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let bad = subvolume.join("bad");
    files::make(&bad, b"good");
    files::change_last_byte(&bad).unwrap();
    // As in most installations: the mount point shows a subvolume, not the top of the file system.
    let identity = Command::new("btrfs").args(["inspect-internal", "rootid"]).arg(&subvolume).output().unwrap();
    let identity = String::from_utf8(identity.stdout).unwrap();
    let set = Command::new("btrfs").args(["subvolume", "set-default", identity.trim()]).arg(scratch.path()).output();
    assert!(set.unwrap().status.success());
    crate::image::cycle(&scratch);
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    refused(&scratch.path().join("bad"));
    let new = scratch.path().join("new");
    fs::write(&new, b"new").unwrap();
    readable(&new);
    label_becomes(&new, b"new");
    daemon.stop();
}
