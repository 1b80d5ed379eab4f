//! `Error`: what can go wrong with a call to Redis, as far as a caller has to tell it apart.

use redis::RedisError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lease went to another recorder. Nothing was written.
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
        /// As Redis has it.
        stored: u16,
        /// As this process was started.
        configured: u16,
    },
    /// The server is too old for functions. Waiting does not help.
    #[error("this needs redis 7.0 or newer, or a server that speaks its functions")]
    TooOld,
    /// No answer, or none that can be relied on. A write may or may not have happened.
    #[error("redis is not available: {0}")]
    Unavailable(#[from] RedisError),
    /// No connection was free in time.
    #[error("no connection to redis: {0}")]
    Pool(#[from] deadpool_redis::PoolError),
    /// No connection, so nothing was sent.
    #[error("redis cannot be reached: {0}")]
    Unreachable(Box<Self>),
    /// The answer is of a server that is not the master any more, or that may not be.
    #[error("another redis is the master by now, or may be")]
    Left,
    /// No sentinel knows a master of this name.
    #[error("no sentinel knows where the master {name} is: {because}")]
    NoMaster {
        /// As they would know it.
        name: String,
        /// What one of them answered, or why it did not.
        because: String,
    },
    /// An answer that is not in our format.
    #[error("redis answered something that is not in the format of the function library")]
    Malformed,
}

impl Error {
    /// Whether trying again later is pointless.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Partitions { .. } | Self::TooOld)
    }

    pub(crate) fn of(error: RedisError) -> Self {
        match error.code() {
            Some("FENCED") => Self::Fenced,
            Some("RETIRED") => Self::Left,
            Some("OOM" | "READONLY" | "MISCONF" | "NOREPLICAS") => Self::Refused(error),
            _ if error.to_string().contains("unknown command") => Self::TooOld,
            _ => Self::Unavailable(error),
        }
    }
}

impl From<crate::entry::Malformed> for Error {
    fn from(_: crate::entry::Malformed) -> Self {
        Self::Malformed
    }
}
