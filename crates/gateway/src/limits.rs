//! `Limits`: how many sockets, streams, channels and events the whole process allows.
//!
//! Open streams stay open. Beyond a limit, new clients are asked to reconnect later.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

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

/// Settings of the limits. Zero is no limit.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct LimitsConfig {
    /// Maximum open streams of this replica; 0: no limit. Further clients are asked to reconnect later.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAMS",
        value_name = "N",
        default_value_t = 100_000
    )]
    max_streams: usize,

    /// Maximum streams from one address, or from one IPv6 network of 64 bits; 0: no limit. Behind proxies it needs
    /// --trusted-proxies.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAMS_PER_ADDRESS",
        value_name = "N",
        default_value_t = 0
    )]
    max_streams_per_address: usize,

    /// Maximum streams of one subject; 0: no limit.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAMS_PER_SUBJECT",
        value_name = "N",
        default_value_t = 100
    )]
    max_streams_per_subject: usize,

    /// New streams and JSON pages per second; 0: no limit. One address may use half of them, and its refused requests
    /// count only for itself. Behind proxies it needs --trusted-proxies.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_STREAM_RATE",
        value_name = "N",
        default_value_t = 20_000
    )]
    max_stream_rate: u32,

    /// Events that one publisher may publish over HTTP per second; 0: no limit.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_PUBLISH_RATE",
        value_name = "N",
        default_value_t = 10_000
    )]
    max_publish_rate: u32,

    /// Channels per second that requests to subscribe may name, from one address or one IPv6 network of 64 bits; 0: no
    /// limit. Behind proxies it needs --trusted-proxies.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_CHANNEL_RATE_PER_ADDRESS",
        value_name = "N",
        default_value_t = 20_000
    )]
    max_channel_rate_per_address: u32,

    /// Channels that streams of this replica are subscribed to; 0: no limit. One subject, or one address where the
    /// subject is not known, may open half of them.
    #[arg(
        long,
        env = "SSE_GATEWAY_MAX_OPEN_CHANNELS",
        value_name = "N",
        default_value_t = 400_000
    )]
    max_open_channels: usize,
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
    config: LimitsConfig,
    connections: AtomicUsize,
    connects: Mutex<Connects>,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    holders: Mutex<HashMap<Holder, usize>>,
    channels: OpenChannels,
    /// Channels that requests from an address name.
    named: Quotas<IpAddr>,
    publishers: Quotas<Principal>,
    /// One permit for each socket that there may be.
    sockets: Arc<Semaphore>,
    peers: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of one socket, for any kind of request. Released when dropped.
#[derive(Debug)]
pub(crate) struct SocketPlace {
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
    /// `files` is how many sockets there may be. More streams than that cannot be open.
    pub(crate) fn new(mut config: LimitsConfig, files: usize) -> Arc<Self> {
        if config.max_streams > files {
            tracing::info!(
                max_streams = files,
                "as many as the limit of open files allows"
            );
            config.max_streams = files;
        }
        let second = Duration::from_secs(1);
        Arc::new(Self {
            config,
            connections: AtomicUsize::new(0),
            connects: Mutex::new(Connects::new(config.max_stream_rate)),
            addresses: Mutex::default(),
            holders: Mutex::default(),
            channels: OpenChannels::new(config.max_open_channels),
            named: Quotas::new(config.max_channel_rate_per_address, second),
            publishers: Quotas::new(config.max_publish_rate, second),
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
    ) -> Option<SocketPlace> {
        let max = self.config.max_streams_per_address;
        let peer = (max > 0 && !is_proxy).then(|| counted(peer));
        if let Some(peer) = &peer
            && !count(&self.peers, peer, max.saturating_add(SPARE_SOCKETS))
        {
            return None;
        }
        Some(SocketPlace {
            limits: Arc::clone(self),
            peer,
            _room: room,
        })
    }

    /// A place for one more connection, before its subject is known.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Place, Limit> {
        let config = self.config;
        if config.max_stream_rate > 0 {
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
        if config.max_streams > 0 && before >= config.max_streams {
            return Err(Limit::Connections);
        }
        if config.max_streams_per_address > 0 {
            let address = counted(address);
            if !count(&self.addresses, &address, config.max_streams_per_address) {
                return Err(Limit::Address);
            }
            place.address = Some(address);
        }
        Ok(place)
    }

    /// The limit of open streams. Zero is no limit.
    pub(crate) fn max_streams(&self) -> usize {
        self.config.max_streams
    }

    /// Admits a request that names this many channels.
    pub(crate) fn name_channels(&self, client: IpAddr, count: usize) -> Result<(), Limit> {
        let taken = self.named.take(counted(client), count);
        taken.map_err(|_wait| Limit::Channels)
    }

    /// Counts an opened stream, or a page.
    pub(crate) fn opened(&self) {
        if self.config.max_stream_rate > 0 {
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
        let max = self.limits.config.max_streams_per_subject;
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

impl Drop for SocketPlace {
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
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: LimitsConfig = LimitsConfig {
        max_streams: 0,
        max_streams_per_address: 0,
        max_streams_per_subject: 0,
        max_open_channels: 0,
        max_stream_rate: 0,
        max_publish_rate: 0,
        max_channel_rate_per_address: 0,
    };

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn a_place_is_given_back_whichever_limit_was_reached() {
        let limits = Limits::new(
            LimitsConfig {
                max_streams: 3,
                max_streams_per_address: 2,
                max_streams_per_subject: 1,
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
