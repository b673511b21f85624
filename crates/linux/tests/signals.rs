//! Leases: who may have one, and how a break is told; and the signals of an administrator.
//!
//! Without the usual harness, whose main thread would be killed by the signal: here it is blocked before any other
//! thread begins, as in a daemon.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests, although no harness marks them as such"
)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::thread;

use imara_linux::epoll::{Epoll, Interest, Ready};
use imara_linux::lease::{self, LeaseEvent, LeaseSignal, LeaseSignals, Taken};
use imara_linux::signals::{Hangup, Request, Signals};
use imara_linux::testing::on_each;

/// A test, and what it is called.
type Test = (&'static str, fn(&LeaseSignals));

const TESTS: [Test; 7] = [
    (
        "a_writer_waits_until_the_lease_is_released_and_its_file_is_named",
        a_writer_waits_until_the_lease_is_released_and_its_file_is_named,
    ),
    (
        "a_lease_on_a_directory_or_on_a_file_open_for_writing_is_an_error",
        a_lease_on_a_directory_or_on_a_file_open_for_writing_is_an_error,
    ),
    ("the_break_time_is_a_number_of_seconds", the_break_time_is_a_number_of_seconds),
    ("real_time_signals_end_where_the_library_says", real_time_signals_end_where_the_library_says),
    (
        "a_break_that_finds_the_signal_queue_full_is_told_as_overflow",
        a_break_that_finds_the_signal_queue_full_is_told_as_overflow,
    ),
    ("a_lease_signal_that_a_process_sent_is_not_believed", a_lease_signal_that_a_process_sent_is_not_believed),
    (
        "the_signals_of_an_administrator_are_read_in_their_meaning",
        the_signals_of_an_administrator_are_read_in_their_meaning,
    ),
];

/// Of the lease signal, from `SIGRTMIN`.
const OFFSET: i32 = 5;

fn main() {
    let signals = LeaseSignals::open(LeaseSignal::realtime(u8::try_from(OFFSET).unwrap()).unwrap()).unwrap();
    if std::env::args().any(|argument| argument == "--list") {
        return TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    for (name, test) in TESTS {
        // A test that fails panics, and with that the process fails.
        test(&signals);
        println!("test {name} ... ok");
    }
}

fn a_writer_waits_until_the_lease_is_released_and_its_file_is_named(signals: &LeaseSignals) {
    on_each(|scratch| {
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(lease::take(reader.as_fd(), signals.signal()).unwrap(), Taken::Held, "{kind:?}");
        assert!(lease::still_held(reader.as_fd()).unwrap(), "{kind:?}");

        // An impatient writer breaks the lease and goes away.
        let nonblocking = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(nonblocking.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{kind:?}");
        assert!(!lease::still_held(reader.as_fd()).unwrap(), "{kind:?}");
        let epoll = Epoll::new().unwrap();
        epoll.add(signals, 9, Interest::Readable).unwrap();
        assert_eq!(epoll.wait(&mut Ready::default(), None).unwrap().collect::<Vec<_>>(), [9], "{kind:?}");
        let mut told = Vec::new();
        signals.read(|event| told.push(event)).unwrap();
        assert_eq!(told, [LeaseEvent::Breaking(reader.as_raw_fd())], "{kind:?}");
        lease::release(reader.as_fd()).unwrap();
        assert_eq!(signals.read(|event| panic!("{event:?}")).unwrap(), 0, "{kind:?}");

        // A patient one gets in once the lease is released.
        assert_eq!(lease::take(reader.as_fd(), signals.signal()).unwrap(), Taken::Held, "{kind:?}");
        let writer = thread::spawn(move || OpenOptions::new().write(true).open(path));
        epoll.wait(&mut Ready::default(), None).unwrap();
        signals.read(|event| told.push(event)).unwrap();
        assert_eq!(told, [LeaseEvent::Breaking(reader.as_raw_fd()); 2], "{kind:?}");
        lease::release(reader.as_fd()).unwrap();
        let writer = writer.join().unwrap().unwrap();
        assert_eq!(lease::take(reader.as_fd(), signals.signal()).unwrap(), Taken::Writer, "{kind:?}");
        drop(writer);
        assert_eq!(lease::take(reader.as_fd(), signals.signal()).unwrap(), Taken::Held, "{kind:?}");
    });
}

fn a_lease_on_a_directory_or_on_a_file_open_for_writing_is_an_error(signals: &LeaseSignals) {
    on_each(|scratch| {
        let kind = scratch.kind();
        let directory = File::open(scratch.path()).unwrap();
        assert_eq!(
            lease::take(directory.as_fd(), signals.signal()).unwrap_err().errno(),
            Some(libc::EINVAL),
            "{kind:?}"
        );
        let writer = File::create(scratch.path().join("file")).unwrap();
        assert_eq!(lease::take(writer.as_fd(), signals.signal()).unwrap(), Taken::Writer, "{kind:?}");
        assert_eq!(lease::release(writer.as_fd()).unwrap_err().errno(), Some(libc::EAGAIN), "{kind:?}");
    });
}

fn the_break_time_is_a_number_of_seconds(_: &LeaseSignals) {
    let text = fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap();
    assert_eq!(lease::break_time().unwrap().as_secs().to_string(), text.trim());
}

fn real_time_signals_end_where_the_library_says(_: &LeaseSignals) {
    let count = u8::try_from(libc::SIGRTMAX() - libc::SIGRTMIN()).unwrap();
    assert!(LeaseSignal::realtime(count).is_some());
    assert_eq!(LeaseSignal::realtime(count + 1), None);
}

fn a_break_that_finds_the_signal_queue_full_is_told_as_overflow(signals: &LeaseSignals) {
    on_each(|scratch| {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let kind = scratch.kind();
        let path = scratch.path().join("file");
        fs::write(&path, b"contents").unwrap();
        let reader = File::open(&path).unwrap();
        assert_eq!(lease::take(reader.as_fd(), signals.signal()).unwrap(), Taken::Held, "{kind:?}");
        let before = getrlimit(Resource::Sigpending);
        setrlimit(Resource::Sigpending, Rlimit { current: Some(0), ..before }).unwrap();
        let nonblocking = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        setrlimit(Resource::Sigpending, before).unwrap();
        assert_eq!(nonblocking.unwrap_err().kind(), io::ErrorKind::WouldBlock, "{kind:?}");
        let mut told = Vec::new();
        signals.read(|event| told.push(event)).unwrap();
        assert_eq!(told, [LeaseEvent::Overflow], "{kind:?}");
        lease::release(reader.as_fd()).unwrap();
    });
}

fn a_lease_signal_that_a_process_sent_is_not_believed(signals: &LeaseSignals) {
    let number = libc::SIGRTMIN() + OFFSET;
    send(&number.to_string());
    assert_eq!(signals.read(|event| panic!("{event:?}")).unwrap(), 1);
}

/// Sends us a signal from another process. The shell has a `kill` of its own on hosts that have no other.
fn send(signal: &str) {
    let command = format!("kill -{signal} {}", std::process::id());
    assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
}

fn the_signals_of_an_administrator_are_read_in_their_meaning(_: &LeaseSignals) {
    let deaf = Signals::open(Hangup::Passes).unwrap();
    send("HUP");
    assert_eq!(deaf.next().unwrap(), None, "kept away");
    let signals = Signals::open(Hangup::Ends).unwrap();
    assert_eq!(signals.next().unwrap(), Some(Request::End), "the one from before");
    for name in ["TERM", "INT", "HUP"] {
        send(name);
        assert_eq!(signals.next().unwrap(), Some(Request::End), "{name}");
        assert_eq!(signals.next().unwrap(), None, "{name}");
    }
    send("TERM");
    assert_eq!((deaf.next().unwrap(), signals.next().unwrap()), (Some(Request::End), None));
}
