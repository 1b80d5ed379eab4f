//! Logs: to standard error, filtered by `RUST_LOG`.

use std::env;

use clap::ValueEnum;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::log::{self, Log};

/// The gateway's own lines from `info`, and the errors of its dependencies. A client can make a dependency write a line
/// per frame: h2 warns of each PING acknowledgement that it did not ask for.
const DEFAULT: &str = "error,sse_gateway=info,gateway=info,access=info,broker=info,hub=info";
/// Holds with `RUST_LOG` too, unless that names h2.
const ALWAYS: &str = "h2=error";

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Begins to write logs. To be called once, by the binary.
///
/// # Errors
/// When `RUST_LOG` is not a list of levels, or the system refuses a thread.
pub fn init(format: LogFormat) -> Result<Log, String> {
    let filter = filter(env::var("RUST_LOG").ok())?;
    let started = log::start();
    let (writer, log) = started.map_err(|error| format!("no thread for the log: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        // The filter decides.
        .with_max_level(LevelFilter::TRACE)
        .with_target(false)
        .with_writer(writer);
    match format {
        LogFormat::Text => subscriber.with_ansi(false).finish().with(filter).init(),
        LogFormat::Json => subscriber.json().finish().with(filter).init(),
    }
    Ok(log)
}

/// Whether [`init`] would accept the value of `RUST_LOG`.
pub(crate) fn check() -> Result<(), String> {
    filter(env::var("RUST_LOG").ok()).map(drop)
}

fn filter(levels: Option<String>) -> Result<Targets, String> {
    let levels = match levels {
        Some(levels) if !levels.trim().is_empty() => format!("{ALWAYS},{levels}"),
        _ => DEFAULT.to_owned(),
    };
    let parts = levels.split(',').map(str::trim);
    let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
    // A name alone would mean a module, with all of its lines. Spans and fields, in brackets, do not exist here.
    let is_wrong = |part: &&str| match part.split_once('=') {
        Some((name, _)) => name.is_empty() || name.contains('['),
        None => part.parse::<LevelFilter>().is_err(),
    };
    if let Some(part) = parts.iter().copied().find(is_wrong) {
        return Err(format!(
            "RUST_LOG: {part:?} is no level: levels are needed such as error,gateway=debug,broker=debug"
        ));
    }
    parts.join(",").parse::<Targets>().map_err(|error| {
        format!("RUST_LOG: {error}; levels are needed such as error,gateway=debug,broker=debug")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(levels: &str) -> String {
        filter(Some(levels.to_owned())).unwrap().to_string()
    }

    #[test]
    fn rust_log_sets_levels_and_does_not_open_the_log_to_clients() {
        assert!(filter(None).unwrap().to_string().contains("gateway=info"));
        assert!(filtered("").contains("gateway=info"));
        assert!(filtered("info").contains("h2=error"));
        let named = filtered("info,h2=debug");
        assert!(
            named.contains("h2=debug") && !named.contains("h2=error"),
            "{named}"
        );
        let spaced = filtered(" info , broker=debug,");
        assert!(
            spaced.contains("broker=debug") && !spaced.contains(' '),
            "{spaced}"
        );
        for wrong in [
            "gateway=loud",
            "nonsense,,=",
            "info,nonsense",
            "=",
            "gateway[span]=debug",
            "gateway[{field}]=debug",
        ] {
            let error = filter(Some(wrong.to_owned())).unwrap_err();
            assert!(error.starts_with("RUST_LOG: "), "{error}");
        }
    }
}
