//! Any bytes as a policy: no panic; errors point into the text; what is accepted prints and parses back to the same.
#![no_main]

use imara_integrity::policy::{Options, Policy};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let options = Options::default();
    match Policy::parse(text, &options) {
        Ok(policy) => {
            let shown = policy.to_string();
            let again = Policy::parse(shown.as_bytes(), &options).expect("what is printed is a policy");
            assert_eq!(again.to_string(), shown);
            assert_eq!(again.len(), policy.len());
        }
        Err(errors) => {
            let lines = text.split(|byte| *byte == b'\n').count();
            assert!(errors.iter().next().is_some());
            for error in errors.iter() {
                assert!(error.line >= 1 && error.line <= lines && error.column >= 1);
                assert!(!error.to_string().is_empty());
            }
        }
    }
});
