//! Each way of opening and running a file: a good one opens, a bad one does not, as the table of coverage says.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use imara_linux::private_mount;
use imara_linux::testing::{self, FsKind, ScratchMount};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags};

use crate::access::with_loader_of_its_own;
use crate::coverage::{Table, by_opening};
use crate::daemon::Daemon;
use crate::files::{self, REFUSED, SCRIPT, label_of, set_label};
use crate::namespaces::Mounted;
use crate::uring;

/// A directory in which `data`, `program`, `shell` and `loader` are what their labels say, or are not.
#[derive(Debug)]
pub(crate) struct Ground {
    directory: PathBuf,
    running: Option<Child>,
    /// An entry of binfmt_misc.
    format: Option<(Mounted, String)>,
}

/// A way of opening: its row, what it needs beside the four files, and how it goes.
pub(crate) struct Way {
    pub(crate) id: &'static str,
    prepare: fn(&mut Ground),
    open: fn(&Ground) -> io::Result<()>,
}

const fn way(id: &'static str, open: fn(&Ground) -> io::Result<()>) -> Way {
    Way { id, prepare: |_| {}, open }
}

const fn prepared(id: &'static str, prepare: fn(&mut Ground), open: fn(&Ground) -> io::Result<()>) -> Way {
    Way { id, prepare, open }
}

pub(crate) const WAYS: &[Way] = &[
    way("open", |ground| File::open(ground.data()).map(drop)),
    way("openat2", |ground| {
        let directory = File::open(&ground.directory)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(directory, "data", OFlags::RDONLY, Mode::empty(), resolve).map(drop)?)
    }),
    way("creat", created),
    way("o-direct", |ground| {
        let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        OpenOptions::new().read(true).custom_flags(flags).open(ground.data()).map(drop)
    }),
    way("execve", |ground| files::execute(&ground.program())),
    way("execveat", |ground| executed_at(&ground.program())),
    way("fexecve", |ground| {
        let place = rustix::fs::open(ground.program(), OFlags::PATH, Mode::empty())?;
        files::execute(Path::new(&format!("/proc/{}/fd/{}", std::process::id(), place.as_raw_fd())))
    }),
    prepared("script", |ground| ground.make_script(), |ground| files::execute(&ground.directory.join("script"))),
    way("script-argument", |ground| said(Command::new("/bin/sh").arg(ground.directory.join("text")))),
    prepared("loader", Ground::make_own_loader, |ground| {
        let run = Command::new("./own").current_dir(&ground.directory).stdout(Stdio::null()).status()?;
        if run.success() { Ok(()) } else { Err(io::Error::other(run.to_string())) }
    }),
    way("loader-argument", |ground| said(Command::new(loader()).arg(ground.program()))),
    way("library", |ground| said(Command::new("/bin/true").env("LD_PRELOAD", ground.library()))),
    prepared("binfmt-misc", Ground::register, |ground| files::execute(&ground.directory.join("misc"))),
    way("o-path", |ground| {
        let place = rustix::fs::open(ground.data(), OFlags::PATH, Mode::empty())?;
        File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map(drop)
    }),
    prepared("proc-exe", Ground::run_sleeper, |ground| {
        let running = ground.running.as_ref().unwrap().id();
        File::open(format!("/proc/{running}/exe")).map(drop)
    }),
    way("by-handle", |ground| {
        let place = rustix::fs::open(ground.data(), OFlags::PATH, Mode::empty())?;
        let mount = File::open(&ground.directory)?;
        private_mount::reopen(mount.as_fd(), place.as_fd()).map(drop).map_err(|error| error.error)
    }),
    way("io-uring", |ground| {
        let at = uring::open_at(&ground.data()).map(drop);
        let at2 = uring::open_at2(&ground.data()).map(drop);
        assert_eq!(at.as_ref().err().map(io::Error::kind), at2.as_ref().err().map(io::Error::kind));
        at
    }),
    way("hard-link", |ground| {
        let link = ground.directory.join("link");
        fs::hard_link(ground.data(), &link)?;
        File::open(link).map(drop)
    }),
    way("symlink", |ground| {
        let link = ground.directory.join("symlink");
        symlink(ground.data(), &link)?;
        File::open(link).map(drop)
    }),
    way("rename", |ground| {
        let moved = ground.directory.join("moved");
        fs::rename(ground.data(), &moved)?;
        let parent = ground.directory.with_extension("moved");
        fs::rename(&ground.directory, &parent)?;
        let opened = File::open(parent.join("moved")).map(drop);
        fs::rename(&parent, &ground.directory)?;
        opened
    }),
    way("replaced", replaced),
    way("other-user", |ground| {
        fs::set_permissions(&ground.directory, fs::Permissions::from_mode(0o755))?;
        fs::set_permissions(ground.data(), fs::Permissions::from_mode(0o644))?;
        said(Command::new("setpriv").args(["--reuid=1000", "--clear-groups", "cat"]).arg(ground.data()))?;
        said(Command::new("unshare").args(["-p", "-f", "cat"]).arg(ground.data()))
    }),
];

fn created(ground: &Ground) -> io::Result<()> {
    let before = fs::metadata(ground.data())?.len();
    let opened = OpenOptions::new().write(true).create(true).truncate(true).open(ground.data()).map(drop);
    let after = fs::metadata(ground.data())?.len();
    assert_eq!(after, if opened.is_ok() { 0 } else { before }, "whoever is refused has cut nothing");
    opened
}

/// Over a file that is known to be good: renamed, and exchanged.
fn replaced(ground: &Ground) -> io::Result<()> {
    let target = ground.directory.join("always-good");
    (0..3).try_for_each(|_| files::read(&target).map(drop))?;
    rustix::fs::renameat_with(CWD, ground.data(), CWD, &target, RenameFlags::EXCHANGE)?;
    let exchanged = File::open(&target).map(drop);
    rustix::fs::renameat_with(CWD, ground.data(), CWD, &target, RenameFlags::EXCHANGE)?;
    (0..3).try_for_each(|_| files::read(&target).map(drop))?;
    fs::rename(ground.data(), &target)?;
    let renamed = File::open(&target).map(drop);
    assert_eq!(exchanged.is_ok(), renamed.is_ok());
    renamed
}

#[allow(unsafe_code, reason = "nothing safe executes a descriptor")]
fn executed_at(program: &Path) -> io::Result<()> {
    // O_PATH, so that it is the execution that is asked about.
    let place: OwnedFd = rustix::fs::open(program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let (fd, name) = (place.as_raw_fd(), CString::new("program").unwrap());
    let mut command = Command::new("/bin/true");
    // SAFETY: between fork and exec there is one system call, with pointers that outlive it.
    unsafe {
        command.pre_exec(move || {
            let (arguments, nothing) = ([name.as_ptr(), std::ptr::null()], [std::ptr::null::<libc::c_char>()]);
            let empty = c"".as_ptr();
            libc::syscall(libc::SYS_execveat, fd, empty, arguments.as_ptr(), nothing.as_ptr(), libc::AT_EMPTY_PATH);
            Err(io::Error::last_os_error())
        });
    }
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

/// Runs a program that says it on standard error if it could not open what it was given.
pub(crate) fn said(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("not permitted") || said.contains("cannot be preloaded") {
        return Err(io::Error::from_raw_os_error(REFUSED.unwrap()));
    }
    assert!(said.is_empty() && output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

/// The dynamic loader of the host's programs.
fn loader() -> PathBuf {
    with_loader_of_its_own(Path::new("/bin/true")).1
}

/// The C library that this process uses.
fn libc_path() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.contains("/libc.so") || line.contains("/libc-")).expect("a C library");
    line.split_once('/').map(|(_, path)| Path::new("/").join(path)).unwrap()
}

impl Ground {
    fn new(directory: PathBuf, good: bool) -> Self {
        fs::create_dir(&directory).unwrap();
        let ground = Self { directory, running: None, format: None };
        ground.put("data", b"content", good);
        ground.put("text", SCRIPT, good);
        ground.put("program", &files::program(), good);
        ground.put("libc.so", &fs::read(libc_path()).unwrap(), good);
        ground.put("always-good", b"good", true);
        ground
    }

    /// A file with a label that is that of its content, or of all but one more byte.
    fn put(&self, name: &str, content: &[u8], good: bool) {
        let path = self.directory.join(name);
        testing::install_bytes(&[content, if good { b"" } else { b"#" }].concat(), &path).unwrap();
        set_label(&path, &label_of(content));
    }

    fn is_good(&self) -> bool {
        self.directory.file_name().unwrap().to_str().unwrap().starts_with("good")
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn program(&self) -> PathBuf {
        self.directory.join("program")
    }

    fn library(&self) -> PathBuf {
        self.directory.join("libc.so")
    }

    /// A good script with an interpreter that is good or not.
    fn make_script(&mut self) {
        self.put("shell", &fs::read("/bin/sh").unwrap(), self.is_good());
        let first = format!("#!{}\n", self.directory.join("shell").display());
        self.put("script", &[first.as_bytes(), &SCRIPT[10..]].concat(), true);
    }

    /// A good program with a loader that is good or not.
    fn make_own_loader(&mut self) {
        let (program, loader) = with_loader_of_its_own(Path::new("/bin/true"));
        self.put("own", &program, true);
        self.put("ld.so", &fs::read(loader).unwrap(), self.is_good());
    }

    /// A file of a kind of its own, whose interpreter has been opened already (flag `F`).
    fn register(&mut self) {
        let formats = Mounted::by(&["-t", "binfmt_misc"], Path::new("binfmt_misc"));
        self.put("interpreter", &files::program(), self.is_good());
        let (magic, interpreter) = (self.directory.display().to_string(), self.directory.join("interpreter"));
        let magic =
            format!("{:x}", magic.bytes().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())));
        let name = format!("imara-{magic}");
        self.put("misc", magic.as_bytes(), true);
        let line = format!(":{name}:M::{magic}::{}:F", interpreter.display());
        fs::write(formats.path().join("register"), line).unwrap();
        self.format = Some((formats, name));
    }

    /// A program that runs already.
    fn run_sleeper(&mut self) {
        self.put("sleep", &fs::read("/bin/sleep").unwrap(), self.is_good());
        let mut command = Command::new(self.directory.join("sleep"));
        self.running = Some(command.arg("1000").stdin(Stdio::null()).spawn().unwrap());
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some((formats, name)) = &self.format {
            drop(fs::write(formats.path().join(name), "-1"));
        }
        if let Some(mut running) = self.running.take() {
            drop(running.kill());
            drop(running.wait());
        }
    }
}

fn ways_of_opening_are_what_the_table_says(kind: FsKind) {
    let Some(_) = testing::root() else { return };
    let scratch = ScratchMount::new(kind, 512 << 20).unwrap();
    let grounds = |good: bool| -> Vec<Ground> {
        let name = if good { "good" } else { "bad" };
        let made = WAYS.iter().map(|way| {
            let mut ground = Ground::new(scratch.path().join(format!("{name}-{}", way.id)), good);
            (way.prepare)(&mut ground);
            ground
        });
        made.collect()
    };
    let (good, bad) = (grounds(true), grounds(false));
    let daemon = Daemon::start("enforce", &[scratch.path()]);
    let table = Table::of(&daemon);
    let mut wrong = Vec::new();
    for (way, (good, bad)) in WAYS.iter().zip(good.iter().zip(&bad)) {
        if table.has(way.id) {
            let found = by_opening(&(way.open)(good), &(way.open)(bad));
            wrong.extend(table.compare(way.id, &found, &format!("{kind:?}")));
        }
    }
    drop((good, bad));
    daemon.stop();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ways_of_opening_on_ext4() {
    ways_of_opening_are_what_the_table_says(FsKind::Ext4);
}

#[test]
fn ways_of_opening_on_xfs() {
    ways_of_opening_are_what_the_table_says(FsKind::Xfs);
}

#[test]
fn ways_of_opening_on_btrfs() {
    ways_of_opening_are_what_the_table_says(FsKind::Btrfs);
}

#[test]
fn ways_of_opening_on_tmpfs() {
    ways_of_opening_are_what_the_table_says(FsKind::Tmpfs);
}
