//! `Server`: where Redis is, or which sentinels know it; how to log in, and which certificate authorities to trust.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{
    Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates,
    aio::MultiplexedConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use crate::{
    Error,
    node::{connection_config, is_master, open},
    seldom::Seldom,
};

/// The port of a sentinel, if its address has none.
const SENTINEL_PORT: u16 = 26379;
/// On this channel a sentinel announces another master: its name, then the old and the new address.
const SWITCH: &str = "+switch-master";
/// Schemes that a URL may begin with.
const SCHEMES: [&str; 6] = ["redis", "rediss", "unix", "redis+unix", "valkey", "valkeys"];
/// Pause before this process subscribes again to a sentinel whose connection has ended.
const RELISTEN: Duration = Duration::from_secs(1);
/// Longest wait for the answer of a sentinel.
const ANSWER: Duration = Duration::from_secs(1);
/// Sentinels inform each other of a failover within seconds. A sentinel that does not know of one for longer has
/// started to count again.
const HEARSAY: Duration = Duration::from_secs(30);

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

/// The address of a server, and the failover that made it the master.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) info: ConnectionInfo,
    /// The number of the failover that made it the master; 0 without sentinels.
    pub(crate) epoch: u64,
    /// When a sentinel last confirmed it.
    at: Instant,
}

impl Place {
    fn new(info: ConnectionInfo, epoch: u64) -> Self {
        Self {
            info,
            epoch,
            at: Instant::now(),
        }
    }

    fn is(&self, known: &Known) -> bool {
        host_and_port(self.info.addr()) == Some((&*known.host, known.port))
    }

    /// Whether a later failover made it the master, of which the sentinels with this answer do not know yet.
    fn is_later_than(&self, known: &Known) -> bool {
        known.epoch < self.epoch && !self.is(known) && self.at.elapsed() < HEARSAY
    }
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

/// The fault of a URL. The URL may hold a password, so the error does not repeat it.
#[derive(Debug, thiserror::Error)]
pub enum BadUrl {
    /// It does not begin with a scheme. Holds the text, unless that may contain a password.
    #[error("{}, rediss:// for TLS or unix:///path", no_scheme(.0.as_deref()))]
    NoScheme(Option<String>),
    /// Its scheme is for another kind of server.
    #[error(
        "{0}:// is not a scheme of redis: a URL is needed such as redis://[user:password@]host[:port], rediss:// for TLS, \
         or unix:///path"
    )]
    Scheme(String),
    /// It is not a URL.
    #[error(
        "it cannot be read ({0}): a URL is needed such as redis://[user:password@]host[:port], in which %40 stands for @, \
         %2F for / and %3A for : in a password"
    )]
    Unreadable(String),
    /// Databases do not separate pub/sub and functions, so two deployments would receive each other's messages.
    #[error("a deployment needs a Redis of its own, database 0")]
    Database,
    /// An attacker on the network could read and write everything.
    #[error("#insecure is not supported: name who signed its certificate with --redis-ca")]
    Insecure,
    /// A certificate has to be for this text, which is neither a host name nor an address.
    #[error("{0} is not a host name")]
    Host(String),
}

fn no_scheme(text: Option<&str>) -> String {
    match text {
        Some(text) => {
            format!("{text:?} has no scheme: a URL is needed, such as redis://{text}")
        }
        None => "it has no scheme: a URL is needed, such as redis://[user:password@]host[:port]"
            .to_owned(),
    }
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The answers of all sentinels about the master.
pub(crate) struct Survey {
    /// As sentinels know the master.
    pub(crate) name: String,
    /// How many sentinels there are.
    pub(crate) sentinels: usize,
    /// The address of the master, from each sentinel that answered.
    pub(crate) masters: Vec<(String, u16)>,
    /// Why one of the others did not answer.
    pub(crate) failed: Option<String>,
}

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
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    fn inner(&self) -> Arc<Inner> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
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

    /// Locates the master. The last place stays unless more than half of the sentinels answer, because fewer could not
    /// have made another server the master. It also stays while the server there reports that it is the master, and the
    /// sentinels do not know yet of the failover that made it so.
    ///
    /// # Errors
    /// When no sentinel knows the master, and there is no last place.
    pub(crate) async fn locate(&self, was: Option<&Place>) -> Result<Place, Error> {
        let inner = self.inner();
        let info = inner.info.clone();
        if inner.sentinels.is_empty() {
            return Ok(Place::new(info, 0));
        }
        let mut epoch = 0;
        let mut addr = info.addr().clone();
        // Only these two kinds of address can have sentinels.
        if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } =
            &mut addr
        {
            let most = inner.sentinels.len() / 2 + 1;
            let (answers, failed) = self.ask_sentinels(host, most).await;
            let mut newest = newest(answers, inner.sentinels.len(), was);
            if let (Some(known), Some(was)) = (&newest, was)
                && was.is_later_than(known)
                && is_master(&Client::open(was.info.clone())?)
                    .await
                    .unwrap_or(false)
            {
                newest = None;
            }
            match (newest, was) {
                (Some(newest), _) => {
                    (*host, *port, epoch) = (newest.host, newest.port, newest.epoch);
                }
                (None, Some(was)) => return Ok(was.clone()),
                (None, None) => {
                    return Err(Error::NoMaster {
                        name: host.clone(),
                        because: failed.unwrap_or_default(),
                    });
                }
            }
        }
        Ok(Place::new(info.set_addr(addr), epoch))
    }

    /// Whether the sentinels know no later master. `None` unless more than half of them answer. All are asked, because
    /// for a moment only the sentinel that has replaced the master knows.
    pub(crate) async fn confirms(&self, place: &Place) -> Option<bool> {
        let inner = self.inner();
        let (host, _) = host_and_port(inner.info.addr())?;
        let (answers, _) = self.ask_sentinels(host, inner.sentinels.len()).await;
        confirm(answers, inner.sentinels.len(), place)
    }

    /// The user that logs in.
    pub(crate) fn user(&self) -> String {
        let inner = self.inner();
        let user = inner.info.redis_settings().username();
        user.unwrap_or("default").to_owned()
    }

    /// Asks all sentinels where the master is; none if there are none.
    pub(crate) async fn survey(&self) -> Option<Survey> {
        let inner = self.inner();
        let (name, _) = host_and_port(inner.info.addr())?;
        let sentinels = inner.sentinels.len();
        if sentinels == 0 {
            return None;
        }
        let (answers, failed) = self.ask_sentinels(name, sentinels).await;
        Some(Survey {
            name: name.to_owned(),
            sentinels,
            masters: answers
                .into_iter()
                .map(|known| (known.host, known.port))
                .collect(),
            failed,
        })
    }

    /// Whether there are sentinels, so that another server may become the master.
    pub(crate) fn has_sentinels(&self) -> bool {
        !self.inner().sentinels.is_empty()
    }

    /// Calls `switched` when a sentinel announces another master, and when an announcement may have been missed. Never
    /// returns.
    pub(crate) async fn watch(&self, switched: impl Fn()) {
        let inner = self.inner();
        let master = host_and_port(inner.info.addr()).map_or("", |(host, _)| host);
        let watch = (0..inner.sentinels.len()).map(async |number| {
            loop {
                // With the present certificates.
                let sentinel = &self.inner().sentinels[number];
                if let Err(error) = listen(sentinel, master, &switched).await {
                    tracing::debug!(sentinel = %sentinel.addr(), %error, "failed to listen to a sentinel");
                }
                sleep(RELISTEN).await;
            }
        });
        let mut watch: FuturesUnordered<_> = watch.collect();
        while watch.next().await.is_some() {}
        std::future::pending::<()>().await;
    }

    /// The first `count` answers of the sentinels, or fewer if fewer answer; and the last failure.
    async fn ask_sentinels(&self, master: &str, count: usize) -> (Vec<Known>, Option<String>) {
        static SELDOM: Seldom = Seldom::new();
        let sentinels = &self.inner().sentinels;
        let asked = sentinels.iter().map(async |sentinel| {
            let answer = timeout(ANSWER, ask(sentinel, master)).await;
            let timed_out =
                |_| Err(RedisError::from(io::Error::from(io::ErrorKind::TimedOut)).into());
            (sentinel.addr(), answer.unwrap_or_else(timed_out))
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let (mut answers, mut failed) = (Vec::new(), None);
        while answers.len() < count
            && let Some((sentinel, answer)) = asked.next().await
        {
            match answer {
                Ok(known) => answers.push(known),
                Err(error) => {
                    if let Some(suppressed) = SELDOM.pass() {
                        tracing::warn!(%sentinel, %error, suppressed, "a sentinel does not know the master");
                    }
                    failed = Some(format!("{sentinel}: {error}"));
                }
            }
        }
        (answers, failed)
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

/// The newest of the sentinels' answers, if a client that is at a master, or at none yet, may follow it.
fn newest(answers: Vec<Known>, sentinels: usize, is_at: Option<&Place>) -> Option<Known> {
    if is_at.is_some() && answers.len() <= sentinels / 2 {
        return None;
    }
    // Each failover increases the epoch. Of answers with the same epoch, the present place is preferred.
    let is_there = |known: &Known| is_at.is_some_and(|place| place.is(known));
    answers
        .into_iter()
        .max_by_key(|known| (known.epoch, is_there(known)))
}

/// Whether these answers name no later master. `None` unless more than half of the sentinels have answered.
fn confirm(answers: Vec<Known>, sentinels: usize, place: &Place) -> Option<bool> {
    let known = newest(answers, sentinels, Some(place))?;
    Some(place.is(&known) || place.is_later_than(&known))
}

/// A master, as a sentinel knows it.
struct Known {
    /// Grows with each failover.
    epoch: u64,
    host: String,
    port: u16,
}

/// Asks a sentinel for the address of a master.
async fn ask(sentinel: &ConnectionInfo, master: &str) -> Result<Known, Error> {
    let client = Client::open(sentinel.clone())?;
    let config = connection_config();
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = connection.await?;
    // In this order, because during a failover the epoch changes before the address does.
    let mut epoch = Cmd::new();
    epoch.arg("SENTINEL").arg("MASTER").arg(master);
    let fields: Vec<String> = epoch.query_async(&mut connection).await?;
    let mut fields = fields.chunks_exact(2);
    let epoch = fields.find(|field| field[0] == "config-epoch");
    let mut address = Cmd::new();
    address.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME");
    address.arg(master);
    let (host, port): (String, u16) = address.query_async(&mut connection).await?;
    // If the sentinel cannot resolve the host name, it answers an empty one.
    let epoch = epoch.filter(|_| !host.is_empty());
    let epoch = epoch.and_then(|field| field[1].parse().ok());
    let epoch = epoch.ok_or(Error::Malformed)?;
    Ok(Known { epoch, host, port })
}

/// Calls `switched` after it has subscribed, and whenever this sentinel announces another master of this name. Ends
/// with the connection.
async fn listen(
    sentinel: &ConnectionInfo,
    master: &str,
    switched: &impl Fn(),
) -> Result<(), RedisError> {
    let client = Client::open(sentinel.clone())?;
    let subscribe = async {
        let mut listener = client.get_async_pubsub().await?;
        listener.subscribe(SWITCH).await?;
        Ok::<_, RedisError>(listener)
    };
    let subscribed = timeout(ANSWER, subscribe).await;
    let mut listener = subscribed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // The sentinel may have announced a switch before the subscription.
    switched();
    let mut messages = listener.on_message();
    while let Some(message) = messages.next().await {
        let payload: String = message.get_payload()?;
        if payload.split(' ').next() == Some(master) {
            switched();
        }
    }
    Ok(())
}

fn parse(url: &str) -> Result<ConnectionInfo, BadUrl> {
    let (scheme, _) = url.split_once("://").ok_or_else(|| {
        let has_no_password = !url.is_empty() && !url.contains(['@', '/', ' ']);
        BadUrl::NoScheme(has_no_password.then(|| url.to_owned()))
    })?;
    if !SCHEMES.contains(&&*scheme.to_ascii_lowercase()) {
        return Err(BadUrl::Scheme(scheme.chars().take(20).collect()));
    }
    let info: ConnectionInfo = url
        .parse()
        .map_err(|error: RedisError| BadUrl::Unreadable(error.to_string()))?;
    if info.redis_settings().db() != 0 {
        return Err(BadUrl::Database);
    }
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => Err(BadUrl::Insecure),
        ConnectionAddr::TcpTls { host, .. } if server_name(host).is_none() => {
            Err(BadUrl::Host(host.clone()))
        }
        _ => Ok(info),
    }
}

/// The full URL of a sentinel, with the default port of sentinels.
fn sentinel_url(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("redis", text));
    let rest = rest.trim_end_matches('/');
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let behind_ip = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    match behind_ip.contains(':') {
        true => format!("{scheme}://{rest}"),
        false => format!("{scheme}://{rest}:{SENTINEL_PORT}"),
    }
}

fn has_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

fn host_and_port(addr: &ConnectionAddr) -> Option<(&str, u16)> {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

/// The name that the certificate of a host has to have.
fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

/// Reads the certificates. If they contain no authorities, adds those of the system. Otherwise each new connection
/// would read them again.
fn tls_config(certificates: &mut TlsCertificates) -> Result<ClientConfig, Misconfigured> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = &certificates.root_cert {
        for certificate in chain(pem).ok_or(Misconfigured::Authority)? {
            let added = roots.add(certificate);
            added.map_err(|_| Misconfigured::Authority)?;
        }
    } else {
        let mut pem = String::new();
        for certificate in rustls_native_certs::load_native_certs().certs {
            let text = BASE64.encode(&certificate);
            if roots.add(certificate).is_ok() {
                let written = write!(
                    pem,
                    "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"
                );
                written.expect("a string takes all");
            }
        }
        if roots.is_empty() {
            return Err(Misconfigured::NoAuthorities);
        }
        certificates.root_cert = Some(pem.into_bytes());
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

/// The certificates in a file, at least one.
fn chain(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{HEARSAY, Instant, Known, Place, newest, sentinel_url};

    #[test]
    fn the_newest_answer_counts_if_enough_sentinels_answer() {
        let at = |(epoch, host): (u64, &str)| {
            let info = format!("redis://{host}:1").parse().unwrap();
            Place::new(info, epoch)
        };
        let go = |answers: &[(u64, &str)], is_at: Option<&Place>| {
            let answers = answers.iter().map(|(epoch, host)| Known {
                epoch: *epoch,
                host: (*host).to_owned(),
                port: 1,
            });
            let newest = newest(answers.collect(), 3, is_at);
            let newest = newest.filter(|known| !is_at.is_some_and(|at| at.is_later_than(known)));
            newest.map(|known| known.host)
        };
        for (answers, is_at, to) in [
            (&[(1, "a"), (2, "b")][..], Some((1, "a")), Some("b")),
            (&[(2, "b"), (1, "a")], Some((1, "a")), Some("b")),
            (&[(1, "a"), (1, "b")], Some((1, "a")), Some("a")),
            (&[(1, "b"), (1, "a")], Some((1, "a")), Some("a")),
            (&[(1, "b"), (1, "b")], Some((1, "a")), Some("b")),
            (&[(1, "b"), (1, "b")], Some((2, "a")), None),
            (&[(1, "b"), (2, "a")], Some((2, "a")), Some("a")),
            (&[(0, "a"), (0, "a")], Some((2, "a")), Some("a")),
            (&[(2, "b")], Some((1, "a")), None),
            (&[(2, "b")], None, Some("b")),
            (&[], Some((1, "a")), None),
            (&[], None, None),
        ] {
            let to_go = go(answers, is_at.map(at).as_ref());
            assert_eq!(to_go.as_deref(), to, "{answers:?} {is_at:?}");
        }
        // No sentinel has confirmed the place for this long.
        let mut old = at((2, "a"));
        old.at = Instant::now().checked_sub(HEARSAY).unwrap();
        assert_eq!(go(&[(1, "b"), (1, "b")], Some(&old)).as_deref(), Some("b"));
    }

    #[test]
    fn sentinels_have_a_default_port_of_their_own() {
        for (text, url) in [
            ("a", "redis://a:26379"),
            ("a:1", "redis://a:1"),
            ("[::1]", "redis://[::1]:26379"),
            ("[::1]:1", "redis://[::1]:1"),
            ("rediss://:b:c@a", "rediss://:b:c@a:26379"),
            ("redis://u:p@a:1/", "redis://u:p@a:1"),
        ] {
            assert_eq!(sentinel_url(text), url);
        }
    }
}

#[cfg(test)]
mod simulation;
