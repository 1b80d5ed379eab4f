//! The `sse-gateway` binary: configuration, then the app, then its exit code.

use std::{error::Error, io, net::SocketAddr, process::ExitCode};

use gateway::{
    App, Config, Doctor, Invocation, Migrate, UnknownVariable, Verdict, health,
    output::{complain, print},
    telemetry::{self, LogFormat},
    unknown_variables,
};
use tokio::runtime::Runtime;

/// Returns memory to the system when streams and channels end. The system's allocator would keep it.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Wrong flags or configuration.
const USAGE: u8 = 2;
/// The doctor found nothing wrong, and could not look at everything.
const UNKNOWN: u8 = 3;

fn main() -> ExitCode {
    let invocation = Invocation::from_args();
    // When serving, `serve` logs them instead. A health check runs every few seconds, and the gateway it checks has
    // logged them.
    let is_said = matches!(
        invocation,
        Ok(Invocation::Serve(_) | Invocation::CheckHealth(_))
    );
    if !is_said {
        for UnknownVariable { name, nearest } in unknown_variables() {
            let meant = nearest.map_or_else(String::new, |nearest| format!(", not {nearest}"));
            complain(format_args!(
                "unknown environment variable {name}{meant}: it sets nothing"
            ));
        }
    }
    let invocation = match invocation {
        Ok(invocation) => invocation,
        Err(error) => {
            complain(error);
            return ExitCode::from(USAGE);
        }
    };
    let done = match invocation {
        Invocation::Serve(config) => serve(*config),
        Invocation::Revoke { redis, subject } => revoke(&redis, &subject),
        Invocation::Examine(doctor) => examine(&doctor),
        Invocation::Migrate(migrate, log_format) => move_to(*migrate, log_format),
        Invocation::CheckHealth(admin) => check_health(admin),
        Invocation::Print(text) => {
            print(text);
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|error| {
        complain(error);
        ExitCode::FAILURE
    })
}

fn serve(config: Config) -> Result<ExitCode, Box<dyn Error>> {
    // Waits for the last lines at the end of this function.
    let _log = match telemetry::init(config.log_format) {
        Ok(log) => log,
        Err(error) => {
            complain(error);
            return Ok(ExitCode::from(USAGE));
        }
    };
    for UnknownVariable { name, nearest } in unknown_variables() {
        tracing::warn!(
            name,
            nearest,
            "unknown environment variable: it sets nothing"
        );
    }
    for doubt in &config.doubts {
        tracing::warn!("{doubt}");
    }
    let app = App::build(config)?;
    app.run()?;
    Ok(ExitCode::SUCCESS)
}

fn examine(doctor: &Doctor) -> Result<ExitCode, Box<dyn Error>> {
    match runtime()?.block_on(doctor.examine(|finding| print(finding)))? {
        Verdict::Note | Verdict::Fine | Verdict::Advice => Ok(ExitCode::SUCCESS),
        Verdict::Unknown => {
            complain("nothing is wrong, but not everything could be looked at, see above");
            Ok(ExitCode::from(UNKNOWN))
        }
        Verdict::Wrong => Err("something has to be mended, see above".into()),
    }
}

fn move_to(migrate: Migrate, log_format: LogFormat) -> Result<ExitCode, Box<dyn Error>> {
    // Waits for the last lines at the end of this function.
    let _log = telemetry::init(log_format)?;
    runtime()?.block_on(migrate.run())?;
    Ok(ExitCode::SUCCESS)
}

fn check_health(admin: SocketAddr) -> Result<ExitCode, Box<dyn Error>> {
    print(runtime()?.block_on(health::check(admin))?);
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn revoke(redis: &broker::Server, subject: &str) -> Result<ExitCode, Box<dyn Error>> {
    let heard = runtime()?.block_on(broker::revoke(redis, subject))?;
    print(format_args!("received by {heard} replicas"));
    if heard == 0 {
        return Err("no replica listens: nothing was ended".into());
    }
    Ok(ExitCode::SUCCESS)
}
