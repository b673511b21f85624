use proptest::prelude::*;

use super::*;

/// The bytes of hexadecimal digits.
fn hex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn asked(digits: &str) -> HashAlgorithm {
    algorithm_asked(Some(&hex(digits)), HashAlgorithm::Sha512)
}

const SHA1_OF_NOTHING: &str = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
const MD5_OF_NOTHING: &str = "d41d8cd98f00b204e9800998ecf8427e";
const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn a_digest_is_written_in_the_legacy_form_up_to_sha1_and_with_its_id_above() {
    for algorithm in HashAlgorithm::ALL {
        let digest = Digest::of(algorithm, b"");
        let label = encode_digest(&digest);
        let legacy = matches!(algorithm, HashAlgorithm::Md4 | HashAlgorithm::Md5 | HashAlgorithm::Sha1);
        let expected = if legacy {
            [&[1], digest.as_bytes()].concat()
        } else {
            [&[4, algorithm.id()], digest.as_bytes()].concat()
        };
        assert_eq!(label, expected, "{algorithm}");
        // md4 is the one label that asks for another algorithm than it was made with.
        let read = if algorithm == HashAlgorithm::Md4 { HashAlgorithm::Md5 } else { algorithm };
        assert_eq!(algorithm_asked(Some(&label), HashAlgorithm::Streebog512), read);
    }
    assert_eq!(encode_digest(&Digest::of(HashAlgorithm::Sha256, b"")), hex(&format!("0404{SHA256_OF_NOTHING}")));
    assert_eq!(encode_digest(&Digest::of(HashAlgorithm::Sha1, b"")), hex(&format!("01{SHA1_OF_NOTHING}")));
}

#[test]
fn a_label_asks_for_the_algorithm_that_the_kernel_would_take() {
    let default = HashAlgorithm::Sha512;
    assert_eq!(algorithm_asked(None, default), default);
    for (label, expected) in [
        // Too short to ask for anything.
        ("", default),
        ("01", default),
        ("03", default),
        ("04", default),
        // Type 4: the id, whatever follows.
        ("0404", HashAlgorithm::Sha256),
        ("0400", HashAlgorithm::Md4),
        ("0416", HashAlgorithm::Sha3_512),
        ("0417", default),
        ("04ff", default),
        // Type 1: the length, and for 21 bytes the last four.
        (&format!("01{MD5_OF_NOTHING}"), HashAlgorithm::Md5),
        (&format!("01{MD5_OF_NOTHING}00000000"), HashAlgorithm::Md5),
        (&format!("01{MD5_OF_NOTHING}00000001"), HashAlgorithm::Sha1),
        (&format!("01{SHA1_OF_NOTHING}"), HashAlgorithm::Sha1),
        (&format!("01{MD5_OF_NOTHING}0000"), default),
        (&format!("01{SHA1_OF_NOTHING}00"), default),
        (&format!("01{}", &MD5_OF_NOTHING[2..]), default),
        // Type 3: versions 2 and 3, something after the header; the size field does not matter.
        ("03020473580a950100aa", HashAlgorithm::Sha256),
        ("03030273580a950001aa", HashAlgorithm::Sha1),
        ("03020473580a950000", default),
        ("03010473580a950001aa", default),
        ("03040473580a950001aa", default),
        ("03021773580a950001aa", default),
        // Type 6: version 3 only.
        ("06030473580a950001aa", HashAlgorithm::Sha256),
        ("06020473580a950001aa", default),
        ("06030473580a950000", default),
        ("06032373580a950001aa", default),
        // Types without meaning in security.ima, however they look.
        ("00040473580a950001aa", default),
        ("02020473580a950001aa", default),
        ("05020473580a950001aa", default),
        ("07030473580a950001aa", default),
    ] {
        assert_eq!(asked(label), expected, "label {label}");
    }
}

#[test]
fn a_label_matches_a_digest_that_it_begins_with() {
    for (label, algorithm, expected) in [
        (format!("0404{SHA256_OF_NOTHING}"), HashAlgorithm::Sha256, true),
        (format!("0404{SHA256_OF_NOTHING}ff"), HashAlgorithm::Sha256, true),
        (format!("0404{}", &SHA256_OF_NOTHING[..62]), HashAlgorithm::Sha256, false),
        (format!("0404{}54", &SHA256_OF_NOTHING[..62]), HashAlgorithm::Sha256, false),
        (format!("0404e4{}", &SHA256_OF_NOTHING[2..]), HashAlgorithm::Sha256, false),
        // The id is not compared: this one does not exist, so the default was computed.
        (format!("04ff{SHA256_OF_NOTHING}"), HashAlgorithm::Sha256, true),
        (format!("0404{SHA256_OF_NOTHING}"), HashAlgorithm::Sha512, false),
        (format!("01{SHA1_OF_NOTHING}"), HashAlgorithm::Sha1, true),
        (format!("01{MD5_OF_NOTHING}"), HashAlgorithm::Md5, true),
        (format!("01{MD5_OF_NOTHING}00000000"), HashAlgorithm::Md5, true),
        (format!("01{MD5_OF_NOTHING}"), HashAlgorithm::Sha1, false),
        (format!("0401{MD5_OF_NOTHING}"), HashAlgorithm::Md5, true),
        ("0404".to_owned(), HashAlgorithm::Sha256, false),
        ("04".to_owned(), HashAlgorithm::Sha256, false),
        ("01".to_owned(), HashAlgorithm::Sha256, false),
    ] {
        let bytes = hex(&label);
        let ImaLabel::Digest(parsed) = ImaLabel::parse(&bytes).unwrap() else { panic!("{label} is a digest label") };
        assert_eq!(parsed.matches(&Digest::of(algorithm, b"")), expected, "label {label} against {algorithm}");
    }
}

#[test]
fn each_type_of_security_ima_is_told_apart_and_described() {
    for (label, description) in [
        (format!("0404{SHA256_OF_NOTHING}"), format!("sha256:{SHA256_OF_NOTHING} (type 0x04)")),
        (format!("0404{SHA256_OF_NOTHING}ffff"), format!("sha256:{SHA256_OF_NOTHING} (type 0x04, 2 bytes follow)")),
        ("0404e3b0".to_owned(), "sha256:e3b0 (type 0x04, only 2 of 32 bytes)".to_owned()),
        ("04ffe3b0".to_owned(), "unknown-algorithm-255:e3b0 (type 0x04)".to_owned()),
        ("04".to_owned(), "no digest (type 0x04, without algorithm id)".to_owned()),
        (format!("01{SHA1_OF_NOTHING}"), format!("sha1:{SHA1_OF_NOTHING} (type 0x01)")),
        (format!("01{MD5_OF_NOTHING}00000000"), format!("md5:{MD5_OF_NOTHING} (type 0x01, 4 bytes follow)")),
        ("01aabb".to_owned(), "unknown-algorithm:aabb (type 0x01)".to_owned()),
        ("03020473580a950002aabb".to_owned(), "signature v2 sha256 key id 73580a95 2 bytes".to_owned()),
        ("03030673580a950000".to_owned(), "signature v3 sha512 key id 73580a95 0 bytes".to_owned()),
        (
            "06036300000001000101".to_owned(),
            "fs-verity signature v3 unknown-algorithm-99 key id 00000001 1 bytes".to_owned(),
        ),
        ("0301".to_owned(), "signature that cannot be read: byte 2: 4 more bytes expected, 0 left".to_owned()),
        (
            "0301000000000000a1a2a3a4a5a6a7a8010008ff".to_owned(),
            "signature v1 key id a1a2a3a4a5a6a7a8 3 bytes".to_owned(),
        ),
        ("0501".to_owned(), "unknown type 0x05 1 bytes".to_owned()),
        ("00".to_owned(), "unknown type 0x00 0 bytes".to_owned()),
        ("0704aa".to_owned(), "unknown type 0x07 2 bytes".to_owned()),
    ] {
        let bytes = hex(&label);
        let parsed = ImaLabel::parse(&bytes).unwrap();
        assert_eq!(parsed.to_string(), description, "label {label}");
        assert_eq!(parsed.encode(), bytes, "label {label}");
    }
    assert_eq!(ImaLabel::parse(b""), Err(LabelError::Empty));
}

#[test]
fn an_evm_label_is_an_hmac_of_exactly_21_bytes_or_a_signature_that_is_not_empty() {
    let hmac = format!("02{SHA1_OF_NOTHING}");
    for (label, description) in [
        (hmac.as_str(), format!("hmac-sha1:{SHA1_OF_NOTHING} (type 0x02)")),
        ("03020473580a950001aa", "signature v2 sha256 key id 73580a95 1 bytes".to_owned()),
        ("05020473580a950001aa", "portable signature v2 sha256 key id 73580a95 1 bytes".to_owned()),
        // Accepted here and refused by the header: the kernel's order.
        (
            "05020473580a950002aa",
            "portable signature that cannot be read: byte 7: found signature size 2, expected 1, the number of bytes after \
             the header"
                .to_owned(),
        ),
    ] {
        let bytes = hex(label);
        let parsed = EvmLabel::parse(&bytes).unwrap();
        assert_eq!(parsed.to_string(), description, "label {label}");
        assert_eq!(parsed.encode(), bytes, "label {label}");
    }
    for (label, error) in [
        ("", LabelError::Empty),
        (&hmac[..40], LabelError::HmacLength { found: 20, expected: 21 }),
        (&format!("{hmac}00"), LabelError::HmacLength { found: 22, expected: 21 }),
        ("02", LabelError::HmacLength { found: 1, expected: 21 }),
        ("03020473580a950000", LabelError::EmptySignature { found: 9 }),
        ("05", LabelError::EmptySignature { found: 1 }),
        ("01aa", LabelError::UnknownType { found: 1 }),
        ("04aa", LabelError::UnknownType { found: 4 }),
        ("06030473580a950001aa", LabelError::UnknownType { found: 6 }),
        ("ff", LabelError::UnknownType { found: 255 }),
    ] {
        assert_eq!(EvmLabel::parse(&hex(label)), Err(error), "label {label}");
    }
}

fn header_of(label: &[u8]) -> Result<SignatureHeader<'_>, LabelError> {
    match ImaLabel::parse(label).unwrap() {
        ImaLabel::Signature(signature) | ImaLabel::VeritySignature(signature) => signature.header(),
        other @ (ImaLabel::Digest(_) | ImaLabel::Unknown { .. }) => panic!("{other} is no signature"),
    }
}

#[test]
fn a_signature_header_is_read_field_by_field() {
    let signature = &[0xaa, 0xbb][..];
    let keyed = KeyedSignature { algorithm_id: 4, key_id: KeyId(0x7358_0a95), signature };
    assert_eq!(header_of(&hex("03020473580a950002aabb")), Ok(SignatureHeader::V2(keyed)));
    assert_eq!(header_of(&hex("06030473580a950002aabb")), Ok(SignatureHeader::V3(keyed)));
    assert_eq!(keyed.algorithm(), Some(HashAlgorithm::Sha256));
    assert_eq!(
        header_of(&hex("030101020304000190919293949596970100020f")),
        Ok(SignatureHeader::V1(SignatureV1 {
            timestamp: [1, 2, 3, 4],
            key_algorithm: 0,
            hash: 1,
            key_id: [0x90, 0x91, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97],
            mpi_count: 1,
            mpis: &[0, 2, 0x0f],
        }))
    );
}

#[test]
fn a_signature_header_that_is_cut_or_lies_is_refused_where_it_does() {
    let truncated = |offset, needed, left| LabelError::Truncated(Truncated { offset, needed, left });
    for (label, error) in [
        ("03", truncated(1, 1, 0)),
        ("0300", LabelError::UnknownVersion { found: 0 }),
        ("0304", LabelError::UnknownVersion { found: 4 }),
        ("0302", truncated(2, 1, 0)),
        ("030204735800", truncated(3, 4, 3)),
        ("03020473580a9501", truncated(7, 2, 1)),
        ("03020473580a950001", LabelError::SignatureSize { found: 1, expected: 0 }),
        ("03020473580a950001aabb", LabelError::SignatureSize { found: 1, expected: 2 }),
        ("03030473580a950100aa", LabelError::SignatureSize { found: 256, expected: 1 }),
        ("0301000000000001000000000000000001", truncated(17, 2, 0)),
        ("030100000000000100000000000000000100", truncated(17, 2, 1)),
    ] {
        assert_eq!(header_of(&hex(label)), Err(error), "label {label}");
    }
}

#[test]
fn a_signature_that_does_not_fit_its_size_field_is_not_written() {
    let long = vec![0; 65536];
    let signed = |length: usize| KeyedSignature { algorithm_id: 4, key_id: KeyId(1), signature: &long[..length] };
    let longest = SignatureHeader::V2(signed(65535)).encode(SignatureKind::Portable).unwrap();
    assert_eq!(longest[..10], hex("05020400000001ffff00"));
    assert_eq!(longest.len(), 65544);
    assert_eq!(
        SignatureHeader::V3(signed(65536)).encode(SignatureKind::Plain),
        Err(LabelError::SignatureTooLong { found: 65536 })
    );
}

/// Random bytes that often begin as a label does.
fn labels() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![
        Just(vec![]),
        prop::collection::vec(0_u8..8, 1),
        prop::collection::vec(0_u8..8, 2),
        (0_u8..8, 1_u8..4, 0_u8..32, any::<u32>(), 0_u8..64).prop_map(|(kind, version, id, key, size)| {
            [&[kind, version, id][..], &key.to_be_bytes(), &[0, size]].concat()
        }),
    ];
    (start, prop::collection::vec(any::<u8>(), 0..70)).prop_map(|(start, rest)| [start, rest].concat())
}

proptest! {
    #[test]
    fn whatever_is_accepted_encodes_to_the_same_bytes(label in labels()) {
        if let Ok(parsed) = ImaLabel::parse(&label) {
            prop_assert_eq!(parsed.encode(), &label[..]);
            if let ImaLabel::Signature(signature) | ImaLabel::VeritySignature(signature) = parsed
                && let Ok(header) = signature.header()
            {
                prop_assert_eq!(header.encode(signature.kind()), Ok(label.clone()));
            }
        } else {
            prop_assert!(label.is_empty());
        }
        if let Ok(parsed) = EvmLabel::parse(&label) {
            prop_assert_eq!(parsed.encode(), label);
        }
    }

    #[test]
    fn a_written_digest_label_matches_its_digest_and_no_other(id in 0_u8..23, content: Vec<u8>, bit in 0_usize..512) {
        let algorithm = HashAlgorithm::from_id(id).unwrap();
        let digest = Digest::of(algorithm, &content);
        let label = encode_digest(&digest);
        let mut bytes = digest.as_bytes().to_vec();
        let bit = bit % (8 * bytes.len());
        bytes[bit / 8] ^= 1 << (bit % 8);
        let other = Digest::new(algorithm, &bytes).unwrap();
        match ImaLabel::parse(&label) {
            Ok(ImaLabel::Digest(parsed)) => prop_assert_eq!((parsed.matches(&digest), parsed.matches(&other)), (true, false)),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_signature_header_encodes_to_what_it_is_read_from(id: u8, key: u32, signature: Vec<u8>, verity: bool, third: bool) {
        let keyed = KeyedSignature { algorithm_id: id, key_id: KeyId(key), signature: &signature };
        let header = if third { SignatureHeader::V3(keyed) } else { SignatureHeader::V2(keyed) };
        let kind = if verity { SignatureKind::Verity } else { SignatureKind::Plain };
        let label = header.encode(kind).unwrap();
        prop_assert_eq!(label.len(), 9 + signature.len());
        prop_assert_eq!(header_of(&label), Ok(header));
    }
}

#[test]
fn labels_may_be_made_with_every_algorithm_that_is_read_back() {
    for algorithm in HashAlgorithm::ALL.iter().copied() {
        let digest = Digest::of(algorithm, b"content");
        let label = encode_digest(&digest);
        let read_back = algorithm_asked(Some(&label), HashAlgorithm::Sha256) == algorithm;
        assert_eq!(fit_for_labels(algorithm).is_ok(), read_back, "{algorithm}");
    }
    let said = "hash algorithm md4 cannot be used for labels: they could not be told from md5 labels (fix: use sha256)";
    assert_eq!(fit_for_labels(HashAlgorithm::Md4).unwrap_err().to_string(), said);
}
