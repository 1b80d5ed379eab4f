//! The data that clients receive from publishers that use a library with its defaults.

use std::collections::BTreeMap;

use serde_json::Value;
use testkit::lab::{eventually, recording};

use crate::{
    docs::Row,
    support::{Gateway, PATIENCE, Process, Redis},
    tools::{Tool, Tools},
};

/// The programs and their publishers, in the order of the docs.
const PROGRAMS: &[(Tool, &str, &[&str])] = &[
    (Tool::Go, "go-redis", &["go-redis"]),
    (Tool::Node, "redis", &["node-redis"]),
    (Tool::Node, "ioredis", &["ioredis"]),
    (Tool::Python, "redis", &["redis-py"]),
    (
        Tool::Jvm,
        "jvm",
        &[
            "Jedis",
            "Lettuce",
            "StringRedisTemplate",
            "RedisTemplate",
            "GenericJackson2JsonRedisSerializer",
            "Jackson2JsonRedisSerializer",
            "Redisson",
            "StringCodec",
            "SerializationCodec",
            "JsonJacksonCodec",
            "TypedJsonJacksonCodec",
        ],
    ),
];

/// The kinds of values that each publishes.
const KINDS: [&str; 5] = ["text", "envelope", "object", "number", "boolean"];

/// Per serializer, the number of the JVM's messages that the recorder recognizes as serialized.
const SERIALIZED: [(&str, f64); 4] = [
    // RedisTemplate and SerializationCodec.
    ("java", 10.0),
    // Redisson's default.
    ("binary", 5.0),
    // Objects of the two serializers that add classes.
    ("json_class", 2.0),
    // Envelopes of the four serializers that write JSON.
    ("json_string", 4.0),
];

/// Runs all publishers against a replica.
pub(crate) async fn play(tools: &Tools, failures: &mut Vec<String>) -> Vec<Row> {
    let redis = Redis::start().await;
    let mut gateway = Gateway::start(&redis, "").await;
    recording([&gateway], 1).await;
    let mut rows = Vec::new();
    for (tool, program, publishers) in PROGRAMS {
        if !tools.has(*tool) {
            continue;
        }
        let arguments = [program, "publish", &redis.url(), "sse:"];
        let mut process = Process::start(*program, &mut tools.command(*tool, &arguments));
        let status = process.exit_within(3 * PATIENCE).await;
        assert!(status.success(), "{program}: {}", process.log());
        // When this message is recorded, all earlier ones are too.
        let done = format!("done-{}-{program}", tool.name());
        redis.connect().await.publish(&done, "done").await;
        eventually("messages are recorded", PATIENCE, async || {
            match redis.log(&done, 1).await.len() {
                1 => Ok(()),
                _ => Err("not yet".to_owned()),
            }
        })
        .await;
        let refused: BTreeMap<_, _> = process
            .output()
            .lines()
            .filter_map(|line| line.split_once('\t'))
            .map(|(name, why)| (name.to_owned(), why.to_owned()))
            .collect();
        for publisher in *publishers {
            let mut cells = Vec::new();
            for kind in KINDS {
                let name = format!("{publisher}.{kind}");
                let takes_texts_only = matches!(*publisher, "Jedis" | "Lettuce");
                cells.push(match refused.get(&name) {
                    Some(why) => why.clone(),
                    None if takes_texts_only && !["text", "envelope"].contains(&kind) => {
                        "refused by the library".to_owned()
                    }
                    None => received(&gateway, &name).await,
                });
            }
            rows.push(Row {
                name: label(publisher),
                cells,
            });
        }
    }
    if tools.has(Tool::Jvm) {
        let metrics = gateway.metrics().await;
        for (serializer, count) in SERIALIZED {
            let label = format!("serializer=\"{serializer}\"");
            let found = metrics.labelled("sse_gateway_raw_serialized_total", &label);
            if found != count {
                failures.push(format!(
                    "serialized as {serializer}: {found} messages, not {count}"
                ));
            }
        }
        let log = gateway.process().log();
        for advice in ["publish with StringRedisTemplate", "StringCodec"] {
            if !log.contains(advice) {
                failures.push(format!("the log does not say {advice:?}:\n{log}"));
            }
        }
    }
    rows
}

/// The name of a publisher in the docs.
fn label(publisher: &str) -> String {
    match publisher {
        _ if publisher.ends_with("Template") => format!("Spring, `{publisher}`"),
        _ if publisher.ends_with("RedisSerializer") => {
            format!("Spring, `RedisTemplate` with `{publisher}`")
        }
        _ if publisher.ends_with("Codec") => format!("Redisson with `{publisher}`"),
        _ => publisher.to_owned(),
    }
}

/// The data that a client receives for the only event of a channel.
async fn received(gateway: &Gateway, channel: &str) -> String {
    let target = format!("/events?channel={channel}&since=start");
    let page = gateway.get(&target, "Accept: application/json\r\n").await;
    let page: Value = serde_json::from_str(&page.body).expect("JSON");
    let Some(event) = page["events"].get(0) else {
        return "refused".to_owned();
    };
    let data = event["data"].as_str().expect("a text");
    // Escaped as in JSON, without the quotes.
    let shown = match data.chars().any(char::is_control) {
        true => format!("`{}`, control characters", data.escape_default()),
        false => format!("`{data}`"),
    };
    match event["event"].as_str() {
        None | Some("message") => shown,
        Some(name) => format!("event {name}: {shown}"),
    }
}
