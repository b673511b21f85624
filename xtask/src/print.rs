//! Printing that can fail: whoever reads us may go away (`make demo | head -3`), and what we made must be removed then
//! too. `println!` would panic, and a panic of this workspace aborts, so the lints do not let it be used here.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context as _, Result};

/// A line to standard output, formatted like that of `println!`; an error if nobody takes it any more.
macro_rules! print_line {
    ($($argument:tt)*) => { $crate::print::line(format_args!($($argument)*)) };
}
pub(crate) use print_line;

/// What [`print_line`] does.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("cannot write to the standard output")
}

/// A line to standard error, for last words: that nobody reads them changes nothing.
pub(crate) fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
