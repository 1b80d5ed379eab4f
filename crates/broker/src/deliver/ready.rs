//! `Ready`: whether live events of each partition arrive.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::watch;

use crate::metrics::Metrics;

/// By partition: whether the subscription connection to its node is up, and the node answers over it. Cheap to clone.
#[derive(Clone)]
pub struct Ready(Arc<Shared>);

struct Shared {
    partitions: Box<[AtomicBool]>,
    /// How many are ready.
    count: AtomicUsize,
    /// All were ready at the same time once.
    has_been: AtomicBool,
    /// A migration fills this Redis.
    is_filled: AtomicBool,
    /// The deployment has moved to another Redis.
    moved: watch::Sender<bool>,
    metrics: Metrics,
}

impl Ready {
    /// None is ready.
    pub(super) fn new(partitions: u16, metrics: Metrics) -> Self {
        metrics.missing.set(partitions.into());
        Self(Arc::new(Shared {
            partitions: (0..partitions).map(|_| AtomicBool::new(false)).collect(),
            count: AtomicUsize::new(0),
            has_been: AtomicBool::new(false),
            is_filled: AtomicBool::new(false),
            moved: watch::Sender::new(false),
            metrics,
        }))
    }

    /// Whether clients are served here. A replica needs all partitions at first. Later one is enough: a node of a
    /// cluster that is lost is lost for all replicas, and the others can be used.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let enough = match self.0.has_been.load(Ordering::Relaxed) {
            true => 1,
            false => self.0.partitions.len(),
        };
        self.0.count.load(Ordering::Relaxed) >= enough
    }

    /// Whether it is not ready because a migration has not opened this Redis yet.
    #[must_use]
    pub fn waits_for_migration(&self) -> bool {
        self.0.is_filled.load(Ordering::Relaxed)
    }

    /// Resolves when the deployment has moved to another Redis. Clients find it at other replicas, so this one has to end
    /// its streams.
    pub async fn has_moved(&self) {
        let mut moved = self.0.moved.subscribe();
        let _moved = moved.wait_for(|moved| *moved).await;
    }

    /// A migration fills this Redis, or has opened it.
    pub(super) fn set_filled(&self, is_filled: bool) {
        self.0.is_filled.store(is_filled, Ordering::Relaxed);
    }

    /// The deployment has moved to another Redis.
    pub(super) fn set_moved(&self) {
        self.0.moved.send_replace(true);
    }

    /// The partitions that are not ready.
    pub fn missing(&self) -> impl Iterator<Item = usize> {
        let partitions = self.0.partitions.iter().enumerate();
        let missing = partitions.filter(|(_, partition)| !partition.load(Ordering::Relaxed));
        missing.map(|(number, _)| number)
    }

    /// Returns whether it was otherwise before.
    pub(super) fn set(&self, partition: u16, is_ready: bool) -> bool {
        let was_ready = self.0.partitions[usize::from(partition)].swap(is_ready, Ordering::Relaxed);
        if was_ready == is_ready {
            return false;
        }
        let ready = match is_ready {
            true => self.0.count.fetch_add(1, Ordering::Relaxed) + 1,
            false => self.0.count.fetch_sub(1, Ordering::Relaxed) - 1,
        };
        let missing = self.0.partitions.len() - ready;
        if missing == 0 {
            self.0.has_been.store(true, Ordering::Relaxed);
        }
        self.0.metrics.missing.set(missing as i64);
        self.0.metrics.subscribed.set((missing == 0).into());
        true
    }
}
