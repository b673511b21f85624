use proptest::prelude::*;

use super::*;
use crate::host_key::HostKey;

const FILESYSTEM: [u8; 16] = [1; 16];
const INCARNATION: Incarnation = [2; 16];

fn key() -> MacKey {
    HostKey::new(&[3; 32]).derive(PURPOSE)
}

fn record<'a>(id: u64, label: Option<&'a [u8]>) -> Record<'a> {
    Record { id, handle: &[4; HANDLE_LENGTH], inode: 5, label, path: b"/srv/a" }
}

/// A journal with two files, of which the first is at rest; and where its entries begin.
fn journal() -> (Vec<u8>, [u8; MAC_LENGTH], Vec<usize>) {
    let mut bytes = Vec::new();
    let mut places = vec![0];
    let mut writer = Writer::begin(key(), &FILESYSTEM, &INCARNATION, &mut bytes);
    places.push(bytes.len());
    assert!(writer.writing(&record(7, Some(b"label")), &mut bytes));
    places.push(bytes.len());
    assert!(writer.writing(&record(9, None), &mut bytes));
    places.push(bytes.len());
    writer.at_rest(&[7, 8], &mut bytes);
    (bytes, *writer.last(), places)
}

#[test]
fn what_was_written_is_read_and_what_is_at_rest_is_left_out() {
    let (mut bytes, last, places) = journal();
    let identity = Some((FILESYSTEM, INCARNATION));
    let expected = Journal { identity, records: vec![record(9, None)], end: End::Whole, last };
    assert_eq!(Journal::read(&key(), &bytes), expected);
    // The rest of the file is zeros.
    bytes.extend([0; 100]);
    assert_eq!(Journal::read(&key(), &bytes), expected);
    let before = Journal::read(&key(), &bytes[..places[3]]);
    assert_eq!(before.records, [record(7, Some(b"label")), record(9, None)]);
    assert_eq!(before.end, End::Whole);
}

#[test]
fn nothing_counts_from_the_first_byte_on_that_is_not_as_it_was_written() {
    let (bytes, _, places) = journal();
    for at in 0..bytes.len() {
        let begin = places.iter().copied().rfind(|place| *place <= at).unwrap();
        let count = places.iter().position(|place| *place == begin).unwrap().saturating_sub(1);
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let journal = Journal::read(&key(), &changed);
            // A length of zero is the end, as if the rest were cut off.
            let cut = changed[begin..begin + 2] == [0, 0] && journal.end == End::Whole;
            let ends = cut || matches!(journal.end, End::Torn { at } | End::Unvouched { at } if at == begin);
            assert!(ends, "{at} {bit}: {:?}", journal.end);
            assert_eq!(journal.records.len(), count, "{at} {bit}");
        }
    }
}

#[test]
fn a_journal_that_is_cut_counts_as_far_as_it_is_whole() {
    let (bytes, _, places) = journal();
    for length in 0..bytes.len() {
        let journal = Journal::read(&key(), &bytes[..length]);
        let whole = places.iter().copied().rfind(|place| *place <= length).unwrap();
        assert_eq!(journal.end, if whole == length { End::Whole } else { End::Torn { at: whole } }, "{length}");
        // Half written into a file of zeros.
        let mut blank = bytes.clone();
        blank[length..].fill(0);
        // Its last bytes may have been zeros anyway.
        let expected = if blank == bytes { Journal::read(&key(), &bytes) } else { journal };
        assert_eq!(Journal::read(&key(), &blank).records, expected.records, "{length}");
    }
}

#[test]
fn entries_cannot_be_left_out_moved_or_taken_from_another_journal() {
    let (bytes, _, places) = journal();
    let [begin, first, second] = [0, 1, 2].map(|at| &bytes[places[at]..places[at + 1]]);
    let mut other = Vec::new();
    let _ = Writer::begin(key(), &FILESYSTEM, &[9; 16], &mut other);
    let refused = [
        ([begin, second].concat(), places[1]),
        ([begin, second, first].concat(), places[1]),
        ([begin, first, first].concat(), places[2]),
        ([&other, first].concat(), places[1]),
        ([first, second].concat(), 0),
    ];
    for (bytes, at) in refused {
        assert_eq!(Journal::read(&key(), &bytes).end, End::Unvouched { at });
    }
    let stranger = HostKey::new(&[8; 32]).derive(PURPOSE);
    let unvouched = Journal::read(&stranger, &bytes);
    assert_eq!((unvouched.identity, unvouched.records.len(), unvouched.end), (None, 0, End::Unvouched { at: 0 }));
}

#[test]
fn what_a_later_version_wrote_ends_the_journal() {
    for (version, kind, body) in [
        (2, WRITING, vec![0; 44]),
        (1, 9, vec![1]),
        (1, WRITING, vec![1; 43]),
        (1, AT_REST, vec![0; 7]),
        (1, BEGIN, vec![0; 32]),
    ] {
        let (mut bytes, last, _) = journal();
        let at = bytes.len();
        bytes.extend(u16::try_from(body.len()).unwrap().to_le_bytes());
        bytes.extend([version, kind]);
        bytes.extend(&body);
        let mac = key().mac(&[&last, &bytes[at..]]);
        bytes.extend(mac);
        let journal = Journal::read(&key(), &bytes);
        assert_eq!(journal.end, End::Unknown { at, version }, "{version} {kind}");
        assert_eq!(journal.records.len(), 1);
    }
}

#[test]
fn what_is_struck_out_before_it_is_written_counts() {
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(key(), &FILESYSTEM, &INCARNATION, &mut bytes);
    writer.at_rest(&[1, 2], &mut bytes);
    (1..5).for_each(|id| assert!(writer.writing(&record(id, None), &mut bytes)));
    writer.at_rest(&[3, 3, 1], &mut bytes);
    let left: Vec<_> = Journal::read(&key(), &bytes).records.iter().map(|record| record.id).collect();
    assert_eq!(left, [2, 4]);
}

#[test]
fn ids_must_rise() {
    let (mut bytes, _, _) = journal();
    let mut again = Vec::new();
    let mut writer = Writer::begin(key(), &FILESYSTEM, &INCARNATION, &mut again);
    assert!(writer.writing(&record(7, None), &mut again) && writer.writing(&record(7, None), &mut again));
    assert!(matches!(Journal::read(&key(), &again).end, End::Unknown { .. }));
    bytes.clear();
    assert!(!writer.writing(&record(8, Some(&[0; LONGEST_LABEL + 1])), &mut bytes) && bytes.is_empty());
    assert!(writer.writing(&record(8, Some(&[0; LONGEST_LABEL])), &mut bytes));
}

#[test]
fn a_seal_admits_its_own_journal_and_after_a_clean_stop_only_all_of_it() {
    let (bytes, last, places) = journal();
    let read = |bytes| Journal::read(&key(), bytes);
    let open = Seal::of(Sealed { incarnation: INCARNATION, ended: None });
    let ended = Seal::of(Sealed { incarnation: INCARNATION, ended: Some(last) });
    let other = Sealed { incarnation: [9; 16], ended: None };
    for (seal, whole, cut) in [
        (open.clone(), true, true),
        (ended.clone(), true, false),
        (Seal::of(other), false, false),
        (open.and(other), true, true),
        (ended.and(other), true, false),
        (open.and(other).and(other), false, false),
    ] {
        assert_eq!(seal.admits(&FILESYSTEM, &read(&bytes)), whole, "{seal:?}");
        assert_eq!(seal.admits(&FILESYSTEM, &read(&bytes[..places[2]])), cut, "{seal:?}");
        assert!(!seal.admits(&FILESYSTEM, &read(&[])) && !seal.admits(&[9; 16], &read(&bytes)));
        let written = seal.encode(&key(), &FILESYSTEM);
        assert_eq!(Seal::read(&key(), &FILESYSTEM, &written), Some(seal));
        assert_eq!(Seal::read(&key(), &[9; 16], &written), None, "of another file system");
        for at in 0..written.len() {
            let mut changed = written.clone();
            changed[at] ^= 1;
            assert_eq!(Seal::read(&key(), &FILESYSTEM, &changed), None, "{at}");
            assert_eq!(Seal::read(&key(), &FILESYSTEM, &written[..at]), None, "{at}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(Journal::read(&key(), &bytes).identity, None);
        prop_assert_eq!(Seal::read(&key(), &FILESYSTEM, &bytes), None);
    }

    #[test]
    fn journals_are_read_as_they_were_written(
        labels in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), 0..30),
        struck in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10),
    ) {
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(key(), &FILESYSTEM, &INCARNATION, &mut bytes);
        let mut records: Vec<_> = (1..).zip(&labels).map(|(id, label)| record(id, label.as_deref())).collect();
        for record in &records {
            prop_assert!(writer.writing(record, &mut bytes));
        }
        for index in struck.iter().filter(|_| !labels.is_empty()) {
            let id = u64::try_from(index.index(labels.len())).unwrap() + 1;
            writer.at_rest(&[id], &mut bytes);
            records.retain(|record| record.id != id);
        }
        let read = Journal::read(&key(), &bytes);
        prop_assert_eq!((read.end, read.last), (End::Whole, *writer.last()));
        prop_assert_eq!(read.records, records);
    }
}
