//! The rights that a replica needs, tried one by one.
//!
//! A command in a transaction is checked when it is queued, and carried out by EXEC. EXEC is never sent, so all
//! commands can be tried with their keys and channels, and none is carried out. ACL DRYRUN would need rights of an
//! administrator.

use redis::{Value, aio::MultiplexedConnection};

use super::{ask, wrong};
use crate::{Error, Finding, Server, Verdict, wire};

/// A command of each right. `KEY`, `OWN` and `RAW` stand for a key, a pub/sub channel and a pattern that the replica
/// uses.
const TRIED: [(&str, &str); 50] = [
    ("ping", "PING"),
    ("unwatch", "UNWATCH"),
    ("info", "INFO server"),
    ("role", "ROLE"),
    ("function|list", "FUNCTION LIST"),
    ("function|load", "FUNCTION LOAD REPLACE x"),
    ("fcall", "FCALL x 1 KEY"),
    ("fcall_ro", "FCALL_RO x 1 KEY"),
    ("eval", "EVAL x 1 KEY"),
    ("spublish", "SPUBLISH OWN x"),
    ("subscribe", "SUBSCRIBE OWN"),
    ("psubscribe", "PSUBSCRIBE RAW"),
    ("ssubscribe", "SSUBSCRIBE OWN"),
    ("punsubscribe", "PUNSUBSCRIBE x"),
    ("sunsubscribe", "SUNSUBSCRIBE OWN"),
    ("pubsub|numsub", "PUBSUB NUMSUB x"),
    ("pubsub|shardnumsub", "PUBSUB SHARDNUMSUB x"),
    ("time", "TIME"),
    ("get", "GET KEY"),
    ("set", "SET KEY x"),
    ("getdel", "GETDEL KEY"),
    ("del", "DEL KEY"),
    ("exists", "EXISTS KEY"),
    ("pexpire", "PEXPIRE KEY 1"),
    ("pttl", "PTTL KEY"),
    ("hget", "HGET KEY x"),
    ("hmget", "HMGET KEY x"),
    ("hset", "HSET KEY x x"),
    ("hdel", "HDEL KEY x"),
    ("hrandfield", "HRANDFIELD KEY 1"),
    ("xadd", "XADD KEY * x x"),
    ("xtrim", "XTRIM KEY MAXLEN 1"),
    ("xlen", "XLEN KEY"),
    ("xrange", "XRANGE KEY - +"),
    ("xrevrange", "XREVRANGE KEY + -"),
    ("zadd", "ZADD KEY 1 x"),
    ("zrem", "ZREM KEY x"),
    ("zremrangebyscore", "ZREMRANGEBYSCORE KEY 0 1"),
    ("zremrangebyrank", "ZREMRANGEBYRANK KEY 0 1"),
    ("zcount", "ZCOUNT KEY 0 1"),
    ("zcard", "ZCARD KEY"),
    ("zscore", "ZSCORE KEY x"),
    ("lindex", "LINDEX KEY 0"),
    ("lrange", "LRANGE KEY 0 1"),
    ("ltrim", "LTRIM KEY 0 1"),
    ("lpush", "LPUSH KEY x"),
    ("rpush", "RPUSH KEY x"),
    ("wait", "WAIT 0 1"),
    ("config|get", "CONFIG GET maxmemory-policy"),
    ("multi", "MULTI"),
];

/// A key, and a pub/sub channel.
const TRIAL: &str = "ssegw:trial";

/// Rights without which raw messages are not recorded, and everything else works.
const RAW: [&str; 2] = ["psubscribe", "punsubscribe"];

/// Rights that a replica can do without, and the loss.
const OPTIONAL: [(&str, &str); 2] = [
    ("config|get", "gateways cannot warn of costly settings"),
    (
        "info",
        "each restart of Redis counts as a failover, and clients receive a gap event",
    ),
];

/// Whether the user has each right.
pub(super) async fn rights(server: &Server, prefix: &str) -> Vec<Finding> {
    const WHAT: &str = "rights";
    let user = server.user();
    let Tried {
        missing,
        unknown,
        is_complete,
    } = match try_all(server, prefix).await {
        Ok(tried) => tried,
        Err(error) => return vec![Finding::new(Verdict::Unknown, WHAT, error.to_string())],
    };
    let raw = wire::pattern(prefix);
    let is_raw = |right: &str| RAW.contains(&right) || right == format!("&{raw}");
    let loss = |right: &str| {
        let known = OPTIONAL.iter().find(|(optional, _)| *optional == right);
        known.map(|(_, loss)| *loss)
    };
    let is_needed = |right: &str| !is_raw(right) && loss(right).is_none();
    let mut findings = Vec::new();
    if !is_complete {
        let text = "the others cannot be tried without MULTI";
        findings.push(Finding::new(Verdict::Unknown, WHAT, text));
    }
    let lacks_some = missing.iter().any(|right| is_needed(right));
    if lacks_some {
        let granted = missing
            .iter()
            .filter(|right| right.as_str() != "config|get");
        let grants: Vec<_> = granted.map(|right| grant(right)).collect();
        let text = format!(
            "the user {user:?} lacks some that a gateway needs: ACL SETUSER {user} {}",
            grants.join(" ")
        );
        findings.push(wrong(WHAT, text));
    } else if is_complete {
        let text = format!("the user {user:?} has all that a gateway needs");
        findings.push(Finding::new(Verdict::Fine, WHAT, text));
    }
    let lacking: Vec<_> = (unknown.iter().filter(|command| is_needed(command)))
        .map(|command| command.replace('|', " ").to_uppercase())
        .collect();
    if !lacking.is_empty() {
        let text = format!("this server lacks {}", lacking.join(", "));
        findings.push(wrong(WHAT, text));
    }
    let raw_loss = "messages of PUBLISH are not recorded and reach no client; POST and FCALL sse_publish work. If \
                    nothing is published by PUBLISH, set --recorders 0";
    let raw_rights: Vec<_> = (missing.iter().filter(|right| is_raw(right)))
        .map(|right| grant(right))
        .collect();
    if !raw_rights.is_empty() && !lacks_some {
        let text = format!(
            "{raw_loss}. Else: ACL SETUSER {user} {}",
            raw_rights.join(" ")
        );
        findings.push(Finding::new(Verdict::Advice, WHAT, text));
    }
    if unknown.iter().any(|command| is_raw(command)) {
        let text = format!("this server has no PSUBSCRIBE: {raw_loss}");
        findings.push(Finding::new(Verdict::Advice, WHAT, text));
    }
    for (right, loss) in OPTIONAL {
        if missing.iter().any(|missing| missing == right) {
            let text = format!("{loss}: ACL SETUSER {user} {}", grant(right));
            findings.push(Finding::new(Verdict::Note, WHAT, text));
        } else if unknown.contains(&right) {
            let command = right.replace('|', " ").to_uppercase();
            let text = format!("this server has no {command}: {loss}");
            findings.push(Finding::new(Verdict::Note, WHAT, text));
        }
    }
    findings
}

/// The result of trying all rights.
struct Tried {
    /// The user lacks these rights.
    missing: Vec<String>,
    /// The server does not have the commands of these rights.
    unknown: Vec<&'static str>,
    /// All were tried.
    is_complete: bool,
}

/// As in ACL SETUSER. Patterns of keys and channels are complete.
fn grant(right: &str) -> String {
    match right.starts_with(['~', '&']) {
        true => right.to_owned(),
        false => format!("+{right}"),
    }
}

async fn try_all(server: &Server, prefix: &str) -> Result<Tried, Error> {
    let mut missing = Vec::new();
    // EXEC can only be tried by sending it. It is sent where no transaction exists that it could carry out. It has a
    // connection of its own, because MULTI then starts a transaction there.
    let mut trial = server.connect().await?;
    for (right, word) in [("exec", "EXEC"), ("multi", "MULTI")] {
        match ask::<Value>(&mut trial, &[word]).await {
            Ok(_) => {}
            Err(Error::Forbidden(_)) => missing.push(right.to_owned()),
            Err(Error::Unavailable(error)) if error.is_io_error() => return Err(error.into()),
            // A refused EXEC is answered EXECABORT, followed by the reason.
            Err(error) if error.to_string().contains("no permissions") => {
                missing.push(right.to_owned());
            }
            Err(_) => {}
        }
    }
    let is_complete = !missing.iter().any(|right| right == "multi");
    let mut unknown = Vec::new();
    if is_complete {
        let mut transaction = server.connect().await?;
        missing.extend(queue_all(&mut transaction, prefix, &mut unknown).await?);
    }
    Ok(Tried {
        missing,
        unknown,
        is_complete,
    })
}

/// Queues a command of each right, and answers the rights that are missing. Adds the rights whose commands the server
/// does not have to `unknown`. Nothing is carried out: the caller drops the connection.
async fn queue_all(
    transaction: &mut MultiplexedConnection,
    prefix: &str,
    unknown: &mut Vec<&'static str>,
) -> Result<Vec<String>, Error> {
    // No replica has this name. The rights cover all names with the same beginning.
    let (key, own) = (TRIAL, TRIAL);
    let raw = wire::pattern(prefix);
    let mut missing = Vec::new();
    let mut lacks = |right: &str| {
        if !missing.iter().any(|known| known == right) {
            missing.push(right.to_owned());
        }
    };
    // The patterns whose rights are tried, and whether a command has tested each.
    let patterns = [
        ("KEY", "~ssegw:*".to_owned()),
        ("OWN", "&ssegw:*".to_owned()),
        ("RAW", format!("&{raw}")),
    ];
    let mut is_tried = [false; 3];
    let _ok: Value = ask(transaction, &["MULTI"]).await?;
    for (right, line) in TRIED.iter().filter(|(right, _)| *right != "multi") {
        let words = line.split(' ').map(|word| match word {
            "KEY" => key,
            "OWN" => own,
            "RAW" => &*raw,
            word => word,
        });
        let words: Vec<_> = words.collect();
        let pattern = patterns
            .iter()
            .position(|(word, _)| line.split(' ').any(|other| other == *word));
        match ask::<Value>(transaction, &words).await {
            // Anything else means that the server has carried it out.
            Ok(Value::SimpleString(answer)) if answer == "QUEUED" => {}
            Ok(_) => return Err(Error::Malformed),
            Err(error)
                if error.to_string().contains("unknown command")
                    || matches!(error, Error::TooOld) =>
            {
                unknown.push(right);
                continue;
            }
            Err(Error::Forbidden(error)) if error.to_string().contains("run the") => {
                lacks(right);
                continue;
            }
            Err(Error::Forbidden(_)) => {
                if let Some(pattern) = pattern {
                    lacks(&patterns[pattern].1);
                }
            }
            Err(Error::Unavailable(error)) if error.is_io_error() => return Err(error.into()),
            // Refused for another reason, after the rights were checked.
            Err(_) => {}
        }
        if let Some(pattern) = pattern {
            is_tried[pattern] = true;
        }
    }
    // If no command was allowed, its keys and channels were not checked.
    for ((word, pattern), is_tried) in patterns.iter().zip(is_tried) {
        // A server without PSUBSCRIBE checks no pattern.
        let is_unknown = *word == "RAW" && unknown.contains(&"psubscribe");
        if !is_tried && !is_unknown {
            lacks(pattern);
        }
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Breaks when the documented user has a right that is not tried, or lacks a right that is tried.
    #[test]
    fn the_rights_are_those_of_the_documentation() {
        let document = include_str!("../../../../docs/redis.md");
        let mut lines = document.lines();
        let line = lines.find(|line| line.starts_with("ACL SETUSER gateway "));
        let words = line.expect("it is documented").split(' ');
        let documented: BTreeSet<_> = words.filter_map(|word| word.strip_prefix('+')).collect();
        let tried = TRIED.iter().map(|(right, _)| *right);
        // The connection begins with AUTH.
        let tried: BTreeSet<_> = tried.chain(["auth", "exec"]).collect();
        assert_eq!(documented, tried);
    }
}
