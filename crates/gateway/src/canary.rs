//! `Canary`: publishes to its own channel and subscribes to it like any client. So a replica that is only running does
//! not look healthy.
//!
//! A message passes everything that an event passes: the appender, Redis, the subscription, a hub and a socket. The
//! canary measures the age of the oldest message that has not returned. It also counts messages that were stored and
//! never arrived, see [`Flight`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    time::Duration,
};

use access::CanaryCredential;
use broker::{Append, Appended, NotAppended, Publisher, throttled};
use hub::Channel;
use tokio::{
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout_at},
};

use crate::{
    flight::{Arrival, Flight},
    listener::ListenAddress,
    metrics::CanaryMetrics,
    value,
};

/// Pause before it connects again after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// After this time the canary reconnects with its last id. The kernel then chooses a worker again. So one request a
/// minute tests resuming, and soon all workers.
const STAY: Duration = Duration::from_secs(60);
/// Maximum bytes of an event. The canary's own events are tiny.
const MAX_EVENT: usize = 64 << 10;

/// The setting of the canary.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct CanaryConfig {
    /// Interval of the messages that this replica sends to itself, through Redis and its own /events; 0s: none. Metrics
    /// then show whether events pass.
    #[arg(
        long,
        env = "SSE_GATEWAY_CANARY_INTERVAL",
        value_name = "TIME",
        default_value = "0s",
        value_parser = value::time_or_off(Duration::from_millis(100), "none")
    )]
    canary_interval: Duration,
}

impl CanaryConfig {
    /// Time between two messages, if there is a canary.
    pub(crate) fn interval(self) -> Option<Duration> {
        Some(self.canary_interval).filter(|interval| !interval.is_zero())
    }
}

/// The settings of a canary, and the parts that it uses.
pub(crate) struct Canary {
    pub(crate) channel: Channel,
    pub(crate) period: Duration,
    /// Where this replica serves the public.
    pub(crate) public: ListenAddress,
    pub(crate) is_tls: bool,
    /// Admits the canary's own requests.
    pub(crate) credential: CanaryCredential,
    /// After this much silence its connection counts as dead.
    pub(crate) silence: Duration,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: CanaryMetrics,
}

/// State that outlives a connection.
struct Journey {
    flight: Flight,
    /// Part of each message of this canary. Messages that others publish to the channel lack it.
    mark: String,
    last_event_id: String,
    period: Interval,
    /// Appends that are not answered yet.
    appends: JoinSet<(u64, Appended)>,
}

impl Canary {
    /// Runs as long as the process.
    pub(crate) async fn run(self) {
        let mut client = reqwest::Client::builder()
            // The server is this process itself.
            .danger_accept_invalid_certs(true)
            .no_proxy()
            // Each connect needs a new socket. A pooled one would reach the same worker again.
            .pool_max_idle_per_host(0)
            .read_timeout(self.silence);
        // The host of the URL is not looked up then.
        let host = match &self.public {
            ListenAddress::Tcp(address) => reachable(*address).to_string(),
            ListenAddress::Unix(path) => {
                client = client.unix_socket(path.as_path());
                "localhost".to_owned()
            }
        };
        let client = match client.build() {
            Ok(client) => client,
            Err(error) => return tracing::error!(%error, "the canary failed to start"),
        };
        let mut period = interval(self.period);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut journey = Journey {
            flight: Flight::default(),
            mark: format!("{:016x}", fastrand::u64(..)),
            last_event_id: String::new(),
            period,
            appends: JoinSet::new(),
        };
        loop {
            if let Err(error) = self.listen(&client, &host, &mut journey).await {
                throttled!(warn, error, "the canary's connection has ended");
                self.during(&mut journey, sleep(PAUSE)).await;
            }
        }
    }

    /// One connection, until it has been long enough or fails.
    async fn listen(
        &self,
        client: &reqwest::Client,
        host: &str,
        journey: &mut Journey,
    ) -> Result<(), String> {
        let scheme = if self.is_tls { "https" } else { "http" };
        let url = format!("{scheme}://{host}/events?channel={}", self.channel);
        let mut request = client.get(url).bearer_auth(self.credential.token());
        if !journey.last_event_id.is_empty() {
            request = request.header("last-event-id", &journey.last_event_id);
        }
        let response = self.during(journey, request.send()).await;
        let mut response = response.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("answered {}", response.status()));
        }
        // The stream begins with messages published from now on. Messages already under way may be missing.
        if journey.last_event_id.is_empty() {
            journey.flight.gap();
        }
        let mut parser = sse::Parser::new(MAX_EVENT);
        let until = Instant::now() + STAY;
        loop {
            let chunk = timeout_at(until, response.chunk());
            match self.during(journey, chunk).await {
                Ok(Ok(Some(chunk))) => {
                    let parsed = parser.push(&chunk, |event| self.see(journey, &event));
                    if let Err(error) = parsed {
                        // This is a message of another publisher. After a reconnect with the same id it would arrive
                        // and fail again.
                        journey.last_event_id.clear();
                        return Err(error.to_string());
                    }
                }
                Ok(Ok(None)) => return Err("the stream has ended".to_owned()),
                Ok(Err(error)) => return Err(error.to_string()),
                // The canary takes no client's place, so it may reconnect at once.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Waits for this work. Until then it continues to send.
    async fn during<T>(&self, journey: &mut Journey, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = journey.period.tick() => self.send(journey),
                Some(append) = journey.appends.join_next() => {
                    // If the append panicked, its result is unknown.
                    if let Ok((number, appended)) = append {
                        self.answer(journey, number, appended);
                    }
                }
            }
        }
    }

    /// Publishes the next number, and measures how long the oldest message has been away.
    fn send(&self, journey: &mut Journey) {
        let now = Instant::now();
        let number = journey.flight.send(now);
        // While no message returns, the lag grows.
        if let Some(age) = journey.flight.oldest(now) {
            let lag = &self.metrics.lag;
            lag.set(lag.get().max(age.as_secs_f64()));
        }
        self.metrics.sent.inc();
        let event = Append {
            channel: self.channel.clone(),
            payload: format!("{number} {}", journey.mark).into_bytes(),
            is_end: false,
            // Sent once, so a lost message counts as lost and not as a duplicate.
            idempotency_key: None,
        };
        let publisher = self.publisher.clone();
        journey.appends.spawn(async move {
            let answer = publisher.append(vec![event], 0).await.pop();
            (number, answer.unwrap_or(Err(NotAppended::Unknown)))
        });
    }

    fn answer(&self, journey: &mut Journey, number: u64, appended: Appended) {
        if let Err(error) = appended {
            throttled!(warn, %error, "the canary's message was not published");
        }
        // Without an id the message is in no history, and a client that is disconnected may miss it.
        let is_stored = matches!(appended, Ok(Some(_)));
        let lost = journey.flight.answer(number, is_stored);
        self.metrics.lost.inc_by(lost);
    }

    fn see(&self, journey: &mut Journey, event: &sse::Parsed<'_>) {
        if !event.id.is_empty() {
            event.id.clone_into(&mut journey.last_event_id);
        }
        match event.event {
            "message" => {}
            "gateway.gap" => {
                journey.flight.gap();
                return self.metrics.gaps.inc();
            }
            _ => return,
        }
        let own = event.data.split_once(' ');
        let own = own.filter(|(_, mark)| *mark == journey.mark);
        let Some(number) = own.and_then(|(number, _)| number.parse().ok()) else {
            return;
        };
        match journey.flight.arrive(number, Instant::now()) {
            Arrival::Foreign => {}
            Arrival::Repeated => self.metrics.duplicates.inc(),
            Arrival::New { lag, lost } => {
                self.metrics.received.inc();
                self.metrics.lost.inc_by(lost);
                if let Some(lag) = lag {
                    self.metrics.lag.set(lag.as_secs_f64());
                }
            }
        }
    }
}

/// The address to connect to. A wildcard address becomes the loopback address.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
