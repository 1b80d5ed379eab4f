//! `App`: the composition root. It builds every part, owns every task and thread, and ends them in the right order.

use std::{
    io::{self, Write as _},
    sync::Arc,
    thread,
    time::Duration,
};

use access::{CanaryCredential, Revoked};
use broker::{Broker, throttled};
use prometheus::Registry;
use tokio::{
    runtime,
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    alarm::Alarm,
    canary::Canary,
    current::Current,
    http::{
        self, AppState, admin,
        events::{control::ControlEvents, page::Pages, publish::PublishState, tickets::Tickets},
    },
    limits::Limits,
    listener::{self, Bound, ListenAddress},
    log,
    metrics::{CanaryMetrics, Metrics, register_facts},
    process::Process,
    reload::{ReloadMetrics, Reloader},
    signals::{Signals, Wish},
    ticket_store::TicketStore,
    tls::{self, Tls},
    traces::Traces,
    worker::{self, Worker},
};

/// The time that the workers have after the drain window.
const GRACE: Duration = worker::LAST_ANSWERS.saturating_add(Duration::from_secs(1));

/// Descriptors that are not for streams.
const SPARE_FILES: u64 = 256;

/// A gateway that is about to run.
pub struct App {
    config: Config,
    registry: Registry,
    broker: Broker,
    metrics: Metrics,
    reload_metrics: ReloadMetrics,
    hub_metrics: hub::Metrics,
    traces: Option<Traces>,
    listeners: Vec<Bound>,
    admin: Bound,
    tls: Option<Tls>,
    limits: Arc<Limits>,
    /// For the backends that authorize requests. None without such backends, because the client needs the system's
    /// certificates, and a small image may lack them.
    client: Option<reqwest::Client>,
}

/// Why a gateway could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: ListenAddress,
        /// Why.
        source: io::Error,
    },
    /// Redis cannot be used as configured.
    #[error("{0}")]
    Broker(#[from] broker::Error),
    /// The certificate cannot be used.
    #[error("--tls-certificate, --tls-key: {0}")]
    Tls(String),
    /// The exporter of spans could not be built.
    #[error("--otlp-endpoint: {0}")]
    Traces(String),
    /// The access rules cannot be put in force.
    #[error("{0}")]
    Rules(String),
    /// The client for requests to backends could not be built.
    #[error("cannot make requests over HTTP: {0}")]
    Client(reqwest::Error),
    /// The system refused a thread, a runtime or a signal handler.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A part ended unexpectedly.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
    /// A part panicked. The panic itself is on standard error.
    #[error("{0}: the process ends, because it would work in part only")]
    Alarm(String),
}

/// A worker that panics raises the alarm within this time.
const ALARM: Duration = Duration::from_millis(200);

/// The parts that run as tasks of the main thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Subscriber,
    History,
    Recorder,
    Appender,
    Admin,
}

impl App {
    /// Binds the addresses and builds all parts. Opens no connections yet.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn build(mut config: Config) -> Result<Self, Error> {
        let mut sockets = usize::MAX;
        // Each client needs a file descriptor, so the limit is raised as far as the system allows.
        match rlimit::increase_nofile_limit(u64::MAX) {
            Ok(files) => {
                sockets = usize::try_from(files.saturating_sub(SPARE_FILES)).unwrap_or(usize::MAX);
            }
            Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
        }
        let limits = Limits::new(config.limits, sockets);
        tls::choose_provider();
        let registry = Registry::new();
        let unique = "names are registered once, in a registry of our own";
        let process = Process::new().expect("names are valid");
        registry.register(Box::new(process)).expect(unique);
        let broker = &config.broker;
        register_facts(
            &registry,
            &broker.replica,
            broker.partitions.count(),
            broker.recorders,
        )
        .expect(unique);
        registry.register(Box::new(log::dropped())).expect(unique);
        let metrics = Metrics::register(&registry, limits.max_streams()).expect(unique);
        let reload_metrics = ReloadMetrics::register(&registry).expect(unique);
        let hub_metrics = hub::Metrics::register(&registry).expect(unique);
        let broker_metrics = broker::Metrics::register(&registry).expect(unique);
        let traces = config.traces.as_ref();
        let traces = traces.map(|traces| Traces::new(traces, &config.broker.replica));
        let traces = traces
            .transpose()
            .map_err(|error| Error::Traces(error.to_string()))?;
        if let Some(traces) = traces.clone() {
            config.broker.observer = Some(Arc::new(traces));
        }
        let broker = Broker::new(&config.broker, &broker_metrics, config.worker.count());
        let listen = |address, count| {
            let bound = listener::bind(&address, count);
            bound.map_err(|source| Error::Listen { address, source })
        };
        let tls = config.tls.files().map(Tls::new).transpose();
        let tls = tls.map_err(Error::Tls)?;
        let client = config
            .access
            .asks_backends()
            .then(access::client)
            .transpose();
        let client = client.map_err(Error::Client)?;
        let mut admin = listen(ListenAddress::Tcp(config.listen.admin), 1)?;
        Ok(Self {
            tls,
            client,
            limits,
            listeners: listen(config.listen.public.clone(), config.worker.count())?,
            admin: admin.remove(0),
            config,
            registry,
            broker,
            metrics,
            reload_metrics,
            hub_metrics,
            traces,
        })
    }

    /// Prints the listen addresses, one per line. Scripts that use port 0 read them.
    fn print_addresses(&self) {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        for (name, scheme, listener) in [
            ("public", scheme, &self.listeners[0]),
            ("admin", "http", &self.admin),
        ] {
            if let Ok(address) = listener.address() {
                tracing::info!(port = name, %address, "listening");
                let url = match address {
                    ListenAddress::Tcp(address) => format!("{scheme}://{address}"),
                    unix @ ListenAddress::Unix(_) => unix.to_string(),
                };
                // The log has them as well.
                let _nobody_reads_it = writeln!(io::stdout(), "{name} {url}");
            }
        }
    }

    /// Runs until SIGTERM, SIGINT or SIGQUIT, then drains; a second signal ends at once. Prints the addresses first, when
    /// signals no longer end the process by themselves.
    ///
    /// # Errors
    /// When a part fails and a retry would not help.
    pub fn run(self) -> Result<(), Error> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let traces = self.traces.clone();
        let result = runtime.block_on(self.serve());
        // A remaining task, such as a connection to a Redis that hangs, must not delay the exit.
        runtime.shutdown_background();
        if let Some(traces) = traces {
            traces.shut_down();
        }
        result
    }

    async fn serve(self) -> Result<(), Error> {
        let mut signals = Signals::new()?;
        self.print_addresses();
        let Self {
            config,
            registry,
            broker,
            metrics,
            reload_metrics,
            hub_metrics,
            traces,
            listeners,
            admin,
            tls,
            client,
            limits,
        } = self;
        // First the readiness check fails. After `delay` everything stops.
        let draining = CancellationToken::new();
        let stop = CancellationToken::new();

        let canary = match config.canary.interval() {
            None => None,
            Some(period) => {
                let public = listeners[0].address()?;
                let name = format!("canary.{}", config.broker.replica);
                let channel = config.broker.partitions.channel(&name);
                let channel = channel.expect("letters, digits and dots are a name");
                let credential = CanaryCredential::new(name).map_err(io::Error::other)?;
                Some(Canary {
                    channel,
                    period,
                    public,
                    is_tls: tls.is_some(),
                    credential,
                    silence: 3 * config.http.heartbeat,
                    publisher: broker.publisher.clone(),
                    metrics: CanaryMetrics::register(&registry)
                        .expect("names are registered once, in a registry of our own"),
                })
            }
        };
        let credential = canary.as_ref().map(|canary| canary.credential.clone());
        let store = TicketStore::new(broker.tickets);
        let origins = config.access.origins().clone();
        let mut builder = access::Builder::new(
            Arc::new(store.clone()),
            credential,
            client,
            warn_of_failed_backend,
        );
        let (access, refresh) = builder.build(config.access, None).map_err(Error::Rules)?;
        let tickets = Tickets::new(store, config.tickets);
        let replica = config.broker.replica.as_str().into();
        let app_state = AppState {
            partitions: config.broker.partitions,
            config: Arc::new(config.http),
            max_payload: config.broker.max_payload,
            access: Current::new(access),
            limits,
            metrics: metrics.clone(),
            controls: Arc::new(ControlEvents::new(replica)),
            publish: PublishState::new(broker.publisher, traces.clone()),
            pages: Pages::new(),
            tickets,
        };
        let app_state = Arc::new(app_state);
        let router = http::router(Arc::clone(&app_state), origins, config.console);
        let revoked = Revoked::default();
        let (alarm, mut raised) = Alarm::new();
        let reloader = Reloader {
            app_state: Arc::clone(&app_state),
            tls: tls.clone(),
            redis: broker.renewal,
            access: builder,
            sections: config.sections,
            metrics: reload_metrics,
            alarm: alarm.clone(),
        };
        let reload = Arc::new(Notify::new());
        if let Some(refresh) = refresh {
            alarm.watch("the refresh of keys", refresh.run());
        }
        alarm.watch("the reload", reloader.run(Arc::clone(&reload)));
        if let Some(canary) = canary {
            alarm.watch("the canary", canary.run());
        }
        if let Some(tls) = tls.clone() {
            alarm.watch("the watch on certificates", tls.watch());
        }
        let mut workers = Vec::new();
        for (index, (listener, link)) in listeners.into_iter().zip(broker.links).enumerate() {
            let worker = Worker {
                listener,
                config: config.worker,
                link,
                router: router.clone(),
                metrics: metrics.clone(),
                hub_metrics: hub_metrics.clone(),
                traces: traces.clone(),
                drain: config.drain,
                tls: tls.clone(),
                app_state: Arc::clone(&app_state),
                revoked: revoked.clone(),
                stop: stop.clone(),
            };
            let thread = thread::Builder::new().name(format!("worker-{index}"));
            let guard = alarm.guard(format!("worker {index}"));
            workers.push(thread.spawn(move || {
                let _guard = guard;
                worker.run();
            })?);
        }

        let mut parts = JoinSet::new();
        let subscriber = broker.subscriber;
        parts.spawn(async move {
            (
                Part::Subscriber,
                subscriber.run().await.map_err(Error::from),
            )
        });
        let history = broker.history;
        parts.spawn(async move {
            history.run().await;
            (Part::History, Ok(()))
        });
        let appenders = broker.appenders;
        parts.spawn(async move {
            appenders.run().await;
            (Part::Appender, Ok(()))
        });
        let (recorders, stopped) = (broker.recorders, stop.clone());
        let recorder = parts.spawn(async move {
            recorders.run(stopped.cancelled_owned()).await;
            (Part::Recorder, Ok(()))
        });
        let ready = broker.ready.clone();
        let state = admin::AdminState {
            registry: Arc::new(registry),
            metrics,
            ready: broker.ready,
            draining: draining.clone(),
        };
        parts.spawn(async move {
            (
                Part::Admin,
                admin::serve(admin, state).await.map_err(Error::from),
            )
        });

        let mut delay = config.drain.delay;
        let failed = loop {
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::Reload => reload.notify_one(),
                    Wish::Drain => break None,
                    Wish::Stop => {
                        delay = Duration::ZERO;
                        break None;
                    }
                },
                Some(reason) = raised.recv() => break Some(Error::Alarm(reason)),
                () = ready.has_moved() => {
                    tracing::warn!(
                        "the events have moved to another redis: this replica ends its streams and stops"
                    );
                    break None;
                }
                Some(ended) = parts.join_next() => {
                    let part = match ended {
                        Ok((_, Err(error))) => break Some(error),
                        Ok((Part::Subscriber, Ok(()))) => "the subscriber",
                        Ok((Part::History, Ok(()))) => "the history reader",
                        Ok((Part::Recorder, Ok(()))) => "the recorder",
                        Ok((Part::Appender, Ok(()))) => "the appender",
                        Ok((Part::Admin, Ok(()))) => "the admin listener",
                        Err(_) => "a task that panicked",
                    };
                    // Parts end with the workers that they serve, a moment before the alarm of such a worker.
                    let alarm = timeout(ALARM, raised.recv()).await.ok().flatten();
                    break Some(alarm.map_or(Error::Ended(part), Error::Alarm));
                }
            }
        };
        if let Some(error) = &failed {
            tracing::error!(%error, "a part of this process failed");
        }
        tracing::info!(?delay, window = ?config.drain.window, "draining");
        // From here on the readiness check fails.
        draining.cancel();
        if failed.is_none() {
            // Balancers that check only now and then still send clients. These clients are served.
            tokio::select! {
                () = sleep(delay) => {}
                () = signals.stop() => {
                    warn_of_second_signal();
                    return Ok(());
                }
            }
        }
        // From here on no connection is accepted, the recorder steps down, and the streams end one after another.
        stop.cancel();
        let drained = tokio::task::spawn_blocking(move || {
            for worker in workers {
                // A worker that panicked has logged it already.
                let _panicked = worker.join();
            }
        });
        let recorder_done = async {
            // Waits for the recorder's end with any result, because it may be the part that failed.
            while !recorder.is_finished() && parts.join_next().await.is_some() {}
        };
        tokio::select! {
            _ = timeout(config.drain.window.max(broker::HANDOVER) + GRACE, async { tokio::join!(drained, recorder_done) }) => {}
            () = signals.stop() => warn_of_second_signal(),
        }
        failed.map_or(Ok(()), Err)
    }
}

fn warn_of_failed_backend(error: &str) {
    throttled!(
        error,
        error,
        "forward-auth request failed: subscribers are refused"
    );
}

fn warn_of_second_signal() {
    tracing::warn!("second signal received: exiting immediately");
}
