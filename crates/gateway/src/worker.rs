//! `Worker`: a thread with a runtime, a listener and a hub of its own.

use std::{future::pending, io, num::NonZeroUsize, rc::Rc, sync::Arc, time::Duration};

use access::Revoked;
use axum::Router;
use broker::throttled;
use hub::Hub;
use text::parse_bytes;
use tokio::{
    runtime,
    task::LocalSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    code::Code,
    drain::DrainConfig,
    http::{AppState, Shared, connection, stream},
    listener::{Bound, Listener},
    metrics::Metrics,
    tls::Tls,
    traces::{Deliveries, Traces},
};

/// While draining, streams are ended in this many steps per second.
const DRAIN_STEPS: u32 = 20;

/// Channels without readers that all workers keep warm for a reconnect: one for each stream that the default limit
/// allows. Each takes about 1 KiB here, its newest events up to `--channel-buffer-bytes`, and 250 bytes in Redis.
const LINGERING: usize = 100_000;
/// The same for channels that were read only for a moment. They are few, so that a client cannot fill memory with them.
const LINGERING_BRIEF: usize = 2000;

/// The time for requests that are still under way when the streams have ended.
pub(crate) const LAST_ANSWERS: Duration = Duration::from_secs(3);

/// Settings of the workers.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct WorkerConfig {
    /// Threads that serve connections [default: one per core].
    #[arg(
        long,
        env = "SSE_GATEWAY_WORKERS",
        value_name = "N",
        value_parser = parse_workers
    )]
    workers: Option<NonZeroUsize>,

    /// Memory for the newest events of a channel, at each worker that has clients of it. At most 1024 events are kept.
    /// Slower clients read history from Redis.
    #[arg(
        long,
        env = "SSE_GATEWAY_CHANNEL_BUFFER_BYTES",
        value_name = "BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes
    )]
    channel_buffer_bytes: usize,
}

impl WorkerConfig {
    /// How many workers this process has.
    pub(crate) fn count(self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.workers.map_or_else(cores, NonZeroUsize::get)
    }
}

fn parse_workers(text: &str) -> Result<NonZeroUsize, &'static str> {
    let number = text.parse();
    number.map_err(|_| "a number of threads is needed, 1 or more; without this flag there is one for each core")
}

/// The parts of a worker.
pub(crate) struct Worker {
    pub(crate) listener: Bound,
    pub(crate) config: WorkerConfig,
    pub(crate) link: broker::Link,
    pub(crate) router: Router,
    pub(crate) metrics: Metrics,
    pub(crate) traces: Option<Traces>,
    pub(crate) hub_metrics: hub::Metrics,
    pub(crate) drain: DrainConfig,
    pub(crate) tls: Option<Tls>,
    pub(crate) app_state: Arc<AppState>,
    pub(crate) revoked: Revoked,
    pub(crate) stop: CancellationToken,
}

impl Worker {
    /// Serves until it is stopped and drained.
    pub(crate) fn run(self) {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker has no runtime");
                return;
            }
        };
        let tasks = LocalSet::new();
        if let Err(error) = tasks.block_on(&runtime, self.serve()) {
            tracing::error!(%error, "a worker has ended");
        }
    }

    async fn serve(self) -> io::Result<()> {
        let listener = self.listener.into_listener()?;
        let mut updates = self.link.updates;
        let mut revoked = self.link.revoked;
        let workers = self.config.count();
        let hub = Hub::new(
            hub::Config {
                tail_bytes: self.config.channel_buffer_bytes,
                lingering: LINGERING.div_ceil(workers),
                lingering_brief: LINGERING_BRIEF.div_ceil(workers),
                ..hub::Config::default()
            },
            self.hub_metrics,
            Box::new(self.link.upstream),
        );
        let streams = stream::Context::new(
            hub.clone(),
            self.metrics,
            Deliveries::new(self.traces),
            Arc::clone(&self.app_state.config),
            self.revoked,
        );
        let app_state = self.app_state;
        let shared = Rc::new(Shared {
            router: self.router,
            streams: Rc::new(streams),
            tls: self.tls,
            app_state: Arc::clone(&app_state),
            stop: self.stop.clone(),
        });
        let connections = TaskTracker::new();

        let feed = async {
            let mut batches = Vec::new();
            // All waiting updates are taken at once, and need one write per client.
            while updates.recv_many(&mut batches, usize::MAX).await > 0 {
                hub.apply(batches.drain(..).flatten());
            }
            // No more updates will arrive, but the remaining events may still be written.
            pending().await
        };
        let pulse = async {
            let period = app_state.config.heartbeat / Hub::PULSES_PER_ROUND as u32;
            let mut pulse = interval(period);
            pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut since = Instant::now();
            loop {
                pulse.tick().await;
                // Even if ticks are late, a round takes one heartbeat interval.
                let due = since.elapsed().as_nanos() / period.as_nanos();
                let due = u32::try_from(due).unwrap_or(u32::MAX);
                since += period.saturating_mul(due);
                for _ in 0..due.min(Hub::PULSES_PER_ROUND as u32) {
                    hub.pulse();
                }
            }
        };
        let endings = async {
            let mut second = interval(Duration::from_secs(1));
            second.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = second.tick() => {
                        // Lets a test see how a panic ends the process.
                        #[cfg(debug_assertions)]
                        assert!(std::env::var_os("SSE_GATEWAY_PANIC").is_none(), "asked to panic");
                        shared.streams.expire();
                        shared.streams.relieve();
                    }
                    Some(subject) = revoked.recv() => {
                        app_state.access.get().revoke(&subject);
                        shared.streams.revoke(subject);
                    }
                }
            }
        };
        let accept = async {
            tokio::select! {
                () = accept(&listener, &shared, &connections) => {}
                () = self.stop.cancelled() => {}
            }
            // From here on the kernel refuses new connections, and clients try another replica.
            drop(listener);
            drain(&hub, self.drain.window).await;
            connections.close();
            // Publishers still receive the results of their events. Clients that do not read their last bytes are cut
            // when the process ends.
            let _late = timeout(LAST_ANSWERS, connections.wait()).await;
        };
        tokio::select! {
            () = accept => {}
            () = feed => {}
            () = pulse => {}
            () = endings => {}
        }
        Ok(())
    }
}

async fn accept(listener: &Listener, shared: &Rc<Shared>, connections: &TaskTracker) {
    loop {
        let room = shared.app_state.limits.room().await;
        match listener.accept(stream::STALL).await {
            Ok((socket, peer)) => {
                let address = peer.ip().to_canonical();
                let is_proxy = shared.app_state.config.trusted_proxies.trust(address);
                let Some(place) = shared.app_state.limits.socket(address, is_proxy, room) else {
                    // Closed without an answer, because there is no request yet.
                    shared.streams.metrics.refuse(Code::MaxSocketsPerAddress);
                    continue;
                };
                let serve = connection::serve(socket, peer, place, Rc::clone(shared));
                connections.spawn_local(serve);
            }
            // The client gave up while it waited to be accepted.
            Err(error) if is_of_client(&error) => {}
            Err(error) => {
                // Out of file descriptors or memory, so other connections must close first.
                throttled!(error, %error, "cannot accept connections");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_of_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Ends all streams, spread evenly over the window.
async fn drain(hub: &Hub, window: Duration) {
    let streams = hub.subscriptions();
    let most_steps = (window.as_secs_f64() * f64::from(DRAIN_STEPS)).ceil();
    let steps = most_steps.clamp(1.0, streams.max(1) as f64);
    let share = (streams as f64 / steps).ceil() as usize;
    let mut step = interval(window.div_f64(steps).max(Duration::from_millis(1)));
    loop {
        step.tick().await;
        if hub.drain(share.max(1)) == 0 {
            return;
        }
    }
}
