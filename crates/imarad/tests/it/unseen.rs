//! What the guard does not see, as the table of coverage says: each trial shows that it is so, and how far.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imara_linux::apart::handing_over;
use imara_linux::testing::{self, ScratchMount};
use rustix::fs::{Advice, MemfdFlags};

use crate::coverage::{Found, Table};
use crate::daemon::{Daemon, eventually};
use crate::files::{self, REFUSED, SCRIPT, good_and_bad, label_of};
use crate::image::{cycle, ext4};

pub(crate) const IDS: &[&str] = &[
    "open-before",
    "passed",
    "read-while-written",
    "mmap",
    "memory",
    "standard-input",
    "process-memory",
    "block-device",
    "guard-descriptors",
    "not-regular",
    "attributes",
    "bad-moment",
];

/// A guarded file system with a good file that is known and a bad one.
struct Ground {
    scratch: ScratchMount,
    good: PathBuf,
    bad: PathBuf,
}

impl Ground {
    fn new() -> Self {
        let scratch = ext4();
        let (good, bad) = good_and_bad(scratch.path());
        Self { scratch, good, bad }
    }

    fn guarded(&self) -> (Daemon, Table) {
        let daemon = Daemon::start("enforce", &[self.scratch.path()]);
        let table = Table::of(&daemon);
        (daemon, table)
    }
}

/// How many questions the guard has been asked while something was done.
fn questions(daemon: &Daemon, something: impl FnOnce()) -> u64 {
    let asked = || daemon.status()["counters"]["asked"].as_u64().unwrap();
    let before = asked();
    something();
    asked() - before
}

fn read_all(mut file: &File) -> Vec<u8> {
    let mut content = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn descriptors_from_before_the_start_and_those_that_are_passed_on_are_not_asked_about() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let before = File::open(&ground.bad).unwrap();
    let content = read_all(&before);
    let (daemon, table) = ground.guarded();
    let asked = questions(&daemon, || assert_eq!(read_all(&before), content));
    assert_eq!(asked, 0);
    table.says("open-before", Found::NotSeen, "read from it");
    // Asked about when it is opened, and not when it is received or inherited.
    assert_eq!(File::open(&ground.bad).unwrap_err().raw_os_error(), REFUSED);
    let good = File::open(&ground.good).unwrap();
    let (giver, taker) = handing_over().unwrap();
    let asked = questions(&daemon, || {
        giver.give(&[good.as_fd()], 1).unwrap();
        let mut taken = Vec::new();
        taker.take(&mut taken).unwrap();
        assert_eq!(read_all(&File::from(taken.remove(0))), b"content");
        let child = Command::new("setpriv").args(["--reuid=1000", "--clear-groups", "cat"]).stdin(good).output();
        assert_eq!(child.unwrap().stdout, b"");
    });
    assert_eq!(asked, 0);
    table.says("passed", Found::Partly, "passed on");
    daemon.stop();
}

#[test]
fn who_has_a_file_open_sees_what_others_write_and_maps_it_as_he_likes() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let (daemon, table) = ground.guarded();
    let mut reader = File::open(&ground.good).unwrap();
    fs::write(&ground.good, b"changed").unwrap();
    let mut found = Vec::new();
    assert_eq!(questions(&daemon, || drop(reader.read_to_end(&mut found))), 0);
    assert_eq!(found, b"changed");
    table.says("read-while-written", Found::NotSeen, "reads");
    assert_eq!(files::map_executable(&ground.bad).unwrap_err().raw_os_error(), REFUSED, "the open before it");
    files::map_executable(&ground.good).unwrap();
    let opened = files::open_to_change(&ground.good).unwrap();
    let asked = questions(&daemon, || drop(files::Mapping::new(&opened).unwrap()));
    assert_eq!(asked, 0);
    table.says("mmap", Found::Partly, "mapped");
    daemon.stop();
}

#[test]
fn code_that_is_in_no_file_runs() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let (daemon, table) = ground.guarded();
    let memory = File::from(rustix::fs::memfd_create("code", MemfdFlags::CLOEXEC).unwrap());
    (&memory).write_all(&[&files::program()[..], b"#"].concat()).unwrap();
    // For executing it must not be open for writing, here or in the children of other tests.
    let place = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd()));
    let reader = File::open(&place).unwrap();
    drop(memory);
    files::execute(Path::new(&format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd()))).unwrap();
    table.says("memory", Found::NotSeen, "memfd_create");
    let mut shell = Command::new("sh").stdin(Stdio::piped()).spawn().unwrap();
    shell.stdin.take().unwrap().write_all(SCRIPT).unwrap();
    assert!(shell.wait().unwrap().success());
    table.says("standard-input", Found::NotSeen, "a shell");
    // A process's memory, changed from outside.
    let word = vec![b'a'; 16];
    let memory = OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    let asked = questions(&daemon, || memory.write_all_at(b"b", u64::try_from(word.as_ptr().addr()).unwrap()).unwrap());
    assert_eq!((std::hint::black_box(&word)[0], asked), (b'b', 0));
    table.says("process-memory", Found::NotSeen, "/proc/self/mem");
    daemon.stop();
}

#[test]
fn what_is_written_to_the_device_under_a_known_file_is_found_when_it_is_not_known_any_more() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let marked = ground.scratch.path().join("marked");
    let content: Vec<u8> =
        b"a content that is nowhere else on this device: ".iter().copied().cycle().take(4096).collect();
    files::make(&marked, &content);
    cycle(&ground.scratch);
    let device = imara_linux::mounts::mount_of(ground.scratch.path()).unwrap().source;
    let (daemon, table) = ground.guarded();
    for _ in 0..4 {
        assert_eq!(files::read(&marked).unwrap(), content);
    }
    let reader = File::open(&marked).unwrap();
    write_to_device(Path::new(&device), &content);
    rustix::fs::fadvise(&reader, 0, None, Advice::DontNeed).unwrap();
    assert_ne!(files::read(&marked).unwrap(), content, "still known, and so not judged again");
    drop(reader);
    table.says("block-device", Found::NotSeen, "a loop device");
    daemon.stop();
    cycle(&ground.scratch);
    let (daemon, _) = ground.guarded();
    assert_eq!(files::read(&marked).unwrap_err().raw_os_error(), REFUSED);
    daemon.stop();
}

/// Finds a page on the device and changes its first byte.
fn write_to_device(device: &Path, page: &[u8]) {
    let device = OpenOptions::new().read(true).write(true).open(device).unwrap();
    let mut block = vec![0; page.len()];
    let mut place = 0;
    while device.read_exact_at(&mut block, place).is_ok() {
        if block == page {
            device.write_all_at(b"A", place).unwrap();
            return device.sync_all().unwrap();
        }
        place += u64::try_from(page.len()).unwrap();
    }
    panic!("the page is not on the device");
}

#[test]
fn the_guards_own_descriptors_lead_around_it() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let (daemon, table) = ground.guarded();
    let all = format!("/proc/{}/fd", daemon.id());
    // A bad file is remembered too, through a mount of the guard's own, on which nobody is asked.
    let found = eventually(|| {
        assert_eq!(files::read(&ground.bad).unwrap_err().raw_os_error(), REFUSED);
        let own = fs::read_dir(&all).unwrap().flatten().map(|entry| entry.path());
        let mut own = own.filter(|path| fs::read_link(path).is_ok_and(|name| name == Path::new("/bad")));
        own.find_map(|path| files::read(&path).ok())
    });
    assert_ne!(found.expect("a descriptor of it"), b"content");
    table.says("guard-descriptors", Found::NotSeen, "its own mount");
    daemon.stop();
}

#[test]
fn what_is_no_regular_file_and_what_opens_nothing_is_not_judged() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let link = ground.scratch.path().join("link");
    symlink("anything", &link).unwrap();
    let (daemon, table) = ground.guarded();
    assert!(fs::read_dir(ground.scratch.path()).unwrap().count() >= 3);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("anything"));
    table.says("not-regular", Found::NotSeen, "a directory, a symbolic link");
    assert_eq!(fs::metadata(&ground.bad).unwrap().len(), 7);
    assert_eq!(files::read_label(&ground.bad), Some(label_of(b"content")));
    table.says("attributes", Found::NotSeen, "stat(2), getxattr(2)");
    daemon.stop();
}

#[test]
fn nothing_is_refused_in_other_modes_and_when_the_guard_has_gone() {
    let Some(_) = testing::root() else { return };
    let ground = Ground::new();
    let (daemon, table) = ground.guarded();
    let opened = || files::read(&ground.bad).map(drop).map_err(|error: io::Error| error.raw_os_error());
    assert_eq!(opened(), Err(REFUSED));
    for mode in ["log", "off"] {
        daemon.ask(&format!(r#"{{"command":"mode","mode":"{mode}"}}"#));
        assert_eq!(opened(), Ok(()), "{mode}");
    }
    daemon.ask(r#"{"command":"mode","mode":"enforce"}"#);
    assert_eq!(opened(), Err(REFUSED));
    table.says("bad-moment", Found::NotSeen, "modes");
    daemon.stop();
    assert_eq!(opened(), Ok(()), "it has gone");
}
