//! `Canary`: publishes to a channel of its own and listens to it, as any client would, so that a
//! replica that only looks alive cannot look healthy.
//!
//! Everything that an event passes is on the way: the appender, Redis, the subscription, a hub, a
//! socket. What is measured is the age of the oldest message that has not come back.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use broker::{Append, Publisher};
use hub::Channel;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::{access::Own, metrics::CanaryMetrics};

/// Pause before it connects again.
const PAUSE: Duration = Duration::from_secs(1);
/// Messages that are known to be missing at most; the oldest tells how bad it is.
const MAX_MISSING: usize = 1000;
/// Bytes of an event at most; its own are tiny.
const MAX_EVENT: usize = 64 << 10;

/// What a canary is made of.
pub(crate) struct Canary {
    pub(crate) channel: Channel,
    pub(crate) period: Duration,
    /// Where this replica serves the public.
    pub(crate) public: SocketAddr,
    pub(crate) is_tls: bool,
    /// What lets it in.
    pub(crate) own: Own,
    /// After so much silence its connection is dead.
    pub(crate) silence: Duration,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: CanaryMetrics,
}

/// What is known of the messages that were sent.
struct Flight {
    /// Numbers, and when they were sent, oldest first.
    missing: VecDeque<(u64, Instant)>,
    next: u64,
    /// The newest that came back.
    seen: Option<u64>,
    last_event_id: String,
    metrics: CanaryMetrics,
}

impl Canary {
    /// Goes on for as long as the process lives.
    pub(crate) async fn run(self) {
        let client = reqwest::Client::builder()
            // It is this very process that is asked.
            .danger_accept_invalid_certs(true)
            .no_proxy()
            .read_timeout(self.silence)
            .build();
        let client = match client {
            Ok(client) => client,
            Err(error) => return tracing::error!(%error, "there is no canary"),
        };
        let mut flight = Flight {
            missing: VecDeque::new(),
            next: 0,
            seen: None,
            last_event_id: String::new(),
            metrics: self.metrics.clone(),
        };
        let mut period = interval(self.period);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let error = self.listen(&client, &mut flight, &mut period).await;
            tracing::warn!(error, "the canary's connection has ended");
            let pause = sleep(PAUSE);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    _ = period.tick() => self.send(&mut flight),
                }
            }
        }
    }

    /// One connection, to its end.
    async fn listen(
        &self,
        client: &reqwest::Client,
        flight: &mut Flight,
        period: &mut tokio::time::Interval,
    ) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        let address = reachable(self.public);
        let url = format!("{scheme}://{address}/events?channel={}", self.channel);
        let mut request = client.get(url).bearer_auth(self.own.token());
        if !flight.last_event_id.is_empty() {
            request = request.header("last-event-id", &flight.last_event_id);
        }
        let connecting = request.send();
        tokio::pin!(connecting);
        let mut response = loop {
            tokio::select! {
                response = &mut connecting => match response {
                    Ok(response) if response.status().is_success() => break response,
                    Ok(response) => return format!("answered {}", response.status()),
                    Err(error) => return error.to_string(),
                },
                _ = period.tick() => self.send(flight),
            }
        };
        let mut parser = sse::Parser::new(MAX_EVENT);
        loop {
            tokio::select! {
                chunk = response.chunk() => match chunk {
                    Ok(Some(chunk)) => {
                        if let Err(error) = parser.push(&chunk, |event| flight.see(&event)) {
                            return error.to_string();
                        }
                    }
                    Ok(None) => return "the stream has ended".to_owned(),
                    Err(error) => return error.to_string(),
                },
                _ = period.tick() => self.send(flight),
            }
        }
    }

    /// Publishes the next number, and looks how long the oldest has been away.
    fn send(&self, flight: &mut Flight) {
        let number = flight.next;
        flight.next += 1;
        if flight.missing.len() < MAX_MISSING {
            flight.missing.push_back((number, Instant::now()));
        }
        flight.look();
        self.metrics.sent.inc();
        let event = Append {
            channel: self.channel.clone(),
            payload: number.to_string().into_bytes(),
            // Sent once: what was lost shows as lag, not as a repetition.
            idempotency_key: None,
        };
        let publisher = self.publisher.clone();
        tokio::spawn(async move {
            if let Some(Err(error)) = publisher.append(vec![event]).await.pop() {
                tracing::warn!(%error, "the canary's message was not published");
            }
        });
    }
}

impl Flight {
    fn see(&mut self, event: &sse::Parsed<'_>) {
        if !event.id.is_empty() {
            event.id.clone_into(&mut self.last_event_id);
        }
        match event.event {
            "message" => {}
            "gateway.gap" => return self.metrics.gaps.inc(),
            _ => return,
        }
        let Ok(number) = event.data.parse::<u64>() else {
            return;
        };
        if self.seen.is_some_and(|seen| number <= seen) {
            return self.metrics.duplicates.inc();
        }
        self.seen = Some(number);
        self.metrics.received.inc();
        // Those before it were not stored, or a gap has said that they are gone.
        while let Some((first, sent)) = self.missing.front()
            && *first <= number
        {
            if *first == number {
                self.metrics.lag.set(sent.elapsed().as_secs_f64());
            }
            self.missing.pop_front();
        }
    }

    /// While nothing comes back the lag grows.
    fn look(&self) {
        if let Some((_, sent)) = self.missing.front() {
            let age = sent.elapsed().as_secs_f64();
            if age > self.metrics.lag.get() {
                self.metrics.lag.set(age);
            }
        }
    }
}

/// Where an address that stands for all of this machine's is reached.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
