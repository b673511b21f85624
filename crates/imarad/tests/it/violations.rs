//! Files that are measured and written to at the same time: said as often as the kernel says it, and no more.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use imara_linux::testing::{self, ScratchMount};

use crate::daemon::{Daemon, Log, RunDir, eventually};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

/// Everything of root is judged, and measured when it is opened for reading or executed.
pub(crate) const MEASURED: &str =
    "measure func=FILE_CHECK mask=MAY_READ\nmeasure func=FILE_CHECK mask=MAY_EXEC\nappraise fowner=0\n";

/// What an [`Opener`] does: opens `$f` and closes it.
pub(crate) const READ: &str = "exec 9<$f; exec 9<&-";
pub(crate) const WRITE: &str = "exec 8>>$f; exec 8>&-";

/// What a shell does that is told what to do.
const SHELL: &str = "while read -r line; do eval \"$line\"; echo done; done";

/// A process that opens and closes `$f` as it is told. Our own descriptors would not do: the children that other tests
/// fork have them open for a moment too.
pub(crate) struct Opener {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Opener {
    /// A shell.
    pub(crate) fn shell(path: &Path) -> Self {
        Self::start(Command::new("sh").args(["-c", SHELL]), path)
    }

    /// The same with another user.
    fn of_user(uid: u32, path: &Path) -> Self {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={uid}")).arg("--clear-groups");
        Self::start(command.args(["sh", "-c", SHELL]), path)
    }

    /// A Perl, which can make calls that nobody has a name for.
    fn perl(path: &Path) -> Self {
        let script = "use POSIX; $| = 1; while (<STDIN>) { eval $_; print $@ || \"done\\n\" }";
        Self::start(Command::new("perl").args(["-e", script]), path)
    }

    fn python(path: &Path) -> Self {
        let script = "import mmap, os, sys\nfor line in sys.stdin:\n  exec(line)\n  print('done', flush=True)\n";
        Self::start(Command::new("python3").args(["-c", script]), path)
    }

    fn start(command: &mut Command, path: &Path) -> Self {
        let command = command.env("f", path).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, orders, answers }
    }

    pub(crate) fn does(&mut self, what: &str) {
        writeln!(self.orders, "{what}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n", "{what}");
    }

    pub(crate) fn ends(self) {
        let Self { mut child, orders, .. } = self;
        drop(orders);
        assert!(child.wait().unwrap().success());
    }
}

fn start(mode: &str, policy: &str, scratch: &ScratchMount) -> Daemon {
    Daemon::with(RunDir::new(), mode, policy, &[scratch.path()], Log::Read)
}

/// How often each was counted: `ToMToU` and `open_writers`.
pub(crate) fn counted(daemon: &Daemon) -> [u64; 2] {
    let status = daemon.status();
    ["ToMToU", "open_writers"].map(|word| status["violations"][word].as_u64().unwrap())
}

/// What has been said, as `(cause, name)`; the last one is waited for.
fn said(daemon: &Daemon) -> Vec<(String, String)> {
    let many = usize::try_from(counted(daemon).iter().sum::<u64>()).unwrap();
    let of = |line: &str, key: &str| {
        Some(line.split(' ').find_map(|word| word.strip_prefix(key))?.trim_matches('"').to_owned())
    };
    let lines = eventually(|| {
        let lines: Vec<_> = daemon.lines().into_iter().filter(|line| line.contains(" op=invalid_pcr ")).collect();
        (lines.len() >= many).then_some(lines)
    });
    let found: Option<Vec<_>> =
        lines.unwrap().iter().map(|line| Some((of(line, "cause=")?, of(line, "name=")?))).collect();
    found.unwrap()
}

/// A file of root, good, that changes do not make bad.
fn file(scratch: &ScratchMount, name: &str) -> PathBuf {
    let path = scratch.path().join(name);
    files::make(&path, b"content");
    path
}

/// A good file, a guard, and a shell that opens the file as it is told.
fn watched(mode: &str, policy: &str, scratch: &ScratchMount) -> (PathBuf, Daemon, Opener) {
    let path = file(scratch, "file");
    let daemon = start(mode, policy, scratch);
    let opener = Opener::shell(&path);
    (path, daemon, opener)
}

#[test]
fn whoever_opens_for_writing_what_somebody_reads_violates_its_measurement_once() {
    let Some(_) = testing::root() else { return };
    testing::on_each(|scratch| {
        let (path, daemon, mut opener) = watched("enforce", MEASURED, scratch);
        for (what, expected, why) in [
            ("exec 3<$f", 0, "measured"),
            (WRITE, 1, "while somebody reads it"),
            (WRITE, 1, "it was only measured once"),
            ("exec 3<&-", 1, "closed"),
            (READ, 1, "measured again, and closed"),
            (WRITE, 1, "nobody reads any more"),
            ("exec 3<$f; exec 4<$f; exec 3<&-", 1, "two readers, of whom one stays"),
            ("exec 5<>$f; exec 5>&-", 2, "for both reading and writing"),
            ("exec 4<&-", 2, "closed"),
        ] {
            opener.does(what);
            assert_eq!(counted(&daemon), [expected, 0], "{:?}: {why}", scratch.kind());
        }
        opener.ends();
        let name = path.to_str().unwrap().to_owned();
        assert_eq!(said(&daemon), [("ToMToU".to_owned(), name.clone()), ("ToMToU".to_owned(), name)]);
        daemon.stop();
    });
}

#[test]
fn whoever_is_measured_while_somebody_writes_is_a_violation_once_until_the_last_writer_closes() {
    let Some(_) = testing::root() else { return };
    testing::on_each(|scratch| {
        let (_, daemon, mut opener) = watched("enforce", MEASURED, scratch);
        for (what, expected, why) in [
            ("exec 3>>$f; exec 4>>$f", 0, "nobody is measured"),
            (READ, 1, "while two write"),
            (READ, 1, "again"),
            ("exec 3>&-", 1, "closed"),
            (READ, 1, "one writer is still there"),
            ("exec 4>&-; exec 3>>$f", 1, "the last one has closed, and another one comes"),
            (READ, 2, "while he writes"),
            ("exec 3>&-", 2, "closed"),
            (READ, 2, "nobody writes"),
        ] {
            opener.does(what);
            assert_eq!(counted(&daemon), [0, expected], "{:?}: {why}", scratch.kind());
        }
        opener.ends();
        daemon.stop();
    });
}

#[test]
fn a_writer_from_before_the_guard_is_one_all_the_same() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = file(&scratch, "file");
    let mut opener = Opener::shell(&path);
    opener.does("exec 3>>$f");
    let daemon = start("log", MEASURED, &scratch);
    opener.does(READ);
    assert_eq!(counted(&daemon), [0, 1]);
    opener.does("exec 3>&-");
    opener.does(READ);
    assert_eq!(counted(&daemon), [0, 1]);
    opener.ends();
    daemon.stop();
}

#[test]
fn a_mapping_reads_and_writes_for_as_long_as_it_is_there() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = file(&scratch, "file");
    let daemon = start("enforce", MEASURED, &scratch);
    let (mut mapper, mut opener) = (Opener::python(&path), Opener::shell(&path));
    // Of the file only the mapping is left.
    mapper.does("d = os.open(os.environ['f'], os.O_RDWR); m = mmap.mmap(d, 0); os.close(d)");
    opener.does(READ);
    assert_eq!(counted(&daemon), [0, 1]);
    mapper.does("m[0] = 65; m.close()");
    opener.does(READ);
    assert_eq!(counted(&daemon), [0, 1]);
    mapper.does("d = os.open(os.environ['f'], os.O_RDONLY); m = mmap.mmap(d, 0, prot=mmap.PROT_READ); os.close(d)");
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 1]);
    mapper.does("m.close()");
    opener.does(READ);
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 1]);
    mapper.ends();
    opener.ends();
    daemon.stop();
}

#[test]
fn without_a_rule_that_measures_the_file_there_is_nothing_to_violate() {
    let Some(_) = testing::root() else { return };
    for policy in [
        "appraise fowner=0\n",
        "measure func=BPRM_CHECK\nmeasure func=MMAP_CHECK mask=MAY_EXEC\nappraise fowner=0\n",
        "dont_measure fowner=0\nmeasure func=FILE_CHECK\nappraise fowner=0\n",
        "measure func=FILE_CHECK mask=MAY_READ uid=4321\nappraise fowner=0\n",
    ] {
        let scratch = ext4();
        let (_, daemon, mut opener) = watched("enforce", policy, &scratch);
        for _ in 0..3 {
            opener.does("exec 3<$f; exec 4>>$f; exec 5<$f; exec 3<&- 4>&- 5<&-");
        }
        assert_eq!(counted(&daemon), [0, 0], "{policy}");
        assert_eq!(said(&daemon), []);
        opener.ends();
        daemon.stop();
    }
}

#[test]
fn who_reads_without_being_measured_counts_as_reader_of_what_was_measured_for_another() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = file(&scratch, "file");
    std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let daemon = start("enforce", "measure func=FILE_CHECK mask=MAY_READ uid=0\nappraise fowner=0\n", &scratch);
    let (mut stranger, mut opener) = (Opener::of_user(4321, &path), Opener::shell(&path));
    stranger.does("exec 3<$f");
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [0, 0], "nobody was told that it was measured");
    opener.does(READ);
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 0]);
    stranger.ends();
    opener.ends();
    daemon.stop();
}

#[test]
fn what_is_known_and_good_is_still_asked_about_if_it_is_measured() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (path, foreign) = (file(&scratch, "file"), file(&scratch, "foreign"));
    chown(&foreign, Some(1234), None).unwrap();
    // Whoever opens a file, and however, it is measured: decisions do not vary.
    let daemon = start("enforce", "measure func=FILE_CHECK fowner=0\nappraise fowner=0\n", &scratch);
    let (mut opener, mut other) = (Opener::shell(&path), Opener::shell(&foreign));
    for _ in 0..10 {
        opener.does(READ);
        other.does(READ);
    }
    // It is asked about each time; the other one until it is left to the kernel.
    let status = daemon.status();
    let number = |name: &str| status["counters"][name].as_u64().unwrap();
    assert_eq!(number("asked") - number("unasked"), 10, "{status}");
    assert!(number("unasked") < 10 && number("ignored_unasked") > 0, "{status}");
    opener.does("exec 3<$f");
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 0]);

    // A file that was left to the kernel is watched from when it can be measured.
    chown(&foreign, Some(0), None).unwrap();
    let heeded = eventually(|| Some(daemon.status()).filter(|status| status["counters"]["heeded_again"] == 1));
    assert!(heeded.is_some());
    for expected in 2..5 {
        other.does("exec 3<$f");
        other.does(WRITE);
        assert_eq!(counted(&daemon), [expected, 0]);
        other.does("exec 3<&-");
        other.does(READ);
        other.does(WRITE);
        assert_eq!(counted(&daemon), [expected, 0], "the close of a reader is heard of");
    }
    opener.ends();
    other.ends();
    daemon.stop();
}

#[test]
fn what_is_only_measured_is_watched_too() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, daemon, mut opener) = watched("enforce", "measure func=FILE_CHECK mask=MAY_READ\n", &scratch);
    for expected in 1..4 {
        opener.does("exec 3<$f; exec 4>>$f");
        assert_eq!(counted(&daemon), [expected, expected - 1]);
        opener.does(READ);
        assert_eq!(counted(&daemon), [expected, expected]);
        opener.does("exec 3<&- 4>&-");
    }
    opener.ends();
    daemon.stop();
}

#[test]
fn who_is_refused_has_not_got_it_open() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, bad) = good_and_bad(scratch.path());
    let daemon = start("enforce", MEASURED, &scratch);
    for _ in 0..3 {
        assert_eq!(error_of(File::open(&bad)), REFUSED);
        assert_eq!(error_of(File::options().write(true).open(&bad)), REFUSED);
    }
    assert_eq!(counted(&daemon), [0, 0]);
    daemon.ask(r#"{"command":"mode","mode":"log"}"#);
    let mut opener = Opener::shell(&bad);
    opener.does("exec 3<$f");
    opener.does(WRITE);
    assert_eq!(counted(&daemon), [1, 0]);
    opener.ends();
    daemon.stop();
}

#[test]
fn whoever_does_not_show_how_he_opens_a_file_is_found_out_by_the_lease() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let path = file(&scratch, "file");
    let daemon = start("enforce", MEASURED, &scratch);
    let (mut hidden, mut opener) = (Opener::perl(&path), Opener::shell(&path));
    // openat2(AT_FDCWD, file, { flags }, sizeof), whose flags are in memory.
    let open = |name: &str, flags: u32| {
        let how = format!("my ($f, $how) = ($ENV{{f}}, pack('QQQ', {flags}, 0, 0));");
        format!("{how} ${name} = syscall(437, -100, $f, $how, 24); die \"$!\" if ${name} < 0")
    };
    hidden.does(&open("r", 0));
    assert_eq!(counted(&daemon), [0, 0]);
    hidden.does(&open("w", 1));
    assert_eq!(counted(&daemon), [1, 0]);
    hidden.does("POSIX::close($r)");
    opener.does(READ);
    assert_eq!(counted(&daemon), [1, 1]);
    hidden.does("POSIX::close($w)");
    hidden.does(&open("r", 0));
    hidden.does("POSIX::close($r)");
    hidden.does(&open("w", 1));
    assert_eq!(counted(&daemon), [1, 1], "one after the other");
    hidden.ends();
    opener.ends();
    daemon.stop();
}

#[test]
fn what_a_kernel_said_is_said_here_too() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let daemon = start("enforce", MEASURED, &scratch);
    let readme = include_str!("../../../../vectors/violation/README.md");
    let script = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let ran = Command::new("sh").arg("-e").arg("-c").arg(script).current_dir(scratch.path()).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let words = |line: &str| {
        let kept = ["op=", "cause=", "comm=", "name=", "res=", "errno="];
        let words = line.split(' ').filter(|word| kept.iter().any(|key| word.starts_with(key)));
        words.collect::<Vec<_>>().join(" ")
    };
    let kernel = include_str!("../../../../vectors/violation/records.txt").lines().map(words);
    let here = format!("name=\"{}/", scratch.path().display());
    let expected: Vec<_> = kernel.map(|line| line.replace("name=\"/scratch/files/", &here)).collect();
    assert_eq!(said(&daemon).len(), 3);
    let lines: Vec<_> =
        daemon.lines().iter().filter(|line| line.contains("invalid_pcr")).map(|line| words(line)).collect();
    assert_eq!(lines, expected);
    daemon.stop();
}

#[test]
fn many_violations_are_counted_and_keep_nobody_waiting() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (_, daemon, mut opener) = watched("enforce", MEASURED, &scratch);
    opener.does("i=0; while [ $i -lt 500 ]; do exec 3<$f; exec 4>>$f; exec 3<&- 4>&-; i=$((i + 1)); done");
    opener.ends();
    assert_eq!((counted(&daemon), said(&daemon).len()), ([500, 0], 500));
    daemon.stop();
}
