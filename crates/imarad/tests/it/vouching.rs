//! Whose changes are followed is not for others to say: somebody whom no rule asks about has a good file open for writing,
//! and others, who are judged, come and go.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use crate::daemon::{Daemon, EVERYTHING_OF_ROOT, Log, RunDir};
use crate::files::{self, REFUSED, error_of, label_of, read_label};

/// Who comes, and what he does.
type Visitor = (&'static str, fn(&Path));

const GOOD: &[u8] = b"good content";

fn opened_by_openat2(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty()).map(drop)?)
}

/// The label must stay what it is, which the content is not any more.
fn is_not_followed(path: &Path, what: &str) {
    for _ in 0..20 {
        assert_eq!(error_of(File::open(path)), REFUSED, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(read_label(path), Some(label_of(GOOD)), "{what}");
}

#[test]
fn a_reader_does_not_vouch_for_writers_whom_no_rule_asks_about() {
    let Some(_) = testing::root() else { return };
    let policy = "appraise func=FILE_CHECK mask=MAY_READ fowner=0\n";
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let paths = (0..40).map(|number| scratch.path().join(format!("file-{number}"))).collect::<Vec<_>>();
        paths.iter().for_each(|path| files::make(path, GOOD));
        let daemon = Daemon::with(RunDir::new(), "enforce", policy, &[scratch.path()], Log::Read);
        for (path, delay) in paths.iter().zip((0..).step_by(100)) {
            let mut writer = OpenOptions::new().write(true).open(path).unwrap();
            std::thread::scope(|scope| {
                // How he opens it cannot be seen.
                let reader = scope.spawn(|| opened_by_openat2(path));
                std::thread::sleep(Duration::from_micros(delay));
                writer.write_all(b"evil").unwrap();
                drop(writer);
                let _ = reader.join().unwrap();
            });
            is_not_followed(path, &format!("{kind:?} after {delay} us"));
        }
        daemon.stop();
    }
}

#[test]
fn who_opened_a_file_while_it_was_somebody_elses_is_not_followed_when_it_is_taken_back() {
    let Some(_) = testing::root() else { return };
    let meanwhile: [Visitor; 4] = [
        ("nobody", |_| {}),
        ("a reader", |path| drop(File::open(path))),
        ("a reader by openat2", |path| drop(opened_by_openat2(path))),
        ("a writer", |path| drop(OpenOptions::new().write(true).open(path))),
    ];
    for kind in FsKind::ALL {
        let scratch = ScratchMount::new(kind, 64 << 20).unwrap();
        let mut cases = Vec::new();
        for (who, comes) in meanwhile {
            for known in [false, true] {
                let path = scratch.path().join(format!("{who}-{known}"));
                files::make(&path, GOOD);
                cases.push((who, comes, known, path));
            }
        }
        let daemon = Daemon::with(RunDir::new(), "enforce", EVERYTHING_OF_ROOT, &[scratch.path()], Log::Read);
        let mut followed = Vec::new();
        for (who, comes, known, path) in cases {
            if known {
                (0..3).for_each(|_| drop(files::read(&path)));
            }
            chown(&path, Some(1000), None).unwrap();
            let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
            chown(&path, Some(0), None).unwrap();
            comes(&path);
            std::thread::sleep(Duration::from_millis(20));
            comes(&path);
            writer.write_all(b"evil").unwrap();
            drop(writer);
            std::thread::sleep(Duration::from_millis(50));
            let _ = fs::read(&path);
            if read_label(&path) != Some(label_of(GOOD)) {
                followed.push(format!("{kind:?}, {who} came, known: {known}"));
            }
        }
        daemon.stop();
        assert!(followed.is_empty(), "{followed:#?}");
    }
}
