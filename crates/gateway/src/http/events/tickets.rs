//! `POST /tickets`: a ticket for one connection, for clients that can send no header.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use access::{Caller, Denied, Grant, MAX_SUBJECT, Patterns, Principal, now};
use axum::{
    body::Body,
    extract,
    http::{Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use fair::Quotas;
use serde::Deserialize;
use serde_json::json;

use crate::http::AppState;
use crate::http::error::Problem;
use crate::http::events::publish;
use crate::http::events::query;
use crate::{
    ticket_store::{TicketStore, ticket_of},
    value,
};

/// Bytes of a request at most.
const MAX_BODY: usize = 32 << 10;
/// Maximum bytes of a ticket in Redis, without its name. A hundred channels of common length fit, and all that a token
/// may contain.
const MAX_GRANT: usize = 16 << 10;
/// A larger ticket counts as several, so that the bytes of all tickets of a subject are limited as well.
const GRANT_UNIT: usize = 1 << 10;
/// Tickets that one publisher of the configuration may issue per `--ticket-ttl`: one for each stream that a replica has
/// at most by default.
const MAX_PER_PUBLISHER: u32 = 100_000;
/// Ticket requests of one principal in a second, granted or refused. A publisher that issues all tickets of its quota
/// needs 3,333 in a second with the default `--ticket-ttl`.
const MAX_REQUESTS: u32 = 5000;

/// Settings of tickets.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct TicketConfig {
    /// Time within which a ticket has to be used.
    #[arg(
        long = "ticket-ttl",
        env = "SSE_GATEWAY_TICKET_TTL",
        value_name = "TIME",
        default_value = "30s",
        value_parser = value::time_from(Duration::from_secs(1))
    )]
    ttl: Duration,

    /// Tickets that one subject may be issued per --ticket-ttl on this replica; 0: no limit. A ticket of more
    /// than 1 KiB counts as several.
    #[arg(
        long = "max-tickets-per-subject",
        env = "SSE_GATEWAY_MAX_TICKETS_PER_SUBJECT",
        value_name = "N",
        default_value_t = 100
    )]
    max_per_subject: u32,
}

/// Limits the tickets that wait in Redis. A ticket is kept for `--ticket-ttl`, which is also the period of the quotas.
/// So at most two quotas of each principal can be outstanding per replica.
pub(crate) struct Tickets {
    store: TicketStore,
    config: TicketConfig,
    subjects: Quotas<Principal>,
    publishers: Quotas<Principal>,
    /// Separate from the rate of events. Otherwise a token that may only subscribe could use up the rate of tokens that
    /// publish.
    requests: Quotas<Principal>,
}

impl Tickets {
    pub(crate) fn new(store: TicketStore, config: TicketConfig) -> Self {
        Self {
            store,
            config,
            subjects: Quotas::new(config.max_per_subject, config.ttl),
            publishers: Quotas::new(MAX_PER_PUBLISHER, config.ttl),
            requests: Quotas::new(MAX_REQUESTS, Duration::from_secs(1)),
        }
    }

    /// The quota that a principal's tickets count for.
    fn quota(&self, principal: &Principal) -> &Quotas<Principal> {
        match principal {
            Principal::Credential(_) => &self.publishers,
            Principal::Subject(_) | Principal::Token(_) => &self.subjects,
        }
    }
}

/// The permissions that a ticket request asks for.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct TicketRequest {
    /// Channel names. A request with a token may omit them. The ticket is then for all channels that the token may
    /// subscribe to.
    channels: Option<Vec<String>>,
    /// The subject of the connection. Only for publishers of the configuration, because a token names its own subject.
    subject: Option<String>,
    /// Seconds after which the connection ends.
    expires_in: Option<u64>,
}

pub(crate) async fn issue(
    extract::State(app_state): extract::State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, Problem> {
    let issued = app_state.issue(request).await;
    if let Err(problem) = &issued {
        app_state.metrics.refuse(problem.code());
    }
    issued
}

impl AppState {
    async fn issue(&self, request: Request<Body>) -> Result<Response, Problem> {
        let (head, body) = request.into_parts();
        let access = self.access.get();
        if !access.has_publishers() {
            return Err(Problem::TicketsOff);
        }
        let client = self.client(&head);
        let caller = access.publisher(&head.headers, client).await?;
        for (name, _) in query::pairs(head.uri.query().unwrap_or_default()) {
            query::unknown(name, &[])?;
        }
        let principal = caller.principal();
        let asked = self.tickets.requests.take(principal.clone(), 1);
        asked.map_err(Problem::TooManyTickets)?;
        let holder = publish::holder(&caller, &head);
        let body = self.publish.read(body, MAX_BODY, &holder).await?;
        let body = &body.bytes;
        let wanted = match body.trim_ascii().is_empty() {
            true => TicketRequest::default(),
            false => serde_json::from_slice(body)
                .map_err(|error| Problem::BadTicketRequest(publish::cause(&error)))?,
        };
        let encoded = ticket_of(self.grant(caller, wanted)?).encode();
        if encoded.bytes() > MAX_GRANT {
            return Err(Problem::BadTicketRequest(format!(
                "what this ticket allows takes {} bytes, and at most {MAX_GRANT} are kept: name fewer channels",
                encoded.bytes()
            )));
        }
        let units = encoded.bytes().div_ceil(GRANT_UNIT);
        let quota = self.tickets.quota(&principal);
        let taken = quota.take(principal.clone(), units);
        taken.map_err(Problem::TooManyTickets)?;
        let issued = self
            .tickets
            .store
            .issue(encoded, self.tickets.config.ttl)
            .await;
        if issued.is_err() {
            quota.give_back(&principal, units);
        }
        let ticket = issued?;
        let body = json!({ "ticket": ticket, "expires_in": self.tickets.config.ttl.as_secs() });
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
        ];
        Ok((StatusCode::CREATED, headers, body.to_string()).into_response())
    }

    /// The grant of a ticket. It never exceeds the permissions of the requester.
    fn grant(&self, caller: Caller<'_>, wanted: TicketRequest) -> Result<Grant, Problem> {
        let bad = |text: &str| Problem::BadTicketRequest(text.to_owned());
        if wanted
            .channels
            .as_ref()
            .is_some_and(|names| names.len() > self.config.max_channels)
        {
            return Err(Problem::TooManyChannels(self.config.max_channels));
        }
        // An empty list is a mistake. Without this check it would mean all channels.
        if wanted.channels.as_ref().is_some_and(Vec::is_empty) {
            return Err(bad("channels are missing"));
        }
        let names = wanted.channels.unwrap_or_default();
        let (mut grant, may) = match caller {
            Caller::Credential(credential) => {
                if names.is_empty() {
                    return Err(bad("channels are missing"));
                }
                let subject = wanted.subject.filter(|subject| !subject.is_empty());
                let subject = subject.map(Into::into);
                let grant = Grant {
                    subject,
                    publisher: Some(credential.number),
                    ..Grant::default()
                };
                (grant, credential.channels.clone())
            }
            Caller::Token { .. } if wanted.subject.is_some() => {
                return Err(bad("a token says itself whose it is: leave out subject"));
            }
            Caller::Token { grant, .. } => {
                let may = grant.subscribe.clone();
                (*grant, may)
            }
        };
        if grant
            .subject
            .as_ref()
            .is_some_and(|subject| subject.len() > MAX_SUBJECT)
        {
            return Err(bad("a subject has at most 256 bytes"));
        }
        for name in &names {
            let channel = self.partitions.channel(name)?;
            if !may.matches(name) {
                return Err(Denied::Channel(channel.to_string()).into());
            }
        }
        grant.subscribe = match names.is_empty() {
            true => may,
            false => Patterns::of_names(names),
        };
        grant.publish = Patterns::default();
        if let Some(seconds) = wanted.expires_in {
            let wanted = now().saturating_add(seconds);
            let earliest = grant.expires.map_or(wanted, |expires| expires.min(wanted));
            grant.expires = Some(earliest);
        }
        if grant.end().is_some_and(|end| end <= SystemTime::now()) {
            return Err(bad("expires_in has to be at least 1"));
        }
        Ok(grant)
    }
}
