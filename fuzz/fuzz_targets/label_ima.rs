//! Any bytes as the value of `security.ima`: no panic, and what is accepted encodes to the same bytes.
#![no_main]

use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label::{ImaLabel, algorithm_asked, encode_digest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let algorithm = algorithm_asked(Some(bytes), HashAlgorithm::Sha256);
    let Ok(label) = ImaLabel::parse(bytes) else {
        assert!(bytes.is_empty(), "every value but the empty one is a label");
        assert_eq!(algorithm, HashAlgorithm::Sha256);
        return;
    };
    assert_eq!(label.encode(), bytes);
    assert!(!label.to_string().is_empty());
    match label {
        ImaLabel::Digest(digest) => {
            // What matches is exactly what is written for the same digest, whatever follows it and whichever form it has.
            let length = algorithm.length();
            let written =
                digest.digest().get(..length).map(|own| Digest::new(algorithm, own).expect("it has the length"));
            assert_eq!(written.is_some_and(|own| digest.matches(&own)), digest.digest().len() >= length);
            if let Some(own) = written {
                assert!(encode_digest(&own).ends_with(own.as_bytes()));
            }
        }
        ImaLabel::Signature(signature) | ImaLabel::VeritySignature(signature) => {
            if let Ok(header) = signature.header() {
                assert_eq!(header.encode(signature.kind()).expect("its size field was right"), bytes);
            }
        }
        ImaLabel::Unknown { .. } => assert_eq!(algorithm, HashAlgorithm::Sha256),
    }
});
