//! `Server`: where Redis is, how to log in, and whose certificates to believe.

use std::{io, sync::Arc};

use redis::{Client, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates};
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

/// A Redis, and how to connect to it; clone it.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    info: ConnectionInfo,
    tls: Option<Tls>,
}

/// For connections of our own; those of the redis crate make the same of `info`.
#[derive(Debug)]
struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
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
    /// authorities those of the system are believed.
    ///
    /// # Errors
    /// When anything of it cannot be used.
    pub fn new(url: &str, certificates: TlsCertificates) -> Result<Self, Misconfigured> {
        let mut info: ConnectionInfo = url.parse().map_err(Misconfigured::Url)?;
        if info.redis_settings().db() != 0 {
            return Err(Misconfigured::Database);
        }
        let tls = match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => return Err(Misconfigured::Insecure),
            ConnectionAddr::TcpTls { host, .. } => {
                let tls = Tls::new(host, &certificates)?;
                let client = Client::build_with_tls(info, certificates);
                let client = client.map_err(Misconfigured::Url)?;
                info = client.get_connection_info().clone();
                Some(tls)
            }
            _ if certificates.root_cert.is_some() || certificates.client_tls.is_some() => {
                return Err(Misconfigured::NoTls);
            }
            _ => None,
        };
        Ok(Self(Arc::new(Inner { info, tls })))
    }

    /// The port, where it is reached by TCP and without TLS.
    pub fn plain_port(&self) -> Option<u16> {
        match self.0.info.addr() {
            ConnectionAddr::Tcp(_, port) => Some(*port),
            _ => None,
        }
    }

    /// For the redis crate.
    pub(crate) fn info(&self) -> &ConnectionInfo {
        &self.0.info
    }

    /// A connection of our own, on which nobody has logged in.
    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let (host, port) = match self.0.info.addr() {
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
            Some(Tls { config, name }) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name.clone(), stream).await?)
            }
            None => Box::new(stream),
        })
    }
}

impl Tls {
    fn new(host: &str, certificates: &TlsCertificates) -> Result<Self, Misconfigured> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Misconfigured::Host(host.to_owned()))?;
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
        let config = match &certificates.client_tls {
            Some(identity) => {
                let wrong = |what: &str| Misconfigured::Identity(what.to_owned());
                let chain = chain(&identity.client_cert);
                let chain = chain.ok_or_else(|| wrong("no certificate in PEM"))?;
                let key = PrivateKeyDer::from_pem_slice(&identity.client_key)
                    .map_err(|_| wrong("no private key in PEM"))?;
                let config = config.with_client_auth_cert(chain, key);
                config.map_err(|error: rustls::Error| wrong(&error.to_string()))?
            }
            None => config.with_no_client_auth(),
        };
        let config = Arc::new(config);
        Ok(Self { config, name })
    }
}

/// The certificates in a file, at least one.
fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty())
}
