//! Tests against the running kernel, most of them as root on file systems made for the purpose.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests and what only they use")]

mod fanotify;
mod files;
mod ignoring;
mod notice;
mod tasks;
