//! What `imara label` leaves alone, and says so.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use imara_integrity::digest::HashAlgorithm;
use imara_linux::testing::FsKind;

use crate::fixture::{Scratch, label_of, right, set_label};

#[test]
fn a_dry_run_on_a_read_only_mount_fails_as_the_real_one_would() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let (good, bare) = (scratch.write("a", b"1"), scratch.write("b", b"2"));
    set_label(&good, &right(HashAlgorithm::Sha256, b"1"));
    scratch.mount.remount("ro").unwrap();
    let ran = scratch.run("label", &[&"--dry-run", &scratch.mount.path()]);
    assert_eq!((ran.code, ran.counts()), (Some(1), "labelled 0, unchanged 1, skipped 0, failed 1"));
    let told = "its label could not be written: it is on a read-only mount (fix: mount -o remount,rw)";
    assert_eq!(ran.err, format!("imara: {}: {told}\n", bare.display()));
}

#[test]
fn a_label_that_the_rule_would_not_accept_is_not_written() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let file = scratch.write("a", b"1");
    let rule = "appraise func=FILE_CHECK fowner=0 appraise_algos=sha384,sha512";
    scratch.set_policy(rule);
    let policy = scratch.mount.path().with_extension("policy");
    let refusal = |hash| {
        let fix = "fix: imara label --hash with one that the rule lists";
        let (file, policy) = (file.display(), policy.display());
        format!("imara: {file}: a label of {hash} would not be accepted (policy {policy}, line 1: {rule}; {fix})\n")
    };
    let ran = scratch.run("label", &[&file]);
    assert_eq!((ran.code, ran.counts()), (Some(1), "labelled 0, unchanged 0, skipped 0, failed 1"));
    assert_eq!((ran.err, label_of(&file)), (refusal("sha256"), None));
    assert_eq!(scratch.run("label", &[&"--hash", &"sha512", &file]).code, Some(0));
    let ran = scratch.run("label", &[&"--hash", &"sha1", &file]);
    assert_eq!((ran.code, ran.err), (Some(1), refusal("sha1")));
    assert_eq!(label_of(&file), Some(right(HashAlgorithm::Sha512, b"1")), "the label that is accepted stays");
    // Rules for executing count for what can be executed.
    scratch.set_policy("appraise func=BPRM_CHECK appraise_algos=sha384\nappraise func=FILE_CHECK\n");
    assert_eq!(scratch.run("label", &[&file]).code, Some(0));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = scratch.run("label", &[&file]);
    assert!(ran.code == Some(1) && ran.err.contains(", line 1: appraise func=BPRM_CHECK"), "{}", ran.err);
}

#[test]
fn files_with_signatures_are_counted_in_the_summary() {
    let Some(scratch) = Scratch::new(FsKind::Ext4) else { return };
    let signed = scratch.write("a", b"1");
    scratch.write("b", b"2");
    set_label(&signed, b"\x03\x02\x04\x01\x02\x03\x04\x00\x01s");
    let ran = scratch.run("label", &[&scratch.mount.path()]);
    assert_eq!((ran.code, ran.counts()), (Some(0), "labelled 1, unchanged 0, skipped 1, failed 0"));
    assert!(
        ran.out.ends_with(" s; of those skipped, 1 with a signature as their label, which is left alone\n"),
        "{}",
        ran.out
    );
    let ran = scratch.run("label", &[&"--json", &scratch.mount.path()]);
    assert_eq!(ran.json().last().unwrap()["summary"]["signatures"], 1);
}
