//! Forward-auth: asks the backend that knows the user, with the user's own cookies and headers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use broker::seldom;
use fair::{Parts, Turns, counted};
use hub::Channel;
use percent_encoding::NON_ALPHANUMERIC;
use reqwest::Url;
use sha1::{Digest, Sha1};
use text::{list, nearest};
use tokio::time::timeout;

use super::{Denied, Grant, Hidden, MAX_SUBJECT, Patterns, jwks::describe, now};
use crate::aside::Aside;

/// Requests under way at once. The next one waits for one of them to end.
const MAX_REQUESTS: usize = 64;
/// Requests that wait or are under way. One address has half of them.
const MAX_WAITING: usize = 1024;
/// The longest wait of a request in total.
const PATIENCE: Duration = Duration::from_secs(4);
/// Maximum cached permissions. One address may use half of them: that of a balancer that names no clients serves many
/// users.
const MAX_CACHED: usize = 20_000;
/// Maximum cached refusals. They are separate from permissions, because a client can cause any number of refusals.
const MAX_CACHED_REFUSALS: usize = 2000;
/// An answer with more bytes of text is not cached. A client can ask for many long names, and each combination of
/// names has its own answer.
const MAX_CACHED_BYTES: usize = 2 << 10;

/// Headers that narrow a 2xx answer.
const SUBSCRIBE: &str = "x-sse-subscribe";
const SUBJECT: &str = "x-sse-subject";
const EXPIRES_IN: &str = "x-sse-expires-in";
/// Sent to the backend. If the backend echoes it, it narrows nothing.
const CHANNELS: &str = "x-sse-channels";
const KNOWN: [&str; 4] = [SUBSCRIBE, SUBJECT, EXPIRES_IN, CHANNELS];

/// The backend, and the contents of requests to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForwardConfig {
    pub(crate) url: Hidden<Url>,
    /// Headers of the client that are passed on.
    pub(crate) headers: Vec<HeaderName>,
    /// Query parameters that the backend reads. All other names are the gateway's, or unknown.
    pub(crate) parameters: Vec<String>,
    /// Time for which an answer is cached.
    pub(crate) cache: Duration,
}

/// Asks the backend, and caches its answers.
pub(crate) struct ForwardAuth {
    config: ForwardConfig,
    http: reqwest::Client,
    turns: Turns<IpAddr>,
    cache: Mutex<Cache>,
}

struct Cache {
    permissions: Answers,
    refusals: Answers,
    /// The number of revocations. An answer is not kept if this has changed since the backend was asked.
    revocations: u64,
}

/// Answers of one kind. Each client has a part of the places, so that it cannot use up those of others.
struct Answers {
    /// Keyed by the digest of everything that was sent.
    answers: HashMap<[u8; 20], Cached>,
    places: Parts<IpAddr>,
    /// When old answers were last removed.
    swept: Instant,
}

struct Cached {
    answer: Result<Grant, Denied>,
    until: Instant,
    /// The address that the place belongs to.
    client: IpAddr,
}

impl Cache {
    fn new() -> Self {
        Self {
            permissions: Answers::new(MAX_CACHED),
            refusals: Answers::new(MAX_CACHED_REFUSALS),
            revocations: 0,
        }
    }

    fn get(&self, digest: &[u8; 20]) -> Option<&Cached> {
        let found = self.permissions.answers.get(digest);
        let found = found.or_else(|| self.refusals.answers.get(digest));
        found.filter(|found| found.until > Instant::now())
    }

    fn insert(&mut self, digest: [u8; 20], cached: Cached) {
        // The answer may have changed from one kind to the other.
        self.permissions.remove(&digest);
        self.refusals.remove(&digest);
        match &cached.answer {
            Ok(_) => self.permissions.insert(digest, cached),
            Err(_) => self.refusals.insert(digest, cached),
        }
    }
}

impl Answers {
    fn new(places: usize) -> Self {
        Self {
            answers: HashMap::new(),
            places: Parts::new(places),
            swept: Instant::now(),
        }
    }

    /// Keeps an answer, unless its client has used up its places.
    fn insert(&mut self, digest: [u8; 20], cached: Cached) {
        if !self.places.take(&cached.client, 1) {
            if self.swept.elapsed() < Duration::from_secs(1) {
                return;
            }
            self.swept = Instant::now();
            let now = self.swept;
            self.retain(|cached| cached.until > now);
            if !self.places.take(&cached.client, 1) {
                return;
            }
        }
        self.answers.insert(digest, cached);
    }

    fn remove(&mut self, digest: &[u8; 20]) {
        if let Some(cached) = self.answers.remove(digest) {
            self.places.give_back(&cached.client, 1);
        }
    }

    fn retain(&mut self, stays: impl Fn(&Cached) -> bool) {
        let places = &mut self.places;
        self.answers.retain(|_, cached| {
            let stays = stays(cached);
            if !stays {
                places.give_back(&cached.client, 1);
            }
            stays
        });
    }
}

impl ForwardAuth {
    pub(crate) fn new(config: ForwardConfig, http: reqwest::Client) -> Self {
        Self {
            config,
            http,
            turns: Turns::new(MAX_REQUESTS, MAX_WAITING),
            cache: Mutex::new(Cache::new()),
        }
    }

    /// Whether it asks the same backend in the same way.
    pub(crate) fn is_of(&self, config: &ForwardConfig) -> bool {
        self.config == *config
    }

    /// Whether the backend would see credentials that a browser may have added by itself.
    pub(super) fn passes_credentials(&self, headers: &HeaderMap) -> bool {
        let is_credential = |name: &&HeaderName| {
            [header::AUTHORIZATION, header::COOKIE].contains(*name) && headers.contains_key(*name)
        };
        self.config.headers.iter().any(|name| is_credential(&name))
    }

    /// Asks the backend about this request. If there is no answer, the request is refused.
    pub(super) async fn ask(
        &self,
        aside: &Aside,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        channels: &[Channel],
    ) -> Result<Grant, Denied> {
        // If not all headers can be passed on, the request is refused without asking.
        let sent = self.headers(headers, uri, client, channels);
        let sent = sent.ok_or(Denied::Backend { known: true })?;
        let digest = digest(&sent);
        let revocations = match self.cached(&digest) {
            Ok(cached) => return cached,
            Err(revocations) => revocations,
        };
        let client = counted(client);
        let names = channels.iter().map(ToString::to_string).collect();
        let request = self.http.get(self.config.url.0.clone()).headers(sent);
        let asking = async {
            let turn = self.turns.wait(client).await?;
            let asked = aside.run(async move {
                // The turn ends with the request, even if the request is given up.
                let _turn = turn;
                let answer = request.send().await;
                answer.map(|answer| (answer.status(), answer.headers().clone()))
            });
            asked.await
        };
        let answer = match timeout(PATIENCE, asking).await {
            Ok(Some(Ok((status, headers)))) => read(status, &headers, names),
            Ok(Some(Err(error))) => Err(describe(&error)),
            Ok(None) => return Err(Denied::Unavailable),
            Err(_) => Err("did not answer in time".to_owned()),
        };
        match answer {
            Ok(answer) => {
                self.remember(digest, client, &answer, revocations);
                answer
            }
            Err(error) => {
                seldom!(
                    error,
                    error,
                    "forward-auth request failed: subscribers are refused"
                );
                Err(Denied::Unavailable)
            }
        }
    }

    pub(super) fn parameters(&self) -> &[String] {
        &self.config.parameters
    }

    /// Drops the cached answers about a subject, and keeps no answer that is on its way.
    pub(super) fn forget(&self, subject: &str) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = |cached: &Cached| match &cached.answer {
            Ok(grant) => grant.subject.as_deref() != Some(subject),
            Err(_) => true,
        };
        cache.permissions.retain(is_other);
        cache.revocations += 1;
    }

    fn headers(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        channels: &[Channel],
    ) -> Option<HeaderMap> {
        let mut sent = HeaderMap::new();
        for name in &self.config.headers {
            let mut values = headers.get_all(name).into_iter();
            if *name == header::COOKIE {
                // HTTP/2 may send cookies one by one (RFC 9113, 8.2.3).
                let all: Vec<_> = values.map(HeaderValue::as_bytes).collect();
                if !all.is_empty() {
                    let all = HeaderValue::from_bytes(&all.join(&b"; "[..])).ok()?;
                    sent.insert(name.clone(), all);
                }
                continue;
            }
            values
                .try_for_each(|value| sent.try_append(name, value.clone()).map(drop))
                .ok()?;
        }
        let names = channels.iter().map(|channel| {
            percent_encoding::utf8_percent_encode(channel.as_str(), NON_ALPHANUMERIC).to_string()
        });
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        for (name, value) in [
            ("x-forwarded-method", "GET"),
            ("x-forwarded-uri", path),
            ("x-forwarded-for", &client.to_string()),
            (CHANNELS, &names.collect::<Vec<_>>().join(",")),
        ] {
            sent.insert(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
        Some(sent)
    }

    /// The cached answer or, without one, the number of revocations before the backend is asked.
    fn cached(&self, digest: &[u8; 20]) -> Result<Result<Grant, Denied>, u64> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.get(digest) {
            Some(found) => Ok(found.answer.clone()),
            None => Err(cache.revocations),
        }
    }

    /// Keeps an answer for `cache`, but not beyond its own expiry. The answer is not kept if any subject was revoked
    /// while it was on its way. Until it arrives, its subject is unknown, and may be the revoked one.
    fn remember(
        &self,
        digest: [u8; 20],
        client: IpAddr,
        answer: &Result<Grant, Denied>,
        revocations: u64,
    ) {
        let grant = answer.as_ref().ok();
        if grant.is_some_and(|grant| grant.bytes() > MAX_CACHED_BYTES) {
            return;
        }
        let expires = grant.and_then(|grant| grant.expires);
        let left = expires.map(|expires| Duration::from_secs(expires.saturating_sub(now())));
        let good = left.map_or(self.config.cache, |left| left.min(self.config.cache));
        let cached = Cached {
            answer: answer.clone(),
            until: Instant::now() + good,
            client,
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.revocations == revocations {
            cache.insert(digest, cached);
        }
    }
}

/// Digest of everything that the answer may depend on.
fn digest(headers: &HeaderMap) -> [u8; 20] {
    let mut digest = Sha1::new();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), value.as_bytes()] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    }
    digest.finalize().into()
}

/// Reads an answer. An answer that neither allows nor refuses is an error. The request contained `names`. The backend
/// has seen them, so a 2xx answer allows them all unless its headers narrow it.
fn read(
    status: StatusCode,
    headers: &HeaderMap,
    names: Vec<String>,
) -> Result<Result<Grant, Denied>, String> {
    match status {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED => return Ok(Err(Denied::Backend { known: false })),
        StatusCode::FORBIDDEN => return Ok(Err(Denied::Backend { known: true })),
        status => return Err(format!("answered {status}")),
    }
    let is_unknown =
        |name: &&HeaderName| name.as_str().starts_with("x-sse-") && !KNOWN.contains(&name.as_str());
    if let Some(name) = headers.keys().find(is_unknown) {
        // The header may be meant to narrow the answer.
        let meant = nearest(name.as_str(), KNOWN).unwrap_or("none of ours");
        return Err(format!("answered {name}, which is unknown: {meant}?"));
    }
    let unreadable = |name: &str| format!("answered {name} with what cannot be read");
    let texts = |name: &'static str| {
        let values = headers.get_all(name).into_iter();
        let texts = values.map(|value| std::str::from_utf8(value.as_bytes()).map(str::trim));
        texts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| unreadable(name))
    };
    let subscribe = match &texts(SUBSCRIBE)?[..] {
        [] => Patterns::of_names(names),
        values => {
            let parts = values.iter().flat_map(|value| list(value));
            Patterns::new(parts.map(str::to_owned))
        }
    };
    let expires = match &texts(EXPIRES_IN)?[..] {
        [] => None,
        [seconds] => {
            let seconds: u64 = seconds.parse().map_err(|_| unreadable(EXPIRES_IN))?;
            if seconds == 0 {
                return Ok(Err(Denied::Backend { known: false }));
            }
            Some(now().saturating_add(seconds))
        }
        _ => return Err(unreadable(EXPIRES_IN)),
    };
    let subject = texts(SUBJECT)?
        .into_iter()
        .find(|subject| !subject.is_empty());
    if subject.is_some_and(|subject| subject.len() > MAX_SUBJECT) {
        return Err(format!(
            "answered {SUBJECT} with more than {MAX_SUBJECT} bytes"
        ));
    }
    Ok(Ok(Grant {
        subject: subject.map(Into::into),
        publisher: None,
        subscribe,
        publish: Patterns::default(),
        expires,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(cache: &mut Cache, number: u32, last: u8, answer: Result<Grant, Denied>) -> bool {
        let mut digest = [last; 20];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        let client = [192, 0, 2, last].into();
        let until = Instant::now() + Duration::from_secs(60);
        cache.insert(
            digest,
            Cached {
                answer,
                until,
                client,
            },
        );
        cache.get(&digest).is_some()
    }

    #[test]
    fn one_client_does_not_fill_the_cache() {
        let mut cache = Cache::new();
        let refused = || Err(Denied::Backend { known: false });
        let allowed = || Ok(Grant::default());
        let refusals = (0..5000).filter(|number| keep(&mut cache, *number, 1, refused()));
        assert_eq!(refusals.count(), MAX_CACHED_REFUSALS / 2);
        let most = 2 * MAX_CACHED as u32;
        let permissions = (5000..most).filter(|number| keep(&mut cache, *number, 1, allowed()));
        assert_eq!(permissions.count(), MAX_CACHED / 2);
        assert!(keep(&mut cache, 0, 2, refused()) && keep(&mut cache, 1, 2, allowed()));
        // Another answer to the same request replaces the first.
        assert!(keep(&mut cache, 0, 2, allowed()));
        assert_eq!(cache.refusals.answers.len(), MAX_CACHED_REFUSALS / 2);
        cache.permissions.retain(|_| false);
        assert!(keep(&mut cache, most, 1, allowed()));
    }
}
