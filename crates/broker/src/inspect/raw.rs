//! Raw messages as they are published, and the ones that clients cannot read as their publisher meant them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use redis::Client;
use tokio::time::timeout;

use crate::{Error, Finding, Server, Verdict, process, serializer, wire};

/// Channels with lines of their own. Messages of others are counted only.
const MAX_CHANNELS: usize = 1000;
/// Lines about channels.
const MAX_LINES: usize = 20;
/// Bytes of a payload that are shown.
const BEGINNING: usize = 16;

/// The raw channels to watch, and the largest payload of their messages.
#[derive(Clone, Debug)]
pub struct RawChannels {
    /// Raw channels begin with this.
    pub prefix: String,
    /// One channel, without the prefix; none for all.
    pub channel: Option<String>,
    /// Largest payload, in bytes.
    pub max_payload: usize,
}

/// The messages of a channel that have the same fault.
struct Faulty {
    count: u64,
    /// The beginning of one of them.
    begins: String,
    verdict: Verdict,
}

/// Subscribes to raw messages until `stop`, and reports which of them are refused or look serialized. In that time,
/// publishers count one more subscriber in the answer to PUBLISH.
pub async fn watch_raw(
    server: &Server,
    raw: &RawChannels,
    stop: impl Future<Output = ()>,
) -> Vec<Finding> {
    const WHAT: &str = "messages";
    let begun = Instant::now();
    let mut seen = Seen::default();
    let listened = tokio::select! {
        listened = seen.listen(server, raw) => listened,
        () = stop => Ok(()),
    };
    if let Err(error) = listened {
        return vec![Finding::new(Verdict::Unknown, WHAT, error.to_string())];
    }
    seen.findings(raw, begun.elapsed())
}

#[derive(Default)]
struct Seen {
    messages: u64,
    channels: BTreeMap<String, u64>,
    faulty: BTreeMap<(String, String), Faulty>,
}

impl Seen {
    /// Notes all messages. Returns when that fails.
    async fn listen(&mut self, server: &Server, raw: &RawChannels) -> Result<(), Error> {
        let place = server.locate(None).await?;
        let failed = |error: redis::RedisError| match error.code() {
            Some(_) => Error::of(error),
            None => Error::connecting(&place.info, &error),
        };
        let subscribe = async {
            let mut listener = Client::open(place.info.clone())?.get_async_pubsub().await?;
            match &raw.channel {
                Some(channel) => {
                    listener
                        .subscribe(format!("{}{channel}", raw.prefix))
                        .await?
                }
                None => listener.psubscribe(wire::pattern(&raw.prefix)).await?,
            }
            Ok::<_, redis::RedisError>(listener)
        };
        let subscribed = timeout(process::TIMEOUT, subscribe).await;
        let subscribed = subscribed
            .map_err(|_| Error::connecting(&place.info, &"timed out"))?
            .map_err(failed);
        let mut listener = subscribed?;
        let mut messages = listener.on_message();
        while let Some(message) = messages.next().await {
            let name = message.get_channel_name();
            let channel = name.strip_prefix(&raw.prefix).unwrap_or(name);
            self.note(channel, message.get_payload_bytes(), raw.max_payload);
        }
        Err(Error::connecting(&place.info, &"the connection was closed"))
    }

    fn note(&mut self, channel: &str, payload: &[u8], max_payload: usize) {
        self.messages += 1;
        let is_known = self.channels.contains_key(channel);
        if !is_known && self.channels.len() >= MAX_CHANNELS {
            return;
        }
        *self.channels.entry(channel.to_owned()).or_default() += 1;
        let (verdict, fault) = match serializer::examine(payload, max_payload) {
            Ok(None) => return,
            Ok(Some(serializer)) => {
                let text = format!("are delivered as they are: {}", serializer.advice());
                (Verdict::Advice, text)
            }
            Err(reason) => {
                let advice =
                    serializer::Serializer::of(payload).map(serializer::Serializer::advice);
                let advice = advice.map_or_else(String::new, |advice| format!(": {advice}"));
                let text = format!("are refused ({}){advice}", reason.as_str());
                (Verdict::Wrong, text)
            }
        };
        let faulty = self.faulty.entry((channel.to_owned(), fault));
        let faulty = faulty.or_insert_with(|| Faulty {
            count: 0,
            begins: payload[..payload.len().min(BEGINNING)]
                .escape_ascii()
                .to_string(),
            verdict,
        });
        faulty.count += 1;
    }

    fn findings(self, raw: &RawChannels, time: Duration) -> Vec<Finding> {
        const WHAT: &str = "messages";
        let Self {
            messages,
            channels,
            faulty,
        } = self;
        if messages == 0 {
            let pattern = raw.channel.as_deref().unwrap_or("*");
            return vec![Finding::new(
                Verdict::Note,
                WHAT,
                format!(
                    "none in {}{pattern} within {time:.0?}. Is --channel-prefix that of the publishers, and do they publish \
                     with PUBLISH?",
                    raw.prefix
                ),
            )];
        }
        if faulty.is_empty() {
            let channels = channels.len();
            return vec![Finding::new(
                Verdict::Fine,
                WHAT,
                format!("{messages} in {channels} channels, none is refused or looks serialized"),
            )];
        }
        let more = faulty.len().saturating_sub(MAX_LINES);
        let mut lines: Vec<_> = faulty.into_iter().collect();
        // The worst first, and then the most frequent.
        lines.sort_by_key(|(_, faulty)| std::cmp::Reverse((faulty.verdict, faulty.count)));
        lines.truncate(MAX_LINES);
        let line = |((channel, fault), faulty): ((String, String), Faulty)| {
            let of = channels.get(&channel).copied().unwrap_or_default();
            let Faulty {
                count,
                begins,
                verdict,
            } = faulty;
            let text = format!("{channel}: {count} of {of} {fault}. One begins \"{begins}\"");
            Finding::new(verdict, WHAT, text)
        };
        let mut findings: Vec<_> = lines.into_iter().map(line).collect();
        if more > 0 {
            let text = format!("{more} more lines like these");
            findings.push(Finding::new(Verdict::Note, WHAT, text));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_a_channel_is_one_line() {
        let raw = RawChannels {
            prefix: "sse:".to_owned(),
            channel: None,
            max_payload: 100,
        };
        let mut seen = Seen::default();
        for (channel, payload) in [
            ("orders", &b"\xac\xed\x00\x05t\x00\x05hello"[..]),
            ("orders", b"\xac\xed\x00\x05t\x00\x05world"),
            ("orders", b"a text"),
            ("prices", br#"{"@class":"a.B","data":1}"#),
            ("large", &[b'x'; 101]),
        ] {
            seen.note(channel, payload, raw.max_payload);
        }
        let findings = seen.findings(&raw, Duration::from_secs(1));
        let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, verdict, says) in [
            (
                0,
                "WRONG",
                "orders: 2 of 3 are refused (not_utf8): Java serialization",
            ),
            (1, "WRONG", "large: 1 of 1 are refused ("),
            (
                2,
                "advice",
                "prices: 1 of 1 are delivered as they are: a JSON serializer has added @class",
            ),
        ] {
            assert!(lines[line].starts_with(verdict), "{lines:?}");
            assert!(lines[line].contains(says), "{lines:?}");
        }
        let none = Seen::default().findings(&raw, Duration::from_secs(1));
        assert_eq!(none[0].verdict, Verdict::Note);
    }
}
