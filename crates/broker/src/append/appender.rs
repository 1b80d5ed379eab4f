//! `Appender`: makes the calls to one node.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound::{Excluded, Unbounded},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use tokio::{
    sync::watch,
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Instant, sleep},
};

use super::{
    Append, Appended, Lanes, NotAppended, QUEUE,
    copies::{Copies, Copying},
    lane,
};
use crate::{
    AppendedEvent, Error,
    call::Function,
    node::{Connection, Node},
    throttled,
};

/// Calls under way at once.
const MAX_CALLS: usize = 4;
/// Pause before a call is made again whose partition is on its way to another node.
const MOVING: Duration = Duration::from_millis(20);
/// Events of one call at most, unless a single request has more.
const CALL_EVENTS: usize = 256;
/// Bytes of payload of one call at most, unless a single request has more.
const CALL_BYTES: usize = 1 << 20;
/// A connection that was used this recently is not pinged first.
const FRESH: Duration = Duration::from_millis(500);

/// Appends to the partitions of a node.
pub(super) struct Appender {
    node: Node,
    requests: mpsc::Receiver<AppendRequest>,
    /// Requests that wait for a call, by partition; never an empty queue.
    waiting: BTreeMap<u16, VecDeque<AppendRequest>>,
    /// The partition of the last call.
    last: u16,
    /// Partitions that have a call under way, or that wait because they are on their way to another node.
    busy: BTreeSet<u16>,
    /// Where the partitions are.
    lanes: Arc<watch::Sender<Lanes>>,
    /// For each number of copies from 1.
    copies: Arc<[mpsc::Sender<Copying>]>,
    waits: Vec<Copies>,
    /// Not from the pool, which pings each connection first. That would be a second round trip.
    connection: Option<Idle>,
}

#[derive(Clone)]
struct Idle {
    connection: Connection,
    used: Instant,
}

#[derive(Debug)]
pub(super) struct AppendRequest {
    pub(super) partition: u16,
    pub(super) events: Vec<Append>,
    /// How many copies of Redis have to have them before the answer.
    pub(super) copies: u8,
    pub(super) asked: SystemTime,
    /// While its partition has no node, it waits until then.
    pub(super) give_up: Instant,
    pub(super) reply: oneshot::Sender<Vec<Appended>>,
}

impl Appender {
    pub(super) fn new(
        node: Node,
        requests: mpsc::Receiver<AppendRequest>,
        lanes: Arc<watch::Sender<Lanes>>,
    ) -> Self {
        let (copies, waits) = Copies::all(&node);
        Self {
            node,
            copies: copies.into(),
            waits,
            requests,
            waiting: BTreeMap::new(),
            last: 0,
            busy: BTreeSet::new(),
            lanes,
            connection: None,
        }
    }

    /// Appends until every publisher is gone.
    pub(super) async fn run(mut self) {
        let waits = join_all(std::mem::take(&mut self.waits).into_iter().map(Copies::run));
        tokio::join!(self.append(), waits);
    }

    async fn append(mut self) {
        let mut calls = FuturesUnordered::<BoxFuture<'static, Performed>>::new();
        let mut pauses = FuturesUnordered::new();
        let mut taken = Vec::new();
        let mut is_open = true;
        while is_open || !calls.is_empty() || !self.waiting.is_empty() {
            while calls.len() < MAX_CALLS
                && let Some((partition, call)) = self.next_call()
            {
                let connection = self.connection.clone();
                let copies = Arc::clone(&self.copies);
                calls.push(perform(self.node.clone(), connection, partition, call, copies).boxed());
            }
            let waiting: usize = self.waiting.values().map(VecDeque::len).sum();
            tokio::select! {
                Some(performed) = calls.next() => {
                    let partition = performed.partition;
                    // A connection that failed is not used again, in any call.
                    self.connection = performed.connection;
                    if performed.refused.is_empty() {
                        self.busy.remove(&partition);
                        continue;
                    }
                    let queue = self.waiting.entry(partition).or_default();
                    for request in performed.refused.into_iter().rev() {
                        match Instant::now() < request.give_up {
                            true => queue.push_front(request),
                            false => request.refuse(),
                        }
                    }
                    pauses.push(sleep(MOVING).map(move |()| partition));
                }
                Some(partition) = pauses.next() => {
                    self.busy.remove(&partition);
                    if !self.node.holds(partition) {
                        self.pass_on(partition);
                    }
                }
                count = self.requests.recv_many(&mut taken, QUEUE), if is_open && waiting < QUEUE => {
                    is_open = count > 0;
                    for request in taken.drain(..) {
                        self.waiting.entry(request.partition).or_default().push_back(request);
                    }
                }
            }
        }
    }

    /// The partition is on another node now. Its appender gets the requests.
    fn pass_on(&mut self, partition: u16) {
        let lanes = Arc::clone(&self.lanes.borrow());
        for request in self.waiting.remove(&partition).unwrap_or_default() {
            let sent = match lane(&lanes, partition) {
                Some((_, appender)) => appender.try_send(request),
                None => Err(TrySendError::Closed(request)),
            };
            if let Err(TrySendError::Full(request) | TrySendError::Closed(request)) = sent {
                request.refuse();
            }
        }
    }

    /// The next call: the requests of a partition without a call, as many as fit.
    fn next_call(&mut self) -> Option<(u16, Vec<AppendRequest>)> {
        let is_free = |partition: &u16| !self.busy.contains(partition);
        // After the last one, so that busy partitions do not keep the others waiting.
        let later = self.waiting.range((Excluded(self.last), Unbounded));
        let mut partitions = later.chain(self.waiting.range(..=self.last));
        let partition =
            *partitions.find_map(|(partition, _)| is_free(partition).then_some(partition))?;
        self.last = partition;
        let mut queue = self.waiting.remove(&partition)?;
        let (mut call, mut events, mut bytes) = (Vec::new(), 0, 0);
        while let Some(request) = queue.pop_front() {
            // The caller does not wait for it any more, and has received an error.
            if request.reply.is_closed() {
                continue;
            }
            let (more_events, more_bytes) = request.size();
            events += more_events;
            bytes += more_bytes;
            if !call.is_empty() && (events > CALL_EVENTS || bytes > CALL_BYTES) {
                queue.push_front(request);
                break;
            }
            call.push(request);
        }
        if !queue.is_empty() {
            self.waiting.insert(partition, queue);
        }
        if call.is_empty() {
            return self.next_call();
        }
        self.busy.insert(partition);
        Some((partition, call))
    }
}

impl AppendRequest {
    /// Answers that nothing was stored.
    fn refuse(self) {
        let count = self.events.len();
        // The caller may not wait any more.
        let _gone = self.reply.send(vec![Err(NotAppended::Unreachable); count]);
    }

    fn size(&self) -> (usize, usize) {
        let bytes = self.events.iter().map(|event| event.payload.len());
        (self.events.len(), bytes.sum())
    }
}

/// A call was made.
struct Performed {
    partition: u16,
    /// If it is good.
    connection: Option<Idle>,
    /// Requests that were not carried out, because the partition is on its way to another node, or its node is lost.
    refused: Vec<AppendRequest>,
}

/// Makes a call for requests of one partition, and answers them.
async fn perform(
    node: Node,
    connection: Option<Idle>,
    partition: u16,
    call: Vec<AppendRequest>,
    copies: Arc<[mpsc::Sender<Copying>]>,
) -> Performed {
    let deployment = node.deployment();
    let watermark = deployment.watermark(partition).to_string();
    let events = || call.iter().flat_map(|request| &request.events);
    let keys: Vec<_> = events().map(Append::digest_and_key).collect();
    let mut append = deployment
        .new_call(Function::Append, partition)
        .of_channels(events().map(|event| event.channel.as_str()))
        .arg(deployment.replica())
        .arg(&watermark);
    for (event, key) in events().zip(&keys) {
        if let Some(key) = &event.idempotency_key {
            append = append.of_idempotency_key(event.channel.as_str(), key);
        }
        append = append
            .arg(event.channel.as_str())
            .arg(&event.payload)
            .arg(if event.is_end { "1" } else { "" })
            .arg(key);
    }
    let sent = SystemTime::now();
    let mut generation = 0;
    let (answer, connection) = match connect(&node, connection).await {
        Ok(mut connection) => {
            generation = connection.connection.generation();
            let called = node.call_on(&mut connection.connection, &append);
            let answer: Result<Vec<String>, Error> = called.await;
            connection.used = Instant::now();
            let is_good = !matches!(
                answer,
                Err(Error::Unavailable(_) | Error::Unreachable(_) | Error::Replaced)
            );
            (answer, is_good.then_some(connection))
        }
        // Nothing was sent.
        Err(error) => (Err(Error::Unreachable(Box::new(error))), None),
    };
    // A copy takes the place of a lost node within seconds.
    let may_move = |error: &Error| {
        error.is_elsewhere() || (node.address().is_some() && error.is_unreachable())
    };
    if answer.as_ref().is_err_and(may_move) {
        return Performed {
            partition,
            connection,
            refused: call,
        };
    }
    let count: usize = call.iter().map(|request| request.events.len()).sum();
    let mut results = match answer {
        Ok(ids) if ids.len() == count => ids.iter().map(|id| read(id)).collect(),
        Ok(_) => vec![Err(NotAppended::Unknown); count],
        Err(error) => {
            throttled!(warn, partition, count, %error, "events were not appended");
            let failed = match error {
                Error::Refused(_) | Error::Migrating | Error::Migrated => NotAppended::Refused,
                Error::TooOld | Error::Partitions { .. } => NotAppended::Unreachable,
                error if error.is_unreachable() => NotAppended::Unreachable,
                _ => NotAppended::Unknown,
            };
            vec![Err(failed); count]
        }
    };
    let ids = results.iter().filter_map(|result| *result.as_ref().ok()?);
    if let Some(greatest) = ids.max() {
        deployment.saw(partition, greatest);
    }
    for request in call {
        if let Some(observer) = deployment.observer() {
            for (event, result) in request.events.iter().zip(&results) {
                if let Ok(Some(id)) = *result {
                    observer.appended(&AppendedEvent {
                        channel: &event.channel,
                        id,
                        asked: request.asked,
                        sent,
                    });
                }
            }
        }
        let rest = results.split_off(request.events.len());
        let results = std::mem::replace(&mut results, rest);
        let Some(count) = request.copies.checked_sub(1) else {
            // The caller may not wait any more.
            let _gone = request.reply.send(results);
            continue;
        };
        let copying = Copying {
            generation,
            results,
            reply: request.reply,
        };
        if let Some(copies) = copies.get(usize::from(count)) {
            // Not waited for, because other publishers would wait as well.
            if let Err(TrySendError::Full(copying)) = copies.try_send(copying) {
                copying.answer(false);
            }
        }
    }
    Performed {
        partition,
        connection,
        refused: Vec::new(),
    }
}

/// The connection, if it can be relied on, or a new one. An idle connection may be dead, so it is pinged first.
/// Otherwise an event could be sent on a dead connection, and it would be unknown whether the event was stored.
async fn connect(node: &Node, connection: Option<Idle>) -> Result<Idle, Error> {
    let generation = node.generation();
    if let Some(mut connection) =
        connection.filter(|idle| idle.connection.generation() == generation)
        && (connection.used.elapsed() < FRESH || connection.connection.pongs().await)
    {
        return Ok(connection);
    }
    Ok(Idle {
        connection: node.connect().await?,
        used: Instant::now(),
    })
}

/// One answer of the function.
fn read(answer: &str) -> Appended {
    if let Some(error) = answer.strip_prefix('!') {
        // The publisher gets this error in its answer. It is not logged, because nothing is wrong here.
        if error.starts_with("KEYREUSED") {
            return Err(NotAppended::KeyReused);
        }
        throttled!(warn, error, "an event cannot be appended");
        return Err(NotAppended::Impossible);
    }
    if answer == "-" {
        return Ok(None);
    }
    answer.parse().map(Some).map_err(|_| NotAppended::Unknown)
}

#[cfg(test)]
mod tests {
    use hub::Partitions;

    use super::*;
    use crate::{Config, metrics::Metrics, topology::Topology};

    /// Breaks when partitions that always have requests keep the others waiting.
    #[test]
    fn busy_partitions_do_not_keep_others_waiting() {
        let partitions = Partitions::new(8).unwrap();
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let topology = Topology::new(&Config::of(partitions), metrics);
        let (_sender, requests) = mpsc::channel(1);
        let lanes = Arc::new(watch::Sender::new(Lanes::default()));
        let mut appender = Appender::new(topology.node(0).unwrap(), requests, lanes);
        let mut answers = Vec::new();
        let mut served = BTreeSet::new();
        for _ in 0..8 {
            // All partitions always have requests.
            for partition in 0..8 {
                let (reply, answer) = oneshot::channel();
                answers.push(answer);
                let queue = appender.waiting.entry(partition).or_default();
                queue.push_back(AppendRequest {
                    partition,
                    events: Vec::new(),
                    copies: 0,
                    asked: SystemTime::now(),
                    give_up: Instant::now(),
                    reply,
                });
            }
            let (partition, _) = appender.next_call().unwrap();
            served.insert(partition);
            appender.busy.remove(&partition);
        }
        assert_eq!(served, BTreeSet::from_iter(0..8));
    }
}
