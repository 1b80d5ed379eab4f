//! `History`: pages of history for all readers of this process.
//!
//! The readers of one channel share their reads. While a page is read, other readers that are behind wait. Reads
//! are made for the reader that has waited longest and for the reader that is furthest behind, in turn. A page serves
//! all readers within it. So a thousand clients
//! that resume anywhere in a channel's history cost about as many reads as the history has pages.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use hub::{Channel, EventId, Page};
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::{
    Error, call::Function, entry::HistoryReply, node::Node, throttled, topology::Topology,
};

/// Reads under way at once on one node, over all channels. Fewer than the connections of the pool, so
/// that attaches never wait for readers.
const MAX_READS: usize = 6;
/// Calls for ids under way at once on one node. 10,000 ids take Redis some 4 ms, in which it serves no other client.
const MAX_ASKS: usize = 2;
/// Pause after a failed read.
const PAUSE: Duration = Duration::from_millis(250);
/// Entries of a page at most.
pub(crate) const PAGE_ENTRIES: &[u8] = b"512";
/// A page does not exceed this many bytes unless a single entry does. The channels that a reader merges share them, so
/// that the memory of one reader does not grow with their number.
const PAGE_BYTES: usize = 128 << 10;

/// A request of a reader.
pub(crate) enum HistoryRequest {
    Page {
        channel: Channel,
        after: EventId,
        share: usize,
        reply: oneshot::Sender<Arc<Page>>,
    },
    Newest {
        channel: Channel,
        count: u32,
        reply: oneshot::Sender<Vec<EventId>>,
    },
}

/// Reads history for the hubs of this process.
pub struct History {
    topology: Topology,
    requests: mpsc::UnboundedReceiver<HistoryRequest>,
    channels: HashMap<Channel, Readers>,
    /// Channels whose readers wait while no read for them is under way; each at most once.
    due: Due,
    reads: FuturesUnordered<BoxFuture<'static, Fetched>>,
    /// Requests for ids, by channel. A channel has one call under way. All requests that wait for it share the next
    /// one.
    askers: HashMap<Channel, Vec<Asker>>,
    /// Channels that have askers and no call under way; each once.
    asked: Due,
    asking: FuturesUnordered<BoxFuture<'static, Asked>>,
}

/// Channels that wait for a call, and how many calls are under way. A node that does not answer delays only its own
/// partitions.
struct Due {
    /// By partition; never an empty queue.
    waiting: BTreeMap<u16, VecDeque<Channel>>,
    /// The partition of the last call.
    last: u16,
    /// By node: calls under way, while there are any.
    under_way: Vec<(Place, usize)>,
    most: usize,
}

/// The node of a partition; none if it is not known.
type Place = Option<Node>;

fn is_same(one: &Place, other: &Place) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (None, None) => true,
        _ => false,
    }
}

impl Due {
    /// At most that many calls are under way on a node at once.
    fn at_most(most: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            last: 0,
            under_way: Vec::new(),
            most,
        }
    }

    fn add(&mut self, channel: Channel) {
        let queue = self.waiting.entry(channel.partition()).or_default();
        queue.push_back(channel);
    }

    /// The next channel whose node is free, and the node. The caller reports the [end](Self::end) of the call.
    fn next(&mut self, topology: &Topology) -> Option<(Channel, Place)> {
        let layout = topology.layout();
        let is_free = |place: &Place| {
            let mut under_way = self.under_way.iter();
            let calls = under_way.find(|(other, _)| is_same(other, place));
            calls.is_none_or(|(_, calls)| *calls < self.most)
        };
        // After the last one, so that busy partitions do not keep the others waiting.
        let later = self.waiting.range((Excluded(self.last), Unbounded));
        let mut partitions = later.chain(self.waiting.range(..=self.last));
        let (partition, place) = partitions.find_map(|(partition, _)| {
            let place = layout.node(*partition).cloned();
            is_free(&place).then_some((*partition, place))
        })?;
        self.last = partition;
        let queue = self.waiting.get_mut(&partition)?;
        let channel = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&partition);
        }
        let mut under_way = self.under_way.iter_mut();
        match under_way.find(|(other, _)| is_same(other, &place)) {
            Some((_, calls)) => *calls += 1,
            None => self.under_way.push((place.clone(), 1)),
        }
        Some((channel, place))
    }

    /// A call has ended, or was not made.
    fn end(&mut self, place: &Place) {
        self.under_way.retain_mut(|(other, calls)| {
            *calls -= usize::from(is_same(other, place));
            *calls > 0
        });
    }
}

/// A call for ids has ended.
struct Asked {
    channel: Channel,
    place: Place,
    /// Those whose request has failed.
    unanswered: Vec<Asker>,
}

struct Asker {
    count: u32,
    reply: oneshot::Sender<Vec<EventId>>,
}

#[derive(Default)]
struct Readers {
    waiting: Vec<Reader>,
    /// Serve the first request next time, not the reader furthest behind. Otherwise new readers of the oldest pages
    /// could keep all others waiting forever.
    first_come: bool,
}

struct Reader {
    after: EventId,
    /// How many channels the reader merges.
    share: usize,
    reply: oneshot::Sender<Arc<Page>>,
}

struct Fetched {
    channel: Channel,
    place: Place,
    after: EventId,
    /// The page has the size for readers that merge this many channels, or fewer.
    share: usize,
    page: Result<Arc<Page>, Error>,
}

impl History {
    pub(crate) fn new(
        topology: Topology,
        requests: mpsc::UnboundedReceiver<HistoryRequest>,
    ) -> Self {
        Self {
            topology,
            requests,
            channels: HashMap::new(),
            due: Due::at_most(MAX_READS),
            reads: FuturesUnordered::new(),
            askers: HashMap::new(),
            asked: Due::at_most(MAX_ASKS),
            asking: FuturesUnordered::new(),
        }
    }

    /// Serves requests until all hubs are gone.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    Some(request) => self.take(request),
                    None => return,
                },
                Some(done) = self.reads.next() => self.hand_out(done),
                Some(asked) = self.asking.next() => self.asked(asked),
            }
            while let Ok(request) = self.requests.try_recv() {
                self.take(request);
            }
            self.start_reads();
        }
    }

    fn take(&mut self, request: HistoryRequest) {
        match request {
            HistoryRequest::Page {
                channel,
                after,
                share,
                reply,
            } => {
                let new = !self.channels.contains_key(&channel);
                let readers = self.channels.entry(channel.clone()).or_default();
                readers.waiting.push(Reader {
                    after,
                    share,
                    reply,
                });
                if new {
                    self.due.add(channel);
                }
            }
            HistoryRequest::Newest {
                channel,
                count,
                reply,
            } => {
                let is_new = !self.askers.contains_key(&channel);
                let askers = self.askers.entry(channel.clone()).or_default();
                askers.push(Asker { count, reply });
                if is_new {
                    self.asked.add(channel);
                }
            }
        }
    }

    /// A call for ids has ended. Makes the next one due if it failed, or if there have been requests since it began.
    fn asked(&mut self, asked: Asked) {
        let Asked {
            channel,
            place,
            unanswered,
        } = asked;
        self.asked.end(&place);
        let askers = self.askers.entry(channel.clone()).or_default();
        askers.extend(unanswered);
        if askers.is_empty() {
            self.askers.remove(&channel);
        } else {
            self.asked.add(channel);
        }
    }

    fn start_reads(&mut self) {
        while let Some((channel, place)) = self.asked.next(&self.topology) {
            let askers = self.askers.get_mut(&channel).map(std::mem::take);
            let ask = newest(self.topology.clone(), channel, askers.unwrap_or_default());
            let ask = ask.map(|(channel, unanswered)| Asked {
                channel,
                place,
                unanswered,
            });
            self.asking.push(ask.boxed());
        }
        while let Some((channel, place)) = self.due.next(&self.topology) {
            let Some(readers) = self.channels.get_mut(&channel) else {
                self.due.end(&place);
                continue;
            };
            readers.waiting.retain(|reader| !reader.reply.is_closed());
            let first_come = readers.first_come;
            readers.first_come = !first_come;
            let next = if first_come {
                readers.waiting.first()
            } else {
                let furthest = |reader: &&Reader| (reader.after, Reverse(reader.share));
                readers.waiting.iter().min_by_key(furthest)
            };
            let Some(&Reader { after, share, .. }) = next else {
                self.channels.remove(&channel);
                self.due.end(&place);
                continue;
            };
            let topology = self.topology.clone();
            topology.deployment().metrics().pages.inc();
            let read = async move {
                let page = read(&topology, &channel, after, share).await;
                if let Err(error) = &page {
                    throttled!(warn, %channel, %error, "history could not be read");
                    sleep(PAUSE).await;
                }
                Fetched {
                    channel,
                    place,
                    after,
                    share,
                    page,
                }
            };
            self.reads.push(read.boxed());
        }
    }

    /// Gives a page to all readers that it serves. A reader that asked for exactly this page gets it even if it is
    /// empty, because then there is no more.
    fn hand_out(&mut self, done: Fetched) {
        self.due.end(&done.place);
        let Some(readers) = self.channels.get_mut(&done.channel) else {
            return;
        };
        if let Ok(page) = &done.page {
            let served = |reader: &mut Reader| {
                let is_its = reader.after == done.after || page.serves(reader.after);
                is_its && reader.share <= done.share
            };
            for reader in readers.waiting.extract_if(.., served) {
                // A reader that has left needs no page.
                let _left = reader.reply.send(Arc::clone(page));
            }
        }
        if readers.waiting.is_empty() {
            self.channels.remove(&done.channel);
        } else {
            self.due.add(done.channel);
        }
    }
}

async fn read(
    topology: &Topology,
    channel: &Channel,
    after: EventId,
    share: usize,
) -> Result<Arc<Page>, Error> {
    let node = topology.node(channel.partition())?;
    let (generation, deployment) = (node.generation(), node.deployment());
    let watermark = deployment.watermark(channel.partition()).to_string();
    let after_text = after.to_string();
    let bytes = (PAGE_BYTES / share.max(1)).to_string();
    let call = deployment.new_call(Function::History, channel.partition());
    let call = call.of_channels([channel.as_str()]);
    let call = call.arg(&watermark).arg(channel.as_str()).arg(&after_text);
    let call = call.arg(PAGE_ENTRIES).arg(&bytes);
    let answer: Vec<u8> = node.read(&call).await?;
    let page = HistoryReply::parse(&Bytes::from(answer))?.page_after(after);
    // The readers' cursors are there then, so the handshake with the next server has to report this id.
    if !node.read_at(generation, channel.partition(), page.to) {
        return Err(Error::Replaced);
    }
    Ok(Arc::new(page))
}

/// Reads the newest ids of a channel, once for all requests. Returns the channel, and the requests if that failed.
async fn newest(
    topology: Topology,
    channel: Channel,
    mut askers: Vec<Asker>,
) -> (Channel, Vec<Asker>) {
    askers.retain(|asker| !asker.reply.is_closed());
    let Some(most) = askers.iter().map(|asker| asker.count).max() else {
        return (channel, askers);
    };
    let most = most.to_string();
    let call = topology
        .deployment()
        .new_call(Function::Newest, channel.partition());
    let call = call.of_channels([channel.as_str()]);
    let call = call.arg(channel.as_str()).arg(&most);
    let found: Result<Vec<String>, Error> = topology.call(&call).await;
    match found {
        Ok(found) => {
            let newest_first = found.iter().rev().filter_map(|id| id.parse().ok());
            let ids: Vec<EventId> = newest_first.collect();
            for Asker { count, reply } in askers.drain(..) {
                let ids = ids.iter().take(count as usize).copied();
                // A reader that has left needs no ids.
                let _left = reply.send(ids.collect());
            }
        }
        Err(error) => {
            throttled!(warn, %channel, %error, "the newest ids could not be read");
            sleep(PAUSE).await;
        }
    }
    (channel, askers)
}

#[cfg(test)]
mod tests {
    use hub::Partitions;

    use super::*;
    use crate::{Config, metrics::Metrics};

    /// Breaks when calls for ids, of some milliseconds each, may use Redis without a pause.
    #[test]
    fn few_calls_for_ids_are_under_way_at_once() {
        let partitions = Partitions::new(1).unwrap();
        let config = Config::of(partitions);
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let topology = Topology::new(&config, metrics);
        let (_requests, requests) = mpsc::unbounded_channel();
        let mut history = History::new(topology, requests);
        let mut replies = Vec::new();
        for number in 0..20 {
            let channel = partitions.channel(&format!("c{number}")).unwrap();
            for _ in 0..3 {
                let (reply, answer) = oneshot::channel();
                replies.push(answer);
                history.take(HistoryRequest::Newest {
                    channel: channel.clone(),
                    count: 10_000,
                    reply,
                });
            }
            let (reply, _) = oneshot::channel();
            history.take(HistoryRequest::Page {
                channel,
                after: EventId::default(),
                share: 1,
                reply,
            });
        }
        history.start_reads();
        let under_way = history.asking.len();
        assert!((1..=2).contains(&under_way), "{under_way} calls");
        let waiting = history.asked.waiting.values().map(VecDeque::len);
        assert_eq!(
            under_way + waiting.sum::<usize>(),
            20,
            "one call per channel"
        );
    }

    /// Breaks when a reader that merges many channels gets pages of the size for one channel. It holds one of each.
    #[test]
    fn a_reader_of_many_channels_gets_small_pages() {
        let partitions = Partitions::new(1).unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let topology = Topology::new(&Config::of(partitions), metrics);
        let (_requests, requests) = mpsc::unbounded_channel();
        let mut history = History::new(topology, requests);
        let channel = partitions.channel("news").unwrap();
        let after = EventId::ZERO;
        let mut answers = [1, 100].map(|share| {
            let (reply, answer) = oneshot::channel();
            history.take(HistoryRequest::Page {
                channel: channel.clone(),
                after,
                share,
                reply,
            });
            answer
        });
        let done = |share| Fetched {
            channel: channel.clone(),
            place: None,
            after,
            share,
            page: Ok(Arc::new(Page {
                after,
                to: EventId::ZERO,
                items: Vec::new(),
            })),
        };
        history.hand_out(done(1));
        assert!(answers[0].try_recv().is_ok());
        assert!(answers[1].try_recv().is_err());
        history.hand_out(done(100));
        assert!(answers[1].try_recv().is_ok());
    }
}
