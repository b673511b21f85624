//! `xtask soak`: real tools at work in a guarded file system for a long time, beside a file system that nobody guards.
//!
//! Cargo compiles a crate of ours with all it depends on, git commits, clones and checks out, sqlite writes, packages are
//! built, downloaded and unpacked, and a log is rotated. Nobody may be refused, the guard's memory must stay within bounds, and opening a
//! known file may never take long: [`probe`] says when that counts. At the end the guard is stopped, and killed as
//! systemd does with a service that gives no sign of life: whoever waited must go on, and the next guard must guard.

mod probe;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::guard::Guard;
use crate::interrupt;
use crate::print::print_line;
use crate::race::{Kind, Place};
use crate::run::wait_until;
use crate::scratch;

use self::probe::Stalls;
use self::tools::Work;

/// How long a soak is unless it is told.
const LONG: u64 = 900;

/// In this time each tool comes to its end, on a machine that is busy with nothing else.
const WHOLE_ROUNDS: Duration = Duration::from_secs(300);

/// What the guard may have in memory, in KiB, and by how much that may grow in the second half.
const MEMORY: u64 = 128 << 10;
const GROWTH: u64 = 32 << 10;

/// As `WatchdogSec=` of the service, or a little more.
const WATCHDOG: Duration = Duration::from_secs(16);

/// How long it may take until a killed guard's openers go on, and until the next one guards.
const RELEASED: Duration = Duration::from_secs(60);

/// What a soak fails on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    AllThatIsWrong,
    /// On a machine that is busy with other things, that something took long says nothing.
    NotOnStalls,
}

const POLICY: &str = "appraise fowner=0\n";

/// Runs it, for so many seconds.
pub(crate) fn run_soak(arguments: &[String]) -> Result<()> {
    let (mut seconds, mut verdict) = (LONG, Verdict::AllThatIsWrong);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--seconds" => seconds = words.next().context("--seconds: how many?")?.parse().context("--seconds")?,
            "--busy" => verdict = Verdict::NotOnStalls,
            _ => bail!("options: --seconds N, --busy (stalls are told, and not judged)"),
        }
    }
    scratch::root_only("soak")?;
    let imarad = std::env::current_exe()?.with_file_name("imarad");
    ensure!(imarad.exists(), "{} is not built (run: cargo build --package imarad)", imarad.display());
    scratch::own_mounts()?;
    interrupt::watch()?;
    Place::with(Kind::Ext4, |guarded| {
        Place::with(Kind::Ext4, |plain| soak(guarded, &plain.mount(), &imarad, Duration::from_secs(seconds), verdict))
    })
}

fn soak(place: &Place, plain: &Path, imarad: &Path, time: Duration, verdict: Verdict) -> Result<()> {
    let mount = place.mount();
    // Under guard: what is made now is labelled when its writer closes.
    let mut guard = Guard::start(imarad, place.beside(), POLICY, &mount)?;
    let (known, beside) = (probe::files(&mount)?, probe::files(plain)?);
    let over = AtomicBool::new(false);
    let (stalls, done, memory) = std::thread::scope(|scope| {
        let probes = [scope.spawn(|| probe::guarded(&known, &over)), scope.spawn(|| probe::plain(&beside, &over))];
        let tools = tools::ALL.map(|tool| {
            let (mount, over) = (&mount, &over);
            scope.spawn(move || tools::work(tool, mount, over))
        });
        let memory = watch(&mut guard, time);
        over.store(true, Ordering::Relaxed);
        let done: Vec<Result<Work>> =
            tools.into_iter().map(|tool| tool.join().unwrap_or_else(|_| bail!("a tool's thread failed"))).collect();
        let [guarded, plain] = probes.map(|probe| probe.join().unwrap_or_default());
        (Stalls { guarded, plain }, done, memory)
    });
    for tool in &done {
        match tool {
            Ok(work) => print_line!("  {}", work.said)?,
            Err(error) => print_line!("  FAILED: {error:#}")?,
        }
    }
    let status = guard.status()?;
    let counter = |name: &str| status.pointer(&format!("/counters/{name}")).and_then(Value::as_u64);
    print_line!("  the guard: {}", status.get("counters").map(ToString::to_string).unwrap_or_default())?;
    print_line!("  {}", stalls.report())?;
    let memory = memory?;
    print_line!(
        "  memory of the guard: {} KiB in the middle, {} at the end, {} at most",
        memory.0,
        memory.1,
        memory.2
    )?;
    for tool in done {
        let Work { said, idle } = tool?;
        ensure!(!idle || time < WHOLE_ROUNDS, "a tool that never comes to its end shows nothing: {said}");
    }
    ensure!(counter("denied") == Some(0), "somebody was refused; {}", guard.last_words());
    ensure!(memory.2 <= MEMORY && memory.1 <= memory.0 + GROWTH, "the guard takes too much memory");
    let judged = verdict == Verdict::AllThatIsWrong;
    ensure!(
        !judged || stalls.counted().is_empty(),
        "opening a known file took longer than {} ms",
        probe::STALL.as_millis()
    );
    outage(guard, place, imarad, &known)
}

/// Waits until it is time to end; what the guard has in memory in the middle, at the end, and at most, in KiB.
fn watch(guard: &mut Guard, time: Duration) -> Result<(u64, u64, u64)> {
    let begin = Instant::now();
    let (mut middle, mut last, mut most) = (0, 0, 0);
    while begin.elapsed() < time {
        std::thread::sleep(Duration::from_millis(500));
        interrupt::check()?;
        if guard.has_ended()? {
            bail!("the guard has ended by itself; {}", guard.last_words());
        }
        last = resident(guard.id())?;
        most = most.max(last);
        if begin.elapsed() < time / 2 {
            middle = last;
        }
    }
    Ok((middle, last, most))
}

/// `VmRSS` of a process, in KiB.
fn resident(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.context("no VmRSS")?.parse().context("VmRSS")
}

/// The guard stands still; after a while it is killed and started again, as systemd does.
fn outage(mut guard: Guard, place: &Place, imarad: &Path, known: &[PathBuf]) -> Result<()> {
    let file = known.first().context("no file")?.clone();
    let bad = place.mount().join("bad");
    let id = Pid::from_raw(i32::try_from(guard.id())?);
    kill(id, Signal::SIGSTOP)?;
    // Asked about for sure: nobody has opened it yet.
    let (fresh, opened) = (place.mount().join("probe-fresh"), std::sync::mpsc::channel());
    std::thread::spawn(move || opened.0.send(fs::read(&fresh)));
    std::thread::sleep(WATCHDOG);
    let waited = opened.1.try_recv().is_err();
    guard.kill();
    let begin = Instant::now();
    let released = opened.1.recv_timeout(RELEASED).context("an opener still waits for a guard that was killed")?;
    let after = begin.elapsed();
    ensure!(waited, "nobody waited for a guard that stood still, so this has shown nothing");
    ensure!(released.is_ok(), "an opener was refused: {released:?}");
    drop(guard);
    // Nobody guards now.
    fs::write(&bad, "tampered with")?;
    let guard = wait_until(RELEASED, || Ok(Guard::start(imarad, place.beside(), POLICY, &place.mount()).ok()))?;
    let guard = guard.context("no guard can be started again")?;
    ensure!(fs::read(&file).is_ok(), "a good file is refused by the next guard");
    ensure!(fs::read(&bad).is_err(), "a file that was tampered with meanwhile is let in by the next guard");
    print_line!(
        "  the guard stood still for {} s; its opener went on {:.1} ms after it was killed, and the next one guards",
        WATCHDOG.as_secs(),
        after.as_secs_f64() * 1000.0
    )?;
    guard.end()
}
