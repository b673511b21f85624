//! Labels that a kernel and evmctl wrote; `vectors/label/README.md` says which file has which content.

use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label::{
    EvmLabel, ImaLabel, SignatureHeader, SignatureKind, SignatureLabel, algorithm_asked, encode_digest,
};

macro_rules! vector {
    ($name:literal) => {
        include_str!(concat!("../../../../vectors/label/", $name))
    };
}

/// The default of the kernel that made them, and the files that hold labels.
const FIXED: [(HashAlgorithm, &str, &str, &str); 3] = [
    (
        HashAlgorithm::Sha1,
        vector!("fix-sha1/after-create.txt"),
        vector!("fix-sha1/others.txt"),
        vector!("fix-sha1/algs.txt"),
    ),
    (
        HashAlgorithm::Sha256,
        vector!("fix-sha256/after-create.txt"),
        vector!("fix-sha256/others.txt"),
        vector!("fix-sha256/algs.txt"),
    ),
    (
        HashAlgorithm::Sha512,
        vector!("fix-sha512/after-create.txt"),
        vector!("fix-sha512/others.txt"),
        vector!("fix-sha512/algs.txt"),
    ),
];
const SIGNED: &str = vector!("signed/labels.txt");
const TAMPERED: &str = vector!("signed/labels-tampered.txt");
const OPENED: &str = vector!("signed/open.tsv");
const VERITY: &str = vector!("verity/labels.txt");
const HMACS: &str = vector!("hmac/steps.txt");

fn hex(digits: &str) -> Vec<u8> {
    assert_eq!(digits.len() % 2, 0, "{digits}");
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The labels of one attribute, each with the name of its file, from what `getfattr` or `stat` with labels printed.
fn labels<'a>(text: &'a str, attribute: &str) -> Vec<(&'a str, Vec<u8>)> {
    let start = format!("{attribute}=0x");
    let mut name = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some((_, after)) = line.split_once("# file: ").or_else(|| line.split_once(" name=")) {
            name = after;
        } else if let Some(digits) = line.trim_start().strip_prefix(start.as_str()) {
            found.push((name, hex(digits)));
        }
    }
    found
}

/// What the files of `fix-*` contain, where it is known and the label is not stale.
fn content_of_fixed(name: &str) -> Option<Vec<u8>> {
    Some(match name {
        "empty" | "touched" | "trunc" => Vec::new(),
        "hello" => b"hello\n".to_vec(),
        "pattern1m" => (0..1_u32 << 20).map(|i| (7 * i + (i >> 8)).to_le_bytes()[0]).collect(),
        "zero4k" => vec![0; 4096],
        "text" => b"The quick brown fox\n".repeat(10),
        "append" | "hard" | "renamed" | "mmapw" => b"a\nb\n".to_vec(),
        // The kernel did not renew this one: the digest is that of the content before the last change.
        "nobody" => b"a\nb\n".to_vec(),
        "openw" => b"1\n".to_vec(),
        "trunc2" => b"a".to_vec(),
        "sparse" => [b"x".to_vec(), vec![0; 99_999]].concat(),
        _ => return None,
    })
}

/// What the files of `signed` contain, before or after they were tampered with; none for programs.
fn content_of_signed(name: &str, tampered: bool) -> Option<Vec<u8>> {
    let own = match name.split_once('-')? {
        ("a", rest) => format!("w-{rest}"),
        ("s" | "t" | "i" | "w" | "p", _) => name.to_owned(),
        _ => return None,
    };
    let mut content = if name.ends_with("empty") || name.ends_with("emptynone") {
        Vec::new()
    } else {
        format!("{own} variant A\n").into_bytes()
    };
    if tampered && (name.starts_with("t-") || name == "p-content" || name == "p-ima") {
        content[0] = b'X';
    }
    Some(content)
}

/// Parses, encodes and re-encodes the header where it can be read; says whether it could.
fn signature_survives(signature: SignatureLabel<'_>, bytes: &[u8], name: &str) -> bool {
    match signature.header() {
        Ok(header) => {
            assert_eq!(header.encode(signature.kind()).unwrap(), bytes, "{name}");
            true
        }
        Err(_) => false,
    }
}

#[test]
fn every_label_in_the_vectors_encodes_to_the_bytes_it_is_read_from() {
    let texts = FIXED.into_iter().flat_map(|(_, created, others, _)| [created, others]);
    let texts: Vec<&str> = texts.chain([SIGNED, TAMPERED, VERITY, HMACS]).collect();
    let (mut digests, mut signatures, mut unreadable, mut unknown) = (0, 0, Vec::new(), Vec::new());
    for (name, bytes) in texts.iter().flat_map(|text| labels(text, "security.ima")) {
        let label = ImaLabel::parse(&bytes).unwrap();
        assert_eq!(label.encode(), bytes, "{name}");
        match label {
            ImaLabel::Digest(_) => digests += 1,
            ImaLabel::Signature(signature) | ImaLabel::VeritySignature(signature) => {
                if signature_survives(signature, &bytes, name) {
                    signatures += 1;
                } else {
                    unreadable.push(name);
                }
            }
            ImaLabel::Unknown { kind, .. } => unknown.push((name, kind)),
        }
    }
    // What was cut by hand is found, in both lists, and nothing else; the wrong version of s-badver is one that exists.
    assert_eq!(unreadable, ["s-trunc", "s-trunc"]);
    assert_eq!(unknown, [("nosig", 0)]);
    assert_eq!((digests, signatures), (189, 97));

    let (mut hmacs, mut plain, mut portable) = (0, 0, 0);
    for (name, bytes) in texts.iter().flat_map(|text| labels(text, "security.evm")) {
        let label = EvmLabel::parse(&bytes).unwrap();
        assert_eq!(label.encode(), bytes, "{name}");
        match label {
            EvmLabel::Hmac(_) => hmacs += 1,
            EvmLabel::Signature(signature) => {
                assert!(signature_survives(signature, &bytes, name), "{name}");
                plain += 1;
            }
            EvmLabel::PortableSignature(signature) => {
                assert!(signature_survives(signature, &bytes, name), "{name}");
                portable += 1;
            }
        }
    }
    assert_eq!((hmacs, plain, portable), (31, 4, 35));
}

#[test]
fn our_digest_labels_are_the_ones_that_the_kernel_wrote() {
    for (default, created, others, _) in FIXED {
        let mut without_content = Vec::new();
        let mut compared = 0;
        for (name, label) in labels(created, "security.ima").into_iter().chain(labels(others, "security.ima")) {
            match content_of_fixed(name) {
                Some(content) => {
                    assert_eq!(encode_digest(&Digest::of(default, &content)), label, "{name}, {default}");
                    compared += 1;
                }
                None if name.starts_with("alg-") => {}
                None => without_content.push(name),
            }
        }
        assert_eq!((compared, without_content), (20, vec!["busybox"]), "{default}");
    }
}

#[test]
fn fix_mode_hashes_with_the_algorithm_that_the_old_label_asks_for() {
    for (default, _, _, algorithms) in FIXED {
        let mut old = None;
        let mut compared = 0;
        for line in algorithms.lines() {
            if let Some((_, digits)) = line.split_once(" set=0x") {
                old = Some(hex(digits));
            } else if line.ends_with(" set=") {
                old = None;
            } else if let Some((name, digits)) = line.split_once(" now=0x") {
                let asked = algorithm_asked(old.as_deref(), default);
                let label = encode_digest(&Digest::of(asked, &[0; 4096]));
                assert_eq!(label, hex(digits), "{name}, default {default}, label before {old:02x?}");
                compared += 1;
            }
        }
        assert_eq!(compared, 15, "{default}");
    }
}

#[test]
fn a_digest_label_matches_exactly_where_the_kernel_let_the_file_be_read() {
    let mut judged = Vec::new();
    for (name, bytes) in labels(TAMPERED, "security.ima") {
        // Files i-* and a-* are under rules that refuse labels for other reasons.
        let (Some(content), Some(line)) = (
            content_of_signed(name, true).filter(|_| !name.starts_with("i-") && !name.starts_with("a-")),
            OPENED.lines().find(|line| line.starts_with(&format!("{name}\t")) && line.ends_with("\tr")),
        ) else {
            continue;
        };
        let ImaLabel::Digest(label) = ImaLabel::parse(&bytes).unwrap() else { continue };
        let computed = Digest::of(algorithm_asked(Some(&bytes), HashAlgorithm::Sha256), &content);
        assert_eq!(label.matches(&computed), line.contains("\tok\t"), "{name}: {label}, computed {computed}");
        judged.push(name);
    }
    let expected = [
        "p-hash",
        "p-ima",
        "s-hash",
        "s-hash1",
        "s-hash512",
        "s-longhash",
        "s-md5ng",
        "s-md5old",
        "s-sha1ng",
        "s-shorthash",
        "t-hash",
        "t-hash1",
        "t-hash512",
    ];
    assert_eq!(judged, expected);
}

#[test]
fn a_signature_names_the_key_and_the_hash_it_was_made_with() {
    const RSA: u32 = 0x7358_0a95;
    let all: Vec<_> = [SIGNED, VERITY].into_iter().flat_map(|text| labels(text, "security.ima")).collect();
    for (name, kind, version, algorithm, key_id, length) in [
        ("s-rsa", SignatureKind::Plain, 2, Some(HashAlgorithm::Sha256), RSA, 256),
        ("s-rsa1", SignatureKind::Plain, 2, Some(HashAlgorithm::Sha1), RSA, 256),
        ("s-rsa512", SignatureKind::Plain, 2, Some(HashAlgorithm::Sha512), RSA, 256),
        ("s-badalgo", SignatureKind::Plain, 2, None, RSA, 256),
        ("s-nokeyid", SignatureKind::Plain, 2, Some(HashAlgorithm::Sha256), 0, 256),
        ("hello", SignatureKind::Verity, 3, Some(HashAlgorithm::Sha256), RSA, 256),
        ("blk", SignatureKind::Verity, 3, Some(HashAlgorithm::Sha256), 0x1240_c834, 72),
        ("blk1", SignatureKind::Verity, 3, Some(HashAlgorithm::Sha512), RSA, 256),
    ] {
        let (_, bytes) = all.iter().find(|(found, _)| *found == name).unwrap();
        let (ImaLabel::Signature(label) | ImaLabel::VeritySignature(label)) = ImaLabel::parse(bytes).unwrap() else {
            panic!("{name} is signed");
        };
        let (found, keyed) = match label.header().unwrap() {
            SignatureHeader::V2(keyed) => (2, keyed),
            SignatureHeader::V3(keyed) => (3, keyed),
            SignatureHeader::V1(old) => panic!("{name}: {old:?}"),
        };
        assert_eq!((label.kind(), found), (kind, version), "{name}");
        assert_eq!((keyed.algorithm(), keyed.key_id.0, keyed.signature.len()), (algorithm, key_id, length), "{name}");
    }
}
