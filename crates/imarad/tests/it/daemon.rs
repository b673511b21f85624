//! A daemon under test: started, listened to, told things, ended. It never outlives its watchdog.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use imara_linux::control::Connection;
use rustix::process::{Pid, Signal, kill_process};

/// After this many seconds a daemon is killed, whatever it does.
const LIMIT: u32 = 400;

/// How long anything is waited for that should come at once, however busy the machine is with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// All files of root, on every file system.
pub(crate) const EVERYTHING_OF_ROOT: &str = "appraise fowner=0\n";

/// A directory for one daemon's socket, lock and policy; gone when dropped.
#[derive(Debug)]
pub(crate) struct RunDir(PathBuf);

impl RunDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("imarad-it-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A policy file in it.
    pub(crate) fn policy(&self, text: &str) -> PathBuf {
        let path = self.0.join("policy");
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The command line of a daemon.
pub(crate) fn command(run_dir: &Path, mode: &str, policy: &Path, mounts: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imarad"));
    command.args(["--mode", mode, "--policy"]).arg(policy).arg("--run-dir").arg(run_dir);
    command.arg("--state-dir").arg(run_dir.join("state")).args(mounts);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a daemon that is expected not to start; what it said.
pub(crate) fn refused_start(command: &mut Command) -> Output {
    let child = command.spawn().unwrap();
    let _watchdog = Watchdog::start(&child);
    child.wait_with_output().unwrap()
}

/// What is done with the daemon's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// Read as it comes.
    Read,
    /// Left in the pipe, which fills up.
    Unread,
    /// The pipe has no reader.
    Gone,
    /// Whoever made the command has seen to it.
    Elsewhere,
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    run_dir: Option<RunDir>,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    // Kept open, unread, until the daemon has ended.
    unread: Option<std::process::ChildStderr>,
    ended: bool,
    watchdog: Watchdog,
}

impl Daemon {
    /// Starts one for all files of root and waits until every mark is in place.
    pub(crate) fn start(mode: &str, mounts: &[&Path]) -> Self {
        Self::with(RunDir::new(), mode, EVERYTHING_OF_ROOT, mounts, Log::Read)
    }

    /// The same, with everything to choose.
    pub(crate) fn with(run_dir: RunDir, mode: &str, policy: &str, mounts: &[&Path], log: Log) -> Self {
        let policy = run_dir.policy(policy);
        let command = command(run_dir.path(), mode, &policy, mounts);
        Self::run(run_dir, command, log)
    }

    /// One that has its state in this directory.
    pub(crate) fn with_state(mode: &str, state: &Path, words: &[&str], mount: &Path) -> Self {
        let run_dir = RunDir::new();
        let policy = run_dir.policy(EVERYTHING_OF_ROOT);
        let mut command = Command::new(env!("CARGO_BIN_EXE_imarad"));
        command.args(["--mode", mode, "--policy"]).arg(policy).arg("--run-dir").arg(run_dir.path());
        command.arg("--state-dir").arg(state).args(words).arg(mount);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::run(run_dir, command, Log::Read)
    }

    /// Runs a command that is, or becomes, a daemon.
    ///
    /// The kernel gives the device number of a file system that has gone to the next one, perhaps that of another test,
    /// before the guard of the old one has heard that it has gone: then this waits.
    pub(crate) fn run(mut run_dir: RunDir, mut command: Command, log: Log) -> Self {
        let end = Instant::now() + PATIENCE;
        loop {
            match Self::attempt(run_dir, &mut command, log) {
                Ok(daemon) => return daemon,
                Err((again, said)) => {
                    assert!(said.contains("guarded already") && Instant::now() < end, "the daemon said {said}");
                    run_dir = again;
                }
            }
        }
    }

    /// One that has said `guarding …`, or what it said instead.
    fn attempt(run_dir: RunDir, command: &mut Command, log: Log) -> Result<Self, (RunDir, String)> {
        let mut child = command.spawn().unwrap();
        let watchdog = Watchdog::start(&child);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stderr = child.stderr.take();
        let (reader, unread) = match log {
            Log::Read => {
                let stderr = stderr.unwrap();
                let heard = Arc::clone(&lines);
                let reader = std::thread::spawn(move || {
                    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                        heard.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                    }
                });
                (Some(reader), None)
            }
            Log::Unread => (None, stderr),
            Log::Gone | Log::Elsewhere => {
                drop(stderr);
                (None, None)
            }
        };
        let stdout = child.stdout.take();
        let mut daemon = Self { child, run_dir: Some(run_dir), lines, reader, unread, ended: false, watchdog };
        if let Some(stdout) = stdout {
            let mut first = String::new();
            BufReader::new(stdout).read_line(&mut first).unwrap();
            if !first.starts_with("guarding ") {
                drop(daemon.child.kill());
                daemon.wait();
                let said = format!("{first:?} and {:#?}", daemon.all_lines());
                return Err((daemon.run_dir.take().unwrap(), said));
            }
        }
        Ok(daemon)
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.run_dir.as_ref().unwrap().path()
    }

    /// What it has logged up to now.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits until it has logged a line with `text` in it.
    pub(crate) fn says(&self, text: &str) -> String {
        let found = eventually(|| self.lines().into_iter().find(|line| line.contains(text)));
        found.unwrap_or_else(|| panic!("no line with {text:?} in {:#?}", self.lines()))
    }

    /// Sends a command over the control socket; the answer.
    pub(crate) fn ask(&self, command: &str) -> serde_json::Value {
        let mut connection = Connection::connect(&self.run_dir().join("control"), PATIENCE).unwrap();
        // Whoever finds no room is told so before he has asked, and may find the connection closed; the words are there.
        let sent = connection.send(command.as_bytes());
        match connection.receive() {
            Ok(Some(answer)) => serde_json::from_slice(&answer).unwrap(),
            nothing if sent.is_ok() => panic!("the daemon answered with {nothing:?}"),
            _ => serde_json::json!({ "ok": false, "busy": true }),
        }
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        self.ask(r#"{"command":"status"}"#)
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Does something while it stands still, so that it can have no part in that.
    pub(crate) fn stopped<T>(&self, something: impl FnOnce() -> T) -> T {
        self.signal(Signal::STOP);
        let stands = eventually(|| {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
            stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T ")).then_some(())
        });
        let done = something();
        self.signal(Signal::CONT);
        assert!(stands.is_some());
        done
    }

    /// From now on its log has no reader.
    pub(crate) fn leave_log(&mut self) {
        self.unread = None;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, and how it was.
    pub(crate) fn wait(&mut self) -> Option<ExitStatus> {
        let status = eventually(|| self.child.try_wait().unwrap());
        self.ended = status.is_some();
        status
    }

    /// Ends it by a signal that stands for a fault. The handler of Rust's runtime looks for an overflow of the stack,
    /// gives the signal back to the kernel if it finds none, and expects that the fault comes again.
    pub(crate) fn crash(&mut self, fault: Signal) -> Option<ExitStatus> {
        let status = eventually(|| {
            self.signal(fault);
            self.child.try_wait().unwrap()
        });
        self.ended = status.is_some();
        status
    }

    /// Ends it with SIGTERM, which must be a success; all it has ever logged, and its run directory for the next one.
    pub(crate) fn stop_for_next(mut self) -> (Vec<String>, RunDir) {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.and_then(|status| status.code()), Some(0), "after SIGTERM, having said {:#?}", self.lines());
        let run_dir = self.run_dir.take().unwrap();
        (self.all_lines(), run_dir)
    }

    /// The same, if there is no next one.
    pub(crate) fn stop(self) -> Vec<String> {
        self.stop_for_next().0
    }

    /// After its end: all it has ever logged.
    pub(crate) fn all_lines(&mut self) -> Vec<String> {
        assert!(self.ended, "the daemon still runs");
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.lines()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.child.kill());
            drop(self.child.wait());
        }
        drop(self.unread.take());
        if std::thread::panicking() {
            let lines = self.lines.lock().map(|lines| lines.clone()).unwrap_or_default();
            println!("the daemon's last lines: {:#?}", lines.get(lines.len().saturating_sub(8)..));
        }
        self.watchdog.call_off();
    }
}

/// Kills a daemon after [`LIMIT`] seconds, or when the process that tests it dies, unless called off before.
///
/// It is a process of its own that opens nothing, so no guard can keep it waiting.
#[derive(Debug)]
pub(crate) struct Watchdog(Child);

impl Watchdog {
    pub(crate) fn start(guarded: &Child) -> Self {
        let script = format!("read -t {LIMIT} line && [ \"$line\" = off ] || kill -9 {}", guarded.id());
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(bash.current_dir("/").spawn().unwrap())
    }

    /// For a daemon that has ended and been waited for: its number may belong to somebody else soon.
    fn call_off(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            drop(stdin.write_all(b"off\n"));
        }
        drop(self.0.wait());
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.call_off();
    }
}

/// Tries until there is something, for [`PATIENCE`] at most.
pub(crate) fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = attempt();
        if found.is_some() || Instant::now() > end {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One audit line, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) name: String,
    pub(crate) inode: String,
    pub(crate) operation: String,
    pub(crate) cause: String,
    pub(crate) action: String,
}

/// The audit lines among what a daemon said.
pub(crate) fn complaints(lines: &[String]) -> Vec<Complaint> {
    let field = |line: &str, key: &str| {
        let value = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key}= in {line:?}")).trim_matches('"').to_owned()
    };
    let audit = lines.iter().filter(|line| line.contains(" cause=") && !line.contains(" op=invalid_pcr "));
    audit
        .map(|line| Complaint {
            name: field(line, "name"),
            inode: field(line, "ino"),
            operation: field(line, "op"),
            cause: field(line, "cause"),
            action: field(line, "action"),
        })
        .collect()
}
