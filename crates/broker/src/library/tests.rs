//! Each function of the library, on a real redis-server.
//!
//! The library that runs here also fails a call that touches a key which it did not declare.

use hub::Partitions;
use testkit::lab::{Commands, Redis, Reply};

use super::*;
use crate::{
    call::{Call, Function},
    names::{CLOCK, ENDS, IDS, IN_SYNC, LEASE, LOG, PAST, run_part},
};

/// A server process with the library.
pub(crate) struct Server {
    pub(crate) redis: Redis,
    pub(crate) commands: Commands,
    pub(crate) names: Names,
}

/// Makes a function fail if a command names a key that the call did not declare. Commands in `names_no_key` have no
/// keys.
const CHECK: &str = r"
local declared
local names_no_key = { TIME = true, SPUBLISH = true, PUBSUB = true, INFO = true }
local function check(call, command, ...)
  local key = ...
  if declared and not names_no_key[command] and not declared[key] then
    error('undeclared key ' .. key)
  end
  return call(command, ...)
end
local function checked(callback)
  return function(keys, args)
    declared = #keys > 0 and {} or nil
    for _, key in ipairs(keys) do
      declared[key] = true
    end
    return callback(keys, args)
  end
end
";

fn checked(names: &Names, rules: &[Rule]) -> String {
    // Each renewal announces the ends that wait.
    let repeat = format!("local REPEAT = {}\n", times::REPEAT.as_millis());
    let text = script(names, rules, 1000)
        .replace(&repeat, "local REPEAT = 0\n")
        .replace("redis.call(", "check(redis.call, ")
        .replace("redis.pcall(", "check(redis.pcall, ");
    // The callback of each registration: after `callback = `, or the last argument.
    let register = |line: &str| {
        let Some(call) = line.strip_prefix("redis.register_function") else {
            return format!("{line}\n");
        };
        let before = if call.contains("callback = ") {
            "callback = "
        } else {
            "', "
        };
        let (head, rest) = call.split_once(before).expect("it has a callback");
        let end = rest.find([',', ')', ' ']).expect("it ends");
        let (callback, rest) = rest.split_at(end);
        format!("redis.register_function{head}{before}checked({callback}){rest}\n")
    };
    let text: String = text.lines().map(register).collect();
    library(&format!("{CHECK}{text}"))
}

impl Server {
    async fn start() -> Self {
        Self::with_partitions(3).await
    }

    pub(crate) async fn with_partitions(partitions: u16) -> Self {
        let rule = |pattern: &str, history| Rule {
            pattern: pattern.to_owned(),
            history,
            ..Rule::default()
        };
        let names = Names::new(Partitions::new(partitions).unwrap());
        let redis = Redis::start().await;
        let mut commands = redis.connect().await;
        let text = checked(&names, &[rule("brief.*", 0), rule("few", 2)]);
        let load = [b"FUNCTION", &b"LOAD"[..], b"REPLACE", text.as_bytes()];
        let loaded = commands.call(&load).await.unwrap();
        assert_eq!(loaded.text(), LIBRARY);
        Self {
            redis,
            commands,
            names,
        }
    }

    /// One whose partitions have the handshake of replica `r`.
    async fn ready() -> Self {
        let mut server = Self::start().await;
        for partition in 0..3 {
            server.handshake("r", partition).await;
        }
        server
    }

    pub(crate) async fn run_id(&mut self) -> String {
        let info = self.commands.run("INFO server").await.text();
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        run.expect("a run id").trim().to_owned()
    }

    pub(crate) async fn handshake(&mut self, replica: &str, partition: u16) -> Reply {
        let (run, names) = (self.run_id().await, self.names.clone());
        let call = Call::new(&names, Function::Handshake, partition);
        let call = call.arg(replica).arg(&run).arg("0-0").arg("");
        let call = call.arg("0").arg("0").arg("0");
        self.call(&call.arg("").arg("").arg("").arg("0")).await
    }

    async fn call(&mut self, call: &Call<'_>) -> Reply {
        let command = words(call);
        let words: Vec<_> = command.iter().map(Vec::as_slice).collect();
        self.commands.call(&words).await.unwrap()
    }

    async fn publish(&mut self, keys: &[String], args: &[&str]) -> Reply {
        let count = keys.len().to_string();
        let mut words = vec!["FCALL", "sse_publish", &count];
        words.extend(keys.iter().map(String::as_str));
        words.extend(args);
        let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        self.commands.call(&words).await.unwrap()
    }

    /// The keys of a channel, as a Redis Cluster needs them.
    fn keys(&self, channel: &str) -> Vec<String> {
        let partition = self.names.partitions().of(channel);
        let name = |rest: &str| self.names.name(partition, rest);
        let of_channel = |kind: &str| name(kind) + channel;
        let mut keys = [CLOCK, PAST, ENDS].map(name).to_vec();
        keys.extend([LOG, IDS].map(of_channel));
        keys
    }

    pub(crate) async fn log(&mut self, channel: &str) -> Vec<String> {
        let log = self.keys(channel).remove(3);
        let entries = self.commands.run(&format!("XRANGE {log} - +")).await;
        let payload = |entry: &Reply| entry.array()[1].array()[3].text();
        entries.array().iter().map(payload).collect()
    }

    async fn acquire(&mut self, replica: &str, token: &str, in_sync: &str) -> i64 {
        let names = self.names.clone();
        let call = Call::new(&names, Function::Acquire, 0);
        let call = call.arg(replica).arg(token).arg("60000");
        self.call(&call.arg(in_sync).arg("")).await.integer()
    }

    async fn listen(&mut self, replica: &str, barrier: &str) {
        let names = self.names.clone();
        let call = Call::new(&names, Function::Listen, 0);
        let call = call.arg(replica).arg(barrier).arg("60000");
        assert_eq!(self.call(&call).await.integer(), 1);
    }

    async fn record(&mut self, token: &str, number: &str, messages: &[[&str; 3]]) -> Reply {
        let names = self.names.clone();
        let channels = messages
            .iter()
            .map(|[channel, ..]| channel.trim_start_matches(['\0', '\u{1}']));
        let call = Call::new(&names, Function::Record, 0).of_channels(channels);
        let call = call.arg("r").arg("0-0").arg(token).arg(number);
        let words = messages.iter().flatten();
        self.call(&words.fold(call, |call, word| call.arg(*word)))
            .await
    }

    async fn lease(&mut self) -> Reply {
        let lease = self.names.name(0, LEASE);
        self.commands.run(&format!("GET {lease}")).await
    }
}

/// The words of a call.
pub(crate) fn words(call: &Call<'_>) -> Vec<Vec<u8>> {
    let command = call.command();
    let words = command.args_iter().map(|word| match word {
        redis::Arg::Simple(word) => word.to_vec(),
        _ => panic!("not a word"),
    });
    words.collect()
}

/// A channel of the first partition.
fn channel(server: &Server, name: &str) -> String {
    let partitions = server.names.partitions();
    let names = (0..).map(|number| format!("{name}{number}"));
    names
        .into_iter()
        .find(|name| partitions.of(name) == 0)
        .unwrap()
}

fn error(reply: &Reply) -> &str {
    match reply {
        Reply::Error(error) => error.split(' ').next().unwrap_or_default(),
        other => panic!("no error: {other:?}"),
    }
}

fn texts(reply: &Reply) -> Vec<String> {
    reply.array().iter().map(Reply::text).collect()
}

#[test]
fn a_pattern_cannot_leave_its_literal() {
    assert_eq!(quoted("a'..os\n"), r"'a\039\046\046os\010'");
}

#[test]
fn a_library_is_recognized_with_any_settings() {
    let names = Names::new(Partitions::new(8).unwrap());
    let code = library(&script(&names, &[], 1));
    assert!(is_of_this_version(code.as_bytes()));
    assert_eq!(super::partitions(code.as_bytes()), Some("8"));
    let other = code.replace("redis.register_function", "redis.register");
    assert!(!is_of_this_version(other.as_bytes()));
}

/// Breaks when the call of the documentation does not work on one Redis, or not in a Redis Cluster.
#[tokio::test]
async fn a_backend_publishes_with_keys_and_without() {
    let mut server = Server::ready().await;
    let mut ids = Vec::new();
    for keys in [Vec::new(), server.keys("news")] {
        let id = server.publish(&keys, &["news", "hello"]).await.text();
        ids.push(id.split_once('-').unwrap().0.parse::<u64>().unwrap());
    }
    assert!(ids[0] > 0 && ids[0] <= ids[1]);
    assert_eq!(server.log("news").await, ["hello", "hello"]);

    let mut wrong = server.keys("news");
    wrong.swap(3, 4);
    let refused = server.publish(&wrong, &["news", "hello"]).await;
    let Reply::Error(text) = &refused else {
        panic!("{refused:?}");
    };
    assert!(text.ends_with(&server.keys("news").join(" ")), "{text}");
    assert_eq!(error(&server.publish(&[], &["news"]).await), "ERR");
    assert_eq!(
        error(&server.publish(&[], &["a", "b", "c", "d"]).await),
        "ERR"
    );

    for (channel, payload, expected) in [
        ("", "x", "BADCHANNEL"),
        ("a\nb", "x", "BADCHANNEL"),
        ("a\u{85}b", "x", "BADCHANNEL"),
        ("a", &*"x".repeat(1001), "TOOLARGE"),
        ("a", r#"{"data":"x","event":5}"#, "BADENVELOPE"),
        ("a", r#"{"data":"x","event":"gateway.gap"}"#, "BADEVENT"),
        ("a", r#"{"data":"x","retry":-1}"#, "BADENVELOPE"),
    ] {
        let refused = server.publish(&[], &[channel, payload]).await;
        assert_eq!(error(&refused), expected, "{channel:?} {payload}");
    }
    assert_eq!(server.publish(&[], &["brief.a", "x"]).await.text(), "-");
}

/// Breaks when a repetition is stored twice, or another event in its place is not stored.
#[tokio::test]
async fn an_idempotency_key_belongs_to_a_payload() {
    let mut server = Server::ready().await;
    let first = server.publish(&[], &["news", "a", "key"]).await.text();
    assert_eq!(
        server.publish(&[], &["news", "a", "key"]).await.text(),
        first
    );
    assert_eq!(
        error(&server.publish(&[], &["news", "b", "key"]).await),
        "KEYREUSED"
    );
    assert_eq!(server.log("news").await, ["a"]);

    // A replica names the publisher in the key, and declares the key that it is stored under.
    let names = server.names.clone();
    let partition = names.partitions().of("news");
    let mut answers = Vec::new();
    for payload in ["x", "x", "y"] {
        let digest_and_key = format!("{}P:key", payload.repeat(40));
        let call = Call::new(&names, Function::Append, partition);
        let call = call
            .of_channels(["news"])
            .of_idempotency_key("news", "P:key");
        let call = call
            .arg("r")
            .arg("0-0")
            .arg("news")
            .arg(payload)
            .arg("")
            .arg(&digest_and_key);
        answers.extend(texts(&server.call(&call).await));
    }
    assert!(!answers[0].starts_with('!'), "{answers:?}");
    assert_eq!(answers[0], answers[1]);
    assert!(answers[2].starts_with("!KEYREUSED"), "{answers:?}");
    assert_eq!(server.log("news").await, ["a", "x"]);
}

/// Breaks when a server that may have lost events accepts calls before a replica has completed the handshake.
#[tokio::test]
async fn a_server_accepts_no_appends_before_a_handshake() {
    let mut server = Server::start().await;
    let names = server.names.clone();
    assert_eq!(
        error(&server.publish(&[], &["news", "a"]).await),
        "NOTREADY"
    );
    let refused = server.record("r:1-1", "1", &[]).await;
    assert_eq!(error(&refused), "NOTREADY");
    for partition in 0..3 {
        let clock = server.handshake("r", partition).await.text();
        assert!(clock.contains('-'), "{clock}");
    }
    let id = server.publish(&[], &["news", "a"]).await.text();
    // Another replica has not completed a handshake yet.
    let call = Call::new(&names, Function::Append, 0);
    let refused = server.call(&call.arg("other").arg("0-0")).await;
    assert_eq!(error(&refused), "NOTREADY");

    // Another server is the master by the failover with the number 5.
    let partition = names.partitions().of("news");
    let prefix = names.name(partition, "");
    let retire = Call::new(&names, Function::Retire, 0).arg("5").arg(&prefix);
    let answer = server.call(&retire).await;
    let [_, event, _] = answer.array() else {
        panic!("not a run id and two ids: {answer:?}");
    };
    assert_eq!(event.text(), id);
    assert_eq!(
        error(&server.publish(&[], &["news", "b"]).await),
        "NOTREADY"
    );
    assert_eq!(error(&server.handshake("r", partition).await), "RETIRED");
}

/// Breaks when clients receive a gap though the server before has no newer event, or none though it has. Breaks also when
/// ids go back below the clock that clients have seen there.
#[tokio::test]
async fn events_are_lost_only_if_the_server_before_had_newer_ones() {
    let names = Names::new(Partitions::new(3).unwrap());
    let partition = names.partitions().of("news");
    for (newest, clock, is_lost) in [
        ("", "", true),
        ("same", "99999999999999-5", false),
        ("99999999999998-0", "99999999999999-5", true),
    ] {
        let mut server = Server::ready().await;
        let id = server.publish(&[], &["news", "a"]).await.text();
        let run = server.run_id().await;
        let newest = newest.replace("same", &id);
        let left = if newest.is_empty() { "" } else { &*run };
        // Another server process, which ran beside that one, has its data.
        let call = Call::new(&names, Function::Handshake, partition);
        let call = call.arg("r").arg("other run").arg(&id).arg(&run);
        let call = call.arg("0").arg("1").arg("0");
        let call = call.arg(left).arg(&newest).arg(clock).arg("0");
        let key = names.name(partition, CLOCK);
        let horizon = format!("HGET {key} horizon");
        let before = server.commands.run(&horizon).await.text();
        let now = server.call(&call).await.text();
        let after = server.commands.run(&horizon).await.text();
        assert_eq!(after != before, is_lost, "{newest}: {before}, then {after}");
        if !clock.is_empty() {
            let at_least = |id: &str| id.split_once('-').unwrap().0.parse::<u64>().unwrap();
            assert!(at_least(&now) >= at_least(clock), "{now}");
        }
    }
}

/// Breaks when a partition that moves within a cluster loses its active recorder, or when clients receive no gap after that
/// recorder's death. Also breaks when messages that it has are reported as lost. The partition may have moved away and back
/// before that recorder has recorded anything.
#[tokio::test]
async fn the_lease_moves_with_a_partition_that_has_lost_nothing() {
    let mut server = Server::ready().await;
    let names = server.names.clone();
    let name = channel(&server, "a");
    assert_eq!(server.acquire("r", "r:1-1", "0").await, 1);
    let id = texts(&server.record("r:1-1", "1", &[[&*name, "one", "d1"]]).await).remove(0);
    let run = server.run_id().await;
    let horizon = format!("HGET {} horizon", names.name(0, CLOCK));
    // To another process, and back.
    for (run, left) in [("other", &*run), (&*run, "other")] {
        let call = Call::new(&names, Function::Handshake, 0);
        let call = call.arg("r").arg(run).arg(&id).arg(left);
        let call = call.arg("0").arg("1").arg("0");
        let call = call.arg(left).arg(&id).arg(&id).arg("1");
        let clock = server.call(&call).await.text();
        assert!(clock.contains('-'), "{clock}");
        assert_eq!(server.lease().await.text(), "r:1-1");
    }
    let before = server.commands.run(&horizon).await.text();
    let forsake = || {
        Call::new(&names, Function::Forsake, 0)
            .arg("60000")
            .arg("2")
    };
    // The recorder has the lease, and may be dead.
    assert_eq!(server.call(&forsake()).await.integer(), 2);
    assert_eq!(server.acquire("s", "s:1-1", "0").await, 0);
    let renew = Call::new(&names, Function::Renew, 0);
    let renew = renew.arg("r").arg("r:1-1").arg("60000");
    assert_eq!(server.call(&renew).await.integer(), 1);
    assert_eq!(server.call(&forsake()).await.integer(), 0);
    assert_eq!(server.commands.run(&horizon).await.text(), before);
    // It dies.
    let [lease, marks] = [LEASE, IN_SYNC].map(|key| names.name(0, key));
    server.commands.run(&format!("DEL {lease} {marks}")).await;
    let mut other = server.redis.connect().await;
    let notices = names.recorded(0, &run);
    let subscribe = [b"SSUBSCRIBE", notices.as_bytes()];
    other.call(&subscribe).await.unwrap();
    assert_eq!(server.acquire("s", "s:1-2?", "0").await, 2);
    assert_ne!(server.commands.run(&horizon).await.text(), before);
    let fence = other.call(&[b"PING"]).await.unwrap();
    assert_eq!(fence.array()[2].text(), "#s:1-2?1>");
    // Without that recorder, no recorder has the messages.
    server.commands.run(&format!("DEL {marks}")).await;
    let forsake = Call::new(&names, Function::Forsake, 0).arg("0").arg("2");
    assert_eq!(server.call(&forsake).await.integer(), 1);
}

/// Breaks when two recorders can write, or when a repeated append is carried out twice.
#[tokio::test]
async fn only_the_holder_of_the_lease_records_and_once() {
    let mut server = Server::ready().await;
    let (a, b) = (channel(&server, "a"), channel(&server, "b"));
    assert_eq!(server.acquire("r", "r:1-1", "0").await, 1);
    assert_eq!(server.lease().await.text(), "r:1-1");
    assert_eq!(server.acquire("other", "other:1-1", "0").await, 0);

    let messages = [[&*a, "one", "d1"], ["", "", "d2"], [&*b, "two", "d3"]];
    let ids = texts(&server.record("r:1-1", "1", &messages).await);
    assert_eq!(ids.len(), 2);
    // The answer was lost.
    let repeated = server.record("r:1-1", "1", &messages).await;
    assert_eq!(repeated.array().len(), 0);
    let fenced = server.record("other:1-1", "2", &messages).await;
    assert_eq!(error(&fenced), "FENCED");
    assert_eq!(
        (server.log(&a).await, server.log(&b).await),
        (vec!["one".to_owned()], vec!["two".to_owned()])
    );

    // Two lost messages in a row are one gap, with an id and without an entry.
    let lost = format!("\0{a}");
    let gap = [[&*lost, "", "d4"], [&*lost, "", "d5"], [&*a, "three", "d6"]];
    let ids = texts(&server.record("r:1-1", "2", &gap).await);
    assert!(ids.iter().all(|id| !id.starts_with('!')), "{ids:?}");
    assert_eq!(ids[0], "-");
    assert!(ids[1] < ids[2], "{ids:?}");
    assert_eq!(server.log(&a).await, ["one", "three"]);
    let names = server.names.clone();
    let call = Call::new(&names, Function::Newest, 0).of_channels([&*a]);
    let newest = texts(&server.call(&call.arg(&a).arg("10")).await);
    assert_eq!(newest[1..], ids[1..]);

    // A key that another program wrote to does not block the messages after it.
    let broken = server.keys(&b).remove(3);
    server.commands.run(&format!("SET {broken} x")).await;
    let ids = texts(
        &server
            .record("r:1-1", "3", &[[&*b, "x", "d7"], [&*a, "four", "d8"]])
            .await,
    );
    assert!(
        ids[0].starts_with('!') && !ids[1].starts_with('!'),
        "{ids:?}"
    );
}

/// Breaks when an end that a function appends is stored before raw messages that were published before it, or is lost
/// because no recorder has it.
#[tokio::test]
async fn an_end_waits_for_the_raw_messages_before_it() {
    const END: &str = r#"{"data":"bye","end":true}"#;
    let mut server = Server::ready().await;
    let (names, name) = (server.names.clone(), channel(&server, "a"));
    // Without a recorder nothing waits.
    let id = server.publish(&[], &[&name, END]).await.text();
    assert!(id.len() > 1, "{id}");
    assert_eq!(server.log(&name).await, [END]);

    let mut recorder = Commands::connect(server.redis.address()).await.unwrap();
    let ends = names.ends(0, &server.run_id().await);
    let subscribe = [b"SSUBSCRIBE", ends.as_bytes()];
    recorder.call(&subscribe).await.unwrap();
    let keys = server.keys(&name);
    assert_eq!(server.publish(&keys, &[&name, END]).await.text(), "-");
    let mut announced = async || {
        // Each call reads the next message, or the answer to an earlier ping.
        loop {
            let read = recorder.call(&[b"PING"]).await.unwrap();
            if let [_, _, message] = read.array() {
                let message = message.text();
                let (end, channel) = message.split_once(' ').unwrap();
                assert_eq!(channel, name);
                return end.to_owned();
            }
        }
    };
    let end = announced().await;
    assert_eq!(server.log(&name).await, [END]);

    assert_eq!(server.acquire("r", "r:1-1", "1").await, 1);
    let renew = Call::new(&names, Function::Renew, 0);
    let renew = renew.arg("r").arg("r:1-1").arg("60000");
    assert_eq!(server.call(&renew).await.integer(), 1);
    let marked = format!("\u{1}{name}");
    let batch = [[&*name, "token", "d1"], [&marked, "", &end]];
    let ids = texts(&server.record("r:1-1", "1", &batch).await);
    assert!(ids.iter().all(|id| id.len() > 1), "{ids:?}");
    assert_eq!(server.log(&name).await, [END, "token", END]);
    // The repeated announcement finds nothing.
    let ids = texts(&server.record("r:1-1", "2", &batch[1..]).await);
    assert_eq!(ids, ["-"]);

    // Events of functions keep their order.
    let keys = server.keys(&name);
    assert_eq!(server.publish(&keys, &[&name, END]).await.text(), "-");
    assert!(server.publish(&keys, &[&name, "more"]).await.text().len() > 1);
    assert_eq!(server.publish(&keys, &[&name, END]).await.text(), "-");
    assert_eq!(server.log(&name).await[3..], [END, "more"]);
    // This one waits, and not the one before it.
    let ends = [announced().await, announced().await, announced().await];
    let names = [&*end, &ends[1], &ends[2]];
    for (number, (end, expected)) in names.iter().zip([5, 5, 6]).enumerate() {
        let number = (number + 3).to_string();
        let batch = [[&*marked, "", end]];
        server.record("r:1-1", &number, &batch).await.array();
        assert_eq!(server.log(&name).await.len(), expected);
    }
    assert_eq!(ends[0], end, "it was announced again");
}

/// Breaks when a recorder that may have missed messages takes the lease from a recorder that has missed none.
#[tokio::test]
async fn an_out_of_sync_recorder_waits_for_one_in_sync() {
    let mut server = Server::ready().await;
    let names = server.names.clone();
    for replica in ["r", "s"] {
        server.listen(replica, &format!("{replica}:1-0")).await;
    }
    assert_eq!(server.acquire("r", "r:1-1", "1").await, 1);
    let renew = |token| {
        Call::new(&names, Function::Renew, 0)
            .arg("r")
            .arg(token)
            .arg("60000")
    };
    assert_eq!(server.call(&renew("r:1-1")).await.integer(), 1);
    assert_eq!(server.call(&renew("r:0-9")).await.integer(), 0);
    assert_eq!(server.acquire("s", "s:1-1", "0").await, 0);

    // It stops while no other recorder is in sync; then `s` is.
    let leave = || Call::new(&names, Function::StepDown, 0).arg("r").arg("=r");
    assert_eq!(server.call(&leave()).await.integer(), 2);
    assert_eq!(server.acquire("s", "s:1-2", "1").await, 0);
    assert_eq!(server.call(&leave()).await.integer(), 1);
    assert_eq!(server.lease().await, Reply::Nil);
    // Commands that it sent before do not make it in sync again.
    assert_eq!(server.call(&renew("r:1-1")).await.integer(), 0);
    assert_eq!(server.acquire("r", "r:1-2", "1").await, 0);
    assert_eq!(server.acquire("s", "s:1-3", "1").await, 1);

    let release = Call::new(&names, Function::Release, 0)
        .arg("s")
        .arg("s:1-3");
    assert_eq!(server.call(&release.arg("0").arg("1")).await.integer(), 1);
    assert_eq!(server.lease().await, Reply::Nil);
    // The last one recorded all that it received, so nothing was interrupted.
    assert_eq!(server.acquire("t", "t:1-1", "0").await, 1);
    let forsake = |shared| Call::new(&names, Function::Forsake, 0).arg("0").arg(shared);
    assert_eq!(server.call(&forsake("0")).await.integer(), 1);
    assert_eq!(server.acquire("t", "t:1-2", "1").await, 1);
    assert_eq!(server.call(&forsake("1")).await.integer(), 0);
}

/// Breaks when there are more candidates than configured, or when a subscribed candidate loses its candidacy.
#[tokio::test]
async fn there_are_as_many_candidates_as_configured() {
    let mut server = Server::ready().await;
    let names = server.names.clone();
    let mut claim = async |replica: &str, ttl: &str, has: &str| {
        let call = Call::new(&names, Function::Candidate, 0)
            .arg(replica)
            .arg("2");
        server.call(&call.arg(ttl).arg(has)).await.integer()
    };
    assert_eq!(claim("a", "60000", "0").await, 1);
    assert_eq!(claim("b", "60000", "0").await, 1);
    assert_eq!(claim("c", "60000", "0").await, 0);
    // It was a candidate while Redis stalled.
    assert_eq!(claim("c", "60000", "1").await, 2);
    assert_eq!(claim("a", "0", "1").await, 0);
    assert_eq!(claim("c", "60000", "1").await, 1);
}

/// Breaks when a page has other entries or facts than readers expect.
#[tokio::test]
async fn pages_have_the_newest_entries_or_those_after_an_id() {
    let mut server = Server::ready().await;
    let names = server.names.clone();
    let name = channel(&server, "news");
    let mut ids = Vec::new();
    for number in 0..5 {
        let payload = format!("{number}");
        ids.push(server.publish(&[], &[&name, &payload]).await.text());
    }
    let page = |reply: &Reply| {
        let text = reply.text();
        let (facts, entries) = text.split_once('\n').unwrap();
        let facts: Vec<_> = facts.split(' ').map(str::to_owned).collect();
        (facts, entries.to_owned())
    };
    let call = Call::new(&names, Function::History, 0).of_channels([&*name]);
    let call = call
        .arg("0-0")
        .arg(&name)
        .arg(&ids[1])
        .arg("2")
        .arg("100000");
    let (facts, entries) = page(&server.call(&call).await);
    let expected = format!("{} {} 1\n2{} {} 1\n3", ids[2], ids[1], ids[3], ids[2]);
    assert_eq!(entries, expected);
    // clock, head, more, first, count
    assert_eq!(
        [&facts[1], &facts[3], &facts[5], &facts[7]],
        [&ids[4], &ids[4], "1", "2"]
    );
    assert_eq!(facts[6], ids[0]);

    let run = server.run_id().await;
    let fence = names.answers(0, "r", &run);
    let run_part = run_part(&run);
    let mut listener = Commands::connect(server.redis.address()).await.unwrap();
    listener
        .call(&[b"SSUBSCRIBE", fence.as_bytes()])
        .await
        .unwrap();
    let call = Call::new(&names, Function::Attach, 0).of_channels([&*name, "empty"]);
    let call = call
        .arg("r")
        .arg("0-0")
        .arg(&run_part)
        .arg("77")
        .arg("2")
        .arg("2")
        .arg("100000");
    server.call(&call.arg(&name).arg("empty")).await.text();
    let mut answers = Vec::new();
    for _ in 0..3 {
        // The answer to the ping arrives after the messages.
        let message = listener.call(&[b"PING"]).await.unwrap();
        answers.push(message.array()[2].text());
    }
    let (first, rest) = answers[0].split_once('\n').unwrap();
    assert_eq!(first, name);
    assert!(
        rest.ends_with(&format!(
            "{} {} 1\n3{} {} 1\n4",
            ids[3], ids[2], ids[4], ids[3]
        )),
        "{rest}"
    );
    // It never had an event.
    assert!(answers[1].starts_with("empty\n"), "{answers:?}");
    assert!(answers[1].ends_with(" - 86400000 0 0-0 0\n"), "{answers:?}");
    assert!(answers[2].starts_with("\n77 "), "{answers:?}");
}

/// Breaks when a history is kept longer than its rule, or shorter.
#[tokio::test]
async fn a_history_has_the_length_of_its_rule() {
    let mut server = Server::ready().await;
    for _ in 0..500 {
        server.publish(&[], &["few", "x"]).await.text();
    }
    // Whole nodes of the stream are trimmed.
    let kept = server.log("few").await.len();
    assert!((2..=200).contains(&kept), "{kept}");
    let [_, _, _, log, ids] = server.keys("few").try_into().unwrap();
    for key in [log, ids] {
        let ttl = server.commands.run(&format!("PTTL {key}")).await.integer();
        let day = i64::try_from(Rule::default().expire.as_millis()).unwrap();
        assert!((day - 60_000..=day).contains(&ttl), "{ttl}");
    }
}

mod migrate;
