//! The Linux calls that Imara makes: one call, one function, one error; no decisions.
//!
//! Each room wraps one facility of the kernel. What a result means for an opener is decided elsewhere.

pub mod apart;
pub mod child;
pub mod control;
pub mod dir;
pub mod epoll;
pub mod error;
pub mod fanotify;
pub mod file;
pub mod handle;
pub mod hash;
pub mod host_key;
pub mod last_words;
pub mod lease;
pub mod limits;
pub mod lock;
pub mod mount_point;
pub mod mounts;
pub mod notice;
pub mod notify;
pub mod open_call;
pub mod private_mount;
pub mod signals;
pub mod sync;
mod sys;
pub mod task;
#[cfg(feature = "testing")]
pub mod testing;
pub mod xattr;
