//! The steps of `vectors/appraise/README.md`, done by this process.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use imara_linux::xattr;
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use crate::daemon::eventually;
use crate::files::{self, Mapping};

pub(crate) fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() { "empty".to_owned() } else { bytes.iter().map(|byte| format!("{byte:02x}")).collect() }
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    if text == "empty" {
        return Vec::new();
    }
    let pairs = (0..text.len()).step_by(2);
    pairs.map(|place| u8::from_str_radix(&text[place..place + 2], 16).unwrap()).collect()
}

/// The steps of one scenario, with the descriptors and the mapping that they have made.
#[derive(Debug)]
pub(crate) struct Play {
    root: PathBuf,
    scenario: String,
    directory: PathBuf,
    descriptors: HashMap<String, File>,
    // Also of descriptors that have been closed or could not be had.
    names: HashMap<String, String>,
    mapping: Option<Mapping>,
}

/// What a step gave, besides success.
enum Given {
    Nothing,
    Text(String),
}

impl Play {
    /// `root` is the directory that programs see as theirs, with the scenario in `scratch/SCENARIO` below.
    pub(crate) fn new(root: &Path, scenario: &str) -> Self {
        let directory = root.join("scratch").join(scenario);
        let (descriptors, names) = (HashMap::new(), HashMap::new());
        Self { root: root.to_owned(), scenario: scenario.to_owned(), directory, descriptors, names, mapping: None }
    }

    /// Does a step: its result as the tables show it.
    pub(crate) fn step(&mut self, words: &[&str]) -> String {
        if self.cannot(words) {
            return "skipped".to_owned();
        }
        match self.perform(words) {
            Ok(Given::Nothing) => "ok".to_owned(),
            Ok(Given::Text(text)) => text,
            Err(error) => name_of(&error),
        }
    }

    /// The file whose label is shown after a step.
    pub(crate) fn touched(&self, words: &[&str]) -> Option<PathBuf> {
        let named = |name: &str| self.names.get(name).map(|name| self.path(name));
        match *words {
            ["open" | "linkfd" | "rename" | "hardlink", _, file, ..] => Some(self.path(file)),
            ["copyrange", _, to, _] => named(to),
            [_, first, ..] if is_descriptor(first) => named(first),
            [_, file, ..] => Some(self.path(file)),
            _ => None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether an earlier step did not give what this one needs.
    fn cannot(&self, words: &[&str]) -> bool {
        match *words {
            ["open" | "tmpfile", ..] => false,
            ["copyrange", from, to, _] => !self.descriptors.contains_key(from) || !self.descriptors.contains_key(to),
            ["store" | "munmap", ..] => self.mapping.is_none(),
            [_, first, ..] => is_descriptor(first) && !self.descriptors.contains_key(first),
            _ => false,
        }
    }

    fn perform(&mut self, words: &[&str]) -> io::Result<Given> {
        match *words {
            ["open", slot, name, flags] => {
                let opened = rustix::fs::open(self.path(name), open_flags(flags), Mode::from_raw_mode(0o644));
                self.names.insert(slot.to_owned(), name.to_owned());
                self.descriptors.remove(slot);
                self.descriptors.insert(slot.to_owned(), opened?.into());
            }
            ["tmpfile", slot] => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                let opened = rustix::fs::open(&self.directory, flags, Mode::from_raw_mode(0o644))?;
                self.names.remove(slot);
                self.descriptors.insert(slot.to_owned(), opened.into());
            }
            ["close", slot] => drop(self.descriptors.remove(slot)),
            ["linkfd", slot, name] => {
                rustix::fs::linkat(self.descriptors[slot].as_fd(), "", CWD, self.path(name), AtFlags::EMPTY_PATH)?;
                self.names.insert(slot.to_owned(), name.to_owned());
            }
            ["mmap", slot] => self.mapping = Some(Mapping::new(&self.descriptors[slot])?),
            ["store", _, bytes] => self.mapping.as_mut().unwrap().store(&unhex(bytes)),
            ["munmap", _] => self.mapping = None,
            [_, slot, ..] if is_descriptor(slot) => return self.perform_on(&self.descriptors[slot], words),
            ["rename", from, to] => {
                self.names.values_mut().filter(|name| *name == from).for_each(|name| *name = to.to_owned());
                fs::rename(self.path(from), self.path(to))?;
            }
            ["exec", name] => return self.execute(name),
            [_, name, ..] => return perform_by_path(&self.path(name), words, &self.directory),
            _ => panic!("unknown step {words:?}"),
        }
        Ok(Given::Nothing)
    }

    fn perform_on(&self, mut file: &File, words: &[&str]) -> io::Result<Given> {
        match *words {
            ["write", _, bytes] => drop(file.write(&unhex(bytes))?),
            ["write", _] => drop(file.write(b"")?),
            ["pwrite", _, offset, bytes] => drop(file.write_at(&unhex(bytes), offset.parse().unwrap())?),
            ["read", _] => {
                let mut content = vec![0; 16_384];
                let length = file.read_at(&mut content, 0)?;
                return Ok(Given::Text(format!("data:{}", hex(&content[..length]))));
            }
            ["fsync", _] => file.sync_all()?,
            ["ftruncate", _, length] => file.set_len(length.parse().unwrap())?,
            ["copyrange", _, to, length] => {
                let to = &self.descriptors[to];
                rustix::fs::copy_file_range(file, None, to, None, length.parse().unwrap())?;
            }
            ["punch", _, offset, length] => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, flags, offset.parse().unwrap(), length.parse().unwrap())?;
            }
            _ => panic!("unknown step {words:?}"),
        }
        Ok(Given::Nothing)
    }

    /// As the tables' program does it: the number of execve's own error, or how the program ended.
    fn execute(&self, name: &str) -> io::Result<Given> {
        // Not the functions that give a text that is no program to a shell.
        let script = "chroot($ARGV[0]) && chdir(\"/scratch/$ARGV[1]\") or die $!; my $f = $ARGV[2]; \
                      my ($words, $environment) = (pack('pJ', $f, 0), pack('J', 0)); \
                      syscall(59, $f, $words, $environment); print STDERR $! + 0; POSIX::_exit(127)";
        let run = || {
            let mut perl = Command::new("perl");
            perl.args(["-MPOSIX", "-e", script]).arg(&self.root).args([&self.scenario, name]);
            let output = perl.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            match (output.status.code(), said.parse()) {
                (Some(127), Ok(number)) => Err(io::Error::from_raw_os_error(number)),
                (Some(code), _) => Ok(Given::Text(format!("exit:{code}{said}"))),
                (None, _) => panic!("{output:?}"),
            }
        };
        // Busy because of ourselves, or for a moment only; see `files::execute`.
        let writes = |file: &File| rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.intersects(OFlags::RWMODE));
        let ours = self.descriptors.values().any(writes);
        let busy = |result: &io::Result<Given>| {
            result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy)
        };
        if ours { run() } else { eventually(|| Some(run()).filter(|result| !busy(result))).unwrap() }
    }
}

fn perform_by_path(path: &Path, words: &[&str], directory: &Path) -> io::Result<Given> {
    match *words {
        ["cat", _] => return Ok(Given::Text(format!("data:{}", hex(&files::read(path)?)))),
        ["mapexec", _] => files::map_executable(path)?,
        ["truncate", _, length] => {
            let script = format!("truncate({:?}, {length}) or die $!", path.to_str().unwrap());
            assert!(Command::new("perl").args(["-e", &script]).status()?.success());
        }
        ["mknod", _] => rustix::fs::mknodat(CWD, path, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?,
        ["unlink", _] => fs::remove_file(path)?,
        ["hardlink", _, to] => fs::hard_link(path, directory.join(to))?,
        ["chmod", _, mode] => {
            fs::set_permissions(path, fs::Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap()))?
        }
        ["chown", _, owner] => chown(path, Some(owner.parse().unwrap()), None)?,
        ["utimes", _] => {
            let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?;
        }
        ["setlabel", _, label] => rustix::fs::lsetxattr(path, xattr::IMA, &unhex(label), XattrFlags::empty())?,
        ["rmlabel", _] => rustix::fs::lremovexattr(path, xattr::IMA)?,
        ["stat", _] => return Ok(Given::Text(format!("size:{}", fs::metadata(path)?.len()))),
        _ => panic!("unknown step {words:?}"),
    }
    Ok(Given::Nothing)
}

fn is_descriptor(word: &str) -> bool {
    matches!(word.as_bytes(), [b'A'..=b'Z'])
}

fn open_flags(letters: &str) -> OFlags {
    letters.chars().fold(OFlags::CLOEXEC, |flags, letter| {
        flags
            | match letter {
                'r' => OFlags::RDONLY,
                'w' => OFlags::WRONLY,
                'b' => OFlags::RDWR,
                'c' => OFlags::CREATE,
                'x' => OFlags::EXCL,
                't' => OFlags::TRUNC,
                'a' => OFlags::APPEND,
                'd' => OFlags::DIRECT,
                'p' => OFlags::PATH,
                other => panic!("unknown flag {other}"),
            }
    })
}

fn name_of(error: &io::Error) -> String {
    let name = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::PERM) => "EPERM",
        Some(rustix::io::Errno::NOENT) => "ENOENT",
        Some(rustix::io::Errno::NOEXEC) => "ENOEXEC",
        Some(rustix::io::Errno::ACCESS) => "EACCES",
        Some(rustix::io::Errno::EXIST) => "EEXIST",
        Some(rustix::io::Errno::INVAL) => "EINVAL",
        Some(rustix::io::Errno::TXTBSY) => "ETXTBSY",
        _ => return error.to_string(),
    };
    name.to_owned()
}
