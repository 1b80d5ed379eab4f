//! `relay`: passes messages on without ids while Redis takes no writes.

use redis::{Cmd, RedisError};

use crate::{
    Error,
    node::{Connection, Node},
};

/// A plain script, because Redis refuses functions that may publish whenever it refuses writes. KEYS: the lease. ARGV:
/// a token, 1 if no recorder can acquire the lease, then channels and messages. If no recorder can acquire it, a lease
/// that expired because it could not be renewed still belongs to this recorder.
const RELAY: &str = "\
    local holder = redis.call('GET', KEYS[1])
    if holder ~= ARGV[1] and (holder or ARGV[2] ~= '1') then return 0 end
    for i = 3, #ARGV, 2 do redis.call('SPUBLISH', ARGV[i], ARGV[i + 1]) end
    return 1";

/// Publishes all these messages to a Redis that takes no writes, unless another recorder holds the lease. Returns whether
/// it published them.
pub(super) async fn relay(
    node: &Node,
    connection: &mut Connection,
    partition: u16,
    token: &str,
    refusal: &RedisError,
    messages: &[(String, Vec<u8>)],
) -> Result<bool, Error> {
    let mut eval = Cmd::new();
    eval.arg("EVAL").arg(RELAY).arg(1);
    eval.arg(node.deployment().names().lease(partition))
        .arg(token);
    // Redis writes leases even when it is out of memory. So a lease that is gone was evicted, and another recorder may
    // have held it since.
    eval.arg(u8::from(refusal.code() != Some("OOM")));
    for (channel, message) in messages {
        eval.arg(channel).arg(message);
    }
    node.eval_on(connection, &eval).await
}
