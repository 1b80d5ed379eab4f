//! The servers of a test: Redis, three replicas, a load balancer, and a page in a browser.

use std::collections::BTreeMap;

use crate::{
    SHARES,
    browser::{Browser, Engine},
    page::{PATIENCE, Page},
    publisher::Publisher,
    support::{
        Balancer, Gateway, Kind, Place, Redis, Share, Viewer, eventually, recording, shares,
    },
};

const REPLICAS: usize = 3;

/// All parts. A part is dropped before the parts it depends on.
#[derive(Debug)]
pub(crate) struct Stage {
    _browser: Browser,
    pub(crate) page: Page,
    _balancer: Balancer,
    /// The addresses at which the balancer expects replicas.
    places: [Place; REPLICAS],
    /// The replica at each address. `None` while it is dead.
    slots: [Option<Gateway>; REPLICAS],
    redis: Redis,
    channel: String,
    /// The options of every replica.
    options: String,
    _machine: Share,
}

impl Stage {
    /// Opens a page that streams `channel`.
    pub(crate) async fn open(engine: Engine, kind: Kind, channel: &str, options: &str) -> Self {
        let machine = shares(SHARES).await;
        let redis = Redis::start().await;
        let places = Place::some();
        let mut slots = [const { None }; REPLICAS];
        for (slot, place) in slots.iter_mut().zip(places) {
            *slot = Some(place.start(&redis, options).await);
        }
        let page = Page::serve().await;
        let balancer = Balancer::start(kind, &places, &[page.address]).await;
        let url = format!("http://{}/?channel={channel}", balancer.public);
        let browser = Browser::visit(engine, &url);
        page.until_opened(1).await;
        let stage = Self {
            _browser: browser,
            page,
            _balancer: balancer,
            places,
            slots,
            redis,
            channel: channel.to_owned(),
            options: options.to_owned(),
            _machine: machine,
        };
        // A browser reports an open stream when its head arrives. A later client of the same replica receives the
        // channel's position after the page did.
        let serving = stage.slots[stage.serving().await].as_ref();
        let query = format!("channel={channel}");
        Viewer::open(serving.expect("it lives"), &query).await;
        stage
    }

    /// The slot of the replica that serves the page.
    pub(crate) async fn serving(&self) -> usize {
        self.one_with("sse_gateway_streams").await
    }

    /// The slot of the replica that records.
    pub(crate) async fn recording(&self) -> usize {
        self.one_with("sse_gateway_recorder_active").await
    }

    /// Whether no living replica serves the page.
    pub(crate) async fn page_is_away(&self) -> bool {
        let mut connections = 0.0;
        for gateway in self.slots.iter().flatten() {
            connections += gateway.metrics().await.sum("sse_gateway_streams");
        }
        connections == 0.0
    }

    async fn one_with(&self, metric: &str) -> usize {
        eventually(&format!("{metric} of one"), PATIENCE, async || {
            let mut all = Vec::new();
            for (slot, gateway) in self.slots.iter().enumerate() {
                let Some(gateway) = gateway else { continue };
                if gateway.metrics().await.sum(metric) > 0.0 {
                    all.push(slot);
                }
            }
            match *all {
                [one] => Ok(one),
                _ => Err(format!("slots {all:?}")),
            }
        })
        .await
    }

    /// Waits until two recorders are in sync. While one of them survives, no PUBLISH is lost.
    pub(crate) async fn two_recorders_are_in_sync(&self) {
        let mut redis = self.redis.connect().await;
        // Each in-sync recorder regularly extends its mark. Marks of dead recorders remain for a while, so only marks
        // that changed count.
        let mut first = None;
        eventually("two recorders are in sync", PATIENCE, async || {
            let notes = redis
                .run("ZRANGE ssegw:{8209}:in-sync 0 -1 WITHSCORES")
                .await;
            let notes: BTreeMap<_, _> = notes
                .array()
                .chunks(2)
                .map(|note| (note[0].text(), note[1].text()))
                .collect();
            let first = first.get_or_insert_with(|| notes.clone());
            let in_sync = notes
                .iter()
                .filter(|(replica, until)| first.get(*replica) != Some(until))
                .count();
            if in_sync >= 2 {
                Ok(())
            } else {
                Err(format!("{notes:?}"))
            }
        })
        .await;
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, slot: usize) {
        self.slots[slot].take().expect("it lives").kill();
    }

    /// SIGKILL to all.
    pub(crate) fn kill_all(&mut self) {
        for slot in &mut self.slots {
            if let Some(gateway) = slot.take() {
                gateway.kill();
            }
        }
    }

    /// Starts a replica at the address of a dead one.
    pub(crate) async fn replace(&mut self, slot: usize) {
        let gateway = self.places[slot].start(&self.redis, &self.options).await;
        self.slots[slot] = Some(gateway);
        recording(self.slots.iter().flatten(), 1).await;
    }

    /// Starts a backend that publishes `lines` with PUBLISH.
    pub(crate) fn publish(&self, lines: &[String]) -> Publisher {
        Publisher::publish(self.redis.address(), &self.channel, lines)
    }

    /// Starts a backend that publishes `lines` with the function, which needs no living replica.
    pub(crate) fn append(&self, lines: &[String]) -> Publisher {
        Publisher::append(self.redis.address(), &self.channel, lines)
    }
}
