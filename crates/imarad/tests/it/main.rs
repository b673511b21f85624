//! The guard against real file systems: each test mounts its own, starts its own daemon and ends it.
//!
//! Every daemon has a watchdog (see [`daemon`]), so that a guard that hangs fails its test and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that goes wrong shall stop at once and say where"
)]

mod access;
mod around;
mod arrivals;
mod changing;
mod coverage;
mod crash;
mod daemon;
mod deadlocks;
mod dispatcher;
mod exposition;
mod failures;
mod fast;
mod faults;
mod faulty;
mod files;
mod flood;
mod hardening;
mod hostile;
mod image;
mod journal;
mod leases;
mod leaving;
mod matrix;
mod namespaces;
mod operation;
mod overlay;
mod patterns;
mod recovery;
mod replay;
mod second;
mod slow;
mod starting;
mod status;
mod steps;
mod stress;
mod tampering;
mod unseen;
mod uring;
mod violations;
mod vouching;
mod waiting;
mod writes;
