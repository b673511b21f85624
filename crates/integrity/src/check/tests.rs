use super::*;
use crate::appraise::{Cause, FileState};
use crate::audit::Operation;
use crate::collect::Collect;
use crate::digest::HashAlgorithm;
use crate::event::{Event, FileSystem, Gid, Hook, Mask, Object, Subject, Uid};
use crate::label;
use crate::policy::{Options, Policy};

const CONTENT: &[u8] = b"content\n";

fn decision(policy: &str) -> Decision {
    let fs = FileSystem { magic: 0xef53, name: "ext4".into(), subtype: None, uuid: [0; 16] };
    let policy = Policy::parse(policy.as_bytes(), &Options::default()).unwrap();
    policy.decide(&Event {
        hook: Hook::FileCheck,
        mask: Mask::READ,
        subject: Subject::ROOT,
        object: Object { owner: Uid(0), group: Gid(0), fs: &fs },
        subject_label: None,
        object_label: None,
        data: None,
    })
}

fn settings(mode: Mode) -> Settings {
    Settings { mode, hash: HashAlgorithm::Sha256 }
}

/// Goes all the way; the file's content is `CONTENT` or, if new, nothing.
fn outcome(policy: &str, mode: Mode, label: LabelRead<'_>, file: FileState) -> Outcome {
    let Plan::Judge(labels) = plan(&decision(policy), settings(mode)) else { panic!("the rule appraises") };
    match labels.read(label, file) {
        Collect::Settled(outcome) => outcome,
        Collect::Content(stage) => {
            let content = if file.size == 0 { b"" } else { CONTENT };
            let digest = Digest::of(stage.algorithm(), content);
            stage.settle(digest)
        }
    }
}

fn right(algorithm: HashAlgorithm) -> Vec<u8> {
    label::encode_digest(&Digest::of(algorithm, CONTENT))
}

const OLD: FileState = FileState { size: 8, new: false };
const OLD_EMPTY: FileState = FileState { size: 0, new: false };
const NEW_EMPTY: FileState = FileState { size: 0, new: true };

#[test]
fn nothing_is_asked_without_a_rule_or_in_mode_off() {
    for (policy, mode) in
        [("dont_appraise\nappraise\n", Mode::Enforce), ("audit\n", Mode::Fix), ("appraise\n", Mode::Off)]
    {
        assert!(matches!(plan(&decision(policy), settings(mode)), Plan::Allow(_)), "{policy} {mode}");
    }
}

#[test]
fn what_does_not_pass_is_denied_in_enforce_alone_and_repaired_in_fix_alone() {
    let wrong = right(HashAlgorithm::Sha256).iter().map(|byte| byte ^ 4).collect::<Vec<u8>>();
    let other = label::encode_digest(&Digest::of(HashAlgorithm::Sha256, b"other"));
    for (label, cause) in [
        (LabelRead::Absent, Cause::MissingHash),
        (LabelRead::Value(&[]), Cause::MissingHash),
        (LabelRead::Value(&other), Cause::InvalidHash),
        (LabelRead::Value(&[0x0a, 1, 2]), Cause::UnknownImaData),
        (LabelRead::Value(&wrong), Cause::UnknownImaData),
    ] {
        for mode in [Mode::Log, Mode::Fix, Mode::Enforce] {
            let outcome = outcome("appraise\n", mode, label, OLD);
            assert_eq!(outcome.complaint.map(|complaint| complaint.cause), Some(cause), "{label:?} {mode}");
            assert_eq!(outcome.verdict == Verdict::Deny(cause), mode == Mode::Enforce, "{label:?} {mode}");
            let repair = (mode == Mode::Fix).then(|| Digest::of(HashAlgorithm::Sha256, CONTENT));
            assert_eq!(outcome.repair, repair, "{label:?} {mode}");
            assert!(!outcome.good(false));
            assert_eq!(outcome.good(true), mode == Mode::Fix, "{label:?} {mode}");
        }
    }
}

#[test]
fn a_right_label_passes_without_a_word_in_every_mode_and_with_every_algorithm() {
    for algorithm in HashAlgorithm::ALL {
        // An md4 label is written in the form that is read as md5.
        let expected = if algorithm == HashAlgorithm::Md4 { Some(Cause::InvalidHash) } else { None };
        for mode in [Mode::Log, Mode::Fix, Mode::Enforce] {
            let outcome = outcome("appraise\n", mode, LabelRead::Value(&right(algorithm)), OLD);
            assert_eq!(outcome.judgement.cause, expected, "{algorithm} {mode}");
            assert_eq!(outcome.good(false), expected.is_none(), "{algorithm} {mode}");
        }
    }
}

#[test]
fn a_file_without_a_label_passes_only_if_it_is_new() {
    for (policy, file, cause) in [
        ("appraise\n", NEW_EMPTY, None),
        ("appraise\n", OLD_EMPTY, Some(Cause::MissingHash)),
        ("appraise\n", OLD, Some(Cause::MissingHash)),
        ("appraise\n", FileState { size: 8, new: true }, None),
        ("appraise appraise_type=imasig\n", NEW_EMPTY, None),
        ("appraise appraise_type=imasig\n", FileState { size: 8, new: true }, Some(Cause::ImaSignatureRequired)),
        ("appraise appraise_type=imasig\n", OLD_EMPTY, Some(Cause::ImaSignatureRequired)),
        ("appraise digest_type=verity appraise_type=sigv3\n", OLD, Some(Cause::VeritySignatureRequired)),
    ] {
        let outcome = outcome(policy, Mode::Enforce, LabelRead::Absent, file);
        assert_eq!(outcome.judgement.cause, cause, "{policy} {file:?}");
    }
}

#[test]
fn a_new_empty_file_may_have_its_signature_before_its_data() {
    let signature = [3, 2, 4, 1, 2, 3, 4, 0, 1, 9];
    let cause = |file| outcome("appraise\n", Mode::Enforce, LabelRead::Value(&signature), file).judgement.cause;
    assert_eq!(cause(NEW_EMPTY), None);
    assert_eq!(cause(OLD_EMPTY), Some(Cause::InvalidSignature));
}

#[test]
fn a_digest_does_not_satisfy_a_rule_that_wants_a_signature() {
    for (policy, cause) in [
        ("appraise appraise_type=imasig\n", Cause::ImaSignatureRequired),
        ("appraise digest_type=verity appraise_type=sigv3\n", Cause::VeritySignatureRequired),
    ] {
        let label = right(HashAlgorithm::Sha256);
        let outcome = outcome(policy, Mode::Enforce, LabelRead::Value(&label), OLD);
        assert_eq!(outcome.verdict, Verdict::Deny(cause));
    }
}

#[test]
fn an_algorithm_that_the_rule_does_not_list_is_denied_under_another_operation() {
    let policy = "appraise appraise_algos=sha256,sha512\n";
    for (algorithm, allowed) in
        [(HashAlgorithm::Sha256, true), (HashAlgorithm::Sha512, true), (HashAlgorithm::Sha1, false)]
    {
        let outcome = outcome(policy, Mode::Enforce, LabelRead::Value(&right(algorithm)), OLD);
        let complaint = Complaint { operation: Operation::CollectData, cause: Cause::DeniedHashAlgorithm };
        assert_eq!(outcome.complaint, (!allowed).then_some(complaint), "{algorithm}");
    }
}

#[test]
fn a_new_file_is_denied_if_it_would_get_a_label_that_the_rule_does_not_allow() {
    for (rule, denied) in [("appraise_algos=sha512", true), ("appraise_algos=sha256,sha512", false), ("", false)] {
        let outcome = outcome(&format!("appraise {rule}\n"), Mode::Enforce, LabelRead::Absent, NEW_EMPTY);
        assert_eq!(outcome.judgement.cause, denied.then_some(Cause::DeniedHashAlgorithm), "{rule}");
    }
}

#[test]
fn a_digest_of_another_algorithm_than_was_asked_for_is_none() {
    let label = right(HashAlgorithm::Sha256);
    let Plan::Judge(labels) = plan(&decision("appraise\n"), settings(Mode::Enforce)) else { panic!("it appraises") };
    let Collect::Content(stage) = labels.read(LabelRead::Value(&label), OLD) else { panic!("it has content") };
    let outcome = stage.settle(Digest::of(HashAlgorithm::Sha512, CONTENT));
    assert_eq!((outcome.verdict, outcome.evidence), (Verdict::Deny(Cause::Unknown), None));
}

#[test]
fn what_cannot_be_labelled_or_read_is_denied_and_not_repaired() {
    for (label, cause) in [(LabelRead::Unsupported, Cause::NoXattrSupport), (LabelRead::Failed, Cause::Unknown)] {
        assert_eq!(outcome("appraise\n", Mode::Enforce, label, OLD).verdict, Verdict::Deny(cause));
        assert_eq!(outcome("appraise\n", Mode::Fix, label, OLD).repair, None);
    }
}

#[test]
fn fix_never_throws_a_signature_away() {
    let verity = [6, 3, 4, 1, 2, 3, 4, 0, 1, 9];
    let broken = [6, 3, 4, 1, 2, 3, 4, 0, 7, 9];
    for (label, replaced) in [(&[3, 2, 4][..], false), (&verity, false), (&broken, true), (&[5, 2, 4], true)] {
        let outcome = outcome("appraise\n", Mode::Fix, LabelRead::Value(label), OLD);
        assert_eq!(outcome.repair.is_some(), replaced, "{label:x?}");
    }
}

#[test]
fn a_changed_file_gets_the_default_algorithm_and_an_unchanged_one_keeps_its_label() {
    let settings = settings(Mode::Enforce);
    let digest = |algorithm| Digest::of(algorithm, CONTENT);
    let sha512 = right(HashAlgorithm::Sha512);
    let stale = label::encode_digest(&Digest::of(HashAlgorithm::Sha512, b"before"));
    let signature = [3, 2, 4, 1, 2, 3, 4, 0, 1, 9];
    for (label, content, expected) in [
        (LabelRead::Value(&sha512), HashAlgorithm::Sha512, Renewal::Keep),
        (LabelRead::Value(&stale), HashAlgorithm::Sha512, Renewal::Rehash(HashAlgorithm::Sha256)),
        (LabelRead::Value(&stale), HashAlgorithm::Sha256, Renewal::Write(digest(HashAlgorithm::Sha256))),
        (LabelRead::Absent, HashAlgorithm::Sha256, Renewal::Write(digest(HashAlgorithm::Sha256))),
        (LabelRead::Value(&signature), HashAlgorithm::Sha256, Renewal::Keep),
        (LabelRead::Value(&[9, 9]), HashAlgorithm::Sha256, Renewal::Write(digest(HashAlgorithm::Sha256))),
    ] {
        assert_eq!(renew(label, &digest(content), settings), expected, "{label:x?} {content}");
    }
}

#[test]
fn readers_of_a_file_being_written_get_what_its_writer_got() {
    assert!(while_written(Writable { good: true }).is_some());
    assert!(while_written(Writable { good: false }).is_none());
}
