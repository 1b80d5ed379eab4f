//! URLs of Redis and of sentinels.

use redis::{ConnectionAddr, ConnectionInfo, RedisError};
use tokio_rustls::rustls::pki_types::ServerName;

/// The port of a node of a cluster, if its address has none.
const PORT: u16 = 6379;
/// The port of a sentinel, if its address has none.
const SENTINEL_PORT: u16 = 26379;
/// Schemes that a URL may begin with.
const SCHEMES: [&str; 6] = ["redis", "rediss", "unix", "redis+unix", "valkey", "valkeys"];

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

pub(super) fn parse(url: &str) -> Result<ConnectionInfo, BadUrl> {
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
pub(super) fn sentinel_url(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").unwrap_or(("redis", text));
    let rest = rest.trim_end_matches('/');
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    let behind_ip = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    match behind_ip.contains(':') {
        true => format!("{scheme}://{rest}"),
        false => format!("{scheme}://{rest}:{SENTINEL_PORT}"),
    }
}

/// Host and port of a node of a cluster.
pub(super) fn seed(text: &str) -> Option<(&str, u16)> {
    let behind_ip = text.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match text[behind_ip..].rfind(':') {
        Some(colon) => {
            let (host, port) = text.split_at(behind_ip + colon);
            (host, port[1..].parse().ok()?)
        }
        None => (text, PORT),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|ip| ip.strip_suffix(']'))
        .unwrap_or(host);
    let is_host = !host.is_empty() && !host.contains(['/', '@', '[', ']', ' ']);
    is_host.then_some((host, port))
}

pub(super) fn has_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

pub(super) fn host_and_port(addr: &ConnectionAddr) -> Option<(&str, u16)> {
    match addr {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some((host, *port))
        }
        _ => None,
    }
}

/// The name that the certificate of a host has to have.
pub(super) fn server_name(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

#[cfg(test)]
mod tests {
    use super::{seed, sentinel_url};

    #[test]
    fn nodes_of_a_cluster_have_a_default_port() {
        for (text, node) in [
            ("a", Some(("a", 6379))),
            ("a:1", Some(("a", 1))),
            ("[::1]", Some(("::1", 6379))),
            ("[::1]:1", Some(("::1", 1))),
            ("redis://a:1", None),
            ("u:p@a:1", None),
            ("a:b", None),
            (":1", None),
            ("", None),
        ] {
            assert_eq!(seed(text), node, "{text}");
        }
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
