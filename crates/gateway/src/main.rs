//! The `sse-gateway` binary: configuration, then the app, then its exit code.

#![expect(clippy::print_stdout, reason = "what is asked for is printed")]

use std::{error::Error, io, net::SocketAddr, process::ExitCode};

use gateway::{App, Config, Doctor, Invocation, health, telemetry};
use tikv_jemallocator::Jemalloc;
use tokio::runtime::Runtime;

/// Gives memory back when streams and channels go, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Wrong flags or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let invocation = match Invocation::from_args() {
        Ok(invocation) => invocation,
        Err(error) => {
            eprintln!("sse-gateway: {error}");
            return ExitCode::from(USAGE);
        }
    };
    let done = match invocation {
        Invocation::Serve(config) => serve(*config),
        Invocation::Revoke { redis, subject } => revoke(&redis, &subject),
        Invocation::Examine(doctor) => examine(&doctor),
        Invocation::CheckHealth(admin) => check_health(admin),
        Invocation::Print(text) => {
            println!("{text}");
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sse-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> Result<(), Box<dyn Error>> {
    telemetry::init(config.log_format);
    let app = App::build(config)?;
    app.print_addresses();
    Ok(app.run()?)
}

fn examine(doctor: &Doctor) -> Result<(), Box<dyn Error>> {
    let fine = runtime()?.block_on(doctor.examine(|finding| println!("{finding}")))?;
    if !fine {
        return Err("something has to be mended, see above".into());
    }
    Ok(())
}

fn check_health(admin: SocketAddr) -> Result<(), Box<dyn Error>> {
    println!("{}", runtime()?.block_on(health::check(admin))?);
    Ok(())
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn revoke(redis: &broker::Server, subject: &str) -> Result<(), Box<dyn Error>> {
    let heard = runtime()?.block_on(broker::revoke(redis, subject))?;
    println!("heard by {heard} replicas");
    if heard == 0 {
        return Err("no replica listens: nothing was ended".into());
    }
    Ok(())
}
