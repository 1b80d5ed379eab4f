//! Standard output and standard error of the commands. Unlike `println!` and `eprintln!`, nothing here panics when they
//! take nothing.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process,
};

/// The status that a shell reports of a program that SIGPIPE has ended, as `head` ends those before it in a pipe.
const BROKEN_PIPE: i32 = 128 + 13;
/// The status if standard output takes nothing for another reason.
const FAILURE: i32 = 1;

/// Prints a line of a command's output. Ends the process if nobody can read it: the output is all that the command is for.
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

/// Writes a line to standard error, if that takes it. The exit status says the rest.
pub fn complain(line: impl Display) {
    let _nobody_reads_it = writeln!(io::stderr(), "sse-gateway: {line}");
}
