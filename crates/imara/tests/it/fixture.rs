//! Runs the program and keeps what it said; makes trees and reads labels.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use imara_integrity::digest::{Digest, HashAlgorithm};
use imara_integrity::label::encode_digest;
use imara_linux::testing::{FsKind, ScratchMount, install, root};
use imara_linux::xattr::{self, Found};
use serde_json::Value;

/// What a run of the program gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The lines of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The last line of standard output up to the times.
    pub(crate) fn counts(&self) -> &str {
        self.out.lines().last().and_then(|line| line.split("; ").next()).unwrap_or_default()
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program, not yet run, away from the caller's environment.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imara"));
    command.env_remove("IMARA_RUN_DIR").stdin(Stdio::null());
    command
}

/// Runs it.
pub(crate) fn imara(arguments: &[&dyn AsRef<OsStr>]) -> Ran {
    let mut command = command();
    for argument in arguments {
        command.arg(argument.as_ref());
    }
    command.output().unwrap().into()
}

/// Runs it with plain words.
pub(crate) fn imara_words(arguments: &[&str]) -> Ran {
    command().args(arguments).output().unwrap().into()
}

/// A file system of its own, with a policy outside of it that appraises what root owns.
pub(crate) struct Scratch {
    pub(crate) mount: ScratchMount,
    policy: PathBuf,
}

impl Scratch {
    /// None where the test cannot run; that has been said.
    pub(crate) fn new(kind: FsKind) -> Option<Self> {
        root()?;
        let mount = ScratchMount::new(kind, 32 << 20).unwrap();
        let policy = mount.path().with_extension("policy");
        fs::write(&policy, "# of a test\nappraise fowner=0\n").unwrap();
        Some(Self { mount, policy })
    }

    /// Another policy.
    pub(crate) fn set_policy(&self, text: &str) {
        fs::write(&self.policy, text).unwrap();
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.mount.path().join(name)
    }

    pub(crate) fn write(&self, name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Runs a verb with this policy.
    pub(crate) fn run(&self, verb: &str, arguments: &[&dyn AsRef<OsStr>]) -> Ran {
        let policy = [OsStr::new("--policy"), self.policy.as_os_str()].map(OsStr::to_owned);
        self.plain(verb, &[&policy[0], &policy[1]], arguments)
    }

    fn plain(&self, verb: &str, first: &[&dyn AsRef<OsStr>], then: &[&dyn AsRef<OsStr>]) -> Ran {
        let verb: [&dyn AsRef<OsStr>; 1] = [&verb];
        imara(&[&verb[..], first, then].concat())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.policy));
    }
}

/// `security.ima` of a file.
pub(crate) fn label_of(path: &Path) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    match xattr::read_all(File::open(path).unwrap().as_fd(), xattr::IMA, &mut value).unwrap() {
        Found::Value(_) => Some(value),
        Found::Absent | Found::Unsupported => None,
    }
}

pub(crate) fn set_label(path: &Path, value: &[u8]) {
    xattr::write(File::open(path).unwrap().as_fd(), xattr::IMA, value).unwrap();
}

/// The right label.
pub(crate) fn right(algorithm: HashAlgorithm, content: &[u8]) -> Vec<u8> {
    encode_digest(&Digest::of(algorithm, content))
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Digest::of(HashAlgorithm::Sha256, content).to_string()
}

/// The program in a directory of its own that everybody may look into.
pub(crate) struct Copied {
    pub(crate) directory: PathBuf,
    pub(crate) program: PathBuf,
}

impl Copied {
    pub(crate) fn new(name: &str) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("imara-{name}-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.join("imara");
        install(Path::new(env!("CARGO_BIN_EXE_imara")), &program).unwrap();
        Self { directory, program }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// The file's line among lines of JSON.
pub(crate) fn line_of<'v>(lines: &'v [Value], path: &Path) -> &'v Value {
    lines.iter().find(|line| line["path"] == path.to_str().unwrap()).unwrap_or_else(|| panic!("no line of {path:?}"))
}

/// A bind mount, undone when dropped.
pub(crate) struct Bound(PathBuf);

impl Bound {
    pub(crate) fn new(from: &Path, to: &Path) -> Self {
        assert!(Command::new("mount").arg("--bind").arg(from).arg(to).status().unwrap().success());
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}
