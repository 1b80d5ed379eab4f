//! The fault suite: real gateways and a real Redis under every known fault, with independent clients that check each
//! message.
//!
//! Messages are published in every way. The suite first runs the faults one by one and reports each as a [`Row`]. Then
//! it runs them at random, up to two at once. [`Fault`] defines the promises that are judged. A [`Mutation`] shows that
//! the judge would notice a broken one.

mod counters;
mod failover;
mod fault;
mod mutation;
mod publishers;
mod report;
mod row;
mod stage;
mod store;
mod watch;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use futures_util::FutureExt as _;
use tokio::time::{Instant, interval, sleep};

pub use self::{
    fault::{Fault, parse_faults},
    mutation::Mutation,
    report::markdown,
    row::Row,
};
use self::{
    publishers::{Book, NUMBERED, Publishers, SAME},
    row::{Followers, Relayed},
    stage::{BURST, CHANNELS, Site, filler},
    watch::Watch,
};
use testkit::{
    Id, Message, Violation,
    lab::{Fleet, Metrics, PATIENCE, Plan, Replicas, eventually},
    micros_since_epoch, progress,
};

/// Minimum time of a row, even if its fault is over at once.
const LEAST: Duration = Duration::from_secs(3);
/// Longest wait until every client receives again.
const LIVE: Duration = Duration::from_secs(60);
/// How often clients leave by themselves, and the share of clients that leave.
const AMBIENT: Duration = Duration::from_millis(500);
const AMBIENT_SHARE: f64 = 0.03;
/// Clients of the channel that fills buffers.
const BURST_CLIENTS: usize = 12;
/// Raw messages that were received less than this time before a fault may be unrecorded when it begins.
const BEFORE: Duration = Duration::from_secs(1);
/// Longest stall of a client that stalls.
const STALL: Duration = Duration::from_secs(2);
/// Indexes of those publishers in [`NUMBERED`] whose messages every client has to receive.
const RAW: usize = 0;
const FUNCTION: usize = 1;
const POST: usize = 2;

/// The faults to run, and the load during them.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// Clients.
    pub clients: usize,
    /// Messages per second of each way to publish.
    pub rate: f64,
    /// Equal seeds give equal random choices.
    pub seed: u64,
    /// The faults that are run one by one, in this order. The faults of one entry run at once, each in a domain of its
    /// own.
    pub alone: Vec<Vec<Fault>>,
    /// How long faults are run at random.
    pub random: Duration,
}

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The configuration of the run.
    pub chaos: Chaos,
    /// The result of each entry of `alone`.
    pub rows: Vec<Row>,
    /// The result of all random faults together, if there were any.
    pub random: Option<Soak>,
    /// The reason, if the run ended early.
    pub failed: Option<String>,
}

/// The result of the random faults.
#[derive(Clone, Debug)]
pub struct Soak {
    /// The sums of all rows.
    pub row: Row,
    /// Number of rows.
    pub rounds: u64,
    /// Number of rows that broke a promise.
    pub broken: u64,
    /// Number of rows in which every raw message had to be recorded.
    pub recorded: u64,
    /// Resident bytes and open files (without streams) of a replica that lived through all rows, once per minute.
    pub usage: Vec<[u64; 2]>,
}

impl Soak {
    /// Whether that replica grew: its memory by more than 2 MiB, or its open files by more than two. The least value of
    /// the last fifth of the time is compared with that of the first fifth, because clients move both values. Less than
    /// ten minutes prove nothing.
    pub fn has_grown(&self) -> bool {
        let part = self.usage.len() / 5;
        let least = |usage: &[[u64; 2]], what: usize| usage.iter().map(|at| at[what]).min();
        part >= 2
            && [2 << 20, 2].into_iter().enumerate().any(|(what, room)| {
                let first = least(&self.usage[..part], what);
                let last = least(&self.usage[self.usage.len() - part..], what);
                last.zip(first)
                    .is_some_and(|(last, first)| last > first + room)
            })
    }
}

impl Default for Soak {
    fn default() -> Self {
        Self {
            row: Row::new(&[], true),
            rounds: 0,
            broken: 0,
            recorded: 0,
            usage: Vec::new(),
        }
    }
}

impl Findings {
    /// Whether everything was as promised.
    pub fn is_kept(&self) -> bool {
        let rows = self.rows.iter().all(Row::is_kept);
        let soak = |soak: &Soak| soak.broken == 0 && !soak.has_grown();
        self.failed.is_none() && rows && self.random.iter().all(soak)
    }
}

/// All parts of a run.
struct Run {
    site: Site,
    fleet: Fleet,
    publishers: Publishers,
    random: Rng,
    /// How many identical messages had been recorded and published at the end of the last row.
    same: [u64; 2],
    /// How many identical messages were uncertain at the ends of the last two rows.
    uncertain: [u64; 2],
    /// How many gaps each client had received by then.
    gaps: Vec<usize>,
    /// Messages sent until this time have been judged, in microseconds since the epoch.
    judged: u64,
    /// The share of clients that leave by themselves each time.
    ambient: f64,
    /// Up to this id, the events in Redis have been compared with the events of clients.
    compared: Id,
    /// Set after a fault, to apply the mutation to an event. During a fault a client may be cut, and would then
    /// receive a withheld event again.
    armed: Option<Arc<AtomicBool>>,
}

impl Chaos {
    /// Runs all faults. If clients do not receive again after one of them, the run ends, because later results would
    /// prove nothing.
    pub async fn run(&self) -> Findings {
        let mut findings = Findings {
            chaos: self.clone(),
            rows: Vec::new(),
            random: None,
            failed: None,
        };
        // If the run fails, its findings so far are kept.
        let done = AssertUnwindSafe(Box::pin(self.run_into(&mut findings)));
        let failed = match done.catch_unwind().await {
            Ok(done) => done.err().map(|error| format!("{error:#}")),
            Err(_) => Some("it failed as is said above".to_owned()),
        };
        findings.failed = failed;
        findings
    }

    async fn run_into(&self, findings: &mut Findings) -> Result<()> {
        let needs_sentinels = |faults: &&Vec<Fault>| faults.iter().any(|one| one.needs_sentinels());
        let (guarded, others): (Vec<_>, Vec<_>) = self.alone.iter().partition(needs_sentinels);
        if !others.is_empty() || !self.random.is_zero() {
            let mut run = Run::start(self, false, None).await?;
            run.rows(others, findings).await?;
            if !self.random.is_zero() {
                let soak = findings.random.insert(Soak::default());
                run.soak(self.random, soak).await?;
            }
            run.finish().await?;
        }
        if !guarded.is_empty() {
            let mut run = Run::start(self, true, None).await?;
            run.rows(guarded, findings).await?;
            run.finish().await?;
        }
        Ok(())
    }

    /// Runs one fault and changes one event between clients and a replica. Returns the judged row. The fault must not
    /// affect replicas.
    ///
    /// # Errors
    ///
    /// If clients do not receive.
    pub async fn mutated(&self, mutation: Mutation, fault: Fault) -> Result<Row> {
        let mut run = Run::start(self, fault.needs_sentinels(), Some(mutation)).await?;
        run.row(&[fault]).await
    }
}

impl Run {
    async fn start(chaos: &Chaos, guarded: bool, mutation: Option<Mutation>) -> Result<Self> {
        let armed = mutation.map(|_| Arc::default());
        let site = Site::start(3, guarded).await;
        let channels = CHANNELS.map(str::to_owned);
        let clients = chaos.clients + BURST_CLIENTS;
        let plans = (0..clients).map(|number| Plan {
            seed: chaos.seed << 32,
            ..plan(number, clients)
        });
        let through = match mutation {
            Some(mutation) => {
                let armed = armed.as_ref().expect("there is a mutation");
                let honest = &site.replicas[0].gateway;
                let replicas = Replicas::default();
                replicas.set_addresses(vec![mutation.before(honest.public, armed).await]);
                replicas
            }
            None => site.addresses.clone(),
        };
        let fleet = Fleet::start(plans, &through, 1, &NUMBERED);
        fleet.open().await;
        let publishers = Publishers::start(&site.source, &site.addresses, &channels, chaos.rate);
        let mut run = Self {
            site,
            fleet,
            publishers,
            random: Rng::with_seed(chaos.seed),
            same: [0, 0],
            uncertain: [0, 0],
            gaps: Vec::new(),
            judged: 0,
            // A client that reconnects at once would receive the withheld event.
            ambient: if mutation.is_some() {
                0.0
            } else {
                AMBIENT_SHARE
            },
            compared: Id::default(),
            armed,
        };
        // Counting starts when all clients have received a message.
        run.judged = micros_since_epoch();
        run.everybody(run.judged, true).await?;
        for replica in &mut run.site.replicas {
            replica.new_lines();
        }
        for (number, mut checker) in run.fleet.checkers().enumerate() {
            if run.hears(number, SAME) {
                checker.expect_text(SAME);
            }
            checker.settle();
        }
        run.gaps = run
            .fleet
            .checkers()
            .map(|checker| checker.gaps().len())
            .collect();
        run.compared = run.common_position();
        run.same = run.recorded_and_published();
        Ok(run)
    }

    /// Runs these entries one after another.
    async fn rows(&mut self, alone: Vec<&Vec<Fault>>, findings: &mut Findings) -> Result<()> {
        for faults in alone {
            findings.rows.push(self.row(faults).await?);
        }
        Ok(())
    }

    /// If there is a mutation, applies it to an event and waits for that. A gap from the fault may cover an event that
    /// was sent before the fault was over. So this is called when every client has received later events.
    async fn mutate(&self) {
        if let Some(armed) = &self.armed {
            armed.store(true, Ordering::Release);
            eventually("an event is changed", PATIENCE, async || {
                match armed.load(Ordering::Acquire) {
                    true => Err("not yet".to_owned()),
                    false => Ok(()),
                }
            })
            .await;
        }
    }

    /// Runs these faults at once, waits until the site works as before, and judges.
    async fn row(&mut self, faults: &[Fault]) -> Result<Row> {
        let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
        self.site.prepare(faults).await;
        let targets = self.site.targets(&mut self.random).await;
        let mut row = Row::new(faults, targets.other_has_recorder);
        // Older messages are recorded after this wait, even on a busy machine.
        let caught_up = self.everybody(micros_since_epoch(), false).await;
        caught_up.with_context(|| format!("before {}", row.name()))?;
        self.judge_calm(&mut row);
        let least = sleep(LEAST);
        let before = self.metrics().await;
        let [events, cuts, ordered] = self.fleet.counts();
        let book = Arc::clone(&self.publishers.book);
        let (counts, refused) = (book.counts(), book.refused());
        self.fleet.take_silence();
        self.fleet.take_ends();

        if faults.iter().any(|fault| fault.forgets()) {
            book.forgetful.store(true, Ordering::Release);
            // A repetition that has already begun is complete after this time.
            sleep(Duration::from_millis(200)).await;
        }
        let watch = Watch::new(&self.site.admins);
        let done = async {
            let ambient = come_and_go(&self.fleet, self.ambient);
            let times = tokio::select! {
                times = self.site.inflict(faults, targets, &self.fleet, &mut self.random) => times,
                never = ambient => never,
            };
            let (live, ()) = tokio::join!(live(&self.fleet, times.over), self.site.repair());
            self.mutate().await;
            (times, live)
        };
        let (times, live) = watch.during(done, &mut row).await;
        row.lasted = Duration::from_micros(times.over - times.from);
        (row.live, row.raw_live) = live.with_context(|| row.name())?;
        let micros = |time: Duration| time.as_micros() as u64;
        row.during = times.from - micros(BEFORE)..times.over + micros(row.raw_live);
        [row.silence, row.quiet] = self.fleet.take_silence();
        tokio::select! {
            () = least => {}
            never = come_and_go(&self.fleet, self.ambient) => never,
        }
        self.site.settle().await;
        book.forgetful.store(false, Ordering::Release);

        book.quiet.store(true, Ordering::Release);
        let upto = micros_since_epoch();
        let caught_up = self.everybody(upto, true).await;
        caught_up.with_context(|| format!("after {}", row.name()))?;
        self.judge(&mut row, upto);
        self.compare_with_redis(&mut row).await;
        book.quiet.store(false, Ordering::Release);

        let [events_now, cuts_now, ordered_now] = self.fleet.counts();
        let ends = self.fleet.take_ends();
        row.readers_cut = ends.len() as u64;
        if row.promises.no_cuts
            && let Some((number, end)) = ends.first()
        {
            row.example(format!("client {number}'s connection ended: {end:?}"));
        }
        row.deliveries = events_now - events;
        row.cuts = cuts_now - cuts;
        row.returns = ordered_now - ordered;
        for (now, before) in book.counts().iter().zip(&counts) {
            row.messages += now[0] - before[0];
            row.uncertain += now[1] - before[1];
        }
        row.refused = book.refused() - refused;
        let after = self.metrics().await;
        row.note_delay(&before, &after);
        for (before, after) in before.iter().zip(&after) {
            if let Some(after) = after {
                row.note_metrics(before.as_ref(), after);
            }
        }
        for replica in &mut self.site.replicas {
            let lines = replica.new_lines();
            row.note_lines(&lines);
        }
        row.explain();
        progress!("{:<30} {row}", names.join(" + "));
        Ok(row)
    }

    /// Judges the events that clients saw between the last row and this fault. No fault excuses a violation in them.
    fn judge_calm(&mut self, row: &mut Row) {
        let mut calm = Row::new(&[], true);
        for mut checker in self.fleet.checkers() {
            let violations = checker.take_violations();
            let (ledger, book) = (self.fleet.ledger(), &self.publishers.book);
            calm.judge(&violations, ledger, book, &mut Relayed::new());
        }
        row.add(&calm);
    }

    /// Judges the messages that were sent until `upto`.
    fn judge(&mut self, row: &mut Row, upto: u64) {
        let book = &self.publishers.book;
        let burst = filler(BURST);
        let mut relayed = Relayed::new();
        for (number, mut checker) in self.fleet.checkers().enumerate() {
            checker.settle();
            for (channel, text) in [(SAME, SAME), (BURST, &burst)] {
                if checker.came(text) > 0 && !self.hears(number, channel) {
                    checker.blame(Violation::Leaked {
                        channel: channel.to_owned(),
                    });
                }
            }
            for gap in &checker.gaps()[self.gaps[number]..] {
                row.gaps += 1;
                let may_be = match &*gap.reason {
                    "trimmed" => true,
                    "forgotten" => !row.promises.remembers,
                    _ => false,
                };
                if !may_be {
                    row.disorder += 1;
                    row.example(format!("{}: a gap was told as {}", gap.channel, gap.reason));
                }
            }
            self.gaps[number] = checker.gaps().len();
            let violations = checker.take_violations();
            row.judge(&violations, self.fleet.ledger(), book, &mut relayed);
        }
        let time = self.judged + 1..upto + 1;
        self.judged = upto;
        for channel in CHANNELS {
            let checkers = self.fleet.checkers().enumerate();
            let clients = checkers.filter(|(number, _)| self.hears(*number, channel));
            let last_gaps = clients.map(|(_, checker)| checker.last_gap(channel));
            let last_gaps: Vec<_> = last_gaps.map(Option::unwrap_or_default).collect();
            let followers = Followers {
                clients: last_gaps.len(),
                told: last_gaps.into_iter().min().unwrap_or_default(),
            };
            for publisher in NUMBERED {
                for (seq, sent) in book.sent_during(publisher, channel, &time) {
                    let seen = self.fleet.ledger().id_of(channel, publisher, seq);
                    row.judge_sent((publisher, channel, seq), sent, seen, &relayed, followers);
                }
            }
        }
        // An uncertain message may be recorded a little later.
        let now = book.same[1].load(Ordering::Acquire);
        let uncertain = now - self.uncertain[0];
        self.uncertain = [self.uncertain[1], now];
        let [recorded, published] = self.recorded_and_published();
        let recorded_now = recorded - self.same[0];
        let accepted = published - self.same[1];
        self.same = [recorded, published];
        row.messages += accepted;
        if recorded_now < accepted {
            row.unrecorded += accepted - recorded_now;
            row.example(format!(
                "{accepted} messages all alike were heard, {recorded_now} recorded"
            ));
        }
        if recorded_now > accepted + uncertain {
            row.repeated += recorded_now - accepted - uncertain;
            row.example(format!(
                "{accepted} messages all alike were heard, {recorded_now} recorded"
            ));
        }
    }

    /// Compares the events that Redis stored since the last call with the events of clients. Ids have to be equal.
    async fn compare_with_redis(&mut self, row: &mut Row) {
        let upto = self.common_position();
        let range = [format!("({}", self.compared), upto.to_string()];
        self.compared = upto;
        let ledger = Arc::clone(self.fleet.ledger());
        for channel in CHANNELS.into_iter().chain([SAME]) {
            let redis = &self.site.store.redis;
            let range = range.each_ref().map(String::as_str);
            for (id, payload) in redis.log_between(channel, 1, range).await {
                row.stored += 1;
                let text = String::from_utf8_lossy(&payload);
                let seen = match Message::parse(&text) {
                    Some(message) => ledger.id_of(channel, message.publisher, message.seq),
                    None => ledger.has_text(&text, id).then_some(id),
                };
                if seen == Some(id) {
                    continue;
                }
                if seen.is_some() {
                    row.disorder += 1;
                } else {
                    row.lost += 1;
                }
                row.example(format!(
                    "{channel}: Redis has {id}, which was seen as {seen:?}: {text}"
                ));
            }
        }
    }

    /// Whether the client with this number follows a channel.
    fn hears(&self, number: usize, channel: &str) -> bool {
        let Plan {
            channels, others, ..
        } = plan(number, self.fleet.len());
        channels.iter().chain(&others).any(|mine| mine == channel)
    }

    /// The id that every client has reached.
    fn common_position(&self) -> Id {
        let positions = self.fleet.checkers().map(|checker| {
            let position = checker.position().and_then(|position| position.of(0));
            position.unwrap_or_default()
        });
        positions.min().unwrap_or_default()
    }

    /// Identical messages: how many were seen by any client, and how many were accepted.
    fn recorded_and_published(&self) -> [u64; 2] {
        let last = Id {
            ms: u64::MAX,
            seq: u64::MAX,
        };
        let recorded = self.fleet.ledger().times(SAME, Id::default(), last);
        let published = self.publishers.book.same[0].load(Ordering::Acquire);
        [recorded, published]
    }

    /// Waits until every client has a stored and a raw message that was sent at `micros` or later.
    ///
    /// # Errors
    /// If some clients do not receive them.
    async fn everybody(&self, micros: u64, stalling: bool) -> Result<()> {
        let deadline = Instant::now() + LIVE;
        let behind = || {
            let behind = [RAW, FUNCTION, POST]
                .map(|publisher| self.fleet.stale(publisher, micros, stalling));
            behind.iter().sum::<usize>()
        };
        while behind() > 0 {
            if Instant::now() > deadline {
                bail!("some clients are behind and do not catch up");
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn metrics(&self) -> Vec<Option<Metrics>> {
        let mut all = Vec::new();
        for replica in &self.site.replicas {
            all.push(replica.gateway.try_metrics().await.ok());
        }
        all
    }

    /// Runs random faults for this time: one, or two of different domains.
    async fn soak(&mut self, time: Duration, soak: &mut Soak) -> Result<()> {
        self.site.spare_the_first = true;
        let start = Instant::now();
        while start.elapsed() < time {
            let faults = self.choose();
            let row = self.row(&faults).await?;
            soak.row.add(&row);
            soak.rounds += 1;
            soak.broken += u64::from(!row.is_kept());
            soak.recorded += u64::from(row.promises.raw_recorded());
            let minutes = start.elapsed().as_secs() / 60;
            if soak.usage.len() as u64 <= minutes {
                let spared = &self.site.replicas[0].gateway;
                let connections = spared.metrics().await.sum("sse_gateway_streams");
                let other_files = (spared.open_files() as u64).saturating_sub(connections as u64);
                soak.usage.push([spared.memory(), other_files]);
            }
        }
        Ok(())
    }

    /// One fault, or two of different domains. Evictions are left out, because nothing is promised about the data that
    /// Redis evicts.
    fn choose(&mut self) -> Vec<Fault> {
        let all: Vec<_> = Fault::all()
            .iter()
            .filter(|fault| **fault != Fault::Evict && !fault.needs_sentinels())
            .collect();
        let first = **self.random.choice(&all).expect("there are some");
        let mut faults = vec![first];
        if self.random.bool() {
            let others: Vec<_> = all
                .iter()
                .filter(|fault| fault.domain() != first.domain())
                .collect();
            faults.push(***self.random.choice(&others).expect("there are some"));
        }
        faults
    }

    /// Ends publishing and judges the final state: clients have to receive everything that is due.
    async fn finish(mut self) -> Result<()> {
        let book: Arc<Book> = self.publishers.stop().await;
        let goal = book.goal();
        self.fleet.reach(&goal, LIVE).await;
        for mut checker in self.fleet.checkers() {
            checker.settle();
        }
        let mut rest = Row::new(&[], true);
        self.compare_with_redis(&mut rest).await;
        ensure!(
            rest.lost + rest.disorder == 0,
            "in the end: {}",
            rest.examples.join("\n")
        );
        let reports = self.fleet.finish(&goal, LIVE).await;
        let violations: Vec<_> = reports
            .iter()
            .flat_map(|report| report.checker.violations())
            .map(ToString::to_string)
            .collect();
        ensure!(
            violations.is_empty(),
            "in the end: {}",
            violations.join("\n")
        );
        self.site.at_rest().await;
        Ok(())
    }
}

/// How long after `over` every reading client receives a stored message, and a raw one.
async fn live(fleet: &Fleet, over: u64) -> Result<(Duration, Duration)> {
    let mut times = [None; 2];
    let deadline = Instant::now() + LIVE;
    loop {
        for (time, publisher) in times.iter_mut().zip([FUNCTION, RAW]) {
            if time.is_none() && fleet.stale(publisher, over, false) == 0 {
                let passed = micros_since_epoch().saturating_sub(over);
                *time = Some(Duration::from_micros(passed));
            }
        }
        if let [Some(function), Some(raw)] = times {
            return Ok((function, raw));
        }
        if Instant::now() > deadline {
            let behind = [FUNCTION, RAW].map(|publisher| fleet.stale(publisher, over, false));
            bail!("{behind:?} clients receive nothing from the function, or nothing raw");
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// The channels of the client with this number. The last [`BURST_CLIENTS`] of all clients follow the channel that fills
/// buffers.
fn plan(number: usize, clients: usize) -> Plan {
    let (channels, other, stalls) = match (number + BURST_CLIENTS).checked_sub(clients) {
        Some(number) => (0..1, Some(BURST), number % 2 == 0),
        None => {
            let same = number.is_multiple_of(2).then_some(SAME);
            (number..number + 1 + number % 3, same, number % 10 == 3)
        }
    };
    let channels = channels.map(|at| CHANNELS[at % CHANNELS.len()].to_owned());
    Plan {
        others: other.map(str::to_owned).into_iter().collect(),
        stall: if stalls { STALL } else { Duration::ZERO },
        ..Plan::new(&channels.collect::<Vec<_>>(), number)
    }
}

/// Clients leave and reconnect all the time.
async fn come_and_go<T>(fleet: &Fleet, share: f64) -> T {
    let mut pace = interval(AMBIENT);
    loop {
        pace.tick().await;
        fleet.cut_some(share, AMBIENT);
    }
}

#[cfg(test)]
mod tests {
    use super::Soak;

    #[test]
    fn a_slow_leak_is_growth() {
        let grown = |megabytes: [u64; 2], files: [u64; 2]| {
            let usage = (0..30).map(|minute| {
                let at = |[first, last]: [u64; 2]| first + (last - first) * minute / 29;
                // The activity of clients moves both values too.
                let noise = minute % 3;
                [(at(megabytes) + noise) << 20, at(files) + noise]
            });
            let usage = usage.collect();
            let soak = Soak {
                usage,
                ..Soak::default()
            };
            soak.has_grown()
        };
        assert!(!grown([15, 15], [22, 22]));
        assert!(!grown([15, 16], [22, 23]));
        assert!(grown([15, 20], [22, 22]));
        assert!(grown([15, 15], [22, 27]));
    }
}
