//! Publishers that continue during every fault, and record the outcome of each message.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use serde_json::Value;
use testkit::{
    Id, Message, Response,
    lab::{Commands, Replicas, Reply, Sentinel, append_call},
    request,
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    book::{Book, Fate, Sent},
    channels::{NUMBERED, SAME},
};

/// The token for POST.
pub(crate) const TOKEN: &str = "chaos";
/// Size of a burst of identical messages, and bursts per second.
const SAME_BURST: usize = 5;
const SAME_RATE: f64 = 2.0;
/// Without an answer within this time, an attempt counts as unanswered.
const ANSWER: Duration = Duration::from_secs(3);
/// Wait after a refusal.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes per payload.
const BYTES: usize = 200;

/// The outcome of one attempt to publish.
enum Attempt {
    /// The id is missing for raw messages.
    Accepted(Option<Id>),
    /// Certainly nothing was published.
    Refused,
    Uncertain,
}

/// The running publishers.
pub(crate) struct Publishers {
    pub(crate) book: Arc<Book>,
    tasks: JoinSet<()>,
}

/// How a backend finds Redis.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// At a fixed address.
    At(SocketAddr),
    /// At the address that the first answering sentinel returns.
    Sentinels(Vec<SocketAddr>),
    /// At any of these nodes.
    Cluster(Vec<SocketAddr>),
}

impl Source {
    async fn connect(&self) -> io::Result<Commands> {
        let mut address = None;
        match self {
            Self::At(at) => address = Some(*at),
            Self::Cluster(nodes) => address = fastrand::choice(nodes).copied(),
            Self::Sentinels(sentinels) => {
                for sentinel in sentinels {
                    if address.is_none() {
                        address = Sentinel::master_at(*sentinel).await;
                    }
                }
            }
        }
        let address = address.ok_or_else(|| io::Error::other("no sentinel answers"))?;
        connect(address).await
    }
}

async fn connect(address: SocketAddr) -> io::Result<Commands> {
    let mut commands = Commands::connect(address).await?;
    // The name distinguishes it from the connections of the gateways.
    commands.call(&[b"CLIENT", b"SETNAME", b"test"]).await?;
    Ok(commands)
}

/// How to reach Redis and the gateways.
#[derive(Clone)]
struct Ways {
    redis: Source,
    replicas: Replicas,
}

impl Publishers {
    /// Each of [`NUMBERED`] publishes `rate` messages a second to `channels` in turn.
    pub(crate) fn start(
        redis: &Source,
        replicas: &Replicas,
        channels: &[String],
        rate: f64,
    ) -> Self {
        let book = Arc::new(Book::default());
        let ways = Ways {
            redis: redis.clone(),
            replicas: replicas.clone(),
        };
        let mut tasks = JoinSet::new();
        for publisher in NUMBERED {
            let (book, ways) = (Arc::clone(&book), ways.clone());
            tasks.spawn(numbered(publisher, channels.to_vec(), rate, book, ways));
        }
        tasks.spawn(same(Arc::clone(&book), ways));
        Self { book, tasks }
    }

    /// Stops the publishers after their current messages have been answered.
    pub(crate) async fn stop(&mut self) -> Arc<Book> {
        self.book.stop.store(true, Ordering::Release);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a publisher does not fail");
        }
        Arc::clone(&self.book)
    }
}

async fn numbered(
    publisher: &'static str,
    channels: Vec<String>,
    rate: f64,
    book: Arc<Book>,
    ways: Ways,
) {
    let mut pace = interval(Duration::from_secs_f64(1.0 / rate));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    let mut turn = 0;
    'messages: loop {
        pace.tick().await;
        turn += 1;
        let channel = &channels[turn % channels.len()];
        let seq = book.next(publisher, channel);
        let mut in_doubt = None;
        // An idempotency key belongs to one payload, so an uncertain message is repeated unchanged.
        let mut first_payload = None;
        let note = |fate, at, id| book.note(publisher, channel, Sent { fate, at, id });
        loop {
            if let Some(at) = in_doubt
                && book.forgetful.load(Ordering::Acquire)
            {
                note(Fate::Uncertain, at, None);
                break;
            }
            if book.stop.load(Ordering::Acquire) {
                break 'messages;
            }
            let message = Message::now(publisher, channel, seq);
            let at = message.sent_micros;
            let payload = first_payload
                .clone()
                .unwrap_or_else(|| message.padded(BYTES));
            let attempt = match publisher {
                "raw" => {
                    let mut attempts = raw(&mut connection, &ways, channel, &payload, 1).await;
                    attempts.pop().expect("one")
                }
                "function" => function(&mut connection, &ways, channel, &payload).await,
                _ => post(&ways, turn, channel, seq, &payload).await,
            };
            match attempt {
                Attempt::Accepted(id) => {
                    note(Fate::Accepted, at, id);
                    break;
                }
                // With its key it may be repeated, as long as Redis remembers the key.
                Attempt::Uncertain if publisher == "post" => {
                    in_doubt = Some(at);
                    first_payload = Some(payload);
                    turn += channels.len();
                    sleep(PAUSE).await;
                }
                Attempt::Uncertain => {
                    note(Fate::Uncertain, at, None);
                    break;
                }
                Attempt::Refused => {
                    let at = NUMBERED.iter().position(|name| *name == publisher);
                    book.refused[at.expect("one of them")].fetch_add(1, Ordering::AcqRel);
                    turn += channels.len();
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Publishes identical messages. Only their count can be checked.
async fn same(book: Arc<Book>, ways: Ways) {
    let mut pace = interval(Duration::from_secs_f64(1.0 / SAME_RATE));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    while !book.stop.load(Ordering::Acquire) {
        pace.tick().await;
        if book.quiet.load(Ordering::Acquire) {
            continue;
        }
        for attempt in raw(&mut connection, &ways, SAME, SAME, SAME_BURST).await {
            let count = match attempt {
                Attempt::Accepted(_) => &book.same[0],
                Attempt::Uncertain => &book.same[1],
                Attempt::Refused => &book.refused[3],
            };
            count.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Whether nothing was published. PUBLISH returns 0 if there is no subscriber.
fn is_refusal(reply: &Reply) -> bool {
    matches!(reply, Reply::Integer(0) | Reply::Error(_))
}

/// Publishes this many raw messages at once.
async fn raw(
    connection: &mut Option<Commands>,
    ways: &Ways,
    channel: &str,
    payload: &str,
    count: usize,
) -> Vec<Attempt> {
    let channel = format!("sse:{channel}");
    let call = [b"PUBLISH", channel.as_bytes(), payload.as_bytes()];
    let answers = commands(connection, ways, &vec![call.to_vec(); count]).await;
    let is_cluster = matches!(ways.redis, Source::Cluster(_));
    let attempts = answers.into_iter().map(|answer| match answer {
        // A node counts its own subscribers only.
        Ok(Reply::Integer(0)) if is_cluster => Attempt::Uncertain,
        Ok(reply) if is_refusal(&reply) => Attempt::Refused,
        Ok(_) => Attempt::Accepted(None),
        Err(attempt) => attempt,
    });
    attempts.collect()
}

async fn function(
    connection: &mut Option<Commands>,
    ways: &Ways,
    channel: &str,
    payload: &str,
) -> Attempt {
    let call = append_call(channel, payload).to_vec();
    let mut answers = commands(connection, ways, std::slice::from_ref(&call)).await;
    if let Some(Ok(Reply::Error(error))) = answers.last()
        && let Some(to) = error.strip_prefix("MOVED ")
        && let Some(to) = to.split(' ').nth(1).and_then(|to| to.parse().ok())
    {
        // As `redis-cli -c` does.
        *connection = timeout(ANSWER, connect(to)).await.ok().and_then(Result::ok);
        answers = commands(connection, ways, &[call]).await;
    }
    match answers.pop().expect("as many as calls") {
        Ok(reply) if is_refusal(&reply) => Attempt::Refused,
        Ok(id) => Attempt::Accepted(Some(id.text().parse().expect("an id"))),
        Err(attempt) => attempt,
    }
}

/// Sends commands over `connection` and returns an answer for each. Connects first if there is no connection, and drops
/// it after a failure.
async fn commands(
    connection: &mut Option<Commands>,
    ways: &Ways,
    calls: &[Vec<&[u8]>],
) -> Vec<Result<Reply, Attempt>> {
    let none = |attempt: fn() -> Attempt| calls.iter().map(|_| Err(attempt())).collect();
    let commands = match connection {
        Some(commands) => commands,
        None => match timeout(ANSWER, ways.redis.connect()).await {
            Ok(Ok(commands)) => connection.insert(commands),
            Ok(Err(_)) | Err(_) => return none(|| Attempt::Refused),
        },
    };
    if let Ok(Ok(replies)) = timeout(ANSWER, commands.call_all(calls)).await {
        // There may be a new master.
        if replies.iter().any(is_refusal) {
            *connection = None;
        }
        return replies.into_iter().map(Ok).collect();
    }
    *connection = None;
    none(|| Attempt::Uncertain)
}

async fn post(ways: &Ways, turn: usize, channel: &str, seq: u64, payload: &str) -> Attempt {
    let replica = ways.replicas.at(turn);
    let length = payload.len();
    let head = format!(
        "POST /events?channel={channel} HTTP/1.1\r\nHost: {replica}\r\nAuthorization: Bearer {TOKEN}\r\n\
         Idempotency-Key: {channel}-{seq}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{payload}"
    );
    match timeout(ANSWER, request(replica, head.as_bytes())).await {
        Ok(Ok(Response { head, body })) if head.status == 201 => {
            let answer: Value = serde_json::from_str(&body).expect("JSON");
            let id = answer["id"].as_str().and_then(|id| id.parse().ok());
            Attempt::Accepted(Some(id.expect("an id")))
        }
        Ok(Ok(Response { body, .. })) if body.contains("redis_did_not_answer") => {
            Attempt::Uncertain
        }
        Ok(Ok(_)) => Attempt::Refused,
        Ok(Err(_)) | Err(_) => Attempt::Uncertain,
    }
}
