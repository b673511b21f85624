//! Records of violations, in the words of a real kernel; `vectors/violation/README.md` says what happened.

use imara_integrity::audit::Asker;
use imara_integrity::event::Uid;
use imara_integrity::violation::{Access, OpenState, Opening, Record, Violation};

const RECORDS: &str = include_str!("../../../../vectors/violation/records.txt");

const READ: Opening = Opening { access: Access::Read, measured: true, written: None };
const WRITE: Opening = Opening { access: Access::Write, measured: false, written: None };

/// What the kernel said, from `pid=` on, without `subj=`.
fn said() -> Vec<String> {
    let line = |line: &str| {
        let words = line.split(' ').skip_while(|word| !word.starts_with("pid="));
        words.filter(|word| !word.starts_with("subj=")).collect::<Vec<_>>().join(" ")
    };
    RECORDS.lines().map(line).collect()
}

#[test]
fn the_kernels_records_are_made_of_what_was_done() {
    // Each file, who opened it in turn, and the pid and the inode that only the kernel could know.
    let steps: [(&str, &[Opening], &str, i32, u64); 3] = [
        ("viol-ow", &[WRITE, READ], "cat", 209, 32),
        ("viol-tomtou", &[READ, WRITE], "sh", 157, 33),
        ("gone", &[WRITE, READ], "cat", 212, 34),
    ];
    let mut records = Vec::new();
    for (name, openings, comm, pid, inode) in steps {
        let mut state = OpenState::default();
        // printf made it.
        assert_eq!(state.opened(WRITE), []);
        state.closed(Access::Write);
        for violation in openings.iter().flat_map(|opening| state.opened(*opening)) {
            let asker =
                Asker { pid, uid: Some(Uid(0)), login_uid: Some(u32::MAX), session: Some(u32::MAX), comm: comm.into() };
            let path = format!("/scratch/files/{name}").into_bytes();
            records.push(Record { violation, asker, path, device: "vda".into(), inode }.to_string());
        }
    }
    assert_eq!((records.len(), records), (3, said()));
    assert_eq!(Violation::ALL.map(Violation::word), ["ToMToU", "open_writers"]);
}
