//! Access: decides from the credentials of a request on a [`Grant`] or a refusal.
//!
//! A channel is readable only if a rule allows it. The first credential of a request decides, and no other. If it is
//! wrong, the request is refused, even if another rule would allow it. Public channels need no credential, and a wrong
//! one is no obstacle there.

mod credential;
mod forward;
mod jwks;
mod jwt;
mod origins;
mod pattern;
mod revoked;
mod secret;
mod ticket;

use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use fair::{Quotas, counted};
use hub::Channel;
use sha1::{Digest as _, Sha1};

pub(crate) use self::{
    credential::Credential,
    forward::{ForwardAuth, ForwardConfig},
    jwks::{Keys, Refresh},
    jwt::{Algorithms, JwtConfig, KeySet, TokenRefused, Verifier, read_key, sign},
    origins::Origins,
    pattern::Patterns,
    revoked::Revoked,
    secret::{Hidden, Secret},
    ticket::TicketLookup,
};
use crate::aside::Aside;

/// Tokens of one address that may be refused at once, and in each period. The check of a signature takes up to half a
/// millisecond, whether it is right or wrong.
pub(crate) const MAX_REFUSED_TOKENS: u32 = 1000;
pub(crate) const REFUSED_TOKENS_PERIOD: Duration = Duration::from_secs(10);

/// The longest subject, in bytes. OpenID Connect allows 255.
pub(crate) const MAX_SUBJECT: usize = 256;

/// The permissions of a client or publisher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The user that has these permissions, if known.
    pub(crate) subject: Option<Arc<str>>,
    /// The publisher of the configuration that named the subject, by its number; none if a token or the backend did.
    pub(crate) publisher: Option<usize>,
    pub(crate) subscribe: Patterns,
    pub(crate) publish: Patterns,
    /// In seconds since the Unix epoch.
    pub(crate) expires: Option<u64>,
}

/// A subject, and the source of its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    /// A publisher of the configuration, by its number; none if a token or the backend did.
    pub(crate) publisher: Option<usize>,
    pub(crate) subject: Arc<str>,
}

/// The reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error(
        "this needs a credential: Authorization: Bearer TOKEN, access_token=TOKEN, ticket=TICKET, or a \
         cookie, whichever are configured"
    )]
    NoCredential,
    #[error(transparent)]
    Token(#[from] TokenRefused),
    #[error("the ticket is unknown, used or too old: fetch a new one")]
    Ticket,
    #[error("the authorization backend denied the request")]
    Backend { known: bool },
    #[error(
        "a page of another site asks, which is not in --cors-origins: it may not use its visitor's cookies"
    )]
    CrossSite,
    #[error("this credential is not for channel {0}")]
    Channel(Channel),
    #[error("this credential is not for publishing: it has no channel that it may publish to")]
    Publishing,
    #[error("too many tokens from this address were refused: they are checked again in a moment")]
    RefusedTokens,
    #[error("authorization is temporarily unavailable")]
    Unavailable,
}

/// All rules.
pub(crate) struct Access {
    /// Channels that need no credential.
    pub(crate) public: Patterns,
    /// Whether all channels are public, but only for programs on this machine.
    pub(crate) local_only: bool,
    pub(crate) jwt: Option<Verifier>,
    pub(crate) forward: Option<Arc<ForwardAuth>>,
    pub(crate) publishers: Vec<Credential>,
    pub(crate) tickets: Arc<dyn TicketLookup>,
    pub(crate) aside: Aside,
    /// Sites whose pages may use their visitors' cookies.
    pub(crate) origins: Origins,
    /// Refused tokens of each address.
    pub(crate) refusals: Arc<Quotas<IpAddr>>,
    /// The credential of this process itself.
    pub(crate) own: Option<Own>,
}

/// A credential with which this process, and no other client, subscribes to a channel of its own.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    token: Secret,
    channel: Channel,
}

impl Own {
    /// A credential for this channel, with a new secret token.
    pub(crate) fn new(channel: Channel) -> Result<Self, getrandom::Error> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = Secret::from(&*token);
        Ok(Self { token, channel })
    }

    pub(crate) fn token(&self) -> &str {
        self.token.as_str()
    }
}

/// The credentials of a request to subscribe that are not in its headers.
#[derive(Default)]
pub(crate) struct Carried {
    pub(crate) access_token: Option<String>,
    pub(crate) ticket: Option<String>,
}

/// The sender of a request to publish or to issue a ticket.
#[derive(Debug)]
pub(crate) enum Publisher<'a> {
    /// A credential of the configuration.
    Credential(&'a Credential),
    /// A token.
    Token {
        grant: Box<Grant>,
        /// Digest of the token without its signature, because the same token may have several signatures.
        digest: [u8; 20],
    },
}

/// The owner of requests to publish or for tickets. Rates, quotas, room and idempotency keys belong to one principal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Principal {
    /// A publisher of the configuration, by its number.
    Credential(usize),
    /// All tokens of a subject.
    Subject(Arc<str>),
    /// One token without a subject, by its digest.
    Token([u8; 20]),
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(number) => write!(f, "credential {number}"),
            Self::Subject(subject) => write!(f, "subject {subject}"),
            Self::Token(digest) => {
                f.write_str("token ")?;
                digest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

impl Access {
    /// Decides on a request to subscribe. `client` is the address that sends it.
    pub(crate) async fn subscriber(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        carried: Carried,
        channels: &[Channel],
    ) -> Result<Grant, Denied> {
        let is_public = |channel: &Channel| self.public.matches(channel.as_str());
        if is_unreadable(headers) {
            return Err(Denied::CrossSite);
        }
        let Some(private) = channels.iter().find(|channel| !is_public(channel)) else {
            return Ok(Grant::default());
        };
        let grant = self.judge(headers, uri, client, carried, channels).await?;
        let Some(grant) = grant else {
            tracing::debug!(channel = %private, "no credential");
            return Err(Denied::NoCredential);
        };
        let may =
            |channel: &Channel| is_public(channel) || grant.subscribe.matches(channel.as_str());
        match channels.iter().find(|channel| !may(channel)) {
            Some(channel) => Err(Denied::Channel(channel.clone())),
            None => Ok(grant),
        }
    }

    /// The credential of this process, if this process sends the request.
    pub(crate) fn own(&self, headers: &HeaderMap) -> Option<&Own> {
        let own = self.own.as_ref()?;
        bearer(headers)
            .is_some_and(|token| own.token.is(token))
            .then_some(own)
    }

    /// The permissions of the first credential in a request; none if it has no credential.
    async fn judge(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        carried: Carried,
        channels: &[Channel],
    ) -> Result<Option<Grant>, Denied> {
        if let Some(own) = self.own(headers) {
            return Ok(Some(Grant {
                subscribe: Patterns::of_names(vec![own.channel.to_string()]),
                ..Grant::default()
            }));
        }
        // Tickets exist only if there are publishers. Without publishers, Redis is not asked.
        if let Some(ticket) = carried.ticket.filter(|_| self.has_publishers()) {
            return self.take_ticket(ticket).await.map(Some);
        }
        if let Some(jwt) = &self.jwt {
            let query = carried.access_token.as_deref();
            if let Some(token) = bearer(headers).or(query) {
                return self.verify(jwt, token, client).await.map(Some);
            }
            if let Some(token) = jwt.cookie().and_then(|name| cookie(headers, name)) {
                self.is_of_own_site(headers, uri)?;
                return self.verify(jwt, token, client).await.map(Some);
            }
        }
        match &self.forward {
            Some(forward) => {
                if forward.passes_credentials(headers) {
                    self.is_of_own_site(headers, uri)?;
                }
                let asked = forward.ask(&self.aside, headers, uri, client, channels);
                asked.await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// The permissions of a token. Refused tokens count for the address that sends them, because checking them takes
    /// time.
    async fn verify(&self, jwt: &Verifier, token: &str, client: IpAddr) -> Result<Grant, Denied> {
        let client = counted(client);
        let asked = self.refusals.ask(&client);
        asked.map_err(|_wait| Denied::RefusedTokens)?;
        let verified = jwt.verify(token).await;
        if let Err(Denied::Token(_)) = verified {
            // Other requests may have used up the quota since. This token is refused anyway.
            let _taken = self.refusals.take(client, 1);
        }
        verified
    }

    /// A browser adds cookies to the requests of any site's page. A page that cannot read the answer could still use up
    /// its visitor's places. A page that can read it is of the same origin, or is listed.
    fn is_of_own_site(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Denied> {
        let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
        if origin.is_some_and(|origin| self.origins.allow(origin)) {
            return Ok(());
        }
        // Over plain HTTP, and from older browsers, Sec-Fetch-Site is missing. If the page of a listed site could read
        // the answer, its browser then sends an Origin. For pages of the same origin a browser sends none with GET, or
        // the origin of the request.
        let is_foreign = match (is_foreign(headers), origin) {
            (Some(is_foreign), _) => is_foreign,
            (None, Some(origin)) => !is_same_origin(origin, headers, uri),
            (None, None) => false,
        };
        match is_foreign {
            true => Err(Denied::CrossSite),
            false => Ok(()),
        }
    }

    /// The publisher that sends a request to publish, or for a ticket. Cookies and parameters of the URL do not count
    /// here: another site's page could make a browser send them.
    pub(crate) async fn publisher(
        &self,
        headers: &HeaderMap,
        client: IpAddr,
    ) -> Result<Publisher<'_>, Denied> {
        let token = bearer(headers).ok_or(Denied::NoCredential)?;
        let mut found = None;
        for credential in &self.publishers {
            // All credentials are compared, even after a match, so that the time does not show which one matches.
            if credential.token.is(token) {
                found = Some(credential);
            }
        }
        match (found, &self.jwt) {
            (Some(credential), _) => Ok(Publisher::Credential(credential)),
            (None, Some(jwt)) => {
                let grant = self.verify(jwt, token, client).await?.into();
                let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
                let digest = Sha1::digest(signed).into();
                Ok(Publisher::Token { grant, digest })
            }
            (None, None) => Err(TokenRefused::Unknown.into()),
        }
    }

    /// Drops all earlier decisions about a subject.
    pub(crate) fn revoke(&self, subject: &str) {
        if let Some(forward) = &self.forward {
            forward.forget(subject);
        }
    }

    /// Query parameters that the backend of forward-auth reads.
    pub(crate) fn parameters(&self) -> &[String] {
        self.forward
            .as_ref()
            .map_or(&[], |forward| forward.parameters())
    }

    /// Whether the configuration allows any publisher.
    pub(crate) fn has_publishers(&self) -> bool {
        !self.publishers.is_empty() || self.jwt.is_some()
    }
}

impl Publisher<'_> {
    pub(crate) fn may_publish(&self, channel: &Channel) -> Result<(), Denied> {
        match self.channels().matches(channel.as_str()) {
            true => Ok(()),
            false => Err(Denied::Channel(channel.clone())),
        }
    }

    /// Checks that there is a channel that it may publish to, before it has named any.
    pub(crate) fn may_publish_anything(&self) -> Result<(), Denied> {
        match self.channels().is_empty() {
            true => Err(Denied::Publishing),
            false => Ok(()),
        }
    }

    fn channels(&self) -> &Patterns {
        match self {
            Self::Credential(credential) => &credential.channels,
            Self::Token { grant, .. } => &grant.publish,
        }
    }

    /// The idempotency key, unique to this publisher. None for a token without a subject: once renewed, it is another
    /// principal, so its key would not be known again.
    pub(crate) fn idempotency_key(&self, key: &str) -> Option<String> {
        let name = match self.principal() {
            Principal::Token(_) => return None,
            named => named.to_string(),
        };
        Some(format!("{}:{name}:{key}", name.len()))
    }

    /// The principal that its requests count for.
    pub(crate) fn principal(&self) -> Principal {
        match self {
            Self::Credential(credential) => Principal::Credential(credential.number),
            Self::Token { grant, digest } => match &grant.subject {
                Some(subject) => Principal::Subject(Arc::clone(subject)),
                None => Principal::Token(*digest),
            },
        }
    }
}

impl Grant {
    /// The holder that its streams count for. A publisher of the configuration can name any subject. Its streams are
    /// counted separately, so that they do not use up the places of the subject itself.
    pub(crate) fn holder(&self) -> Option<Holder> {
        let subject = self.subject.clone()?;
        Some(Holder {
            publisher: self.publisher,
            subject,
        })
    }

    /// Bytes of its texts.
    fn bytes(&self) -> usize {
        let subject = self.subject.as_ref().map_or(0, |subject| subject.len());
        subject + self.subscribe.bytes() + self.publish.bytes()
    }

    /// The time of its expiry.
    pub(crate) fn end(&self) -> Option<SystemTime> {
        let expires = Duration::from_secs(self.expires?);
        // A time beyond the range of the clock counts as no expiry.
        SystemTime::UNIX_EPOCH.checked_add(expires)
    }
}

/// Whether a page of another origin sends the request. `None` if there is no Sec-Fetch-Site. A page of the same site but
/// another origin counts as well. The value `none` is a request by the user.
fn is_foreign(headers: &HeaderMap) -> Option<bool> {
    let site = headers.get("sec-fetch-site")?.as_bytes();
    Some(matches!(site, b"cross-site" | b"same-site"))
}

/// Whether an origin names the host that the request is for. The scheme is not compared: TLS may end at a proxy.
fn is_same_origin(origin: &[u8], headers: &HeaderMap, uri: &Uri) -> bool {
    // HTTP/2 has the host in the URI.
    let host = uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| headers.get(header::HOST)?.to_str().ok());
    let origin = std::str::from_utf8(origin).ok();
    let origin = origin.and_then(|origin| origin.split_once("://"));
    let Some((host, (scheme, origin))) = host.zip(origin) else {
        return false;
    };
    // Browsers leave out the default port of a scheme. Other clients may not.
    let port = if scheme == "https" { ":443" } else { ":80" };
    let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    bare(host) == bare(origin)
}

/// Whether a page of another origin sends the request and cannot read the answer. Such a request uses up a place of its
/// visitor's address for nothing.
fn is_unreadable(headers: &HeaderMap) -> bool {
    let mode = headers.get("sec-fetch-mode").map(HeaderValue::as_bytes);
    mode == Some(b"no-cors") && is_foreign(headers) == Some(true)
}

/// The token of `Authorization: Bearer`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    // RFC 9110, 11.1: the name of a scheme is case-insensitive.
    let is_bearer = scheme.eq_ignore_ascii_case("Bearer");
    is_bearer.then_some(token.trim())
}

/// A cookie's value. If several cookies have the name, the first one counts. It has the longest path (RFC 6265, 5.4).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).into_iter();
    let pairs = values.filter_map(|value| value.to_str().ok());
    let mut pairs = pairs
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    // RFC 6265, 4.1.1: a value may be quoted.
    let quoted = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    Some(quoted.unwrap_or(value))
}

/// Seconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_bearer_token_is_read_in_any_case() {
        let read = |value| bearer(&headers("authorization", &[value])).map(str::to_owned);
        assert_eq!(read("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(read("bEARER  abc ").as_deref(), Some("abc"));
        assert_eq!(read("Basic abc"), None);
        assert_eq!(read("Bearer"), None);
    }

    #[test]
    fn an_origin_is_compared_with_the_host() {
        let is_same = |origin: &str, host: &'static str, uri: &str| {
            let headers = headers("host", &[host]);
            is_same_origin(origin.as_bytes(), &headers, &uri.parse().unwrap())
        };
        for (origin, host) in [
            ("https://example.com", "example.com"),
            ("https://Example.com", "example.com:443"),
            ("http://example.com", "example.com:80"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(is_same(origin, host, "/events"), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "example.com"),
            ("https://example.com.evil.example", "example.com"),
            ("https://example.com:8443", "example.com"),
            ("https://example.com", "example.com:80"),
            ("null", "example.com"),
            ("", "example.com"),
            ("example.com", "example.com"),
        ] {
            assert!(!is_same(origin, host, "/events"), "{origin} {host}");
        }
        assert!(is_same(
            "https://a.example",
            "b.example",
            "https://a.example/events"
        ));
        assert!(!is_same(
            "https://b.example",
            "b.example",
            "https://a.example/events"
        ));
    }

    #[test]
    fn a_cookie_is_found_among_others() {
        let read =
            |values: &[&'static str]| cookie(&headers("cookie", values), "t").map(str::to_owned);
        assert_eq!(read(&["a=1; t=x; b=2"]).as_deref(), Some("x"));
        assert_eq!(read(&["a=1", "t=\"x\""]).as_deref(), Some("x"));
        assert_eq!(read(&["t=first; t=second"]).as_deref(), Some("first"));
        assert_eq!(read(&["tt=x; at=y; t"]), None);
    }
}
