//! `Deployment`: the names, settings and watermarks that all nodes share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::{Mutex, MutexGuard, RwLock};

use hub::EventId;
use redis::{Cmd, aio::MultiplexedConnection};

use crate::{
    AppendObserver, Config, Error, Rule,
    call::{Call, Function},
    library,
    metrics::Metrics,
    names::{Names, PARTITIONS},
    partition_view::PartitionView,
};

/// Names and settings, the function library, and the newest ids of all partitions. A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Deployment(Arc<Shared>);

struct Shared {
    /// Names this process to the others.
    replica: String,
    names: Names,
    max_payload: usize,
    /// The function library as a plain script, which attaches and reads history. Its rules can be changed.
    script: RwLock<Arc<str>>,
    /// One per partition.
    views: Vec<Mutex<PartitionView>>,
    observer: Option<Arc<dyn AppendObserver>>,
    metrics: Metrics,
    /// The log has the warning that Redis does not show its settings.
    settings_are_hidden: AtomicBool,
    /// The log has the warning that Redis does not show its run id.
    run_is_hidden: AtomicBool,
}

impl Deployment {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let names = Names::new(config.partitions);
        Self(Arc::new(Shared {
            replica: config.replica.clone(),
            max_payload: config.max_payload,
            script: RwLock::new(script(&names, &config.rules, config.max_payload)),
            names,
            views: config.partitions.all().map(|_| Mutex::default()).collect(),
            observer: config.observer.clone(),
            metrics,
            settings_are_hidden: AtomicBool::new(false),
            run_is_hidden: AtomicBool::new(false),
        }))
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Whether to warn that Redis does not show its settings. True once.
    pub(crate) fn warns_of_hidden_settings(&self) -> bool {
        !self.0.settings_are_hidden.swap(true, Ordering::Relaxed)
    }

    /// Whether to warn that Redis does not show its run id. True once.
    pub(crate) fn warns_of_hidden_run(&self) -> bool {
        !self.0.run_is_hidden.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn replica(&self) -> &str {
        &self.0.replica
    }

    pub(crate) fn partitions(&self) -> hub::Partitions {
        self.0.names.partitions()
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    /// The function library with the present rules, as a plain script.
    pub(crate) fn script(&self) -> Arc<str> {
        Arc::clone(&self.0.script.read())
    }

    /// Sets the rules of the library. The server gets them with the next connection, or when it is
    /// [prepared](crate::node::Node::prepare).
    pub(crate) fn set_rules(&self, rules: &[Rule]) {
        let script = script(&self.0.names, rules, self.0.max_payload);
        *self.0.script.write() = script;
    }

    /// From now on servers get this function library, given as a plain script.
    pub(crate) fn set_script(&self, script: String) {
        *self.0.script.write() = script.into();
    }

    /// A call without arguments yet, which touches no keys of channels.
    pub(crate) fn new_call(&self, function: Function, partition: u16) -> Call<'_> {
        Call::new(&self.0.names, function, partition)
    }

    /// The greatest id that this process has seen in a partition.
    pub(crate) fn watermark(&self, partition: u16) -> EventId {
        self.view(partition).watermark
    }

    /// Notes an id.
    pub(crate) fn saw(&self, partition: u16, id: EventId) {
        self.view(partition).saw(id);
    }

    /// Held for a comparison or a copy only.
    pub(crate) fn view(&self, partition: u16) -> MutexGuard<'_, PartitionView> {
        self.0.views[usize::from(partition)].lock()
    }

    /// Stores the number of partitions, if there is none.
    ///
    /// # Errors
    /// When another number is stored.
    pub(crate) async fn check_partitions(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> Result<(), Error> {
        let configured = self.partitions().count();
        let mut set = Cmd::new();
        set.arg("SET").arg(PARTITIONS).arg(configured).arg("NX");
        let stored: Option<u16> = match set.arg("GET").query_async(connection).await {
            Ok(stored) => stored,
            Err(error) => match Error::of(error) {
                // It takes no writes now. The next connection stores the number.
                Error::Refused(_) => {
                    let mut get = Cmd::new();
                    let stored = get.arg("GET").arg(PARTITIONS).query_async(connection);
                    stored.await.map_err(Error::of)?
                }
                error => return Err(error),
            },
        };
        match stored.filter(|stored| *stored != configured) {
            Some(stored) => Err(Error::Partitions { stored, configured }),
            None => Ok(()),
        }
    }

    /// Receives each event that this process appends.
    pub(crate) fn observer(&self) -> Option<&dyn AppendObserver> {
        self.0.observer.as_deref()
    }
}

fn script(names: &Names, rules: &[Rule], max_payload: usize) -> Arc<str> {
    library::script(names, rules, max_payload).into()
}
