//! A partition that moves to another Redis.

use std::time::{Duration, Instant};

use super::*;

/// A source with three partitions, a target with six, and a channel.
struct Ends {
    source: Server,
    target: Server,
    channel: String,
}

impl Ends {
    async fn new() -> Self {
        let source = Server::ready().await;
        let target = Server::with_partitions(6).await;
        let channel = channel(&source, "news");
        Self {
            source,
            target,
            channel,
        }
    }

    /// The partition of the channel at the target.
    fn to(&self) -> u16 {
        self.target.names.partitions().of(&self.channel)
    }

    async fn leaving(&mut self, step: &str, replica: &str) -> Reply {
        let names = self.source.names.clone();
        let call = Call::new(&names, Function::Migrate, 0);
        let call = call.arg("m").arg(step).arg(replica);
        self.source.call(&call).await
    }

    async fn arriving(&mut self, name: &str, step: &str, args: &[String]) -> Reply {
        let (names, to) = (self.target.names.clone(), self.to());
        let call = Call::new(&names, Function::Migrate, to);
        let call = args.iter().fold(call.arg(name).arg(step), Call::arg);
        self.target.call(&call).await
    }

    /// The answer to `look`, from the number of replicas that wait on.
    async fn facts(&mut self) -> Vec<String> {
        let names = self.source.names.clone();
        let call = Call::new(&names, Function::Migrate, 0);
        let looked = self.source.call(&call.arg("").arg("look")).await;
        texts(&looked).split_off(6)
    }

    /// Copies what follows this entry and this id. Returns the newest ones at the target.
    async fn copy(&mut self, entry: &str, id: &str, at_most: &str) -> Vec<String> {
        let (from, to) = (self.source.names.clone(), self.target.names.clone());
        let call = Call::new(&from, Function::Export, 0).of_channels([&*self.channel]);
        let call = call.arg(&self.channel).arg(entry).arg(id);
        let page = self.source.call(&call.arg(at_most).arg("100000")).await;
        let [log, list, _, is_whole, ids, entries] = page.array() else {
            panic!("{page:?}");
        };
        let number = |reply: &Reply| reply.integer().to_string();
        let ids = texts(ids);
        let mut args = vec![number(log), number(list), number(is_whole)];
        args.push(ids.len().to_string());
        args.extend(ids);
        for entry in entries.array() {
            let words = texts(&entry.array()[1]);
            args.push(entry.array()[0].text());
            args.push(words.len().to_string());
            args.extend(words);
        }
        let call = Call::new(&to, Function::Import, self.to()).of_channels([&*self.channel]);
        let call = call.arg("m").arg(&self.channel);
        let stored = self.target.call(&args.iter().fold(call, Call::arg)).await;
        texts(&stored)
    }

    async fn relay(&mut self, session: &str, number: &str, args: &[&str]) -> Reply {
        let (names, to) = (self.target.names.clone(), self.to());
        let call = Call::new(&names, Function::Relay, to).of_channels([&*self.channel]);
        let call = call.arg("r").arg("0-0").arg(session).arg(number);
        let call = args.iter().fold(call, |call, arg| call.arg(*arg));
        self.target.call(&call).await
    }

    async fn publish(&mut self, payload: &str) -> Reply {
        let channel = self.channel.clone();
        self.source.publish(&[], &[&channel, payload, "key"]).await
    }
}

/// Breaks when a step touches a key that it does not declare, when copies differ from the source, or when both ends take
/// events.
#[tokio::test]
async fn a_partition_is_copied_closed_and_opened() {
    let mut ends = Ends::new().await;
    let channel = ends.channel.clone();
    assert_eq!(texts(&ends.leaving("copy", "x").await), ["copying"]);
    assert_eq!(texts(&ends.arriving("m", "fill", &[]).await), ["filling"]);
    let to = ends.to();
    assert_eq!(error(&ends.target.handshake("r", to).await), "MIGRATING");
    for number in 0..5 {
        let payload = number.to_string();
        let published = ends.source.publish(&[], &[&channel, &payload]).await;
        assert!(published.text().contains('-'));
    }
    let id = ends.publish("5").await.text();
    let key = ends.source.names.idempotency(0, &channel, "FCALL:key");
    let traced = texts(&ends.leaving("trace", "x").await);
    assert_eq!(traced, ["1", &channel, &key]);
    assert_eq!(texts(&ends.leaving("trace", "x").await), ["0"]);
    assert_eq!(error(&ends.leaving("trace", "y").await), "NOTRACE");

    // Page by page; the ids come with the last page, and a repeated page changes nothing.
    let [entry, ids] = ends.copy("0-0", "0-0", "4").await.try_into().unwrap();
    assert_eq!(ids, "0-0");
    for _ in 0..2 {
        assert_eq!(ends.copy(&entry, &ids, "4").await, [&*id, &*id]);
    }
    let later = ends.source.publish(&[], &[&channel, "6"]).await.text();
    assert_eq!(ends.copy(&id, &id, "4").await, [&*later, &*later]);

    // The keys and marks of the partition.
    let (from, target) = (ends.source.names.clone(), ends.target.names.clone());
    let call = Call::new(&from, Function::Export, 0).of_keys([key.clone()]);
    let rest = ends.source.call(&call.arg("").arg("0")).await;
    let (marks, values) = (texts(&rest.array()[0]), texts(&rest.array()[1]));
    assert_eq!((marks.len(), values.len()), (2, 2));
    let moved = target.idempotency(to, &channel, "FCALL:key");
    let call = Call::new(&target, Function::Import, to).of_keys([moved]);
    let call = call.arg("m").arg("").arg("1").arg(&marks[1]).arg(&marks[0]);
    let call = values.iter().fold(call, Call::arg);
    assert_eq!(ends.target.call(&call).await.text(), "");

    assert_eq!(error(&ends.leaving("commit", "x").await), "OTHERMIGRATION");
    assert_eq!(texts(&ends.leaving("close", "x").await), ["0"]);
    assert_eq!(error(&ends.leaving("close", "y").await), "OTHERMIGRATION");
    assert_eq!(error(&ends.publish("7").await), "MIGRATING");
    // The recorder that migrates can record; no other one can.
    assert_eq!(ends.source.acquire("r", "r:1-1", "1").await, 0);
    assert!(ends.source.handshake("x", 0).await.text().contains('-'));
    assert_eq!(ends.source.acquire("x", "x:1-1", "1").await, 1);
    assert_eq!(error(&ends.leaving("commit", "y").await), "OTHERMIGRATION");
    for _ in 0..2 {
        assert_eq!(texts(&ends.leaving("commit", "x").await), ["closed"]);
    }
    assert_eq!(error(&ends.leaving("abort", "x").await), "CLOSED");
    assert_eq!(ends.source.acquire("x", "x:1-2", "1").await, 0);
    let mut facts = ends.facts().await;
    assert!(facts[0] >= later, "{facts:?}");
    assert_eq!(error(&ends.source.handshake("r", 0).await), "MIGRATING");
    // Clients still receive the clock as their position, when the server's time is later.
    let clock = facts[0].split_once('-').expect("an id").0;
    let clock: u128 = clock.parse().expect("milliseconds");
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        assert!(Instant::now() < deadline, "the clock is ahead");
        let time = ends.source.commands.run("TIME").await;
        let time = time.array();
        let [seconds, micros] = [0, 1].map(|place| time[place].text().parse::<u128>().unwrap());
        if seconds * 1000 + micros / 1000 > clock {
            break;
        }
    }
    let probe = Call::new(&from, Function::Attach, 0);
    let probe = probe.arg("r").arg("0-0").arg("run:").arg("1");
    let probe = probe.arg("0").arg("0").arg("0");
    assert_eq!(ends.source.call(&probe).await.text(), facts[0]);

    facts.push(String::new());
    for _ in 0..2 {
        assert_eq!(texts(&ends.arriving("m", "open", &facts).await), ["open"]);
    }
    assert_eq!(
        error(&ends.arriving("n", "open", &facts).await),
        "OTHERMIGRATION"
    );
    assert_eq!(texts(&ends.leaving("leave", "x").await), ["moved"]);
    assert_eq!(error(&ends.publish("8").await), "MIGRATED");
    assert_eq!(error(&ends.source.handshake("r", 0).await), "MIGRATED");

    // Nothing is missing at the target, and the publisher's key still counts.
    assert!(ends.target.handshake("r", to).await.text() >= facts[0]);
    let clock = target.name(to, CLOCK);
    let horizon = format!("HGET {clock} horizon");
    assert_eq!(ends.target.commands.run(&horizon).await.text(), facts[1]);
    let again = ends.target.publish(&[], &[&channel, "5", "key"]).await;
    assert_eq!(again.text(), id);
    assert_eq!(
        ends.target.log(&channel).await,
        ["0", "1", "2", "3", "4", "5", "6"]
    );
}

/// Breaks when a relayed message is recorded twice, or when another command relays at the same time.
#[tokio::test]
async fn a_relayed_message_is_recorded_once() {
    let mut ends = Ends::new().await;
    let (channel, to) = (ends.channel.clone(), ends.to());
    assert_eq!(error(&ends.relay("s", "0", &["0"]).await), "NOTREADY");
    ends.target.handshake("r", to).await;
    assert_eq!(ends.relay("s", "0", &["0"]).await.integer(), 1);
    for expected in [1, 0] {
        let sent = ends.relay("s", "1", &[&channel, "a", &channel, "b"]).await;
        assert_eq!(sent.integer(), expected);
    }
    assert_eq!(ends.relay("t", "0", &["0"]).await.integer(), 1);
    assert_eq!(
        error(&ends.relay("s", "2", &[&channel, "c"]).await),
        "FENCED"
    );
    let lost = format!("\0{channel}");
    assert_eq!(
        ends.relay("t", "1", &[&lost, "", &channel, "d"])
            .await
            .integer(),
        1
    );
    assert_eq!(ends.relay("t", "2", &["-"]).await.integer(), 1);
    let clock = ends.target.names.name(to, CLOCK);
    let relayed = ends
        .target
        .commands
        .run(&format!("HGET {clock} relayed"))
        .await;
    assert_eq!(relayed.text(), "- t 2");
    assert_eq!(ends.target.log(&channel).await, ["a", "b", "d"]);
}

/// Breaks when a library for more partitions has other rules than the one of the source.
#[test]
fn a_library_for_more_partitions_keeps_the_rules() {
    let names = |count| Names::new(Partitions::new(count).unwrap());
    let rule = Rule {
        pattern: "chat.*".to_owned(),
        history: 7,
        ..Rule::default()
    };
    let rules = std::slice::from_ref(&rule);
    let code = library(&script(&names(2), rules, 1234));
    let more = divided(&code, &names(8)).unwrap();
    assert_eq!(more, script(&names(8), rules, 1234));
    assert_eq!(max_payload(&more), Some(1234));
}
