//! Calls of functions, with a time limit each.
//!
//! If a server was restarted, promoted or flushed, its answer to any call shows that. Then the library is loaded, the
//! handshake is completed, and the call is made again. Callers do not notice.

use std::{sync::atomic::Ordering, time::Duration};

use redis::{Cmd, FromRedisValue, aio::MultiplexedConnection};

use super::{Connection, Node, handshake::is_without_library, master::Master};
use crate::{
    Error,
    call::{Call, Function, PlainCommand},
    process::field,
};

/// A call to a new server process is made again after the library was loaded, and after the handshake.
const ATTEMPTS: usize = 4;

impl Node {
    /// Sends a plain command on any connection.
    pub(crate) async fn command<T: FromRedisValue>(
        &self,
        name: PlainCommand,
        command: &Cmd,
    ) -> Result<T, Error> {
        let (mut connection, _) = self.connection().await?;
        self.metrics().command(name);
        let answer = command.query_async(&mut connection).await;
        let answer = answer.map_err(Error::of);
        answer.inspect_err(|error| {
            if error.is_elsewhere() {
                self.look();
            }
        })
    }

    /// Asks the server something about itself, on any connection. It is not counted.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let (mut connection, _) = self.connection().await?;
        let answer = command.query_async(&mut connection).await;
        answer.map_err(Error::of)
    }

    /// Calls a function on any connection.
    pub(crate) async fn call<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Error> {
        let (mut connection, master) = self.connection().await?;
        self.call_at(&master, &mut connection, call).await
    }

    /// Calls a function on this connection.
    pub(crate) async fn call_on<T: FromRedisValue>(
        &self,
        connection: &mut Connection,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let Connection { redis, master } = connection;
        self.call_at(master, redis, call).await
    }

    /// Calls a function that only reads, or publishes the data that it reads. A Redis that takes no writes runs a plain
    /// script instead, which does the same.
    pub(crate) async fn read<T: FromRedisValue>(&self, call: &Call<'_>) -> Result<T, Error> {
        let (mut connection, master) = self.connection().await?;
        match self.call_at(&master, &mut connection, call).await {
            Err(Error::Refused(_)) => {}
            done => return done,
        }
        let eval = call.script(&self.deployment().script());
        self.metrics().command(PlainCommand::Eval);
        let answer = eval.query_async(&mut connection).await;
        let answer = answer.map_err(Error::of)?;
        self.believe(&master, call.partition).await?;
        Ok(answer)
    }

    /// Calls a function on this connection to this master. An answer that may be from a replaced master is an error.
    async fn call_at<T: FromRedisValue>(
        &self,
        master: &Master,
        connection: &mut MultiplexedConnection,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let (function, partition, command) = (call.function, call.partition, call.command());
        if !self.may_ask(master, function, partition).await {
            return Err(Error::Unreachable(Box::new(Error::Replaced)));
        }
        let mut attempt = 1;
        loop {
            self.metrics().function(function);
            let timer = self.metrics().call(function);
            let answer = command.query_async(connection).await;
            drop(timer);
            let error = match answer {
                Ok(answer) => {
                    self.believe(master, partition).await?;
                    if !function.only_reads() {
                        self.0.read_only.store(false, Ordering::Relaxed);
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let is_left = self.has_replaced(master);
            if error.code() == Some("READONLY") && !is_left {
                self.0.read_only.store(true, Ordering::Relaxed);
                self.look();
            } else if matches!(error.code(), Some("MOVED" | "CLUSTERDOWN")) {
                self.look();
            }
            attempt += 1;
            if error.code() == Some("NOTREADY") && is_left {
                return Err(Error::Unreachable(Box::new(Error::Replaced)));
            } else if attempt > ATTEMPTS || is_left {
                return Err(Error::of(error));
            } else if error.code() == Some("NOTREADY") {
                let handshaken = self.handshake(master, connection, partition).await;
                // The call itself was refused.
                handshaken.map_err(|error| Error::Unreachable(Box::new(error)))?;
                // A FLUSHALL removes the number, too.
                let checked = self.check_partitions(connection).await;
                checked.map_err(|error| Error::Unreachable(Box::new(error)))?;
            } else if is_without_library(&error) {
                self.load(connection).await?;
            } else {
                return Err(Error::of(error));
            }
        }
    }

    /// Waits until this many copies of the server have everything that it has written until now. Returns how many have
    /// it at the end of that time.
    pub(crate) async fn wait(
        &self,
        connection: &mut Connection,
        copies: u8,
        time: Duration,
    ) -> Result<u64, Error> {
        let Connection { redis, master } = connection;
        let deployment = self.deployment();
        let partition = self.first_partition().ok_or(Error::NoOwner)?;
        let watermark = deployment.watermark(partition).to_string();
        // WAIT is about the writes of its own connection. So this connection makes a write after all others: an append
        // of nothing, which a server process without the handshake refuses.
        let nothing = deployment.new_call(Function::Append, partition);
        let nothing = nothing.arg(deployment.replica()).arg(&watermark);
        let mut wait = redis::pipe();
        wait.add_command(nothing.command()).ignore();
        wait.cmd("WAIT").arg(copies).arg(time.as_millis() as u64);
        self.metrics().function(Function::Append);
        self.metrics().command(PlainCommand::Wait);
        let (copies,): (u64,) = wait.query_async(redis).await.map_err(Error::of)?;
        self.believe(master, partition).await?;
        Ok(copies)
    }

    /// Waits for a moment until all copies of the server have the writes of this connection. Returns how many have not.
    pub(crate) async fn settle(&self, connection: &mut Connection) -> Result<u64, Error> {
        let redis = &mut connection.redis;
        let mut info = Cmd::new();
        info.arg("INFO").arg("replication");
        let info: String = info.query_async(redis).await.map_err(Error::of)?;
        let copies = field(&info, "connected_slaves:").and_then(|count| count.parse().ok());
        let copies: u64 = copies.unwrap_or_default();
        if copies == 0 {
            return Ok(0);
        }
        let mut wait = Cmd::new();
        wait.arg("WAIT").arg(copies).arg(1000);
        self.metrics().command(PlainCommand::Wait);
        let have: u64 = wait.query_async(redis).await.map_err(Error::of)?;
        Ok(copies.saturating_sub(have))
    }

    /// Runs a plain script on this connection.
    pub(crate) async fn eval_on<T: FromRedisValue>(
        &self,
        connection: &mut Connection,
        eval: &Cmd,
    ) -> Result<T, Error> {
        self.metrics().command(PlainCommand::Eval);
        let answer = eval.query_async(&mut connection.redis).await;
        answer.map_err(Error::of)
    }
}
