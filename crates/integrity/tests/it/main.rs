//! What the core says, held against data that others made: real kernels, `evmctl`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod appraise;
mod labels;
mod policy;
mod violation;
