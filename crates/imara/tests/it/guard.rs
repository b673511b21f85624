//! `imara guard`, and the verbs that talk to a guard; here the guard is a stand-in.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use imara_linux::control::Listener;
use imara_linux::testing::install_bytes;
use serde_json::{Value, json};

use crate::fixture::{Copied, Ran, imara, imara_words};

/// A daemon that tells its arguments and ends with 7.
const STAND_IN: &str = "#!/bin/sh\nfor word; do printf '[%s]' \"$word\"; done\nexit 7\n";

fn with_stand_in(name: &str) -> Copied {
    let copied = Copied::new(name);
    let daemon = copied.directory.join("imarad");
    install_bytes(STAND_IN.as_bytes(), &daemon).unwrap();
    copied
}

#[test]
fn guard_becomes_the_daemon_beside_it_with_the_same_arguments() {
    let copied = with_stand_in("guard");
    let run = |arguments: &[&str]| -> Ran {
        let mut command = Command::new(&copied.program);
        command.env_remove("IMARA_RUN_DIR").env_remove("IMARA_STATE_DIR");
        command.current_dir("/").arg("guard").args(arguments).output().unwrap().into()
    };
    let plain = run(&["/proc"]);
    assert_eq!(
        plain.out,
        "[--mode][enforce][--hash][sha256][--policy=builtin:appraise_tcb][--run-dir=/run/imara]\
         [--state-dir=/var/lib/imara][--recover][relabel][--journal][all][--][/proc]"
    );
    assert_eq!((plain.code, plain.err.as_str()), (Some(7), ""));
    let mut words = vec!["--mode", "log", "--hash", "sha512", "--policy", "builtin:tcb", "--run-dir", "/x y"];
    words.extend(["--state-dir", "/y", "--recover", "ask", "--journal", "off", "/proc", "/proc/"]);
    assert_eq!(
        run(&words).out,
        "[--mode][log][--hash][sha512][--policy=builtin:tcb][--run-dir=/x y][--state-dir=/y][--recover][ask]\
         [--journal][off][--][/proc][/proc/]"
    );
}

/// The words that a key of `imara.toml` takes, by the manual's page, which imarad's tests compare with what it takes.
fn words_of(key: &str) -> Vec<&'static str> {
    let page = include_str!("../../../../packaging/imara.toml.5");
    let entry = page.split(&format!(".B {key} = ")).nth(1).unwrap().split(".RE").next().unwrap();
    entry.split(".TP\n.B ").skip(1).map(|word| word.lines().next().unwrap()).collect()
}

#[test]
fn guard_takes_every_word_that_the_configuration_takes() {
    let copied = with_stand_in("words");
    for (key, count) in [("mode", 4), ("recover", 3), ("journal", 4)] {
        let words = words_of(key);
        assert_eq!(words.len(), count, "{key}: {words:?}");
        for word in words {
            let mut command = Command::new(&copied.program);
            let ran: Ran = command.args(["guard", &format!("--{key}"), word, "/proc"]).output().unwrap().into();
            assert_eq!((ran.code, ran.err.as_str()), (Some(7), ""), "--{key} {word}");
            assert!(ran.out.contains(&format!("[--{key}][{word}]")), "{}", ran.out);
        }
    }
}

#[test]
fn guard_refuses_what_cannot_be_meant_before_it_becomes_anything() {
    let copied = with_stand_in("refuse");
    for (arguments, word) in [
        (&["--mode", "permissive", "/"][..], "permissive"),
        (&["--hash", "sha257", "/"], "sha257"),
        (&["--recover", "maybe", "/"], "maybe"),
        (&["--journal", "maybe", "/"], "maybe"),
        (&["--policy", "builtin:nothing", "/"], "unknown built-in policy \"nothing\""),
        (&["--policy", "/nonexistent/policy", "/"], "cannot read the policy /nonexistent/policy"),
        (&["/nonexistent/mount"], "/nonexistent/mount: No such file or directory (os error 2) (fix: "),
        (&["/proc/version"], "/proc/version: not a directory"),
        (
            &["/proc/1"],
            "/proc/1: no mount point; only whole file systems are guarded, and this directory is part of the one on /proc \
             (fix: mount what belongs here first, or name /proc if all of that shall be guarded)",
        ),
        (&[], "MOUNT"),
    ] {
        let ran: Ran = Command::new(&copied.program).arg("guard").args(arguments).output().unwrap().into();
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.err.contains(word), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn without_a_guard_the_verbs_end_with_two_and_the_fix() {
    for arguments in [&["status"][..], &["status", "--json"], &["mode", "log"], &["release"]] {
        let ran = imara_words(&[arguments, &["--run-dir", "/nonexistent/run"]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{arguments:?}");
        assert_eq!(
            ran.err,
            "imara: no guard answers at /nonexistent/run/control: No such file or directory (os error 2) (fix: start one \
             with `imara guard MOUNT`, or name the directory of the one that runs with --run-dir)\n"
        );
    }
}

/// Answers each connection with one line, and gives back what was asked last.
struct Guard {
    directory: PathBuf,
    thread: Option<JoinHandle<io::Result<Value>>>,
}

impl Guard {
    fn new(name: &str, answer: Value) -> Self {
        Self::answering(name, vec![answer])
    }

    fn answering(name: &str, answers: Vec<Value>) -> Self {
        let directory = std::env::temp_dir().join(format!("imara-run-{name}-{}", std::process::id()));
        let listener = Listener::bind(&directory.join("control")).unwrap();
        let thread = std::thread::spawn(move || {
            let mut answers = answers.into_iter().peekable();
            for _ in 0..1000 {
                if let Some((mut connection, _)) = listener.accept(Duration::from_secs(5)).map_err(io::Error::other)? {
                    let asked = connection.receive().map_err(io::Error::other)?.unwrap_or_default();
                    let answer = answers.next().unwrap_or_default().to_string();
                    connection.send(answer.as_bytes()).map_err(io::Error::other)?;
                    if answers.peek().is_none() {
                        return Ok(serde_json::from_slice(&asked)?);
                    }
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(io::Error::other("nobody asked"))
        });
        Self { directory, thread: Some(thread) }
    }

    fn asked(&mut self) -> Value {
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.directory));
    }
}

#[test]
fn mode_and_release_ask_and_tell_the_answer() {
    let mut guard = Guard::new("mode", json!({ "ok": true, "before": "log", "mode": "enforce" }));
    let ran = imara(&[&"mode", &"enforce", &"--run-dir", &guard.directory]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "mode enforce (before: log)\n", ""));
    assert_eq!(guard.asked(), json!({ "command": "mode", "mode": "enforce" }));

    let mut guard = Guard::new("release", json!({ "ok": true, "released": 12 }));
    let ran = imara(&[&"release", &"--run-dir", &guard.directory]);
    assert!(ran.out.starts_with("released 12 files"), "{ran:?}");
    assert_eq!((ran.code, guard.asked()), (Some(0), json!({ "command": "release" })));
}

#[test]
fn status_passes_the_answer_on_and_the_environment_names_the_guard() {
    let answer = json!({ "mode": "log", "pid": 7, "mounts": [] });
    let mut guard = Guard::new("status", answer.clone());
    let mut command = crate::fixture::command();
    let output = command.env("IMARA_RUN_DIR", &guard.directory).args(["status", "--json"]).output().unwrap();
    let ran = Ran::from(output);
    assert_eq!((ran.code, ran.json()), (Some(0), vec![answer]));
    assert_eq!(guard.asked(), json!({ "command": "status" }));

    for (guarded, code) in [(true, 0), (false, 1)] {
        let mounts = json!([{ "path": "/a", "guarded": true }, { "path": "/b", "guarded": guarded }]);
        for arguments in [&[][..], &["--json"]] {
            let guard = Guard::new("gone", json!({ "mode": "log", "mounts": mounts }));
            let ran: Ran = crate::fixture::command()
                .arg("status")
                .args(arguments)
                .arg("--run-dir")
                .arg(&guard.directory)
                .output()
                .unwrap()
                .into();
            assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{arguments:?}");
        }
    }

    let guard = Guard::new("text", json!({ "mode": "log", "pid": 7 }));
    let ran = imara(&[&"status", &"--run-dir", &guard.directory]);
    assert!(ran.out.starts_with("mode        log\n"), "{}", ran.out);
}

#[test]
fn a_refusal_of_the_guard_is_told_and_ends_with_two() {
    let guard = Guard::new("refusal", json!({ "ok": false, "error": "the guard is too busy; ask again" }));
    let ran = imara(&[&"mode", &"log", &"--run-dir", &guard.directory]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), "imara: the guard refuses: the guard is too busy; ask again\n"));
}

#[test]
fn a_guard_that_is_busy_is_asked_again() {
    let busy = json!({ "ok": false, "busy": true, "error": "too many clients are served; ask again" });
    let mut guard = Guard::answering("busy", vec![busy.clone(), busy, json!({ "ok": true, "released": 1 })]);
    let ran = imara(&[&"release", &"--run-dir", &guard.directory]);
    assert!(ran.code == Some(0) && ran.out.starts_with("released 1 "), "{ran:?}");
    assert_eq!(guard.asked(), json!({ "command": "release" }));
}
