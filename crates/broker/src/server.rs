//! `Server`: where Redis is, or who knows where; how to log in, and whose certificates to believe.

use std::{collections::HashMap, io, sync::Arc};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use crate::{Error, connection::connection_config};

/// Where sentinels listen, unless it is said.
const SENTINEL_PORT: u16 = 26379;

/// A Redis, and how to connect to it; clone it.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// With sentinels, its host is the name by which they know the master.
    info: ConnectionInfo,
    /// For connections of our own; those of the redis crate make the same of `info`.
    tls: Option<Arc<ClientConfig>>,
    sentinels: Vec<Server>,
}

/// Why a server cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum Misconfigured {
    /// The URL, which may hold a password and is not repeated.
    #[error("--redis-url: {0}")]
    Url(RedisError),
    /// Pub/sub and functions know no databases: two deployments would hear each other.
    #[error("--redis-url: a deployment needs a Redis of its own, database 0")]
    Database,
    /// Whoever is in between could read and write everything.
    #[error("--redis-url: #insecure is not supported: name who signed its certificate, --redis-ca")]
    Insecure,
    /// Certificates are given, and would not be used.
    #[error("--redis-ca, --redis-certificate and --redis-key need rediss:// in --redis-url")]
    NoTls,
    /// One of the sentinels.
    #[error("--redis-sentinels: {0}")]
    Sentinel(RedisError),
    /// Sentinels know masters by name.
    #[error("--redis-sentinels: --redis-url has to be redis://NAME, as they know the master")]
    NoName,
    /// A certificate has to be for this, which is neither a name nor an address.
    #[error("--redis-url: {0} is not a host name")]
    Host(String),
    /// A file holds no certificate, or none that can be used.
    #[error("--redis-ca: no certificate in PEM")]
    Authority,
    /// Nobody could be believed.
    #[error("this system has no certificates of authorities: name them with --redis-ca")]
    NoAuthorities,
    /// Certificate and key cannot be used.
    #[error("--redis-certificate, --redis-key: {0}")]
    Identity(String),
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Server {
    /// Reads a URL: `redis://`, `rediss://` for TLS, or `unix://`. Certificates are in PEM, for TLS only; without
    /// authorities those of the system are believed. With sentinels, `host`, `host:port` or a URL each, the host of
    /// the URL is the name of a master that they know.
    ///
    /// # Errors
    /// When anything of it cannot be used.
    pub fn new<'a>(
        url: &str,
        certificates: &TlsCertificates,
        sentinels: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Misconfigured> {
        let sentinels = sentinels.into_iter().map(|text| {
            let url = match text.contains("://") {
                true => text.to_owned(),
                false if text.contains(':') => format!("redis://{text}"),
                false => format!("redis://{text}:{SENTINEL_PORT}"),
            };
            let sentinel = Self::at(&url, certificates, Vec::new());
            sentinel.map_err(|error| match error {
                Misconfigured::Url(error) => Misconfigured::Sentinel(error),
                error => error,
            })
        });
        let server = Self::at(url, certificates, sentinels.collect::<Result<_, _>>()?)?;
        let has_tls = |server: &Self| server.0.tls.is_some();
        let uses_certificates = has_tls(&server) || server.0.sentinels.iter().any(has_tls);
        if !uses_certificates
            && (certificates.root_cert.is_some() || certificates.client_tls.is_some())
        {
            return Err(Misconfigured::NoTls);
        }
        Ok(server)
    }

    fn at(
        url: &str,
        certificates: &TlsCertificates,
        sentinels: Vec<Self>,
    ) -> Result<Self, Misconfigured> {
        let mut info: ConnectionInfo = url.parse().map_err(Misconfigured::Url)?;
        if info.redis_settings().db() != 0 {
            return Err(Misconfigured::Database);
        }
        let mut tls = None;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => return Err(Misconfigured::Insecure),
            ConnectionAddr::TcpTls { host, .. } => {
                name(host).ok_or_else(|| Misconfigured::Host(host.clone()))?;
                tls = Some(Arc::new(tls_config(certificates)?));
                let client = Client::build_with_tls(info, certificates.clone());
                let client = client.map_err(Misconfigured::Url)?;
                info = client.get_connection_info().clone();
            }
            ConnectionAddr::Tcp(..) => {}
            _ if !sentinels.is_empty() => return Err(Misconfigured::NoName),
            _ => {}
        }
        Ok(Self(Arc::new(Inner {
            info,
            tls,
            sentinels,
        })))
    }

    /// The port, where it is always at the same address, and reached by TCP without TLS.
    pub fn plain_port(&self) -> Option<u16> {
        match self.0.info.addr() {
            ConnectionAddr::Tcp(_, port) if self.0.sentinels.is_empty() => Some(*port),
            _ => None,
        }
    }

    /// Where it is now.
    ///
    /// # Errors
    /// When no sentinel knows.
    pub(crate) async fn locate(&self) -> Result<ConnectionInfo, Error> {
        let info = self.0.info.clone();
        if self.0.sentinels.is_empty() {
            return Ok(info);
        }
        let mut addr = info.addr().clone();
        // Only these two have sentinels.
        if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } =
            &mut addr
        {
            let known = self.ask_sentinels(host).await?;
            (*host, *port) = (known.host, known.port);
        }
        Ok(info.set_addr(addr))
    }

    async fn ask_sentinels(&self, master: &str) -> Result<Known, Error> {
        let sentinels = &self.0.sentinels;
        let mut asked: FuturesUnordered<_> = sentinels.iter().map(|one| one.ask(master)).collect();
        let (mut newest, mut answers, mut failed) = (None, 0, None);
        // One that was away may know of an older master than the others, and those who are away are not waited for.
        while answers <= sentinels.len() / 2
            && let Some(answer) = asked.next().await
        {
            match answer {
                Ok(known) => {
                    answers += 1;
                    newest = newest.max(Some(known));
                }
                Err(error) => failed = Some(Box::new(error)),
            }
        }
        newest.ok_or_else(|| Error::NoMaster {
            name: master.to_owned(),
            source: failed,
        })
    }

    /// What a sentinel knows of a master.
    async fn ask(&self, master: &str) -> Result<Known, Error> {
        let client = Client::open(self.0.info.clone())?;
        let config = connection_config();
        let connection = client.get_multiplexed_async_connection_with_config(&config);
        let mut ask = Cmd::new();
        ask.arg("SENTINEL").arg("MASTER").arg(master);
        let fields: HashMap<String, String> = ask.query_async(&mut connection.await?).await?;
        let known = || {
            Some(Known {
                epoch: fields.get("config-epoch")?.parse().ok()?,
                host: fields.get("ip")?.clone(),
                port: fields.get("port")?.parse().ok()?,
            })
        };
        known().ok_or(Error::Malformed)
    }

    /// A connection of our own to where it was located, on which nobody has logged in.
    pub(crate) async fn open(&self, info: &ConnectionInfo) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host.as_str(), *port)
            }
            ConnectionAddr::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            other => {
                let what = format!("cannot subscribe over {other}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, what));
            }
        };
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.0.tls {
            Some(config) => {
                let name = name(host).ok_or(io::ErrorKind::InvalidInput)?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, stream).await?)
            }
            None => Box::new(stream),
        })
    }
}

/// A master, as a sentinel knows it; the newest is the greatest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    /// Grows with each failover.
    epoch: u64,
    host: String,
    port: u16,
}

fn tls_config(certificates: &TlsCertificates) -> Result<ClientConfig, Misconfigured> {
    let mut roots = RootCertStore::empty();
    match &certificates.root_cert {
        Some(pem) => {
            for certificate in chain(pem).ok_or(Misconfigured::Authority)? {
                let added = roots.add(certificate);
                added.map_err(|_| Misconfigured::Authority)?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                return Err(Misconfigured::NoAuthorities);
            }
        }
    }
    let config = ClientConfig::builder().with_root_certificates(roots);
    let Some(identity) = &certificates.client_tls else {
        return Ok(config.with_no_client_auth());
    };
    let wrong = |what: &str| Misconfigured::Identity(what.to_owned());
    let chain = chain(&identity.client_cert).ok_or_else(|| wrong("no certificate in PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(&identity.client_key)
        .map_err(|_| wrong("no private key in PEM"))?;
    let config = config.with_client_auth_cert(chain, key);
    config.map_err(|error: rustls::Error| wrong(&error.to_string()))
}

/// What a certificate has to be for.
fn name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

/// The certificates in a file, at least one.
fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty())
}
