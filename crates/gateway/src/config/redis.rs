//! The flags about Redis, and about the events in it.

use std::{fs, path::PathBuf};

use broker::{ClientTlsConfig, Rule, Server, TlsCertificates};
use hub::Partitions;
use text::list;

use crate::{invalid::Invalid, value};

/// Flags about the connection to Redis.
#[derive(clap::Args, Debug)]
pub(super) struct RedisFlags {
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

    /// Some nodes of a Redis Cluster, separated by commas: host:port each. --redis-url then gives user, password and TLS.
    #[arg(
        long,
        env = "SSE_GATEWAY_REDIS_CLUSTER",
        value_name = "LIST",
        global = true
    )]
    redis_cluster: Option<String>,

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
}

/// Flags about the events of a deployment.
#[derive(clap::Args, Debug)]
pub(super) struct EventFlags {
    /// Prefix of the raw channels that are relayed: sse:news is channel news.
    #[arg(
        long,
        env = "SSE_GATEWAY_CHANNEL_PREFIX",
        value_name = "PREFIX",
        default_value = "sse:",
        global = true
    )]
    pub(super) channel_prefix: String,

    /// Number of partitions of the deployment, 1 to 1024. It has to be the same on all replicas. The command migrate moves
    /// a deployment to more.
    #[arg(
        long,
        env = "SSE_GATEWAY_PARTITIONS",
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1024),
        global = true
    )]
    pub(super) partitions: u16,

    /// Replicas that subscribe to raw PUBLISH: one active recorder per partition, the others on standby. 0 if backends
    /// publish with POST and FCALL only.
    #[arg(
        long,
        env = "SSE_GATEWAY_RECORDERS",
        value_name = "N",
        default_value_t = 2
    )]
    recorders: u32,

    /// Largest accepted payload, up to 16MiB.
    // Redis disconnects a subscriber when more than 32 MB wait for it.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_PAYLOAD",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = value::bytes(1..=16 << 20, "1 byte to 16MiB")
    )]
    pub(super) max_payload: usize,

    /// Bytes of raw messages that may wait to be recorded, per partition; at least 4MiB. Beyond that, messages of the
    /// channels that hold most are dropped, and their clients receive a gap.
    // An append under way takes 1 MiB or more of it.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_PENDING",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = value::bytes(4 << 20..=usize::MAX, "at least 4MiB"),
        global = true
    )]
    pub(super) max_pending: usize,
}

impl RedisFlags {
    /// The server. Reads the certificates.
    pub(super) fn server(&self) -> Result<Server, Invalid> {
        let sentinels = self.redis_sentinels.as_deref().unwrap_or_default();
        let nodes = self.redis_cluster.as_deref().unwrap_or_default();
        let certificates = self.certificates()?;
        Server::new(&self.redis_url, certificates, list(sentinels), list(nodes))
            .map_err(|error| Invalid(error.to_string()))
    }

    /// Reads the certificates.
    pub(super) fn certificates(&self) -> Result<TlsCertificates, Invalid> {
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
        Ok(TlsCertificates {
            client_tls: identity.map(|(client_cert, client_key)| ClientTlsConfig {
                client_cert,
                client_key,
            }),
            root_cert: read("--redis-ca", &self.redis_ca)?,
        })
    }
}

impl EventFlags {
    /// The number of partitions.
    pub(super) fn partitions(&self) -> Result<Partitions, Invalid> {
        Partitions::new(self.partitions).ok_or_else(|| "--partitions has to be 1 to 1024".into())
    }

    /// The prefix of raw channels. The gateway's own channels must not be among them.
    pub(super) fn prefix(&self) -> Result<&str, Invalid> {
        let prefix = self.channel_prefix.as_str();
        match "ssegw:".starts_with(prefix) || prefix.starts_with("ssegw:") {
            true => Err(
                "--channel-prefix cannot be empty, nor begin with ssegw: or be the beginning of it"
                    .into(),
            ),
            false => Ok(prefix),
        }
    }

    /// The settings of the broker.
    pub(super) fn into_config(
        self,
        redis: Server,
        rules: Vec<Rule>,
    ) -> Result<broker::Config, Invalid> {
        let partitions = self.partitions()?;
        let prefix = self.prefix()?.to_owned();
        Ok(broker::Config {
            redis,
            replica: format!("{:016x}", fastrand::u64(..)),
            partitions,
            prefix,
            recorders: self.recorders,
            rules,
            max_payload: self.max_payload,
            max_pending: self.max_pending,
            observer: None,
        })
    }
}
