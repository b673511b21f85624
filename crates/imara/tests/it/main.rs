//! The command as people and scripts meet it: the built program, run on file systems of its own.
//!
//! Needs root, for `security.ima` and mounts.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test that cannot go on has failed")]

mod fixture;
mod guard;
mod inspect;
mod label;
mod paths;
mod refusals;
mod usage;
mod verify;
mod walking;
