//! `vectors/appraise/labels.tsv`: what a real kernel said of 377 labels, in three modes, replayed through the pipeline.

use imara_integrity::appraise::{FileState, LabelRead};
use imara_integrity::check::{self, Mode, Outcome, Plan, Settings, Verdict};
use imara_integrity::collect::Collect;
use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::event::{Event, FileSystem, Gid, Hook, Mask, Object, Subject, Uid};
use imara_integrity::label::{self, ImaLabel};
use imara_integrity::policy::{Options, Policy};

/// One row: a label, a content, and what the kernel made of them.
struct Row<'a> {
    name: &'a str,
    kernel: &'a str,
    settings: Settings,
    content: Vec<u8>,
    label: Option<Vec<u8>>,
    allowed: bool,
    cause: &'a str,
    label_after: Option<Vec<u8>>,
}

fn bytes(field: &str) -> Option<Vec<u8>> {
    match field {
        "-" => None,
        "empty" => Some(Vec::new()),
        hex => Some(
            hex.as_bytes()
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                .collect(),
        ),
    }
}

fn row(line: &str) -> Row<'_> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [name, kernel, hash, mode, content, label, result, cause, after, ..] = fields[..] else {
        panic!("short row: {line}")
    };
    Row {
        name,
        kernel,
        settings: Settings { mode: mode.parse().unwrap(), hash: hash.parse().unwrap() },
        content: bytes(content).unwrap(),
        label: bytes(label),
        allowed: match result {
            "ok" => true,
            "EACCES" => false,
            other => panic!("result {other}"),
        },
        cause,
        label_after: bytes(after),
    }
}

/// Goes through the pipeline as a host does.
fn judge(policy: &Policy, row: &Row<'_>) -> Outcome {
    let fs = FileSystem { magic: 0xef53, name: "ext4".into(), subtype: None, uuid: [0; 16] };
    let decision = policy.decide(&Event {
        hook: Hook::FileCheck,
        mask: Mask::READ,
        subject: Subject::ROOT,
        object: Object { owner: Uid(0), group: Gid(0), fs: &fs },
        subject_label: None,
        object_label: None,
        data: None,
    });
    let Plan::Judge(labels) = check::plan(&decision, row.settings) else {
        panic!("the policy appraises all of root's")
    };
    let read = row.label.as_deref().map_or(LabelRead::Absent, LabelRead::Value);
    let file = FileState { size: u64::try_from(row.content.len()).unwrap(), new: false };
    match labels.read(read, file) {
        Collect::Settled(outcome) => outcome,
        Collect::Content(stage) => {
            let digest = Digest::of(stage.algorithm(), &row.content);
            stage.settle(digest)
        }
    }
}

/// What the kernel of these vectors can hash with; the others end in `collect_data:failed` there, and are judged here.
fn kernel_has(row: &Row<'_>, algorithm: HashAlgorithm) -> bool {
    let stock = ["md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "sha3-384", "sha3-512"];
    let modules = ["md4", "rmd160", "wp256", "wp384", "wp512", "streebog256", "streebog512"];
    stock.contains(&algorithm.name()) || (row.kernel == "modules" && modules.contains(&algorithm.name()))
}

#[test]
fn every_label_is_judged_and_repaired_as_by_the_real_kernel() {
    let text = include_str!("../../../../vectors/appraise/labels.tsv");
    let policy = Policy::parse(b"appraise fowner=0\n", &Options::default()).unwrap();
    let (mut judged, mut unavailable, mut kept) = (0, 0, 0);
    for line in text.lines().skip(1) {
        let row = row(line);
        let asked = label::algorithm_asked(row.label.as_deref(), row.settings.hash);
        if !kernel_has(&row, asked) {
            assert_eq!(row.cause, "collect_data:failed", "{line}");
            unavailable += 1;
            continue;
        }
        judged += 1;
        let outcome = judge(&policy, &row);
        assert_eq!(matches!(outcome.verdict, Verdict::Allow(_)), row.allowed, "{line}");
        let cause = outcome.complaint.map_or("-", |complaint| complaint.cause.word());
        assert_eq!(cause, expected_cause(&row), "{line}");
        let after = match outcome.repair {
            Some(digest) => Some(label::encode_digest(&digest)),
            None => row.label.clone(),
        };
        if after != row.label_after {
            assert!(keeps_a_signature_that_the_kernel_throws_away(&row), "{}: {line}", row.name);
            kept += 1;
        }
    }
    // A change of the vectors, or of what is left out, is to be noticed.
    assert_eq!((judged, unavailable, kept), (1205, 270, 9));
}

/// The kernel's word, but for two that say more about its build than about the label.
fn expected_cause<'a>(row: &Row<'a>) -> &'a str {
    match row.cause {
        // The audit record of an empty label has res=1.
        "missing-hash(res=1,errno=0)" => "missing-hash",
        // Without any `_ima` keyring the key lookup fails before the version is looked at. Ours is there, and empty.
        "invalid-signature" if row.kernel != "keyring" && matches!(row.label.as_deref(), Some([3, 0, ..])) => "unknown",
        cause => cause,
    }
}

/// Our one deviation: mode `fix` does not replace a well-formed signature of an fs-verity digest.
fn keeps_a_signature_that_the_kernel_throws_away(row: &Row<'_>) -> bool {
    let label = row.label.as_deref().map(ImaLabel::parse);
    row.settings.mode == Mode::Fix
        && matches!(label, Some(Ok(ImaLabel::VeritySignature(signature))) if signature.header().is_ok())
}
