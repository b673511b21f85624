//! `imara inspect`.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use imara_integrity::digest::HashAlgorithm;
use imara_linux::testing::FsKind;
use imara_linux::xattr;
use serde_json::json;

use crate::fixture::{Scratch, imara, right, set_label, sha256};

#[test]
fn everything_is_told_in_json() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let file = scratch.write("a", b"content");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
    let signature = b"\x03\x02\x04\x0a\x0b\x0c\x0d\x00\x01s";
    set_label(&file, &right(HashAlgorithm::Sha256, b"content"));
    xattr::write(File::open(&file).unwrap().as_fd(), xattr::EVM, signature).unwrap();
    let ran = scratch.run("inspect", &[&"--json", &file]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let mut found = ran.json().remove(0);
    let policy = scratch.mount.path().with_extension("policy");
    let answer = json!({
        "rule": format!("policy {}, line 2: appraise fowner=0", policy.display()),
        "verdict": "allow", "cause": null, "why": "the content is what the label says",
    });
    let digest = sha256(b"content");
    assert!(found["device"].take().as_str().is_some_and(|device| device.contains(':')));
    assert_eq!(
        found,
        json!({
            "path": file.to_str().unwrap(), "owner": 0, "group": 0, "mode": "4755", "size": 7, "links": 1,
            "inode": fs::metadata(&file).unwrap().ino(), "device": null, "filesystem": "ext4",
            "ima": {
                "hex": format!("0404{}", &digest[7..]), "text": format!("{digest} (type 0x04)"), "kind": "digest",
                "algorithm": "sha256", "version": null, "key_id": null,
            },
            "evm": {
                "hex": "0302040a0b0c0d000173", "text": "signature v2 sha256 key id 0a0b0c0d 1 bytes",
                "kind": "signature", "algorithm": "sha256", "version": 2, "key_id": "0a0b0c0d",
            },
            "digest": digest, "read": answer, "exec": answer,
        })
    );
}

#[test]
fn the_verdict_is_explained_in_words() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    for (label, policy, cause, words) in [
        (&b""[..], "appraise", "missing-hash", "it has no label (fix, if the content is meant: imara label)"),
        (b"\x04\x04abc", "appraise", "invalid-hash", "the content gives sha256:"),
        (b"\x77", "appraise", "unknown-ima-data", "the label's type 0x77 has no meaning"),
        (
            b"\x03\x02\x04\x0a\x0b\x0c\x0d\x00\x01s",
            "appraise",
            "invalid-signature",
            "(fix, if the content is meant: setfattr -x security.ima,",
        ),
        (
            b"\x03\x00\x04\x0a\x0b\x0c\x0d\x00\x01s",
            "appraise",
            "unknown",
            "version 0 (fix, if the content is meant: setfattr -x security.ima,",
        ),
        (b"\x04\x04abc", "appraise func=FILE_CHECK appraise_type=imasig", "IMA-signature-required", "sign the file"),
    ] {
        let file = scratch.path("a");
        drop(fs::remove_file(&file));
        fs::write(&file, b"1").unwrap();
        if !label.is_empty() {
            set_label(&file, label);
        }
        scratch.set_policy(policy);
        let ran = scratch.run("inspect", &[&file]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let line = ran.out.lines().find(|line| line.starts_with("  read")).unwrap();
        assert!(line.starts_with(&format!("  read          deny ({cause}): ")) && line.contains(words), "{line}");
    }
}

#[test]
fn text_shows_labels_rules_and_that_data_is_not_executed() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"content");
    let ran = imara(&[&"inspect", &file]);
    let lines: Vec<_> = ran.out.lines().collect();
    let inode = fs::metadata(&file).unwrap().ino();
    assert_eq!(lines[0], file.to_str().unwrap());
    assert_eq!(lines[1..4], ["  owner         0:0", "  mode          644", "  size          7 B (7 bytes)"]);
    assert!(lines[4].starts_with(&format!("  inode         {inode} on tmpfs (")), "{}", lines[4]);
    assert_eq!(
        lines[5..],
        [
            "  security.ima  none",
            "  security.evm  none",
            &format!("  content       {}", sha256(b"content")),
            "  read          allow: the policy does not ask for appraisal",
            "                policy builtin:appraise_tcb, line 4: dont_appraise fsmagic=0x1021994",
            "  exec          allow: the policy does not ask for appraisal; it has no execute bit, so nobody executes it",
            "                policy builtin:appraise_tcb, line 4: dont_appraise fsmagic=0x1021994",
        ]
    );
}

#[test]
fn what_cannot_be_looked_at_ends_with_two() {
    for (path, word) in
        [("/nonexistent/imara", "No such file"), ("/", "a directory, not"), ("/proc/self/cwd", "a directory, not")]
    {
        let ran = imara(&[&"inspect", &path]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{path}");
        assert!(ran.err.contains(path) && ran.err.contains(word), "{}", ran.err);
    }
}
