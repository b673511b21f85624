//! Any bytes as a journal or its seal, as they are and with their MACs made right: no panic, and what counts can be written
//! again and read as the same.
#![no_main]

use imara_integrity::host_key::{HostKey, MAC_LENGTH, MacKey};
use imara_integrity::journal::{End, Journal, PURPOSE, Seal, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = HostKey::new(&[3; 32]).derive(PURPOSE);
    check(&key, bytes);
    check(&key, &vouched(&key, bytes));
    if let Some(seal) = Seal::read(&key, &[1; 16], bytes) {
        assert_eq!(seal.encode(&key, &[1; 16]), bytes);
    }
    if let Some((text, _)) = bytes.split_last_chunk::<MAC_LENGTH>() {
        let whole = [text, &key.mac(&[&[1; 16], text])].concat();
        if let Some(seal) = Seal::read(&key, &[1; 16], &whole) {
            assert_eq!(seal.encode(&key, &[1; 16]), whole);
        }
    }
});

fn check(key: &MacKey, bytes: &[u8]) {
    let journal = Journal::read(key, bytes);
    assert!(std::mem::size_of_val(journal.records.as_slice()) <= bytes.len());
    match journal.end {
        End::Whole => {}
        End::Torn { at } | End::Unvouched { at } | End::Unknown { at, .. } => assert!(at < bytes.len()),
    }
    let Some((filesystem, incarnation)) = &journal.identity else {
        return assert!(journal.records.is_empty());
    };
    let mut written = Vec::new();
    let mut writer = Writer::begin(key.clone(), filesystem, incarnation, &mut written);
    assert!(journal.records.iter().all(|record| writer.writing(record, &mut written)));
    let again = Journal::read(key, &written);
    assert_eq!((again.identity, &again.records, again.end), (journal.identity, &journal.records, End::Whole));
}

/// The same entries, each with the MAC that it should have.
fn vouched(key: &MacKey, mut bytes: &[u8]) -> Vec<u8> {
    let (mut out, mut last) = (Vec::new(), [0; MAC_LENGTH]);
    while let Some((head, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_le_bytes([head[0], head[1]]));
        let Some((body, rest)) = rest.split_at_checked(length) else { break };
        last = key.mac(&[&last, head, body]);
        out.extend([&head[..], body, &last].concat());
        bytes = rest.get(MAC_LENGTH..).unwrap_or_default();
    }
    out
}
