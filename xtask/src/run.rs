//! Other programs, run to their end. None is waited for without a limit, and Ctrl-C at the terminal does not reach them:
//! a program that ends because of it would look like a check that failed.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use imara_linux::child::killed_with_us;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::interrupt;

/// How long a program may take: far longer than any does, on a machine that is busy with other things too.
const LIMIT: Duration = Duration::from_secs(300);

/// How long a program may still take after Ctrl-C: what only takes a moment, such as mounting, is not left half-way.
const GRACE: Duration = Duration::from_secs(1);

/// How long a killed program may take to be gone.
const DEATH: Duration = Duration::from_secs(5);

/// How often is asked whether something has come about.
const BEAT: Duration = Duration::from_millis(10);

/// Has the program run in a process group of its own, without a standard input, and killed if we are.
pub(crate) fn apart(command: &mut Command) -> &mut Command {
    killed_with_us(command.process_group(0).stdin(Stdio::null()))
}

/// Runs a program to its end without a word, and fails with what it said if it fails.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    run_within(command, LIMIT)
}

/// The same for one that may take longer, or must not take that long.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<String> {
    let piped = apart(command).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let (sender, end) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let (begin, mut interrupted) = (Instant::now(), None);
    let output = loop {
        if let Ok(output) = end.recv_timeout(BEAT) {
            break output.with_context(|| format!("cannot hear {command:?}"))?;
        }
        if interrupt::happened() {
            interrupted.get_or_insert_with(Instant::now);
        }
        if begin.elapsed() > limit || interrupted.is_some_and(|since| since.elapsed() > GRACE) {
            // It may have ended by itself just now.
            let _ = killpg(group, Signal::SIGKILL);
            let gone = end.recv_timeout(DEATH).is_ok();
            interrupt::check()?;
            let fate = if gone { "killed" } else { "killed, but still there" };
            bail!("{command:?} did not end within {} s ({fate})", limit.as_secs_f64());
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks `step` again and again until it has an answer; absent if it has none after so long.
pub(crate) fn wait_until<T>(patience: Duration, mut step: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = step()? {
            return Ok(Some(answer));
        }
        interrupt::check()?;
        if begin.elapsed() >= patience {
            return Ok(None);
        }
        std::thread::sleep(BEAT);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_heard_and_its_failure_told() {
        assert_eq!(run(&mut shell("echo good")).unwrap(), "good\n");
        let error = run(&mut shell("echo bad >&2; exit 3")).unwrap_err().to_string();
        assert!(error.ends_with("exit status: 3: bad"), "{error}");
    }

    #[test]
    fn a_program_is_in_a_process_group_of_its_own() {
        run(&mut shell(r#"set -- $(cat /proc/$$/stat); test "$5" = $$"#)).unwrap();
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_with_all_that_it_started() {
        // The second sleep holds the pipes too: that they close shows that it is gone.
        let error = run_within(&mut shell("sleep 600 & sleep 600"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().ends_with("did not end within 0.05 s (killed)"), "{error}");
    }
}
