//! `inspect`: examines a Redis for `doctor`, and the settings of which a replica warns at start.

mod raw;
mod rights;

use redis::{Client, Cmd, FromRedisValue, Value, aio::MultiplexedConnection};

pub use self::raw::{RawChannels, watch_raw};
use crate::{
    Error, Finding, Server, Verdict, library,
    names::{self, SLOTS},
    process::{field, mode, open},
    server::Survey,
};

/// The oldest version with functions.
const OLDEST: u32 = 7;

/// Examines a Redis as replicas with this channel prefix use it. Writes nothing there. `tell` receives each finding
/// when it is made.
pub async fn inspect(server: &Server, prefix: &str, tell: &mut impl FnMut(Finding)) {
    if let Some(survey) = server.survey().await {
        tell(sentinels(&survey));
        if survey.masters.is_empty() {
            return;
        }
    }
    if server.is_cluster() {
        inspect_cluster(server, prefix, tell).await;
    } else if let Err(finding) = examine(server, prefix, tell).await {
        tell(finding);
    }
}

/// Examines each master of a cluster.
async fn inspect_cluster(server: &Server, prefix: &str, tell: &mut impl FnMut(Finding)) {
    const WHAT: &str = "cluster";
    let views = match server.ask_cluster(&server.seeds()).await {
        Ok(views) => views,
        Err(error) => return tell(wrong(WHAT, error.to_string())),
    };
    let masters = views.masters();
    let orphans = (0..SLOTS)
        .filter(|slot| views.owner(*slot).is_none())
        .count();
    let nodes = views.nodes().len();
    let about = format!("{nodes} nodes answer, {} masters with slots", masters.len());
    tell(match orphans {
        0 => Finding::new(Verdict::Fine, WHAT, about),
        _ => wrong(WHAT, format!("{about}; {orphans} slots have no master")),
    });
    for master in masters {
        let node = server.at(&master.address);
        let mut tell_of = |finding: Finding| {
            let text = format!("{}: {}", master.address, finding.text);
            tell(Finding { text, ..finding });
        };
        if let Err(finding) = examine(&node, prefix, &mut tell_of).await {
            tell_of(finding);
        }
    }
}

/// The error is the finding after which nothing else can be examined.
async fn examine(
    server: &Server,
    prefix: &str,
    tell: &mut impl FnMut(Finding),
) -> Result<(), Finding> {
    const WHAT: &str = "redis";
    let mut connection = connect(server).await?;
    let connection = &mut connection;
    let info: String = match ask(connection, &["INFO"]).await {
        Ok(info) => info,
        Err(Error::Forbidden(_)) => {
            for finding in rights::rights(server, prefix).await {
                tell(finding);
            }
            let text = "INFO is not allowed, so that nothing else can be examined";
            return Err(Finding::new(Verdict::Unknown, WHAT, text));
        }
        Err(error) => return Err(wrong(WHAT, error.to_string())),
    };
    let kind = kind(&info, server.is_node());
    if kind.verdict == Verdict::Wrong {
        return Err(kind);
    }
    tell(kind);
    for finding in rights::rights(server, prefix).await {
        tell(finding);
    }
    tell(functions(connection).await);
    for setting in Setting::ALL {
        let value = setting.read(connection, &info).await;
        tell(setting.finding(value.as_deref()));
    }
    tell(persistence(connection, &info).await);
    Ok(())
}

async fn connect(server: &Server) -> Result<MultiplexedConnection, Finding> {
    const WHAT: &str = "redis";
    let place = server.locate(None).await;
    let place = place.map_err(|error| wrong(WHAT, error.to_string()))?;
    let client = Client::open(place.info.clone());
    let client = client.map_err(|error| wrong(WHAT, error.to_string()))?;
    open(&client).await.map_err(|error| {
        // This host cannot reach it, but the hosts of the replicas may.
        let verdict = match error.is_io_error() {
            true => Verdict::Unknown,
            false => Verdict::Wrong,
        };
        let error = Error::connecting(&place.info, &error);
        Finding::new(verdict, WHAT, error.to_string())
    })
}

/// A command's answer.
async fn ask<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    words: &[&str],
) -> Result<T, Error> {
    let mut command = Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.query_async(connection).await.map_err(Error::of)
}

fn wrong(what: &'static str, text: impl Into<String>) -> Finding {
    Finding::new(Verdict::Wrong, what, text)
}

fn sentinels(survey: &Survey) -> Finding {
    const WHAT: &str = "sentinels";
    let Survey {
        name,
        sentinels,
        masters,
        failed,
    } = survey;
    let because = || failed.as_deref().unwrap_or_default();
    let known = masters.len();
    let count = format!("{known} of {sentinels} know the master {name}");
    let Some((host, port)) = masters.first() else {
        return wrong(
            WHAT,
            format!(
                "{count}: is this the name in their `sentinel monitor`? {}",
                because()
            ),
        );
    };
    if masters.iter().any(|other| *other != (host.clone(), *port)) {
        return wrong(
            WHAT,
            format!(
                "{count}, and they name different servers. During a failover that is so for a moment; else each of \
                 them has to monitor the same master"
            ),
        );
    }
    if known <= sentinels / 2 {
        return wrong(
            WHAT,
            format!(
                "{count}: replicas follow a failover only if more than half do: {}",
                because()
            ),
        );
    }
    if known < *sentinels {
        return Finding::new(Verdict::Advice, WHAT, format!("{count}: {}", because()));
    }
    Finding::new(Verdict::Fine, WHAT, format!("{count}, at {host}:{port}"))
}

/// Version, mode and role. `is_node`: it is named as a node of a cluster.
fn kind(info: &str, is_node: bool) -> Finding {
    const WHAT: &str = "redis";
    let name = match field(info, "server_name:") {
        Some("valkey") => "Valkey",
        _ => "Redis",
    };
    let of_its_own = field(info, "valkey_version:");
    let version = field(info, "redis_version:").unwrap_or("of an unknown version");
    let shown = of_its_own.unwrap_or(version);
    let mode = mode(info).unwrap_or("standalone");
    let about = format!("{name} {shown}, {mode}");
    let major = version
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major < OLDEST) {
        return wrong(
            WHAT,
            format!("{about}: version 7.0 or newer is needed, for its functions"),
        );
    }
    let is_cluster = mode == "cluster" || field(info, "cluster_enabled:") == Some("1");
    if is_cluster && !is_node {
        return wrong(
            WHAT,
            format!("{about}: name some of its nodes with --redis-cluster host:port,host:port"),
        );
    }
    if mode == "sentinel" {
        return wrong(
            WHAT,
            format!(
                "{about}: this is a sentinel. Name it in --redis-sentinels, and the master in --redis-url: redis://mymaster"
            ),
        );
    }
    if let Some("slave" | "replica") = field(info, "role:") {
        let host = field(info, "master_host:").unwrap_or("?");
        let port = field(info, "master_port:").unwrap_or("?");
        return wrong(
            WHAT,
            format!(
                "{about}: this is a copy, which takes no writes. --redis-url has to lead to the master, which it copies from \
                 {host}:{port}"
            ),
        );
    }
    let copies = match field(info, "connected_slaves:") {
        Some("1") => "1 copy".to_owned(),
        copies => format!("{} copies", copies.unwrap_or("0")),
    };
    Finding::new(Verdict::Fine, WHAT, format!("{about}, master, {copies}"))
}

/// The function library: whether it is loaded, and which version.
async fn functions(connection: &mut MultiplexedConnection) -> Finding {
    const WHAT: &str = "functions";
    let list = [
        "FUNCTION",
        "LIST",
        "LIBRARYNAME",
        names::LIBRARY,
        "WITHCODE",
    ];
    let list: Value = match ask(connection, &list).await {
        Ok(list) => list,
        // The finding about the rights reports it.
        Err(Error::Forbidden(_)) => {
            let text = "FUNCTION LIST is not allowed to this user";
            return Finding::new(Verdict::Unknown, WHAT, text);
        }
        Err(error) => return wrong(WHAT, error.to_string()),
    };
    let header = format!("#!lua name={}", names::LIBRARY);
    let Some(code) = find(&list, header.as_bytes()) else {
        return Finding::new(
            Verdict::Note,
            WHAT,
            "the library is not loaded yet. The first replica that starts loads it; until then FCALL sse_publish fails",
        );
    };
    if library::is_of_this_version(code) {
        let partitions = library::partitions(code).unwrap_or("?");
        let text = format!("the library is loaded, of this version, for --partitions {partitions}");
        return Finding::new(Verdict::Fine, WHAT, text);
    }
    Finding::new(
        Verdict::Advice,
        WHAT,
        format!(
            "the library is loaded, but not that of this program ({}). Each replica that starts replaces it: let all be of \
             one version, and run the doctor of that version",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

/// The first text in an answer that begins with `begin`.
pub(crate) fn find<'a>(value: &'a Value, begin: &[u8]) -> Option<&'a [u8]> {
    match value {
        Value::BulkString(bytes) => Some(&**bytes).filter(|bytes| bytes.starts_with(begin)),
        Value::Array(values) => values.iter().find_map(|value| find(value, begin)),
        Value::Map(pairs) => pairs
            .iter()
            .find_map(|(key, value)| find(key, begin).or_else(|| find(value, begin))),
        _ => None,
    }
}

/// A setting of Redis with a value that costs events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// Redis may drop the stream of a channel whose history it should keep.
    Eviction,
    /// Redis may disconnect all recorders at once: a buffer fills while one MULTI publishes, and Redis sends nothing
    /// before that has ended.
    OutputBuffer,
}

impl Setting {
    pub(crate) const ALL: [Self; 2] = [Self::Eviction, Self::OutputBuffer];

    /// Its name in the configuration of Redis.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Eviction => "maxmemory-policy",
            Self::OutputBuffer => "client-output-buffer-limit",
        }
    }

    /// Its value. Managed servers often forbid CONFIG, so INFO is used where it has the value.
    async fn read(self, connection: &mut MultiplexedConnection, info: &str) -> Option<String> {
        match self {
            Self::Eviction => match field(info, "maxmemory_policy:") {
                Some(policy) => Some(policy.to_owned()),
                None => setting(connection, self.name()).await,
            },
            Self::OutputBuffer => setting(connection, self.name()).await,
        }
    }

    /// The problem of a value, and the command that corrects it.
    fn problem(self, value: &str) -> Option<&'static str> {
        match self {
            Self::Eviction if value != "noeviction" => Some(
                "redis may evict history when its memory is full, and clients receive no gap event: \
                 CONFIG SET maxmemory-policy noeviction",
            ),
            Self::OutputBuffer if is_small(value) => Some(
                "redis cuts off replicas, and raw messages may be lost, when one MULTI or a burst publishes more than the \
                 limit: CONFIG SET client-output-buffer-limit \"pubsub 256mb 64mb 60\"",
            ),
            _ => None,
        }
    }

    /// The verdict about such a value.
    fn verdict(self) -> Verdict {
        match self {
            // By default Redis does not evict.
            Self::Eviction => Verdict::Wrong,
            // The default is too small for large transactions only.
            Self::OutputBuffer => Verdict::Advice,
        }
    }

    fn finding(self, value: Option<&str>) -> Finding {
        let what = match self {
            Self::Eviction => "eviction",
            Self::OutputBuffer => "buffers",
        };
        let name = self.name();
        let Some(value) = value else {
            let text = format!("{name} is not known: CONFIG GET is not allowed to this user");
            return Finding::new(Verdict::Note, what, text);
        };
        // The limits of other kinds of clients do not matter.
        let at = value.find("pubsub").unwrap_or(0);
        let shown = format!("{name} {}", &value[at..]);
        match self.problem(value) {
            None => Finding::new(Verdict::Fine, what, shown),
            Some(problem) => Finding::new(self.verdict(), what, format!("{shown}: {problem}")),
        }
    }
}

/// The settings of which a replica warns at start.
#[derive(Default)]
pub(crate) struct CostlySettings {
    /// Settings that cost events: name, value, and the correction.
    pub(crate) costly: Vec<(&'static str, String, &'static str)>,
    /// The names of settings that Redis does not show.
    pub(crate) hidden: Vec<&'static str>,
}

/// Reads the settings of which a replica warns at start.
pub(crate) async fn costly_settings(connection: &mut MultiplexedConnection) -> CostlySettings {
    let info = ask::<String>(connection, &["INFO", "memory"]).await;
    let info = info.unwrap_or_default();
    let mut settings = CostlySettings::default();
    for setting in Setting::ALL {
        match setting.read(connection, &info).await {
            None => settings.hidden.push(setting.name()),
            Some(value) => {
                if let Some(problem) = setting.problem(&value) {
                    settings.costly.push((setting.name(), value, problem));
                }
            }
        }
    }
    settings
}

/// A setting of the server; none if the user may not read it.
async fn setting(connection: &mut MultiplexedConnection, name: &str) -> Option<String> {
    let answer = ask::<(String, String)>(connection, &["CONFIG", "GET", name]).await;
    answer.ok().map(|(_, value)| value)
}

/// Bytes that Redis should hold for a subscriber, and for one whose buffer stays that full for a while.
const OUTPUT_BUFFER: [u64; 2] = [256 << 20, 64 << 20];

/// Whether the limits of output buffers, as CONFIG GET answers, are smaller than that for subscribers. 0 is no limit.
fn is_small(limits: &str) -> bool {
    let mut words = limits
        .split(' ')
        .skip_while(|word| *word != "pubsub")
        .skip(1);
    OUTPUT_BUFFER.iter().any(|least| {
        let limit = words.next().and_then(|word| word.parse::<u64>().ok());
        limit.is_some_and(|limit| limit > 0 && limit < *least)
    })
}

/// Whether history survives a restart, and whether the last attempts to save it failed.
async fn persistence(connection: &mut MultiplexedConnection, info: &str) -> Finding {
    const WHAT: &str = "persistence";
    for (name, what) in [
        ("rdb_last_bgsave_status:", "the last snapshot"),
        ("aof_last_write_status:", "the last write to the AOF"),
        ("aof_last_bgrewrite_status:", "the last rewrite of the AOF"),
    ] {
        if field(info, name) == Some("err") {
            return wrong(
                WHAT,
                format!(
                    "{what} failed, and Redis refuses writes while it cannot save. Its log has the reason, often a full disk"
                ),
            );
        }
    }
    match field(info, "aof_enabled:") {
        None => Finding::new(Verdict::Note, WHAT, "INFO does not show it"),
        Some("0") => Finding::new(
            Verdict::Advice,
            WHAT,
            "appendonly no: a restart loses events and ids, and clients receive a gap event: CONFIG SET appendonly yes, and \
             CONFIG REWRITE so that it stays",
        ),
        Some(_) => match setting(connection, "appendfsync").await.as_deref() {
            Some("no") => Finding::new(
                Verdict::Advice,
                WHAT,
                "appendfsync no: a crash may lose half a minute of events: CONFIG SET appendfsync everysec",
            ),
            Some(sync) => Finding::new(
                Verdict::Fine,
                WHAT,
                format!("appendonly yes, appendfsync {sync}"),
            ),
            None => Finding::new(Verdict::Fine, WHAT, "appendonly yes"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_gateways_cannot_use_are_wrong() {
        for (info, verdict, says) in [
            (
                "redis_version:7.0.15\r\nredis_mode:standalone\r\nrole:master\r\nconnected_slaves:2\r\n",
                Verdict::Fine,
                "Redis 7.0.15, standalone, master, 2 copies",
            ),
            (
                "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\nserver_mode:standalone\r\nrole:master\r\n",
                Verdict::Fine,
                "Valkey 8.0.1, standalone, master",
            ),
            (
                "redis_version:6.2.7\r\nredis_mode:standalone\r\nrole:master\r\n",
                Verdict::Wrong,
                "version 7.0 or newer is needed",
            ),
            (
                "redis_version:7.0.15\r\nredis_mode:cluster\r\nrole:master\r\n",
                Verdict::Wrong,
                "--redis-cluster",
            ),
            (
                "redis_version:7.0.15\r\nredis_mode:sentinel\r\n",
                Verdict::Wrong,
                "this is a sentinel",
            ),
            (
                "redis_version:7.0.15\r\nrole:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\n",
                Verdict::Wrong,
                "10.0.0.1:6379",
            ),
        ] {
            let finding = kind(info, false);
            assert_eq!(finding.verdict, verdict, "{finding}");
            assert!(finding.text.contains(says), "{finding}");
        }
    }

    #[test]
    fn sentinels_have_to_agree_and_to_be_more_than_half() {
        let at = |host: &str| (host.to_owned(), 6379);
        for (masters, verdict, says) in [
            (
                vec![at("a"), at("a"), at("a")],
                Verdict::Fine,
                "3 of 3 know the master m, at a:6379",
            ),
            (
                vec![at("a"), at("a")],
                Verdict::Advice,
                "2 of 3 know the master m: c: refused",
            ),
            (vec![at("a")], Verdict::Wrong, "more than half"),
            (
                vec![],
                Verdict::Wrong,
                "0 of 3 know the master m: is this the name",
            ),
            (
                vec![at("a"), at("b"), at("a")],
                Verdict::Wrong,
                "different servers",
            ),
        ] {
            let survey = Survey {
                name: "m".to_owned(),
                sentinels: 3,
                masters,
                failed: Some("c: refused".to_owned()),
            };
            let finding = sentinels(&survey);
            assert_eq!(finding.verdict, verdict, "{finding}");
            assert!(finding.text.contains(says), "{finding}");
        }
    }

    #[test]
    fn settings_that_cost_events_are_wrong() {
        for (setting, value, verdict) in [
            (Setting::Eviction, Some("noeviction"), Verdict::Fine),
            (Setting::Eviction, Some("allkeys-lru"), Verdict::Wrong),
            (Setting::OutputBuffer, None, Verdict::Note),
            (
                Setting::OutputBuffer,
                Some("normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"),
                Verdict::Advice,
            ),
            (
                Setting::OutputBuffer,
                Some("normal 0 0 0 pubsub 268435456 67108864 60"),
                Verdict::Fine,
            ),
            (Setting::OutputBuffer, Some("pubsub 0 0 0"), Verdict::Fine),
        ] {
            let finding = setting.finding(value);
            assert_eq!(finding.verdict, verdict, "{finding}");
        }
    }
}
