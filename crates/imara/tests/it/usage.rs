//! Arguments, help and errors that all verbs share.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use imara_linux::testing::FsKind;

use crate::fixture::{Ran, Scratch, command, imara, imara_words};

#[test]
fn the_version_and_the_help_of_every_verb_are_there() {
    let version = imara(&[&"--version"]);
    assert_eq!((version.code, version.out), (Some(0), format!("imara {}\n", env!("CARGO_PKG_VERSION"))));
    for verb in ["label", "verify", "inspect", "guard"] {
        let help = imara(&[&verb, &"--help"]);
        assert_eq!(help.code, Some(0));
        assert!(
            help.out.contains("Examples:\n") && help.out.contains("[default: builtin:appraise_tcb]"),
            "{}",
            help.out
        );
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = imara(&[&"completions", &shell]);
        assert_eq!(script.code, Some(0));
        assert!(script.out.contains("one-file-system"), "{shell}");
    }
}

#[test]
fn the_manual_has_a_page_for_each_verb() {
    let scratch = tempdir();
    let ran = imara(&[&"manual", &scratch]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    for verb in ["label", "verify", "inspect", "guard", "status", "mode", "release"] {
        let page = fs::read_to_string(scratch.join(format!("imara-{verb}.1"))).unwrap();
        assert!(page.contains("Exit status"), "{verb}: {page}");
    }
    assert!(fs::read_to_string(scratch.join("imara.1")).unwrap().contains("imara\\-label(1)"));
    fs::remove_dir_all(&scratch).unwrap();
    let nowhere = imara(&[&"manual", &"/nonexistent"]);
    assert_eq!(nowhere.code, Some(2));
    assert!(nowhere.err.starts_with("imara: cannot write the manual's pages to /nonexistent: "), "{}", nowhere.err);
}

/// A directory of its own.
fn tempdir() -> PathBuf {
    let directory = std::env::temp_dir().join(format!("imara-manual-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    directory
}

#[test]
fn wrong_arguments_end_with_two() {
    for arguments in [
        &[][..],
        &["labl", "/"],
        &["label"],
        &["label", "--hash", "sha257", "/proc/version"],
        &["label", "--jobs", "0", "/proc/version"],
        &["label", "--jobs", "many", "/proc/version"],
        &["verify", "--hash", "sha256", "/proc/version"],
        &["mode", "permissive"],
        &["inspect"],
    ] {
        let ran = imara_words(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!ran.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_help_tells_the_exit_status_and_is_no_success_if_it_cannot_be_printed() {
    for verb in ["", "label", "verify", "inspect", "guard", "status", "mode", "release"] {
        let words: Vec<_> = [verb, "--help"].into_iter().filter(|word| !word.is_empty()).collect();
        assert!(imara_words(&words).out.contains("Exit status: 0 "), "{verb}");
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran: Ran = command().args(&words).stdout(full).stderr(Stdio::piped()).output().unwrap().into();
        assert_eq!(ran.code, Some(2), "{verb}");
        assert!(ran.err.starts_with("imara: cannot print to standard output"), "{}", ran.err);
    }
}

#[test]
fn what_is_empty_or_missing_is_named_with_its_fix() {
    let policy = |policy| imara_words(&["inspect", "--policy", policy, "/proc/version"]);
    let ran = policy("");
    let empty = "imara: --policy is empty, expected a file or builtin:NAME (fix: name one, or leave the option out)\n";
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), empty));
    let ran = policy("/nonexistent");
    let missing = "imara: cannot read the policy /nonexistent: No such file or directory (os error 2) (fix: name a file \
                   that can be read, or builtin:NAME)\n";
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), missing));
    for (environment, arguments) in [("", &["status"][..]), ("/x", &["status", "--run-dir", ""])] {
        let ran: Ran = command().env("IMARA_RUN_DIR", environment).args(arguments).output().unwrap().into();
        assert_eq!(ran.code, Some(2), "{arguments:?}");
        assert!(ran.err.contains("or IMARA_RUN_DIR is if that is not given (fix: name a directory"), "{}", ran.err);
    }
}

#[test]
fn a_broken_policy_is_shown_with_the_place_underlined() {
    let Some(scratch) = Scratch::new(FsKind::Tmpfs) else { return };
    let file = scratch.write("a", b"1");
    let policy = scratch.mount.path().with_extension("policy");
    fs::write(&policy, "appraise fowner=0\nappraise func=FILE_CHEK fowner=0\n").unwrap();
    for verb in ["label", "verify", "inspect", "guard"] {
        let ran = scratch.run(verb, &[&if verb == "guard" { scratch.mount.path() } else { &file }]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{verb}");
        let lines: Vec<_> = ran.err.lines().collect();
        assert_eq!(lines[0], format!("imara: {} is not a policy", policy.display()));
        assert!(lines[1].starts_with("policy line 2, column 15: unknown func \"FILE_CHEK\""), "{}", lines[1]);
        assert_eq!(lines[2..], ["2 | appraise func=FILE_CHEK fowner=0", "  |               ^^^^^^^^^"]);
    }
}
