//! `status` and `/metrics`: each number counts what happened, and both tell the same.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use imara_linux::testing;
use serde_json::Value;

use crate::daemon::{self, Daemon, EVERYTHING_OF_ROOT, Log, RunDir, eventually};
use crate::exposition::{Exposition, parse};
use crate::files::{self, REFUSED, error_of, good_and_bad};
use crate::image::ext4;
use crate::patterns::truncated_by_path;

/// The answer to these bytes: header and body.
fn exchange(socket: &Path, request: &[u8]) -> (String, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned())).unwrap_or_default()
}

fn scrape(daemon: &Daemon) -> Exposition {
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
    let (head, body) = exchange(&daemon.run_dir().join("control"), request);
    let expected = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close",
        body.len()
    );
    assert_eq!(head, expected);
    parse(&body).unwrap_or_else(|why| panic!("{why} in {body}"))
}

/// Numbers of `status`, by their way.
fn number(status: &Value, way: &str) -> u64 {
    let found = way.split('/').fold(status, |value, name| &value[name]);
    found.as_u64().unwrap_or_else(|| panic!("{way} is {found} in {status}"))
}

fn answers(status: &Value) -> u64 {
    let buckets = status["latency"]["buckets"].as_array().unwrap();
    buckets.iter().map(|bucket| bucket["count"].as_u64().unwrap()).sum()
}

#[test]
fn opens_of_each_kind_are_counted_as_what_they_are() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let unlabelled = scratch.path().join("unlabelled");
    fs::write(&unlabelled, "new").unwrap();
    let foreign = scratch.path().join("foreign");
    fs::write(&foreign, "his").unwrap();
    std::os::unix::fs::chown(&foreign, Some(1234), None).unwrap();
    // What has just changed cannot be told from what changes in a moment, and is not remembered.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let size = fs::metadata(&good).unwrap().len();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let expect = |counted: &[(&str, u64)]| {
        let status = daemon.status();
        for (way, expected) in counted {
            assert_eq!(number(&status, way), *expected, "{way} in {status}");
        }
        let settled = ["allowed", "denied", "tolerated", "repaired"].map(|name| number(&status["counters"], name));
        assert_eq!(settled.iter().sum::<u64>(), number(&status, "counters/asked"), "{status}");
        assert_eq!(answers(&status), number(&status, "counters/asked"), "{status}");
    };
    expect(&[("counters/asked", 0), ("counters/hashed_bytes", 0), ("remembered/leases", 0)]);

    // Judged and put into the second memory, found there again and known, known; then the kernel answers. That takes two
    // or three opens, or some more if the file is dropped from memory meanwhile.
    let opened = eventually(|| {
        File::open(&good).unwrap();
        let status = daemon.status();
        (number(&status, "counters/ignored_known") == 1).then_some(number(&status, "counters/asked"))
    });
    let base = opened.unwrap();
    let status = daemon.status();
    let [hits, recalled] = ["known_hits", "recalled"].map(|name| number(&status["counters"], name));
    assert!(base >= 2 && recalled >= 1, "{status}");
    assert_eq!(
        number(&status, "counters/hashed_bytes"),
        (base - hits - recalled) * size,
        "all others read it: {status}"
    );
    expect(&[("remembered/known", 1), ("remembered/ignored", 1), ("remembered/leases", 1), ("remembered/recall", 0)]);
    (0..10).for_each(|_| drop(File::open(&good).unwrap()));
    expect(&[("counters/asked", base), ("counters/allowed", base)]);

    (0..4).for_each(|_| assert_eq!(error_of(File::open(&bad)), REFUSED));
    (0..2).for_each(|_| assert_eq!(error_of(File::open(&unlabelled)), REFUSED));
    expect(&[("counters/asked", base + 6), ("counters/denied", 6)]);
    expect(&[("causes/invalid-hash/denied", 4), ("causes/missing-hash/denied", 2), ("causes/unknown/denied", 0)]);

    File::open(&foreign).unwrap();
    expect(&[("counters/unasked", 1), ("counters/ignored_unasked", 1)]);
    expect(&[("counters/asked", base + 7), ("counters/allowed", base + 1)]);

    daemon.ask(r#"{"command":"mode","mode":"log"}"#);
    File::open(&bad).unwrap();
    expect(&[("counters/tolerated", 1), ("causes/invalid-hash/tolerated", 1), ("counters/denied", 6)]);
    daemon.ask(r#"{"command":"mode","mode":"fix"}"#);
    File::open(&bad).unwrap();
    expect(&[("counters/repaired", 1), ("causes/invalid-hash/repaired", 1), ("counters/tolerated", 1)]);
    daemon.ask(r#"{"command":"mode","mode":"off"}"#);
    File::open(&unlabelled).unwrap();
    expect(&[("counters/mode_off", 1), ("counters/asked", base + 10), ("counters/allowed", base + 2)]);
    daemon.stop();
}

#[test]
fn what_the_workers_hash_is_counted_as_what_the_dispatcher_hashes() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let content = vec![7; 1 << 20];
    let path = scratch.path().join("large");
    files::make(&path, &content);
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    files::read(&path).unwrap();
    let status = daemon.status();
    assert_eq!(
        (number(&status, "counters/handed_over"), number(&status, "counters/looked_at_once")),
        (1, 0),
        "{status}"
    );
    assert_eq!(number(&status, "counters/hashed_bytes"), 1 << 20, "{status}");
    daemon.stop();
}

#[test]
fn writers_and_what_follows_from_them_are_counted() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, _) = good_and_bad(scratch.path());
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let mut writer = fs::OpenOptions::new().append(true).open(&good).unwrap();
    let status = daemon.status();
    assert_eq!((number(&status, "remembered/written"), number(&status, "remembered/leases")), (1, 0), "{status}");
    for _ in 0..5 {
        File::open(&good).unwrap();
    }
    assert_eq!(number(&daemon.status(), "counters/while_written"), 5);
    writer.write_all(b"more").unwrap();
    drop(writer);
    let renewed = eventually(|| Some(daemon.status()).filter(|status| number(status, "counters/renewed") == 1));
    let status = renewed.unwrap();
    // Whoever renews reads all of it.
    assert!(number(&status, "counters/hashed_bytes") >= fs::metadata(&good).unwrap().len(), "{status}");
    assert!(number(&status, "counters/handed_over") >= 1, "{status}");
    // Who cuts it by its path waits for the lease.
    files::read(&good).unwrap();
    assert_eq!(number(&daemon.status(), "counters/lease_breaks"), 0);
    truncated_by_path(&good, 1).unwrap();
    assert_eq!(number(&daemon.status(), "counters/lease_breaks"), 1);
    daemon.stop();
}

#[test]
fn metrics_say_what_status_says() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let (good, bad) = good_and_bad(scratch.path());
    let run_dir = RunDir::new();
    let policy = run_dir.policy(EVERYTHING_OF_ROOT);
    let mut command = daemon::command(run_dir.path(), "enforce", &policy, &[scratch.path()]);
    command.args(["--later", "/nowhere/yet"]);
    let daemon = Daemon::run(run_dir, command, Log::Read);
    for _ in 0..7 {
        files::read(&good).unwrap();
        assert_eq!(error_of(File::open(&bad)), REFUSED);
    }
    let (status, page) = (daemon.status(), scrape(&daemon));
    for (name, count) in status["counters"].as_object().unwrap() {
        assert_eq!(page.value(&format!("imara_{name}_total"), &[]), count.as_f64(), "{name}");
    }
    for (word, count) in status["violations"].as_object().unwrap() {
        assert_eq!(page.value("imara_violations_total", &[("cause", word)]), count.as_f64(), "{word}");
    }
    for (word, count) in status["failures"].as_object().unwrap() {
        assert_eq!(page.value("imara_failures_total", &[("failure", word)]), count.as_f64(), "{word}");
    }
    for (cause, verdicts) in status["causes"].as_object().unwrap() {
        for (verdict, count) in verdicts.as_object().unwrap() {
            let labels = [("cause", cause.as_str()), ("verdict", verdict)];
            assert_eq!(page.value("imara_verdicts_total", &labels), count.as_f64(), "{cause} {verdict}");
        }
    }
    let path = scratch.path().to_str().unwrap();
    let device = status["mounts"][0]["device"].as_str().unwrap();
    let labels = [("path", path), ("filesystem", "ext4"), ("device", device)];
    assert_eq!(page.value("imara_guarded", &labels), Some(1.0));
    assert_eq!(page.value("imara_awaited", &[("path", "/nowhere/yet")]), Some(1.0));
    assert_eq!(page.value("imara_journal_kept", &[]), Some(1.0));
    for state in ["writing", "at_rest"] {
        let records = page.value("imara_journal_records", &[("state", state)]);
        assert_eq!(records, status["journal"][state].as_f64(), "{state}");
    }
    let modes = ["off", "log", "fix", "enforce"].map(|mode| page.value("imara_mode", &[("mode", mode)]));
    assert_eq!(modes, [Some(0.0), Some(0.0), Some(0.0), Some(1.0)]);
    assert_eq!(page.value("imara_verdicts_total", &[("cause", "invalid-hash"), ("verdict", "denied")]), Some(7.0));
    // The parser has seen that the buckets add up.
    let count = page.value("imara_answer_duration_seconds_count", &[]);
    assert_eq!(count, page.value("imara_asked_total", &[]));
    assert!(page.value("imara_answer_duration_seconds_sum", &[]) > Some(0.0));
    let bucket = page.value("imara_answer_duration_seconds_bucket", &[("le", "16.777216")]);
    assert_eq!(bucket, count, "none took longer");
    daemon.stop();
}

#[test]
fn who_speaks_http_gets_an_answer_of_http_within_the_same_limits() {
    let Some(_) = testing::root() else { return };
    let scratch = ext4();
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let socket = daemon.run_dir().join("control");
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        ("GET /metrics HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET /metrics?x=y HTTP/1.1\nHost: x\n\n", "HTTP/1.1 200 OK"),
        ("GET http://localhost/metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
    ] {
        let (head, body) = exchange(&socket, request.as_bytes());
        assert_eq!(head.lines().next(), Some(expected), "{request:?}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())) && !body.is_empty(), "{head}");
    }
    // A header that is too long, or does not end, gets no answer: the client is cut off.
    let endless = [&b"GET /metrics HTTP/1.1\r\n"[..], &b"X-Field: of no use\r\n".repeat(5000)].concat();
    let mut stream = UnixStream::connect(&socket).unwrap();
    let mut answer = Vec::new();
    // Perhaps it is cut off before all of it is sent, or while more of it is there.
    let _ = stream.write_all(&endless).and_then(|()| stream.read_to_end(&mut answer));
    assert_eq!(String::from_utf8_lossy(&answer), "");
    let mut slow = UnixStream::connect(&socket).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
    slow.read_to_end(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "");
    // Whoever mixes both gets the one, then the other.
    let mut both = UnixStream::connect(&socket).unwrap();
    both.write_all(b"{\"command\":\"release\"}\nGET /nothing HTTP/1.1\r\n\r\n").unwrap();
    let mut said = String::new();
    both.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("{\"ok\":true,\"released\":0}\nHTTP/1.1 404 "), "{said}");
    daemon.stop();
}
