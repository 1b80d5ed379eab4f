//! What a story is played on: Redis, three replicas, a load balancer, and a page in a browser.

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

/// Everything that runs, what depends on others first.
#[derive(Debug)]
pub(crate) struct Stage {
    _browser: Browser,
    pub(crate) page: Page,
    _balancer: Balancer,
    /// Where the balancer looks for replicas.
    places: [Place; REPLICAS],
    /// What is in each place; none while it is dead.
    slots: [Option<Gateway>; REPLICAS],
    redis: Redis,
    channel: String,
    /// How every replica is started.
    options: String,
    _machine: Share,
}

impl Stage {
    /// A page that has just opened a stream of `channel`.
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
        // A browser says that a stream is open when its head is there. Who comes after it has the channel's position later.
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

    /// Waits until two replicas can record: while one of them survives, no PUBLISH is lost.
    pub(crate) async fn two_recorders_are_in_sync(&self) {
        let mut redis = self.redis.connect().await;
        // Each recorder that has missed nothing notes so now and then, and for how long that holds. The
        // dead leave theirs behind: those count who have renewed it meanwhile.
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

    /// Starts a replica in the place of a dead one.
    pub(crate) async fn replace(&mut self, slot: usize) {
        let gateway = self.places[slot].start(&self.redis, &self.options).await;
        self.slots[slot] = Some(gateway);
        recording(self.slots.iter().flatten(), 1).await;
    }

    /// Starts a backend that sends `lines` by PUBLISH.
    pub(crate) fn publish(&self, lines: &[String]) -> Publisher {
        Publisher::publish(self.redis.address(), &self.channel, lines)
    }

    /// Starts a backend that sends `lines` by the function, which needs no living replica.
    pub(crate) fn append(&self, lines: &[String]) -> Publisher {
        Publisher::append(self.redis.address(), &self.channel, lines)
    }
}
