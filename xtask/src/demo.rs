//! `make demo`: the whole idea on real files, in one screen.
//!
//! Every sentence that is printed has been checked; the first that does not hold ends the demo with a failure.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use crate::demo::guard::{Guard, PATIENCE};
use crate::interrupt;
use crate::print::print_line;
use crate::run::{apart, run};
use crate::scratch::{Budget, Copied, Scratch, binaries, copy_one, copy_tree, own_mounts, root_only};

mod guard;

/// Programs that are run from the guarded file system, in a root directory of their own.
const PROGRAMS: [&str; 12] = ["sh", "bash", "ls", "cat", "grep", "sed", "sort", "wc", "head", "sha256sum", "cp", "tar"];

/// What is made bad with its label alone, and stays so until it is labelled by hand.
const SPARE: &str = "usr/bin/head";

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
    Scratch::with("demo", 2048, |scratch| {
        Demo { imara: binaries.join("imara"), mount: scratch.mount(), run_dir: scratch.beside("run") }.play()
    })?;
    let took = begin.elapsed();
    ensure!(
        took < LIMIT,
        "everything turned out as said, but it took {:.1} s, expected less than {} s",
        took.as_secs_f64(),
        LIMIT.as_secs()
    );
    print_line!("\nEverything turned out as said ({:.1} s). Next: the tour in README.md.", took.as_secs_f64())
}

struct Demo {
    imara: PathBuf,
    mount: PathBuf,
    run_dir: PathBuf,
}

impl Demo {
    fn play(&self) -> Result<()> {
        self.label_all()?;
        let guard = self.guard()?;
        say(3, &format!("imara guard: {}", guard.announced.replace(&self.mount.display().to_string(), "MOUNT")))?;
        let ran = self.programs_run(&[])?;
        self.script_says("hello from a script\n")?;
        say(4, &format!("{ran} programs and a script run from it: loader, libraries, interpreter"))?;
        self.edit_is_followed()?;
        guard.end()?;

        let victims = self.tamper()?;
        say(6, &format!("The guard is stopped; somebody changes {} files behind its back", victims.len()))?;
        let mut guard = self.guard()?;
        say(7, "Guarded again. Each of them is refused, with its cause in the log:")?;
        for victim in &victims {
            self.refused(&mut guard, victim)?;
            print_line!("       {:<14} {:<33} cause={}", victim.name, victim.deed, victim.cause)?;
        }
        let good = self.all_open_but(&victims.each_ref().map(|victim| victim.name))?;
        let ran = self.programs_run(&victims.each_ref().map(|victim| victim.name))?;
        say(8, &format!("All the others still work: {good} files open, {ran} programs run"))?;
        self.only_logged(&mut guard, victims.len())?;
        self.repaired(&mut guard, &victims)?;
        guard.end()?;
        self.imara(&["verify"], &[&self.mount])?;
        say(13, "imara verify: every file is what its label says")
    }

    /// A guard in mode enforce.
    fn guard(&self) -> Result<Guard> {
        interrupt::check()?;
        let mut command = Command::new(&self.imara);
        command
            .args(["guard", "--mode", "enforce", "--policy", "builtin:appraise_tcb"])
            .arg(&self.mount)
            .env("IMARA_RUN_DIR", &self.run_dir)
            .env("IMARA_STATE_DIR", self.run_dir.with_file_name("state"));
        let guard = Guard::start(&mut command, PATIENCE)?;
        self.mode_is("enforce")?;
        Ok(guard)
    }

    fn switch(&self, mode: &str) -> Result<()> {
        self.imara(&["mode", mode], &[])?;
        self.mode_is(mode)
    }

    /// Fails unless the guard itself says that it guards, in this mode.
    fn mode_is(&self, mode: &str) -> Result<()> {
        let said = self.imara(&["status", "--json"], &[])?;
        let status: serde_json::Value = serde_json::from_str(&said).context("imara status --json is no JSON")?;
        let now = status.get("mode").and_then(serde_json::Value::as_str);
        ensure!(now == Some(mode), "the guard's mode is {now:?}, expected {mode:?}");
        let guarded = status.pointer("/mounts/0/guarded").and_then(serde_json::Value::as_bool);
        ensure!(guarded == Some(true), "imara status does not say that the file system is guarded: {said}");
        Ok(())
    }

    fn label_all(&self) -> Result<()> {
        self.furnish()?;
        let Copied { files, bytes } = self.count()?;
        ensure!(files >= 1000, "only {files} files could be copied, expected at least 1,000");
        let size = bytes >> 20;
        say(1, &format!("An ext4 file system of its own: {files} real files of this host, {size} MiB"))?;
        let said = self.imara(&["label"], &[&self.mount])?;
        let summary = said.trim().lines().last().unwrap_or_default();
        let expected = format!("labelled {files}, unchanged 0, ");
        ensure!(summary.starts_with(&expected), "imara label said {summary:?}, expected {expected:?}");
        ensure!(summary.contains(", failed 0;"), "imara label said {summary:?}, expected \"failed 0\"");
        say(2, &format!("imara label: {}", summary.replace("unchanged 0, ", "")))
    }

    /// Mode log: what is refused in mode enforce can be opened and run.
    fn only_logged(&self, guard: &mut Guard, victims: usize) -> Result<()> {
        self.switch("log")?;
        guard.forget();
        self.all_open_but(&[])?;
        let ran = self.programs_run(&[])?;
        self.script_says("hello from the intruder\n")?;
        guard.files_with(victims, "action=allowed")?;
        say(9, &format!("imara mode log: all files open, all {ran} programs run; {victims} are logged"))
    }

    /// Mode fix, in which one bad file is left alone, so that it shows whether mode enforce is back; then that one.
    fn repaired(&self, guard: &mut Guard, victims: &[Victim]) -> Result<()> {
        self.switch("fix")?;
        guard.forget();
        self.each_file(|path| {
            let left = path == self.mount.join(SPARE);
            ensure!(left || File::open(path).is_ok(), "{} cannot be opened in mode fix", path.display());
            Ok(())
        })?;
        let ran = self.programs_run(&[SPARE])?;
        self.script_says("hello from the intruder\n")?;
        let count = victims.len() - 1;
        guard.files_with(count, "action=repaired")?;
        say(10, &format!("imara mode fix: {count} labels are written anew; {SPARE} is left alone"))?;

        self.switch("enforce")?;
        for victim in victims.iter().filter(|victim| victim.name == SPARE) {
            self.refused(guard, victim)?;
        }
        let good = self.all_open_but(&[SPARE])?;
        ensure!(self.programs_run(&[SPARE])? == ran, "fewer programs run than in mode fix");
        say(11, &format!("imara mode enforce: {SPARE} is refused, the other {good} files open"))?;

        self.switch("log")?;
        self.imara(&["label"], &[&self.mount.join(SPARE)])?;
        self.switch("enforce")?;
        let (good, ran) = (self.all_open_but(&[])?, self.programs_run(&[])?);
        say(12, &format!("imara label {SPARE}: now all {good} files open, and {ran} programs run"))
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

    /// Runs all programs but these; how many those are. (`sh` knows no option for it.)
    fn programs_run(&self, except: &[&str]) -> Result<usize> {
        let mut ran = 0;
        for program in PROGRAMS {
            if !except.contains(&format!("usr/bin/{program}").as_str()) {
                let option: &[&str] = if program == "sh" { &["-c", ":"] } else { &["--version"] };
                self.program(&[&[program], option].concat())?;
                ran += 1;
            }
        }
        Ok(ran)
    }

    fn script_says(&self, expected: &str) -> Result<()> {
        let said = self.program(&["hello"])?;
        ensure!(said == expected, "the script said {said:?}, expected {expected:?}");
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
        say(5, "A file is edited, a new program copied in and run: their labels follow")?;
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
        // One that nobody looks at, in the head of an ELF file: so it can be seen to run in mode log.
        let place = SeekFrom::Start(15);
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
        run(Command::new("setfattr").args(["-x", "security.ima"]).arg(self.mount.join(SPARE)))?;
        Ok([
            Victim::new("usr/bin/sort", "one bit, same size, same time", "invalid-hash", true),
            Victim::new("usr/bin/hello", "a script's text", "invalid-hash", true),
            Victim::new("srv/prices", "a price in a data file", "invalid-hash", false),
            Victim::new(SPARE, "its label stripped, nothing else", "missing-hash", true),
        ])
    }

    /// Fails unless it is refused, when opened and when executed, and logged with its cause.
    fn refused(&self, guard: &mut Guard, victim: &Victim) -> Result<()> {
        guard.forget();
        let (name, file) = (victim.name, self.mount.join(victim.name));
        ensure!(is_refused(File::open(&file), &file)?, "{name} could be opened, expected it to be refused");
        if victim.program {
            let executed = apart(&mut Command::new(&file)).stdout(Stdio::null()).stderr(Stdio::null()).status();
            ensure!(is_refused(executed, &file)?, "{name} could be executed, expected it to be refused");
        }
        let line = guard.line_about(&file)?;
        for part in [format!(" cause={} ", victim.cause), " action=denied".to_owned()] {
            ensure!(line.contains(&part), "expected{part}: {line}");
        }
        Ok(())
    }

    /// Opens every file; fails unless exactly these are refused. How many are not.
    fn all_open_but(&self, expected: &[&str]) -> Result<usize> {
        let (mut good, mut refused) = (0, BTreeSet::new());
        self.each_file(|path| {
            if is_refused(File::open(path), path)? {
                refused.insert(path.to_owned());
            } else {
                good += 1;
            }
            Ok(())
        })?;
        let expected: BTreeSet<_> = expected.iter().map(|name| self.mount.join(name)).collect();
        ensure!(refused == expected, "refused are {refused:?}, expected {expected:?}");
        Ok(good)
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

/// Whether the kernel said EPERM, as it does where a guard refuses; any other error is a failure of the demo.
fn is_refused<T>(outcome: io::Result<T>, file: &Path) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(false),
        Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::EPERM) => Ok(true),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", file.display())),
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
