//! Telling systemd how we are.
//!
//! Source: `sd_notify(3)`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::error::{CallError, Target};

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `READY=1`: started up.
    Ready,
    /// `WATCHDOG=1`: still alive.
    Watchdog,
    /// `STOPPING=1`: ending.
    Stopping,
}

impl State {
    const fn message(self) -> &'static [u8] {
        match self {
            Self::Ready => b"READY=1",
            Self::Watchdog => b"WATCHDOG=1",
            Self::Stopping => b"STOPPING=1",
        }
    }
}

/// The service manager, if one listens.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
}

impl Notifier {
    /// Connects to `address`, the value of `NOTIFY_SOCKET`: a path, or `@` and an abstract name. If absent,
    /// [`send`](Self::send) does nothing.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(address: Option<&OsStr>) -> Result<Self, CallError> {
        let Some(address) = address else { return Ok(Self::default()) };
        let refused = |error: io::Error| CallError::new("connect", Target::Path(address.into()), error);
        let target = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(address),
        };
        let socket = UnixDatagram::unbound().map_err(refused)?;
        socket.connect_addr(&target.map_err(refused)?).map_err(refused)?;
        // The dispatcher sends the watchdog's message and must never wait.
        socket.set_nonblocking(true).map_err(refused)?;
        Ok(Self { socket: Some(socket) })
    }

    /// Tells the service manager, without waiting.
    ///
    /// # Errors
    /// Those of `send`; `EAGAIN` if its queue is full.
    pub fn send(&self, state: State) -> Result<(), CallError> {
        let Some(socket) = &self.socket else { return Ok(()) };
        socket.send(state.message()).map_err(|error| CallError::new("send", Target::Process, error))?;
        Ok(())
    }
}
