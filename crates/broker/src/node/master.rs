//! `Master`: one server process at an address, and how connections to it are made.

use std::{
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Instant,
};

use parking_lot::{Mutex, MutexGuard, RwLock};

use deadpool_redis::{Manager, Pool, Timeouts};
use redis::{Client, ConnectionInfo, RedisError};

use super::trust::Trust;
use crate::{
    process::{TIMEOUT, connection_config},
    server::Place,
};

/// Connections for page reads, attaches and appends.
const POOL_SIZE: usize = 16;

/// A server at an address.
pub(super) struct Master {
    /// The newest one with this address.
    place: Mutex<Place>,
    trust: Mutex<Trust>,
    /// Renewed with the certificates.
    connector: RwLock<Arc<Connector>>,
    /// How many servers this node had before.
    pub(super) generation: u64,
    /// The server process that was found there.
    pub(super) run: OnceLock<String>,
    /// This process has left it for another master, and it has confirmed that it refuses all calls. All its answers are
    /// from before that.
    pub(super) retired_here: AtomicBool,
    /// Another process has retired it. It has not accepted a handshake since.
    pub(super) retired_elsewhere: AtomicBool,
}

/// How new connections to a server are made.
pub(super) struct Connector {
    pub(super) client: Client,
    pub(super) pool: Pool,
}

impl Connector {
    fn new(info: ConnectionInfo) -> Result<Self, RedisError> {
        let manager = Manager::new_with_config(info.clone(), connection_config())?;
        let pool = Pool::builder(manager)
            .max_size(POOL_SIZE)
            .runtime(deadpool_redis::Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(TIMEOUT),
                create: Some(TIMEOUT),
                recycle: Some(TIMEOUT),
            })
            .build()
            .expect("a pool with timeouts needs a runtime, which it has");
        Ok(Self {
            client: Client::open(info)?,
            pool,
        })
    }
}

impl Master {
    pub(super) fn new(place: Place, generation: u64) -> Result<Self, RedisError> {
        let connector = Connector::new(place.info.clone())?;
        Ok(Self {
            place: Mutex::new(place),
            trust: Mutex::new(Trust::new(Instant::now())),
            connector: RwLock::new(Arc::new(connector)),
            generation,
            run: OnceLock::new(),
            retired_here: AtomicBool::new(false),
            retired_elsewhere: AtomicBool::new(false),
        })
    }

    /// The same address, with new connections only.
    pub(super) fn anew(&self) -> Result<Self, RedisError> {
        Self::new(self.place().clone(), self.generation + 1)
    }

    /// New connections are made like this from now on.
    pub(super) fn reconnect_as(&self, info: ConnectionInfo) -> Result<(), RedisError> {
        let connector = Arc::new(Connector::new(info.clone())?);
        self.place().info = info;
        *self.connector.write() = connector;
        Ok(())
    }

    /// Held for a comparison only.
    pub(super) fn trust(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock()
    }

    pub(super) fn connector(&self) -> Arc<Connector> {
        Arc::clone(&self.connector.read())
    }

    /// Held for a comparison or a copy only.
    pub(super) fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock()
    }
}
