//! `Error`: the failures of a call to Redis, as far as callers have to distinguish them.

use std::fmt;

use redis::{ConnectionInfo, RedisError};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another recorder has acquired the lease. Nothing was written.
    #[error("another recorder holds the lease")]
    Fenced,
    /// Redis is up but takes no writes: out of memory, read-only, or unable to persist.
    /// Nothing was written.
    #[error("redis refuses writes: {0}")]
    Refused(RedisError),
    /// The deployment was started with another number of partitions. Waiting does not help.
    #[error(
        "the events in this redis lie in {stored} partitions, not {configured}: \
         set --partitions {stored}, or use another redis"
    )]
    Partitions {
        /// The number that Redis stores.
        stored: u16,
        /// The number with which this process was started.
        configured: u16,
    },
    /// The server is too old for functions. Waiting does not help.
    #[error("this needs redis 7.0 or newer, or a server that speaks its functions")]
    TooOld,
    /// No answer, or none that can be relied on. A write may or may not have happened.
    #[error("{}", unavailable(.0))]
    Unavailable(RedisError),
    /// The user that is logged in is not allowed to do this.
    #[error("redis does not allow this to its user; docs/redis.md lists what a gateway needs: {0}")]
    Forbidden(RedisError),
    /// The server is a node of a Redis Cluster, which keeps each key on one of many servers. Waiting does not help.
    #[error(
        "this redis is a node of a Redis Cluster: name some of its nodes with --redis-cluster host:port,host:port"
    )]
    IsCluster,
    /// A node of a cluster is none. Waiting does not help.
    #[error(
        "--redis-cluster names a redis without cluster support: name it in --redis-url, without --redis-cluster"
    )]
    NoCluster,
    /// The node does not hold these keys now: they are on their way to another one, or the cluster is down. Nothing was
    /// written.
    #[error("the keys are on another node of the cluster, or on their way there: {0}")]
    Elsewhere(RedisError),
    /// No node of the cluster is known to hold the partition.
    #[error("it is not known yet which node of the cluster holds the partition")]
    NoOwner,
    /// There is no connection, or it is not logged in.
    #[error("no connection to redis at {address}: {reason}")]
    Connect {
        /// The address of the server.
        address: String,
        /// The reason for the failure.
        reason: String,
    },
    /// The server wants a password, and none was given.
    #[error("redis wants a password: give it as in redis://[user]:password@host[:port]")]
    NoPassword,
    /// No connection, so nothing was sent.
    #[error("redis cannot be reached: {0}")]
    Unreachable(Box<Self>),
    /// The answer is from a server that is not the master any more, or may not be.
    #[error("another redis is the master by now, or may be")]
    Replaced,
    /// No sentinel knows a master of this name.
    #[error("no sentinel knows where the master {name} is: {because}")]
    NoMaster {
        /// The name by which they would know it.
        name: String,
        /// The answer of one of them, or the reason why it did not answer.
        because: String,
    },
    /// A migration keeps events and gateways out for a moment. Nothing was written.
    #[error(
        "the events of this redis are on their way to or from another one; sse-gateway migrate completes it"
    )]
    Migrating,
    /// The deployment has moved. Waiting does not help.
    #[error(
        "the events of this redis have moved to another one: name that one in --redis-url or --redis-cluster"
    )]
    Migrated,
    /// A command of a migration that is not in the state for it.
    #[error("{0}")]
    Migration(String),
    /// An answer that is not in our format.
    #[error("redis answered something that is not in the format of the function library")]
    Malformed,
}

fn unavailable(error: &RedisError) -> String {
    match error.is_io_error() {
        true => format!("redis is not available: {error}"),
        false => format!("redis answered with an error: {error}"),
    }
}

impl Error {
    /// Whether trying again later is pointless.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Partitions { .. }
                | Self::TooOld
                | Self::IsCluster
                | Self::NoCluster
                | Self::Migrated
        )
    }

    /// Whether nothing was sent, because there is no connection.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Unreachable(_))
    }

    /// Whether another node of the cluster may carry out the call, or this one later. Nothing was written.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            Self::Elsewhere(_) | Self::NoOwner => true,
            Self::Unreachable(error) => error.is_elsewhere(),
            _ => false,
        }
    }

    /// There is no connection, for this reason.
    pub(crate) fn connecting(info: &ConnectionInfo, error: &dyn fmt::Display) -> Self {
        let text = error.to_string();
        let settings = info.redis_settings();
        let user = settings.username().unwrap_or("default");
        let refuses = ["WRONGPASS", "AuthenticationFailed"];
        let reason = if refuses.iter().any(|word| text.contains(word)) {
            format!("it refuses the user {user:?}, or the password")
        } else if text.contains("NOAUTH") {
            Self::NoPassword.to_string()
        } else {
            text
        };
        Self::Connect {
            address: info.addr().to_string(),
            reason,
        }
    }

    /// Redis does not have the command: it is too old, or the command was renamed or removed.
    fn of_unknown(error: RedisError) -> Self {
        let text = error.to_string().to_ascii_lowercase().replace('`', "'");
        let new = ["function", "fcall", "fcall_ro", "spublish", "ssubscribe"];
        let is_new = |command| text.contains(&format!("unknown command '{command}'"));
        match new.into_iter().any(is_new) {
            true => Self::TooOld,
            false => Self::Forbidden(error),
        }
    }

    pub(crate) fn of(error: RedisError) -> Self {
        match error.code() {
            Some("FENCED") => Self::Fenced,
            Some("NOPERM") => Self::Forbidden(error),
            Some("NOAUTH") => Self::NoPassword,
            Some("MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN") => Self::Elsewhere(error),
            Some("RETIRED") => Self::Replaced,
            Some("MIGRATING") => Self::Migrating,
            Some("MIGRATED") => Self::Migrated,
            Some("OTHERMIGRATION" | "NOTRACE" | "NOTEMPTY" | "CLOSED") => {
                Self::Migration(error.detail().unwrap_or_default().to_owned())
            }
            Some("OOM" | "READONLY" | "MISCONF" | "NOREPLICAS") => Self::Refused(error),
            _ if error.to_string().contains("cluster support disabled") => Self::NoCluster,
            _ if error.to_string().contains("unknown command") => Self::of_unknown(error),
            _ => Self::Unavailable(error),
        }
    }
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::of(error)
    }
}

impl From<crate::entry::Malformed> for Error {
    fn from(_: crate::entry::Malformed) -> Self {
        Self::Malformed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_and_where() {
        let info: ConnectionInfo = "redis://anna:5113@redis.example.com".parse().unwrap();
        let at = "no connection to redis at redis.example.com:6379: ";
        for (error, expected) in [
            (
                "Connection refused (os error 111)",
                "Connection refused (os error 111)",
            ),
            (
                "Password authentication failed - AuthenticationFailed",
                "it refuses the user \"anna\", or the password",
            ),
            (
                "-WRONGPASS invalid username-password pair",
                "it refuses the user \"anna\", or the password",
            ),
            (
                "-NOAUTH Authentication required.",
                "redis wants a password: give it as in redis://[user]:password@host[:port]",
            ),
        ] {
            let text = Error::connecting(&info, &error).to_string();
            assert_eq!(text, format!("{at}{expected}"));
        }
    }

    #[test]
    fn an_error_answered_by_redis_is_not_reported_as_unavailable() {
        for (answer, expected) in [
            ("NOPERM no", "redis does not allow this to its user"),
            ("NOAUTH no", "redis wants a password"),
            ("MOVED 1 a:1", "the keys are on another node of the cluster"),
            ("ERR no", "redis answered with an error: "),
            ("OOM no", "redis refuses writes: "),
            (
                "ERR unknown command 'FUNCTION', with args",
                "this needs redis 7.0",
            ),
            (
                "ERR unknown command `FCALL`, with args",
                "this needs redis 7.0",
            ),
            (
                "ERR unknown command 'INFO', with args",
                "redis does not allow this to its user",
            ),
        ] {
            let reply = format!("-{answer}\r\n").into_bytes();
            let value = redis::parse_redis_value(&reply).unwrap();
            let error = value.extract_error().unwrap_err();
            let text = Error::of(error).to_string();
            assert!(text.starts_with(expected), "{text}");
        }
        let refused = std::io::Error::from(std::io::ErrorKind::TimedOut);
        let text = Error::of(refused.into()).to_string();
        assert_eq!(text, "redis is not available: timed out");
    }
}
