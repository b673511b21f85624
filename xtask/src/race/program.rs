//! A small static program that ends with a number, and the processes that execute it.
//!
//! They are processes of their own: whoever forks has open for a moment what the other threads of his process have open,
//! and a file would be open for writing longer than its phase says.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result};

use super::dice::Dice;
use crate::print::print_line;
use crate::run::apart;

/// The number that the good program ends with.
pub(crate) const GOOD: i32 = 42;

/// The program's length in a file: the rest is padding, which is part of what is labelled.
const LENGTH: usize = 4096 + 100;

/// How it begins, as each program does.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// Where the code is: behind the header (64 bytes) and one program header (56).
const CODE: usize = 120;

/// `mov $42, %edi; mov $60, %eax; syscall`, and what the header calls the machine.
#[cfg(target_arch = "x86_64")]
const EXIT: ([u8; 12], u8) = ([0xbf, 42, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05], 62);

/// `mov x0, #42; mov x8, #93; svc #0`.
#[cfg(target_arch = "aarch64")]
const EXIT: ([u8; 12], u8) = ([0x40, 0x05, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4], 183);

/// The good program.
pub(crate) fn good() -> Vec<u8> {
    let (code, machine) = EXIT;
    let mut file = vec![0x5a; LENGTH];
    let fields: [(usize, &[u8]); 12] = [
        (0, &[0; CODE]),
        (0, MAGIC),
        // 64 bits, little-endian, version 1; executable, machine, version 1.
        (4, &[2, 1, 1]),
        (16, &[2, 0, machine, 0, 1]),
        // Entry, place of the program headers, length of the header, length and number of program headers.
        (24, &[0x78, 0, 0x40]),
        (32, &[64]),
        (52, &[64, 0, 56, 0, 1]),
        // To be loaded, readable and executable: the beginning of the file, at 0x400000, in pages of 4 KiB.
        (64, &[1, 0, 0, 0, 5]),
        (82, &[0x40, 0, 0, 0, 0, 0, 0, 0x40]),
        (96, &[132, 0, 0, 0, 0, 0, 0, 0, 132]),
        (113, &[0x10]),
        (CODE, &code),
    ];
    for (start, bytes) in fields {
        if let Some(field) = file.get_mut(start..start + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }
    file
}

/// Makes a program another one, which still ends at once if it is executed.
pub(super) fn tamper(program: &mut Vec<u8>, dice: &mut Dice) {
    // mov $43, %edi; movk in place of mov is as good as any other change.
    let code = if cfg!(target_arch = "x86_64") { CODE + 1 } else { CODE };
    match dice.below(4) {
        0 => program.get_mut(code).into_iter().for_each(|byte| *byte ^= if code == CODE { 0x20 } else { 1 }),
        1 => program.last_mut().into_iter().for_each(|byte| *byte ^= 1),
        2 => program.truncate(LENGTH - 1 - dice.below(3000)),
        _ => program.resize(LENGTH + 1 + dice.below(3000), 0),
    }
}

/// What came of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It ran and ended with this number, or with minus that of a signal.
    Ended(i32),
    /// It did not begin: the number of the error.
    Refused(i32),
}

/// A process that executes what it is told to.
#[derive(Debug)]
pub(super) struct Runner {
    child: Child,
    asked: ChildStdin,
    told: BufReader<ChildStdout>,
}

impl Runner {
    /// To be called by a thread that outlives it, before anybody has a file open for writing.
    pub(super) fn start() -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        apart(command.args(["race", "--runner"])).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot run /proc/self/exe")?;
        let (asked, told) = (child.stdin.take(), child.stdout.take());
        let asked = asked.context("a runner has no standard input")?;
        Ok(Self { child, asked, told: BufReader::new(told.context("a runner has no standard output")?) })
    }

    /// Has a file executed.
    pub(super) fn run(&mut self, path: &Path) -> io::Result<Ran> {
        self.asked.write_all(path.as_os_str().as_bytes())?;
        self.asked.write_all(b"\n")?;
        let mut line = String::new();
        self.told.read_line(&mut line)?;
        let number = |text: &str| text.parse().map_err(io::Error::other);
        match line.trim_end().split_once(' ') {
            Some(("ended", status)) => Ok(Ran::Ended(number(status)?)),
            Some(("refused", error)) => Ok(Ran::Refused(number(error)?)),
            _ => Err(io::Error::other(format!("the runner said {line:?}"))),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a runner does: executes the files that it reads the names of.
pub(super) fn serve() -> Result<()> {
    for path in io::stdin().lock().lines() {
        let mut command = Command::new(path?);
        match command.env_clear().stdin(Stdio::null()).status() {
            Ok(status) => print_line!("ended {}", status.code().unwrap_or(-status.signal().unwrap_or_default()))?,
            Err(error) => print_line!("refused {}", error.raw_os_error().unwrap_or_default())?,
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_program_ends_with_its_number_and_so_does_no_other() {
        let directory = std::env::temp_dir().join(format!("imara-race-program-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let mut dice = Dice::new(1);
        let run = |name: &str, content: &[u8]| {
            // Another process writes it: see above.
            let path = directory.join(name);
            let mut install = Command::new("dd");
            install.arg(format!("of={}", path.display())).stdin(Stdio::piped()).stderr(Stdio::null());
            let mut child = install.spawn().unwrap();
            child.stdin.take().unwrap().write_all(content).unwrap();
            assert!(child.wait().unwrap().success());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Command::new(&path).status().unwrap()
        };
        assert_eq!(run("good", &good()).code(), Some(GOOD));
        for number in 0..8 {
            let mut bad = good();
            tamper(&mut bad, &mut dice);
            assert_ne!(bad, good());
            run(&number.to_string(), &bad);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
