//! `Tickets`: values that are kept under a name, and can be taken once.

use std::time::Duration;

use redis::Cmd;

use crate::{Error, call::Plain, topology::Topology};

/// A handle; cheap to clone. Its connections belong to the runtime that it is used in.
#[derive(Clone)]
pub struct Tickets(Topology);

impl Tickets {
    pub(crate) fn new(topology: Topology) -> Self {
        Self(topology)
    }

    /// Keeps a value under a name that is too random to guess: 1 to 256 letters and digits.
    ///
    /// # Errors
    /// When Redis did not keep it.
    pub async fn put(&self, name: &str, value: &str, ttl: Duration) -> Result<(), Error> {
        let mut set = Cmd::new();
        set.arg("SET").arg(self.key(name)).arg(value);
        set.arg("PX").arg(ttl.as_millis().to_string());
        self.0
            .node(self.partition(name))
            .command(Plain::Set, &set)
            .await
    }

    /// Takes a value away. Only one of all callers on all replicas receives it.
    ///
    /// # Errors
    /// When Redis did not answer; the value may or may not be gone.
    pub async fn take(&self, name: &str) -> Result<Option<String>, Error> {
        let mut take = Cmd::new();
        take.arg("GETDEL").arg(self.key(name));
        self.0
            .node(self.partition(name))
            .command(Plain::GetDel, &take)
            .await
    }

    fn key(&self, name: &str) -> String {
        self.0.deployment().names().ticket(name)
    }

    /// Tickets are spread over the partitions as channels are.
    fn partition(&self, name: &str) -> u16 {
        self.0.deployment().partitions().of(name)
    }
}
