//! Configuration: flags and environment as typed, then as meant.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use broker::Rule;
use clap::{Parser, error::ErrorKind};
use hub::Partitions;
use serde::Deserialize;

use crate::{
    access::{Credential, Pattern, Secret},
    telemetry::LogFormat,
};

/// Server-Sent Events from Redis pub/sub, with exact resume.
///
/// Every flag is also an environment variable: --redis-url is SSE_GATEWAY_REDIS_URL.
#[derive(Parser, Debug)]
#[command(name = "sse-gateway", version, max_term_width = 100)]
struct Flags {
    /// Public address: /events.
    #[arg(
        long,
        env = "SSE_GATEWAY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    listen: SocketAddr,

    /// Address for operators: /metrics, /livez, /readyz. Not for the public.
    #[arg(
        long,
        env = "SSE_GATEWAY_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090"
    )]
    admin_listen: SocketAddr,

    /// The Redis server, 7.0 or newer: redis://[user:password@]host[:port] or unix:///path.
    #[arg(
        long,
        env = "SSE_GATEWAY_REDIS_URL",
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379",
        hide_env_values = true
    )]
    redis_url: String,

    /// Raw channels that are relayed begin with this: sse:news is channel news.
    #[arg(
        long,
        env = "SSE_GATEWAY_CHANNEL_PREFIX",
        value_name = "PREFIX",
        default_value = "sse:"
    )]
    channel_prefix: String,

    /// Partitions of the deployment, 1 to 1024: the same on all replicas, and for ever.
    #[arg(
        long,
        env = "SSE_GATEWAY_PARTITIONS",
        value_name = "N",
        default_value_t = 1
    )]
    partitions: u16,

    /// Replicas that listen to raw PUBLISH; one of them records, the others are its heirs.
    #[arg(long, env = "SSE_GATEWAY_SEATS", value_name = "N", default_value_t = 2)]
    seats: u32,

    /// Threads that serve connections [default: one per core].
    #[arg(long, env = "SSE_GATEWAY_WORKERS", value_name = "N")]
    workers: Option<NonZeroUsize>,

    /// Silence after which a connection is sent a comment, so that no proxy takes it for dead.
    #[arg(long, env = "SSE_GATEWAY_HEARTBEAT", value_name = "TIME", default_value = "15s", value_parser = humantime::parse_duration)]
    heartbeat: Duration,

    /// Time after which clients reconnect; each is given between half and one and a half of it.
    #[arg(long, env = "SSE_GATEWAY_RETRY", value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    retry: Duration,

    /// Largest payload that is accepted, up to 16MiB.
    #[arg(long, env = "SSE_GATEWAY_MAX_PAYLOAD", value_name = "BYTES", default_value = "1MiB", value_parser = parse_bytes)]
    max_payload: usize,

    /// Channels that one connection may subscribe to.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_CHANNELS",
        value_name = "N",
        default_value_t = 100
    )]
    max_channels: usize,

    /// Time over which streams are ended when the process is told to stop.
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

    /// Whoever sends this as a bearer token may publish to every channel with POST /events, which
    /// is off without. The configuration file can have more of them, for some channels each.
    #[arg(
        long,
        env = "SSE_GATEWAY_PUBLISH_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    publish_token: Option<Secret>,

    /// TOML file with rules per channel pattern, and with publishers.
    #[arg(long, env = "SSE_GATEWAY_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The configuration file as written.
#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    channels: Vec<ChannelRule>,
    #[serde(default)]
    publish: Vec<PublishRule>,
}

/// One `[[channels]]` table. The first whose pattern matches a channel counts.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct ChannelRule {
    r#match: String,
    history: Option<u32>,
    max_age: Option<String>,
    expire: Option<String>,
}

/// One `[[publish]]` table: a secret, and the channels that it is for.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct PublishRule {
    token: Secret,
    #[serde(default = "every_channel")]
    channels: Vec<String>,
}

fn every_channel() -> Vec<String> {
    vec!["*".to_owned()]
}

/// The configuration as meant. Nothing checks it again.
#[derive(Clone, Debug)]
pub struct Config {
    /// Public address.
    pub listen: SocketAddr,
    /// Address for operators.
    pub admin_listen: SocketAddr,
    /// What the broker needs.
    pub broker: broker::Config,
    /// Threads that serve connections, at least one.
    pub workers: usize,
    /// Silence after which a connection is sent a comment.
    pub heartbeat: Duration,
    /// Time after which clients reconnect, before jitter.
    pub retry: Duration,
    /// Channels that one connection may subscribe to.
    pub max_channels: usize,
    /// Who may publish over HTTP.
    pub(crate) publish: Vec<Credential>,
    /// Time over which streams are ended at the end.
    pub drain_window: Duration,
    /// How logs are written.
    pub log_format: LogFormat,
}

/// One line that says what is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Config {
    /// Reads flags, environment and file. Prints the manual and exits when asked to.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn from_args() -> Result<Self, Invalid> {
        let flags = Flags::try_parse().map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => error.exit(),
            _ => one_line(&error),
        })?;
        Self::new(flags)
    }

    fn new(flags: Flags) -> Result<Self, Invalid> {
        let invalid = |text: &str| Invalid(text.to_owned());
        let partitions = Partitions::new(flags.partitions)
            .ok_or_else(|| invalid("--partitions has to be 1 to 1024"))?;
        // What begins with it would be taken for a raw message, and must not be one of our own.
        let prefix = &flags.channel_prefix;
        if "ssegw:".starts_with(prefix) || prefix.starts_with("ssegw:") {
            return Err(invalid(
                "--channel-prefix cannot be empty, nor begin with ssegw: or be the beginning of it",
            ));
        }
        if flags.seats == 0 {
            return Err(invalid("--seats has to be at least 1"));
        }
        if flags.heartbeat < Duration::from_secs(1) {
            return Err(invalid("--heartbeat has to be at least 1s"));
        }
        if flags.max_channels == 0 {
            return Err(invalid("--max-channels has to be at least 1"));
        }
        // Redis cuts off a subscriber for whom more than 32 MB wait.
        if !(1..=16 << 20).contains(&flags.max_payload) {
            return Err(invalid("--max-payload has to be 1 byte to 16MiB"));
        }
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let rules = file.channels.into_iter().map(ChannelRule::into_rule);
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            listen: flags.listen,
            admin_listen: flags.admin_listen,
            broker: broker::Config {
                redis: parse_redis(&flags.redis_url)?,
                replica: format!("{:016x}", fastrand::u64(..)),
                partitions,
                prefix: flags.channel_prefix,
                seats: flags.seats,
                rules: rules.collect::<Result<_, _>>()?,
                max_payload: flags.max_payload,
            },
            workers: flags.workers.map_or_else(cores, NonZeroUsize::get),
            heartbeat: flags.heartbeat,
            retry: flags.retry,
            max_channels: flags.max_channels,
            publish: credentials(flags.publish_token, file.publish)?,
            drain_window: flags.drain_window,
            log_format: flags.log_format,
        })
    }
}

impl PublishRule {
    fn into_credential(self) -> Result<Credential, Invalid> {
        if !self.token.is_token() {
            return Err(Invalid(
                "publish: a token has at least one character, all of them visible ASCII".to_owned(),
            ));
        }
        let channels = self.channels.into_iter().map(Pattern::new).collect();
        Ok(Credential::new(self.token, channels))
    }
}

/// Those of the flag and of the file.
fn credentials(token: Option<Secret>, rules: Vec<PublishRule>) -> Result<Vec<Credential>, Invalid> {
    let token = token.map(|token| PublishRule {
        token,
        channels: every_channel(),
    });
    let all = token.into_iter().chain(rules);
    let all: Vec<_> = all
        .map(PublishRule::into_credential)
        .collect::<Result<_, _>>()?;
    for (place, credential) in all.iter().enumerate() {
        let mut others = all[..place].iter();
        if others.any(|other| other.token == credential.token) {
            return Err(Invalid(
                "publish: two credentials have the same token".to_owned(),
            ));
        }
    }
    Ok(all)
}

impl ChannelRule {
    fn into_rule(self) -> Result<Rule, Invalid> {
        let pattern = self.r#match;
        let default = Rule::default();
        let duration = |name: &str, value: Option<String>, default: Duration| match value {
            None => Ok(default),
            Some(text) => humantime::parse_duration(&text).map_err(|error| {
                Invalid(format!(
                    "channels \"{pattern}\": {name} = \"{text}\": {error}"
                ))
            }),
        };
        let max_age = duration("max_age", self.max_age, default.max_age)?;
        let expire = duration("expire", self.expire, default.expire)?;
        if pattern.is_empty() {
            return Err(Invalid("channels: match cannot be empty".to_owned()));
        }
        if expire < Duration::from_secs(1) {
            return Err(Invalid(format!(
                "channels \"{pattern}\": expire has to be at least 1s"
            )));
        }
        Ok(Rule {
            pattern,
            history: self.history.unwrap_or(default.history),
            max_age,
            expire,
        })
    }
}

fn read_file(path: &Path) -> Result<File, Invalid> {
    let show = path.display();
    let text =
        std::fs::read_to_string(path).map_err(|error| Invalid(format!("{show}: {error}")))?;
    parse_file(&text).map_err(|Invalid(error)| Invalid(format!("{show}: {error}")))
}

fn parse_file(text: &str) -> Result<File, Invalid> {
    toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let mut message = error.message().replace('\n', ", ");
        // What stands there may be a secret in the wrong place.
        let there = text.lines().nth(line - 1).unwrap_or_default();
        if there.contains("publish") || there.contains("token") {
            "[[publish]] has token = \"...\" and channels = [...]".clone_into(&mut message);
        }
        Invalid(format!("line {line}: {message}"))
    })
}

fn parse_redis(url: &str) -> Result<broker::ConnectionInfo, Invalid> {
    // The URL may hold a password: it is not repeated.
    if url.starts_with("rediss:") {
        return Err(Invalid(
            "--redis-url: rediss:// is not supported yet".to_owned(),
        ));
    }
    let info: broker::ConnectionInfo = url
        .parse()
        .map_err(|error| Invalid(format!("--redis-url: {error}")))?;
    // Pub/sub and functions know no databases: two deployments would hear each other.
    if info.redis_settings().db() != 0 {
        return Err(Invalid(
            "--redis-url: a deployment needs a Redis of its own, database 0".to_owned(),
        ));
    }
    Ok(info)
}

fn parse_bytes(text: &str) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => return Err("expected a number of bytes like 65536, 64KiB or 1MiB".to_owned()),
    };
    let number: usize = number
        .parse()
        .map_err(|_| "expected a number of bytes".to_owned())?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "too many bytes".to_owned())
}

/// The first sentence of what clap says; the rest repeats the manual.
fn one_line(error: &clap::Error) -> Invalid {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    Invalid(line.strip_prefix("error: ").unwrap_or(line).to_owned())
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
                &["--heartbeat", "soon"],
                "invalid value 'soon' for '--heartbeat <TIME>'",
            ),
            (&["--redis-url", "http://x"], "--redis-url:"),
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
            (
                &["--redis-url", "redis://127.0.0.1/1"],
                "--redis-url: a deployment needs a Redis of its own",
            ),
            (
                &["--channel-prefix", "sse"],
                "--channel-prefix cannot be empty",
            ),
        ] {
            let error = config(args).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_repeated() {
        for file in [
            "[[publish]]\ntoken = 5113\n",
            "[[publish]]\ntoken = [\"5113\"]\n",
            "publish = [\"5113\"]\n",
            "publish = 5113\n",
            "[[publish]]\ntokn = \"5113\"\n",
            "[publish]\ntoken = \"5113\"\n",
        ] {
            let error = parse_file(file).unwrap_err().to_string();
            assert!(
                error.starts_with("line ") && !error.contains("5113"),
                "{error}"
            );
        }
        let flags = ["sse-gateway", "--publish-token", "-5113"];
        let flags = Flags::try_parse_from(flags).unwrap();
        assert!(!format!("{flags:?}").contains("5113"));
        for tokens in [
            "token = \"\"",
            "token = \"a b\"",
            "token = \"a\"\n[[publish]]\ntoken = \"a\"",
        ] {
            let file = parse_file(&format!("[[publish]]\n{tokens}\n")).unwrap();
            assert!(credentials(None, file.publish).is_err(), "{tokens}");
        }
    }

    #[test]
    fn rules_fill_up_with_the_defaults() {
        let file = "[[channels]]\nmatch = \"chat.*\"\nhistory = 5\nexpire = \"2h\"\n";
        let file: File = toml::from_str(file).unwrap();
        let rule = file
            .channels
            .into_iter()
            .next()
            .unwrap()
            .into_rule()
            .unwrap();
        assert_eq!((rule.history, rule.expire.as_secs()), (5, 7200));
        assert_eq!(rule.max_age, Rule::default().max_age);
    }

    #[test]
    fn the_manual_is_consistent() {
        use clap::CommandFactory as _;
        Flags::command().debug_assert();
    }
}
