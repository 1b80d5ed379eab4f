//! Output for people. A measurement or a server continues when its output cannot be read; `println!` would panic.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Prints results.
///
/// # Errors
/// When standard output does not take them.
pub fn print(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Writes a part of a line, or a line, to standard error, if that takes it.
pub fn report_progress(text: impl Display) {
    let _nobody_reads_it = write!(io::stderr(), "{text}");
}

/// As `eprintln!`, and goes on where standard error takes nothing.
macro_rules! progress {
    ($($text:tt)*) => {
        $crate::report_progress(format_args!("{}\n", format_args!($($text)*)))
    };
}
