//! Configuration: reads flags, environment and file, and checks them.

mod file;

use std::{
    fs,
    io::{self, IsTerminal as _},
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    str::FromStr as _,
    time::Duration,
};

use access::now;
use axum::http::{HeaderMap, HeaderName};
use broker::{ClientTlsConfig, MAX_SUBJECT, TlsCertificates};
use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use hub::{LastEventId, Partitions};
use text::{list, nearest, parse_bytes};

use self::file::File;
pub(crate) use self::file::Sections;
use crate::{
    address::Proxies,
    doctor::{Doctor, Publish, Route},
    http::{Console, Demo},
    limits::Bounds,
    listener::{ListenAddress, UNIX_PEER, parse_address},
    output::complain,
    telemetry::{self, LogFormat},
    tls::{self, TlsFiles},
    traces::TracesConfig,
};

/// Server-Sent Events from Redis pub/sub, with exact resume.
///
/// Every flag is also an environment variable: --redis-url is SSE_GATEWAY_REDIS_URL.
#[derive(Parser, Debug)]
#[command(name = "sse-gateway", version, max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,

    /// Public address: /events. unix:/run/sse-gateway/public.sock is a Unix socket, for a balancer on this machine.
    #[arg(
        long,
        env = "SSE_GATEWAY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        value_parser = ListenAddress::from_str
    )]
    listen: ListenAddress,

    /// Address for operators: /metrics, /livez, /readyz. Not for the public.
    #[arg(
        long,
        env = "SSE_GATEWAY_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090",
        value_parser = parse_address,
        global = true
    )]
    admin_listen: SocketAddr,

    /// The Redis server, 7.0 or newer: redis://[user:password@]host[:port] or unix:///path.
    #[arg(
        long,
        env = "SSE_GATEWAY_REDIS_URL",
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true,
        global = true
    )]
    redis_url: String,

    /// Sentinel addresses, separated by commas: host:port or a URL each. The host in --redis-url is then the name of
    /// the master.
    #[arg(
        long,
        env = "SSE_GATEWAY_REDIS_SENTINELS",
        value_name = "LIST",
        hide_env_values = true,
        global = true
    )]
    redis_sentinels: Option<String>,

    /// CA certificates in PEM to trust for rediss://. Without it, those of the system.
    #[arg(long, env = "SSE_GATEWAY_REDIS_CA", value_name = "FILE", global = true)]
    redis_ca: Option<PathBuf>,

    /// Client certificate chain in PEM to present to Redis, for rediss://.
    #[arg(
        long,
        env = "SSE_GATEWAY_REDIS_CERTIFICATE",
        value_name = "FILE",
        requires = "redis_key",
        global = true
    )]
    redis_certificate: Option<PathBuf>,

    /// Key in PEM of --redis-certificate.
    #[arg(
        long,
        env = "SSE_GATEWAY_REDIS_KEY",
        value_name = "FILE",
        requires = "redis_certificate",
        global = true
    )]
    redis_key: Option<PathBuf>,

    /// Prefix of the raw channels that are relayed: sse:news is channel news.
    #[arg(
        long,
        env = "SSE_GATEWAY_CHANNEL_PREFIX",
        value_name = "PREFIX",
        default_value = "sse:"
    )]
    channel_prefix: String,

    /// Number of partitions of the deployment, 1 to 1024. It has to be the same on all replicas, and can never change.
    #[arg(
        long,
        env = "SSE_GATEWAY_PARTITIONS",
        value_name = "N",
        default_value_t = 1
    )]
    partitions: u16,

    /// Replicas that subscribe to raw PUBLISH: one active recorder per partition, the others on standby.
    #[arg(
        long,
        env = "SSE_GATEWAY_RECORDERS",
        value_name = "N",
        default_value_t = 2
    )]
    recorders: u32,

    /// Threads that serve connections [default: one per core].
    #[arg(
        long,
        env = "SSE_GATEWAY_WORKERS",
        value_name = "N",
        value_parser = parse_workers
    )]
    workers: Option<NonZeroUsize>,

    /// Silence after which the gateway sends a comment, so that proxies do not close the connection.
    #[arg(long, env = "SSE_GATEWAY_HEARTBEAT", value_name = "TIME", default_value = "8s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,

    /// Time after which clients reconnect. Each client receives a random time between half and one and a half of it.
    #[arg(long, env = "SSE_GATEWAY_RETRY", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    retry: Duration,

    /// Largest accepted payload, up to 16MiB.
    #[arg(long, env = "SSE_GATEWAY_MAX_PAYLOAD", value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes)]
    max_payload: usize,

    /// Bytes of raw messages that may wait to be recorded, per partition; at least 4MiB. Beyond that, messages of the
    /// channels that hold most are dropped, and their clients receive a gap.
    #[arg(long, env = "SSE_GATEWAY_MAX_PENDING", value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes)]
    max_pending: usize,

    /// Channels that one connection may subscribe to.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_CHANNELS",
        value_name = "N",
        default_value_t = 100
    )]
    max_channels: usize,

    /// Memory for the newest events of a channel, at each worker that has clients of it. At most 1024 events are kept.
    /// Slower clients read history from Redis.
    #[arg(long, env = "SSE_GATEWAY_CHANNEL_BUFFER_BYTES", value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes)]
    channel_buffer_bytes: usize,

    /// Period over which the gateway ends its streams when it stops.
    #[arg(long, env = "SSE_GATEWAY_DRAIN_WINDOW", value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    drain_window: Duration,

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
    access: access::Flags,

    /// Proxies whose X-Forwarded-For is trusted: '10.0.0.0/8,192.0.2.1'.
    #[arg(long, env = "SSE_GATEWAY_TRUSTED_PROXIES", value_name = "NETWORKS")]
    trusted_proxies: Option<Proxies>,

    /// Every connection begins with a header of the PROXY protocol, version 2, from a trusted proxy.
    #[arg(
        long,
        env = "SSE_GATEWAY_PROXY_PROTOCOL",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    proxy_protocol: bool,

    /// Maximum open streams of this replica; 0: no limit. Further clients are asked to reconnect later.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAMS",
        value_name = "N",
        default_value_t = 100_000
    )]
    max_streams: usize,

    /// Maximum streams from one address, or from one IPv6 network of 64 bits; 0: no limit. Behind proxies it needs
    /// --trusted-proxies.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAMS_PER_ADDRESS",
        value_name = "N",
        default_value_t = 0
    )]
    max_streams_per_address: usize,

    /// Maximum streams of one subject; 0: no limit.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAMS_PER_SUBJECT",
        value_name = "N",
        default_value_t = 100
    )]
    max_streams_per_subject: usize,

    /// New streams and JSON pages per second; 0: no limit. One address may use half of them, and its refused requests
    /// count only for itself. Behind proxies it needs --trusted-proxies.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAM_RATE",
        value_name = "N",
        default_value_t = 20_000
    )]
    max_stream_rate: u32,

    /// Events that one publisher may publish over HTTP per second; 0: no limit.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_PUBLISH_RATE",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_publish_rate: u32,

    /// Channels per second that requests to subscribe may name, from one address or one IPv6 network of 64 bits; 0: no
    /// limit. Behind proxies it needs --trusted-proxies.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_CHANNEL_RATE_PER_ADDRESS",
        value_name = "N",
        default_value_t = 20_000
    )]
    max_channel_rate_per_address: u32,

    /// Channels that streams of this replica are subscribed to; 0: no limit. One subject, or one address where the
    /// subject is not known, may open half of them.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_OPEN_CHANNELS",
        value_name = "N",
        default_value_t = 400_000
    )]
    max_open_channels: usize,

    /// Tickets that one subject may be issued per --ticket-ttl on this replica; 0: no limit. A ticket of more
    /// than 1 KiB counts as several.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_TICKETS_PER_SUBJECT",
        value_name = "N",
        default_value_t = 100
    )]
    max_tickets_per_subject: u32,

    /// Age, ±10 %, at which streams are ended, so that clients spread over the replicas again; 0s: never.
    #[arg(long, env = "SSE_GATEWAY_MAX_STREAM_AGE", value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    max_stream_age: Duration,

    /// Sends spans of publish, append and deliver to this OpenTelemetry collector: OTLP over HTTP, such as
    /// http://collector:4318. Headers and time limits are read from OTEL_EXPORTER_OTLP_HEADERS and _TIMEOUT.
    #[arg(
        long,
        env = "SSE_GATEWAY_OTLP_ENDPOINT",
        value_name = "URL",
        hide_env_values = true
    )]
    otlp_endpoint: Option<String>,

    /// Share of the events that is traced, 0 to 1. It has to be the same on all replicas.
    #[arg(
        long,
        env = "SSE_GATEWAY_TRACE_RATIO",
        value_name = "SHARE",
        default_value = "0.01",
        value_parser = parse_share
    )]
    trace_ratio: f64,

    /// Delay from SIGTERM until the gateway stops accepting connections. /readyz answers 503 from SIGTERM on. The delay
    /// has to be longer than a balancer takes to notice. SIGINT (Ctrl-C) has no delay.
    #[arg(long, env = "SSE_GATEWAY_DRAIN_DELAY", value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    drain_delay: Duration,

    /// Time that a client has to send a request's head, or to set up TLS. An idle connection is closed after it.
    #[arg(long, env = "SSE_GATEWAY_HEADER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    header_timeout: Duration,

    /// Interval of the messages that this replica sends to itself, through Redis and its own /events; 0s: none. Metrics
    /// then show whether events pass.
    #[arg(long, env = "SSE_GATEWAY_CANARY_INTERVAL", value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    canary_interval: Duration,

    /// A page at / to watch, publish, cut and resume streams during development.
    #[arg(
        long,
        env = "SSE_GATEWAY_CONSOLE",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    console: bool,

    /// The page at / knows the publish token, and can kill the replica: for ./dev up.
    #[arg(
        long,
        env = "SSE_GATEWAY_CONSOLE_DEMO",
        hide = true,
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    console_demo: bool,

    /// Time within which a ticket has to be used.
    #[arg(long, env = "SSE_GATEWAY_TICKET_TTL", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    ticket_ttl: Duration,

    /// Certificate chain in PEM for TLS on the public port. It is read again when it changes.
    #[arg(
        long,
        env = "SSE_GATEWAY_TLS_CERTIFICATE",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_certificate: Option<PathBuf>,

    /// Key in PEM of --tls-certificate.
    #[arg(
        long,
        env = "SSE_GATEWAY_TLS_KEY",
        value_name = "FILE",
        requires = "tls_certificate"
    )]
    tls_key: Option<PathBuf>,

    /// TOML file with rules per channel pattern, and with access rules.
    #[arg(long, env = "SSE_GATEWAY_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// The other commands of the binary.
#[derive(Subcommand, Debug)]
enum Command {
    /// Checks whether the gateway on this machine is ready, at --admin-listen: for the health check of a container.
    Healthcheck,
    /// Ends all streams of a subject, on every replica.
    Revoke {
        /// The subject, as in the token's `sub`.
        subject: String,
    },
    /// Checks a gateway from the side of its clients, through the load balancer, and its Redis. Suggests fixes.
    ///
    /// Publishes a few events: by POST with --publish-token, otherwise in --redis-url. The exit status is 1 if
    /// something is wrong. It is 3 if nothing is wrong, but some checks could not run.
    Doctor {
        /// URL that clients connect to: https://example.com/events. Without it only Redis is checked.
        url: Option<String>,
        /// A channel that doctor may publish to [default: doctor].
        #[arg(long, value_name = "NAME")]
        channel: Option<String>,
        /// Header line of each request to subscribe: 'Authorization: Bearer ...'. May be repeated.
        #[arg(long = "header", value_name = "LINE")]
        headers: Vec<String>,
        /// Time for which a stream is left idle.
        #[arg(long, value_name = "TIME", default_value = "65s", value_parser = humantime::parse_duration)]
        idle: Duration,
        /// Opens streams for this time instead, and reports each that is refused, cut or late: for a rollout. With
        /// --redis-url it reports raw messages that are refused or look serialized, of --channel or of all channels.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        watch: Option<Duration>,
    },
    /// Reads flags, environment, configuration file, keys and certificates as at a start, and reports errors.
    Check,
    /// Prints a token for experiments, signed with the [jwt] secret of the configuration file.
    Token {
        /// Subject of the token.
        #[arg(long, default_value = "anna")]
        subject: String,
        /// Patterns of channels that it may subscribe to.
        #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
        subscribe: Vec<String>,
        /// Patterns of channels that it may publish to.
        #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
        publish: Vec<String>,
        /// Time for which the token is valid.
        #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
}

/// The command that the binary runs.
#[derive(Debug)]
pub enum Invocation {
    /// Run a gateway.
    Serve(Box<Config>),
    /// End the streams of a subject.
    Revoke {
        /// The Redis of the deployment.
        redis: broker::Server,
        /// The subject.
        subject: String,
    },
    /// Examine a gateway.
    Examine(Box<Doctor>),
    /// Ask the gateway on this machine whether it is ready. This is its address for operators.
    CheckHealth(SocketAddr),
    /// Print this text.
    Print(String),
}

/// The checked configuration. No other code checks it again.
#[derive(Clone, Debug)]
pub struct Config {
    /// Public address.
    pub listen: ListenAddress,
    /// Address for operators.
    pub admin_listen: SocketAddr,
    /// Settings of the broker.
    pub broker: broker::Config,
    /// Threads that serve connections, at least one.
    pub workers: usize,
    /// Silence after which the gateway sends a comment.
    pub heartbeat: Duration,
    /// Time after which clients reconnect, before jitter.
    pub retry: Duration,
    /// Channels that one connection may subscribe to.
    pub max_channels: usize,
    /// Bytes of a channel's newest events that a worker keeps.
    pub tail_bytes: usize,
    /// Channels that requests from one address may name in a second.
    pub max_channel_rate_per_address: u32,
    /// Tickets that one subject may be issued while a ticket lasts.
    pub max_tickets_per_subject: u32,
    /// Time within which a ticket has to be used.
    pub ticket_ttl: Duration,
    /// The access rules.
    pub(crate) access: access::Config,
    /// Settings that are valid but probably mistakes, one sentence each.
    pub doubts: Vec<String>,
    /// The sections of the file, to compare with those of a newer file.
    pub(crate) sections: Sections,
    /// The limits.
    pub(crate) bounds: Bounds,
    /// Proxies that are trusted.
    pub(crate) proxies: Proxies,
    /// The page at /, if there is one.
    pub(crate) console: Option<Console>,
    /// Whether each connection begins with a header that names the client.
    pub(crate) proxy_protocol: bool,
    /// Age at which streams end, if ever, before jitter.
    pub max_stream_age: Option<Duration>,
    /// Time between two messages of the canary, if there is one.
    pub canary: Option<Duration>,
    /// Time that a client has for a request's head.
    pub header_timeout: Duration,
    /// TLS on the public port.
    pub(crate) tls: Option<TlsFiles>,
    /// Time from the first 503 of /readyz to the end of accepting connections.
    pub drain_delay: Duration,
    /// Time over which streams are ended when the process stops.
    pub drain_window: Duration,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Settings of traces, if there are traces.
    pub traces: Option<TracesConfig>,
}

/// The longest silence that balancers allow by default.
const SILENCE: Duration = Duration::from_secs(60);
/// Longer than any sensible setting, and far below the overflow of times.
const MAX_TIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// An error of the configuration, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl From<access::Invalid> for Invalid {
    fn from(error: access::Invalid) -> Self {
        Self(error.to_string())
    }
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

/// An environment variable that looks like one of this program but is unknown.
#[derive(Debug)]
pub struct UnknownVariable {
    /// Its name.
    pub name: String,
    /// The known variable that is probably meant.
    pub nearest: Option<String>,
}

/// Environment variables that begin like those of this program but are unknown. Otherwise a misspelled one would be
/// ignored silently. Variables that Kubernetes sets for a Service named `sse-gateway` are skipped.
#[must_use]
pub fn unknown_variables() -> Vec<UnknownVariable> {
    let command = Flags::command();
    let known = || {
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        variables.filter_map(std::ffi::OsStr::to_str)
    };
    let unknown = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let name = name.into_string().ok()?;
        let is_ours = name.to_ascii_uppercase().starts_with("SSE_GATEWAY_");
        if !is_ours || known().any(|known| known == name) || is_of_a_service(&name, &value) {
            return None;
        }
        let nearest = nearest(&name, known()).map(str::to_owned);
        Some(UnknownVariable { name, nearest })
    };
    std::env::vars_os().filter_map(unknown).collect()
}

/// An empty variable counts as unset, because templates and Compose files leave unused variables empty. An empty
/// `SSE_GATEWAY_PUBLIC_CHANNELS` means that no channel is public.
fn without_empty_variable(argument: clap::Arg) -> clap::Arg {
    let is_empty = argument
        .get_env()
        .and_then(std::env::var_os)
        .is_some_and(|value| value.is_empty());
    match is_empty && argument.get_id() != "public_channels" {
        true => argument.env(None::<&str>),
        false => argument,
    }
}

/// `SSE_GATEWAY_SERVICE_HOST`, `SSE_GATEWAY_PORT=tcp://...`, `SSE_GATEWAY_PORT_8080_TCP_ADDR` and the like.
fn is_of_a_service(name: &str, value: &std::ffi::OsStr) -> bool {
    let is_url = value.to_str().is_some_and(|value| value.contains("://"));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && is_url)
        || ["_TCP", "_UDP", "_SCTP"]
            .iter()
            .any(|protocol| name.contains("_PORT_") && name.contains(protocol))
}

impl Invocation {
    /// Reads flags, environment and file.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn from_args() -> Result<Self, Invalid> {
        let parsed = Flags::command()
            .mut_args(without_empty_variable)
            .try_get_matches();
        let parsed = parsed.and_then(|matches| {
            let flags = Flags::from_arg_matches(&matches)?;
            let is_given = |name| {
                let source = matches.value_source(name);
                source.is_some_and(|source| source != ValueSource::DefaultValue)
            };
            Ok((flags, is_given("redis_url") || is_given("redis_sentinels")))
        });
        match parsed {
            Ok((flags, names_redis)) => Self::new(flags, names_redis),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                ) =>
            {
                let manual = error.render();
                let manual = match io::stdout().is_terminal() {
                    true => manual.ansi().to_string(),
                    false => manual.to_string(),
                };
                Ok(Self::Print(manual.trim_end().to_owned()))
            }
            Err(error) => Err(one_line(&error)),
        }
    }

    /// `names_redis`: a flag or a variable names Redis, so it is not the default.
    fn new(mut flags: Flags, names_redis: bool) -> Result<Self, Invalid> {
        match flags.command.take() {
            None => Ok(Self::Serve(Box::new(Config::new(flags)?))),
            Some(Command::Check) => {
                let file = flags.config.clone();
                let checked = Config::new(flags)?.check()?;
                Ok(Self::Print(match file {
                    Some(file) => format!("{} is valid: {checked}", file.display()),
                    None => format!("flags and environment are valid, without a file: {checked}"),
                }))
            }
            Some(Command::Healthcheck) => Ok(Self::CheckHealth(flags.admin_listen)),
            Some(Command::Revoke { subject } | Command::Token { subject, .. })
                if !(1..=MAX_SUBJECT).contains(&subject.len()) =>
            {
                Err(Invalid(format!("a subject is 1 to {MAX_SUBJECT} bytes")))
            }
            Some(Command::Revoke { subject }) => Ok(Self::Revoke {
                redis: flags.redis()?,
                subject,
            }),
            Some(Command::Doctor {
                url,
                channel,
                headers,
                idle,
                watch,
            }) => {
                if url.is_none() && !names_redis {
                    return Err(Invalid(
                        "doctor: the URL of a stream is needed, such as https://example.com/events, or --redis-url"
                            .to_owned(),
                    ));
                }
                let redis = flags.redis()?;
                let publish = match flags.access.publish_token.take() {
                    Some(token) if token.is_token() => Publish::Post(token),
                    Some(_) => {
                        return Err(Invalid(
                            "--publish-token: a token has at least one character, all of them visible ASCII. Without one, \
                             events are published in --redis-url"
                                .to_owned(),
                        ));
                    }
                    None => Publish::Redis(redis.clone()),
                };
                let route = match url {
                    None => None,
                    Some(url) => Some(Route {
                        url: parse_url(&url)?,
                        headers: parse_headers(&headers)?,
                        channel: channel.clone().unwrap_or_else(|| "doctor".to_owned()),
                        publish,
                        idle,
                    }),
                };
                Ok(Self::Examine(Box::new(Doctor {
                    route,
                    redis: names_redis.then_some(redis),
                    raw: broker::RawChannels {
                        prefix: flags.channel_prefix,
                        channel,
                        max_payload: flags.max_payload,
                    },
                    watch,
                })))
            }
            Some(Command::Token {
                subject,
                subscribe,
                publish,
                ttl,
            }) => {
                let file = File::read_or_default(flags.config.as_deref())?;
                let expires = now().saturating_add(ttl.as_secs());
                let (_, access, _) = file.split();
                let token = access.sign(&subject, &subscribe, &publish, expires)?;
                Ok(Self::Print(token))
            }
        }
    }
}

impl Flags {
    fn redis(&self) -> Result<broker::Server, Invalid> {
        let read = |flag: &str, path: &Option<PathBuf>| {
            let read = path.as_ref().map(|path| {
                fs::read(path)
                    .map_err(|error| Invalid(format!("{flag}: {}: {error}", path.display())))
            });
            read.transpose()
        };
        let certificate = read("--redis-certificate", &self.redis_certificate)?;
        let key = read("--redis-key", &self.redis_key)?;
        let identity = certificate.zip(key);
        let certificates = TlsCertificates {
            client_tls: identity.map(|(client_cert, client_key)| ClientTlsConfig {
                client_cert,
                client_key,
            }),
            root_cert: read("--redis-ca", &self.redis_ca)?,
        };
        let sentinels = self.redis_sentinels.as_deref().unwrap_or_default();
        broker::Server::new(&self.redis_url, certificates, list(sentinels))
            .map_err(|error| Invalid(error.to_string()))
    }
}

impl Config {
    fn new(flags: Flags) -> Result<Self, Invalid> {
        let invalid = |text: &str| Invalid(text.to_owned());
        let partitions = Partitions::new(flags.partitions)
            .ok_or_else(|| invalid("--partitions has to be 1 to 1024"))?;
        // The gateway takes channels with the prefix for raw messages. Its own channels must not be among them.
        let prefix = &flags.channel_prefix;
        if "ssegw:".starts_with(prefix) || prefix.starts_with("ssegw:") {
            return Err(invalid(
                "--channel-prefix cannot be empty, nor begin with ssegw: or be the beginning of it",
            ));
        }
        for (name, time) in [
            ("heartbeat", flags.heartbeat),
            ("retry", flags.retry),
            ("drain-window", flags.drain_window),
            ("drain-delay", flags.drain_delay),
            ("header-timeout", flags.header_timeout),
            ("ticket-ttl", flags.ticket_ttl),
            ("canary-interval", flags.canary_interval),
            ("max-stream-age", flags.max_stream_age),
        ] {
            if time > MAX_TIME {
                return Err(Invalid(format!("--{name} has to be at most 30d")));
            }
        }
        if flags.recorders == 0 {
            return Err(invalid("--recorders has to be at least 1"));
        }
        if flags.heartbeat < Duration::from_secs(1) {
            return Err(invalid("--heartbeat has to be at least 1s"));
        }
        if flags.max_channels == 0 {
            return Err(invalid("--max-channels has to be at least 1"));
        }
        // A stream has an id for each partition that its channels touch.
        if usize::from(partitions.count()).min(flags.max_channels) > LastEventId::MAX_PARTITIONS {
            return Err(Invalid(format!(
                "--partitions or --max-channels has to be at most {}: the id of a stream over more partitions is \
                 too long to be resumed",
                LastEventId::MAX_PARTITIONS
            )));
        }
        // Redis disconnects a subscriber when more than 32 MB wait for it.
        if !(1..=16 << 20).contains(&flags.max_payload) {
            return Err(invalid("--max-payload has to be 1 byte to 16MiB"));
        }
        // An append under way takes 1 MiB or more of it.
        if flags.max_pending < 4 << 20 {
            return Err(invalid("--max-pending has to be at least 4MiB"));
        }
        let is_tcp = matches!(flags.listen, ListenAddress::Tcp(_));
        let has_proxies = flags
            .trusted_proxies
            .as_ref()
            .is_some_and(|it| !it.is_empty());
        if flags.proxy_protocol && is_tcp && !has_proxies {
            return Err(invalid(
                "--proxy-protocol needs --trusted-proxies: the networks of the proxies that send the header",
            ));
        }
        if flags.header_timeout < Duration::from_secs(1) {
            return Err(invalid("--header-timeout has to be at least 1s"));
        }
        if !flags.canary_interval.is_zero() && flags.canary_interval < Duration::from_millis(100) {
            return Err(invalid(
                "--canary-interval has to be at least 100ms, or 0s for none",
            ));
        }
        if !flags.canary_interval.is_zero() && flags.proxy_protocol {
            return Err(invalid(
                "--canary-interval does not speak the PROXY protocol: leave out one of the two",
            ));
        }
        if flags.console_demo && !flags.listen.is_loopback() {
            return Err(invalid(
                "--console-demo gives the token of publishers to whoever looks: it needs a loopback address",
            ));
        }
        if flags.ticket_ttl < Duration::from_secs(1) {
            return Err(invalid("--ticket-ttl has to be at least 1s"));
        }
        if !flags.max_stream_age.is_zero() && flags.max_stream_age < Duration::from_secs(1) {
            return Err(invalid(
                "--max-stream-age has to be at least 1s, or 0s for never",
            ));
        }
        let redis = flags.redis()?;
        let traces = flags
            .otlp_endpoint
            .map(|endpoint| match parse_http(&endpoint) {
                Some(_) => Ok(TracesConfig {
                    endpoint,
                    ratio: flags.trace_ratio,
                }),
                None => Err(invalid(
                    "--otlp-endpoint: a URL is needed such as http://collector:4318",
                )),
            });
        let traces = traces.transpose()?;
        let file = File::read_or_default(flags.config.as_deref())?;
        let mut doubts = file.doubts();
        let (channels, access, sections) = file.split();
        let replica = format!("{:016x}", fastrand::u64(..));
        let demo = flags.console_demo.then(|| Demo {
            token: flags.access.publish_token.clone(),
            replica: replica.as_str().into(),
            redis_port: redis.plain_port(),
        });
        let console = (flags.console || flags.console_demo).then(|| Console {
            prefix: flags.channel_prefix.clone(),
            demo,
        });
        doubts.extend(access.doubts());
        let mut access = access::Config::new(access, flags.access)?;
        if !access.has_rule() {
            require_loopback(&flags.listen)?;
            access.allow_all();
        }
        doubts.extend(access.doubts(flags.listen.is_loopback()));
        let wide = flags.trusted_proxies.as_ref().and_then(Proxies::too_wide);
        doubts.extend(wide.map(|net| {
            format!(
                "--trusted-proxies {net} contains clients as well as proxies: a client there can claim any address in \
                 X-Forwarded-For, and so escape the limits per address"
            )
        }));
        if flags.heartbeat > SILENCE {
            doubts.push(format!(
                "--heartbeat {}: many balancers cut a connection that is silent for {}",
                humantime::format_duration(flags.heartbeat),
                humantime::format_duration(SILENCE)
            ));
        }
        let mut proxies = flags.trusted_proxies.unwrap_or_default();
        if let ListenAddress::Unix(_) = flags.listen {
            // The permissions of the socket decide which process connects. That process is the balancer.
            proxies.add(UNIX_PEER);
        }
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            listen: flags.listen,
            admin_listen: flags.admin_listen,
            broker: broker::Config {
                redis,
                replica,
                partitions,
                prefix: flags.channel_prefix,
                recorders: flags.recorders,
                rules: channels?,
                max_payload: flags.max_payload,
                max_pending: flags.max_pending,
                witness: None,
            },
            workers: flags.workers.map_or_else(cores, NonZeroUsize::get),
            heartbeat: flags.heartbeat,
            retry: flags.retry,
            max_channels: flags.max_channels,
            tail_bytes: flags.channel_buffer_bytes,
            max_channel_rate_per_address: flags.max_channel_rate_per_address,
            max_tickets_per_subject: flags.max_tickets_per_subject,
            ticket_ttl: flags.ticket_ttl,
            access,
            sections,
            doubts,
            bounds: Bounds {
                connections: flags.max_streams,
                per_address: flags.max_streams_per_address,
                per_subject: flags.max_streams_per_subject,
                channels: flags.max_open_channels,
                connects: flags.max_stream_rate,
                publishes: flags.max_publish_rate,
            },
            proxies,
            console,
            proxy_protocol: flags.proxy_protocol,
            max_stream_age: Some(flags.max_stream_age).filter(|age| !age.is_zero()),
            canary: Some(flags.canary_interval).filter(|canary| !canary.is_zero()),
            header_timeout: flags.header_timeout,
            tls: flags
                .tls_certificate
                .zip(flags.tls_key)
                .map(|(certificate, key)| TlsFiles { certificate, key }),
            drain_delay: flags.drain_delay,
            drain_window: flags.drain_window,
            log_format: flags.log_format,
            traces,
        })
    }
}

impl Config {
    /// Reads the other files that a start reads. Returns a summary of the configuration.
    fn check(&self) -> Result<String, Invalid> {
        tls::choose_provider();
        if let Some(files) = &self.tls {
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

fn parse_url(url: &str) -> Result<reqwest::Url, Invalid> {
    parse_http(url).ok_or_else(|| {
        Invalid("URL: one of a stream is needed, such as https://example.com/events".to_owned())
    })
}

fn parse_http(url: &str) -> Option<reqwest::Url> {
    let url = reqwest::Url::parse(url).ok()?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// Lines of a request's head. Errors do not quote them, because they may contain a secret.
fn parse_headers(lines: &[String]) -> Result<HeaderMap, Invalid> {
    let parse = |line: &String| {
        let (name, value) = line.split_once(':')?;
        let name: HeaderName = name.trim().parse().ok()?;
        Some((name, value.trim().parse().ok()?))
    };
    let parsed = lines.iter().map(parse).collect::<Option<_>>();
    parsed.ok_or_else(|| {
        Invalid("--header: a line is needed such as 'Cookie: session=...'".to_owned())
    })
}

fn parse_workers(text: &str) -> Result<NonZeroUsize, &'static str> {
    let number = text.parse();
    number.map_err(|_| "a number of threads is needed, 1 or more; without this flag there is one for each core")
}

fn parse_share(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok();
    let share = share.filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("a share is needed, 0 to 1, such as 0.01 for one event in a hundred")
}

/// An error of clap in one line, without the usage.
fn one_line(error: &clap::Error) -> Invalid {
    let text = error.to_string();
    let lines = text.lines().map(str::trim);
    let lines = lines.take_while(|line| {
        !line.starts_with("Usage:") && !line.starts_with("For more information")
    });
    let mut words = String::new();
    for line in lines.filter(|line| !line.is_empty()) {
        let line = line.strip_prefix("error: ").unwrap_or(line);
        match line.strip_prefix("tip: ") {
            Some(tip) => words += &format!("; {tip}"),
            None if words.is_empty() => line.clone_into(&mut words),
            None => words += &format!(" {line}"),
        }
    }
    if error.kind() == ErrorKind::InvalidSubcommand {
        let command = Flags::command();
        let names: Vec<_> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        words += &format!(
            "; there are {}. --console and --proxy-protocol take no value",
            names.join(", ")
        );
    }
    Invalid(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, Invalid> {
        let args = [&["sse-gateway"], args].concat();
        Config::new(Flags::try_parse_from(args).map_err(|error| one_line(&error))?)
    }

    #[test]
    fn a_wrong_value_is_one_line_that_names_it() {
        for (args, expected) in [
            (
                &["--partitions", "0"][..],
                "--partitions has to be 1 to 1024",
            ),
            (
                &["--partitions", "1024", "--max-channels", "250"],
                "--partitions or --max-channels has to be at most 128: ",
            ),
            (
                &["--heartbeat", "soon"],
                "invalid value 'soon' for '--heartbeat <TIME>'",
            ),
            (
                &["--redis-url", "http://x"],
                "--redis-url: http:// is not a scheme of redis: ",
            ),
            (
                &["--channel-prefix", ""],
                "--channel-prefix cannot be empty",
            ),
            (
                &["--no-such-flag"],
                "unexpected argument '--no-such-flag' found",
            ),
            (&["--config", "/no/such/file"], "/no/such/file: "),
            (&["--max-payload", "1GB"], "invalid value '1GB'"),
            (&["--max-payload", "17MiB"], "--max-payload has to be"),
            (&["--max-pending", "4095KiB"], "--max-pending has to be"),
            (
                &["--redis-url", "redis://127.0.0.1/1"],
                "--redis-url: a deployment needs a Redis of its own",
            ),
            (
                &["--redis-url", "rediss://x/#insecure"],
                "--redis-url: #insecure is not supported",
            ),
            (
                &["--redis-sentinels", "a,b", "--redis-url", "unix:///x"],
                "--redis-sentinels: --redis-url has to be redis://NAME",
            ),
            (&["--redis-sentinels", "a,http://b"], "--redis-sentinels: "),
            (
                &["--redis-sentinels", "rediss://a/#insecure"],
                "--redis-sentinels: ",
            ),
            (
                &["--redis-ca", "/no/such/file"],
                "--redis-ca: /no/such/file: ",
            ),
            (
                &["--redis-ca", "Cargo.toml"],
                "--redis-ca, --redis-certificate and --redis-key need rediss://",
            ),
            (
                &["--redis-url", "rediss://x", "--redis-ca", "Cargo.toml"],
                "--redis-ca: no certificate in PEM",
            ),
            (
                &[
                    "--redis-url",
                    "rediss://x",
                    "--redis-certificate",
                    "Cargo.toml",
                    "--redis-key",
                    "Cargo.toml",
                ],
                "--redis-certificate, --redis-key: no certificate in PEM",
            ),
            (
                &["--redis-key", "x"],
                "the following required arguments were not provided: --redis-certificate <FILE>",
            ),
            (
                &["--listen", "0.0.0.0:8080"],
                "--listen 0.0.0.0:8080 is not only",
            ),
            (
                &["--proxy-protocol"],
                "--proxy-protocol needs --trusted-proxies",
            ),
            (
                &["--trusted-proxies", "10.0.0.0/33"],
                "invalid value '10.0.0.0/33'",
            ),
            (&["--cors-origins", "*"], "invalid value '*'"),
            (
                &["--console-demo", "--listen", "0.0.0.0:8080"],
                "--console-demo gives the token",
            ),
            (
                &["--trace-ratio", "1.01"],
                "invalid value '1.01' for '--trace-ratio <SHARE>': a share is needed, 0 to 1, such as 0.01",
            ),
            (&["--trace-ratio", "NaN"], "invalid value 'NaN'"),
            (
                &["--trace-ratio", "50%"],
                "invalid value '50%' for '--trace-ratio <SHARE>': a share is needed",
            ),
            (
                &["--listen", "8080"],
                "invalid value '8080' for '--listen <ADDRESS>': an IP address and a port are needed, such as 127.0.0.1:8080",
            ),
            (
                &["--listen", ":8080"],
                "invalid value ':8080' for '--listen",
            ),
            (
                &["--admin-listen", "localhost:9090"],
                "invalid value 'localhost:9090' for '--admin-listen <ADDRESS>': an IP address",
            ),
            (
                &["--workers", "0"],
                "invalid value '0' for '--workers <N>': a number of threads is needed, 1 or more",
            ),
            (
                &["--console", "false"],
                "unrecognized subcommand 'false'; there are healthcheck, revoke, doctor, check, token. --console and",
            ),
            (&["--redis", "x"], "unexpected argument '--redis' found; "),
            (
                &["revoke"],
                "the following required arguments were not provided: <SUBJECT>",
            ),
            (
                &["--log-format", "xml"],
                "invalid value 'xml' for '--log-format <FORMAT>' [possible values: text, json]",
            ),
            (
                &["--redis-url", "localhost:6379"],
                "--redis-url: \"localhost:6379\" has no scheme: a URL is needed, such as redis://localhost:6379, ",
            ),
            (
                &["--redis-url", "user:5113@localhost"],
                "--redis-url: it has no scheme: a URL is needed, such as redis://[user:password@]host[:port]",
            ),
            (
                &["--redis-url", "redis://user:5113@:x"],
                "--redis-url: it cannot be read",
            ),
            (
                &["--trusted-proxies", "10.0.0.1/8"],
                "invalid value '10.0.0.1/8' for '--trusted-proxies <NETWORKS>': \"10.0.0.1/8\" is neither the network \
                 10.0.0.0/8 nor the address 10.0.0.1",
            ),
            (
                &["--otlp-endpoint", "collector:4317"],
                "--otlp-endpoint: a URL",
            ),
            (&["--retry", "9999y"], "--retry has to be at most 30d"),
            (&["--ticket-ttl", "0s"], "--ticket-ttl has to be"),
            (&["--max-stream-age", "5ms"], "--max-stream-age has to be"),
            (
                &["--tls-key", "x"],
                "the following required arguments were not provided: --tls-certificate <FILE>",
            ),
            (
                &["--channel-prefix", "sse"],
                "--channel-prefix cannot be empty",
            ),
        ] {
            let error = config(args).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains('\n') && !error.contains("5113"), "{error}");
        }
    }

    #[test]
    fn settings_that_are_probably_mistakes_are_named() {
        let public = ["--listen", "0.0.0.0:8080", "--public-channels", "*"];
        for (args, expected) in [
            (
                &["--publish-token", "secret"][..],
                Some("a publish token has fewer than 16"),
            ),
            (&["--publish-token", "0123456789abcdef"], None),
            (
                &["--trusted-proxies", "0.0.0.0/0"],
                Some("--trusted-proxies 0.0.0.0/0 "),
            ),
            (&["--trusted-proxies", "10.0.0.0/8,fc00::/7"], None),
            (&["--heartbeat", "2m"], Some("--heartbeat 2m: ")),
            (
                &["--cors-origins", "https://*.co.uk"],
                Some("--cors-origins https://*.co.uk "),
            ),
            (
                &["--cors-origins", "https://*.github.io"],
                Some("--cors-origins https://*.github.io "),
            ),
            (
                &[
                    "--cors-origins",
                    "https://*.example.co.uk,http://*.corp.intern",
                ],
                None,
            ),
        ] {
            let doubts = config(&[&public[..], args].concat()).unwrap().doubts;
            assert_eq!(
                doubts.len(),
                usize::from(expected.is_some()),
                "{args:?} {doubts:?}"
            );
            assert!(
                doubts
                    .iter()
                    .all(|doubt| doubt.starts_with(expected.unwrap())),
                "{doubts:?}"
            );
        }
    }

    #[test]
    fn a_public_address_needs_a_rule_for_subscribers() {
        let check = |listen: &str, more: &[&str]| {
            config(&[&["--listen", listen], more].concat()).map_err(|error| error.to_string())
        };
        for local in ["127.0.0.1:80", "[::1]:80"] {
            check(local, &[]).unwrap();
        }
        for open in ["0.0.0.0:80", "unix:/run/a"] {
            for more in [&[][..], &["--publish-token", "a"]] {
                let error = check(open, more).unwrap_err();
                assert!(error.contains("--public-channels"), "{error}");
            }
            check(open, &["--public-channels", ""]).unwrap();
        }
    }

    #[test]
    fn either_partitions_or_channels_may_be_many() {
        for (partitions, channels) in [("128", "100000"), ("1024", "128"), ("1", "100000")] {
            config(&["--partitions", partitions, "--max-channels", channels]).unwrap();
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let flags = ["sse-gateway", "--publish-token", "-5113"];
        let flags = Flags::try_parse_from(flags).unwrap();
        assert!(!format!("{flags:?}").contains("5113"));
    }

    #[test]
    fn the_manual_is_consistent() {
        Flags::command().debug_assert();
    }
}
