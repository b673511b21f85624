//! The paths that are named: links, what is no file, and directories without any.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use imara_integrity::digest::HashAlgorithm;
use imara_linux::testing::FsKind;

use crate::fixture::{Bound, Scratch, imara, label_of, line_of, right, sha256};

#[test]
fn a_link_that_is_named_is_followed_and_those_below_it_are_not() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (inside, outside) = (scratch.write("real/a", b"1"), scratch.write("outside", b"2"));
    symlink("real", scratch.path("dir")).unwrap();
    symlink("dir", scratch.path("dir of dir")).unwrap();
    symlink("../outside", scratch.path("real/out")).unwrap();
    symlink("real/a", scratch.path("file")).unwrap();
    // What is named, and the path of the only file in the answer.
    for (named, told) in [("dir", "dir/a"), ("dir/", "dir/a"), ("dir of dir", "dir of dir/a"), ("file", "file")] {
        let ran = scratch.run("label", &[&"--json", &scratch.path(named)]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{named}");
        let lines = ran.json();
        assert_eq!(line_of(&lines, &scratch.path(told))["digest"], sha256(b"1"), "{named}");
        let ran = scratch.run("verify", &[&"--json", &"-x", &scratch.path(named)]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{named}");
        assert_eq!(line_of(&ran.json(), &scratch.path(told))["verdict"], "allow", "{named}");
    }
    let ran = scratch.run("inspect", &[&"--json", &scratch.path("file")]);
    let found = ran.json().remove(0);
    assert_eq!((ran.code, &found["target"]["path"]), (Some(0), &inside.to_str().unwrap().into()));
    assert_eq!(
        (&found["path"], &found["read"]["verdict"]),
        (&scratch.path("file").to_str().unwrap().into(), &"allow".into())
    );
    assert_eq!((label_of(&inside), label_of(&outside)), (Some(right(HashAlgorithm::Sha256, b"1")), None));
}

#[test]
fn a_link_that_leads_nowhere_stops_label_and_verify_before_they_begin() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"1");
    symlink("missing", scratch.path("dangling")).unwrap();
    for verb in ["label", "verify"] {
        let ran = scratch.run(verb, &[&scratch.path("dangling"), &file]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{verb}");
        assert!(
            ran.err.contains("/dangling: a symbolic link that cannot be followed: No such file or directory"),
            "{}",
            ran.err
        );
    }
    assert_eq!(label_of(&file), None);
}

#[test]
fn a_path_that_leads_to_no_file_is_told_and_the_others_are_done() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (good, empty, fifo) = (scratch.write("good", b"1"), scratch.path("empty"), scratch.path("fifo"));
    fs::create_dir_all(empty.join("below")).unwrap();
    symlink("../good", empty.join("link")).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let told = |path: &Path, done: &str, found: &str| {
        let fix = "fix: name a regular file, or a directory that holds some";
        format!("imara: {}: nothing was {done}: {found} ({fix})\n", path.display())
    };
    let (in_directory, a_pipe) =
        ("there is no regular file in this directory, nor below it", "a named pipe, not a regular file");
    for (verb, done, of_empty) in [("label", "labelled", 0), ("verify", "verified", 2)] {
        for (paths, code, complaints) in [
            (&[&good][..], 0, vec![]),
            (&[&empty], of_empty, vec![told(&empty, done, in_directory)]),
            (&[&fifo], 2, vec![told(&fifo, done, a_pipe)]),
            (&[&empty, &good], of_empty, vec![told(&empty, done, in_directory)]),
            (&[&fifo, &good, &empty], 2, vec![told(&fifo, done, a_pipe), told(&empty, done, in_directory)]),
            (&[&empty.join("link"), &good], 0, vec![]),
        ] {
            let mut arguments: Vec<&dyn AsRef<OsStr>> = Vec::new();
            for path in paths {
                arguments.push(path);
            }
            let ran = scratch.run(verb, &arguments);
            assert_eq!((ran.code, ran.err), (Some(code), complaints.concat()), "{verb}");
        }
        assert_eq!(label_of(&good), Some(right(HashAlgorithm::Sha256, b"1")));
    }
    // A check that failed is told rather than one that could not be made.
    fs::write(&good, b"2").unwrap();
    assert_eq!(scratch.run("verify", &[&good, &empty]).code, Some(1));
}

#[test]
fn a_tree_whose_only_files_are_on_file_systems_that_the_policy_leaves_out_is_told() {
    let (Some(scratch), Some(inner)) = (Scratch::new(FsKind::Ext4), Scratch::new(FsKind::Tmpfs)) else { return };
    inner.write("a", b"1");
    let point = scratch.path("point");
    fs::create_dir(&point).unwrap();
    let _bound = Bound::new(inner.mount.path(), &point);
    let ran = imara(&[&"verify", &scratch.path("point/..")]);
    assert_eq!((ran.code, ran.counts()), (Some(0), "passed 0, failed 0, not appraised 0, skipped 1"));
    assert_eq!(
        ran.err,
        "imara: nothing was verified: the policy appraises nothing on the file systems that are mounted there\n  first \
         reason: policy builtin:appraise_tcb, line 4: dont_appraise fsmagic=0x1021994\n  fix: choose another policy with \
         --policy\n"
    );
}
