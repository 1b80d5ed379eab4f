//! A client whose every event a test examines.

use std::{net::SocketAddr, time::Duration};

use testkit::{Answer, Client, End, Event, Gap, Id, Position, Received};
use tokio::time::timeout;

use super::{Gateway, in_time};

/// A client with a generous time limit.
#[derive(Debug)]
pub(crate) struct Viewer {
    pub(crate) client: Client,
    /// The `gateway.open` event of the current connection.
    pub(crate) open: Event,
}

impl Viewer {
    /// Connects to `/events?{query}`, which must be answered with a stream.
    pub(crate) async fn open(gateway: &Gateway, query: &str) -> Self {
        Self::over(gateway.public, Client::new(format!("/events?{query}"))).await
    }

    /// Connects with more lines in its head. Each of them ends with CR LF.
    pub(crate) async fn open_with(gateway: &Gateway, query: &str, headers: &str) -> Self {
        let mut client = Client::new(format!("/events?{query}"));
        client.set_headers(headers);
        Self::over(gateway.public, client).await
    }

    /// Connects as a client that has seen the event `id`.
    pub(crate) async fn resume(gateway: &Gateway, query: &str, id: &str) -> Self {
        let client = Client::resuming(format!("/events?{query}"), id);
        Self::over(gateway.public, client).await
    }

    /// Cuts the connection and reconnects to `gateway` with the last id.
    pub(crate) async fn reconnect(self, gateway: &Gateway) -> Self {
        Self::over(gateway.public, self.client).await
    }

    /// Connects `client`, and reads up to its `gateway.open`, which is the first event.
    pub(crate) async fn over(address: SocketAddr, mut client: Client) -> Self {
        let answer = in_time("an answer", client.connect(address)).await;
        match answer {
            Ok(Answer::Stream) => {}
            other => panic!("{client:?} was answered {other:?}"),
        }
        let open = match in_time("gateway.open", client.next()).await {
            Received::Event(event) if event.event == "gateway.open" => event,
            other => panic!("not gateway.open, but {other:?}"),
        };
        Self { client, open }
    }

    /// The next event.
    pub(crate) async fn event(&mut self) -> Event {
        match in_time("an event", self.client.next()).await {
            Received::Event(event) => event,
            Received::End(end) => panic!("an event was expected, not the end: {end:?}"),
        }
    }

    /// All events up to and including the message `last`, without `gateway.position`.
    pub(crate) async fn until(&mut self, last: &str) -> Vec<Event> {
        let mut events = Vec::new();
        let reading = async {
            loop {
                let event = match self.client.next().await {
                    Received::Event(event) => event,
                    Received::End(end) => panic!("{last:?} was expected, not {end:?}"),
                };
                let found = event.data == last;
                if event.event != "gateway.position" {
                    events.push(event);
                }
                if found {
                    return;
                }
            }
        };
        if timeout(super::PATIENCE, reading).await.is_err() {
            let tail = &events[events.len().saturating_sub(5)..];
            panic!(
                "{last:?} did not come; the last of {}: {tail:#?}",
                events.len()
            );
        }
        events
    }

    /// All events up to the end of the connection, and the kind of end.
    pub(crate) async fn until_end(&mut self) -> (Vec<Event>, End) {
        let mut events = Vec::new();
        loop {
            match in_time("the end", self.client.next()).await {
                Received::Event(event) => events.push(event),
                Received::End(end) => return (events, end),
            }
        }
    }

    /// Waits until `count` more heartbeats have arrived, and returns the events among them.
    pub(crate) async fn heartbeats(&mut self, count: u64) -> Vec<Event> {
        let goal = self.client.comments() + count;
        let mut events = Vec::new();
        let deadline = tokio::time::Instant::now() + super::PATIENCE;
        while self.client.comments() < goal {
            assert!(tokio::time::Instant::now() < deadline, "no heartbeats");
            // A comment is no event, so the client is checked from time to time.
            let next = timeout(Duration::from_millis(50), self.client.next());
            match next.await {
                Ok(Received::Event(event)) => events.push(event),
                Ok(Received::End(end)) => panic!("heartbeats were expected, not {end:?}"),
                Err(_) => {}
            }
        }
        events
    }
}

/// The data of each event, gaps as `<gap>`.
pub(crate) fn data(events: &[Event]) -> Vec<&str> {
    let text = |event: &'_ Event| event.event == "gateway.gap";
    events
        .iter()
        .map(|event| {
            if text(event) {
                "<gap>"
            } else {
                event.data.as_str()
            }
        })
        .collect()
}

/// The gaps among `events`.
pub(crate) fn gaps(events: &[Event]) -> Vec<Gap> {
    let gaps = events.iter().filter(|event| event.event == "gateway.gap");
    gaps.map(|event| Gap::read(event).expect("a gap names the missing events"))
        .collect()
}

/// The published events among `events`.
pub(crate) fn messages(events: &[Event]) -> Vec<&Event> {
    let published = |event: &&Event| !event.event.starts_with("gateway.");
    events.iter().filter(published).collect()
}

/// The data of the published events among `events`.
pub(crate) fn texts(events: &[Event]) -> Vec<&str> {
    messages(events)
        .into_iter()
        .map(|event| &*event.data)
        .collect()
}

/// Asserts that there is exactly one gap, for `channel`, with an id of its own.
pub(crate) fn assert_told(events: &[Event], channel: &str) {
    let gaps = gaps(events);
    assert_eq!(gaps.len(), 1, "{:?}", data(events));
    assert_eq!(gaps[0].channel, channel);
    assert!(
        !gaps[0].id.is_empty() && !gaps[0].reason.is_empty(),
        "{:?}",
        gaps[0]
    );
}

/// Asserts that ids only grow, from `id` on.
pub(crate) fn assert_rising(events: &[Event], id: Id) {
    let mut before = Position::Single(id);
    for event in events {
        let id: Position = event.id.parse().expect("an id");
        let told = event.event.starts_with("gateway.");
        assert!(
            id.is_not_before(&before) && (told || id != before),
            "{id} after {before}"
        );
        before = id;
    }
}
