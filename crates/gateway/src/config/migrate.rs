//! The flags of `sse-gateway migrate`.

use std::time::Duration;

use broker::{Migration, Server, TlsCertificates};
use hub::Partitions;
use text::list;

use super::redis::{EventFlags, RedisFlags};
use crate::{invalid::Invalid, migrate::Migrate, value};

/// The two Redis of a migration, and how it is done.
#[derive(clap::Args, Debug)]
pub(super) struct MigrateFlags {
    /// The Redis of the deployment, as in --redis-url of its gateways.
    #[arg(
        long,
        env = "SSE_GATEWAY_MIGRATE_FROM",
        value_name = "URL",
        hide_env_values = true
    )]
    from: String,

    /// Its sentinels, as in --redis-sentinels.
    #[arg(long, value_name = "LIST", hide_env_values = true)]
    from_sentinels: Option<String>,

    /// Some nodes of it, if it is a Redis Cluster, as in --redis-cluster.
    #[arg(long, value_name = "LIST")]
    from_cluster: Option<String>,

    /// The Redis to move it to. It has to be empty. --redis-ca, --redis-certificate and --redis-key are for
    /// both.
    #[arg(
        long,
        env = "SSE_GATEWAY_MIGRATE_TO",
        value_name = "URL",
        hide_env_values = true,
        required_unless_present = "abort"
    )]
    to: Option<String>,

    /// Its sentinels.
    #[arg(long, value_name = "LIST", requires = "to", hide_env_values = true)]
    to_sentinels: Option<String>,

    /// Some nodes of it, if it is a Redis Cluster.
    #[arg(long, value_name = "LIST", requires = "to")]
    to_cluster: Option<String>,

    /// Longest time for which no events are taken. If the rest is not copied by then, --from takes events again, and the
    /// command fails.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::time)]
    max_pause: Duration,

    /// Gateways that have to wait at --to before --from is closed. Start them while this command copies.
    #[arg(long, value_name = "N", default_value_t = 1)]
    gateways: usize,

    /// Ends when no raw message was published at --from for this time. Without it, relays until it is stopped.
    #[arg(long, value_name = "TIME", value_parser = value::time)]
    relay_until_quiet: Option<Duration>,

    /// Ends a migration that has not moved the deployment yet, and deletes the copies at --to.
    #[arg(long)]
    abort: bool,
}

impl MigrateFlags {
    /// The command. Without `partitions`, the deployment keeps their number.
    pub(super) fn read(
        self,
        redis: &RedisFlags,
        events: &EventFlags,
        partitions: Option<Partitions>,
    ) -> Result<Migrate, Invalid> {
        let server = |flag: &str, url: &str, sentinels: &Option<String>, nodes: &Option<String>| {
            let sentinels = sentinels.as_deref().unwrap_or_default();
            let nodes = nodes.as_deref().unwrap_or_default();
            // One end may have TLS, and the other none.
            let has_tls = url.starts_with("rediss:") || sentinels.contains("rediss:");
            let certificates = match has_tls {
                true => redis.certificates()?,
                false => TlsCertificates {
                    client_tls: None,
                    root_cert: None,
                },
            };
            let server = Server::new(url, certificates, list(sentinels), list(nodes));
            server.map_err(|error| {
                let text = error.to_string();
                let text = text.replace("--redis-url", flag);
                let text = text.replace("--redis-sentinels", &format!("{flag}-sentinels"));
                Invalid(text.replace("--redis-cluster", &format!("{flag}-cluster")))
            })
        };
        let from = server(
            "--from",
            &self.from,
            &self.from_sentinels,
            &self.from_cluster,
        )?;
        let to = self.to.as_deref();
        let to = to.map(|to| server("--to", to, &self.to_sentinels, &self.to_cluster));
        let to = to.transpose()?;
        if self.abort {
            return Ok(Migrate::Abort { from, to });
        }
        let to = to.ok_or("--to: a Redis is needed to move the deployment to")?;
        Ok(Migrate::Run(Migration {
            from,
            to,
            partitions,
            prefix: events.prefix()?.to_owned(),
            max_pending: events.max_pending,
            max_pause: self.max_pause,
            gateways: self.gateways,
            quiet: self.relay_until_quiet,
        }))
    }
}
