//! `Server`: where Redis is, or which sentinels know it; how to log in, and which certificate authorities to trust.

mod sentinels;
mod tls;
mod url;

use std::{io, sync::Arc};

use parking_lot::RwLock;

use redis::{Client, ConnectionAddr, ConnectionInfo, TlsCertificates, aio::MultiplexedConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, rustls::ClientConfig};

pub(crate) use self::sentinels::{Place, Survey};
pub use self::url::BadUrl;
use self::{
    tls::tls_config,
    url::{has_tls, host_and_port, parse, sentinel_url, server_name},
};
use crate::{Error, process::open};

/// A Redis, and how to connect to it; clone it. All clones share the certificates, which can be renewed.
#[derive(Clone, Debug)]
pub struct Server(Arc<RwLock<Arc<Inner>>>);

#[derive(Debug)]
struct Inner {
    /// With sentinels, its host is the name by which they know the master.
    info: ConnectionInfo,
    /// For the connections that this crate makes itself. The redis crate makes the same from `info` for its own.
    tls: Option<Arc<ClientConfig>>,
    sentinels: Vec<ConnectionInfo>,
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
    /// the host of the URL is the name by which they know the master.
    ///
    /// # Errors
    /// When a part of it cannot be used.
    pub fn new<'a>(
        url: &str,
        mut certificates: TlsCertificates,
        sentinels: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Misconfigured> {
        let mut info = parse(url).map_err(Misconfigured::Url)?;
        let sentinels = sentinels.into_iter().map(|text| parse(&sentinel_url(text)));
        let mut sentinels: Vec<_> = sentinels
            .collect::<Result<_, _>>()
            .map_err(Misconfigured::Sentinel)?;
        if !sentinels.is_empty() && matches!(info.addr(), ConnectionAddr::Unix(_)) {
            return Err(Misconfigured::NoName);
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
        Ok(Self(Arc::new(RwLock::new(Arc::new(Inner {
            info,
            tls,
            sentinels,
        })))))
    }

    /// Uses the certificates of `other` from now on. `other` was made with the same URLs.
    pub(crate) fn renew(&self, other: &Self) {
        let new = other.inner();
        *self.0.write() = new;
    }

    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.0.read())
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
            ConnectionAddr::Tcp(_, port) if inner.sentinels.is_empty() => Some(*port),
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
