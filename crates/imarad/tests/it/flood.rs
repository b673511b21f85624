//! Floods: whoever may do something does it as often as he can, and others are answered all the same.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use imara_linux::control::Connection;
use imara_linux::testing::{self, FsKind, ScratchMount};

use crate::daemon::{Daemon, PATIENCE, eventually};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;

/// A process of an ordinary user, who does something until he is ended.
struct Flood(Child);

impl Flood {
    /// Runs a Perl script in a directory of the user's own.
    fn new(script: &str, directory: &Path) -> Self {
        let mut perl = Command::new("setpriv");
        perl.args(["--reuid=1000", "--regid=1000", "--clear-groups", "perl", "-MSocket", "-e", script]);
        Self(perl.current_dir(directory).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A directory of the user's own, to which he finds his way.
fn own(scratch: &ScratchMount) -> std::path::PathBuf {
    for directory in [scratch.path(), scratch.path().parent().unwrap()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let own = scratch.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(1000), Some(1000)).unwrap();
    own
}

#[test]
fn who_changes_his_own_files_all_the_time_does_not_keep_others_changes_from_being_heard_of() {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(FsKind::Xfs, 300 << 20).unwrap();
    let own = own(&scratch);
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    // Files of his, which no rule asks about, so the kernel answers for them; it has to be told of each change.
    let begun = own.join("begun");
    let script = "my @all = map { \"f$_\" } (1..10000); for (@all) { open(my $f, '>', $_) } \
                  for (@all) { open(my $f, '<', $_) } open(my $f, '>', 'begun'); \
                  while (1) { for my $m (0600, 0644) { chmod($m, $_) for @all } }";
    let flood = Flood::new(script, &own);
    assert!(eventually(|| begun.exists().then_some(())).is_some());
    let mut took = Vec::new();
    for number in 0..5 {
        let path = scratch.path().join(format!("given-{number}"));
        fs::write(&path, b"content").unwrap();
        files::label_becomes(&path, b"content");
        files::strip_label(&path);
        chown(&path, Some(1000), None).unwrap();
        (0..3).for_each(|_| drop(files::read(&path).unwrap()));
        // From now on a rule asks about it, and it has no label.
        chown(&path, Some(0), None).unwrap();
        let changed = Instant::now();
        let refused = eventually(|| (error_of(File::open(&path)) == REFUSED).then_some(()));
        assert!(refused.is_some(), "the kernel still answers for it: {}", daemon.status());
        took.push(changed.elapsed());
    }
    println!("asked about again after {took:?}");
    drop(flood);
    let status = daemon.status();
    assert_eq!(status["failures"]["change-lost"], 0);
    // Each file is found once, not once for each change.
    assert!(status["counters"]["heeded_again"].as_u64().unwrap() < 2 * 10_000, "{status}");
    daemon.stop();
}

#[test]
fn whoever_opens_links_and_connects_all_the_time_keeps_nobody_from_being_answered() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let own = own(&scratch);
    let (good, bad) = good_and_bad(scratch.path());
    let mut daemon = Daemon::start("enforce", &[scratch.path()]);
    let socket = daemon.run_dir().join("control");
    for path in [daemon.run_dir(), &socket] {
        // What keeps ordinary users out of the run directory is not what is tested.
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let connect = format!(
        "while (1) {{ socket(my $s, AF_UNIX, SOCK_STREAM, 0); connect($s, pack_sockaddr_un('{}')); \
         syswrite($s, '{{\"command\":\"release\"}}'.\"\\n\") }}",
        socket.display()
    );
    let scripts = [
        "while (1) { my $n = int(rand(500)); open(my $f, '>', $n); print $f 'x'; close($f); open($f, '<', $n) }",
        "while (1) { open(my $f, '>', \"a$$\"); link(\"a$$\", \"b$$\"); rename(\"b$$\", \"c$$\"); unlink(\"a$$\", \"c$$\") }",
        &connect,
    ];
    let floods: Vec<_> = scripts.iter().map(|script| Flood::new(script, &own)).collect();
    for number in 0..300 {
        files::read(&good).unwrap();
        assert_eq!(error_of(File::open(&bad)), REFUSED);
        let new = scratch.path().join(format!("new-{}", number % 10));
        fs::write(&new, b"new").unwrap();
        assert_eq!(files::read(&new).unwrap(), b"new");
    }
    assert_eq!(daemon.status()["mode"], "enforce", "root is served");
    drop(floods);
    assert!(daemon.is_running());
    daemon.stop();
}

#[test]
fn who_writes_to_his_own_files_faster_than_the_guard_hears_of_it_has_to_ask() {
    const FILES: u64 = 3000;
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let own = own(&scratch);
    let files: Vec<_> = (0..FILES).map(|number| own.join(number.to_string())).collect();
    for path in &files {
        File::create(path).unwrap();
        chown(path, Some(1000), None).unwrap();
    }
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let read = || files.iter().for_each(|path| drop(File::open(path).unwrap()));
    let write = || files.iter().for_each(|path| drop(File::options().write(true).open(path).unwrap()));
    let unasked = || daemon.status()["counters"]["unasked"].as_u64().unwrap();
    read();
    let before = unasked();
    read();
    assert!(unasked() < before + FILES / 10, "the kernel answers for them");
    // Nobody has to wait for a guard that stands still, but it has much to hear when it goes on.
    daemon.stopped(write);
    let heard = eventually(|| (daemon.status()["queues"]["kernel"].as_u64()? < 10).then_some(()));
    assert!(heard.is_some());
    let before = unasked();
    write();
    write();
    let asked = unasked() - before;
    assert!(asked > FILES, "{asked} questions");
    daemon.stop();
}

#[test]
fn commands_that_come_all_the_time_keep_no_opener_waiting() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let socket = daemon.run_dir().join("control");
    let (done, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let Ok(mut connection) = Connection::connect(&socket, PATIENCE) else { continue };
                    for command in [r#"{"command":"status"}"#, r#"{"command":"release"}"#].iter().cycle().take(100) {
                        if connection.send(command.as_bytes()).is_err() || !matches!(connection.receive(), Ok(Some(_)))
                        {
                            break;
                        }
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let result = std::panic::catch_unwind(|| {
            eventually(|| (answered.load(Ordering::Relaxed) > 100).then_some(())).unwrap();
            for _ in 0..200 {
                files::read(&good).unwrap();
                assert_eq!(error_of(File::open(&bad)), REFUSED);
            }
        });
        done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
    daemon.stop();
}
