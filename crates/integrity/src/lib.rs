//! The Linux integrity subsystem's formats and decisions, without I/O.
//!
//! Bytes and facts come in, decisions and bytes go out: no file, no clock, no environment, no `unsafe`.
//! The story of one open is told in [`check`]; start there.
#![forbid(unsafe_code, clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)]

pub mod appraise;
pub mod audit;
pub mod check;
pub mod codec;
pub mod collect;
pub mod digest;
pub mod event;
pub mod host_key;
pub mod iint;
pub mod journal;
pub mod label;
mod mode;
pub mod policy;
mod verdict;
pub mod violation;
