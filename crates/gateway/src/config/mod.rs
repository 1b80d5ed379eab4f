//! Configuration: reads flags, environment and file, and checks them.
//!
//! Each component owns its settings and their flags. [`Flags`] is their sum as read, and [`Config`] as checked. Only
//! rules that concern several components are checked here.

mod command;
mod file;
mod migrate;
mod redis;
#[cfg(test)]
mod tests;
mod variables;

use std::{path::PathBuf, time::Duration};

use clap::{CommandFactory as _, Parser};
use hub::LastEventId;

pub(crate) use self::file::Sections;
use self::{
    command::Command,
    file::File,
    redis::{EventFlags, RedisFlags},
};
pub use self::{command::Invocation, variables::UnknownVariable};
use crate::{
    canary::CanaryConfig,
    drain::DrainConfig,
    http::{Console, ConsoleFlags, HttpConfig, events::tickets::TicketConfig},
    invalid::Invalid,
    limits::LimitsConfig,
    listener::{ListenAddress, ListenConfig},
    output::complain,
    telemetry::{self, LogFormat},
    tls::{self, TlsConfig},
    traces::{TracesConfig, TracesFlags},
    worker::WorkerConfig,
};

/// Server-Sent Events from Redis pub/sub, with exact resume.
///
/// Every flag is also an environment variable: --redis-url is SSE_GATEWAY_REDIS_URL.
#[derive(Parser, Debug)]
#[command(name = "sse-gateway", version, max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    listen: ListenConfig,

    #[command(flatten)]
    tls: TlsConfig,

    #[command(flatten)]
    redis: RedisFlags,

    #[command(flatten)]
    events: EventFlags,

    #[command(flatten)]
    access: access::AccessFlags,

    #[command(flatten)]
    tickets: TicketConfig,

    #[command(flatten)]
    http: HttpConfig,

    #[command(flatten)]
    limits: LimitsConfig,

    #[command(flatten)]
    worker: WorkerConfig,

    #[command(flatten)]
    drain: DrainConfig,

    #[command(flatten)]
    console: ConsoleFlags,

    #[command(flatten)]
    canary: CanaryConfig,

    /// How logs are written.
    #[arg(
        long,
        env = "SSE_GATEWAY_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text"
    )]
    log_format: LogFormat,

    #[command(flatten)]
    traces: TracesFlags,

    /// TOML file with rules per channel pattern, and with access rules.
    #[arg(long, env = "SSE_GATEWAY_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// The checked configuration. No other code checks it again.
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) listen: ListenConfig,
    pub(crate) tls: TlsConfig,
    pub(crate) broker: broker::Config,
    pub(crate) access: access::Config,
    pub(crate) tickets: TicketConfig,
    pub(crate) http: HttpConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) worker: WorkerConfig,
    pub(crate) drain: DrainConfig,
    /// The page at /, if there is one.
    pub(crate) console: Option<Console>,
    pub(crate) canary: CanaryConfig,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Settings of traces, if there are traces.
    pub(crate) traces: Option<TracesConfig>,
    /// The sections of the file, to compare with those of a newer file.
    pub(crate) sections: Sections,
    /// Settings that are valid but probably mistakes, one sentence each.
    pub doubts: Vec<String>,
}

/// The longest silence that balancers allow by default.
const SILENCE: Duration = Duration::from_secs(60);

/// Environment variables that begin like those of this program but are unknown. Otherwise a misspelled one would be
/// ignored silently. Variables that Kubernetes sets for a Service named `sse-gateway` are skipped.
#[must_use]
pub fn unknown_variables() -> Vec<UnknownVariable> {
    variables::unknown(&Flags::command())
}

impl Config {
    fn new(flags: Flags) -> Result<Self, Invalid> {
        flags.check()?;
        let file = File::read_or_default(flags.config.as_deref())?;
        let mut doubts = file.doubts();
        let (channels, access, sections) = file.split();
        let redis = flags.redis.server()?;
        let broker = flags.events.into_config(redis, channels?)?;
        let is_loopback = flags.listen.public.is_loopback();
        let token = flags.access.publish_token.clone();
        let console = flags.console.into_console(&broker, token, is_loopback)?;
        doubts.extend(access.doubts());
        let mut access = access::Config::new(access, flags.access)?;
        if !access.has_rule() {
            require_loopback(&flags.listen.public)?;
            access.allow_all();
        }
        doubts.extend(access.doubts(is_loopback));
        let mut http = flags.http;
        doubts.extend(http_doubts(&http));
        if let ListenAddress::Unix(_) = flags.listen.public {
            http.trust_unix_socket();
        }
        Ok(Self {
            listen: flags.listen,
            tls: flags.tls,
            broker,
            access,
            tickets: flags.tickets,
            http,
            limits: flags.limits,
            worker: flags.worker,
            drain: flags.drain,
            console,
            canary: flags.canary,
            log_format: flags.log_format,
            traces: flags.traces.into_config()?,
            sections,
            doubts,
        })
    }

    /// Reads the other files that a start reads. Returns a summary of the configuration.
    fn check(&self) -> Result<String, Invalid> {
        tls::choose_provider();
        if let Some(files) = self.tls.files() {
            let certificate = files.read();
            certificate
                .map_err(|error| Invalid(format!("--tls-certificate, --tls-key: {error}")))?;
        }
        telemetry::check().map_err(Invalid)?;
        let count = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let mut found = vec![
            count(self.broker.rules.len(), "channel rule"),
            count(self.access.publishers(), "publish token"),
        ];
        for doubt in &self.doubts {
            complain(doubt);
        }
        found.extend(self.access.tables().map(str::to_owned));
        Ok(found.join(", "))
    }
}

impl Flags {
    /// Checks what concerns several components.
    fn check(&self) -> Result<(), Invalid> {
        // A stream has an id for each partition that its channels touch.
        let most = usize::from(self.events.partitions).min(self.http.max_channels);
        if most > LastEventId::MAX_PARTITIONS {
            return Err(Invalid(format!(
                "--partitions or --max-channels has to be at most {}: the id of a stream over more partitions is \
                 too long to be resumed",
                LastEventId::MAX_PARTITIONS
            )));
        }
        let is_tcp = matches!(self.listen.public, ListenAddress::Tcp(_));
        if self.http.proxy_protocol && is_tcp && self.http.trusted_proxies.is_empty() {
            return Err(
                "--proxy-protocol needs --trusted-proxies: the networks of the proxies that send the header".into(),
            );
        }
        if self.canary.interval().is_some() && self.http.proxy_protocol {
            return Err(
                "--canary-interval does not speak the PROXY protocol: leave out one of the two"
                    .into(),
            );
        }
        Ok(())
    }
}

/// Settings that are valid but probably mistakes.
fn http_doubts(http: &HttpConfig) -> impl Iterator<Item = String> {
    let wide = http.trusted_proxies.too_wide().map(|net| {
        format!(
            "--trusted-proxies {net} contains clients as well as proxies: a client there can claim any address in \
             X-Forwarded-For, and so escape the limits per address"
        )
    });
    let silent = (http.heartbeat > SILENCE).then(|| {
        format!(
            "--heartbeat {}: many balancers cut a connection that is silent for {}",
            humantime::format_duration(http.heartbeat),
            humantime::format_duration(SILENCE)
        )
    });
    wide.into_iter().chain(silent)
}

/// Without a rule for subscribers, all programs on this machine may subscribe. Any other address needs a rule.
fn require_loopback(listen: &ListenAddress) -> Result<(), Invalid> {
    if listen.is_loopback() {
        return Ok(());
    }
    Err(Invalid(format!(
        "--listen {listen} is not only for this machine, and no rule says who may subscribe: \
         set --public-channels (--public-channels '*' for everybody, everything), or [jwt] or [forward_auth] in \
         the configuration file"
    )))
}
