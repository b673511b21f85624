//! Arguments, help and errors that all verbs share.

use std::fs;

use imara_linux::testing::FsKind;

use crate::fixture::{Scratch, imara, imara_words};

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
