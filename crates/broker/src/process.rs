//! One Redis server process: how to connect to it, and the facts that it reports.

use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, aio::MultiplexedConnection};

use crate::Error;

/// Longest wait for a connection or for an answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);

/// A new connection, with limits of time.
pub(crate) async fn open(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = connection_config();
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    connection.await
}

/// The limits of time of a connection.
pub(crate) fn connection_config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT))
}

/// A field in an answer to INFO.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = info.lines().filter_map(|line| line.strip_prefix(name));
    fields.next().map(str::trim)
}

/// The facts about a server process.
pub(crate) struct ServerProcess {
    /// Differs for each process.
    pub(crate) run: String,
    /// In seconds. None if the clock was set back.
    pub(crate) uptime: Option<u64>,
    /// It is a node of a cluster.
    pub(crate) is_cluster: bool,
}

impl ServerProcess {
    /// Reads an answer to INFO; none without a run id.
    pub(crate) fn read(info: &str) -> Option<Self> {
        Some(Self {
            run: field(info, "run_id:")?.to_owned(),
            uptime: field(info, "uptime_in_seconds:").and_then(|uptime| uptime.parse().ok()),
            is_cluster: mode(info) == Some("cluster"),
        })
    }

    /// A process that has this name, and shows no facts. It may have been running beside the one before, and so each new
    /// process counts as a failover.
    pub(crate) fn named(run: String) -> Self {
        Self {
            run,
            uptime: Some(u64::MAX),
            is_cluster: false,
        }
    }
}

/// Whether an answer to INFO is from a node of a cluster, a sentinel or a server on its own. Valkey has renamed the field.
pub(crate) fn mode(info: &str) -> Option<&str> {
    field(info, "redis_mode:").or_else(|| field(info, "server_mode:"))
}

/// Whether a server reports that it is a master.
pub(crate) async fn is_master(client: &Client) -> Result<bool, Error> {
    let mut connection = open(client).await?;
    let role: redis::Value = Cmd::new().arg("ROLE").query_async(&mut connection).await?;
    let redis::Value::Array(parts) = role else {
        return Err(Error::Malformed);
    };
    Ok(parts.first().is_some_and(|role| contains(role, b"master")))
}

/// Whether an answer contains a text anywhere.
pub(crate) fn contains(value: &redis::Value, text: &[u8]) -> bool {
    match value {
        redis::Value::BulkString(bytes) => bytes == text,
        redis::Value::SimpleString(string) => string.as_bytes() == text,
        redis::Value::Array(values) => values.iter().any(|value| contains(value, text)),
        redis::Value::Map(pairs) => pairs
            .iter()
            .any(|(key, value)| contains(key, text) || contains(value, text)),
        _ => false,
    }
}
