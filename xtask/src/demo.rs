//! `make demo`: the whole idea on real files, in one screen.
//!
//! Every sentence that is printed has been checked; the first that does not hold ends the demo with a failure.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use imara_linux::child::killed_with_us;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt;
use crate::print::print_line;
use crate::scratch::{Budget, Copied, Scratch, binaries, copy_one, copy_tree, own_mounts, root_only, run};

/// Programs that are run from the guarded file system, in a root directory of their own.
const PROGRAMS: [&str; 12] = ["sh", "bash", "ls", "cat", "grep", "sed", "sort", "wc", "head", "sha256sum", "cp", "tar"];

/// How long the guard may take to say something that it will say.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the whole demo may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the demo.
pub(crate) fn run_demo(_: &[String]) -> Result<()> {
    root_only("demo")?;
    let binaries = binaries()?;
    // Before any thread: those that are there keep seeing the host's mounts.
    own_mounts()?;
    interrupt::watch()?;
    let begin = Instant::now();
    let scratch = Scratch::new("demo", 2048)?;
    let demo = Demo { imara: binaries.join("imara"), mount: scratch.mount(), run_dir: scratch.beside("run") };
    demo.play()?;
    let took = begin.elapsed();
    ensure!(
        took < LIMIT,
        "everything turned out as said, but it took {:.1} s, expected less than {} s",
        took.as_secs_f64(),
        LIMIT.as_secs()
    );
    print_line!(
        "\nEverything turned out as said ({:.1} s). Next: README.md, 'A tour in five minutes'.",
        took.as_secs_f64()
    )
}

struct Demo {
    imara: PathBuf,
    mount: PathBuf,
    run_dir: PathBuf,
}

impl Demo {
    fn play(&self) -> Result<()> {
        self.label_all()?;
        let guard = Guard::start(self, "enforce")?;
        say(3, &format!("imara guard: {}", guard.announced.replace(&self.mount.display().to_string(), "MOUNT")))?;
        self.programs_run()?;
        self.edit_is_followed()?;
        guard.end()?;

        let victims = self.tamper()?;
        say(6, "The guard is stopped; somebody changes the disk behind its back:")?;
        for victim in &victims {
            print_line!("       {:<22} {}", victim.name, victim.deed)?;
        }
        let mut guard = Guard::start(self, "enforce")?;
        say(7, "Guarded again (enforce). Each of them is refused, with its cause:")?;
        for victim in &victims {
            self.refused(&mut guard, victim)?;
        }
        let (good, bad) = self.open_all()?;
        ensure!(bad == victims.len(), "{bad} files are refused, expected {}", victims.len());
        say(8, &format!("All the others still work: {good} files can be read, and only those {bad} cannot"))?;
        self.other_modes(&mut guard, victims.len())?;
        guard.end()?;
        self.imara(&["verify"], &[&self.mount])?;
        say(11, "imara verify: every file is what its label says")
    }

    fn label_all(&self) -> Result<()> {
        self.furnish()?;
        let Copied { files, bytes } = self.count()?;
        ensure!(files >= 1000, "only {files} files could be copied, expected at least 1,000");
        let size = bytes >> 20;
        say(1, &format!("An ext4 file system of its own: {files} real files of this host, {size} MiB"))?;
        let summary = self.imara(&["label"], &[&self.mount])?;
        say(2, &format!("imara label: {}", summary.trim().lines().last().unwrap_or_default()))
    }

    /// What log and fix do about so many files that are refused in mode enforce.
    fn other_modes(&self, guard: &mut Guard, victims: usize) -> Result<()> {
        self.imara(&["mode", "log"], &[])?;
        guard.forget();
        let (_, bad) = self.open_all()?;
        let tolerated = guard.wait_for(victims, "action=allowed")?;
        ensure!(bad == 0, "{bad} files are refused in mode log, expected none");
        say(9, &format!("imara mode log: nothing is refused, and {tolerated} lines say what would be"))?;

        self.imara(&["mode", "fix"], &[])?;
        guard.forget();
        let (_, bad) = self.open_all()?;
        let repaired = guard.wait_for(victims, "action=repaired")?;
        ensure!(bad == 0, "{bad} files are refused in mode fix, expected none");
        self.imara(&["mode", "enforce"], &[])?;
        let (good, bad) = self.open_all()?;
        ensure!(bad == 0, "{bad} files are refused after the repair, expected none");
        say(10, &format!("imara mode fix: {repaired} labels are written anew; enforce again: all {good} files open"))
    }

    /// Copies programs with all they need, then libraries, scripts and data.
    fn furnish(&self) -> Result<()> {
        for directory in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/share", "srv", "tmp", "dev"] {
            fs::create_dir_all(self.mount.join(directory))?;
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            std::os::unix::fs::symlink(format!("usr/{link}"), self.mount.join(link))?;
        }
        let everything = Budget { files: usize::MAX, bytes: u64::MAX };
        for program in PROGRAMS {
            let path = which(program)?;
            for needed in libraries(&path)?.into_iter().chain([path]) {
                let to = self.place(&needed);
                if !to.exists() {
                    let real = fs::canonicalize(&needed)?;
                    copy_one(&real, &to, everything)?;
                }
            }
        }
        for (tree, files) in [("/usr/bin", 400), ("/usr/sbin", 200), ("/usr/lib", 1200), ("/usr/share", 1200)] {
            interrupt::check()?;
            let budget = Budget { files, bytes: 80 << 20 };
            copy_tree(Path::new(tree), &self.mount.join(&tree[1..]), budget)?;
        }
        self.write("usr/bin/hello", "#!/bin/sh\necho 'hello from a script'\n")?;
        fs::set_permissions(self.mount.join("usr/bin/hello"), fs::Permissions::from_mode(0o755))?;
        self.write("srv/prices", "apples 3\npears 4\n")?;
        self.write("srv/notes", "first line\n")
    }

    /// How many files there are, and how large they are together.
    fn count(&self) -> Result<Copied> {
        let mut copied = Copied::default();
        self.each_file(|path| {
            copied.files += 1;
            copied.bytes += fs::symlink_metadata(path)?.len();
            Ok(())
        })?;
        Ok(copied)
    }

    /// Where a file of the host is in the demo's root directory. `/lib` and the like are links to `/usr/lib` there.
    fn place(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if relative.starts_with("usr") { self.mount.join(relative) } else { self.mount.join("usr").join(relative) }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.mount.join(name), text).with_context(|| format!("cannot write {name}"))
    }

    fn imara(&self, words: &[&str], paths: &[&Path]) -> Result<String> {
        interrupt::check()?;
        run(Command::new(&self.imara).args(words).args(paths).env("IMARA_RUN_DIR", &self.run_dir))
    }

    /// Runs a program of the guarded file system, with the loader and the libraries of that file system.
    fn program(&self, words: &[&str]) -> Result<String> {
        interrupt::check()?;
        run(Command::new("chroot").arg(&self.mount).args(words))
    }

    fn programs_run(&self) -> Result<()> {
        for program in PROGRAMS {
            if program != "sh" {
                self.program(&[program, "--version"])?;
            }
        }
        let said = self.program(&["hello"])?;
        ensure!(said == "hello from a script\n", "the script said {said:?}");
        say(
            4,
            &format!("{} programs and a script run from it: loader, libraries, interpreter and all", PROGRAMS.len()),
        )?;
        Ok(())
    }

    fn edit_is_followed(&self) -> Result<()> {
        let notes = self.mount.join("srv/notes");
        let before = self.label(&notes)?;
        self.program(&[
            "sh",
            "-c",
            "echo 'second line' >> /srv/notes && cp /usr/bin/wc /usr/bin/count && count -l /srv/notes",
        ])?;
        let text = fs::read_to_string(&notes)?;
        ensure!(text == "first line\nsecond line\n", "the notes say {text:?}");
        let after = self.label(&notes)?;
        ensure!(before != after, "the label was not renewed: {after}");
        self.imara(&["verify"], &[&notes, &self.mount.join("usr/bin/count")])?;
        say(5, "A file is edited and a new program is copied in and run: their labels follow")?;
        print_line!("       srv/notes  {} → {}", short(&before), short(&after))?;
        Ok(())
    }

    /// What `imara inspect` says of the label.
    fn label(&self, file: &Path) -> Result<String> {
        let said = self.imara(&["inspect", "--json"], &[file])?;
        let start = said.find("sha256:").context("imara inspect shows no sha256 label")?;
        Ok(said[start..].chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == ':').collect())
    }

    fn tamper(&self) -> Result<[Victim; 4]> {
        let program = self.mount.join("usr/bin/sort");
        let before = fs::metadata(&program)?;
        let mut file = File::options().read(true).write(true).open(&program)?;
        let place = SeekFrom::Start(before.len() / 2);
        let mut byte = [0];
        file.seek(place)?;
        file.read_exact(&mut byte)?;
        file.seek(place)?;
        file.write_all(&[byte[0] ^ 1])?;
        file.set_modified(before.modified()?)?;
        drop(file);
        let after = fs::metadata(&program)?;
        ensure!(
            (after.len(), after.mtime(), after.mtime_nsec()) == (before.len(), before.mtime(), before.mtime_nsec())
        );
        self.write("usr/bin/hello", "#!/bin/sh\necho 'hello from the intruder'\n")?;
        self.write("srv/prices", "apples 300\npears 4\n")?;
        run(Command::new("setfattr").args(["-x", "security.ima"]).arg(self.mount.join("usr/bin/head")))?;
        Ok([
            Victim::new("usr/bin/sort", "one bit of a program, same size, same time", "invalid-hash", true),
            Victim::new("usr/bin/hello", "a script", "invalid-hash", true),
            Victim::new("srv/prices", "a data file", "invalid-hash", false),
            Victim::new("usr/bin/head", "its label stripped, nothing else", "missing-hash", true),
        ])
    }

    fn refused(&self, guard: &mut Guard, victim: &Victim) -> Result<()> {
        guard.forget();
        let file = self.mount.join(victim.name);
        let opened = File::open(&file);
        ensure!(opened.is_err(), "{} could be opened, expected it to be refused", victim.name);
        if victim.program {
            let executed = Command::new(&file).stdin(Stdio::null()).output();
            ensure!(executed.is_err(), "{} could be executed, expected it to be refused", victim.name);
        }
        let line = guard.line_with(&format!("{}\"", victim.name))?;
        ensure!(line.contains(&format!("cause={} ", victim.cause)), "expected cause={}: {line}", victim.cause);
        let from = line.find("op=").unwrap_or_default();
        print_line!("       {}", line[from..].replace(&self.mount.display().to_string(), "…"))?;
        Ok(())
    }

    /// Opens every file; how many could be opened and how many not.
    fn open_all(&self) -> Result<(usize, usize)> {
        let (mut good, mut bad) = (0, 0);
        self.each_file(|path| {
            match File::open(path) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
            Ok(())
        })?;
        Ok((good, bad))
    }

    /// Hands every regular file to `each`.
    fn each_file(&self, mut each: impl FnMut(&Path) -> Result<()>) -> Result<()> {
        let mut directories = vec![self.mount.clone()];
        while let Some(directory) = directories.pop() {
            interrupt::check()?;
            for entry in fs::read_dir(directory)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    directories.push(entry.path());
                } else if kind.is_file() {
                    each(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

struct Victim {
    name: &'static str,
    deed: &'static str,
    cause: &'static str,
    program: bool,
}

impl Victim {
    const fn new(name: &'static str, deed: &'static str, cause: &'static str, program: bool) -> Self {
        Self { name, deed, cause, program }
    }
}

/// A guard that runs; it is ended when this is dropped.
struct Guard {
    child: Child,
    announced: String,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Guard {
    fn start(demo: &Demo, mode: &str) -> Result<Self> {
        interrupt::check()?;
        let mut command = Command::new(&demo.imara);
        command
            .args(["guard", "--mode", mode, "--policy", "builtin:appraise_tcb"])
            .arg(&demo.mount)
            .env("IMARA_RUN_DIR", &demo.run_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = killed_with_us(&mut command).spawn().context("cannot run imara guard")?;
        let (out, errors) = (child.stdout.take(), child.stderr.take());
        let (sender, lines) = channel();
        let errors = errors.context("the guard has no standard error")?;
        std::thread::spawn(move || {
            BufReader::new(errors).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut guard = Self { child, announced: String::new(), lines, seen: Vec::new() };
        BufReader::new(out.context("the guard has no standard output")?).read_line(&mut guard.announced)?;
        guard.announced.truncate(guard.announced.trim_end().len());
        if !guard.announced.starts_with("guarding") {
            guard.listen(Duration::from_millis(500));
            bail!("the guard did not start: {} {}", guard.announced, guard.seen.join("; "));
        }
        Ok(guard)
    }

    /// Takes the lines that have come, and those of the next moment.
    fn listen(&mut self, patience: Duration) {
        if let Ok(line) = self.lines.recv_timeout(patience) {
            self.seen.push(line);
        }
        self.seen.extend(self.lines.try_iter());
    }

    fn forget(&mut self) {
        self.listen(Duration::from_millis(100));
        self.seen.clear();
    }

    fn line_with(&mut self, text: &str) -> Result<String> {
        let begin = Instant::now();
        loop {
            if let Some(line) = self.seen.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            ensure!(begin.elapsed() < PATIENCE, "the guard did not log {text}");
            self.listen(Duration::from_millis(50));
        }
    }

    /// Waits until `count` different files have been logged with `text`.
    fn wait_for(&mut self, count: usize, text: &str) -> Result<usize> {
        let begin = Instant::now();
        loop {
            let name =
                |line: &String| line.split("name=").nth(1).unwrap_or_default().split(' ').next().map(str::to_owned);
            let mut names: Vec<_> = self.seen.iter().filter(|line| line.contains(text)).map(name).collect();
            names.sort();
            names.dedup();
            if names.len() >= count {
                return Ok(names.len());
            }
            ensure!(begin.elapsed() < PATIENCE, "the guard logged {text} for {} files, expected {count}", names.len());
            self.listen(Duration::from_millis(50));
        }
    }

    /// Ends it as an administrator would.
    fn end(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the guard ended with {status}");
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(step: u32, text: &str) -> Result<()> {
    print_line!("{step:>4}.  {text}")
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect::<String>() + "…"
}

fn which(program: &str) -> Result<PathBuf> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.exists())
        .with_context(|| format!("this host has no {program}"))
}

/// The loader and the libraries that a program names, as ldd(1) finds them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = run(Command::new("ldd").arg(program))?;
    Ok(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}
