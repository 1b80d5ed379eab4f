//! `Access`: decides on requests by the rules in force.

use std::{net::IpAddr, sync::Arc};

use fair::{Quotas, counted};
use http::{HeaderMap, HeaderValue, Uri, header};
use sha1::{Digest as _, Sha1};

use crate::{
    caller::Caller,
    canary::CanaryCredential,
    clock::now,
    credential::Credential,
    denied::{Denied, TokenRefused},
    forward::ForwardAuth,
    grant::Grant,
    headers::{bearer, cookie, is_foreign, is_same_origin, is_unreadable},
    jwt::Verifier,
    origins::Origins,
    pattern::Patterns,
    runtime::MainRuntime,
    ticket::TicketLookup,
};

/// All rules.
pub struct Access {
    /// Channels that need no credential.
    pub(crate) public: Patterns,
    /// Whether all channels are public, but only for programs on this machine.
    pub local_only: bool,
    pub(crate) jwt: Option<Verifier>,
    pub(crate) forward: Option<Arc<ForwardAuth>>,
    pub(crate) publishers: Vec<Credential>,
    pub(crate) tickets: Arc<dyn TicketLookup>,
    pub(crate) runtime: MainRuntime,
    /// Sites whose pages may use their visitors' cookies.
    pub(crate) origins: Origins,
    /// Refused tokens of each address.
    pub(crate) refusals: Arc<Quotas<IpAddr>>,
    /// The credential of this process itself.
    pub(crate) canary: Option<CanaryCredential>,
}

/// The credentials of a request to subscribe that are not in its headers.
#[derive(Default)]
pub struct UrlCredentials {
    /// A token.
    pub access_token: Option<String>,
    /// A ticket.
    pub ticket: Option<String>,
}

impl Access {
    /// Decides on a request to subscribe. `client` is the address that sends it.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn subscriber(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        url_credentials: UrlCredentials,
        channels: &[&str],
    ) -> Result<Grant, Denied> {
        let is_public = |channel: &str| self.public.matches(channel);
        if is_unreadable(headers) {
            return Err(Denied::CrossSite);
        }
        let Some(private) = channels.iter().find(|channel| !is_public(channel)) else {
            return Ok(Grant::default());
        };
        let grant = self.judge(headers, uri, client, url_credentials, channels);
        let grant = grant.await?;
        let Some(grant) = grant else {
            tracing::debug!(channel = private, "no credential");
            return Err(Denied::NoCredential);
        };
        let may = |channel: &str| is_public(channel) || grant.subscribe.matches(channel);
        match channels.iter().find(|channel| !may(channel)) {
            Some(channel) => Err(Denied::Channel((*channel).to_owned())),
            None => Ok(grant),
        }
    }

    /// Whether the canary of this process sends the request.
    pub fn is_canary(&self, headers: &HeaderMap) -> bool {
        self.canary(headers).is_some()
    }

    fn canary(&self, headers: &HeaderMap) -> Option<&CanaryCredential> {
        let canary = self.canary.as_ref()?;
        bearer(headers)
            .is_some_and(|token| canary.token.is(token))
            .then_some(canary)
    }

    /// The permissions of the first credential in a request; none if it has no credential.
    async fn judge(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        url_credentials: UrlCredentials,
        channels: &[&str],
    ) -> Result<Option<Grant>, Denied> {
        if let Some(canary) = self.canary(headers) {
            return Ok(Some(Grant {
                subscribe: Patterns::of_names(vec![canary.channel.clone()]),
                ..Grant::default()
            }));
        }
        // Tickets exist only if there are publishers. Without publishers, their store is not asked.
        if let Some(ticket) = url_credentials.ticket.filter(|_| self.has_publishers()) {
            return self.take_ticket(ticket).await.map(Some);
        }
        if let Some(jwt) = &self.jwt {
            let query = url_credentials.access_token.as_deref();
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
                let asked = forward.ask(&self.runtime, headers, uri, client, channels);
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

    /// The grant of a ticket. This uses the ticket up.
    async fn take_ticket(&self, ticket: String) -> Result<Grant, Denied> {
        let grant = self.tickets.take(ticket).await?;
        match grant.expires {
            Some(expires) if expires <= now() => Err(Denied::Ticket),
            _ => Ok(grant),
        }
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
    ///
    /// # Errors
    /// When there is none.
    pub async fn publisher(
        &self,
        headers: &HeaderMap,
        client: IpAddr,
    ) -> Result<Caller<'_>, Denied> {
        let token = bearer(headers).ok_or(Denied::NoCredential)?;
        let mut found = None;
        for credential in &self.publishers {
            // All credentials are compared, even after a match, so that the time does not show which one matches.
            if credential.token.is(token) {
                found = Some(credential);
            }
        }
        match (found, &self.jwt) {
            (Some(credential), _) => Ok(Caller::Credential(credential)),
            (None, Some(jwt)) => {
                let grant = self.verify(jwt, token, client).await?.into();
                let signed = token.rsplit_once('.').map_or(token, |(signed, _)| signed);
                let digest = Sha1::digest(signed).into();
                Ok(Caller::Token { grant, digest })
            }
            (None, None) => Err(TokenRefused::Unknown.into()),
        }
    }

    /// Drops all earlier decisions about a subject.
    pub fn revoke(&self, subject: &str) {
        if let Some(forward) = &self.forward {
            forward.forget(subject);
        }
    }

    /// Query parameters that the backend of forward-auth reads.
    pub fn parameters(&self) -> &[String] {
        self.forward
            .as_ref()
            .map_or(&[], |forward| forward.parameters())
    }

    /// Whether the configuration allows any publisher.
    pub fn has_publishers(&self) -> bool {
        !self.publishers.is_empty() || self.jwt.is_some()
    }
}
