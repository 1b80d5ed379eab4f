//! `Builder`: puts a configuration in force, at the start and after a reload.

use std::{net::IpAddr, sync::Arc, time::Duration};

use fair::Quotas;

use crate::{
    access::Access,
    backend::client,
    canary::CanaryCredential,
    config::{Config, KeySource},
    forward::{ForwardAuth, OnFailure},
    jwks::{Keys, Refresh},
    jwt::Verifier,
    runtime::MainRuntime,
    ticket::TicketLookup,
};

/// Tokens of one address that may be refused at once, and in each period. The check of a signature takes up to half a
/// millisecond, whether it is right or wrong.
const MAX_REFUSED_TOKENS: u32 = 1000;
const REFUSED_TOKENS_PERIOD: Duration = Duration::from_secs(10);

/// The parts of the access rules that stay the same over a reload.
pub struct Builder {
    tickets: Arc<dyn TicketLookup>,
    canary: Option<CanaryCredential>,
    on_failure: OnFailure,
    /// Refused tokens of each address.
    refusals: Arc<Quotas<IpAddr>>,
    /// For the backends that authorize requests. None until there is one, because the client needs the system's
    /// certificates, and a small image may lack them.
    client: Option<reqwest::Client>,
    /// The greatest number of a publisher so far.
    publishers: usize,
}

impl Builder {
    /// `client` is for backends, if there is one already. `on_failure` receives the errors of forward-auth.
    pub fn new(
        tickets: Arc<dyn TicketLookup>,
        canary: Option<CanaryCredential>,
        client: Option<reqwest::Client>,
        on_failure: OnFailure,
    ) -> Self {
        let refusals = Quotas::new(MAX_REFUSED_TOKENS, REFUSED_TOKENS_PERIOD);
        Self {
            tickets,
            canary,
            on_failure,
            refusals: Arc::new(refusals),
            client,
            publishers: 0,
        }
    }

    /// Builds `Access`, and the task that keeps the keys up to date. Both belong to the runtime of the caller. A part
    /// of `before` with the same backend and settings is kept, with its keys or its cached answers. Known publishers
    /// keep their numbers.
    ///
    /// # Errors
    /// When the client for requests to backends cannot be made.
    pub fn build(
        &mut self,
        mut config: Config,
        before: Option<&Access>,
    ) -> Result<(Access, Option<Refresh>), String> {
        let known = before.map_or(&[][..], |before| &before.publishers);
        self.publishers = config.keep_numbers(known, self.publishers);
        if config.asks_backends() && self.client.is_none() {
            let client = client();
            let client = client.map_err(|error| format!("cannot make requests over HTTP: {error}"));
            self.client = Some(client?);
        }
        let client = || self.client.clone().expect("it is there where it is needed");
        let mut refresh = None;
        let local_only = config.is_local_only();
        let jwt = config.jwt.map(|(config, source)| {
            let keys = match source {
                KeySource::Fixed(keys) => Keys::fixed(keys),
                KeySource::File(path, keys) => {
                    let (keys, again) = Keys::of_file(path, keys);
                    refresh = Some(again);
                    keys
                }
                KeySource::Url(url) => {
                    let known = before.and_then(|before| before.jwt.as_ref()?.keys_of(&url));
                    known.unwrap_or_else(|| {
                        let (keys, again) = Keys::of_url(url, client());
                        refresh = Some(again);
                        keys
                    })
                }
            };
            Verifier::new(config, keys)
        });
        let forward = config.forward.map(|config| {
            let known = before.and_then(|before| before.forward.clone());
            let known = known.filter(|forward| forward.is_of(&config));
            known.unwrap_or_else(|| Arc::new(ForwardAuth::new(config, client(), self.on_failure)))
        });
        let access = Access {
            local_only,
            public: config.public,
            jwt,
            forward,
            publishers: config.publishers,
            tickets: Arc::clone(&self.tickets),
            runtime: MainRuntime::current(),
            origins: config.origins,
            refusals: Arc::clone(&self.refusals),
            canary: self.canary.clone(),
        };
        Ok((access, refresh))
    }
}
