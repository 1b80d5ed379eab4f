//! `Server`: where Redis is, or who knows it; how to log in, and which certificate authorities to trust.

mod cluster;
mod sentinels;
mod tls;
mod url;

use std::{fmt, io, sync::Arc};

use parking_lot::RwLock;

use redis::{Client, ConnectionAddr, ConnectionInfo, TlsCertificates, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig};

pub use self::url::BadUrl;
pub(crate) use self::{
    cluster::{Owner, Views},
    sentinels::{Place, Survey},
};
use self::{
    tls::tls_config,
    url::{has_tls, host_and_port, parse, seed, sentinel_url, server_name},
};
use crate::{Error, process::open};

/// A Redis, and how to connect to it; clone it. All clones share the certificates, which can be renewed.
#[derive(Clone, Debug)]
pub struct Server {
    inner: Arc<RwLock<Arc<Inner>>>,
    /// It is this node of a cluster.
    node: Option<Address>,
}

/// Where a node of a cluster is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Address {
    pub(crate) host: Arc<str>,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Debug)]
struct Inner {
    /// With sentinels, its host is the name by which they know the master. With a cluster, its host means nothing.
    info: ConnectionInfo,
    /// For the connections that this crate makes itself. The redis crate makes the same from `info` for its own.
    tls: Option<Arc<ClientConfig>>,
    sentinels: Vec<ConnectionInfo>,
    /// Nodes of a cluster, which know the others.
    seeds: Vec<Address>,
}

/// Why a server cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum Misconfigured {
    /// The URL of Redis cannot be used.
    #[error("--redis-url: {0}")]
    Url(BadUrl),
    /// The URL of a sentinel cannot be used.
    #[error("--redis-sentinels: {0}")]
    Sentinel(BadUrl),
    /// The address of a node cannot be used.
    #[error("--redis-cluster: {0:?} is not host:port")]
    Seed(String),
    /// Nodes of a cluster are reached by TCP.
    #[error(
        "--redis-cluster: --redis-url can only give user, password and TLS then: redis://[user:password@]any"
    )]
    NoTcp,
    /// A cluster needs no sentinels.
    #[error("--redis-cluster and --redis-sentinels exclude each other")]
    Both,
    /// Sentinels know masters by name.
    #[error("--redis-sentinels: --redis-url has to be redis://NAME, as they know the master")]
    NoName,
    /// Certificates are given, but the connection would not use them.
    #[error("--redis-ca, --redis-certificate and --redis-key need rediss:// in --redis-url")]
    NoTls,
    /// A file holds no certificate, or none that can be used.
    #[error("--redis-ca: no certificate in PEM")]
    Authority,
    /// No certificate of Redis could be trusted.
    #[error("this system has no certificates of authorities: name them with --redis-ca")]
    NoAuthorities,
    /// Certificate and key cannot be used.
    #[error("--redis-certificate, --redis-key: {0}")]
    Identity(String),
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Server {
    /// Reads a URL: `redis://`, `rediss://` for TLS, or `unix://`. Certificates are in PEM, for TLS only. Without
    /// authorities, those of the system are trusted. Sentinels are `host`, `host:port` or a URL each. With sentinels,
    /// the host of the URL is the name by which they know the master. Nodes of a cluster are `host` or `host:port` each,
    /// and the URL only gives how to log in there.
    ///
    /// # Errors
    /// When a part of it cannot be used.
    pub fn new<'a>(
        url: &str,
        mut certificates: TlsCertificates,
        sentinels: impl IntoIterator<Item = &'a str>,
        seeds: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Misconfigured> {
        let mut info = parse(url).map_err(Misconfigured::Url)?;
        let sentinels = sentinels.into_iter().map(|text| parse(&sentinel_url(text)));
        let mut sentinels: Vec<_> = sentinels
            .collect::<Result<_, _>>()
            .map_err(Misconfigured::Sentinel)?;
        if !sentinels.is_empty() && matches!(info.addr(), ConnectionAddr::Unix(_)) {
            return Err(Misconfigured::NoName);
        }
        let seeds = seeds.into_iter().map(|text| {
            let address = seed(text).ok_or_else(|| Misconfigured::Seed(text.to_owned()));
            address.map(|(host, port)| Address {
                host: host.into(),
                port,
            })
        });
        let seeds: Vec<_> = seeds.collect::<Result<_, _>>()?;
        match (seeds.is_empty(), sentinels.is_empty(), info.addr()) {
            (false, false, _) => return Err(Misconfigured::Both),
            (false, _, ConnectionAddr::Unix(_)) => return Err(Misconfigured::NoTcp),
            _ => {}
        }
        let mut secured: Vec<_> = sentinels
            .iter_mut()
            .chain([&mut info])
            .filter(|info| has_tls(info))
            .collect();
        let tls = if secured.is_empty() {
            if certificates.root_cert.is_some() || certificates.client_tls.is_some() {
                return Err(Misconfigured::NoTls);
            }
            None
        } else {
            let config = tls_config(&mut certificates)?;
            for info in &mut secured {
                let client = Client::build_with_tls((**info).clone(), certificates.clone());
                let client = client.map_err(|error| Misconfigured::Identity(error.to_string()))?;
                **info = client.get_connection_info().clone();
            }
            Some(Arc::new(config))
        };
        let inner = Inner {
            info,
            tls,
            sentinels,
            seeds,
        };
        Ok(Self {
            inner: Arc::new(RwLock::new(Arc::new(inner))),
            node: None,
        })
    }

    /// One node of this cluster.
    pub(crate) fn at(&self, node: &Address) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            node: Some(node.clone()),
        }
    }

    /// Some nodes of the cluster; none if it is not a cluster.
    pub(crate) fn seeds(&self) -> Vec<Address> {
        self.inner().seeds.clone()
    }

    /// Each master: this one, or those of the cluster that own slots.
    pub(crate) async fn masters(&self) -> Result<Vec<Self>, Error> {
        if !self.is_cluster() {
            return Ok(vec![self.clone()]);
        }
        let masters = self.ask_cluster(&self.seeds()).await?.masters();
        let masters = masters.iter().map(|owner| self.at(&owner.address));
        Ok(masters.collect())
    }

    /// Whether it is a node of a cluster.
    pub(crate) fn is_node(&self) -> bool {
        self.node.is_some()
    }

    /// Whether it is a whole cluster, not one server.
    pub(crate) fn is_cluster(&self) -> bool {
        self.node.is_none() && !self.inner().seeds.is_empty()
    }

    /// How to connect to a node of the cluster.
    fn info_at(&self, node: &Address) -> ConnectionInfo {
        let info = self.inner().info.clone();
        let mut addr = info.addr().clone();
        if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } =
            &mut addr
        {
            (*host, *port) = (node.host.to_string(), node.port);
        }
        info.set_addr(addr)
    }

    /// Uses the certificates of `other` from now on. `other` was made with the same URLs.
    pub(crate) fn renew(&self, other: &Self) {
        let new = other.inner();
        *self.inner.write() = new;
    }

    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.inner.read())
    }

    /// The same place, with the present certificates.
    pub(crate) fn renewed(&self, info: &ConnectionInfo) -> ConnectionInfo {
        let own = self.inner().info.clone();
        let mut addr = own.addr().clone();
        match (&mut addr, info.addr()) {
            (
                ConnectionAddr::TcpTls { host, port, .. },
                ConnectionAddr::TcpTls {
                    host: to, port: at, ..
                },
            ) => (*host, *port) = (to.clone(), *at),
            // Without TLS there is nothing to renew.
            (_, other) => addr = other.clone(),
        }
        own.set_addr(addr)
    }

    /// The port, if the server is always at the same address, and reached by TCP without TLS.
    pub fn plain_port(&self) -> Option<u16> {
        let inner = self.inner();
        match inner.info.addr() {
            ConnectionAddr::Tcp(_, port)
                if inner.sentinels.is_empty() && inner.seeds.is_empty() =>
            {
                Some(*port)
            }
            _ => None,
        }
    }

    /// A connection for a single use, outside the pool.
    pub(crate) async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let info = self.locate(None).await?.info;
        let connection = open(&Client::open(info.clone())?).await;
        connection.map_err(|error| Error::connecting(&info, &error))
    }

    /// The user that logs in.
    pub(crate) fn user(&self) -> String {
        let inner = self.inner();
        let user = inner.info.redis_settings().username();
        user.unwrap_or("default").to_owned()
    }

    /// A connection of this crate's own to the located server, without a login yet.
    pub(crate) async fn open(&self, info: &ConnectionInfo) -> io::Result<Box<dyn Stream>> {
        let addr = info.addr();
        let Some((host, port)) = host_and_port(addr) else {
            return match addr {
                ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
                other => Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("cannot subscribe over {other}"),
                )),
            };
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.inner().tls {
            Some(config) if has_tls(info) => {
                let name = server_name(host).ok_or(io::ErrorKind::InvalidInput)?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, stream).await?)
            }
            _ => Box::new(stream),
        })
    }
}
