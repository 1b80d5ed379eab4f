//! A run: it prepares the site, applies faults one after another, and judges each.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use futures_util::FutureExt as _;
use testkit::{
    lab::{Fleet, Metrics, PATIENCE, Plan, Replicas, eventually},
    micros_since_epoch, progress,
};
use tokio::time::{Instant, sleep};

use crate::{
    Chaos,
    book::Book,
    channels::{CHANNELS, NUMBERED},
    crowd::{AMBIENT_SHARE, BURST_CLIENTS, LIVE, everybody, leave_and_return, live, plan},
    fault::{Fault, Kind, kind_of},
    findings::{Findings, Soak},
    inflict::inflict,
    judge::Judge,
    mutation::Mutation,
    publishers::Publishers,
    row::Row,
    site::Site,
    watch::Watch,
};

/// Minimum time of a row, even if its fault is over at once.
const LEAST: Duration = Duration::from_secs(3);
/// Raw messages that were received less than this time before a fault may be unrecorded when it begins.
const BEFORE: Duration = Duration::from_secs(1);

/// All parts of a run.
struct Run {
    site: Site,
    fleet: Fleet,
    publishers: Publishers,
    random: Rng,
    judge: Judge,
    /// The share of clients that leave by themselves each time.
    ambient: f64,
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
            Err(_) => Some("the run panicked: see the message above".to_owned()),
        };
        findings.failed = failed;
        findings
    }

    async fn run_into(&self, findings: &mut Findings) -> Result<()> {
        for kind in [Kind::Lone, Kind::Watched, Kind::Cluster] {
            let is_of_kind = |faults: &&Vec<Fault>| kind_of(faults) == kind;
            let alone: Vec<_> = self.alone.iter().filter(is_of_kind).collect();
            let is_random = kind == self.random_kind() && !self.random.is_zero();
            if alone.is_empty() && !is_random {
                continue;
            }
            let mut run = Run::start(self, kind, None).await?;
            run.rows(alone, findings).await?;
            if is_random {
                let soak = findings.random.insert(Soak::default());
                run.soak(self.random, soak).await?;
            }
            run.finish().await?;
        }
        Ok(())
    }

    /// Faults are run at random with one Redis, unless all that are run alone need another kind.
    fn random_kind(&self) -> Kind {
        let kinds = self.alone.iter().map(|faults| kind_of(faults));
        kinds.min().unwrap_or(Kind::Lone)
    }

    /// Runs one fault and changes one event between clients and a replica. Returns the judged row. The fault must not
    /// affect replicas.
    ///
    /// # Errors
    ///
    /// If clients do not receive.
    pub async fn mutated(&self, mutation: Mutation, fault: Fault) -> Result<Row> {
        let mut run = Run::start(self, fault.kind(), Some(mutation)).await?;
        run.row(&[fault]).await
    }
}

impl Run {
    async fn start(chaos: &Chaos, kind: Kind, mutation: Option<Mutation>) -> Result<Self> {
        let armed = mutation.map(|_| Arc::default());
        let mut site = Site::start(3, kind).await;
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
        let fleet = Fleet::start(plans, &through, site.store.partitions(), &NUMBERED);
        fleet.open().await;
        let publishers = Publishers::start(&site.source, &site.addresses, &channels, chaos.rate);
        // Counting starts when all clients have received a message.
        let start = micros_since_epoch();
        everybody(&fleet, start, true).await?;
        for replica in &mut site.replicas {
            replica.new_lines();
        }
        let partitions = site.store.partitions();
        let judge = Judge::new(&fleet, &publishers.book, start, partitions);
        Ok(Self {
            site,
            fleet,
            publishers,
            random: Rng::with_seed(chaos.seed),
            judge,
            // A client that reconnects at once would receive the withheld event.
            ambient: if mutation.is_some() {
                0.0
            } else {
                AMBIENT_SHARE
            },
            armed,
        })
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
        let caught_up = everybody(&self.fleet, micros_since_epoch(), false).await;
        caught_up.with_context(|| format!("before {}", row.name()))?;
        let book = Arc::clone(&self.publishers.book);
        Judge::judge_calm(&self.fleet, &book, &mut row);
        let least = sleep(LEAST);
        let before = self.metrics().await;
        let [events, cuts, ordered] = self.fleet.counts();
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
            let ambient = leave_and_return(&self.fleet, self.ambient);
            let times = tokio::select! {
                times = inflict(&mut self.site, faults, targets, &self.fleet, &mut self.random) => times,
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
            never = leave_and_return(&self.fleet, self.ambient) => never,
        }
        self.site.settle().await;
        book.forgetful.store(false, Ordering::Release);

        book.quiet.store(true, Ordering::Release);
        let upto = micros_since_epoch();
        let caught_up = everybody(&self.fleet, upto, true).await;
        caught_up.with_context(|| format!("after {}", row.name()))?;
        self.judge.judge(&self.fleet, &book, &mut row, upto);
        self.judge
            .compare_with_redis(&self.fleet, &self.site.store, &mut row)
            .await;
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
        let kind = self.site.kind();
        let may_be = |fault: &&Fault| match kind {
            Kind::Cluster => fault.runs_with_a_cluster() && **fault != Fault::AddMaster,
            _ => **fault != Fault::Evict && fault.kind() == kind,
        };
        let all: Vec<_> = Fault::all().iter().filter(may_be).collect();
        let first = **self.random.choice(&all).expect("there are some");
        let mut faults = vec![first];
        if self.random.bool() {
            let others: Vec<_> = all
                .iter()
                .filter(|fault| fault.combines_with(first))
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
        self.judge
            .compare_with_redis(&self.fleet, &self.site.store, &mut rest)
            .await;
        ensure!(
            rest.lost + rest.disorder == 0,
            "after the last fault: {}",
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
            "after the last fault: {}",
            violations.join("\n")
        );
        self.site.at_rest().await;
        Ok(())
    }
}
