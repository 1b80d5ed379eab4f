//! Standard output and standard error of the commands. Unlike `println!` and `eprintln!`, nothing here panics when a
//! write fails.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process,
};

/// The status that a shell reports for a program that SIGPIPE has ended. For example, `head` ends the program before it
/// in a pipe this way.
const BROKEN_PIPE: i32 = 128 + 13;
/// The status if a write to standard output fails for another reason.
const FAILURE: i32 = 1;

/// Prints a line of a command's output. Ends the process if the write fails, because the output is the command's only
/// purpose.
pub fn print(line: impl Display) {
    let Err(error) = writeln!(io::stdout(), "{line}") else {
        return;
    };
    if error.kind() == io::ErrorKind::BrokenPipe {
        process::exit(BROKEN_PIPE);
    }
    complain(format_args!("cannot write to standard output: {error}"));
    process::exit(FAILURE);
}

/// Writes a line to standard error if possible. The exit status shows the failure in any case.
pub fn complain(line: impl Display) {
    let _nobody_reads_it = writeln!(io::stderr(), "sse-gateway: {line}");
}
