//! `imara label`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use imara_integrity::digest::HashAlgorithm;
use imara_linux::testing::{FsKind, ScratchMount, root};
use serde_json::json;

use crate::fixture::{Bound, Copied, Scratch, command, imara, label_of, line_of, right, set_label, sha256};

#[test]
fn files_get_the_label_of_their_content_and_keep_it() {
    for kind in [FsKind::Ext4, FsKind::Tmpfs] {
        let Some(scratch) = Scratch::new(kind) else { return };
        let tree = [("a", &b"one"[..]), ("d/empty", b""), ("d/e/large", &[7; 300_000]), ("d/e/chunk", &[8; 128 << 10])];
        let paths = tree.map(|(name, content)| scratch.write(name, content));
        let ran = scratch.run("label", &[&scratch.mount.path()]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{kind:?}");
        assert_eq!(ran.counts(), "labelled 4, unchanged 0, skipped 0, failed 0");
        for (path, (_, content)) in paths.iter().zip(tree) {
            assert_eq!(label_of(path), Some(right(HashAlgorithm::Sha256, content)), "{path:?}");
        }
        let again = scratch.run("label", &[&scratch.mount.path()]);
        assert_eq!(again.counts(), "labelled 0, unchanged 4, skipped 0, failed 0");
        assert!(again.out.contains("; 431.0 kB; "), "{}", again.out);
    }
}

#[test]
fn the_summary_is_one_line_on_standard_output() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"12345");
    let ran = scratch.run("label", &[&file]);
    let (start, seconds) = ran.out.rsplit_once("; ").unwrap();
    assert_eq!(start, "labelled 1, unchanged 0, skipped 0, failed 0; 5 B");
    assert!(seconds.strip_suffix(" s\n").is_some_and(|number| number.parse::<f64>().is_ok()), "{seconds:?}");
}

#[test]
fn the_label_becomes_what_hash_says() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"content");
    for algorithm in [HashAlgorithm::Sha256, HashAlgorithm::Sha1, HashAlgorithm::Sm3, HashAlgorithm::Sha512] {
        for expected in ["labelled 1, unchanged 0, skipped 0, failed 0", "labelled 0, unchanged 1, skipped 0, failed 0"]
        {
            let ran = scratch.run("label", &[&"--hash", &algorithm.name(), &file]);
            assert_eq!(ran.counts(), expected, "{algorithm}");
            assert_eq!(label_of(&file), Some(right(algorithm, b"content")));
        }
    }
    // A sha1 label in the longer form is right, but not what would be written.
    let long = [&[4, 2], &right(HashAlgorithm::Sha1, b"content")[1..]].concat();
    set_label(&file, &long);
    let ran = scratch.run("label", &[&"--hash", &"sha1", &file]);
    assert_eq!(ran.counts(), "labelled 1, unchanged 0, skipped 0, failed 0");
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_it_would() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (bare, wrong) = (scratch.write("a", b"1"), scratch.write("b", b"2"));
    set_label(&wrong, b"\x04\x04short");
    let ran = scratch.run("label", &[&"--dry-run", &"--json", &scratch.mount.path()]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines = ran.json();
    assert_eq!(line_of(&lines, &bare)["action"], "labelled");
    assert_eq!(line_of(&lines, &wrong)["action"], "labelled");
    assert_eq!(lines.last().unwrap()["summary"]["dry_run"], true);
    assert_eq!((label_of(&bare), label_of(&wrong)), (None, Some(b"\x04\x04short".to_vec())));
    let ran = scratch.run("label", &[&"--dry-run", &scratch.mount.path()]);
    assert!(
        ran.out.starts_with("labelled 2, ") && ran.out.ends_with(" s (dry run: nothing was written)\n"),
        "{}",
        ran.out
    );
}

#[test]
fn json_has_a_line_for_each_file_and_a_summary() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (new, old, other) = (scratch.write("a", b"1"), scratch.write("b", b"22"), scratch.write("c", b"3"));
    set_label(&old, &right(HashAlgorithm::Sha256, b"22"));
    chown(&other, Some(7), None).unwrap();
    let ran = scratch.run("label", &[&"--json", &new, &old, &other]);
    let mut lines = ran.json();
    let mut summary = lines.pop().unwrap();
    assert!(summary["summary"]["seconds"].take().as_f64().is_some());
    let counts = json!({
        "labelled": 1, "unchanged": 1, "skipped": 1, "signatures": 0, "failed": 0, "bytes": 3, "seconds": null, "dry_run": false,
    });
    assert_eq!(summary, json!({ "summary": counts }));
    let line = |path: &std::path::Path, action, digest: Option<String>, reason: Option<String>| json!({ "path": path.to_str().unwrap(), "action": action, "digest": digest, "reason": reason });
    let policy = scratch.mount.path().with_extension("policy");
    let reason = format!("policy {}: no rule appraises it", policy.display());
    assert_eq!(line_of(&lines, &new), &line(&new, "labelled", Some(sha256(b"1")), None));
    assert_eq!(line_of(&lines, &old), &line(&old, "unchanged", Some(sha256(b"22")), None));
    assert_eq!(line_of(&lines, &other), &line(&other, "skipped", None, Some(reason)));
    assert_eq!(lines.len(), 3);
}

#[test]
fn names_are_bytes() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let names: [&[u8]; 6] = [b"a b", b"line\nfeed", b"\xff\xfe", b"-dash", b"\x1b[31m", "ä".as_bytes()];
    let paths = names.map(|name| scratch.write(OsStr::from_bytes(name), name));
    let ran = scratch.run("label", &[&"--json", &scratch.mount.path()]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for (path, name) in paths.iter().zip(names) {
        assert_eq!(label_of(path), Some(right(HashAlgorithm::Sha256, name)), "{path:?}");
    }
    let lines = ran.json();
    let odd: Vec<_> = lines.iter().filter_map(|line| line.get("path_hex")).collect();
    let hex: String = paths[2].as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(odd, [&json!(hex)], "only the path that is not UTF-8 is told byte by byte");
    // Named from its own directory, behind the two dashes.
    let policy = scratch.mount.path().with_extension("policy");
    let mut command = command();
    command.current_dir(scratch.mount.path()).arg("label").arg("--policy").arg(policy).args(["--", "-dash"]);
    let output = command.output().unwrap();
    assert!(output.stdout.starts_with(b"labelled 0, unchanged 1, skipped 0, failed 0;"), "{output:?}");
}

#[test]
fn a_complaint_is_one_line_whatever_the_name() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    scratch.write("two\nlines", b"");
    scratch.mount.remount("ro").unwrap();
    let ran = scratch.run("label", &[&scratch.mount.path()]);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("two\\nlines: its label cannot be written"), "{}", ran.err);
}

#[test]
fn what_is_no_regular_file_is_skipped_and_no_link_is_followed() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let target = scratch.write("outside/target", b"x");
    fs::create_dir(scratch.path("tree")).unwrap();
    symlink(&target, scratch.path("tree/link")).unwrap();
    symlink(scratch.path("outside"), scratch.path("tree/dirlink")).unwrap();
    let made = Command::new("mkfifo").arg(scratch.path("tree/fifo")).status().unwrap();
    let node = Command::new("mknod").arg(scratch.path("tree/node")).args(["c", "1", "3"]).status().unwrap();
    assert!(made.success() && node.success());
    assert!(fs::symlink_metadata(scratch.path("tree/node")).unwrap().file_type().is_char_device());
    let _socket = std::os::unix::net::UnixListener::bind(scratch.path("tree/socket")).unwrap();
    let ran = scratch.run("label", &[&"--json", &scratch.path("tree")]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines = ran.json();
    for (name, word) in [
        ("link", "symbolic link"),
        ("dirlink", "symbolic link"),
        ("fifo", "pipe"),
        ("node", "device"),
        ("socket", "socket"),
    ] {
        let line = line_of(&lines, &scratch.path("tree").join(name));
        assert_eq!(line["action"], "skipped");
        assert!(line["reason"].as_str().unwrap().contains(word), "{line}");
    }
    assert_eq!(lines.last().unwrap()["summary"]["skipped"], 5);
    assert_eq!(label_of(&target), None);
}

#[test]
fn a_file_with_two_names_is_labelled_once() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let first = scratch.write("a", b"x");
    for number in 0..100 {
        fs::hard_link(&first, scratch.path(format!("name{number}"))).unwrap();
    }
    let ran = scratch.run("label", &[&"--jobs", &"4", &scratch.mount.path()]);
    assert_eq!(ran.counts(), "labelled 1, unchanged 100, skipped 0, failed 0");
    let again = scratch.run("label", &[&scratch.mount.path()]);
    assert_eq!(again.counts(), "labelled 0, unchanged 101, skipped 0, failed 0");
}

#[test]
fn wide_and_deep_trees_are_walked_to_their_ends() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    for number in 0..2000 {
        scratch.write(format!("wide/{number}"), format!("{number}").as_bytes());
    }
    let mut deep = scratch.path("deep");
    for _ in 0..300 {
        deep.push("directory");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"x").unwrap();
    for jobs in ["1", "3"] {
        let ran = scratch.run(
            "label",
            &[&"--jobs", &jobs, &"--hash", &if jobs == "1" { "sha256" } else { "sha512" }, &scratch.mount.path()],
        );
        assert_eq!(
            (ran.code, ran.counts()),
            (Some(0), "labelled 2001, unchanged 0, skipped 0, failed 0"),
            "{}",
            ran.err
        );
    }
    assert_eq!(label_of(&deep.join("bottom")), Some(right(HashAlgorithm::Sha512, b"x")));
}

#[test]
fn signatures_are_never_replaced_and_broken_labels_are() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let verity = b"\x06\x03\x04\x01\x02\x03\x04\x00\x01s";
    for (label, kept) in [
        (&b"\x03\x02\x04\x01\x02\x03\x04\x00\x01s"[..], true),
        (b"\x03", true),
        (b"\x03junk", true),
        (verity, true),
        (&verity[..9], false),
        (b"\x06", false),
        (b"\x05\x02\x04\x01\x02\x03\x04\x00\x01s", false),
        (b"\x04\x04short", false),
        (b"\x77", false),
    ] {
        let file = scratch.write("a", b"content");
        set_label(&file, label);
        let ran = scratch.run("label", &[&"--json", &file]);
        let expected = if kept { label.to_vec() } else { right(HashAlgorithm::Sha256, b"content") };
        assert_eq!(label_of(&file), Some(expected), "{label:?}");
        let line = &ran.json()[0];
        assert_eq!(line["action"], if kept { "skipped" } else { "labelled" }, "{label:?}");
        let reason = json!(kept.then_some("its label is a signature, which is never replaced"));
        assert_eq!((ran.code, &line["reason"]), (Some(0), &reason), "{label:?}");
    }
}

#[test]
fn a_label_that_cannot_be_written_fails_the_run() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (good, bad) = (scratch.write("a", b"1"), scratch.write("b", b"2"));
    set_label(&good, &right(HashAlgorithm::Sha256, b"1"));
    scratch.mount.remount("ro").unwrap();
    let ran = scratch.run("label", &[&"--json", &scratch.mount.path()]);
    assert_eq!(ran.code, Some(1));
    let lines = ran.json();
    let reason = "its label cannot be written: Read-only file system (os error 30) (fix: mount -o remount,rw)";
    assert_eq!(line_of(&lines, &good)["action"], "unchanged");
    assert_eq!(line_of(&lines, &bad)["action"], "failed");
    assert_eq!(line_of(&lines, &bad)["reason"], reason);
    assert_eq!(ran.err, format!("imara: {}: {reason}\n", bad.display()));
    assert_eq!(lines.last().unwrap()["summary"]["failed"], 1);
}

#[test]
fn an_immutable_file_fails_with_the_fix() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let file = scratch.write("a", b"1");
    let chattr = |flag: &str| assert!(Command::new("chattr").arg(flag).arg(&file).status().unwrap().success());
    for (set, unset) in [("+i", "-i"), ("+a", "-a")] {
        chattr(set);
        let ran = scratch.run("label", &[&file]);
        chattr(unset);
        assert_eq!((ran.code, ran.counts()), (Some(1), "labelled 0, unchanged 0, skipped 0, failed 1"), "{set}");
        assert!(ran.err.contains("if it is immutable or append-only, chattr -i -a first"), "{}", ran.err);
    }
}

#[test]
fn without_privileges_the_fix_is_root() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let copied = Copied::new("nobody");
    scratch.set_policy("appraise\n");
    let policy = scratch.mount.path().with_extension("policy");
    let (closed, own) = (scratch.write("closed", b"1"), scratch.write("own", b"2"));
    fs::create_dir(scratch.path("locked")).unwrap();
    for path in [scratch.path("locked"), closed.clone()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    chown(&own, Some(65534), Some(65534)).unwrap();
    for directory in [scratch.mount.path(), scratch.mount.path().parent().unwrap()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::remove_dir(scratch.path("lost+found")).unwrap();
    let mut command = Command::new(&copied.program);
    command.uid(65534).gid(65534).arg("label").arg("--policy").arg(&policy).arg(scratch.mount.path());
    let output = command.output().unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaints}");
    assert!(output.stdout.starts_with(b"labelled 0, unchanged 0, skipped 0, failed 3;"), "{complaints}");
    for (path, fault) in [
        (closed, "cannot be opened: Permission denied (os error 13) (fix: run as root)"),
        (scratch.path("locked"), "cannot be opened: Permission denied (os error 13) (fix: run as root)"),
        (
            own,
            "its label cannot be written: Operation not permitted (os error 1) (fix: run as root; if it is immutable or append-only, chattr -i -a first)",
        ),
    ] {
        let line = format!("imara: {}: {fault}\n", path.display());
        assert!(complaints.contains(&line), "{line}in\n{complaints}");
    }
}

#[test]
fn the_default_policy_on_tmpfs_labels_nothing_and_says_why() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("d/a", b"1");
    for path in [scratch.mount.path(), &file] {
        let ran = imara(&[&"label", &path]);
        assert_eq!((ran.code, ran.counts()), (Some(0), "labelled 0, unchanged 0, skipped 1, failed 0"));
        assert_eq!(
            ran.err,
            "imara: nothing is to be labelled: the policy appraises none of 1 files\n  first reason: policy \
             builtin:appraise_tcb, line 4: dont_appraise fsmagic=0x1021994\n  fix: choose another policy with --policy\n"
        );
    }
    assert_eq!(label_of(&file), None);
}

#[test]
fn the_default_policy_labels_what_root_owns() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (ours, theirs) = (scratch.write("a", b"1"), scratch.write("b", b"2"));
    chown(&theirs, Some(1), Some(1)).unwrap();
    let ran = imara(&[&"label", &scratch.mount.path()]);
    assert_eq!((ran.counts(), ran.err.as_str()), ("labelled 1, unchanged 0, skipped 1, failed 0", ""));
    assert_eq!((label_of(&ours), label_of(&theirs)), (Some(right(HashAlgorithm::Sha256, b"1")), None));
}

#[test]
fn a_file_is_labelled_if_reading_or_executing_it_is_appraised() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    for (policy, expected) in [
        ("appraise func=FILE_CHECK mask=MAY_READ", "labelled 1, unchanged 0, skipped 0, failed 0"),
        ("appraise func=BPRM_CHECK mask=MAY_EXEC", "labelled 1, unchanged 0, skipped 0, failed 0"),
        ("appraise func=FILE_CHECK mask=MAY_EXEC", "labelled 1, unchanged 0, skipped 0, failed 0"),
        ("appraise func=CREDS_CHECK", "labelled 1, unchanged 0, skipped 0, failed 0"),
        ("appraise uid=0", "labelled 1, unchanged 0, skipped 0, failed 0"),
        ("appraise func=FILE_CHECK mask=MAY_WRITE", "labelled 0, unchanged 0, skipped 1, failed 0"),
        ("appraise func=FILE_CHECK uid=7", "labelled 0, unchanged 0, skipped 1, failed 0"),
        ("appraise func=MODULE_CHECK", "labelled 0, unchanged 0, skipped 1, failed 0"),
        ("measure", "labelled 0, unchanged 0, skipped 1, failed 0"),
        ("", "labelled 0, unchanged 0, skipped 1, failed 0"),
    ] {
        let file = scratch.path("a");
        drop(fs::remove_file(&file));
        fs::write(&file, b"x").unwrap();
        scratch.set_policy(policy);
        assert_eq!(scratch.run("label", &[&file]).counts(), expected, "{policy:?}");
    }
}

#[test]
fn a_missing_path_stops_everything_before_it_begins() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"1");
    let ran = scratch.run("label", &[&file, &scratch.path("missing")]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("/missing: No such file or directory (os error 2) (fix: "), "{}", ran.err);
    assert_eq!(label_of(&file), None);
}

#[test]
fn a_file_that_is_open_for_writing_gets_the_label_of_what_it_holds() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let file = scratch.write("a", b"before");
    let mut writer = OpenOptions::new().append(true).open(&file).unwrap();
    writer.write_all(b" and after").unwrap();
    let ran = scratch.run("label", &[&file]);
    assert_eq!(ran.counts(), "labelled 1, unchanged 0, skipped 0, failed 0", "{}", ran.err);
    assert_eq!(label_of(&file), Some(right(HashAlgorithm::Sha256, b"before and after")));
}

#[test]
fn nothing_is_labelled_with_a_content_that_it_never_had() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    // The name changes hands all the time; what was opened must be what is hashed and what is labelled.
    let length = 2 << 20;
    let path = scratch.write("a", &vec![0; length]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let had: Vec<Vec<u8>> = (0..=1).map(|byte| right(HashAlgorithm::Sha256, &vec![byte; length])).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                byte ^= 1;
                // Renamed over: each file has one content only, and is written while nobody knows its name.
                let next = scratch.path("next");
                fs::write(&next, vec![byte; length]).unwrap();
                fs::rename(&next, &path).unwrap();
            }
        });
        for _ in 0..20 {
            scratch.run("label", &[&path]);
            let (content, label) = {
                let file = File::open(&path).unwrap();
                let mut value = Vec::new();
                use std::os::fd::AsFd as _;
                let _ = imara_linux::xattr::read_all(file.as_fd(), imara_linux::xattr::IMA, &mut value).unwrap();
                let mut byte = [0];
                use std::os::unix::fs::FileExt as _;
                file.read_exact_at(&mut byte, 0).unwrap();
                (usize::from(byte[0]), value)
            };
            assert!(label.is_empty() || label == had[content], "{content}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn one_file_system_is_not_left_when_told_so() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    if root().is_none() {
        return;
    }
    let inner = ScratchMount::new(FsKind::Tmpfs, 1 << 20).unwrap();
    let (outer_file, inner_file) = (scratch.write("a", b"1"), inner.path().join("b"));
    fs::write(&inner_file, b"2").unwrap();
    let point = scratch.path("point");
    fs::create_dir(&point).unwrap();
    let bound = Bound::new(inner.path(), &point);
    let ran = scratch.run("label", &[&"-x", &scratch.mount.path()]);
    assert_eq!(ran.counts(), "labelled 1, unchanged 0, skipped 0, failed 0");
    assert_eq!((label_of(&outer_file).is_some(), label_of(&inner_file)), (true, None));
    // A directory that is named is its own file system.
    let ran = scratch.run("label", &[&"--dry-run", &"--one-file-system", &scratch.mount.path(), &point]);
    assert_eq!(ran.counts(), "labelled 1, unchanged 1, skipped 0, failed 0");
    let ran = scratch.run("label", &[&scratch.mount.path()]);
    assert_eq!(ran.counts(), "labelled 1, unchanged 1, skipped 0, failed 0");
    assert!(label_of(&inner_file).is_some());
    // The default policy keeps tmpfs out: it is one thing that is skipped, and not gone into.
    let ran = imara(&[&"label", &scratch.mount.path()]);
    assert_eq!(ran.counts(), "labelled 0, unchanged 1, skipped 1, failed 0");
    drop(bound);
}

#[test]
fn a_reader_that_went_away_is_no_reason_to_fail() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    for number in 0..1000 {
        scratch.write(format!("{number}"), b"x");
    }
    for verb in ["label", "verify", "inspect"] {
        let mut command = command();
        command.arg(verb).arg("--policy").arg(scratch.mount.path().with_extension("policy")).arg("--json");
        command.arg(if verb == "inspect" { scratch.path("0") } else { scratch.mount.path().to_owned() });
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{verb}");
    }
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"x");
    for verb in ["label", "verify", "inspect"] {
        let mut command = command();
        command.arg(verb).arg("--policy").arg(scratch.mount.path().with_extension("policy")).arg(&file);
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{verb}: {complaint}");
        assert!(complaint.contains("cannot print to standard output") && complaint.contains("No space"), "{complaint}");
    }
}
