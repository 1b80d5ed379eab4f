//! Forward-auth: the backend that knows the user is asked, with the user's own cookies and headers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use hub::Channel;
use reqwest::Url;
use sha1::{Digest, Sha1};
use tokio::sync::Semaphore;

use super::{Denied, Grant, Patterns, jwks::describe, now};
use crate::aside::Aside;

/// Requests under way at once; whoever comes then waits for one to end.
const MAX_REQUESTS: usize = 64;
/// Answers that are remembered at most.
const MAX_CACHED: usize = 10_000;

/// What narrows an answer of 2xx.
const SUBSCRIBE: &str = "x-sse-subscribe";
const SUBJECT: &str = "x-sse-subject";
const EXPIRES_IN: &str = "x-sse-expires-in";

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub(crate) struct ForwardConfig {
    pub(crate) url: Url,
    /// Of the client's headers, these are passed on.
    pub(crate) headers: Vec<HeaderName>,
    /// How long an answer is good for.
    pub(crate) cache: Duration,
}

/// Asks.
pub(crate) struct ForwardAuth {
    config: ForwardConfig,
    client: reqwest::Client,
    room: Arc<Semaphore>,
    /// By the digest of everything that was sent.
    cached: Mutex<HashMap<[u8; 20], Cached>>,
}

#[derive(Clone)]
struct Cached {
    answer: Result<Grant, Denied>,
    until: Instant,
}

impl ForwardAuth {
    pub(crate) fn new(config: ForwardConfig, client: reqwest::Client) -> Self {
        Self {
            config,
            client,
            room: Arc::new(Semaphore::new(MAX_REQUESTS)),
            cached: Mutex::default(),
        }
    }

    /// What the backend says of this request. If it says nothing, that is a refusal.
    pub(super) async fn ask(
        &self,
        aside: &Aside,
        headers: &HeaderMap,
        uri: &Uri,
        client: IpAddr,
        channels: &[Channel],
    ) -> Result<Grant, Denied> {
        // A request that cannot be told in full is not asked about.
        let sent = self
            .headers(headers, uri, client)
            .ok_or(Denied::Backend { known: true })?;
        let digest = digest(&sent);
        if let Some(cached) = self.cached(&digest) {
            return cached;
        }
        let names = channels.iter().map(ToString::to_string).collect();
        let request = self.client.get(self.config.url.clone()).headers(sent);
        let room = Arc::clone(&self.room);
        let asked = aside.run(async move {
            let _room = room.acquire_owned().await;
            let answer = request.send().await;
            answer.map(|answer| (answer.status(), answer.headers().clone()))
        });
        let answer = match asked.await {
            Some(Ok((status, headers))) => read(status, &headers, names),
            Some(Err(error)) => {
                tracing::error!(
                    error = describe(&error),
                    "forward-auth: nobody is let in by it"
                );
                Err(Denied::Unavailable)
            }
            None => Err(Denied::Unavailable),
        };
        if answer != Err(Denied::Unavailable) {
            self.remember(digest, &answer);
        }
        answer
    }

    fn headers(&self, headers: &HeaderMap, uri: &Uri, client: IpAddr) -> Option<HeaderMap> {
        let mut sent = HeaderMap::new();
        for name in &self.config.headers {
            for value in headers.get_all(name) {
                sent.append(name.clone(), value.clone());
            }
        }
        for (name, value) in [
            ("x-forwarded-method", "GET"),
            ("x-forwarded-uri", &uri.to_string()),
            ("x-forwarded-for", &client.to_string()),
        ] {
            sent.insert(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
        }
        Some(sent)
    }

    fn cached(&self, digest: &[u8; 20]) -> Option<Result<Grant, Denied>> {
        let cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cached.get(digest)?;
        (found.until > Instant::now()).then(|| found.answer.clone())
    }

    fn remember(&self, digest: [u8; 20], answer: &Result<Grant, Denied>) {
        let now = Instant::now();
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.len() >= MAX_CACHED {
            cached.retain(|_, cached| cached.until > now);
        }
        if cached.len() < MAX_CACHED {
            let answer = answer.clone();
            let until = now + self.config.cache;
            cached.insert(digest, Cached { answer, until });
        }
    }
}

/// Of everything that the answer may depend on.
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

/// `names` were asked for: the backend has seen them, and allows them unless it says otherwise.
fn read(status: StatusCode, headers: &HeaderMap, names: Vec<String>) -> Result<Grant, Denied> {
    match status {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED => return Err(Denied::Backend { known: false }),
        StatusCode::FORBIDDEN => return Err(Denied::Backend { known: true }),
        status => {
            tracing::error!(%status, "forward-auth: neither 2xx nor 401 nor 403; nobody is let in by it");
            return Err(Denied::Unavailable);
        }
    }
    let unreadable = |name| {
        tracing::error!(
            name,
            "forward-auth: a header that cannot be read; nobody is let in by it"
        );
        Denied::Unavailable
    };
    let text = |name: &'static str| match headers.get(name) {
        None => Ok(None),
        Some(value) => match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => Ok(Some(text.trim())),
            Err(_) => Err(unreadable(name)),
        },
    };
    let mut subscribe = Patterns::of_names(names);
    if headers.contains_key(SUBSCRIBE) {
        let mut patterns = Vec::new();
        for value in headers.get_all(SUBSCRIBE) {
            let value = std::str::from_utf8(value.as_bytes()).map_err(|_| unreadable(SUBSCRIBE))?;
            let parts = value
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            patterns.extend(parts.map(str::to_owned));
        }
        subscribe = Patterns::new(patterns);
    }
    let expires = match text(EXPIRES_IN)? {
        None => None,
        Some(seconds) => {
            let seconds: u64 = seconds.parse().map_err(|_| unreadable(EXPIRES_IN))?;
            Some(now().saturating_add(seconds))
        }
    };
    Ok(Grant {
        subject: text(SUBJECT)?
            .filter(|text| !text.is_empty())
            .map(Into::into),
        subscribe,
        publish: Patterns::default(),
        expires,
    })
}
