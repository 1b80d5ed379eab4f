//! The commands of the binary, and their flags.

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    time::Duration,
};

use access::now;
use axum::http::{HeaderMap, HeaderName};
use broker::{MAX_SUBJECT, PublishKeys};
use clap::{
    CommandFactory as _, FromArgMatches as _, Subcommand, error::ErrorKind, parser::ValueSource,
};

use super::{Config, Flags, file::File, migrate::MigrateFlags, variables};
use crate::{
    doctor::{Doctor, PublishWay, Route},
    invalid::Invalid,
    keys::{self, KeysFormat},
    migrate::Migrate,
    telemetry::LogFormat,
};

/// The other commands of the binary.
#[derive(Subcommand, Debug)]
pub(super) enum Command {
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
    /// Moves a deployment to another Redis, to a Redis Cluster, or to more partitions, while gateways run.
    ///
    /// Copies all channels while --from is in use. Then --from takes no events for a moment, the rest is copied, and --to
    /// takes them. Until it is stopped, raw messages that are published at --from are recorded at --to. If it ends too
    /// early, start it again. --partitions is the number at --to, a multiple of that at --from.
    Migrate(MigrateFlags),
    /// Prints the keys of `FCALL sse_publish` for backends that call it in a Redis Cluster. Needs no Redis.
    ///
    /// Prints partition, slot and keys of each channel. Without a channel it prints the prefix of the keys of each
    /// partition, as JSON for a backend that computes the keys itself. --partitions is that of the gateways.
    Keys {
        /// The channels.
        channels: Vec<String>,
        /// Idempotency key of the call, which is then the sixth key.
        #[arg(long, value_name = "KEY", requires = "channels")]
        idempotency_key: Option<String>,
        /// How the keys are printed.
        #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
        format: KeysFormat,
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
    /// Move a deployment to another Redis.
    Migrate(Box<Migrate>, LogFormat),
    /// Ask the gateway on this machine whether it is ready. This is its address for operators.
    CheckHealth(SocketAddr),
    /// Print this text.
    Print(String),
}

/// Flags with a default, which a flag or a variable has set.
#[derive(Clone, Copy)]
struct Given {
    /// The flags that name Redis.
    redis: bool,
    partitions: bool,
}

impl Invocation {
    /// Reads flags, environment and file.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn from_args() -> Result<Self, Invalid> {
        let parsed = Flags::command()
            .mut_args(variables::without_empty_variable)
            .try_get_matches();
        let parsed = parsed.and_then(|matches| {
            let flags = Flags::from_arg_matches(&matches)?;
            let is_given = |name| {
                let source = matches.value_source(name);
                source.is_some_and(|source| source != ValueSource::DefaultValue)
            };
            let names_redis = ["redis_url", "redis_sentinels", "redis_cluster"]
                .into_iter()
                .any(is_given);
            let given = Given {
                redis: names_redis,
                partitions: is_given("partitions"),
            };
            Ok((flags, given))
        });
        match parsed {
            Ok((flags, given)) => Self::new(flags, given),
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

    fn new(mut flags: Flags, given: Given) -> Result<Self, Invalid> {
        let names_redis = given.redis;
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
            Some(Command::Healthcheck) => Ok(Self::CheckHealth(flags.listen.admin)),
            Some(Command::Revoke { subject } | Command::Token { subject, .. })
                if !(1..=MAX_SUBJECT).contains(&subject.len()) =>
            {
                Err(Invalid(format!("a subject is 1 to {MAX_SUBJECT} bytes")))
            }
            Some(Command::Revoke { subject }) => Ok(Self::Revoke {
                redis: flags.redis.server()?,
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
                let redis = flags.redis.server()?;
                let publish = match flags.access.publish_token.take() {
                    Some(token) if token.is_token() => PublishWay::Post(token),
                    Some(_) => {
                        return Err(Invalid(
                            "--publish-token: a token has at least one character, all of them visible ASCII. Without one, \
                             events are published in --redis-url"
                                .to_owned(),
                        ));
                    }
                    None => PublishWay::Redis(redis.clone()),
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
                        prefix: flags.events.channel_prefix,
                        channel,
                        max_payload: flags.events.max_payload,
                    },
                    watch,
                })))
            }
            Some(Command::Migrate(migrate)) => {
                let partitions = match given.partitions {
                    true => Some(flags.events.partitions()?),
                    false => None,
                };
                let migrate = migrate.read(&flags.redis, &flags.events, partitions)?;
                Ok(Self::Migrate(Box::new(migrate), flags.log_format))
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
            Some(Command::Keys {
                channels,
                idempotency_key,
                format,
            }) => {
                let keys = PublishKeys::new(flags.events.partitions()?);
                let text = match &*channels {
                    [] => keys::table(&keys, format),
                    names => keys::of_channels(&keys, names, idempotency_key.as_deref(), format)?,
                };
                Ok(Self::Print(text))
            }
        }
    }
}

fn parse_url(url: &str) -> Result<reqwest::Url, Invalid> {
    let url = reqwest::Url::parse(url).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| "URL: one of a stream is needed, such as https://example.com/events".into())
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

/// An error of clap in one line, without the usage.
pub(super) fn one_line(error: &clap::Error) -> Invalid {
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
