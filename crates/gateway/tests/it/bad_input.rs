//! Bad input of clients and publishers: each gets a clear answer, no 5xx, and nothing is lost for
//! others.

mod ids;
mod names;
mod payloads;
mod requests;

use crate::support::{Commands, Gateway, Redis, Viewer, recording};

/// Asserts that the gateway answers, records and delivers.
async fn assert_alive(gateway: &Gateway, redis: &Redis, publisher: &mut Commands) {
    gateway.ready().await;
    recording([gateway], 1).await;
    let mut viewer = Viewer::open(gateway, "channel=alive").await;
    publisher.publish("alive", "raw").await;
    viewer.until("raw").await;
    redis.append("alive", "stored").await;
    viewer.until("stored").await;
}

/// Percent-encodes every byte that is not a letter or a digit.
fn encode(bytes: &[u8]) -> String {
    let encoded = bytes.iter().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    encoded.collect()
}
