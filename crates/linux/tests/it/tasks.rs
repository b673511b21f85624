//! Tasks that ask, and the means to talk to other processes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use imara_integrity::check::Pass;
use imara_integrity::event::{Subject, Uid};
use imara_linux::control::{Connection, ControlError, Listener, MAX_MESSAGE};
use imara_linux::fanotify::{Event, EventBuffer, FsMask, PermissionGroup};
use imara_linux::lock::{Lock, LockError};
use imara_linux::notify::{Notifier, State};
use imara_linux::open_call::{OpenCall, open_call};
use imara_linux::task;
use imara_linux::testing::{FsKind, install, on};

/// A directory of one's own, removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("imara-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

#[test]
fn our_own_credentials_are_found_by_thread() {
    let seen = thread::spawn(|| task::status(own_tid()).unwrap()).join().unwrap();
    assert_eq!(seen.tgid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(seen.subject.uid, Uid(rustix::process::getuid().as_raw()));
    if imara_linux::testing::root().is_some() {
        assert_eq!(seen.subject, Subject::ROOT);
    }
}

#[test]
fn a_task_that_does_not_exist_is_an_error_and_not_a_subject() {
    for result in [task::status(i32::MAX).map(drop), task::comm(i32::MAX).map(drop), open_call(i32::MAX).map(drop)] {
        assert_eq!(result.unwrap_err().errno(), Some(libc::ENOENT));
    }
}

#[test]
fn the_name_of_a_task_is_its_bytes() {
    let name = thread::Builder::new().name("a b)\n".to_owned());
    let comm = name.spawn(|| task::comm(own_tid()).unwrap()).unwrap().join().unwrap();
    assert_eq!(comm, b"a b)\n");
}

#[test]
fn the_flags_of_an_opener_that_waits_are_known() {
    on(FsKind::Tmpfs, |scratch| {
        let (path, program) = (scratch.path().join("file"), scratch.path().join("program"));
        fs::write(&path, b"contents").unwrap();
        // Not the file that is opened for writing here: see `install`.
        install(Path::new("/bin/true"), &program).unwrap();
        let group = PermissionGroup::open().unwrap();
        group.mark_filesystem(File::open(scratch.path()).unwrap().as_fd(), FsMask::OPEN).unwrap();
        let mut buffer = EventBuffer::default();
        let mut ask = |opener: Box<dyn FnOnce(PathBuf) + Send>| {
            let path = path.clone();
            let opener = thread::spawn(move || opener(path));
            let call = loop {
                let event = group.read(&mut buffer).unwrap().next();
                if let Some(Event::Permission(pending)) = event.map(Result::unwrap) {
                    // The question may be here before he sleeps.
                    let call = loop {
                        match open_call(pending.tid()).unwrap() {
                            Some(OpenCall::NotYet) => thread::yield_now(),
                            call => break call,
                        }
                    };
                    pending.allow(Pass::ourselves()).sent.unwrap();
                    break call;
                }
            };
            opener.join().unwrap();
            call
        };
        let flags = |call| match call {
            Some(OpenCall::Flags(flags)) => flags,
            other => panic!("{other:?}"),
        };

        let read = flags(ask(Box::new(|path| drop(File::open(path).unwrap()))));
        assert_eq!((read.reads(), read.writes(), read.truncates(), read.appends()), (true, false, false, false));
        let append =
            flags(ask(Box::new(|path| drop(fs::OpenOptions::new().append(true).create(true).open(path).unwrap()))));
        assert_eq!((append.reads(), append.writes(), append.truncates(), append.appends()), (false, true, false, true));
        let how = ask(Box::new(|path| {
            let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
            let resolve = rustix::fs::ResolveFlags::empty();
            drop(rustix::fs::openat2(rustix::fs::CWD, path, flags, rustix::fs::Mode::empty(), resolve).unwrap());
        }));
        assert_eq!(how, Some(OpenCall::How));
        let run = ask(Box::new(move |_| assert!(std::process::Command::new(program).status().unwrap().success())));
        assert_eq!(run, Some(OpenCall::Exec));
    });
}

#[test]
fn only_one_holds_the_lock_and_the_other_learns_who() {
    let directory = Directory::new("lock");
    let path = directory.0.join("pid");
    let lock = Lock::take(&path).unwrap();
    let refused = Lock::take(&path).unwrap_err();
    let own = i32::try_from(std::process::id()).unwrap();
    assert!(matches!(refused, LockError::Taken { pid: Some(pid), .. } if pid == own), "{refused}");
    assert_eq!(refused.to_string(), format!("{} is locked by process {own}", path.display()));
    drop(lock);
    Lock::take(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn systemd_is_told_by_path_and_by_abstract_name_and_silence_is_fine() {
    let directory = Directory::new("notify");
    let path = directory.0.join("socket");
    let socket = UnixDatagram::bind(&path).unwrap();
    let notifier = Notifier::connect(Some(path.as_os_str())).unwrap();
    let mut buffer = [0; 32];
    for (state, expected) in
        [(State::Ready, &b"READY=1"[..]), (State::Watchdog, b"WATCHDOG=1"), (State::Stopping, b"STOPPING=1")]
    {
        notifier.send(state).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], expected);
    }
    Notifier::connect(None).unwrap().send(State::Ready).unwrap();
    let nobody = OsString::from(format!("@imara-nobody-{}", std::process::id()));
    Notifier::connect(Some(&nobody)).unwrap_err();
}

#[test]
fn messages_go_both_ways_line_by_line() {
    let directory = Directory::new("control");
    let path = directory.0.join("socket");
    let listener = Listener::bind(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let limit = Duration::from_secs(60);
    assert!(listener.accept(limit).unwrap().is_none());
    let mut client = Connection::connect(&path, limit).unwrap();
    let (mut server, peer) = listener.accept(limit).unwrap().unwrap();
    assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
    assert_eq!(peer.uid, Uid(rustix::process::geteuid().as_raw()));

    let long = vec![b'x'; MAX_MESSAGE - 1];
    let sender = thread::spawn(move || {
        for message in [&b"one"[..], b"", &long] {
            client.send(message).unwrap();
        }
        for message in [&b"two\nlines"[..], &[b'x'; MAX_MESSAGE]] {
            assert!(matches!(client.send(message), Err(ControlError::Message)));
        }
        client
    });
    assert_eq!(server.receive().unwrap().unwrap(), b"one");
    assert_eq!(server.receive().unwrap().unwrap(), b"");
    assert_eq!(server.receive().unwrap().unwrap().len(), MAX_MESSAGE - 1);
    drop(sender.join().unwrap());
    assert!(server.receive().unwrap().is_none());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_flood_silence_and_a_cut_line_are_told_apart() {
    let directory = Directory::new("flood");
    let path = directory.0.join("socket");
    let listener = Listener::bind(&path).unwrap();
    let connected = |limit| {
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        (client, listener.accept(limit).unwrap().unwrap().0)
    };
    let (client, mut server) = connected(Duration::from_millis(50));
    assert!(matches!(server.receive(), Err(ControlError::Timeout)));
    rustix::io::write(&client, b"half").unwrap();
    drop(client);
    assert!(matches!(server.receive(), Err(ControlError::Cut)));

    let (client, mut server) = connected(Duration::from_secs(60));
    let flood = thread::spawn(move || while rustix::io::write(&client, &[b'x'; 4096]).is_ok() {});
    assert!(matches!(server.receive(), Err(ControlError::Message)));
    drop(server);
    flood.join().unwrap();
}

#[test]
fn a_socket_is_not_put_where_others_may_write() {
    let directory = Directory::new("open");
    fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = Listener::bind(&directory.0.join("socket")).unwrap_err();
    assert!(matches!(refused, ControlError::Directory { mode: 0o777, .. }), "{refused}");
    let listener = Listener::bind(&directory.0.join("new/socket")).unwrap();
    assert!(listener.as_fd().as_raw_fd() >= 0);
    assert_eq!(fs::metadata(directory.0.join("new")).unwrap().permissions().mode() & 0o777, 0o700);
}
