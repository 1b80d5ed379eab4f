//! `Limits`: how many sockets, streams, channels and events the whole process allows.
//!
//! Open streams stay open. Beyond a limit, new clients are asked to reconnect later.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use access::{Holder, Principal};
use fair::{Connects, Quotas, TooMany, counted};
use hub::Channel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    code::Code,
    open_channels::{Client, OpenChannels},
};

/// Sockets that an address may have in addition to those of its streams.
const SPARE_SOCKETS: usize = 16;

/// Zero is no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) connections: usize,
    pub(crate) per_address: usize,
    pub(crate) per_subject: usize,
    /// Channels that have streams, at each worker.
    pub(crate) channels: usize,
    /// New streams and pages in a second; one address has half of them.
    pub(crate) connects: u32,
    /// Events that one publisher may publish in a second.
    pub(crate) publishes: u32,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Limit {
    #[error("this replica has as many streams as it may")]
    Connections,
    #[error("there are too many streams from this address")]
    Address,
    #[error("this subject has too many streams")]
    Subject,
    #[error("too many connect at once")]
    Connects,
    #[error("requests from this address name too many channels")]
    Channels,
    #[error("this client has as many channels open as it may")]
    OpenChannels,
    #[error("too many connect from this address at once")]
    AddressConnects,
}

impl Limit {
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Connections => Code::MaxStreams,
            Self::Address => Code::MaxStreamsPerAddress,
            Self::Subject => Code::MaxStreamsPerSubject,
            Self::Connects => Code::MaxStreamRate,
            Self::Channels => Code::MaxChannelRatePerAddress,
            Self::OpenChannels => Code::MaxOpenChannels,
            Self::AddressConnects => Code::MaxStreamRatePerAddress,
        }
    }
}

/// The counts of the process.
#[derive(Debug)]
pub(crate) struct Limits {
    bounds: Bounds,
    connections: AtomicUsize,
    connects: Mutex<Connects>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    holders: Mutex<HashMap<Holder, usize>>,
    channels: OpenChannels,
    publishers: Quotas<Principal>,
    /// One permit for each socket that there may be.
    sockets: Arc<Semaphore>,
    peers: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one socket, for any kind of request. Released when dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    limits: Arc<Limits>,
    peer: Option<IpAddr>,
    _room: OwnedSemaphorePermit,
}

/// The place of one connection. Released when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    limits: Arc<Limits>,
    address: Option<IpAddr>,
    holder: Option<Holder>,
    /// Keys of the channels that it has open.
    channels: Box<[u64]>,
}

impl Limits {
    /// `files` is how many sockets there may be.
    pub(crate) fn new(bounds: Bounds, files: usize) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            connections: AtomicUsize::new(0),
            connects: Mutex::new(Connects::new(bounds.connects)),
            addresses: Mutex::default(),
            holders: Mutex::default(),
            channels: OpenChannels::new(bounds.channels),
            publishers: Quotas::new(bounds.publishes, Duration::from_secs(1)),
            sockets: Arc::new(Semaphore::new(files.min(Semaphore::MAX_PERMITS))),
            peers: Mutex::default(),
        })
    }

    /// Waits until one more socket is allowed. Until then clients wait in the kernel's queue.
    pub(crate) async fn room(&self) -> OwnedSemaphorePermit {
        let room = Arc::clone(&self.sockets).acquire_owned().await;
        room.expect("the semaphore is never closed")
    }

    /// One more socket from this peer, or none if it has too many. A counted client needs one for each stream, and some
    /// for requests. A proxy has many clients.
    pub(crate) fn socket(
        self: &Arc<Self>,
        peer: IpAddr,
        is_proxy: bool,
        room: OwnedSemaphorePermit,
    ) -> Option<Socket> {
        let max = self.bounds.per_address;
        let peer = (max > 0 && !is_proxy).then(|| counted(peer));
        if let Some(peer) = &peer
            && !count(&self.peers, peer, max.saturating_add(SPARE_SOCKETS))
        {
            return None;
        }
        Some(Socket {
            limits: Arc::clone(self),
            peer,
            _room: room,
        })
    }

    /// A place for one more connection, before its subject is known.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Place, Limit> {
        let bounds = self.bounds;
        if bounds.connects > 0 {
            let asked = lock(&self.connects).ask(address, Instant::now());
            asked.map_err(|too_many| match too_many {
                TooMany::Streams => Limit::Connects,
                TooMany::Address => Limit::AddressConnects,
            })?;
        }
        // From here on a drop releases the places taken so far.
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let mut place = Place {
            limits: Arc::clone(self),
            address: None,
            holder: None,
            channels: Box::default(),
        };
        if bounds.connections > 0 && before >= bounds.connections {
            return Err(Limit::Connections);
        }
        if bounds.per_address > 0 {
            let address = counted(address);
            if !count(&self.addresses, &address, bounds.per_address) {
                return Err(Limit::Address);
            }
            place.address = Some(address);
        }
        Ok(place)
    }

    /// Counts an opened stream, or a page.
    pub(crate) fn opened(&self) {
        if self.bounds.connects > 0 {
            lock(&self.connects).open(Instant::now());
        }
    }

    /// Admits this many events of a publisher, or returns how long to wait. A publisher that was quiet may exceed a
    /// second's worth at once, and the excess counts.
    pub(crate) fn publish(&self, publisher: Principal, events: usize) -> Result<(), Duration> {
        self.publishers.take(publisher, events)
    }
}

impl Place {
    /// Sets the connection's subject, once it is known.
    pub(crate) fn belongs_to(&mut self, holder: Option<Holder>) -> Result<(), Limit> {
        let max = self.limits.bounds.per_subject;
        if let Some(holder) = holder.filter(|_| max > 0) {
            if !count(&self.limits.holders, &holder, max) {
                return Err(Limit::Subject);
            }
            self.holder = Some(holder);
        }
        Ok(())
    }

    /// The channels that it subscribes to. They count for this holder, or for the address where there is none.
    pub(crate) fn opens(
        &mut self,
        channels: &[Channel],
        holder: Option<Holder>,
        address: IpAddr,
    ) -> Result<(), Limit> {
        let client = holder.map_or_else(|| Client::Address(counted(address)), Client::Subject);
        let opened = self.limits.channels.open(channels, &client);
        self.channels = opened.ok_or(Limit::OpenChannels)?;
        Ok(())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(peer) = &self.peer {
            give_back(&self.limits.peers, peer);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.limits.connections.fetch_sub(1, Ordering::Relaxed);
        self.limits.channels.close(&self.channels);
        if let Some(address) = &self.address {
            give_back(&self.limits.addresses, address);
        }
        if let Some(holder) = &self.holder {
            give_back(&self.limits.holders, holder);
        }
    }
}

/// Counts one more, unless the maximum is reached.
fn count<K: Hash + Eq + Clone>(counts: &Mutex<HashMap<K, usize>>, key: &K, max: usize) -> bool {
    let mut counts = lock(counts);
    let count = counts.entry(key.clone()).or_default();
    if *count >= max {
        return false;
    }
    *count += 1;
    true
}

fn give_back<K: Hash + Eq>(counts: &Mutex<HashMap<K, usize>>, key: &K) {
    let mut counts = lock(counts);
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Held only briefly.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Bounds = Bounds {
        connections: 0,
        per_address: 0,
        per_subject: 0,
        channels: 0,
        connects: 0,
        publishes: 0,
    };

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_place_is_given_back_whichever_limit_was_reached() {
        let limits = Limits::new(
            Bounds {
                connections: 3,
                per_address: 2,
                per_subject: 1,
                ..NONE
            },
            9,
        );
        let holder = |publisher, subject: &str| Holder {
            publisher,
            subject: subject.into(),
        };
        let (anna, ben) = (holder(None, "anna"), holder(None, "ben"));
        let admit = |address, holder: Option<&Holder>| {
            let mut place = limits.admit(address)?;
            place.belongs_to(holder.cloned()).map(|()| place)
        };
        let first = admit(ip(1), Some(&anna)).unwrap();
        for _ in 0..5 {
            assert_eq!(admit(ip(1), Some(&anna)).unwrap_err(), Limit::Subject);
        }
        let second = admit(ip(1), Some(&ben)).unwrap();
        for _ in 0..5 {
            assert_eq!(admit(ip(1), None).unwrap_err(), Limit::Address);
        }
        let third = admit(ip(2), None).unwrap();
        for _ in 0..5 {
            assert_eq!(admit(ip(3), None).unwrap_err(), Limit::Connections);
        }
        drop((first, second, third));
        assert!(lock(&limits.addresses).is_empty() && lock(&limits.holders).is_empty());
        assert_eq!(limits.connections.load(Ordering::Relaxed), 0);
    }
}
