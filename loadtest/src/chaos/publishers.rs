//! Publishers that go on whatever happens, and know of each message what became of it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    Goal, Message, Response,
    lab::{Cable, Commands, Replicas, Reply},
    request,
};

/// The publishers whose messages are numbered: raw PUBLISH, the function, POST.
pub(super) const NUMBERED: [&str; 3] = ["raw", "function", "post"];
/// The channel and the payload of messages that are all alike.
pub(super) const SAME: &str = "same";
/// Whoever posts sends this.
pub(super) const TOKEN: &str = "chaos";
/// Messages that are all alike, in a second.
const SAME_RATE: f64 = 10.0;
/// An answer that takes longer does not come.
const ANSWER: Duration = Duration::from_secs(3);
/// After a refusal.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a payload.
const BYTES: usize = 200;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Redis gave it to somebody, or it was answered with an id.
    Accepted,
    /// The answer did not come.
    Uncertain,
}

/// A message that was published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) fate: Fate,
    /// When, in microseconds since the epoch; the last time, if it was repeated.
    pub(super) at: u64,
}

/// What an attempt to publish came to.
enum Attempt {
    Accepted,
    /// It is certain that nothing was published.
    Refused,
    Uncertain,
}

/// What was published, by all.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// Of each publisher on each channel, by number.
    sent: Mutex<HashMap<(&'static str, String), Vec<Sent>>>,
    /// Messages that are all alike: accepted, uncertain.
    pub(super) same: [AtomicU64; 2],
    /// Attempts that were refused, by publisher, and those of `SAME`.
    refused: [AtomicU64; 4],
    /// Redis may forget what it has stored: whoever repeats might publish twice.
    pub(super) forgetful: AtomicBool,
    /// No messages that are all alike.
    pub(super) quiet: AtomicBool,
    stop: AtomicBool,
}

impl Book {
    /// What became of a message; nothing is known of one that is under way.
    pub(super) fn sent(&self, publisher: &str, channel: &str, seq: u64) -> Option<Sent> {
        let publisher = NUMBERED.into_iter().find(|name| *name == publisher)?;
        let all = self.all();
        let sent = all.get(&(publisher, channel.to_owned()))?;
        sent.get(usize::try_from(seq).ok()?).copied()
    }

    /// Accepted and uncertain messages of each of [`NUMBERED`].
    pub(super) fn counts(&self) -> [[u64; 2]; 3] {
        let mut counts = [[0; 2]; 3];
        for ((publisher, _), sent) in &*self.all() {
            let at = NUMBERED.iter().position(|name| name == publisher);
            let [accepted, uncertain] = &mut counts[at.expect("one of them")];
            let certain = sent.iter().filter(|sent| sent.fate == Fate::Accepted);
            let certain = certain.count() as u64;
            *accepted += certain;
            *uncertain += sent.len() as u64 - certain;
        }
        counts
    }

    /// Attempts that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.refused
            .iter()
            .map(|count| count.load(Ordering::Acquire))
            .sum()
    }

    /// The last message of each publisher on each channel that was accepted.
    pub(super) fn goal(&self) -> Goal {
        let all = self.all();
        let last = all.iter().filter_map(|((publisher, channel), sent)| {
            let last = sent.iter().rposition(|sent| sent.fate == Fate::Accepted)?;
            Some(((channel.clone(), (*publisher).to_owned()), last as u64))
        });
        last.collect()
    }

    fn next(&self, publisher: &'static str, channel: &str) -> u64 {
        let mut all = self.all();
        all.entry((publisher, channel.to_owned()))
            .or_default()
            .len() as u64
    }

    fn note(&self, publisher: &'static str, channel: &str, fate: Fate, at: u64) {
        let mut all = self.all();
        all.entry((publisher, channel.to_owned()))
            .or_default()
            .push(Sent { fate, at });
    }

    fn all(&self) -> MutexGuard<'_, HashMap<(&'static str, String), Vec<Sent>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The publishers at work.
pub(super) struct Publishers {
    pub(super) book: Arc<Book>,
    tasks: JoinSet<()>,
}

/// How to reach Redis and the gateways.
#[derive(Clone)]
struct Ways {
    redis: std::net::SocketAddr,
    replicas: Replicas,
}

impl Publishers {
    /// Each of [`NUMBERED`] publishes `rate` messages a second to `channels` in turn.
    pub(super) fn start(
        redis: &Cable,
        replicas: &Replicas,
        channels: &[String],
        rate: f64,
    ) -> Self {
        let book = Arc::new(Book::default());
        let ways = Ways {
            redis: redis.address,
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

    /// Ends them. What is under way is answered first.
    pub(super) async fn stop(mut self) -> Arc<Book> {
        self.book.stop.store(true, Ordering::Release);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a publisher does not fail");
        }
        self.book
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
        loop {
            if let Some(at) = in_doubt
                && book.forgetful.load(Ordering::Acquire)
            {
                book.note(publisher, channel, Fate::Uncertain, at);
                break;
            }
            if book.stop.load(Ordering::Acquire) {
                break 'messages;
            }
            let message = Message::now(publisher, channel, seq);
            let at = message.sent_micros;
            let payload = message.padded(BYTES);
            let attempt = match publisher {
                "raw" => raw(&mut connection, &ways, channel, &payload).await,
                "function" => function(&mut connection, &ways, channel, &payload).await,
                _ => post(&ways, turn, channel, seq, &payload).await,
            };
            match attempt {
                Attempt::Accepted => {
                    book.note(publisher, channel, Fate::Accepted, at);
                    break;
                }
                // With its key it may be sent again, as long as Redis remembers the key.
                Attempt::Uncertain if publisher == "post" => {
                    in_doubt = Some(at);
                    turn += channels.len();
                    sleep(PAUSE).await;
                }
                Attempt::Uncertain => {
                    book.note(publisher, channel, Fate::Uncertain, at);
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

/// Messages that are all alike, which only their number can tell from each other.
async fn same(book: Arc<Book>, ways: Ways) {
    let mut pace = interval(Duration::from_secs_f64(1.0 / SAME_RATE));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    while !book.stop.load(Ordering::Acquire) {
        pace.tick().await;
        if book.quiet.load(Ordering::Acquire) {
            continue;
        }
        let count = match raw(&mut connection, &ways, SAME, SAME).await {
            Attempt::Accepted => &book.same[0],
            Attempt::Uncertain => &book.same[1],
            Attempt::Refused => &book.refused[3],
        };
        count.fetch_add(1, Ordering::AcqRel);
    }
}

async fn raw(
    connection: &mut Option<Commands>,
    ways: &Ways,
    channel: &str,
    payload: &str,
) -> Attempt {
    let channel = format!("sse:{channel}");
    let call = [b"PUBLISH", channel.as_bytes(), payload.as_bytes()];
    match command(connection, ways, &call).await {
        // It says itself that it reached nobody.
        Ok(Reply::Integer(0) | Reply::Error(_)) => Attempt::Refused,
        Ok(_) => Attempt::Accepted,
        Err(attempt) => attempt,
    }
}

async fn function(
    connection: &mut Option<Commands>,
    ways: &Ways,
    channel: &str,
    payload: &str,
) -> Attempt {
    let (channel, payload) = (channel.as_bytes(), payload.as_bytes());
    let call = [b"FCALL", &b"sse_publish"[..], b"0", channel, payload];
    match command(connection, ways, &call).await {
        Ok(Reply::Error(_)) => Attempt::Refused,
        Ok(_) => Attempt::Accepted,
        Err(attempt) => attempt,
    }
}

/// A command to Redis over `connection`, which is made if there is none and given up if it fails.
async fn command(
    connection: &mut Option<Commands>,
    ways: &Ways,
    words: &[&[u8]],
) -> Result<Reply, Attempt> {
    let commands = match connection {
        Some(commands) => commands,
        None => {
            let connected = async {
                let mut commands = Commands::connect(ways.redis).await?;
                // So that they are told from those of the gateways.
                commands.call(&[b"CLIENT", b"SETNAME", b"test"]).await?;
                std::io::Result::Ok(commands)
            };
            match timeout(ANSWER, connected).await {
                Ok(Ok(commands)) => connection.insert(commands),
                Ok(Err(_)) | Err(_) => return Err(Attempt::Refused),
            }
        }
    };
    if let Ok(Ok(reply)) = timeout(ANSWER, commands.call(words)).await {
        return Ok(reply);
    }
    *connection = None;
    Err(Attempt::Uncertain)
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
        Ok(Ok(Response { head, .. })) if head.status == 201 => Attempt::Accepted,
        Ok(Ok(Response { body, .. })) if body.contains("redis_did_not_answer") => {
            Attempt::Uncertain
        }
        Ok(Ok(_)) => Attempt::Refused,
        Ok(Err(_)) | Err(_) => Attempt::Uncertain,
    }
}
