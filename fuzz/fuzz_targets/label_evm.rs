//! Any bytes as the value of `security.evm`: no panic, and what is accepted encodes to the same bytes.
#![no_main]

use imara_integrity::label::EvmLabel;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match EvmLabel::parse(bytes) {
    Ok(label) => {
        assert_eq!(label.encode(), bytes);
        assert!(!label.to_string().is_empty());
        match label {
            EvmLabel::Hmac(_) => assert_eq!(bytes.len(), 21),
            EvmLabel::Signature(signature) | EvmLabel::PortableSignature(signature) => {
                assert!(bytes.len() > 9);
                if let Ok(header) = signature.header() {
                    assert_eq!(header.encode(signature.kind()).expect("its size field was right"), bytes);
                }
            }
        }
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
