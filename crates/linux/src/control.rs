//! The wire between command and daemon: a unix stream socket that only root may use, and messages of one line.
//!
//! What the lines say is decided elsewhere.
//!
//! Source: `unix(7)`.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imara_integrity::event::{Gid, Uid};

use crate::error::{CallError, Target};
use crate::sys;

/// The longest message, with its line feed.
pub const MAX_MESSAGE: usize = 64 << 10;

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A call was refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The directory of the socket belongs to somebody else, or others may write there.
    #[error("{} is owned by {owner} with mode {mode:o}, expected {expected} and writable by nobody else", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who should own it: we.
        expected: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The message has more than [`MAX_MESSAGE`] bytes, or a line feed inside.
    #[error("the message is longer than {MAX_MESSAGE} bytes or not a single line")]
    Message,
    /// The other end was silent or did not take our message in time.
    #[error("no answer within the time allowed")]
    Timeout,
    /// The other end closed in the middle of a message.
    #[error("the connection was closed in the middle of a message")]
    Cut,
}

/// Where commands come in.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path` with mode 0600, without blocking. Its directory is made with mode 0700 if it does not exist, else it must be
    /// ours and writable by nobody else.
    ///
    /// A socket that is there already is removed, so take [`crate::lock::Lock`] first.
    ///
    /// # Errors
    /// [`ControlError::Directory`], or the call that was refused.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        if let Err(error) = fs::DirBuilder::new().mode(0o700).create(directory)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(CallError::new("mkdir", directory, error).into());
        }
        check_directory(directory)?;
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(CallError::new("unlink", path, error).into());
        }
        let refused = |error: io::Error| CallError::new("bind", path, error);
        let socket = UnixListener::bind(path).map_err(refused)?;
        // Between bind and chmod the peer's credentials, which are always asked for, keep others out.
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(refused)?;
        socket.set_nonblocking(true).map_err(refused)?;
        Ok(Self { socket, path: path.to_path_buf() })
    }

    /// The next connection, without waiting. Who is at the other end is for the caller to judge.
    ///
    /// # Errors
    /// Those of `accept` and `getsockopt`.
    pub fn accept(&self, timeout: Duration) -> Result<Option<(Connection, Peer)>, ControlError> {
        let stream = match self.socket.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(CallError::new("accept", self.path.as_path(), error).into()),
        };
        let peer = sys::peer(stream.as_fd())
            .map_err(|error| CallError::new("getsockopt(SO_PEERCRED)", stream.as_fd(), error))?;
        let peer = Peer { uid: Uid(peer.uid), gid: Gid(peer.gid), pid: peer.pid };
        Ok(Some((Connection::new(stream, timeout), peer)))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // What stays is removed by the next daemon's bind.
        drop(fs::remove_file(&self.path));
    }
}

/// The directory must be ours alone, or somebody else could put a socket of their own in the place of ours.
fn check_directory(path: &Path) -> Result<(), ControlError> {
    let facts = fs::symlink_metadata(path).map_err(|error| CallError::new("lstat", path, error))?;
    let (owner, mode, expected) = (facts.uid(), facts.mode() & 0o7777, rustix::process::geteuid().as_raw());
    if !facts.is_dir() || owner != expected || mode & 0o022 != 0 {
        return Err(ControlError::Directory { path: path.to_path_buf(), owner, expected, mode });
    }
    Ok(())
}

/// Who is at the other end, when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: Uid,
    /// Its group.
    pub gid: Gid,
    /// Its process; 0 if outside our pid namespace.
    pub pid: i32,
}

impl Peer {
    /// Whether it is root.
    #[must_use]
    pub fn is_root(self) -> bool {
        self.uid == Uid(0)
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    timeout: Duration,
    // What came in behind the last message taken out.
    ahead: Vec<u8>,
}

impl Connection {
    fn new(stream: UnixStream, timeout: Duration) -> Self {
        Self { stream, timeout, ahead: Vec::new() }
    }

    /// Connects to the daemon at `path`. Each message sent or received may take `timeout` as a whole.
    ///
    /// # Errors
    /// `ENOENT` or `ECONNREFUSED` if no daemon runs, `EACCES` if we are not root.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ControlError> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
        let refused = |error| CallError::new("connect", path, error);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(refused)?;
        let address = SocketAddrUnix::new(path).map_err(refused)?;
        let end = deadline(timeout);
        // EAGAIN: the daemon's queue of connections is full; there is nothing to wait on but time.
        while let Err(error) = connect(&socket, &address) {
            if error != rustix::io::Errno::AGAIN {
                return Err(refused(error).into());
            }
            left(end)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).map_err(|error| CallError::new("fcntl(O_NONBLOCK)", path, error))?;
        Ok(Self::new(stream, timeout))
    }

    /// Sends `message` and a line feed.
    ///
    /// # Errors
    /// [`ControlError::Message`] if it is too long or holds a line feed, [`ControlError::Timeout`], or `EPIPE`.
    pub fn send(&mut self, message: &[u8]) -> Result<(), ControlError> {
        if message.len() >= MAX_MESSAGE || message.contains(&b'\n') {
            return Err(ControlError::Message);
        }
        self.send_all(&[message, b"\n"].concat())
    }

    /// Sends these bytes as they are: an answer in another language than that of lines.
    ///
    /// # Errors
    /// [`ControlError::Timeout`], or `EPIPE`.
    pub fn send_all(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        let (mut rest, end) = (bytes, deadline(self.timeout));
        while !rest.is_empty() {
            let limit = self.stream.set_write_timeout(Some(left(end)?));
            match limit.and_then(|()| self.stream.write(rest)) {
                Ok(length) => rest = rest.get(length..).unwrap_or_default(),
                Err(error) => self.bear("write", error)?,
            }
        }
        Ok(())
    }

    /// The next message, without its line feed; absent if the other end has closed.
    ///
    /// # Errors
    /// [`ControlError::Message`] if it is too long, [`ControlError::Timeout`], [`ControlError::Cut`].
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        self.receive_within(MAX_MESSAGE, deadline(self.timeout))
    }

    /// Takes in lines up to the first empty one, as the header fields of an HTTP request are, and forgets them. For all of
    /// them together the limits of one message hold.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn skip_header(&mut self) -> Result<(), ControlError> {
        let (mut room, end) = (MAX_MESSAGE, deadline(self.timeout));
        loop {
            let line = self.receive_within(room, end)?.ok_or(ControlError::Cut)?;
            if matches!(line.as_slice(), b"" | b"\r") {
                return Ok(());
            }
            room = room.saturating_sub(line.len().saturating_add(1));
        }
    }

    /// The next line of at most `room` bytes with its line feed, if it comes before `end`.
    fn receive_within(&mut self, room: usize, end: Option<Instant>) -> Result<Option<Vec<u8>>, ControlError> {
        let mut searched = 0;
        loop {
            let new = self.ahead.get(searched..room.min(self.ahead.len())).unwrap_or_default();
            if let Some(place) = new.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.ahead.drain(..=searched.saturating_add(place)).collect();
                line.pop();
                return Ok(Some(line));
            }
            searched = self.ahead.len();
            if searched >= room {
                return Err(ControlError::Message);
            }
            let mut chunk = [0; 4096];
            let piece = chunk.get_mut(..room.saturating_sub(searched).min(4096)).unwrap_or_default();
            let limit = self.stream.set_read_timeout(Some(left(end)?));
            match limit.and_then(|()| self.stream.read(piece)) {
                Ok(0) if searched == 0 => return Ok(None),
                Ok(0) => return Err(ControlError::Cut),
                Ok(length) => self.ahead.extend_from_slice(piece.get(..length).unwrap_or_default()),
                Err(error) => self.bear("read", error)?,
            }
        }
    }

    /// Goes on after an interruption and after a timeout of the kernel's, which [`left`] will notice.
    fn bear(&self, call: &'static str, error: io::Error) -> Result<(), ControlError> {
        let kind = error.kind();
        if kind == io::ErrorKind::Interrupted || kind == io::ErrorKind::WouldBlock || kind == io::ErrorKind::TimedOut {
            return Ok(());
        }
        Err(CallError::new(call, Target::from(self.stream.as_fd()), error).into())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// When `timeout` is over; absent if beyond what the clock can say.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

/// The time until `end`; never zero, which the kernel takes for no limit.
fn left(end: Option<Instant>) -> Result<Duration, ControlError> {
    let Some(end) = end else { return Ok(Duration::from_secs(3600)) };
    end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(ControlError::Timeout)
}
