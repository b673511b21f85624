//! Where the host key is kept: for now 32 random bytes in a file that only root can read.
//!
//! Source: `getrandom(2)`, `open(2)`, `link(2)`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use imara_integrity::host_key::{HostKey, KEY_LENGTH};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{CallError, Target};

/// There is no host key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostKeyError {
    /// Others than its owner can read or write it, or it is somebody else's: it is no secret.
    #[error("{} has owner {owner} and mode {mode:04o}, expected owner {expected} and mode 0600", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        expected: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not a file of 32 bytes.
    #[error("{} is not a file of {KEY_LENGTH} bytes", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
    },
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// The host key in this file; it is made, on the disk before this returns, if there is none.
///
/// # Errors
/// [`HostKeyError`].
pub fn load_or_make(path: &Path) -> Result<HostKey, HostKeyError> {
    for _ in 0..8 {
        match load(path) {
            Err(HostKeyError::Call(error)) if error.error.kind() == ErrorKind::NotFound => make(path)?,
            loaded => return loaded,
        }
    }
    load(path)
}

/// Random bytes that nobody can foresee.
///
/// # Errors
/// Those of `getrandom`; `EIO` if it gives fewer, which it does not for up to 256.
pub fn random<const N: usize>() -> Result<[u8; N], CallError> {
    let mut bytes = [0; N];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty());
    match filled.map_err(|error| CallError::new("getrandom", Target::Process, error))? {
        count if count == N => Ok(bytes),
        _ => Err(CallError::new("getrandom", Target::Process, rustix::io::Errno::IO)),
    }
}

fn load(path: &Path) -> Result<HostKey, HostKeyError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let mut file = options.open(path).map_err(|error| CallError::new("open", path, error))?;
    let facts = file.metadata().map_err(|error| CallError::new("fstat", path, error))?;
    let (owner, expected, mode) = (facts.uid(), rustix::process::geteuid().as_raw(), facts.mode() & 0o7777);
    if owner != expected || mode & 0o177 != 0 {
        return Err(HostKeyError::Exposed { path: path.to_owned(), owner, expected, mode });
    }
    if !facts.is_file() || facts.len() != u64::try_from(KEY_LENGTH).unwrap_or(0) {
        return Err(HostKeyError::Unfit { path: path.to_owned() });
    }
    let mut bytes = [0; KEY_LENGTH];
    let read = file.read_exact(&mut bytes).map_err(|error| CallError::new("read", path, error));
    let key = HostKey::new(&bytes);
    wipe(&mut bytes);
    read?;
    Ok(key)
}

/// Makes it whole under another name first: it is never seen by halves, and whoever else makes one at the same time does
/// not overwrite ours, nor we his.
fn make(path: &Path) -> Result<(), CallError> {
    let mut bytes = random::<KEY_LENGTH>()?;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let new = path.with_extension(format!("new-{}-{number}", std::process::id()));
    let written = write(&new, &bytes);
    wipe(&mut bytes);
    let linked = written.and_then(|()| match fs::hard_link(&new, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(CallError::new("link", path, error)),
        Ok(()) | Err(_) => Ok(()),
    });
    let _ = fs::remove_file(&new);
    linked?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| CallError::new("fsync", directory, error))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CallError> {
    // One that a process of the same number left behind.
    let _ = fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path).map_err(|error| CallError::new("open", path, error))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(|error| CallError::new("write", path, error))
}

fn wipe(bytes: &mut [u8; KEY_LENGTH]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_refused_if_others_can_read_it() {
        let directory = std::env::temp_dir().join(format!("imara-host-key-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("host.key");
        let mac = |key: HostKey| key.derive(b"test").mac(&[]);
        let first = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| mac(load_or_make(&path).unwrap()))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let again = mac(load_or_make(&path).unwrap());
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        let names = fs::read_dir(&directory).unwrap().count();
        let exposed = [0o640, 0o604, 0o620].map(|mode| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            matches!(load_or_make(&path), Err(HostKeyError::Exposed { mode: found, .. }) if found == mode)
        });
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let read_only = mac(load_or_make(&path).unwrap());
        fs::remove_file(&path).unwrap();
        fs::write(&path, [1; KEY_LENGTH - 1]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let short = matches!(load_or_make(&path), Err(HostKeyError::Unfit { .. }));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        let link = matches!(load_or_make(&path), Err(HostKeyError::Call(_)));
        fs::remove_dir_all(&directory).unwrap();
        assert!(first.iter().all(|mac| *mac == again), "four at once");
        assert_eq!((mode, names, exposed, read_only), (0o600, 1, [true; 3], again));
        assert!(short && link);
    }
}
