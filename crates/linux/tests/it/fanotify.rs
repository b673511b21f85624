//! Permission events are answered exactly once, whatever becomes of them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use imara_integrity::check::Pass;
use imara_linux::fanotify::{Event, EventBuffer, FanotifyError, FsMask, Pending, PermissionGroup};
use imara_linux::testing::{FsKind, ScratchMount, install, on, on_each};
use imara_linux::{file, lease};

fn guarded(scratch: &ScratchMount, what: FsMask) -> PermissionGroup {
    let group = PermissionGroup::open().unwrap();
    group.mark_filesystem(File::open(scratch.path()).unwrap().as_fd(), what).unwrap();
    group
}

fn next(group: &PermissionGroup, buffer: &mut EventBuffer) -> Event {
    loop {
        if let Some(event) = group.read(buffer).unwrap().next() {
            return event.unwrap();
        }
        thread::yield_now();
    }
}

fn next_pending(group: &PermissionGroup, buffer: &mut EventBuffer) -> Pending {
    let event = next(group, buffer);
    let Event::Permission(pending) = event else { panic!("{event:?}") };
    pending
}

fn opens(path: PathBuf) -> JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || fs::read(path))
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn an_opener_gets_in_when_allowed_and_eperm_when_denied_or_dropped() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        let mut buffer = EventBuffer::default();

        let opener = opens(path.clone());
        let pending = next_pending(&group, &mut buffer);
        assert!(!pending.exec(), "{kind:?}");
        let mut contents = [0; 16];
        assert_eq!(file::read_at(pending.file(), &mut contents, 0).unwrap(), 8, "{kind:?}");
        let answered = pending.allow(Pass::ourselves());
        answered.sent.unwrap();
        assert_eq!(opener.join().unwrap().unwrap(), b"contents", "{kind:?}");
        assert!(file::path_of(answered.file.as_fd()).unwrap().ends_with(b"/mount/file"), "{kind:?}");

        let opener = opens(path.clone());
        next_pending(&group, &mut buffer).deny().sent.unwrap();
        assert_eq!(errno(opener.join().unwrap()), Some(libc::EPERM), "{kind:?}");

        let opener = opens(path.clone());
        drop(next_pending(&group, &mut buffer));
        assert_eq!(errno(opener.join().unwrap()), Some(libc::EPERM), "{kind:?}");
    });
}

#[test]
fn whoever_is_answered_after_the_file_was_closed_gets_in_and_nobody_else() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        let mut buffers = [EventBuffer::new(1), EventBuffer::new(1)];
        let openers = [opens(path.clone()), opens(path.clone())];
        let [one, other] = &mut buffers;
        let (pending, waiting) = (next_pending(&group, one), next_pending(&group, other));
        assert_eq!(lease::take_briefly(pending.file()).unwrap(), lease::Taken::Held, "{kind:?}");
        let number = pending.file().as_raw_fd();
        let answered = pending.close_and_allow(Pass::ourselves());
        answered.sent.unwrap();
        assert!(
            fs::read_link(format!("/proc/self/fd/{number}")).is_err() || number_is_taken(number, &path),
            "{kind:?}"
        );
        let finished = || openers.iter().filter(|opener| opener.is_finished()).count();
        while finished() == 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        assert_eq!(finished(), 1, "{kind:?}: the other one still waits");
        waiting.deny().sent.unwrap();
        let results: Vec<_> = openers.into_iter().map(|opener| opener.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{kind:?}");
        // Without the lease he need not wait for anybody.
        let writer = thread::spawn(move || OpenOptions::new().write(true).open(path));
        next_pending(&group, one).close_and_allow(Pass::ourselves()).sent.unwrap();
        drop(writer.join().unwrap().unwrap());
    });
}

/// Another test may have opened something with that number meanwhile.
fn number_is_taken(number: i32, path: &Path) -> bool {
    fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|other| other != path)
}

#[test]
fn events_that_are_not_taken_out_are_denied() {
    on(FsKind::Tmpfs, |scratch| {
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        let mut buffer = EventBuffer::default();
        let openers = [opens(path.clone()), opens(path.clone()), opens(path)];
        while !openers.iter().all(JoinHandle::is_finished) {
            drop(group.read(&mut buffer).unwrap());
        }
        for opener in openers {
            assert_eq!(errno(opener.join().unwrap()), Some(libc::EPERM));
        }
    });
}

#[test]
fn closing_the_group_lets_waiters_pass_and_later_answers_do_nothing() {
    on(FsKind::Tmpfs, |scratch| {
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        let mut buffer = EventBuffer::default();
        let opener = opens(path);
        let pending = next_pending(&group, &mut buffer);
        group.close();
        assert_eq!(opener.join().unwrap().unwrap(), b"contents");
        pending.deny().sent.unwrap();
        assert!(matches!(group.read(&mut buffer), Err(FanotifyError::Closed)));
        assert_eq!(group.with_fd(|_| ()), None);
    });
}

#[test]
fn execution_asks_twice_first_as_execution() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("program");
        install(Path::new("/bin/true"), &path).unwrap();
        let group = guarded(scratch, FsMask::OPEN.union(FsMask::EXEC));
        let mut buffer = EventBuffer::default();
        for answers in [&[true, true][..], &[false], &[true, false]] {
            let program = path.clone();
            let runner = thread::spawn(move || Command::new(program).status());
            for (index, allow) in answers.iter().enumerate() {
                let pending = next_pending(&group, &mut buffer);
                assert_eq!(pending.exec(), index == 0, "{kind:?} {answers:?}");
                let answered = if *allow { pending.allow(Pass::ourselves()) } else { pending.deny() };
                answered.sent.unwrap();
            }
            let status = runner.join().unwrap();
            if answers.contains(&false) {
                assert_eq!(errno(status), Some(libc::EPERM), "{kind:?} {answers:?}");
            } else {
                assert!(status.unwrap().success(), "{kind:?}");
            }
        }
    });
}

#[test]
fn closing_a_file_that_was_open_for_writing_is_told_and_reading_is_not() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"before").unwrap();
        let group = guarded(scratch, FsMask::CLOSE_WRITE);
        let mut buffer = EventBuffer::default();
        fs::read(&path).unwrap();
        drop(OpenOptions::new().append(true).open(&path).unwrap());
        let Event::CloseWrite { file, pid, and_read: false } = next(&group, &mut buffer) else { panic!("{kind:?}") };
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!((file::facts(file.as_fd()).unwrap().size, pid), (6, tid), "{kind:?}");
        assert!(group.read(&mut buffer).unwrap().next().is_none(), "{kind:?}");
    });
}

#[test]
fn closes_of_readers_are_told_if_asked_for_and_may_come_together_with_those_of_writers() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"before").unwrap();
        let group = guarded(scratch, FsMask::CLOSE_WRITE.union(FsMask::CLOSE_NOWRITE));
        let mut buffer = EventBuffer::default();
        drop(File::open(&path).unwrap());
        let read = next(&group, &mut buffer);
        assert!(matches!(read, Event::CloseRead { .. }), "{kind:?}: {read:?}");
        drop(OpenOptions::new().append(true).open(&path).unwrap());
        let written = next(&group, &mut buffer);
        assert!(matches!(written, Event::CloseWrite { and_read: false, .. }), "{kind:?}: {written:?}");
        drop((File::open(&path).unwrap(), OpenOptions::new().append(true).open(&path).unwrap()));
        let both = next(&group, &mut buffer);
        assert!(matches!(both, Event::CloseWrite { and_read: true, .. }), "{kind:?}: {both:?}");
        assert!(group.read(&mut buffer).unwrap().next().is_none(), "{kind:?}");
    });
}

#[test]
fn whoever_closes_a_group_need_not_wait_for_a_call_on_it() {
    on(FsKind::Tmpfs, |scratch| {
        let path = scratch.path().join("file");
        fs::write(&path, b"content").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        let opener = opens(path);
        let pending = next_pending(&group, &mut EventBuffer::default());
        group.with_fd(|_| assert!(!group.close_within(Duration::from_millis(20)), "a call has it")).unwrap();
        assert!(group.close_within(Duration::from_secs(60)));
        assert_eq!(opener.join().unwrap().unwrap(), b"content", "everybody is let through");
        assert!(matches!(group.queued(), Err(FanotifyError::Closed)));
        drop(pending);
    });
}

#[test]
fn a_lease_can_be_taken_on_the_file_of_an_event_and_survives_the_answer() {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        let mut buffer = EventBuffer::default();
        let opener = opens(path);
        let pending = next_pending(&group, &mut buffer);
        let signal = lease::LeaseSignal::realtime(9).unwrap();
        assert_eq!(lease::take(pending.file(), signal).unwrap(), lease::Taken::Held, "{kind:?}");
        let file = pending.allow(Pass::ourselves()).file;
        opener.join().unwrap().unwrap();
        assert!(lease::still_held(file.as_fd()).unwrap(), "{kind:?}");
        lease::release(file.as_fd()).unwrap();
        assert!(!lease::still_held(file.as_fd()).unwrap(), "{kind:?}");
    });
}

/// Set in the process that runs short of descriptors on purpose.
const SHORT_OF_DESCRIPTORS: &str = "IMARA_TEST_SHORT_OF_DESCRIPTORS";

#[test]
fn an_event_whose_file_cannot_be_opened_is_told_and_its_opener_denied() {
    // In a process of its own, because the limit would hit the other tests.
    if std::env::var_os(SHORT_OF_DESCRIPTORS).is_none() {
        let name = "fanotify::an_event_whose_file_cannot_be_opened_is_told_and_its_opener_denied";
        let mut again = Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--exact", name, "--nocapture"]).env(SHORT_OF_DESCRIPTORS, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    on(FsKind::Tmpfs, |scratch| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let group = guarded(scratch, FsMask::OPEN);
        // The opener has its descriptors already when the limit falls, for the limit is the process's.
        let mut opener = Command::new("cat").arg(&path).stderr(std::process::Stdio::null()).spawn().unwrap();
        group
            .with_fd(|fd| {
                rustix::event::poll(&mut [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)], None)
            })
            .unwrap()
            .unwrap();
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        let result = group.read(&mut EventBuffer::default()).map(|events| events.collect::<Vec<_>>());
        setrlimit(Resource::Nofile, before).unwrap();
        match result.as_deref() {
            // Linux 6.13 and later.
            Ok([Ok(Event::Unopenable { errno: Some(libc::EMFILE), permission: true, pid })]) => {
                assert_eq!(u32::try_from(*pid), Ok(opener.id()));
            }
            Err(FanotifyError::Lost { error }) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
            _ => panic!("{result:?}"),
        }
        assert_eq!(opener.wait().unwrap().code(), Some(1));
    });
}
