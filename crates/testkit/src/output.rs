//! Output for people. A measurement or a server continues when its output is closed; `println!` would panic.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

/// Prints results.
///
/// # Errors
/// If writing to standard output fails.
pub fn print(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Writes a part of a line, or a line, to standard error. Ignores errors.
pub fn report_progress(text: impl Display) {
    let _nobody_reads_it = write!(io::stderr(), "{text}");
}

/// Like `eprintln!`, but continues after an error.
#[macro_export]
macro_rules! progress {
    ($($text:tt)*) => {
        $crate::report_progress(format_args!("{}\n", format_args!($($text)*)))
    };
}
