//! Tests of the core from outside, against golden data that others made.

mod policy;
