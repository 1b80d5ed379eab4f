//! The `sse-gateway` binary: configuration, then the app, then its exit code.

use std::process::ExitCode;

use gateway::{App, Config, telemetry};
use tikv_jemallocator::Jemalloc;

/// Gives memory back when streams and channels go, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Wrong flags or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let config = match Config::from_args() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("sse-gateway: {error}");
            return ExitCode::from(USAGE);
        }
    };
    telemetry::init(config.log_format);
    let app = match App::build(&config) {
        Ok(app) => app,
        Err(error) => {
            eprintln!("sse-gateway: {error}");
            return ExitCode::FAILURE;
        }
    };
    app.print_addresses();
    match app.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sse-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}
