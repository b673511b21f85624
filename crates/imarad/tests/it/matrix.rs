//! Every way in which a file can be bad, on every file system, in every mode: read and executed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{Complaint, Daemon, complaints};
use crate::files::{self, REFUSED, SCRIPT, label_of, set_label, strip_label};

/// One way to make a good file bad, and the cause that a guard must name.
struct Case {
    name: &'static str,
    tamper: fn(&Path),
    cause: &'static str,
    curable: bool,
}

const CASES: &[Case] = &[
    bad("changed-by-write", |path| files::change_last_byte(path).unwrap(), "invalid-hash"),
    bad("changed-by-mmap", |path| files::change_last_byte_mapped(path).unwrap(), "invalid-hash"),
    bad("appended", |path| files::append(path, b"#").unwrap(), "invalid-hash"),
    bad("truncated-by-one-byte", truncate, "invalid-hash"),
    bad("renamed-over-by-an-unlabelled-file", |path| rename_over(path, false), "missing-hash"),
    bad("renamed-over-by-other-content-with-its-label", |path| rename_over(path, true), "invalid-hash"),
    bad("stripped", strip_label, "missing-hash"),
    bad("label-of-another-file", |path| set_label(path, &label_of(b"another")), "invalid-hash"),
    bad("empty-label", |path| set_label(path, b""), "missing-hash"),
    bad("unknown-type", |path| relabel(path, |label| label[0] = 0x0a), "unknown-ima-data"),
    bad("type-zero", |path| relabel(path, |label| label[0] = 0), "unknown-ima-data"),
    bad("label-of-evm", |path| relabel(path, |label| label[0] = 2), "unknown-ima-data"),
    bad("one-byte-short", |path| relabel(path, |label| label.truncate(33)), "invalid-hash"),
    bad("only-the-type", |path| relabel(path, |label| label.truncate(1)), "invalid-hash"),
    bad("only-type-and-algorithm", |path| relabel(path, |label| label.truncate(2)), "invalid-hash"),
    bad("sha256-called-sha384", |path| relabel(path, |label| label[1] = 5), "invalid-hash"),
    bad("sha256-called-sha512", |path| relabel(path, |label| label[1] = 6), "invalid-hash"),
    bad("sha256-cut-to-a-sha1-of-old", |path| relabel(path, sha256_as_legacy), "invalid-hash"),
    bad("last-byte-of-digest-wrong", |path| relabel(path, |label| label[33] ^= 1), "invalid-hash"),
    Case {
        name: "signature-without-key",
        tamper: |path| set_label(path, &[&[3, 2, 4, 1, 2, 3, 4, 0, 8][..], &[7; 8]].concat()),
        cause: "invalid-signature",
        curable: false,
    },
];

const fn bad(name: &'static str, tamper: fn(&Path), cause: &'static str) -> Case {
    Case { name, tamper, cause, curable: true }
}

fn relabel(path: &Path, change: fn(&mut Vec<u8>)) {
    let mut label = label_of(&files::read(path).unwrap());
    change(&mut label);
    set_label(path, &label);
}

fn sha256_as_legacy(label: &mut Vec<u8>) {
    label.remove(1);
    label[0] = 1;
    // With its 32 bytes it would be right: a form 0x01 of unknown length is compared by the default algorithm.
    label.truncate(21);
}

fn truncate(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

fn rename_over(path: &Path, with_label: bool) {
    let other = path.with_extension("other");
    let content = files::read(path).unwrap();
    fs::write(&other, [&content[..], b"#"].concat()).unwrap();
    fs::set_permissions(&other, fs::metadata(path).unwrap().permissions()).unwrap();
    if with_label {
        set_label(&other, &label_of(&content));
    }
    fs::rename(&other, path).unwrap();
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Large,
    Program,
    Script,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Data, Self::Large, Self::Program, Self::Script];

    fn content(self) -> Vec<u8> {
        match self {
            Self::Data => b"plain data\n".to_vec(),
            // More than is hashed on the spot.
            Self::Large => vec![7; 200_000],
            Self::Program => files::program(),
            Self::Script => SCRIPT.to_vec(),
        }
    }

    fn use_it(self, path: &Path) -> std::io::Result<()> {
        match self {
            Self::Data | Self::Large => files::read(path).map(drop),
            Self::Program | Self::Script => files::execute(path),
        }
    }
}

/// A file that was made bad.
struct Victim {
    path: PathBuf,
    kind: Kind,
    case: &'static Case,
    label: Option<Vec<u8>>,
}

/// Makes a set of bad files and of good neighbours.
fn populate(directory: &Path) -> (Vec<Victim>, Vec<(PathBuf, Kind)>) {
    fs::create_dir(directory).unwrap();
    let mut victims = Vec::new();
    let mut neighbours = Vec::new();
    for kind in Kind::ALL {
        let neighbour = directory.join(format!("good-{kind:?}"));
        make(&neighbour, kind);
        neighbours.push((neighbour, kind));
        for case in CASES {
            let path = directory.join(format!("{}-{kind:?}", case.name));
            make(&path, kind);
            (case.tamper)(&path);
            let label = files::read_label(&path);
            victims.push(Victim { path, kind, case, label });
        }
    }
    (victims, neighbours)
}

fn make(path: &Path, kind: Kind) {
    files::make_executable(path, &kind.content());
}

fn neighbours_work(neighbours: &[(PathBuf, Kind)], mode: &str) {
    for (path, kind) in neighbours {
        kind.use_it(path).unwrap_or_else(|error| panic!("mode {mode}: good {}: {error}", path.display()));
    }
}

/// The complaints about one file, and that they are all alike.
fn about(all: &[Complaint], victim: &Victim) -> Vec<String> {
    let name = victim.path.to_str().unwrap();
    let inode = fs::metadata(&victim.path).unwrap().ino().to_string();
    let mut actions = Vec::new();
    for complaint in all.iter().filter(|complaint| complaint.name == name) {
        let Complaint { inode: found, operation, cause, action, .. } = complaint;
        let found = (found.as_str(), operation.as_str(), cause.as_str());
        assert_eq!(found, (inode.as_str(), "appraise_data", victim.case.cause), "{name}");
        actions.push(action.clone());
    }
    actions
}

/// Nobody but the victims is complained about.
fn only_victims(all: &[Complaint], victims: &[Victim]) {
    for complaint in all {
        let expected = victims.iter().any(|victim| victim.path.to_str() == Some(&complaint.name));
        assert!(expected, "{complaint:?}");
    }
}

fn bad_files_are_refused_in_enforce(scratch: &ScratchMount, victims: &[Victim], neighbours: &[(PathBuf, Kind)]) {
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    neighbours_work(neighbours, "enforce");
    for Victim { path, kind, label, .. } in victims {
        let used = kind.use_it(path).map_err(|error| error.raw_os_error());
        assert_eq!(used, Err(REFUSED), "{} used", path.display());
        assert_eq!(files::read(path).unwrap_err().raw_os_error(), REFUSED, "{} read", path.display());
        let written = OpenOptions::new().write(true).open(path).map(drop).map_err(|error| error.raw_os_error());
        assert_eq!(written, Err(REFUSED), "{} opened for writing", path.display());
        let emptied = fs::File::create(path).map(drop).map_err(|error| error.raw_os_error());
        assert_eq!(emptied, Err(REFUSED), "{} opened with O_TRUNC", path.display());
        assert_eq!(&files::read_label(path), label, "{}: a refused file keeps its label", path.display());
    }
    neighbours_work(neighbours, "enforce");
    let all = complaints(&daemon.stop());
    for victim in victims {
        let expected = ["denied", "denied", "denied", "denied"];
        assert_eq!(about(&all, victim), expected, "{}", victim.path.display());
    }
    only_victims(&all, victims);
}

fn bad_files_are_let_through_and_logged_in_log(
    scratch: &ScratchMount,
    victims: &[Victim],
    neighbours: &[(PathBuf, Kind)],
) {
    let daemon = Daemon::start("log", &[scratch.path()]);
    for Victim { path, kind, .. } in victims {
        kind.use_it(path).unwrap_or_else(|error| panic!("mode log: {}: {error}", path.display()));
    }
    neighbours_work(neighbours, "log");
    let all = complaints(&daemon.stop());
    for victim in victims {
        let actions = about(&all, victim);
        // To execute is to be asked for twice.
        assert!(!actions.is_empty() && actions.iter().all(|action| action == "allowed"), "{actions:?}");
        assert_eq!(files::read_label(&victim.path), victim.label, "{}", victim.path.display());
    }
    only_victims(&all, victims);
}

fn nothing_is_logged_in_off(scratch: &ScratchMount, victims: &[Victim], neighbours: &[(PathBuf, Kind)]) {
    let daemon = Daemon::start("off", &[scratch.path()]);
    for Victim { path, kind, label, .. } in victims {
        kind.use_it(path).unwrap_or_else(|error| panic!("mode off: {}: {error}", path.display()));
        assert_eq!(&files::read_label(path), label, "{}", path.display());
    }
    neighbours_work(neighbours, "off");
    assert_eq!(complaints(&daemon.stop()), []);
}

fn labels_are_repaired_in_fix_but_never_signatures(
    scratch: &ScratchMount,
    victims: &[Victim],
    neighbours: &[(PathBuf, Kind)],
) {
    let daemon = Daemon::start("fix", &[scratch.path()]);
    for Victim { path, kind, case, label } in victims {
        kind.use_it(path).unwrap_or_else(|error| panic!("mode fix: {}: {error}", path.display()));
        if case.curable {
            assert!(files::label_is_right(path), "{}", path.display());
        } else {
            assert_eq!(&files::read_label(path), label, "{}", path.display());
        }
        kind.use_it(path).unwrap_or_else(|error| panic!("mode fix, again: {}: {error}", path.display()));
    }
    neighbours_work(neighbours, "fix");
    let all = complaints(&daemon.stop());
    for victim in victims {
        let actions = about(&all, victim);
        if victim.case.curable {
            assert_eq!(actions, ["repaired"], "{}", victim.path.display());
        } else {
            assert!(!actions.is_empty() && actions.iter().all(|action| action == "allowed"), "{actions:?}");
        }
    }
    only_victims(&all, victims);
}

fn bad_files_on(kind: FsKind) {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
    let (victims, neighbours) = populate(&scratch.path().join("d"));
    if kind != FsKind::Tmpfs {
        crate::image::cycle(&scratch);
    }
    bad_files_are_refused_in_enforce(&scratch, &victims, &neighbours);
    bad_files_are_let_through_and_logged_in_log(&scratch, &victims, &neighbours);
    nothing_is_logged_in_off(&scratch, &victims, &neighbours);
    labels_are_repaired_in_fix_but_never_signatures(&scratch, &victims, &neighbours);
    // After the repair all but the signature is good for a guard that enforces.
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    for Victim { path, kind, case, .. } in &victims {
        assert_eq!(kind.use_it(path).is_ok(), case.curable, "{} after the repair", path.display());
    }
    daemon.stop();
}

#[test]
fn files_made_bad_offline_are_treated_as_each_mode_says_on_ext4() {
    bad_files_on(FsKind::Ext4);
}

#[test]
fn files_made_bad_offline_are_treated_as_each_mode_says_on_xfs() {
    bad_files_on(FsKind::Xfs);
}

#[test]
fn files_made_bad_offline_are_treated_as_each_mode_says_on_btrfs() {
    bad_files_on(FsKind::Btrfs);
}

#[test]
fn files_made_bad_offline_are_treated_as_each_mode_says_on_tmpfs() {
    bad_files_on(FsKind::Tmpfs);
}
