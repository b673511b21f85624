//! `imara verify`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_linux::testing::FsKind;
use serde_json::{Value, json};

use crate::fixture::{Copied, Scratch, imara, line_of, right, set_label, sha256};

fn line(path: &Path, verdict: &str, cause: Option<&str>, expected: Option<&str>, found: Option<&str>) -> Value {
    json!({ "path": path.to_str().unwrap(), "verdict": verdict, "cause": cause, "expected": expected, "found": found })
}

#[test]
fn each_fault_has_its_cause_and_what_was_expected_and_found() {
    let content = b"content";
    let found = sha256(content);
    let other = sha256(b"other");
    let sha1 = Digest::of(HashAlgorithm::Sha1, content).to_string();
    let md5 = Digest::of(HashAlgorithm::Md5, content).to_string();
    let short = format!("sha256:{}", &found[7..7 + 40]);
    let cut = [&[4, 4], &right(HashAlgorithm::Sha256, content)[2..22]].concat();
    let wrong_id = [&[4, 2], &right(HashAlgorithm::Sha256, content)[2..]].concat();
    let wrong_id_says = format!("sha1:{}", &found[7..]);
    let signature = b"\x03\x02\x04\x01\x02\x03\x04\x00\x01s";
    // Name, label; cause, expected, found.
    type Row<'a> = (&'a str, Option<Vec<u8>>, Option<&'a str>, Option<&'a str>, Option<&'a str>);
    let table: [Row<'_>; 10] = [
        ("good", Some(right(HashAlgorithm::Sha256, content)), None, Some(&found), Some(&found)),
        ("sha1", Some(right(HashAlgorithm::Sha1, content)), None, Some(&sha1), Some(&sha1)),
        ("md5", Some(right(HashAlgorithm::Md5, content)), None, Some(&md5), Some(&md5)),
        ("changed", Some(right(HashAlgorithm::Sha256, b"other")), Some("invalid-hash"), Some(&other), Some(&found)),
        ("stripped", None, Some("missing-hash"), None, None),
        ("empty", Some(vec![]), Some("missing-hash"), None, None),
        ("unknown", Some(vec![0x77, 1, 2]), Some("unknown-ima-data"), Some("unknown type 0x77 2 bytes"), None),
        ("short", Some(cut), Some("invalid-hash"), Some(&short), Some(&found)),
        ("wrong-id", Some(wrong_id), Some("invalid-hash"), Some(&wrong_id_says), Some(&sha1)),
        (
            "signed",
            Some(signature.to_vec()),
            Some("invalid-signature"),
            Some("signature v2 sha256 key id 01020304 1 bytes"),
            None,
        ),
    ];
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    for (name, label, ..) in &table {
        let path = scratch.write(name, content);
        if let Some(label) = label {
            set_label(&path, label);
        }
    }
    let ran = scratch.run("verify", &[&"--json", &scratch.mount.path()]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    let lines = ran.json();
    assert_eq!(lines.len(), table.len());
    for (name, _, cause, expected, found) in &table {
        let path = scratch.path(name);
        let verdict = if cause.is_some() { "deny" } else { "allow" };
        assert_eq!(line_of(&lines, &path), &line(&path, verdict, *cause, *expected, *found), "{name}");
    }
}

#[test]
fn text_lists_failures_only_and_counts_all() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (good, bad, theirs) = (scratch.write("a", b"1"), scratch.write("b", b"2"), scratch.write("c", b"3"));
    set_label(&good, &right(HashAlgorithm::Sha256, b"1"));
    set_label(&bad, &right(HashAlgorithm::Sha256, b"x"));
    chown(&theirs, Some(1), None).unwrap();
    symlink("a", scratch.path("link")).unwrap();
    let ran = scratch.run("verify", &[&scratch.mount.path()]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    let lines: Vec<_> = ran.out.lines().collect();
    let (expected, found) = (sha256(b"x"), sha256(b"2"));
    let failure = format!("{}: invalid-hash when opened to read, expected {expected}, found {found}", bad.display());
    assert_eq!(lines[0], failure);
    assert_eq!(ran.counts(), "passed 1, failed 1, not appraised 1, skipped 1");
    assert_eq!(lines.len(), 2);
    set_label(&bad, &right(HashAlgorithm::Sha256, b"2"));
    let ran = scratch.run("verify", &[&scratch.mount.path()]);
    assert_eq!((ran.code, ran.counts()), (Some(0), "passed 2, failed 0, not appraised 1, skipped 1"));
}

#[test]
fn what_label_has_labelled_verifies() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    for number in 0..200 {
        scratch.write(format!("d{}/{number}", number % 7), format!("{number}").as_bytes());
    }
    for algorithm in ["sha256", "md5", "sha512", "streebog256"] {
        assert_eq!(scratch.run("label", &[&"--hash", &algorithm, &scratch.mount.path()]).code, Some(0));
        let ran = scratch.run("verify", &[&"-x", &"--jobs", &"3", &scratch.mount.path()]);
        assert_eq!(
            (ran.code, ran.counts()),
            (Some(0), "passed 200, failed 0, not appraised 0, skipped 0"),
            "{algorithm}"
        );
    }
}

#[test]
fn executing_counts_only_for_what_can_be_executed() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    scratch.set_policy("appraise func=BPRM_CHECK\n");
    let (data, program) = (scratch.write("data", b"1"), scratch.write("program", b"2"));
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = scratch.run("verify", &[&"--json", &scratch.mount.path()]);
    let lines = ran.json();
    assert_eq!(line_of(&lines, &data), &line(&data, "allow", None, None, None));
    assert_eq!(line_of(&lines, &program), &line(&program, "deny", Some("missing-hash"), None, None));
    let ran = scratch.run("verify", &[&program]);
    assert!(
        ran.out.contains("/program: missing-hash when opened to exec, expected a label, found none\n"),
        "{}",
        ran.out
    );
}

#[test]
fn options_of_the_rule_are_judged_too() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let file = scratch.write("a", b"1");
    set_label(&file, &right(HashAlgorithm::Sha256, b"1"));
    for (policy, cause) in [
        ("appraise func=FILE_CHECK appraise_type=imasig", Some("IMA-signature-required")),
        ("appraise func=FILE_CHECK appraise_algos=sha512", Some("denied-hash-algorithm")),
        ("appraise func=FILE_CHECK appraise_algos=sha256,sha512", None),
    ] {
        scratch.set_policy(policy);
        let ran = scratch.run("verify", &[&"--json", &file]);
        assert_eq!((ran.code, &ran.json()[0]["cause"]), (Some(i32::from(cause.is_some())), &json!(cause)), "{policy}");
    }
}

#[test]
fn the_default_policy_on_tmpfs_verifies_nothing_and_says_why() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"1");
    let ran = imara(&[&"verify", &"--json", &scratch.mount.path()]);
    assert_eq!((ran.code, ran.json()), (Some(0), vec![line(&file, "allow", None, None, None)]));
    assert!(
        ran.err.contains("nothing was verified") && ran.err.contains("dont_appraise fsmagic=0x1021994"),
        "{}",
        ran.err
    );
}

#[test]
fn a_missing_path_could_not_be_verified() {
    let ran = imara(&[&"verify", &"/nonexistent/imara"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.starts_with("imara: /nonexistent/imara: No such file or directory"), "{}", ran.err);
}

#[test]
fn a_file_that_cannot_be_opened_fails_with_its_name_and_is_never_lost() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let copied = Copied::new("verify-nobody");
    scratch.set_policy("appraise fowner=0\n");
    let policy = scratch.mount.path().with_extension("policy");
    let closed = scratch.write("closed", b"1");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    for directory in [scratch.mount.path(), scratch.mount.path().parent().unwrap()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::remove_dir(scratch.path("lost+found")).unwrap();
    for json in [&[][..], &["--json"]] {
        let mut command = Command::new(&copied.program);
        command.uid(65534).gid(65534).arg("verify").args(json).arg("--policy").arg(&policy).arg(scratch.mount.path());
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(1), "{out}{err}");
        assert!(err.contains(&format!("imara: {}: cannot be opened: Permission denied", closed.display())), "{err}");
        if !json.is_empty() {
            assert!(out.contains(r#""verdict":"deny","cause":"imara:unjudged""#), "{out}");
        }
    }
}
