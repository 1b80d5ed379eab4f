//! The events of the test, such as killed replicas, and how each program reacts.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha1::{Digest as _, Sha1};
use testkit::{
    hash_tag,
    lab::{Commands, Reply, append_call, eventually},
};
use tokio::{
    sync::{Mutex as Turn, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    client::{Client, Published, Use},
    docs::Row,
    front::Mode,
    libraries::Library,
    support::{Balancer, Gateway, Kind, Place, Redis},
    tools::Tools,
};

/// Limit of every wait for a recommended program. On two busy cores, only a fault takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// A program as shown with a stream that receives nothing for this long will receive nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// A program that has not reconnected this long after it lost its stream will not reconnect. The longest wait before a
/// first request is twice the gateway's `retry`.
const NEVER_ASKED: Duration = Duration::from_secs(9);
/// A program that has reconnected before and then does not for this long has given up. Some wait for up to 30 s.
const GIVEN_UP: Duration = Duration::from_secs(35);
/// A program as shown gets this long for its first request.
const AT_ONCE: Duration = Duration::from_secs(4);
/// After this many requests without an event, a program is stuck at an event.
const REQUESTS_IN_VAIN: usize = 3;
/// Longer than a heartbeat, and than the timeouts of some clients.
const IDLE: Duration = Duration::from_secs(12);
/// A program that has not reconnected after this time waits for longer, or forever.
const AFTER_END: Duration = Duration::from_secs(8);
/// The same after the answer 204. Some programs then wait twice as long as before.
const AFTER_204: Duration = Duration::from_secs(15);
/// The size of the large event's data. It exceeds the limits of all clients that have one.
const LARGE: usize = 300_000;
/// Time between two events.
const PACE: Duration = Duration::from_millis(100);
/// Time between two checks of the programs' output.
const LOOK: Duration = Duration::from_millis(200);

/// The steps of the test. Each is a column of the docs.
pub(crate) const COLUMNS: [&str; 8] = [
    "kill",
    "drain",
    "no replica",
    "503",
    "300 kB",
    "idle",
    "204",
    "end",
];

/// Runs all programs of these libraries through all steps.
pub(crate) async fn play(
    tools: &Tools,
    libraries: &[&'static Library],
    failures: &mut Vec<String>,
) -> Vec<Row> {
    let present: Vec<_> = libraries
        .iter()
        .copied()
        .filter(|library| tools.has(library.tool))
        .collect();
    if present.is_empty() {
        return Vec::new();
    }
    let mut stage = Stage::open(tools).await;
    for library in &present {
        for how in [Use::Shown, Use::Recommended] {
            stage.start(library, how).await;
        }
    }
    let mut rows: Vec<_> = present.iter().map(|library| row(library)).collect();
    for column in COLUMNS {
        let from = Instant::now();
        stage.all_receive(failures).await;
        let ready = from.elapsed();
        let seen = match column {
            "kill" => stage.kill().await,
            "drain" => stage.drain().await,
            "no replica" => stage.no_replica().await,
            "503" => stage.unavailable().await,
            "300 kB" => stage.large().await,
            "idle" => stage.idle().await,
            "204" => stage.end(Mode::CutEnd).await,
            "end" => stage.end(Mode::Pass).await,
            _ => unreachable!("a column without a story"),
        };
        let took = from.elapsed() - ready;
        eprintln!("{column}: {took:.0?}, after {ready:.0?} until all programs received events");
        for (number, (client, what)) in stage.clients.iter().zip(seen).enumerate() {
            match client.how {
                // The two uses of a library are neighbours in the list.
                Use::Shown => rows[number / 2].cells.push(what),
                Use::Recommended if what == "exact" => {}
                Use::Recommended => failures.push(format!(
                    "{}: {column}: {what}{}",
                    client.name(),
                    client.tail()
                )),
            }
        }
    }
    rows
}

fn row(library: &Library) -> Row {
    let version = library.tool.version(library.package);
    Row {
        name: library.name.to_owned(),
        cells: vec![
            library.tool.name().to_owned(),
            format!("`{}` {version}", library.package),
        ],
    }
}

/// Redis, two replicas, HAProxy, a publisher, and the clients.
struct Stage<'a> {
    clients: Vec<Client>,
    publisher: Publisher,
    mode: watch::Sender<Mode>,
    balancer: Balancer,
    places: [Place; 2],
    replicas: [Option<Gateway>; 2],
    redis: Redis,
    tools: &'a Tools,
}

const CHANNEL: &str = "updates";

impl<'a> Stage<'a> {
    async fn open(tools: &'a Tools) -> Self {
        let redis = Redis::start().await;
        let places = Place::some();
        let mut replicas = [const { None }; 2];
        for (replica, place) in replicas.iter_mut().zip(places) {
            *replica = Some(start(place, &redis).await);
        }
        let balancer = Balancer::start(Kind::HaProxy, &places, &[]).await;
        let stage = Self {
            clients: Vec::new(),
            publisher: Publisher::start(&redis).await,
            mode: watch::Sender::new(Mode::Pass),
            balancer,
            places,
            replicas,
            redis,
            tools,
        };
        stage.both_serve().await;
        stage
    }

    async fn start(&mut self, library: &'static Library, how: Use) {
        let client = self.client(library, how).await;
        self.clients.push(client);
    }

    async fn client(&self, library: &'static Library, how: Use) -> Client {
        let (mode, balancer) = (self.mode.subscribe(), self.balancer.public);
        Client::start(self.tools, library, how, balancer, CHANNEL, mode).await
    }

    /// Restarts the programs that have ended or missed an event, and waits until all receive events.
    async fn all_receive(&mut self, failures: &mut Vec<String>) {
        self.publisher.publish();
        // Reopens the channel, if it is complete.
        let newest = self.publisher.reach(1).await.newest();
        for number in 0..self.clients.len() {
            let client = &mut self.clients[number];
            if !client.runs() || !client.is_well {
                let (library, how) = (client.tested, client.how);
                self.clients[number] = self.client(library, how).await;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Does not wait for a program that cannot even start.
            let ended = self.clients.iter_mut().filter_map(|client| {
                (!client.runs()).then(|| format!("{}: ends{}", client.name(), client.tail()))
            });
            let ended: Vec<_> = ended.collect();
            if !ended.is_empty() {
                failures.extend(ended);
                return;
            }
            let published = self.publisher.published();
            let waiting = self.clients.iter().filter(|client| {
                let last = client.seen(&published.lines).last();
                last.is_none_or(|last| last < newest)
            });
            let waiting: Vec<_> = waiting.collect();
            if waiting.is_empty() {
                return;
            }
            if Instant::now() > deadline {
                for client in waiting {
                    let (name, tail) = (client.name(), client.tail());
                    failures.push(format!(
                        "{name}: receives nothing within {PATIENCE:?}{tail}"
                    ));
                }
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Kills each replica while the other serves.
    async fn kill(&mut self) -> Vec<String> {
        let watch = self.watch();
        for number in 0..2 {
            self.replicas[number].take().expect("it runs").kill();
            self.recommended_go_on().await;
            self.restart(number).await;
        }
        self.judge(&watch).await
    }

    /// Drains each replica while the other serves.
    async fn drain(&mut self) -> Vec<String> {
        let watch = self.watch();
        for number in 0..2 {
            let mut replica = self.replicas[number].take().expect("it runs");
            replica.process().signal("TERM");
            replica.process().exit().await;
            self.recommended_go_on().await;
            self.restart(number).await;
        }
        self.judge(&watch).await
    }

    /// Kills both replicas. HAProxy answers in their place with 200 and a `retry`.
    async fn no_replica(&mut self) -> Vec<String> {
        let watch = self.watch();
        for replica in &mut self.replicas {
            replica.take().expect("it runs").kill();
        }
        let counts = self.counts(|client| client.front.passed());
        self.until_all_asked(
            "no replica",
            |client, before| client.front.passed() > before,
            &counts,
        )
        .await;
        for number in 0..2 {
            self.restart(number).await;
        }
        self.judge(&watch).await
    }

    /// Cuts all streams, and answers the next request of each client with 503.
    async fn unavailable(&mut self) -> Vec<String> {
        let watch = self.watch();
        let counts = self.counts(|client| client.front.refused());
        self.mode.send_replace(Mode::Unavailable);
        self.until_all_asked(
            "503",
            |client, before| client.front.refused() > before,
            &counts,
        )
        .await;
        let seen = self.judge(&watch).await;
        self.mode.send_replace(Mode::Pass);
        seen
    }

    async fn large(&mut self) -> Vec<String> {
        let watch = self.watch();
        self.publisher.once(&"x".repeat(LARGE)).await;
        let mut seen = self.judge(&watch).await;
        for what in seen.iter_mut().filter(|what| *what == "hangs") {
            // Some retry at once, others after longer and longer pauses.
            *what = "stuck".to_owned();
        }
        seen
    }

    /// Publishes no events for longer than a heartbeat.
    async fn idle(&mut self) -> Vec<String> {
        let watch = self.watch();
        self.publisher.pause();
        sleep(IDLE).await;
        let after = self.counts(|client| client.front.passed());
        self.publisher.publish();
        let mut seen = self.judge(&watch).await;
        for (number, what) in seen.iter_mut().enumerate() {
            let is_cut = after[number] > watch.passed[number];
            if is_cut && what == "exact" {
                *what = "exact, reconnects".to_owned();
            }
        }
        seen
    }

    /// Completes the channel.
    async fn end(&mut self, mode: Mode) -> Vec<String> {
        let watch = self.watch();
        self.mode.send_replace(mode);
        self.publisher.end().await;
        let published = self.publisher.published();
        let range = watch.from..published.count;
        // Without `gateway.end`, the first request receives 204.
        let (limit, may_ask) = match mode {
            Mode::CutEnd => (AFTER_204, 1),
            Mode::Pass | Mode::Unavailable => (AFTER_END, 0),
        };
        let ended = Instant::now();
        loop {
            // From here on there are no more events. A recommended program ends by itself.
            let waits = self.clients.iter_mut().enumerate().any(|(number, client)| {
                let asked = client.front.passed() - watch.passed[number];
                client.runs()
                    && match client.how {
                        Use::Recommended => ended.elapsed() < PATIENCE,
                        Use::Shown => asked <= may_ask && ended.elapsed() < limit,
                    }
            });
            if !waits {
                break;
            }
            sleep(LOOK).await;
        }
        let mut verdicts = Vec::new();
        for (number, client) in self.clients.iter_mut().enumerate() {
            let runs = client.runs();
            let asked = client.front.passed() - watch.passed[number];
            let seen = client.seen(&published.lines);
            let verdict = match (compared(&within(&seen.events, &range), &range), client.how) {
                ("exact", Use::Recommended) if seen.end && client.exited == Some(true) => "exact",
                ("exact", Use::Recommended) => "does not know the end",
                ("exact", Use::Shown) if !runs => "stops",
                ("exact", Use::Shown) if asked > may_ask => "asks again",
                ("exact", Use::Shown) => "waits",
                (_, Use::Shown) if !runs => "stops",
                (verdict, _) => verdict,
            };
            verdicts.push(verdict.to_owned());
            client.is_well = false;
        }
        self.mode.send_replace(Mode::Pass);
        verdicts
    }

    /// The state before a step, for the judgement.
    fn watch(&self) -> Watch {
        Watch {
            from: self.publisher.published().count,
            passed: self.counts(|client| client.front.passed()),
            asked: self.counts(|client| client.front.asked()),
        }
    }

    /// Waits until every client has all events since `watch`, or will not receive them.
    async fn judge(&mut self, watch: &Watch) -> Vec<String> {
        let range = watch.from..self.publisher.reach(5).await.count;
        let healed = Instant::now();
        let passed = self.counts(|client| client.front.passed());
        let mut verdicts: Vec<Option<&str>> = vec![None; self.clients.len()];
        let mut renewed = vec![false; self.clients.len()];
        loop {
            let published = self.publisher.published();
            for (number, client) in self.clients.iter_mut().enumerate() {
                if verdicts[number].is_none() {
                    let asked = client.front.asked() > watch.asked[number];
                    let given_up = if asked { GIVEN_UP } else { NEVER_ASKED };
                    let is_stuck = client.front.passed() - passed[number] >= REQUESTS_IN_VAIN;
                    let hangs = match client.how {
                        Use::Recommended => healed.elapsed() > PATIENCE,
                        Use::Shown => {
                            is_stuck
                                || client.front.apart() > given_up
                                || healed.elapsed() > SILENCE.max(given_up)
                        }
                    };
                    verdicts[number] = verdict(client, &published.lines, &range, hangs);
                }
            }
            // A program as shown is restarted for each step, because its pauses grow with each cut. It starts at
            // once, while others are still awaited.
            for number in 0..self.clients.len() {
                let Some(verdict) = verdicts[number] else {
                    continue;
                };
                let client = &mut self.clients[number];
                if client.is_recommended() {
                    client.is_well = verdict == "exact";
                } else if *self.mode.borrow() == Mode::Unavailable {
                    // A new program would begin with the answer 503.
                    client.is_well = false;
                } else if !renewed[number] {
                    let library = client.tested;
                    self.clients[number] = self.client(library, Use::Shown).await;
                    renewed[number] = true;
                }
            }
            if verdicts.iter().all(Option::is_some) {
                break;
            }
            sleep(LOOK).await;
        }
        verdicts.into_iter().flatten().map(str::to_owned).collect()
    }

    /// Waits until every recommended program has an event that was published after this call.
    async fn recommended_go_on(&mut self) {
        let newest = self.publisher.published().newest() + 1;
        eventually(
            "recommended programs receive new events",
            PATIENCE,
            async || {
                let published = self.publisher.published();
                let behind: Vec<_> = self
                    .clients
                    .iter_mut()
                    // `judge` reports the programs that have ended.
                    .filter_map(|client| {
                        (client.is_recommended() && client.runs()).then_some(&*client)
                    })
                    .filter(|client| {
                        let last = client.seen(&published.lines).last();
                        last.is_none_or(|last| last < newest)
                    })
                    .map(Client::name)
                    .collect();
                match behind.is_empty() {
                    true => Ok(()),
                    false => Err(format!("{behind:?}")),
                }
            },
        )
        .await;
    }

    fn counts(&self, of: impl Fn(&Client) -> usize) -> Vec<usize> {
        self.clients.iter().map(of).collect()
    }

    /// Waits until every recommended program has sent a request in this situation. The others get some time for it.
    async fn until_all_asked(
        &mut self,
        what: &str,
        asked: impl Fn(&Client, usize) -> bool,
        before: &[usize],
    ) {
        eventually(
            &format!("requests are met with {what}"),
            PATIENCE,
            async || {
                let mut waiting = Vec::new();
                for (client, before) in self.clients.iter_mut().zip(before) {
                    let may_wait = client.is_recommended() || client.front.apart() < AT_ONCE;
                    if client.runs() && !asked(client, *before) && may_wait {
                        waiting.push(client.name());
                    }
                }
                match waiting.is_empty() {
                    true => Ok(()),
                    false => Err(format!("{waiting:?}")),
                }
            },
        )
        .await;
    }

    async fn restart(&mut self, number: usize) {
        self.replicas[number] = Some(start(self.places[number], &self.redis).await);
        if self.replicas.iter().all(Option::is_some) {
            self.both_serve().await;
        }
    }

    /// Waits until HAProxy regards both replicas as ready.
    async fn both_serve(&self) {
        let stats = self.balancer.stats();
        eventually("HAProxy has two replicas", PATIENCE, async || {
            let head =
                format!("GET /metrics HTTP/1.1\r\nHost: {stats}\r\nConnection: close\r\n\r\n");
            let answer = testkit::request(stats, head.as_bytes()).await;
            let answer = answer.map_err(|error| error.to_string())?;
            let name = "haproxy_backend_active_servers{proxy=\"gateway\"}";
            let line = answer.body.lines().find(|line| line.starts_with(name));
            match line {
                Some(line) if line.ends_with(" 2") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
}

/// The state at the beginning of a step.
#[derive(Clone, Debug)]
struct Watch {
    /// The number of the first event after it.
    from: usize,
    /// Number of each client's requests until then.
    passed: Vec<usize>,
    /// The same, including requests that were answered 503.
    asked: Vec<usize>,
}

async fn start(place: Place, redis: &Redis) -> Gateway {
    place.start(redis, "--drain-window 1s").await
}

/// The result of a step for a client. `None` while it is undecided.
fn verdict(
    client: &mut Client,
    published: &Published,
    range: &Range<usize>,
    hangs: bool,
) -> Option<&'static str> {
    let runs = client.runs();
    let seen = client.seen(published);
    let last = seen
        .events
        .iter()
        .position(|event| *event == Some(range.end - 1));
    match (last, client.how) {
        (Some(_), Use::Shown) => Some(compared(&within(&seen.events, range), range)),
        (Some(last), Use::Recommended) => {
            // It must not lose an event between two steps either.
            let first = seen.events.iter().flatten().next();
            let all = first.copied().unwrap_or(range.start)..range.end;
            Some(match seen.events[..last].contains(&None) {
                true => "an event that was not published, or with another id",
                false => compared(&within(&seen.events, &all), &all),
            })
        }
        (None, _) if !runs => Some("stops"),
        (None, _) if hangs => Some("hangs"),
        (None, _) => None,
    }
}

/// The numbers in a range.
fn within(events: &[Option<usize>], range: &Range<usize>) -> Vec<usize> {
    events
        .iter()
        .flatten()
        .copied()
        .filter(|number| range.contains(number))
        .collect()
}

/// The error in the events that a client has, or `exact`.
fn compared(have: &[usize], range: &Range<usize>) -> &'static str {
    let mut sorted = have.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    match () {
        () if sorted.len() < range.len() => "loses events",
        () if sorted.len() < have.len() => "repeats events",
        () if !have.is_sorted() => "wrong order",
        () => "exact",
    }
}

/// Appends an event every [`PACE`], unless it pauses.
struct Publisher {
    writer: Arc<Writer>,
    running: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// The events published so far.
#[derive(Clone, Debug, Default)]
struct Log {
    /// By the text that clients print: the hash, and the id with the hash.
    lines: Published,
    count: usize,
}

impl Log {
    fn newest(&self) -> usize {
        self.count.saturating_sub(1)
    }
}

impl Publisher {
    async fn start(redis: &Redis) -> Self {
        let writer = Arc::new(Writer {
            redis: Turn::new(redis.connect().await),
            log: Mutex::default(),
        });
        let (running, mut now) = watch::channel(true);
        let at_work = Arc::clone(&writer);
        let task = tokio::spawn(async move {
            while now.wait_for(|running| *running).await.is_ok() {
                let mut redis = at_work.redis.lock().await;
                // After the end of the channel, an event would reopen it.
                if *now.borrow() {
                    let number = at_work.log().count;
                    // Two, three and four bytes of UTF-8.
                    let data = format!("{{\"number\":{number},\"text\":\"Grüße ✓ 🙂\"}}");
                    at_work.append(&mut redis, &data, &data).await;
                }
                drop(redis);
                sleep(PACE).await;
            }
        });
        Self {
            writer,
            running,
            task,
        }
    }

    fn published(&self) -> Log {
        self.writer.log().clone()
    }

    fn publish(&self) {
        self.running.send_replace(true);
    }

    fn pause(&self) {
        self.running.send_replace(false);
    }

    /// Publishes one event.
    async fn once(&self, data: &str) {
        let mut redis = self.writer.redis.lock().await;
        self.writer.append(&mut redis, data, data).await;
    }

    /// Publishes the last event.
    async fn end(&self) {
        self.pause();
        let mut redis = self.writer.redis.lock().await;
        let data = format!("the last of {}", self.published().count);
        let payload = format!("{{\"data\":\"{data}\",\"end\":true}}");
        self.writer.append(&mut redis, &payload, &data).await;
    }

    /// Waits for this many more events.
    async fn reach(&self, more: usize) -> Log {
        let goal = self.published().count + more;
        eventually("events are published", PATIENCE, async || {
            match self.published() {
                log if log.count >= goal => Ok(log),
                log => Err(format!("{} of {goal}", log.count)),
            }
        })
        .await
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Appends events, one after another.
struct Writer {
    redis: Turn<Commands>,
    log: Mutex<Log>,
}

impl Writer {
    async fn append(&self, redis: &mut Commands, payload: &str, data: &str) {
        let answer = redis.call(&append_call(CHANNEL, payload)).await;
        let id = match answer {
            Ok(Reply::Error(error)) => panic!("sse_publish: {error}"),
            answer => answer.expect("Redis answers").text(),
        };
        // An end has no id yet.
        let id = match &*id {
            "-" => self.newest(redis, payload).await,
            _ => id,
        };
        let hash = Sha1::digest(data.as_bytes());
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut log = self.log();
        let number = log.count;
        log.lines.insert(format!("{id} {hash}"), number);
        log.lines.insert(hash, number);
        log.count += 1;
    }

    /// Waits until the newest event has this payload. Returns its id.
    async fn newest(&self, redis: &mut Commands, payload: &str) -> String {
        let key = format!("ssegw:{{{}}}:log:{CHANNEL}", hash_tag(0, 1));
        let read = format!("XREVRANGE {key} + - COUNT 1");
        let stored = async {
            loop {
                let newest = redis.run(&read).await;
                if let Some([id, fields]) = newest.array().first().map(Reply::array)
                    && fields.array()[3].text() == payload
                {
                    return id.text();
                }
                sleep(PACE).await;
            }
        };
        timeout(PATIENCE, stored).await.expect("the end is stored")
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
