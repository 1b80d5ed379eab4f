//! Publishes numbered events that are known to be of this run of the doctor.

use axum::http::{StatusCode, header};
use tokio::time::timeout;

use super::{ANSWER, Route, describe};
use access::Secret;

/// How the doctor publishes.
#[derive(Debug)]
pub(crate) enum PublishWay {
    /// By POST to the same URL, with this token.
    Post(Secret),
    /// By the function, in this Redis.
    Redis(broker::Server),
}

impl PublishWay {
    pub(super) fn is_post(&self) -> bool {
        matches!(self, Self::Post(_))
    }
}

/// Publishes one after the other.
pub(super) struct Publisher<'a> {
    route: &'a Route,
    client: &'a reqwest::Client,
    /// Distinguishes this run's events from others on the same channel.
    pub(super) run: String,
    /// The number of the newest event.
    pub(super) number: u32,
}

impl<'a> Publisher<'a> {
    pub(super) fn new(route: &'a Route, client: &'a reqwest::Client) -> Self {
        Self {
            route,
            client,
            run: format!("{:08x}", fastrand::u32(..)),
            number: 0,
        }
    }

    /// Publishes the next event of this run.
    pub(super) async fn publish(&mut self) -> Result<(), String> {
        self.number += 1;
        let payload = format!("{} {}", self.run, self.number);
        let Route { url, channel, .. } = self.route;
        match &self.route.publish {
            PublishWay::Redis(redis) => {
                let published = broker::publish(redis, channel, payload.as_bytes());
                match timeout(ANSWER, published).await {
                    Ok(published) => published.map(drop).map_err(|error| error.to_string()),
                    Err(_) => Err("Redis does not answer".to_owned()),
                }
            }
            PublishWay::Post(token) => {
                let mut url = url.clone();
                url.query_pairs_mut().append_pair("channel", channel);
                let request = self
                    .client
                    .post(url)
                    .bearer_auth(token.as_str())
                    .header(header::CONTENT_TYPE, "text/plain")
                    .body(payload);
                match timeout(ANSWER, request.send()).await {
                    Ok(Ok(answer)) if answer.status() == StatusCode::CREATED => Ok(()),
                    Ok(Ok(answer)) => Err(format!("POST is answered {}", answer.status())),
                    Ok(Err(error)) => Err(describe(&error)),
                    Err(_) => Err("POST is not answered".to_owned()),
                }
            }
        }
    }
}
